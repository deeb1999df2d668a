"""An exported model draws the texts of the run it came from, holds nothing else, and says when it is damaged."""

import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from folders import content
from safetensors.torch import load_file

from ldlm import LDLM, files
from ldlm import config as configs
from ldlm.config import ExportConfig, FinetuneConfig, SampleConfig, SamplerConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics
from ldlm.sampling import generation
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import export, finetune_decoder, sample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(trained, store, tmp_path_factory):
    """A run with the joint decoder, two fine-tuned on its newest checkpoint and one on the checkpoint before."""
    path = Path(shutil.copytree(trained, tmp_path_factory.mktemp("exported") / "run"))
    common = {"steps": 3, "batch_size": 8, "device": "cpu"}
    finetune_decoder.run(FinetuneConfig(layers=0, name="linear", **common), path, store)
    finetune_decoder.run(FinetuneConfig(layers=1, **common), path, store)  # the newest, and not the last by name
    old = FinetuneConfig(layers=0, name="v0.1", checkpoint="step-00000006", **common)
    finetune_decoder.run(old, path, store)
    return path


@pytest.fixture(scope="module")
def model(run):
    """What `ldlm export` makes of it; read only."""
    return export.run(ExportConfig(), run, run.parent / "model").path


@pytest.fixture
def copy(model, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def in_a_new_process(code, *arguments, **environment):
    """What a fresh interpreter prints last."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", f"import torch; torch.set_num_threads(1)\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


# ----------------------------------------------------------------------------------------------------------------------
# The same texts


DRAWS = [
    {"solver": "euler-maruyama", "grid": "time", "steps": 5},
    {"solver": "ddim", "steps": 4, "eta": 0.5, "temperature": 0.8},
    {"solver": "heun", "steps": 3, "grid": "log-snr", "temperature": 0.9},
    {"solver": "dpm++2m", "steps": 4, "grid": "learned", "guidance": 1.7, "final": "x0"},
    {"solver": "dpm++2m-sde", "steps": 4, "grid": "log-snr", "final": "mean", "temperature": 1.2},
    {"sampler": "paper", "steps": 5},
]


@pytest.mark.parametrize("decoder", ["joint", "layers-1"])
@pytest.mark.parametrize("settings", DRAWS, ids=lambda settings: settings.get("solver", "paper"))
def test_it_draws_the_tokens_and_texts_of_the_run_to_the_bit(run, model, tmp_path, decoder, settings):
    named = configs.SAMPLERS.get(settings.get("sampler", ""), {})
    sampler, lines = SamplerConfig(**{**named, **{k: v for k, v in settings.items() if k != "sampler"}}), []
    for source, seed in ((run, 3), (model, 3), (run, 4)):
        config = SampleConfig(num_samples=5, seed=seed, sampler=sampler, decoder=decoder, batch_size=5, device="cpu")
        out = tmp_path / f"{source.name}-{seed}.jsonl"
        sample.run(config, source, out)
        lines.append(out.read_bytes())
    assert lines[0] == lines[1] != lines[2]

    texts = [json.loads(line)["text"] for line in lines[0].splitlines()]
    drawn = LDLM.from_pretrained(model).sample(5, seed=3, decoder=decoder, batch_size=2, **settings)
    assert drawn == texts
    assert len({*texts}) > 1 or decoder == "layers-1"  # which after two steps may know a single token


def test_the_command_line_draws_as_the_model_says_unless_it_is_told_otherwise(run, succeed, tmp_path):
    sampler = ("--set", "sampler.steps=3", "--set", "sampler.solver=ddim")
    succeed("export", "--run", run, "--output", tmp_path / "model", *sampler)
    drawn = ("sample", "--run", tmp_path / "model", "--num-samples", 3, "--device", "cpu")
    found = succeed(*drawn, "--output", tmp_path / "a.jsonl")["config"]["sampler"]
    assert (found["solver"], found["steps"]) == ("ddim", 3)
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert texts == LDLM.from_pretrained(tmp_path / "model").sample(3)
    found = succeed(*drawn, "--output", tmp_path / "b.jsonl", "--steps", 2)["config"]["sampler"]
    assert (found["solver"], found["steps"]) == ("ddim", 2)


def test_a_model_that_has_drawn_can_be_copied(model):
    first = LDLM.from_pretrained(model)
    texts = first.sample(2, steps=2)
    assert deepcopy(first).sample(2, steps=2) == texts
    assert first.to("cpu").sample(2, steps=2) == texts


def test_latents_and_logits_are_the_runs_to_the_bit_before_anything_is_rounded_to_tokens(run, model):
    seeds_B = generation.text_seeds(7, 0, 6)
    sampler = SamplerConfig(steps=3, grid="learned")
    mine, theirs = LDLM.from_pretrained(model), TrainedRun(run, CPU)
    for decoder in ("joint", "layers-1"):
        a, b = mine.generator(decoder), theirs.generator(decoder)
        z_a, z_b = a.latents(sampler, seeds_B), b.latents(sampler, seeds_B)
        assert torch.equal(z_a, z_b)
        assert torch.equal(a.decoder.logits(z_a), b.decoder.logits(z_b))


def test_the_default_decoder_is_the_runs_and_one_of_another_checkpoint_is_left_out(run, model):
    exported = LDLM.from_pretrained(model)
    of_run = {decoder.name: decoder for decoder in TrainedRun(run, CPU).decoders()}
    assert list(of_run) == ["joint", "linear", "layers-1", "v0.1"]
    best = min(("joint", "linear", "layers-1"), key=lambda name: of_run[name].held_out["l_w"])
    others = [name for name in ("layers-1", "linear", "joint") if name != best]
    assert list(exported.config.decoders) == [best, *others]
    assert exported.generator().decoder.name == best == TrainedRun(run, CPU).decoder().name
    texts = [exported.sample(4, steps=3, decoder=name) for name in (None, best, others[0])]
    assert texts[0] == texts[1] != texts[2]
    older = ExportConfig(checkpoint="step-00000006")
    assert set(export.plan(older, run)["decoders"]) == {"v0.1", "joint"}


def test_what_the_sample_stage_records_is_the_same_from_both(run, model, tmp_path):
    config, out = SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), decoder="joint", device="cpu"), tmp_path
    made = [sample.run(config, source, out / f"{source.name}.jsonl") for source in (run, model)]
    for record in made:
        record.pop("seconds"), record.pop("run")
    assert made[0] == made[1]
    assert sample.plan(config, run) == sample.plan(config, model)


def test_more_texts_begin_with_the_same_texts_and_the_batch_changes_none(model):
    exported = LDLM.from_pretrained(model).to("cpu")
    few = exported.sample(3, steps=2, temperature=1.0)
    assert exported.sample(7, steps=2, temperature=1.0, batch_size=4)[:3] == few
    assert exported.sample(3, steps=2, temperature=1.0, seed=1) != few


def test_it_draws_with_the_settings_it_was_exported_with_unless_told_otherwise(run, model, tmp_path, succeed):
    settings = ("--set", "sampler.steps=3", "--set", "sampler.temperature=1.5", "--decoder", "joint")
    succeed("export", "--run", run, "--output", tmp_path / "m", *settings)
    chosen, plain = LDLM.from_pretrained(tmp_path / "m"), LDLM.from_pretrained(model)
    assert plain.config.sampler == SamplerConfig(grid="learned")
    assert chosen.sample(4) == plain.sample(4, steps=3, temperature=1.5, decoder="joint")
    assert chosen.sample(4, temperature=0) == plain.sample(4, steps=3, decoder="joint")


# The default of earlier versions, which is not offered any more.
ONCE = {"solver": "dpm++2m-sde", "grid": "learned", "final": "mean", "t_min": 0.05, "steps": 3}


def test_a_model_that_was_exported_with_a_sampler_that_is_not_offered_any_more_draws_with_it(
    model, copy, tmp_path, refuse, succeed
):
    record = files.read_digested(copy / "config.json", "")
    record["sampler"] |= ONCE
    (copy / "config.json").write_text(files.dump_digested(record))
    older, seeds_B = LDLM.from_pretrained(copy), generation.text_seeds(0, 0, 3)
    tokens_BL = LDLM.from_pretrained(model).generator().tokens(SamplerConfig(**ONCE), seeds_B)
    texts = metrics.decode_tokens(older.tokenizer, tokens_BL)
    assert older.sample(3) == texts != LDLM.from_pretrained(model).sample(3, steps=3)
    assert len(older.sample(2, temperature=0.5)) == 2
    drawn = ("sample", "--run", copy, "--num-samples", 3, "--device", "cpu", "--output", tmp_path / "a.jsonl")
    succeed(*drawn)
    assert [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == texts
    asked = ("--grid", "time", "--overwrite")
    assert "solver dpm++2m-sde on grid time with final mean is not offered" in refuse(*drawn, *asked)
    assert [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == texts


def test_a_sampler_that_is_not_offered_is_no_default_of_a_new_model(run, model, refuse, tmp_path):
    asked = ("--set", "sampler.solver=euler-maruyama", "--set", "sampler.grid=learned")
    message = refuse("export", "--run", run, "--output", tmp_path / "m", *asked)
    assert message.endswith("it diverges; take --grid log-snr or --grid time")
    assert not (tmp_path / "m").exists()
    with pytest.raises(InputError, match="solver ddim on grid time with final x0 is not offered"):
        LDLM.from_pretrained(model).sample(1, solver="ddim", grid="time")
    with pytest.raises(InputError, match="there is no sampler 'papers'; choose paper"):
        LDLM.from_pretrained(model).sample(1, sampler="papers")


def test_a_model_can_be_exported_with_the_papers_sampler(run, model, succeed, tmp_path):
    succeed("export", "--run", run, "--output", tmp_path / "m", "--sampler", "paper", "--set", "sampler.steps=3")
    paper = LDLM.from_pretrained(tmp_path / "m")
    assert paper.config.sampler == SamplerConfig(**{**configs.SAMPLERS["paper"], "steps": 3})
    assert paper.sample(2) == LDLM.from_pretrained(model).sample(2, sampler="paper", steps=3)


def test_the_papers_sampler_keeps_nothing_of_the_sampler_that_a_model_was_exported_with(run, model, succeed, tmp_path):
    own = ("--sampler", "paper", "--set", "sampler.beta_clip=0.5", "--set", "sampler.temperature=0.7")
    succeed("export", "--run", run, "--output", tmp_path / "m", *own)
    chosen = LDLM.from_pretrained(tmp_path / "m")
    assert (chosen.config.sampler.beta_clip, chosen.config.sampler.temperature) == (0.5, 0.7)
    assert chosen.sample(2, sampler="paper", steps=3) == LDLM.from_pretrained(model).sample(2, sampler="paper", steps=3)


def test_a_local_folder_is_read_without_the_network(model):
    code = """
import json, socket, sys
tried = []
def refuse(*arguments, **options):
    tried.append(str(arguments))
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from ldlm import LDLM
print(json.dumps([LDLM.from_pretrained(sys.argv[1]).sample(3, steps=2), tried]))
"""
    texts, tried = json.loads(in_a_new_process(code, model, HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0"))
    assert tried == []
    assert texts == LDLM.from_pretrained(model).sample(3, steps=2)


def test_the_name_is_there_without_torch_and_the_class_with_it():
    code = "import sys, ldlm; print('torch' in sys.modules, 'LDLM' in ldlm.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False True\n"
    import ldlm as package

    assert package.LDLM.__module__ == "ldlm.sampling.exported"
    with pytest.raises(AttributeError, match="no attribute 'LDML'"):
        package.LDML  # noqa: B018


# ----------------------------------------------------------------------------------------------------------------------
# What is in the folder, and what is not


def test_it_holds_denoiser_and_decoders_and_no_tensor_more(run, model):
    tensors, ema = load_file(model / "model.safetensors"), TrainedRun(run, CPU).checkpoint.tensors("ema")
    expected = {f"denoiser/{k.removeprefix('denoiser.')}": t for k, t in ema.items() if k.startswith("denoiser.")}
    for part in ("latent_decoder", "token_decoder"):
        expected |= {f"decoders/joint/{k}": t for k, t in ema.items() if k.startswith(f"{part}.")}
    for name in ("layers-1", "linear"):
        fine_tuned = load_file(run / "decoders" / name / "ema.safetensors")
        expected |= {f"decoders/{name}/{k}": t for k, t in fine_tuned.items()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())
    assert {*content(model)} == {
        "artifact.json", "config.yaml", "manifest.json", "config.json", "README.md", "model.safetensors",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    }  # fmt: skip


def test_its_tokenizer_is_the_runs_without_the_spaces(run, model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / "tokenizer" / name).read_text(encoding="utf-8")
        assert json.loads(text) == json.loads((run / "tokenizer" / name).read_text(encoding="utf-8"))
        assert "\n" not in text
    assert (model / "tokenizer" / "tokenizer.json").stat().st_size < (
        0.6 * (run / "tokenizer" / "tokenizer.json").stat().st_size
    )


def test_one_decoder_takes_no_other_along(run, tmp_path, succeed):
    made = succeed("export", "--run", run, "--output", tmp_path / "m", "--decoder", "layers-1")
    assert made["decoders"] == ["layers-1"]
    names = {key.split("/")[0] + "/" + key.split("/")[1] for key in load_file(tmp_path / "m" / "model.safetensors")}
    assert {name for name in names if name.startswith("decoders/")} == {"decoders/layers-1"}
    plan = succeed("export", "--run", run, "--decoder", "layers-1", "--dry-run")
    assert plan["parameters"] == sum(t.numel() for t in load_file(tmp_path / "m" / "model.safetensors").values())
    assert plan["decoders"] == ["layers-1"]
    with pytest.raises(InputError, match=r"no decoder 'joint' \(it has: layers-1\)"):
        LDLM.from_pretrained(tmp_path / "m").sample(1, decoder="joint")


def test_no_path_of_the_machine_is_in_it(run, model, corpus, gpt2, tmp_path_factory):
    # The run has them, so the search would find them.
    assert str(gpt2) in (run / "features.json").read_text()
    places = [
        str(tmp_path_factory.getbasetemp()),
        str(Path.home()),
        str(Path(__file__).parent.parent.parent),
        corpus.name,
    ]
    absolute = re.compile(r"(?<![\w./<])/(?:[\w.-]+/)+[\w.-]*")
    assert absolute.search((run / "features.json").read_text())
    for name, data in content(model).items():
        assert not [place for place in places if place.encode() in data], name
        if name != "model.safetensors":
            assert not absolute.search(data.decode()), name
    assert json.loads((model / "config.json").read_text())["provenance"]["encoder"]["name"] == gpt2.name


def test_the_model_card_says_where_it_comes_from(run, model, store):
    from huggingface_hub import ModelCard

    from ldlm.features.store import FeatureStore

    card, features = ModelCard.load(model / "README.md"), FeatureStore(store)
    assert card.data.to_dict() == {
        "library_name": "ldlm", "pipeline_tag": "text-generation", "tags": ["diffusion", "latent-diffusion"],
    }  # fmt: skip
    trained = TrainedRun(run, CPU)
    facts = [
        "How to Train Your Latent Diffusion Language Model Jointly With the Latent Space",
        features.encoder["fingerprint"],
        features.text_fingerprint,
        f"{features.split('train').rows:,} train, {features.split('validation').rows:,} validation",
        trained.checkpoint.digest,
        "8 steps of 8 rows",
        f"| l_diff | {trained.artifact.manifest['held_out']['l_diff']:.4g} |",
        "| solver | dpm++2m-sde |",
        f"torch {torch.__version__}",
        "No licence has been declared",
    ]
    assert [fact for fact in facts if fact not in card.text] == []
    assert not re.search(r"TODO|More Information|\[\w+ needed\]", card.text, re.IGNORECASE)


def test_a_model_card_that_was_edited_goes_with_the_model(copy, tmp_path):
    edited = (copy / "README.md").read_text().replace("library_name", "license: mit\nlibrary_name") + "\nNotes.\n"
    (copy / "README.md").write_text(edited)
    LDLM.from_pretrained(copy).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == edited


def test_saved_again_it_is_the_same_to_the_byte(model, tmp_path):
    LDLM.from_pretrained(model).save_pretrained(tmp_path / "again")
    of_the_stage = {"artifact.json", "config.yaml", "manifest.json"}
    assert content(tmp_path / "again") == {k: v for k, v in content(model).items() if k not in of_the_stage}


# ----------------------------------------------------------------------------------------------------------------------
# The rule of outputs


def test_the_same_command_again_does_nothing_and_another_setting_is_refused(run, copy, ldlm, refuse):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    again = ldlm("export", "--run", run, "--output", copy)
    assert again.exit_code == 0
    assert again.stderr.strip().endswith("nothing to do")
    assert "decoder: none -> joint" in refuse("export", "--run", run, "--output", copy, "--decoder", "joint")
    fewer = shutil.copytree(run, copy.parent / "fewer", ignore=shutil.ignore_patterns("linear"))
    assert "inputs.decoders.linear: " in refuse("export", "--run", fewer, "--output", copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert ldlm("export", "--run", run, "--output", copy, "--decoder", "joint", "--overwrite").exit_code == 0
    assert list(LDLM.from_pretrained(copy).config.decoders) == ["joint"]


def test_interrupted_before_any_rename_it_is_not_complete_and_the_same_call_finishes_it(
    run, model, tmp_path, monkeypatch
):
    replace, out = os.replace, tmp_path / "model"
    for at in range(100):
        passed = 0

        def interrupted(*arguments, at=at):
            nonlocal passed
            passed += 1
            if passed > at:
                raise KeyboardInterrupt
            replace(*arguments)

        monkeypatch.setattr(os, "replace", interrupted)
        try:
            export.run(ExportConfig(), run, out)
            break
        except KeyboardInterrupt:
            assert not (out / "manifest.json").exists()
            if not (out / "config.json").exists():
                with pytest.raises(InputError, match=r"has no config\.json"):
                    LDLM.from_pretrained(out)
        monkeypatch.undo()
        export.run(ExportConfig(), run, out)
        assert content(out) == content(model), at
        shutil.rmtree(out)
    assert at == len(content(model)) - 2  # one rename each, but for the two that begin it, which are linked
    assert content(out) == content(model)


def test_what_it_can_not_do_is_said_in_one_line(run, model, refuse, gpt2, tmp_path):
    out = tmp_path / "out"
    assert "has no decoder 'layers-9'" in refuse("export", "--run", run, "--output", out, "--decoder", "layers-9")
    assert "another checkpoint" in refuse("export", "--run", run, "--output", out, "--decoder", "v0.1")
    assert "holds an encoder" in refuse("export", "--run", gpt2, "--output", out)
    assert "a training run" in refuse("export", "--run", run, "--output", run)
    drawn = ("--output", tmp_path / "s.jsonl", "--num-samples", 1)
    assert "leave --checkpoint out" in refuse("sample", "--run", model, "--checkpoint", "step-00000008", *drawn)
    assert "holds an encoder" in refuse("sample", "--run", gpt2, *drawn)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_its_settings_read_back_as_themselves(ldlm, tmp_path):
    given = ("--decoder", "joint", "--set", "sampler.steps=9", "--push-to-hub", "a/b")
    first = ldlm("export", *given, "--dump-config").stdout
    (tmp_path / "c.yaml").write_text(first)
    assert yaml.safe_load(first)["push_to_hub"] == "a/b"
    assert ldlm("export", "--config", tmp_path / "c.yaml", "--dump-config").stdout == first
    assert "Example" in ldlm("export", "--help").stdout


# ----------------------------------------------------------------------------------------------------------------------
# What is not as it was


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def rename_to_a_pickle(path):
    path.rename(path.with_name("pytorch_model.bin"))


def only_a_pickle(path):
    rename_to_a_pickle(path)
    (path.parent / "config.json").unlink()


def of_transformers(path):
    (path.parent / "config.json").write_text('{"model_type": "gpt2"}')


def of_a_later_format(path):
    record = files.read_digested(path.parent / "config.json", "")
    (path.parent / "config.json").write_text(files.dump_digested({**record, "format": 2}))


def edited(path):
    config = path.parent / "config.json"
    config.write_text(config.read_text().replace('"steps": 32', '"steps": 31'))


def cut_short(path):
    truncate(path.parent / "config.json")


def another_tokenizer(path):
    flip(path.parent / "tokenizer" / "tokenizer.json")


def one_tokenizer_file_more(path):
    (path.parent / "tokenizer" / "added_tokens.json").write_text("{}")


def one_tokenizer_file_less(path):
    (path.parent / "tokenizer" / "tokenizer_config.json").unlink()


FAULTS = {
    flip: r"model\.safetensors is damaged",
    truncate: r"model\.safetensors is damaged",
    rename_to_a_pickle: r"lacks model\.safetensors \(pytorch_model\.bin: pickled weights are never read\)",
    only_a_pickle: r"has no config\.json \(pytorch_model\.bin: pickled weights are never read\)",
    of_transformers: r"holds a model of type gpt2",
    of_a_later_format: r"has format 2, and this ldlm reads 1",
    edited: r"config\.json is damaged",
    cut_short: r"config\.json is damaged",
    another_tokenizer: r"tokenizer/tokenizer\.json is damaged",
    one_tokenizer_file_more: r"tokenizer/added_tokens\.json is damaged",
    one_tokenizer_file_less: r"lacks tokenizer/tokenizer_config\.json",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_model_that_is_not_as_it_was_exported_is_refused_in_one_line(copy, fault):
    fault(copy / "model.safetensors")
    with pytest.raises(InputError, match=FAULTS[fault]) as raised:
        LDLM.from_pretrained(copy)
    assert "\n" not in str(raised.value)


def test_a_file_outside_the_folder_is_no_part_of_it(copy):
    (copy.parent / "secret").write_text("s")
    record = files.read_digested(copy / "config.json", "")
    record["sha256"]["tokenizer/../../secret"] = files.sha256(b"s")
    (copy / "config.json").write_text(files.dump_digested(record))
    with pytest.raises(InputError, match=r"lacks tokenizer/\.\./\.\./secret"):
        LDLM.from_pretrained(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stepz": 3}, r"unknown setting sampler\.stepz; did you mean sampler\.steps\?"),
        ({"solver": "euler"}, "sampler.solver is one of euler-maruyama, ddim"),
        ({"steps": 0}, "sampler.steps must be at least 1"),
        ({"temperature": float("nan")}, "sampler.temperature must be a finite number"),
        ({"n": 0}, "num_samples must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"decoder": "v0.1"}, r"no decoder 'v0\.1' \(it has: joint, layers-1, linear\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(model, arguments, message):
    with pytest.raises(InputError, match=message):
        LDLM.from_pretrained(model).sample(**{"n": 1, **arguments})


def test_devices_and_models_that_are_not_there_are_named(model, tmp_path):
    with pytest.raises(InputError, match="'tpu9' is not a device"):
        LDLM.from_pretrained(model).to("tpu9")
    with pytest.raises(InputError, match=r"there is no model folder .*nowhere/model"):
        LDLM.from_pretrained(tmp_path / "nowhere" / "model")
    with pytest.raises(
        InputError, match="'nobody/nothing' is not a folder here, and can't be fetched from the Hugging Face hub"
    ) as raised:
        LDLM.from_pretrained("nobody/nothing", cache_dir=tmp_path)  # the tests are offline
    assert "\n" not in str(raised.value)
    with pytest.raises(TypeError, match="devise"):
        LDLM.from_pretrained(model, devise="cuda")


# ----------------------------------------------------------------------------------------------------------------------
# The hub


def test_an_upload_that_fails_is_said_in_one_line_and_leaves_the_model_whole(run, model, refuse, tmp_path):
    line = refuse("export", "--run", run, "--output", tmp_path / "m", "--push-to-hub", "me/model")  # offline
    assert "is complete and could not be uploaded to 'me/model'" in line
    found = content(tmp_path / "m")
    assert "push_to_hub: me/model" in found.pop("config.yaml").decode()
    assert found == {k: v for k, v in content(model).items() if k != "config.yaml"}
