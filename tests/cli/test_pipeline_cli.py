"""Every command through click's runner on a tiny model, and the options that all of them share."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
import yaml
import zarr
from safetensors.torch import load_file

from ldlm import files
from ldlm.cli import main
from ldlm.config import SAMPLERS, SampleConfig, SamplerConfig, to_dict
from ldlm.sampling.generation import TextGenerator
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import sample

COMMANDS = (
    "quickstart",
    "pretrain-encoder",
    "extract-features",
    "train",
    "finetune-decoder",
    "sample",
    "interpolate",
    "evaluate",
)


@pytest.fixture(scope="module")
def made(succeed, corpus, tiny_yaml, tmp_path_factory):
    """All stages one after the other, by command line alone; the parsed results by command, and the folder."""
    root = tmp_path_factory.mktemp("pipeline")
    encoder, features, run = root / "encoder", root / "features", root / "run"
    results = {}
    results["pretrain-encoder"] = succeed(
        "pretrain-encoder", "--data", corpus, "--output", encoder, "--vocab-size", 320, "--layers", 3, "--width", 16,
        "--heads", 2, "--positions", 16, "--steps", 3, "--batch-size", 4, "--device", "cpu",
    )  # fmt: skip
    results["extract-features"] = succeed(
        "extract-features", "--encoder", encoder, "--data", corpus, "--validation-docs", 12, "--seq-len", 16,
        "--layer", -3, "--output", features, "--device", "cpu",
    )  # fmt: skip
    results["train"] = succeed("train", "--features", features, "--output", run, "--config", tiny_yaml, "--steps", 5)
    results["finetune-decoder"] = succeed(
        "finetune-decoder", "--run", run, "--features", features, "--layers", 1, "--steps", 3, "--device", "cpu"
    )
    results["sample"] = succeed(
        "sample", "--run", run, "--num-samples", 6, "--steps", 3, "--output", root / "samples.jsonl", "--seed", 5
    )
    results["interpolate"] = succeed(
        "interpolate", "--run", run, "--features", features, "--pairs", 4, "--points", 3, "--scorer", encoder,
        "--output", root / "interpolation", "--device", "cpu",
    )  # fmt: skip
    results["evaluate"] = succeed(
        "evaluate", root / "samples.jsonl", "--reference", corpus, "--scorer", encoder, "--max-tokens", 16
    )
    return results, root


def test_pretrain_encoder_writes_a_plain_transformers_folder(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    results, root = made
    model, tokenizer = (auto.from_pretrained(root / "encoder") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert tokenizer.decode(tokenizer("Mrs Brontë lost rain.")["input_ids"]) == "Mrs Brontë lost rain."
    result = results["pretrain-encoder"]
    assert result["output"] == str(root / "encoder")
    assert result["parameters"] == model.num_parameters()
    assert result["vocab_size"] == len(tokenizer) == model.config.vocab_size == 320
    assert result["final_loss"] > 0


def test_extract_features_writes_a_store_that_plain_zarr_opens(made):
    results, root = made
    result, group = results["extract-features"], zarr.open_group(root / "features" / "features.zarr", mode="r")
    assert group["hidden"].shape == (result["rows"]["train"], 16, 16)
    assert group["validation/hidden"].shape == (result["rows"]["validation"], 16, 16)
    assert result["tokens"] == 16 * sum(result["rows"].values())
    assert result["encoder"]["layer"] == -3
    assert set(result["statistics"]) == {"all", "without_position_0"}


def test_train_writes_the_run_that_others_rely_on(made):
    results, root = made
    run = root / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 5
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 5
    for name in ("model.safetensors", "ema.safetensors"):
        assert load_file(run / "checkpoints" / "step-00000005" / name)
    assert set(results["train"]["parameters"]) >= {"latent_encoder", "latent_decoder", "denoiser", "token_decoder"}
    total = sum(tensor.numel() for tensor in load_file(run / "checkpoints/step-00000005/ema.safetensors").values())
    assert sum(results["train"]["parameters"].values()) == total
    assert results["train"]["step"] == 5


def test_finetune_decoder_adds_a_decoder_to_the_run(made):
    results, root = made
    result = results["finetune-decoder"]
    assert result["name"] == "layers-1"
    assert Path(result["output"]) == root / "run" / "decoders" / "layers-1"
    tensors = load_file(root / "run" / "decoders" / "layers-1" / "ema.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == result["parameters"]
    assert {name.split(".")[1] for name in tensors if name.startswith("blocks.")} == {"0"}  # --layers 1


def test_sample_writes_text_tokens_and_seed_per_line(made):
    from ldlm.hub import load_tokenizer

    results, root = made
    rows = [json.loads(line) for line in (root / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [set(row) for row in rows] == [{"text", "tokens", "seed"}] * 6
    assert [row["seed"] for row in rows] == [5_000_000 + i for i in range(6)]
    tokenizer = load_tokenizer(str(root / "encoder"))
    for row in rows:
        assert len(row["tokens"]) == 16
        assert tokenizer.decode(row["tokens"]) == row["text"]
    tuned = results["finetune-decoder"]
    best = "layers-1" if tuned["held_out"]["l_w"] <= tuned["joint"]["l_w"] else "joint"
    assert results["sample"]["decoder"] == best


def test_interpolate_writes_figures_texts_and_a_plot(made):
    results, root = made
    out = root / "interpolation"
    summary = json.loads((out / "interpolation.json").read_text())
    assert [point["a"] for point in summary["points"]] == [0, 0.5, 1]
    for figures in (*summary["points"], summary["real"]):
        assert {"gen_ppl", "entropy", "diversity"} <= set(figures)
    assert (summary["protocol"], summary["scorer"]) == ("mdlm", str(root / "encoder"))
    texts = [json.loads(line) for line in (out / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(text["pair"], text["a"]) for text in texts] == [(pair, a) for pair in range(4) for a in (0, 0.5, 1)]
    assert (out / "interpolation.png").read_bytes().startswith(b"\x89PNG")
    assert results["interpolate"]["points"] == summary["points"]


def test_the_way_of_an_interpolation_leads_from_the_first_text_to_the_second(made):
    from ldlm.evaluation import metrics, smoothness
    from ldlm.features.store import FeatureStore
    from ldlm.sampling.trained_run import TrainedRun
    from ldlm.training import heldout

    _, root = made
    run = TrainedRun(root / "run", torch.device("cpu"))
    split = FeatureStore(root / "features").held_out()
    ends = smoothness.draw_pairs(split.rows, 4, seed=0)
    found = [json.loads(line) for line in (root / "interpolation" / "texts.jsonl").read_text().splitlines()]
    for a, rows in zip((0, 1), ends, strict=True):
        z_BNC, _ = heldout.encode_rows(run.model, split, rows, run.device)
        texts = metrics.decode_tokens(run.tokenizer, run.decode(run.decoder(), z_BNC, 4))
        assert [line["text"] for line in found if line["a"] == a] == texts
    assert not set(ends[0]) & set(ends[1])


def test_evaluate_counts_the_tokens_that_a_file_brings(made, succeed, tmp_path):
    _, root = made
    file = tmp_path / "s.jsonl"
    rows = [{"text": "a line of text, and another", "tokens": [5] * 16}, {"text": "two", "tokens": [5] * 16}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert succeed("evaluate", file, "--scorer", root / "encoder")["entropy"] == 0.0  # one token alone
    file.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    found = succeed("evaluate", file, "--scorer", root / "encoder", "--max-tokens", 16)
    assert found["entropy"] > 0
    assert found["tokens_from"] == "scorer"


def test_evaluate_reports_the_metrics_with_their_protocol(made):
    results, root = made
    result = results["evaluate"]
    keys = {"gen_ppl", "entropy", "diversity", "protocol", "scorer", "num_texts"}
    assert keys <= set(result)
    assert keys <= set(result["reference"])
    assert (result["num_texts"], result["reference"]["num_texts"]) == (6, 6)  # as many: for diversity's sake
    assert (result["protocol"], result["scorer"], result["max_tokens"]) == ("mdlm", str(root / "encoder"), 16)
    assert result["gen_ppl"] > 1
    for name in ("gen_ppl", "entropy"):
        low, high = result["intervals"][name]
        assert low <= result[name] <= high  # the texts may be alike
    assert result["bootstrap"] == {"level": 0.95, "resamples": 1000, "seed": 0}
    assert result["tokens_from"] == "file"
    assert result["reference"]["tokens_from"] == "scorer"


def test_a_colleague_may_read_all_that_the_stages_leave(made):
    """As far as the umask lets them; safetensors by itself keeps its files to their owner."""
    _, root = made
    mask = os.umask(0)
    os.umask(mask)
    weights = list(root.rglob("*.safetensors"))
    assert {path.name for path in weights} >= {"model.safetensors", "ema.safetensors", "statistics.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in weights} == {0o666 & ~mask}


def test_texts_are_cut_at_the_runs_length_where_nothing_else_is_said(made, succeed):
    _, root = made
    assert succeed("evaluate", root / "samples.jsonl", "--scorer", root / "encoder")["max_tokens"] == 16


def test_several_files_are_evaluated_side_by_side(made, succeed):
    _, root = made
    name = root / "samples.jsonl"
    result = succeed("evaluate", name, name, "--scorer", root / "encoder", "--max-tokens", 16)
    assert [entry["file"] for entry in result["files"]] == [str(name)] * 2
    assert result["files"][0]["gen_ppl"] == result["files"][1]["gen_ppl"]


def test_results_read_as_tables_without_json(made, ldlm):
    _, root = made
    shown = ldlm("evaluate", root / "samples.jsonl", "--scorer", root / "encoder", "--max-tokens", 16)
    assert shown.exit_code == 0
    assert "gen. ppl" in shown.stdout
    assert "protocol mdlm" in shown.stdout
    assert "score" in shown.stderr  # progress stays out of the result
    assert "score" not in shown.stdout.replace("scorer", "")


def test_the_same_commands_again_do_nothing(made, ldlm, corpus, tiny_yaml):
    _, root = made
    run, features, samples = root / "run", root / "features", root / "samples.jsonl"
    before = samples.read_bytes()
    for arguments in (
        ("train", "--features", features, "--output", run, "--config", tiny_yaml, "--steps", 5),
        ("finetune-decoder", "--run", run, "--features", features, "--layers", 1, "--steps", 3),
        ("sample", "--run", run, "--num-samples", 6, "--steps", 3, "--output", samples, "--seed", 5),
    ):
        result = ldlm(*arguments)
        assert result.exit_code == 0, result.stderr
        assert result.stderr.strip().endswith("nothing to do")
    assert samples.read_bytes() == before


def test_a_sample_of_a_run_says_what_it_would_cost_without_drawing(made, succeed, tmp_path):
    _, root = made
    plan = succeed("sample", "--run", root / "run", "--num-samples", 7, "--steps", 9, "--dry-run")
    assert (plan["texts"], plan["denoiser_evaluations"]) == (7, 63)
    assert plan["flops"] > 0


# ----------------------------------------------------------------------------------------------------------------------
# Sampling: a text depends on its seed, and an interrupted file is taken up


def drawn(run, out, progress=None, **changes):
    """The bytes of a file of samples."""
    settings = {"num_samples": 7, "batch_size": 7, "sampler": SamplerConfig(steps=4), "device": "cpu", **changes}
    arguments = {} if progress is None else {"progress": progress}
    sample.run(SampleConfig(**settings), run, out, **arguments)
    return out.read_bytes()


@pytest.mark.parametrize(
    ("seconds_per_text", "most", "expected"),
    [
        ([1, 0.6, 0.5, 0.48, 0.2], 256, 4),  # 8 gain 4 % only; nobody asks what comes then
        ([1, 0.94, 0.88, 0.82, 0.81], 256, 8),  # 6 to 7 % are enough
        ([1, 0.5, 0.25, 0.125], 3, 2),  # powers of 2, and no more texts than there are
        ([1, 0.5, None], 256, 2),  # no memory for 4
        ([1, 2], 256, 1),
    ],
)
def test_the_batch_doubles_while_that_pays(trained, monkeypatch, seconds_per_text, most, expected):
    def seconds(self, size):
        found = seconds_per_text[size.bit_length() - 1]
        if found is None:
            raise torch.OutOfMemoryError
        return found * size

    monkeypatch.setattr(TextGenerator, "_seconds", seconds)
    assert TrainedRun(trained, torch.device("cpu")).generator().batch_size(most) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_do_not_depend_on_the_batch_size(trained, tmp_path, temperature):
    sampler = SamplerConfig(steps=4, temperature=temperature)
    together = drawn(trained, tmp_path / "7.jsonl", sampler=sampler)
    for size in (1, 3):
        assert drawn(trained, tmp_path / f"{size}.jsonl", batch_size=size, sampler=sampler) == together
    texts = {json.loads(line)["text"] for line in together.splitlines()}
    assert len(texts) > 1  # they do depend on the seed


def test_more_texts_begin_with_the_same_texts_and_another_seed_shares_none(trained, tmp_path):
    few = drawn(trained, tmp_path / "a.jsonl").splitlines()
    more = drawn(trained, tmp_path / "b.jsonl", num_samples=len(few) + 3).splitlines()
    assert more[: len(few)] == few
    other = drawn(trained, tmp_path / "c.jsonl", seed=1).splitlines()
    seeds = [{json.loads(line)["seed"] for line in lines} for lines in (more, other)]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize("setting", [{"steps": 16}, {"final": "x0"}, {"t_min": 0.5}, {"temperature": 1.0}])
def test_every_setting_of_the_sampler_changes_the_texts(trained, tmp_path, setting):
    common = {"steps": 4, "solver": "dpm++2m", "final": "mean"}  # the untrained model's ẑ_0 hardly differ
    plain = drawn(trained, tmp_path / "a.jsonl", num_samples=16, batch_size=16, sampler=SamplerConfig(**common))
    sampler = SamplerConfig(**{**common, **setting})
    assert drawn(trained, tmp_path / "b.jsonl", num_samples=16, batch_size=16, sampler=sampler) != plain


def test_the_papers_sampler_is_one_flag_and_other_flags_override_it(trained, succeed, refuse, tmp_path):
    draw = ("sample", "--run", trained, "--num-samples", 2, "--device", "cpu", "--sampler", "paper")
    long = "--solver euler-maruyama --grid time --guidance 1 --t-min 0.05 --final mean --steps 4"
    made = succeed(*draw, "--steps", 4, "--output", tmp_path / "a.jsonl")
    succeed(*draw[:-2], *long.split(), "--output", tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert made["config"]["sampler"] == to_dict(SamplerConfig(**{**SAMPLERS["paper"], "steps": 4}))
    assert succeed(*draw, "--dry-run")["denoiser_evaluations"] == 2 * 128
    assert "there is no sampler 'best'; choose paper" in refuse(*draw[:-1], "best", "--output", tmp_path / "c.jsonl")


@pytest.mark.parametrize("begun", ["--output", "--trace"])
def test_a_solver_and_grid_that_are_not_offered_are_refused_and_leave_nothing(trained, refuse, tmp_path, begun):
    asked = ("--solver", "euler-maruyama", "--grid", "learned", begun, tmp_path / "made", "--device", "cpu")
    message = refuse("sample", "--run", trained, *asked)
    assert message.startswith("solver euler-maruyama on grid learned with final x0 is not offered: ")
    assert "not offered" in refuse("sample", "--run", trained, *asked, "--dry-run")
    assert not list(tmp_path.iterdir())


def test_samples_that_an_earlier_version_began_are_taken_up_with_the_sampler_of_then(trained, tmp_path):
    then = SamplerConfig(solver="dpm++2m-sde", grid="learned", final="mean", t_min=0.05, steps=4)
    now, out = replace(then, final="x0"), tmp_path / "s.jsonl"
    first = drawn(trained, out, sampler=now).splitlines(keepends=True)[0]
    record = tmp_path / "s.jsonl.meta.json"
    written = files.read_json(record)
    written["config"]["sampler"] = to_dict(then)
    files.write_json(record, written)
    out.unlink()
    (tmp_path / "s.jsonl.partial").write_bytes(first)
    rows = [json.loads(line) for line in drawn(trained, out, sampler=then).splitlines()]
    generator = TrainedRun(trained, torch.device("cpu")).generator()
    seeds_B = torch.tensor([row["seed"] for row in rows[1:]])
    assert [row["tokens"] for row in rows[1:]] == generator.tokens(then, seeds_B).tolist()


@pytest.mark.parametrize("at", [0, 2])
def test_interrupted_sampling_is_taken_up_and_gives_the_same_file(trained, tmp_path, interrupted, at):
    whole = drawn(trained, tmp_path / "whole.jsonl", batch_size=2)
    out = tmp_path / "broken.jsonl"
    with pytest.raises(KeyboardInterrupt):
        drawn(trained, out, interrupted(at=at), batch_size=2)
    assert not out.exists()
    with open(tmp_path / "broken.jsonl.partial", "ab") as file:
        file.write(b'{"text": "cut off in the mid')
    rest = interrupted()
    assert drawn(trained, out, rest, batch_size=2) == whole
    assert rest.reports == 4 - (at + 1)
    assert sorted(p.name for p in tmp_path.glob("broken*")) == ["broken.jsonl", "broken.jsonl.meta.json"]


def test_samples_with_another_setting_are_refused_by_name_and_overwrite_replaces_them(trained, refuse, ldlm, tmp_path):
    out = tmp_path / "s.jsonl"
    drawn(trained, out)
    before = out.read_bytes()
    again = ("sample", "--run", trained, "--num-samples", 3, "--steps", 4, "--device", "cpu", "--output", out)
    assert "holds 7 texts of these settings already, and --num-samples 3 asks for fewer" in refuse(*again)
    assert "config.seed: 0 -> 1" in refuse(*again, "--seed", 1)
    assert out.read_bytes() == before
    assert ldlm(*again, "--overwrite").exit_code == 0
    assert out.read_bytes() == b"".join(before.splitlines(keepends=True)[:3])


def test_a_file_that_ldlm_did_not_write_is_never_replaced_unasked(trained, refuse, tmp_path):
    out = tmp_path / "thesis.jsonl"
    out.write_text("years of work")
    arguments = ("sample", "--run", trained, "--num-samples", 1, "--steps", 1, "--output", out)
    assert "was not made by ldlm sample" in refuse(*arguments)
    assert out.read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.jsonl"]


def test_texts_that_another_command_wrote_are_not_taken_for_samples(trained, store, refuse, ldlm, tmp_path):
    out, run = tmp_path / "real.jsonl", tmp_path / "run"
    assert ldlm("features", "texts", store, "--rows", 2, "--output", out).exit_code == 0
    line = refuse("sample", "--run", trained, "--num-samples", 1, "--steps", 1, "--output", out)
    assert line == f"{out} exists and was not made by ldlm sample; choose another --output, or add --overwrite"
    shutil.copytree(trained, run)
    inside = shutil.copy(out, run / "real.jsonl")
    shutil.copy(f"{out}.meta.json", f"{inside}.meta.json")
    draw = ("sample", "--run", run, "--num-samples", 1, "--steps", 1, "--output", inside, "--overwrite")
    assert "--overwrite would delete" in refuse(*draw)
    assert inside.read_bytes() == out.read_bytes()
    Path(f"{out}.meta.json").write_text("")  # as one that is a mount point, after --overwrite was interrupted
    assert "is damaged" in refuse("sample", "--run", trained, "--num-samples", 1, "--steps", 1, "--output", out)
    assert (
        ldlm("sample", "--run", trained, "--num-samples", 1, "--steps", 1, "--output", out, "--overwrite").exit_code
        == 0
    )


# ----------------------------------------------------------------------------------------------------------------------
# What all commands share


def test_there_are_these_commands(ldlm):
    from ldlm.cli import main

    assert {*main.commands} == {
        *COMMANDS,
        "distill",
        "features",
        "plot",
        "report",
        "export",
        "likelihood",
        "paper",
        "stories",
        "sweep",
    }
    shown = ldlm("--help")
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_the_shared_options(ldlm, command):
    shown = ldlm(command, "--help")
    assert shown.exit_code == 0
    assert "Example" in shown.stdout
    assert f"ldlm {command} " in shown.stdout
    for option in ("--config", "--dump-config", "--seed", "--device", "--json", "--dry-run"):
        assert f"  {option} " in shown.stdout, option
    assert "[default: (" not in shown.stdout, "a default as one would type it, not as Python prints it"
    assert ldlm(command, "-h").stdout == shown.stdout


def _leaves(command, path=()):
    """The words of each command, those within a group among them."""
    if not isinstance(command, click.Group):
        return [path]
    return [
        leaf for name in command.list_commands(None) for leaf in _leaves(command.get_command(None, name), (*path, name))
    ]


@pytest.mark.parametrize("words", _leaves(main), ids=" ".join)
def test_the_help_of_every_command_has_an_example(ldlm, words):
    shown = ldlm(*words, "--help").stdout
    assert "Example" in shown
    assert f"  ldlm {' '.join(words)} " in shown.partition("Example")[2]


def test_the_help_of_a_choice_lists_what_there_is_also_if_it_may_be_left_open(ldlm):
    for words, shown in (
        (("sample",), "--solver euler-maruyama|ddim|"),
        (("sample",), "--grid time|learned|log-snr "),
        (("distill",), "--grid learned|log-snr "),
        (("extract-features",), "--only pack|encode|seal "),
    ):
        assert shown in ldlm(*words, "--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dumped_configuration_reads_back_as_itself(ldlm, tmp_path, command):
    flags = {
        "pretrain-encoder": ("--data", "a.txt", "b.txt", "--arch", "bert"),
        "extract-features": ("--data", "a.txt", "b.txt", "--layer", -1, "--stats-tokens", "all"),
        "train": ("--preset", "lm1b-128", "--set", "optimizer.lr=2e-5"),
        "sample": ("--temperature", "0.7", "--decoder", "joint"),
    }.get(command, ())
    first = ldlm(command, *flags, "--seed", 3, "--device", "cpu", "--dump-config")
    assert first.exit_code == 0, first.stderr
    assert yaml.safe_load(first.stdout)["seed"] == 3
    file = tmp_path / "config.yaml"
    file.write_text(first.stdout)
    second = ldlm(command, "--config", file, "--dump-config")
    assert second.stdout == first.stdout
    assert ldlm(command, "--dump-config").stdout != first.stdout


def test_a_flag_goes_before_the_file_the_file_before_the_preset_and_the_preset_before_the_default(ldlm, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 6\nsave_every: 7\nrecipe: {sigma_dec: 8}\noptimizer: {lr: 3e-4}\n")
    shown = ldlm(
        "train", "--preset", "tiny", "--config", file, "--batch-size", 5, "--set", "recipe.warmup_steps=9",
        "--set", "batch_size=99", "--dump-config",
    )  # fmt: skip
    found = yaml.safe_load(shown.stdout)
    assert found["batch_size"] == 5  # the flag, before --set, the file and the preset
    assert found["save_every"] == 7  # the file, before the preset
    assert found["recipe"]["sigma_dec"] == 8.0
    assert found["optimizer"]["lr"] == 3e-4  # which plain YAML reads as a string
    assert found["recipe"]["warmup_steps"] == 9  # --set
    assert found["optimizer"]["lr_decay"] == "cosine"  # the preset, in a section that the file sets a part of
    assert found["optimizer"]["weight_decay"] == 0.01  # the default
    assert found["keep"] == 2


def test_several_values_may_follow_one_option(ldlm):
    shown = ldlm("extract-features", "--data", "a.txt", "b.txt", "--seq-len", 9, "--data", "c.txt", "--dump-config")
    found = yaml.safe_load(shown.stdout)
    assert (found["data"], found["seq_len"]) == (["a.txt", "b.txt", "c.txt"], 9)


def test_the_papers_main_run_is_counted_without_a_store(succeed):
    plan = succeed("train", "--preset", "owt-1024", "--dry-run")
    assert set(plan) >= {"parameters", "flops_per_token", "memory_bytes"}
    millions = {name: round(count / 1e6, 1) for name, count in plan["parameters"].items()}
    # SPEC 3-5: a resampler has 51.2 M at L=1024, the denoiser 132.07 M, the token decoder 66.9 M
    assert millions == {"latent_encoder": 51.2, "latent_decoder": 51.2, "denoiser": 132.1, "token_decoder": 66.9}
    assert 2 * 3 * 300e6 < plan["flops_per_token"] < 20 * 300e6  # six a weight and token, attention and second passes
    assert plan["memory_bytes"] > 4 * 5 * 300e6


def test_a_dry_run_of_every_stage_writes_nothing(made, succeed, corpus, tiny_yaml, tmp_path):
    _, root = made
    encoder, features, run, out = root / "encoder", root / "features", root / "run", tmp_path / "out"
    plans = {
        "pretrain-encoder": succeed("pretrain-encoder", "--data", corpus, "--output", out, "--dry-run"),
        "extract-features": succeed(
            "extract-features", "--encoder", encoder, "--data", corpus, "--seq-len", 16, "--output", out, "--dry-run"
        ),
        "train": succeed("train", "--features", features, "--output", out, "--config", tiny_yaml, "--dry-run"),
        "finetune-decoder": succeed("finetune-decoder", "--run", run, "--layers", 2, "--dry-run"),
        "interpolate": succeed("interpolate", "--pairs", 3, "--points", 5, "--dry-run"),
        "evaluate": succeed("evaluate", root / "samples.jsonl", "--dry-run"),
        "quickstart": succeed("quickstart", "--output", out, "--dry-run"),
    }
    assert list(tmp_path.iterdir()) == []
    assert plans["evaluate"]["texts"] == {str(root / "samples.jsonl"): 6}
    assert plans["interpolate"]["texts_decoded"] == 15
    assert plans["train"]["parameters"]["denoiser"] > 0
    assert not (run / "decoders" / "layers-2").exists()


def test_the_version_is_told(ldlm):
    import ldlm as package

    assert package.__version__ in ldlm("--version").stdout
