"""Decoders trained after the rest: what they learn, what they leave alone, and any interruption against none."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from folders import content, metrics
from forked import Forks
from patience import patience
from safetensors.torch import load_file

from ldlm import artifact, files
from ldlm import config as configs
from ldlm.config import (
    ComputeConfig,
    DecoderNoise,
    DistillConfig,
    ExtractConfig,
    FinetuneConfig,
    RecipeConfig,
    SampleConfig,
    SamplerConfig,
)
from ldlm.errors import InputError, Stopped
from ldlm.features.batch import Batch
from ldlm.features.store import FeatureStore
from ldlm.model.joint import build
from ldlm.model.objective import DecoderInput, JointObjective
from ldlm.sampling import trained_run
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import distill, extract_features, finetune_decoder, sample, train
from ldlm.training import checkpoint, heldout, learner
from ldlm.training.decoder import finetune_step, start_decoder

CPU = torch.device("cpu")
FINETUNE = FinetuneConfig(
    layers=1, steps=12, log_every=1, eval_every=5, save_every=4, eval_rows=10, batch_size=16, device="cpu"
)


def made_of(decoder):
    """Averaged weights, newest checkpoint, metrics and manifest, without what tells the time."""
    newest = checkpoint.all_in(decoder / "checkpoints")[-1].path
    manifest = json.loads((decoder / "manifest.json").read_text())
    return (
        (decoder / "ema.safetensors").read_bytes(),
        {path.name: path.read_bytes() for path in newest.iterdir()},
        metrics(decoder),
        {k: v for k, v in manifest.items() if k not in ("seconds", "created", "digest")},
    )


@pytest.fixture(scope="module")
def whole(trained, store, tmp_path_factory):
    """The decoder whose training nobody stopped."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("whole") / "run")
    return finetune_decoder.run(FINETUNE, run, store).path


# ----------------------------------------------------------------------------------------------------------------------
# What it learns


def start(trained, layers=0, **changes):
    """A decoder at step 0 on `trained`, and its batch of 8 rows."""
    run = TrainedRun(trained, CPU)
    network = {"width": 16, "layers": layers, "heads": 2, "mlp_ratio": 4, "vocab_size": run.shapes.vocab_size}
    return start_decoder(replace(run.config, **changes), run.model, network, device=CPU)


def batch_of(store, rows=8):
    split = FeatureStore(store).split("train")
    parts, tokens = split.read(0, rows)
    tokens_BL = torch.from_numpy(tokens).long()
    return Batch(split.states(parts, tokens_BL), tokens_BL, torch.arange(rows), 0)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_linear_head_has_the_loss_and_the_gradient_of_its_closed_form(trained, store, accumulate):
    """Softmax regression on the normalised latents: ∂CE/∂W = (p − y)ᵀ n / BL, in float64."""
    recipe = RecipeConfig(sigma_dec=0.0)
    state, batch = start(trained, recipe=recipe, accumulate=accumulate), batch_of(store)
    gradient = torch.zeros_like(state.model.head.weight)
    state.model.head.weight.register_hook(gradient.add_)
    z = state.frozen.latent_encoder(batch.hidden_BLD).double().flatten(0, 1).numpy()
    weights = state.model.head.weight.detach().double().numpy().copy()
    step = finetune_step(state, batch)

    n = z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-6)
    scores = np.exp(n @ weights.T)
    p = scores / scores.sum(axis=1, keepdims=True)
    y = np.eye(len(weights))[batch.tokens_BL.flatten().numpy()]
    assert step.l_w_B.mean().item() == pytest.approx(-(y * np.log(p)).sum() / len(z), rel=1e-5)
    np.testing.assert_allclose(gradient.numpy(), (p - y).T @ n / len(z), rtol=1e-3, atol=1e-7)


def test_a_decoder_recomputes_activations_where_the_run_does(trained, store):
    saved, batch = {}, batch_of(store)
    for recompute in (False, True):
        state, seen = start(trained, layers=2, recompute=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: (seen.append(t.nbytes), t)[1], lambda t: t):
            finetune_step(state, batch)
        saved[recompute] = sum(seen)
    assert saved[True] < 0.7 * saved[False]


@pytest.mark.parametrize("stage", [finetune_decoder, distill])
def test_decoders_and_students_have_micro_batches_no_larger_than_the_run_s(run_copy, stage):
    """The run has micro-batches of 2 rows and recomputes; accumulate=1 of a run that was begun earlier stays."""
    settings = files.read_yaml(run_copy / "config.yaml")
    files.write_atomic(run_copy / "config.yaml", files.dump_yaml({**settings, "accumulate": 4, "recompute": True}))
    run = TrainedRun(run_copy, CPU)

    def training(**given):
        if stage is distill:
            return distill.settings(DistillConfig(evaluations=1, start=2, steps=1, **given), run)
        return finetune_decoder._training(FinetuneConfig(**given), run)

    def micro_batches(batch_size=None, **given):
        return training(batch_size=batch_size, **given).accumulate

    assert training().recompute
    assert [micro_batches(rows) for rows in (None, 8, 16, 4, 2, 1, 9)] == [4, 4, 8, 2, 1, 1, 9]
    assert [micro_batches(accumulate=given) for given in (1, 2)] == [1, 2]


@pytest.mark.parametrize(("processes", "rows", "expected"), [(2, 8, 4), (4, 8, 2), (2, 4, 2), (2, 12, 6), (3, 8, 2)])
def test_micro_batches_no_larger_than_the_run_s_divide_the_share_of_a_process(processes, rows, expected):
    """Micro-batches of the run have 2 rows over all processes, of which each has at least one."""
    run = configs.TrainConfig(batch_size=8, accumulate=4)
    assert learner.accumulation(run, rows, processes) == expected
    assert learner.accumulation(replace(run, accumulate=1), 2 * rows, processes) == 1


def test_in_bf16_the_noise_is_added_to_latents_in_float32_as_where_it_is_measured(trained, store, monkeypatch):
    seen, draw = [], DecoderInput.draw

    def seeing(self, model, h_BLD, z_0_BNC, **more):
        seen.append(z_0_BNC.dtype)
        return draw(self, model, h_BLD, z_0_BNC, **more)

    monkeypatch.setattr(DecoderInput, "draw", seeing)
    run, recipe = TrainedRun(trained, CPU), RecipeConfig(decoder_noise="diffused", t_dec=0.5)
    config = replace(run.config, recipe=recipe, compute=ComputeConfig(precision="bf16"))
    narrow = replace(config.model, autoencoder=replace(config.model.autoencoder, latent_dim=8))  # ends in a projection
    frozen = build(narrow, run.shapes, seed=0).requires_grad_(False)
    network = {"width": 8, "layers": 0, "heads": 2, "mlp_ratio": 4, "vocab_size": run.shapes.vocab_size}
    finetune_step(start_decoder(config, frozen, network, device=CPU), batch_of(store))
    assert seen == [torch.float32]


def test_the_noise_has_the_size_of_sigma_dec_and_belongs_to_step_and_row(trained, store):
    state, batch = start(trained, recipe=RecipeConfig(sigma_dec=2.0)), batch_of(store)
    seen = []
    losses = state.model.losses
    state.model.losses = lambda z, tokens: (seen.append(z), losses(z, tokens))[1]
    parts = [batch, Batch(*(part[4:] for part in batch[:3]), 0)]
    for part in parts:
        state.step = 7
        finetune_step(state, part)
    state.step = 8
    finetune_step(state, batch)
    eps = [
        (z - state.frozen.latent_encoder(part.hidden_BLD)) / 2 for z, part in zip(seen, [*parts, batch], strict=True)
    ]
    assert eps[0].std().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(eps[1], eps[0][4:], atol=1e-5, rtol=1e-4)
    assert abs(np.corrcoef(eps[0].flatten(), eps[2].flatten())[0, 1]) < 0.1


@pytest.mark.parametrize("layers", [0, 2, 6])
def test_the_frozen_parts_have_no_gradient_and_stay_as_they_are(trained, store, layers):
    state, batch = start(trained, layers), batch_of(store)
    before = {name: tensor.clone() for name, tensor in state.frozen.state_dict().items()}
    mine = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    losses = [finetune_step(state, batch).l_w_B.mean().item() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(p.grad is None and not p.requires_grad for p in state.frozen.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in state.frozen.state_dict().items())
    assert all(not p.equal(mine[name]) for name, p in state.model.named_parameters())
    assert len(state.model.blocks) == layers


def assert_same_losses(decoder, other):
    """To 1e-5, for sums of another order."""
    for one, two in zip(metrics(decoder), metrics(other), strict=True):
        assert (one["step"], one["kind"]) == (two["step"], two["kind"])
        assert one["l_w"] == pytest.approx(two["l_w"], rel=1e-5)
        assert one["token_accuracy"] == pytest.approx(two["token_accuracy"], abs=1e-6)


def test_parts_of_a_step_change_no_number(store, run_copy, whole):
    made = finetune_decoder.run(replace(FINETUNE, accumulate=4), run_copy, store).path
    assert_same_losses(made, whole)


def test_two_processes_train_as_one_does(start, trained, store, whole, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    process = start(command(run, store), None, forks=Forks("job", 2), stderr=subprocess.PIPE)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 0, error
    assert_same_losses(run / "decoders/layers-1", whole)
    assert len(re.findall(r"^finetune decoder  12/12 steps.*  in \d", error, re.MULTILINE)) == 1  # one of them reports


def command(run, store, **changes):
    """The command line of FINETUNE."""
    data = {k: v for k, v in {**configs.to_dict(FINETUNE), **changes}.items() if k != "compute" and v is not None}
    flags = [text for name, value in data.items() for text in ("--" + name.replace("_", "-"), str(value))]
    return ["finetune-decoder", "--run", str(run), "--features", str(store), *flags]


# ----------------------------------------------------------------------------------------------------------------------
# What it is worth


@torch.no_grad()
def test_held_out_figures_are_those_of_their_definitions(whole, store):
    run = TrainedRun(whole.parents[1], CPU)
    network, split = run.decoder().logits, FeatureStore(store).held_out()
    noisy = DecoderInput(DecoderNoise("additive", 0.5), run.schedule)
    found = heldout.evaluate_decoder(network, run.model, split, noisy=noisy, rows=30, batch_size=7, device=CPU)
    parts, tokens = split.read(0, 30)
    tokens_BL = torch.from_numpy(tokens).long()
    z = run.model.latent_encoder(split.states(parts, tokens_BL))
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    assert (found.split, found.rows) == ("validation", 30)
    for suffix, logits, spread in (("", network(z + 0.5 * eps), 0.05), ("_clean", network(z), 1e-5)):
        l_w = F.cross_entropy(logits.flatten(0, 1), tokens_BL.flatten()).item()
        accuracy = (logits.argmax(-1) == tokens_BL).float().mean().item()
        assert getattr(found, "l_w" + suffix) == pytest.approx(l_w, rel=spread)
        assert getattr(found, "token_accuracy" + suffix) == pytest.approx(accuracy, abs=spread)


def test_the_joint_decoder_is_measured_as_training_measures_it(trained, whole, store):
    """The same rows and the same noise, so that decoders compare with the one they replace."""
    run = TrainedRun(trained, CPU)
    objective = JointObjective(run.model, run.config)
    expected = heldout.evaluate(objective, FeatureStore(store).held_out(), rows=10, batch_size=10, device=CPU)
    joint = json.loads((whole / "manifest.json").read_text())["joint"]
    for name in ("split", "rows", "token_accuracy", "token_accuracy_clean"):
        assert joint[name] == getattr(expected, name)
    assert joint["l_w"] == pytest.approx(expected.l_w, rel=1e-6)


def test_the_manifest_tells_what_was_made_and_what_it_saves(trained, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    saved = checkpoint.latest(trained / "checkpoints")
    weights = saved.tensors("ema")
    replaced = sum(w.numel() for n, w in weights.items() if n.startswith(("latent_decoder.", "token_decoder.")))
    assert manifest["parameters"] == sum(w.numel() for w in load_file(whole / "ema.safetensors").values())
    assert manifest["replaces"] == replaced
    assert (manifest["checkpoint"], manifest["checkpoint_step"]) == (saved.digest, 8)
    assert (manifest["step"], manifest["sigma_dec"], manifest["network"]["layers"]) == (12, 1.0, 1)
    evaluations = metrics(whole, "eval")
    assert [line["step"] for line in evaluations] == [5, 10, 12]
    assert manifest["held_out"] == {k: v for k, v in evaluations[-1].items() if k not in ("step", "kind")}
    assert [line["step"] for line in metrics(whole, "train")] == list(range(1, 13))


def test_a_decoder_changes_nothing_of_the_run(trained, whole):
    run = whole.parents[1]
    before, after = content(trained), content(run)
    assert {path: data for path, data in after.items() if not path.startswith("decoders/")} == before


def test_decoders_of_a_run_are_listed_and_each_draws_texts(store, run_copy, succeed, ldlm, tmp_path):
    for layers in (2, 6, 0):
        succeed("finetune-decoder", "--run", run_copy, "--features", store, "--layers", layers, "--steps", 1)
    joint, *others = TrainedRun(run_copy, CPU).decoders()
    best = min((joint, *others), key=lambda decoder: decoder.held_out["l_w"]).name
    assert [(d.name, d.layers, d.default, d.usable) for d in (joint, *others)] == [
        ("joint", 2, best == "joint", True),  # one layer in D_h and one block in D_w
        ("layers-2", 2, best == "layers-2", True),
        ("layers-6", 6, best == "layers-6", True),
        ("layers-0", 0, best == "layers-0", True),
    ]
    assert others[2].parameters == 16 + 16 * 320 < others[0].parameters < others[1].parameters
    assert joint.held_out["l_w"] > 0
    listed = succeed("finetune-decoder", "--run", run_copy, "--list")
    assert listed == [vars(decoder) for decoder in (joint, *others)]
    *table, _, legend = ldlm("finetune-decoder", "--run", run_copy, "--list").stdout.splitlines()
    assert legend.startswith("* ")
    assert [line.split()[0] for line in table[2:]] == ["joint", "layers-2", "layers-6", "layers-0"]
    assert [line.split()[0] for line in table if " * " in line] == [best]

    drawn = {}
    for name in (None, "layers-6", "layers-2", "layers-0", "joint"):
        out = tmp_path / f"{name}.jsonl"
        chosen = () if name is None else ("--decoder", name)
        found = ldlm("sample", "--run", run_copy, "--num-samples", 2, "--steps", 2, "--output", out, *chosen)
        assert f"decoder {name or best}\n" in found.stdout
        assert (f"default decoder {best}, with the lowest held-out cross-entropy" in found.stderr) == (name is None)
        drawn[name] = out.read_bytes()
    assert drawn[None] == drawn[best]
    assert len(set(drawn.values())) == 4


def test_the_result_is_a_table_of_the_decoder_beside_the_one_it_replaces(store, run_copy, ldlm, whole):
    result = ldlm(*command(run_copy, store))
    assert result.exit_code == 0
    manifest = json.loads((run_copy / "decoders/layers-1/manifest.json").read_text())
    rows = {line[:28].strip(): line[28:].split() for line in result.stdout.splitlines()}
    assert rows["parameters"] == [f"{manifest['parameters']:,}", f"{manifest['replaces']:,}"]
    assert rows["parameters saved"] == [f"{manifest['replaces'] - manifest['parameters']:,}", "-"]
    for label, name in (("L_w, tokens under noise", "l_w"), ("token accuracy, clean", "token_accuracy_clean")):
        found = [float(cell) for cell in rows[label]]
        assert found == pytest.approx([manifest["held_out"][name], manifest["joint"][name]], abs=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# Interruption


# Step 1; before, on and after a checkpoint, and an evaluation; the step before the last, and the last.
@pytest.mark.parametrize("at", [1, 3, 4, 5, 6, 11, 12])
def test_a_stopped_finetuning_ends_bit_for_bit_like_one_that_was_not(store, run_copy, whole, stopped_at, at):
    with pytest.raises(Stopped, match=f"layers-1: stopped by SIGTERM at step {at}, and saved"):
        finetune_decoder.run(FINETUNE, run_copy, store, progress=stopped_at(at))
    out = run_copy / "decoders" / "layers-1"
    assert checkpoint.latest(out / "checkpoints").step == at
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert not (out / "manifest.json").exists()
    assert made_of(finetune_decoder.run(FINETUNE, run_copy, store).path) == made_of(whole)
    assert json.loads((out / "status.json").read_text())["state"] == "complete"


def test_one_that_was_stopped_and_killed_ends_like_one_that_was_not(store, run_copy, whole, stopped_at, interrupted):
    with pytest.raises(Stopped):
        finetune_decoder.run(FINETUNE, run_copy, store, progress=stopped_at(2))
    with pytest.raises(KeyboardInterrupt):  # at step 7, which leaves no checkpoint beyond that of step 4
        finetune_decoder.run(FINETUNE, run_copy, store, progress=interrupted(at=4))
    with pytest.raises(KeyboardInterrupt):
        finetune_decoder.run(FINETUNE, run_copy, store, progress=interrupted(at=6))
    assert made_of(finetune_decoder.run(FINETUNE, run_copy, store).path) == made_of(whole)


def test_one_killed_before_its_manifest_ends_like_one_that_was_not(store, run_copy, whole):
    out = shutil.copytree(whole, run_copy / "decoders" / "layers-1")
    (out / "manifest.json").unlink()
    (out / "ema.safetensors").write_bytes(b"half")
    assert made_of(finetune_decoder.run(FINETUNE, run_copy, store).path) == made_of(whole)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_decoder_is_never_read(store, run_copy, refuse, tmp_path, damage):
    path = finetune_decoder.run(replace(FINETUNE, steps=2), run_copy, store).path / "ema.safetensors"
    data = path.read_bytes()
    path.write_bytes({"flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "cut": data[:-100]}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    draw = ("sample", "--decoder", "layers-1", "--output", tmp_path / "s.jsonl")
    for command in (draw, ("export", "--output", tmp_path / "model")):
        assert f"{path} is damaged or missing" in refuse(command[0], "--run", run_copy, *command[1:])
    assert list(tmp_path.glob("s.jsonl*")) == []


@pytest.fixture
def measured(trained, store, whole, run_copy):
    """`measured(name, l_w, joint=…, …)`: one more finished decoder of the run, whose records say that."""
    shutil.copytree(whole, run_copy / "decoders" / "template")

    def add(name, l_w, *, joint=None, sigma_dec=1.0, rows=10, created, checkpoint=None, **inputs):
        template = run_copy / "decoders" / "template"
        made = run_copy / "decoders" / name
        shutil.copytree(template, made)
        manifest = artifact.Artifact(template, "decoder", "complete").manifest

        def figures(l_w):
            return {} if l_w is None else {**manifest["held_out"], "l_w": l_w, "rows": rows}

        manifest |= {"name": name, "held_out": figures(l_w), "joint": figures(joint), "created": created}
        manifest |= {"sigma_dec": sigma_dec, "decoder_noise": {"kind": "additive", "size": sigma_dec}}
        manifest |= {**({} if checkpoint is None else {"checkpoint": checkpoint})}
        (made / "manifest.json").write_text(files.dump_digested(manifest))
        record = files.read_json(made / "artifact.json")
        record["inputs"] = {key: value for key, value in {**record["inputs"], **inputs}.items() if value is not None}
        files.write_json(made / "artifact.json", record)

    yield add


def default(run_copy, notes):
    """The default decoder of the run as every way of asking has it, and the line that says so."""
    shutil.rmtree(run_copy / "decoders" / "template", ignore_errors=True)
    run = TrainedRun(run_copy, CPU)
    (listed,) = (record.name for record in run.decoders() if record.default)
    assert run.decoder().name == listed == run.usable_decoders()[0]
    notes.lines.clear()
    run.remark_on_decoder(listed, notes)
    assert notes.lines == []
    run.remark_on_decoder(None, notes)
    (line,) = notes.lines
    assert line.startswith(f"default decoder {listed}, ")
    return listed, line


def test_the_default_decoder_rebuilds_held_out_tokens_best(measured, run_copy, notes):
    measured("a", 2.0, joint=2.5, created=1)
    measured("b", 2.2, joint=2.5, created=2)
    name, line = default(run_copy, notes)
    assert name == "a"
    assert "with the lowest held-out cross-entropy (2.00; joint 2.50, b 2.20)" in line


def test_the_jointly_trained_decoder_is_the_default_where_it_was_measured_to_be_better(measured, run_copy, notes):
    measured("a", 2.0, joint=1.5, created=1)
    assert default(run_copy, notes)[0] == "joint"


def test_decoders_measured_otherwise_are_not_compared(measured, run_copy, notes):
    measured("little-noise", 0.5, joint=0.4, sigma_dec=0.1, created=1)
    measured("few-rows", 0.6, joint=0.5, rows=2, created=2)
    measured("a", 2.0, joint=2.5, created=3)
    measured("b", 2.2, joint=2.5, created=4)
    assert default(run_copy, notes)[0] == "a"


def test_decoders_measured_on_rows_of_another_store_are_not_compared(measured, run_copy, notes):
    measured("elsewhere", 0.5, joint=0.4, created=1, features="0" * 64)
    measured("unknown", 2.3, joint=2.5, created=2, features=None)  # a record without it is compared with all
    measured("a", 2.0, joint=2.5, created=3)
    measured("b", 2.2, joint=2.5, created=4)
    name, line = default(run_copy, notes)
    assert name == "a"
    assert "with the lowest held-out cross-entropy (2.00; joint 2.50, unknown 2.30, b 2.20)" in line


def test_figures_of_the_joint_decoder_on_other_rows_are_not_compared(measured, run_copy, notes):
    measured("a", 2.0, joint=1.0, created=1)
    manifest = run_copy / "decoders" / "a" / "manifest.json"
    found = artifact.Artifact(manifest.parent, "decoder", "complete").manifest
    manifest.write_text(files.dump_digested({**found, "joint": {**found["joint"], "rows": 3}}))
    assert default(run_copy, notes)[0] == "a"


@pytest.mark.parametrize("of_states", [True, False])
def test_fingerprints_of_stores_without_states_which_have_changed_are_not_compared(of_states):
    one, other = (
        {"inputs": {"features": name}, "sigma_dec": 1.0, "held_out": {"split": "validation", "rows": 8}}
        for name in "ab"
    )
    assert trained_run._are_alike(one, one, of_states=of_states)
    assert trained_run._are_alike(one, other, of_states=of_states) != of_states


def test_one_of_another_checkpoint_is_no_default(measured, run_copy, notes):
    measured("a", 2.0, joint=2.5, created=1)
    measured("elsewhere", 1.0, joint=2.5, created=2, checkpoint="0" * 64)
    assert default(run_copy, notes)[0] == "a"


@pytest.mark.parametrize("joint", [None, 1.0])
def test_the_newest_decoder_is_the_default_where_none_was_measured(measured, run_copy, notes, joint):
    measured("b", None, joint=joint, created=1)
    measured("a", None, joint=joint, created=2)
    name, line = default(run_copy, notes)
    assert name == "a"
    assert "the newest, since none has been measured" in line


def test_one_that_was_not_measured_is_not_preferred_to_one_that_was(measured, run_copy, notes):
    measured("a", 2.0, created=1)
    measured("b", None, created=2)
    assert default(run_copy, notes)[0] == "a"


def test_more_steps_go_on_from_a_finished_decoder(store, run_copy, whole):
    finetune_decoder.run(replace(FINETUNE, steps=5), run_copy, store)
    made = finetune_decoder.run(FINETUNE, run_copy, store).path
    assert made_of(made) == made_of(whole)
    before = content(made)
    finetune_decoder.run(replace(FINETUNE, steps=5), run_copy, store)
    assert content(made) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_ended_by_a_signal_is_taken_up(start, store, run_copy, trained, tmp_path, number):
    process = start(command(run_copy, store, steps=1_000_000), None, stderr=subprocess.PIPE)
    out, ends = run_copy / "decoders" / "layers-1", time.monotonic() + patience()
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 8:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < ends
        time.sleep(0.05)
    os.kill(process.pid, number)
    error = process.communicate(timeout=patience())[1].decode()
    saved = checkpoint.latest(out / "checkpoints").step
    if number == signal.SIGTERM:
        assert process.returncode == 75
        assert error.splitlines()[-1] == (
            f"{out}: stopped by SIGTERM at step {saved:,}, and saved; the same command continues from there"
        )
    config = replace(FINETUNE, steps=saved + 2)
    alone = shutil.copytree(trained, tmp_path / "alone")
    found = [made_of(finetune_decoder.run(config, run, store).path) for run in (run_copy, alone)]
    assert found[0] == found[1]


def test_batches_that_are_not_finite_change_nothing_and_too_many_end_it(store, run_copy, notes):
    broken = replace(FINETUNE, lr=1e30, steps=40, max_nonfinite=3)
    with pytest.raises(
        InputError,
        match=r"not finite .* in rows .*4 such batches are too many.*under another --name, lower --lr \(it is 1e\+30\)",
    ):
        finetune_decoder.run(broken, run_copy, store, progress=notes)
    assert sum("nothing updated" in line for line in notes.lines) == 3
    out = run_copy / "decoders" / "layers-1"
    overflowed = [line for line in metrics(out, "eval") if line["l_w"] is None]
    assert overflowed
    assert sum("l_w" in line and "on held-out rows is not finite" in line for line in notes.lines) == len(overflowed)


# ----------------------------------------------------------------------------------------------------------------------
# Which decoder belongs to which run


def test_a_deferred_token_decoder_is_no_part_of_training_and_sampling_waits_for_finetune_decoder(
    train_config, store, tmp_path
):
    model = replace(train_config.model, token_decoder=replace(train_config.model.token_decoder, mode="deferred"))
    config = replace(train_config, steps=2, model=model)
    run = train.run(config, store, tmp_path / "run")
    assert run.manifest["parameters"]["token_decoder"] == 0
    assert "token_accuracy" not in run.manifest["held_out"]
    weights = load_file(run.path / "checkpoints/step-00000002/model.safetensors")
    assert not any(name.startswith("token_decoder") for name in weights)

    draw = SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), device="cpu")
    with pytest.raises(InputError, match=r"deferred.*run `ldlm finetune-decoder --run .* --features DIR` first"):
        sample.run(draw, run.path, tmp_path / "s.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]

    finetune_decoder.run(FINETUNE, run.path, store)
    assert sample.run(draw, run.path, tmp_path / "s.jsonl")["decoder"] == "layers-1"


def test_a_decoder_of_another_checkpoint_is_not_used(train_config, store, run_copy):
    finetune_decoder.run(FINETUNE, run_copy, store)
    train.run(replace(train_config, steps=10, keep=9), store, run_copy)
    with pytest.raises(InputError, match=r"trained on another checkpoint than step-00000010; run `ldlm finetune"):
        TrainedRun(run_copy, CPU).decoder()
    assert TrainedRun(run_copy, CPU).decoder("joint").name == "joint"
    assert [decoder.usable for decoder in TrainedRun(run_copy, CPU).decoders()] == [True, False]
    # At the checkpoint that it was trained on it is as good as ever.
    assert TrainedRun(run_copy, CPU, "step-00000008").decoder("layers-1").name == "layers-1"
    finetune_decoder.run(replace(FINETUNE, checkpoint="step-00000008", steps=13), run_copy, store)
    with pytest.raises(InputError, match=r"made with other settings \(inputs\.checkpoint: "):
        finetune_decoder.run(FINETUNE, run_copy, store)


@pytest.mark.parametrize("name", ["joint", "a/b", "..", ".hidden"])
def test_a_decoder_needs_a_plain_name(store, run_copy, name):
    with pytest.raises(InputError, match="can't name a decoder"):
        finetune_decoder.run(replace(FINETUNE, name=name), run_copy, store)
    assert not (run_copy / "decoders").exists()


def test_a_finetuning_with_another_setting_is_refused_by_name(store, run_copy):
    finetune_decoder.run(FINETUNE, run_copy, store)
    with pytest.raises(InputError, match=r"sigma_dec: none -> 0\.5"):
        finetune_decoder.run(replace(FINETUNE, sigma_dec=0.5), run_copy, store)


def test_a_store_that_is_not_the_runs_is_refused_before_anything_is_written(
    train_config, extract_config, store, run_copy, tmp_path, other_gpt2
):
    for number, overrides in enumerate(({"layer": -2}, {"encoder": str(other_gpt2)})):
        other = extract_features.run(replace(extract_config, **overrides), tmp_path / str(number)).path
        with pytest.raises(InputError, match=r"made with another encoder.*give the store that the run was trained on"):
            finetune_decoder.run(FINETUNE, run_copy, other)
    fewer = ExtractConfig(**{**vars(extract_config), "validation_docs": 30})
    other = extract_features.run(fewer, tmp_path / "fewer").path
    with pytest.raises(InputError, match="made with another normalisation"):
        finetune_decoder.run(FINETUNE, run_copy, other)
    assert not (run_copy / "decoders").exists()
