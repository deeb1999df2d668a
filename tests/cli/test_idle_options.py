"""An option that would change nothing in the way a command is used is refused, with its flag and the remedy."""

import dataclasses
import shutil

import numpy as np
import pytest

from ldlm import config as configs
from ldlm import files
from ldlm.errors import InputError
from ldlm.stages import extract_features


@pytest.fixture
def features(tmp_path):
    """Features of texts and of a reference, as arguments of `evaluate`."""
    for name in "pq":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(30, 4)))
    return ("evaluate", "--features-p", tmp_path / "p.npy", "--features-q", tmp_path / "q.npy")


@pytest.mark.parametrize(
    "idle",
    [
        ("--reference", "nosuch.jsonl"),
        ("--mauve",),
        ("--seeds",),
        ("--training", "nosuch"),
        ("--dry-run",),
        ("--source", "stories"),
        ("--scorer", "nosuch"),
        ("--protocol", "hf"),
        ("--max-tokens", 8),
        ("--mauve-model", "nosuch"),
    ],
)
def test_mauve_of_features_takes_nothing_that_is_for_texts(refuse, features, idle):
    assert refuse(*features, *idle) == (
        f"--features-p and --features-q give the MAUVE of features, and {idle[0]} is for texts; leave {idle[0]} out"
    )


def test_a_model_for_mauve_needs_mauve(refuse, corpus):
    assert refuse("evaluate", corpus, "--mauve-model", "nosuch").startswith(
        "--mauve-model chooses the model of --mauve; add --mauve"
    )


@pytest.mark.parametrize("idle", [("--overwrite",), ("--allow-partial",), ("--seed", 3)])
def test_a_path_between_given_texts_takes_nothing_that_is_for_pairs(refuse, idle):
    line = refuse("interpolate", "--run", "nosuch", "--from", "a", "--to", "b", *idle)
    assert line.startswith(f"{idle[0]} is for pairs of held-out texts")


def test_the_size_of_a_vocabulary_beside_a_tokenizer_is_its_own(refuse, succeed, gpt2, corpus):
    command = ("pretrain-encoder", "--data", corpus, "--tokenizer", gpt2, "--dry-run", "--vocab-size")
    assert refuse(*command, 999) == (
        f"--vocab-size 999 is for a tokenizer that is trained, and {gpt2} has 320 tokens; leave --vocab-size out"
    )
    assert succeed(*command, 320)["vocab_size"] == 320


def test_the_list_of_the_papers_tables_takes_no_other_name(refuse):
    assert refuse("paper", "list", "table-99") == "list shows all tables and figures; leave table-99 out"


@pytest.mark.parametrize("idle", [("--revision", "v9"), ("--split", "nosuch")])
def test_files_have_no_revision_and_no_split(refuse, gpt2, corpus, tmp_path, idle):
    command = ("extract-features", "--encoder", gpt2, "--data", corpus, "--seq-len", 16, "--output", tmp_path / "out")
    assert refuse(*command, *idle) == f"{idle[0]} is for --dataset NAME, and files have none; leave {idle[0]} out"
    assert not (tmp_path / "out").exists()


def test_a_store_of_files_that_an_earlier_version_began_with_a_revision_goes_on(extract_config, store_copy):
    begun = dataclasses.replace(extract_config, revision="v9")
    recorded = files.read_yaml(store_copy / "config.yaml") | {"revision": "v9"}
    (store_copy / "config.yaml").write_text(files.dump_yaml(recorded))
    assert extract_features.run(begun, store_copy).complete
    with pytest.raises(InputError, match="--revision is for --dataset NAME"):
        extract_features.run(begun, store_copy, overwrite=True)


@pytest.mark.parametrize(
    ("idle", "key", "other"),
    [(("--eta", 0.5), "eta", "ddim"), (("--set", "sampler.beta_clip=0.5"), "beta_clip", "euler-maruyama")],
)
def test_a_setting_of_another_solver_changes_nothing(refuse, succeed, ldlm, trained, tmp_path, idle, key, other):
    draw = ("sample", "--run", trained, "--num-samples", 1, "--steps", 2, "--grid", "time", "--final", "mean")
    line = refuse(*draw, "--solver", "heun", *idle, "--output", tmp_path / "out.jsonl")
    assert line == f"sampler.{key} changes nothing with sampler.solver=heun; leave it out, or choose another solver"
    sets = ("--set", "sampler.solver=heun", "--set", f"sampler.{key}=0.5")
    line = refuse("export", "--run", trained, *sets, "--output", tmp_path / "model")
    assert line.startswith(f"sampler.{key} changes nothing")
    assert list(tmp_path.iterdir()) == []
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(ldlm(*draw, "--solver", other, *idle, "--dump-config").stdout)
    assert f"{key}: 0.5" in dumped.read_text()
    dumped.write_text(ldlm(*draw, "--solver", "heun", "--dump-config").stdout)
    assert succeed(*draw, "--config", dumped, "--dry-run")["texts"] == 1  # the defaults are no settings of the user's


@pytest.mark.parametrize(
    ("method", "given", "key", "because_of"),
    [
        ("mdlm", {"name": "remdm", "t_on": 0.6}, "t_on", "schedule=rescale"),
        ("mdlm", {"name": "remdm", "alpha_on": 0.5, "t_off": 0.2}, "t_off", "schedule=rescale"),
        ("mdlm", {"name": "remdm", "schedule": "conf", "eta": 0.1}, "eta", "schedule=conf"),
        ("duo", {"name": "psi", "alpha_on": 0.3}, "alpha_on", "profile=linear"),
        ("duo", {"name": "psi", "t_on": 0.6}, "t_on", "profile=linear"),
        ("duo", {"name": "psi", "mode": "ancestral", "eta": 0.1}, "eta", "mode=ancestral"),
        ("duo", {"name": "psi", "top_p": 1, "nucleus_rule": "exclusive"}, "nucleus_rule", "top_p=1.0"),
        ("mdlm", {"nucleus_rule": "inclusive"}, "nucleus_rule", "top_p=1.0"),
    ],
)
def test_a_setting_that_a_sampler_does_not_use_is_refused_with_what_decides_it(method, given, key, because_of):
    for stage in (configs.SampleConfig, configs.ExportConfig):
        with pytest.raises(InputError) as refused:
            configs.drawing_config(stage, method, {"sampler": given})
        line = f"sampler.{key} changes nothing with sampler.{because_of}; leave it out, or choose another "
        assert str(refused.value) == line + because_of.split("=")[0]


def test_settings_that_a_sampler_uses_and_defaults_are_taken():
    for method, given in (
        ("mdlm", {"name": "remdm", "schedule": "loop", "t_on": 0.6, "alpha_on": 0.5}),
        ("mdlm", {"nucleus_rule": "inclusive", "top_p": 0.9}),
        ("duo", {"name": "psi", "profile": "loop", "alpha_on": 0.3}),
        ("duo", {"name": "psi", "mode_high": "ancestral", "t_on": 0.6}),
        ("duo", configs.to_dict(configs.token_sampler("duo", {}))),
    ):
        made = configs.drawing_config(configs.SampleConfig, method, {"sampler": given})
        assert {key: getattr(made.sampler, key) for key in given} == given


def test_a_rule_of_the_nucleus_is_used_by_a_sweep_in_which_any_p_filters(refuse, succeed, rival, gpt2):
    base = ("sweep", "--scorer", gpt2, "--device", "cpu", "--dry-run", "--run", rival("mdlm"), "--budgets", 4)
    asked = ("--token-samplers", "ancestral:nucleus_rule=inclusive")
    assert succeed(*base, *asked, "--top-ps", 1, 0.9)["ways"] == 2
    assert "sampler.nucleus_rule changes nothing" in refuse(*base, *asked, "--top-ps", 1)


def test_texts_that_were_begun_with_settings_of_no_effect_go_on(succeed, trained, rival, tmp_path):
    for run, section, idle in (
        (rival("mdlm"), "sampler", {"nucleus_rule": "inclusive"}),
        (trained, None, {"trace_frames": 5}),
    ):
        out = tmp_path / f"{run.name}.jsonl"
        draw = ("sample", "--run", run, "--steps", 2, "--device", "cpu", "--output", out, "--num-samples")
        succeed(*draw, 1)
        record = files.read_json(out.with_name(f"{out.name}.meta.json"))
        (record["config"][section] if section else record["config"]).update(idle)
        files.write_json(out.with_name(f"{out.name}.meta.json"), record)
        assert succeed(*draw, 2)["config"]["num_samples"] == 2


def test_initial_weights_of_gpt2_are_not_berts(refuse, corpus):
    line = refuse("pretrain-encoder", "--data", corpus, "--arch", "bert", "--init", "width", "--dry-run")
    assert line == "--init width is for GPT-2, and BERT starts with its published weights; leave it out"


@pytest.mark.parametrize("idle", [("--encoder", "bert"), ("--layer", 5)])
def test_settings_of_features_change_no_size_of_a_preset(refuse, succeed, idle):
    base = ("train", "--preset", "owt-128", "--dry-run")
    assert refuse(*base, *idle) == f"{idle[0]} is for --features online; add it, or leave the option out"
    assert succeed(*base, "--seq-len", 64)["flops_per_token"] > 0


def test_values_count_and_not_the_way_in_which_they_are_given(refuse):
    line = refuse("interpolate", "--run", "nosuch", "--set", "encoder=foo", "--dry-run")
    assert line.startswith("--encoder is for --from and --to")
    line = refuse("interpolate", "--run", "nosuch", "--from", "a", "--to", "b", "--set", "pairs=9")
    assert line.startswith("--pairs is for pairs of held-out texts")


@pytest.mark.parametrize("text", ["stories", "python"])
def test_a_text_that_is_no_file_has_no_field(refuse, text, tmp_path):
    line = refuse("quickstart", "--text", text, "--text-column", "nope", "--output", tmp_path / "out")
    assert line.startswith("--text-column names the field of a file") and f"--text {text} is none" in line
    assert refuse("quickstart", "--text", text, "--text-column", "nope", "--dry-run") == line
    assert not (tmp_path / "out").exists()


def test_the_list_of_the_papers_tables_takes_no_settings(refuse):
    line = refuse("paper", "list", "--text", "foo", "--row", "x", "--report")
    assert line == "list shows all tables and figures; leave --row --text --report out"


def test_devices_are_counted_by_dry_runs_and_scripts_alone(refuse, succeed, tmp_path):
    base = ("paper", "table-7", "--output", tmp_path / "out")
    line = "are for --dry-run and for the script of --scale paper; leave them out"
    assert refuse(*base, "--device-name", "H100", "--devices", 8) == f"--device-name and --devices {line}"
    assert refuse(*base, "--devices", 8).startswith("--devices is for --dry-run")
    assert refuse(*base, "--report", "--device", "cpu") == "--report runs nothing on a device; leave --device out"
    assert not (tmp_path / "out").exists()


def test_a_sampler_that_a_model_brings_with_it_is_not_the_users():
    base = {"sampler": {"solver": "ddim", "eta": 0.5}}
    made = configs.drawing_config(configs.SampleConfig, configs.LDLM, {"sampler": {"solver": "heun"}}, base=base)
    assert made.sampler.solver == "heun"


def test_likelihoods_of_tokens_alone_have_no_levels_and_no_decoder(refuse, rival, gpt2, store):
    base = ("likelihood", "--features", store, "--device", "cpu", "--split", "train")
    for idle in (("--taus", 3), ("--decoder", "nosuch")):
        name = idle[0].removeprefix("--")
        for runs, whose in (
            (("--run", rival("mdlm"), rival("duo")), "duo and mdlm"),
            (("--causal", gpt2), "causal models"),
            (("--run", rival("mdlm"), "--causal", gpt2), "mdlm and causal models"),
        ):
            line = f"{name} is not a setting of the likelihood of {whose}; leave it out"
            assert refuse(*base, *runs, *idle) == line
            assert refuse(*base, *runs, *idle, "--dry-run") == line
    for idle in (("--checkpoint", "step-1"), ("--draws", 3), ("--seed", 3)):
        line = refuse(*base, "--causal", gpt2, *idle)
        assert line == f"{idle[0].removeprefix('--')} is not a setting of the likelihood of causal models; leave it out"
    line = refuse(*base, "--causal", gpt2, "--overwrite")
    assert line == "--overwrite is for the result of a run, and no run here has one; leave it out"


def test_beside_an_ldlm_the_levels_are_no_part_of_the_result_of_others(succeed, trained, rival, store, tmp_path):
    runs = [
        shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("likelihood"))
        for run in (trained, rival("mdlm"))
    ]
    base = ("likelihood", "--features", store, "--device", "cpu", "--split", "train", "--rows", 4)
    both = succeed(*base, "--run", *runs, "--taus", 2, 1)["runs"]
    assert [point["tau"] for point in both[0]["curve"]] == [2, 1]
    alone = succeed(*base, "--run", runs[1])
    assert alone["rows"] == both[1]["rows"]
    assert "taus: []" in (runs[1] / "likelihood" / "config.yaml").read_text()


def test_samplers_and_ps_that_no_run_takes_are_refused_by_a_sweep(refuse, succeed, trained, rival, gpt2):
    base = ("sweep", "--scorer", gpt2, "--device", "cpu", "--dry-run", "--run")
    mdlm, duo, flm = rival("mdlm"), rival("duo"), rival("flm")
    asked = ("--token-samplers", "remdm", "psi", "cached")
    assert refuse(*base, mdlm, *asked) == (
        "token_samplers psi, cached: no run here has them, only ancestral, remdm; leave them out"
    )
    assert refuse(*base, trained, mdlm, duo, *asked) == (
        "token_samplers cached: no run here has it, only ancestral, remdm, psi; leave it out"
    )
    assert set(succeed(*base, mdlm, duo, *asked[:-1])["runs"]) == {mdlm.name, duo.name}
    line = "top_ps changes nothing, since no sampler here takes it, or each has a p of its own; leave it out"
    assert refuse(*base, flm, "--top-ps", 0.5) == line
    assert refuse(*base, mdlm, "--token-samplers", "remdm", "--top-ps", 0.5) == line
    assert set(succeed(*base, flm, mdlm, "--top-ps", 0.5)["runs"]) == {flm.name, mdlm.name}
