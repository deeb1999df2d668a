"""Training of the rivals through the stage: interrupted and divided trainings, what they read, and what they refuse."""

import json
import math
import re
import signal
import subprocess
from dataclasses import replace

import allocator
import forked
import pytest
import torch
from folders import metrics
from forked import Forks
from patience import patience

from ldlm import TokenDiffusion, files, noise
from ldlm import config as configs
from ldlm.baselines import learner, methods
from ldlm.baselines.interface import draw_texts
from ldlm.baselines.registry import training_method
from ldlm.compute import Compute
from ldlm.config import Shapes, TokenTrainConfig
from ldlm.errors import InputError
from ldlm.features.batch import Batch
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.stages import export, extract_features, sample, train
from ldlm.training import checkpoint

CPU = torch.device("cpu")
METHODS = ("mdlm", "duo", "candi", "flm")
STEPS = 8


def final(run):
    """Every byte of the last checkpoint."""
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def weights(run, kind="model"):
    return checkpoint.latest(run / "checkpoints").tensors(kind)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


# ----------------------------------------------------------------------------------------------------------------------
# The run


def test_a_run_holds_what_later_stages_rely_on(token_runs, store, method):
    run = token_runs(method)
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "features.json",
        "tokenizer",
        "status.json",
    }
    assert set(final(run)) == {
        "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
    }  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    opened, config = FeatureStore(store), configs.from_dict(configs.training_class(method), configs_of(run))
    network = methods.network(config, opened.shapes)
    assert sum(manifest["parameters"].values()) == sum(p.numel() for p in network.parameters())
    network.load_state_dict(checkpoint.latest(run / "checkpoints").tensors("ema"))
    held_out = manifest["held_out"]
    assert held_out["split"] == "validation"
    assert held_out["rows"] == 10
    assert held_out["loss"] == pytest.approx(sum(held_out["loss_by_t"]) / 20)  # of 40 times two are in each bin
    assert 0 < held_out["loss_se"] < 1
    assert ("nelbo" in held_out) == (method in ("mdlm", "duo"))
    assert manifest["attention"] == ("capped" if method == "flm" else "sdpa")


def configs_of(run):
    return files.read_yaml(run / "config.yaml")


def test_a_new_network_loses_what_chance_does(token_config, store, method):
    """All tokens start equally likely: the loss is log V, which the weight 1/t of masked tokens leaves as it is."""
    config = replace(token_config(method), eval_rows=1_000)
    opened = FeatureStore(store)
    chosen = training_method(config)
    rows, _ = chosen.rows(opened)
    state = chosen.start(opened, device=CPU, world=train.World())
    chance = math.log(opened.shapes.vocab_size)
    found = chosen.evaluate(state, rows)
    assert found["loss"] == pytest.approx(chance, rel=0.02)
    assert chosen.evaluate(state, rows) == found


@pytest.mark.parametrize("at", [4])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    token_runs, token_config, store, tmp_path, interrupted, method, at
):
    with pytest.raises(KeyboardInterrupt):
        train.run(token_config(method), store, tmp_path / "run", progress=interrupted(at=at))
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").step == 3
    train.run(token_config(method), store, tmp_path / "run")
    assert final(tmp_path / "run") == final(token_runs(method))
    assert metrics(tmp_path / "run") == metrics(token_runs(method))


def test_what_saves_memory_changes_no_number(token_runs, token_config, store, tmp_path, method):
    config = replace(token_config(method), accumulate=2, recompute=True)
    made = train.run(config, store, tmp_path / "run").path
    assert_same_losses(made, token_runs(method))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the compiler reads of every input
def test_compiled_blocks_train_the_same(token_runs, token_config, store, tmp_path, method):
    config = replace(token_config(method), compute=configs.ComputeConfig(compile="on"))
    made = train.run(config, store, tmp_path / "run").path
    assert_same_losses(made, token_runs(method), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "numbers"), [("candi", "zeta_BLR"), ("flm", "zeta_BLR"), ("duo", "numbers")])
def test_compiled_noise_of_a_step_is_the_same_and_compiled_once(name, numbers):
    torch._dynamo.reset()
    settings = {"curriculum": {"kind": "full", "share": 1.0}} if name == "duo" else {}
    config = configs.from_dict(configs.training_class(name), settings)
    chosen = methods.method(config, Shapes(seq_len=4, hidden_dim=8, vocab_size=50))
    compiled = Compute(CPU, compiled=True).normal
    where = {"seed": 1, "rows_B": torch.arange(3), "batch": 3, "seq_len": 4}
    for step in (0, 5, 1_000):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            found, expected = (chosen.draw(step=step, normal=one, **where) for one in (compiled, noise.normal))
        torch.testing.assert_close(getattr(found, numbers), getattr(expected, numbers), rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


# Duo has a curriculum. That what the others draw goes by rows of the whole batch is tested by parts of a step above.
@pytest.mark.parametrize("name", ["duo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mdlm", "candi", "flm"))])
def test_two_processes_train_as_one_does(start, token_runs, store, tmp_path, name):
    command = ["train", "--features", str(store), "--config", str(token_runs(name) / "config.yaml")]
    process = start(command, tmp_path / "run", forks=Forks("job", 2), stderr=subprocess.PIPE)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 0, error
    assert_same_losses(tmp_path / "run", token_runs(name))
    assert_same_weights(tmp_path / "run", token_runs(name))


@pytest.mark.slow
def test_under_torchrun_a_rival_takes_what_fits_and_trains_as_one_process_does(
    start, token_runs, store, tmp_path, method
):
    run, how = tmp_path / "run", ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    settings = ("--config", str(token_runs(method) / "config.yaml"), "--set", "accumulate=2", "--fit", "40GB")
    process = start(
        ["train", "--features", str(store), *settings], run, launcher=how, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 0, error
    assert "accumulate: 1\n" in (run / "config.yaml").read_text()
    assert_same_losses(run, token_runs(method))
    assert_same_weights(run, token_runs(method))


KILLED = """
import os, signal, sys
from pathlib import Path
from ldlm import config, files
from ldlm.progress import Progress, Task
from ldlm.stages import train

class Killed(Task):
    steps = 0

    def advance(self, count, **figures):
        self.steps += count
        if self.steps == 5:
            os.kill(os.getpid(), signal.SIGKILL)

class Kills(Progress):
    def task(self, *given, **named):
        return Killed()

settings, store, out = map(Path, sys.argv[1:])
train.run(config.stored_training(files.read_yaml(settings)), store, out, progress=Kills())
"""


def test_a_killed_run_goes_on_across_the_end_of_its_curriculum(token_runs, token_config, store, tmp_path):
    whole, out = token_runs("duo"), tmp_path / "run"
    assert token_config("duo").curriculum_steps == 4
    assert forked.run(KILLED, str(whole / "config.yaml"), str(store), str(out)).returncode == -signal.SIGKILL
    assert checkpoint.latest(out / "checkpoints").step == 3
    train.run(token_config("duo"), store, out)
    assert final(out) == final(whole)
    assert metrics(out) == metrics(whole)


@pytest.mark.parametrize("name", ["mdlm", "candi"])
def test_the_mask_is_a_row_of_its_own_beside_the_tokenizer_s(extract_config, token_config, bert, tmp_path, name):
    place = extract_features.run(replace(extract_config, encoder=str(bert), kind="scratch"), tmp_path / "features").path
    run = train.run(token_config(name), place, tmp_path / "run").path
    tokenizer = load_tokenizer(str(bert))
    assert tokenizer.mask_token_id in range(len(tokenizer))
    assert weights(run)["embedding"].shape[0] == len(tokenizer) + 1
    assert weights(run)["head.weight"].shape[0] == len(tokenizer)

    settings = {"num_samples": 32, "sampler": {"steps": 4}, "device": "cpu"}
    sample.run(configs.drawing_config(configs.SampleConfig, name, settings), run, tmp_path / "texts.jsonl")
    rows = list(files.read_jsonl(tmp_path / "texts.jsonl"))
    assert len(rows) == 32
    assert max(token for row in rows for token in row["tokens"]) < len(tokenizer)

    # An exported model has the row too, and draws the same.
    model = export.run(configs.drawing_config(configs.ExportConfig, name, {}), run, tmp_path / "model").path
    opened = TokenDiffusion.from_pretrained(model)
    assert opened.network.embedding.shape[0] == len(tokenizer) + 1
    assert opened.sample(32, steps=4) == [row["text"] for row in rows]


def assert_same_losses(run, other, rel=1e-5):
    """To 1e-5, for sums of another order."""
    mine, theirs = metrics(run), metrics(other)
    assert [(line["step"], line["kind"]) for line in mine] == [(line["step"], line["kind"]) for line in theirs]
    for one, two in zip(mine, theirs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=rel), one["step"]


def assert_same_weights(run, other):
    """The trained weights of two runs agree, and so do the averages that texts are drawn with."""
    for kind in ("model", "ema"):
        mine, theirs = weights(run, kind), weights(other, kind)
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.allclose(mine[name], tensor, rtol=0, atol=1e-5), (kind, name)


@pytest.mark.parametrize("kind", ["scratch", "hidden"])
def test_only_tokens_are_read(token_runs, token_config, extract_config, store, tmp_path, kind):
    """A store of tokens trains the same model, and one of states does when its states are gone."""
    place = tmp_path / "features"
    extract_features.run(replace(extract_config, kind=kind), place)
    if kind == "hidden":
        for path in sorted((place / "features.zarr" / "hidden" / "c").rglob("*")):
            if path.is_file():  # of its size, but noise
                path.write_bytes(b"\xff" * path.stat().st_size)
    made = train.run(token_config("mdlm"), place, tmp_path / "run").path
    assert all(tensor.equal(weights(token_runs("mdlm"))[name]) for name, tensor in weights(made).items())


# ----------------------------------------------------------------------------------------------------------------------
# What it learns


def test_a_few_rows_are_learned_by_heart_and_nothing_else_is_drawn(method):
    """Four rows of one token each: the backbone knows distances between positions, and not where a row begins."""
    vocab, length, batch, steps = 48, 8, 16, 150
    rows_BL = torch.arange(4)[:, None].expand(4, length).repeat(batch // 4, 1)
    sizes = {"layers": 1, "width": 32, "heads": 2, "time_dim": 16}
    settings = {
        "steps": steps,
        "batch_size": batch,
        "model": {"denoiser": sizes, "backbone": {"dropout": 0}},
        "optimizer": {"lr": 1e-2, "lr_warmup_steps": 10, "ema_decay": 0.95, "clip_norm": 10.0},
    }
    config = configs.from_dict(configs.training_class(method), settings)
    shapes = Shapes(seq_len=length, hidden_dim=8, vocab_size=vocab)
    state = learner.start(config, shapes, device=CPU)
    for step in range(steps):
        learner.token_step(state, Batch(None, rows_BL, torch.arange(batch), step * batch))

    network = methods.network(config, shapes)
    network.load_state_dict(state.ema.weights)
    judged, many = methods.held_out_method(config, shapes), 256
    draws = judged.draw(seed=1, step=0, rows_B=torch.arange(many), batch=many, seq_len=length)
    with torch.no_grad():
        loss = judged.losses(network, rows_BL.repeat(many // batch, 1), draws).mean.item()
    # Which row it is takes log(4)/8 nats per token, 0.045 of log V; without the other positions it would be 0.36.
    assert loss < 0.15 * math.log(vocab)

    sampler = methods.sampler(config, configs.token_sampler(method, {"steps": 64}), shapes)
    drawn_BL = draw_texts(sampler, network, torch.arange(64)).tokens_BL
    known_B = (drawn_BL == drawn_BL[:, :1]).all(1) & (drawn_BL[:, 0] < 4)
    assert known_B.double().mean() >= {"mdlm": 0.95, "duo": 0.8, "candi": 0.8, "flm": 0.9}[method]
    assert len(drawn_BL[known_B, 0].unique()) == 4


# ----------------------------------------------------------------------------------------------------------------------
# Settings and their refusals


def test_a_preset_gives_steps_batch_and_learning_rate_and_the_method_the_rest():
    cls = configs.training_class("duo")
    tiny = configs.from_dict(cls, configs.preset_for(cls, "tiny"))
    ours = configs.from_dict(configs.TrainConfig, configs.preset("tiny").overrides)
    assert (tiny.steps, tiny.batch_size) == (ours.steps, ours.batch_size)
    assert configs.to_dict(tiny.model.denoiser).items() <= configs.to_dict(ours.model.denoiser).items()
    for name in ("lr", "lr_warmup_steps", "lr_decay"):
        assert getattr(tiny.optimizer, name) == getattr(ours.optimizer, name)
    published = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "clip_norm": 1.0, "ema_decay": 0.9999}
    for name, value in published.items():
        assert getattr(tiny.optimizer, name) == value
    assert cls().optimizer.lr_warmup_steps == 2_500


def test_a_dry_run_tells_parameters_and_flops(method, succeed):
    plan = succeed("train", "--method", method, "--preset", "tiny", "--seq-len", 16, "--dry-run")
    config, vocab = configs.preset("tiny"), configs.preset("tiny").shapes.vocab_size
    width, mask = config.overrides["model"]["denoiser"]["width"], method in ("mdlm", "candi")
    parameters = plan["parameters"]
    assert list(parameters) == ["embedding", "blocks", "head", "condition"]
    assert parameters["embedding"] == width * (vocab + mask)
    assert parameters["head"] == (width + 1) * vocab
    flops = plan["flops_per_token"]
    phases = flops if method == "duo" else {"training": flops}
    assert list(phases) == (["curriculum", "training"] if method == "duo" else ["training"])
    # Forward and backward multiply each weight three times; those of the modulation once for a row.
    least, most = (6 * (share * parameters["blocks"] + parameters["head"]) for share in (0.6, 1.6))
    assert all(least < one < most for one in phases.values())


def test_another_method_is_refused_in_a_run_s_folder(token_runs, token_config, train_config, trained, store):
    with pytest.raises(InputError, match=r"is a run of method mdlm, not duo; choose another --output"):
        train.run(token_config("duo"), store, token_runs("mdlm"))
    with pytest.raises(InputError, match=r"is a run of method mdlm, not ldlm"):
        train.run(train_config, store, token_runs("mdlm"))
    with pytest.raises(InputError, match=r"is a run of method ldlm, not candi"):
        train.run(token_config("candi"), store, trained)


def test_a_curriculum_without_steps_binds_none(token_config, store):
    config = replace(token_config("duo"), curriculum=configs.DuoCurriculumConfig(share=0.0))
    state = learner.start(config, FeatureStore(store).shapes, device=CPU)
    assert config.optimizer.lr_decay == "constant"
    assert state.binds_steps is None
    assert training_method(config).phase_steps() == {"training": 8}


def test_the_steps_of_a_curriculum_can_not_change_on_the_way(token_runs, token_config, store):
    with pytest.raises(InputError, match=r"begun for 8 steps, over which curriculum.share counts, .* --steps 8"):
        train.run(replace(token_config("duo"), steps=9), store, token_runs("duo"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("candi", {"noise": {"r_low": 0.3, "r_high": 0.2}}, r"r_low=0.3 and r_high=0.2 must rise"),
        ("duo", {"curriculum": {"top_k": 100_000}}, r"top_k=100000 must be less than"),
        ("duo", {"curriculum": {"gamma_min": 1, "gamma_max": 0}}, r"gamma_min=1 must be less than gamma_max=0"),
        (
            "duo",
            {"curriculum": {"gamma_min": 900, "gamma_max": 901}},
            r"all tokens or none.* near -3.08 and -0.323,",
        ),
        ("duo", {"curriculum": {"gamma_min": -40}}, r"gamma_min=-40 and gamma_max=.* keep all tokens or none"),
    ],
)
def test_settings_that_fit_no_noise_are_refused_before_anything_is_written(store, tmp_path, name, settings, message):
    config = configs.from_dict(configs.training_class(name), settings)
    with pytest.raises(InputError, match=message):
        train.run(config, store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_setting_of_another_method_is_refused_by_name():
    with pytest.raises(InputError, match=r"unknown setting curriculum"):
        configs.from_dict(configs.training_class("mdlm"), {"curriculum": {"kind": "none"}})
    for method, settings, said in [
        ("mdlm", {"curriculum": {}}, "curriculum is a setting of duo, and this training is of mdlm"),
        ("duo", {"model": {"autoencoder": {"layers": 2}}}, "model.autoencoder is a setting of ldlm, and this training"),
        ("ldlm", {"model": {"backbone": {"dropout": 0}}}, "model.backbone is a setting of mdlm, duo, candi, flm, and"),
    ]:
        with pytest.raises(InputError, match=f"^{re.escape(said)}"):
            configs.of_method({"method": method, **settings})
    with pytest.raises(InputError, match=r"there is no method 'sedd'; choose one of ldlm, mdlm, duo, candi, flm"):
        configs.training_class("sedd")
    assert configs.of_method({"method": None, "steps": 3}) == (configs.TrainConfig, {"steps": 3})
    with pytest.raises(InputError, match=r"method is one name of ldlm, mdlm, duo, candi, flm, not \['mdlm'\]"):
        configs.of_method({"method": ["mdlm"]})
    with pytest.raises(InputError, match=r"this run is of the method 'later', which this ldlm does not know"):
        configs.stored_training({"method": "later"})


# ----------------------------------------------------------------------------------------------------------------------
# Costs


@pytest.mark.parametrize("preset", ["owt-1024", "lm1b-128"])
def test_the_published_small_model(preset, method):
    """The published size: 92 M blocks, and 38.6 M each of embedding and head."""
    chosen = training_method(of_preset(method, preset))
    counts = chosen.parameters(chosen.network(configs.preset(preset).shapes))
    d, vocab, condition = 768, 50_257, 128
    block = 4 * d * d + 8 * d * d + 5 * d + 2 * d + condition * 6 * d + 6 * d
    assert counts["blocks"] == 12 * block + d + condition * 2 * d + 2 * d
    assert counts["blocks"] == pytest.approx(92e6, rel=0.005)
    assert counts["embedding"] == (vocab + (method in ("mdlm", "candi"))) * d
    assert counts["head"] == vocab * d + vocab


def test_flops_are_those_of_the_matrices(method):
    """Six for each weight and token, attention, and for FLM and CANDI the embedding by itself once in a batch."""
    shapes = Shapes(seq_len=16, hidden_dim=32, vocab_size=100)
    sizes = {"layers": 2, "width": 32, "heads": 2, "time_dim": 16}
    config = configs.from_dict(configs.training_class(method), {"model": {"denoiser": sizes}, "batch_size": 8})
    chosen = training_method(config)
    d, rows, batch = 32, 16, 8
    blocks = 2 * (12 * d * d + 2 * rows * d)
    expected = 6 * (blocks + d * 100)
    gram = 6 * 100 * d * d / (batch * rows) if method in ("flm", "candi") else 0
    noise = 6 * d * d if method in ("flm", "candi") else 0
    last = list(chosen.phase_steps())[-1]
    assert chosen.flops_per_token(shapes, last) == pytest.approx(expected + gram + noise, rel=0.12)


def of_preset(method, name, **settings) -> TokenTrainConfig:
    cls = configs.training_class(method)
    return configs.from_dict(cls, configs.merge(configs.preset_for(cls, name), settings))


def test_the_memory_of_a_step_is_what_the_profiler_sees(method, tmp_path):
    """In Duo's curriculum, whose steps take the most."""
    shapes = Shapes(seq_len=128, hidden_dim=32, vocab_size=1_000)
    sizes = {"layers": 2, "width": 128, "heads": 2, "time_dim": 16}
    settings = {"model": {"denoiser": sizes}, "batch_size": 8, "device": "cpu"}
    config = configs.from_dict(configs.training_class(method), settings)
    found = training_method(config).footprint(shapes, bf16=False, device="cpu")
    state = learner.start(config, shapes, device=CPU)

    def two_steps():
        started = learner.start(config, shapes, device=CPU)
        for _ in range(2):
            tokens_BL = torch.arange(8 * 128).reshape(8, 128) % 1_000
            learner.token_step(started, Batch(None, tokens_BL, torch.arange(8), 0))

    learner.token_step(state, Batch(None, torch.zeros(8, 128, dtype=torch.int64), torch.arange(8), 0))  # fills caches
    seen = allocator.peak(two_steps, tmp_path)
    assert found.memory(8, 8, batches=1).total == pytest.approx(seen, rel=0.1)
