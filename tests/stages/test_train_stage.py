"""Training as a stage: an interrupted run against an uninterrupted one bit for bit, and what it refuses."""

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
import yaml
from folders import metrics
from safetensors.torch import load_file

from ldlm import config as configs
from ldlm.config import DistillConfig, FinetuneConfig, SampleConfig, SamplerConfig, Shapes, TrainConfig
from ldlm.errors import InputError
from ldlm.features.store import FeatureStore
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import distill, extract_features, finetune_decoder, sample, train
from ldlm.training import checkpoint
from ldlm.training.log import MetricsFile
from ldlm.training.output import shuffle_rows

CPU = torch.device("cpu")
SEQ_LEN = 16


def final(run, step=8):
    """Every byte of a checkpoint: weights, average, optimiser, timestep sampler."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def record(run):
    """The manifest without its timing."""
    return {k: v for k, v in json.loads((run / "manifest.json").read_text()).items() if k not in ("seconds", "digest")}


def changed(config, **overrides):
    """`config` with nested overrides."""
    return configs.from_dict(TrainConfig, configs.merge(configs.to_dict(config), overrides))


def test_a_run_holds_what_others_rely_on(trained, train_config, store):
    assert {p.name for p in trained.iterdir()} >= {"config.yaml", "metrics.jsonl", "checkpoints", "tokenizer"}
    assert [p.name for p in sorted((trained / "checkpoints").iterdir())] == ["step-00000006", "step-00000008"]
    assert set(final(trained)) == {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    weights, average = (load_file(trained / f"checkpoints/step-00000008/{n}.safetensors") for n in ("model", "ema"))
    assert weights.keys() == average.keys()
    assert {name.split(".")[0] for name in weights} == {
        "latent_encoder",
        "latent_decoder",
        "denoiser",
        "token_decoder",
    }
    run = TrainedRun(trained, CPU)
    assert run.config == replace(train_config, plots=True, shuffle_rows=403)  # all rows of the store
    assert run.shapes == Shapes(seq_len=16, hidden_dim=16, vocab_size=320)
    # Later stages never see the store's statistics again.
    statistics = load_file(trained / "statistics.safetensors")
    assert {name: tuple(vector.shape) for name, vector in statistics.items()} == {"mean": (16,), "std": (16,)}


def test_later_stages_use_the_averaged_weights(trained):
    folder = trained / "checkpoints" / "step-00000008"
    weights, average = (load_file(folder / f"{name}.safetensors") for name in ("model", "ema"))
    loaded = TrainedRun(trained, CPU).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in average.items())
    assert not all(torch.equal(weights[name], tensor) for name, tensor in average.items())


def test_the_metrics_tell_every_step_and_every_evaluation_once(trained):
    found = metrics(trained)
    assert [line["step"] for line in found if line["kind"] == "train"] == list(range(1, 9))
    assert [line["step"] for line in found if line["kind"] == "eval"] == [4, 8]
    assert {"loss", "l_diff", "l_h", "l_w", "gamma", "lr", "latent_std"} <= set(found[0])
    assert {"l_diff", "l_diff_mean", "l_h", "token_accuracy", "timestep_p"} <= set(found[-1])
    gammas = [line["gamma"] for line in found if line["kind"] == "train"]
    assert gammas[0] == 0
    assert gammas[4:] == [1.0] * 4  # warm-up over 4 steps


def test_the_metrics_tell_the_speed_between_their_lines(train_config, store, tmp_path, monkeypatch):
    from ldlm.training import speed

    monkeypatch.setattr(speed, "SETTLED", 0.0)
    started = time.perf_counter()
    run = train.run(replace(train_config, log_every=4), store, tmp_path / "run").path
    took = time.perf_counter() - started
    first, *later = (line["timing"] for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == "train")
    tokens = train_config.batch_size * SEQ_LEN
    for timing in [first, *later]:
        assert timing["tokens_per_second"] == pytest.approx(timing["rows_per_second"] * SEQ_LEN, rel=0.01)
        assert timing["tokens_per_second"] > tokens / took
        assert 0 <= timing["data_wait"] <= 1
        assert 0 < timing["flops_utilisation"] < 1


def test_training_lowers_the_loss_and_the_adaptive_sampler_has_moved(trained):
    losses = [line["l_w"] for line in metrics(trained) if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    p = metrics(trained)[-1]["timestep_p"]
    assert sum(p) == pytest.approx(1)
    assert len(set(p)) > 1


# Reports are one a step. Checkpoints stand at 3 and 6, evaluations at 4 and 8: before any checkpoint, between an
# evaluation and the next checkpoint, and in the last step.
@pytest.mark.parametrize("at", [0, pytest.param(4, marks=pytest.mark.slow), 7])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    trained, train_config, store, tmp_path, interrupted, at
):
    with pytest.raises(KeyboardInterrupt):
        train.run(train_config, store, tmp_path / "run", progress=interrupted(at=at))
    assert not (tmp_path / "run" / "manifest.json").exists()
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert (saved.step if saved else 0) == at // 3 * 3
    rest = interrupted()
    train.run(train_config, store, tmp_path / "run", progress=rest)
    assert rest.reports == 8 - at // 3 * 3  # it went on from the checkpoint
    assert final(tmp_path / "run") == final(trained)
    assert metrics(tmp_path / "run") == metrics(trained)
    assert record(tmp_path / "run") == record(trained)


def test_a_run_interrupted_again_and_again_ends_like_an_uninterrupted_one(
    trained, train_config, store, tmp_path, interrupted
):
    config = replace(train_config, save_every=1)  # how often it saves is no part of what it computes
    attempts = 0
    for _ in range(20):
        attempts += 1
        try:
            train.run(config, store, tmp_path / "run", progress=interrupted(at=1))
            break
        except KeyboardInterrupt:
            pass
    assert attempts > 6
    mine, theirs = final(tmp_path / "run"), final(trained)
    assert mine == theirs
    assert metrics(tmp_path / "run") == metrics(trained)


def test_a_run_of_muon_goes_on_bit_for_bit_and_is_another_run_than_one_of_adamw(
    trained, train_config, store, tmp_path, interrupted
):
    config = changed(train_config, optimizer={"kind": "muon"})
    train.run(config, store, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.run(config, store, tmp_path / "run", progress=interrupted(at=4))
    train.run(config, store, tmp_path / "run")
    assert final(tmp_path / "run") == final(tmp_path / "whole") != final(trained)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(trained, train_config, store, tmp_path, interrupted):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train.run(train_config, store, out, progress=interrupted(at=7))
    newest = out / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    rest = interrupted()
    train.run(train_config, store, out, progress=rest)
    assert rest.reports == 8 - 3
    assert final(out) == final(trained)
    assert metrics(out) == metrics(trained)


def test_a_complete_run_is_left_alone(trained, train_config, store, notes):
    before = {path: path.stat().st_mtime_ns for path in (trained / "checkpoints").rglob("*")}
    metrics = (trained / "metrics.jsonl").read_bytes()
    assert train.run(train_config, store, trained, progress=notes).complete
    assert notes.lines == [f"{trained} is complete at step 8; nothing to do"]
    assert notes.begun == []
    assert {path: path.stat().st_mtime_ns for path in (trained / "checkpoints").rglob("*")} == before
    assert (trained / "metrics.jsonl").read_bytes() == metrics


def test_more_steps_go_on_as_if_they_had_been_asked_for_at_once(train_config, store, run_copy, tmp_path, interrupted):
    longer = replace(train_config, steps=10)
    rest = interrupted()
    train.run(longer, store, run_copy, progress=rest)
    assert rest.reports == 2
    train.run(longer, store, tmp_path / "at once")
    assert final(run_copy, 10) == final(tmp_path / "at once", 10)
    assert metrics(run_copy) == metrics(tmp_path / "at once")
    assert record(run_copy) == record(tmp_path / "at once")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"recipe": {"sigma_dec": 2.0}}, "recipe.sigma_dec: 1.0 -> 2.0"),
        ({"batch_size": 4}, "batch_size: 8 -> 4"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"optimizer": {"kind": "muon"}}, "optimizer.kind: adamw -> muon"),
        ({"model": {"denoiser": {"layers": 2}}}, "model.denoiser.layers: 1 -> 2"),
    ],
)
def test_a_changed_setting_is_refused_by_name(train_config, store, run_copy, overrides, named):
    before = final(run_copy)
    with pytest.raises(InputError) as error:
        train.run(changed(train_config, **overrides), store, run_copy)
    assert named in str(error.value)
    assert str(error.value).count("->") == 1
    assert final(run_copy) == before


def test_a_run_keeps_its_shuffle_window(train_config, store, tmp_path, interrupted):
    """It is recorded when the run begins; what has none is of a version in which all had 512 rows."""
    config = changed(train_config, steps=2, shuffle_rows=32)
    begun = changed(config, shuffle_rows=None)
    with pytest.raises(KeyboardInterrupt):
        train.run(config, store, tmp_path / "run", progress=interrupted(at=0))
    with pytest.raises(InputError, match=r"made with other settings \(shuffle_rows: 32 -> 64\)"):
        train.run(changed(config, shuffle_rows=64), store, tmp_path / "run")
    train.run(begun, store, tmp_path / "run")
    train.run(config, store, tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    train.run(begun, store, tmp_path / "other")
    assert metrics(tmp_path / "other") != metrics(tmp_path / "run")

    split, out = FeatureStore(store).split("train"), tmp_path / "run"
    written = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(written.replace("shuffle_rows: 32\n", ""))
    for settings, overwrite, expected in ((begun, False, 512), (begun, True, 403), (config, False, 32)):
        assert shuffle_rows(settings, out, split, 8, overwrite=overwrite) == expected
    assert train.run(begun, store, out).complete


def test_a_run_of_the_second_edition_goes_on_with_the_positions_that_it_began_with(
    train_config, store, tmp_path, interrupted, notes
):
    assert configs.from_dict(TrainConfig, {"recipe": {"edition": 2}}).model.denoiser.positions == "normal"
    second = changed(train_config, recipe={"edition": 2}, model={"denoiser": {"positions": "normal"}})
    train.run(second, store, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.run(second, store, tmp_path / "run", progress=interrupted(at=1))  # before its first checkpoint
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del settings["model"]["denoiser"]["positions"]  # which that edition did not know
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    for _ in range(2):
        assert train.run(train_config, store, tmp_path / "run", progress=notes).complete
    assert "its settings keep their meaning (recipe.edition=2)" in notes.lines[0]
    assert final(tmp_path / "run") == final(tmp_path / "whole")


def test_a_run_of_preset_tiny_goes_on_with_the_positions_that_the_preset_had(
    train_config, store, tmp_path, interrupted, notes
):
    third = changed(train_config, recipe={"edition": 3})
    train.run(third, store, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.run(third, store, tmp_path / "run", progress=interrupted(at=1))
    positions = configs.preset("tiny").overrides["model"]["denoiser"]["positions"]
    today = changed(train_config, model={"denoiser": {"positions": positions}})
    assert train.run(today, store, tmp_path / "run", progress=notes).complete
    assert "(recipe.edition=3), and its denoiser its positions (sincos)" in notes.lines[0]
    other = changed(train_config, model={"denoiser": {"positions": "normal"}})
    with pytest.raises(InputError, match=r"model\.denoiser\.positions: sincos -> normal"):
        train.run(other, store, tmp_path / "run")
    assert final(tmp_path / "run") == final(tmp_path / "whole")


def test_what_only_reports_may_change(train_config, store, run_copy):
    assert train.run(replace(train_config, log_every=5, keep=1, device="cpu"), store, run_copy).complete


def test_another_store_is_refused(train_config, extract_config, run_copy, tmp_path):
    other = extract_features.run(replace(extract_config, layer=-2), tmp_path / "other").path
    with pytest.raises(InputError, match=r"inputs\.features"):
        train.run(train_config, other, run_copy)


def test_the_steps_of_a_decaying_learning_rate_can_not_change_on_the_way(train_config, store, tmp_path, interrupted):
    config = changed(train_config, optimizer={"lr_decay": "cosine"})
    with pytest.raises(KeyboardInterrupt):
        train.run(config, store, tmp_path / "run", progress=interrupted(at=1))
    for _ in range(2):  # one that was interrupted, and one that is finished
        for steps in (7, 9):
            message = f"begun for 8 steps, over which optimizer.lr_decay=cosine .* can't continue to {steps}; give"
            with pytest.raises(InputError, match=message):
                train.run(replace(config, steps=steps), store, tmp_path / "run")
        assert train.run(config, store, tmp_path / "run").complete
    assert train.run(replace(config, steps=9), store, tmp_path / "run", overwrite=True).manifest["step"] == 9


def test_a_finished_run_goes_on_to_more_steps_wherever_it_is_killed_and_is_never_taken_for_the_longer_one(
    train_config, store, run_copy, trained, tmp_path, interrupted, notes
):
    longer = replace(train_config, steps=12)
    train.run(longer, store, tmp_path / "at once")
    for at in (0, 2):
        with pytest.raises(KeyboardInterrupt):
            train.run(longer, store, run_copy, progress=interrupted(at=at))
        assert not (run_copy / "manifest.json").exists()
    train.run(longer, store, run_copy)
    assert final(run_copy, 12) == final(tmp_path / "at once", 12)
    before = record(run_copy)
    assert train.run(train_config, store, run_copy, progress=notes).manifest["step"] == 12
    assert notes.lines[-1] == f"{run_copy} is complete at step 12, and 8 are asked for; nothing to do"
    assert record(run_copy) == before


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line_and_leaves_its_checkpoints_whole(
    train_config, store, tmp_path, trained
):
    """Weight decay times learning rate beyond 2 makes the weights grow without bound."""
    explosive = changed(
        train_config, steps=60, save_every=1, eval_every=1000, optimizer={"lr": 3e4, "lr_warmup_steps": 0}
    )
    with pytest.raises(
        InputError, match=r"step \d+: the (loss|gradient) is not finite .* in rows .*lower optimizer\.lr"
    ):
        train.run(explosive, store, tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()
    saved = checkpoint.all_in(tmp_path / "run" / "checkpoints")
    assert saved
    for found in saved:
        assert found.fault() is None
        assert all(tensor.isfinite().all() for tensor in found.tensors("model").values())
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # no NaN, which is no JSON


def test_evaluations_on_training_rows_are_said_to_be(train_config, extract_config, tmp_path, notes, interrupted):
    config = replace(extract_config, validation_docs=0)
    store = extract_features.run(config, tmp_path / "features").path
    train.run(replace(train_config, steps=1), store, tmp_path / "run", progress=notes)
    assert notes.lines == [f"{store} has no held-out rows, so evaluations are on training rows"]


@pytest.mark.parametrize("stage", ["finetune-decoder", "distill"])
def test_students_and_decoders_say_of_the_features_what_a_run_does(
    extract_config, train_config, tmp_path, notes, stage
):
    """Notes on a store that is not sealed and has no held-out rows, and on a run of which nothing was saved."""
    store = extract_features.run(replace(extract_config, validation_docs=0), tmp_path / "features").path
    (store / "manifest.json").unlink()
    run, given = tmp_path / "run", {"allow_partial": True, "progress": notes}
    train.run(replace(train_config, steps=1), store, run, **given)
    of_features = list(notes.lines)
    assert [line.partition(":")[0] for line in of_features] == [
        f"{store} is not sealed",
        f"{store} has no held-out rows, so evaluations are on training rows",
    ]

    def follow():
        notes.lines.clear()
        short = {"steps": 1, "eval_rows": 4, "batch_size": 8, "device": "cpu"}
        if stage == "distill":
            return distill.run(DistillConfig(evaluations=1, start=2, **short), run, store, tmp_path / "2", **given).path
        return finetune_decoder.run(FinetuneConfig(layers=0, **short), run, store, **given).path

    made = follow()
    assert [line for line in notes.lines if line in of_features] == of_features
    (made / "manifest.json").unlink()
    shutil.rmtree(made / "checkpoints")
    follow()
    assert f"{made} was begun and has no checkpoint yet; starting from step 0" in notes.lines


def test_a_run_does_not_overwrite_the_store_that_it_reads(train_config, store, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(store, out / "features")
    train.run(replace(train_config, steps=2), store, out / "other")
    (out / "artifact.json").write_bytes((out / "other" / "artifact.json").read_bytes())
    with pytest.raises(InputError, match=r"--overwrite would delete .*features, which is to be read"):
        train.run(train_config, out / "features", out, overwrite=True)
    assert (out / "features" / "manifest.json").exists()


def test_seeds_give_different_runs(train_config, store, tmp_path, interrupted):
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        with pytest.raises(KeyboardInterrupt):
            train.run(
                replace(train_config, seed=seed, save_every=1), store, tmp_path / name, progress=interrupted(at=1)
            )
    assert final(tmp_path / "a", 1) == final(tmp_path / "b", 1)
    assert final(tmp_path / "a", 1)["model.safetensors"] != final(tmp_path / "c", 1)["model.safetensors"]


def test_training_and_all_after_it_do_without_the_encoder(train_config, extract_config, gpt2, tmp_path):
    folder = shutil.copytree(gpt2, tmp_path / "encoder")
    store = extract_features.run(replace(extract_config, encoder=str(folder)), tmp_path / "features").path
    shutil.rmtree(folder)
    run = train.run(replace(train_config, steps=2), store, tmp_path / "run").path
    finetune_decoder.run(FinetuneConfig(layers=0, steps=2, device="cpu"), run, store)
    shutil.rmtree(store)  # and sampling needs no store
    draw = SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), device="cpu")
    sample.run(draw, run, tmp_path / "s.jsonl")
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 2


def test_noise_on_an_estimate_that_is_never_made_is_refused(train_config, store, tmp_path):
    settings = {"diffusion": {"self_conditioning": 0.0, "self_conditioning_noise": 0.5}}
    config = configs.from_dict(TrainConfig, configs.merge(configs.to_dict(train_config), settings))
    with pytest.raises(InputError, match=r"self_conditioning_noise=0\.5 changes nothing with .*; leave one of the two"):
        train.run(config, store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_embeddings_are_learned_from_scratch_where_the_store_has_tokens_only(
    train_config, extract_config, tmp_path, interrupted
):
    config = replace(extract_config, kind="scratch")
    store = extract_features.run(config, tmp_path / "features").path
    short = changed(train_config, steps=4, save_every=1, keep=9, recipe={"reconstruction": "ce"})
    with pytest.raises(KeyboardInterrupt):
        train.run(short, store, tmp_path / "run", progress=interrupted(at=2))
    with pytest.raises(InputError, match=r"learn by cross-entropy alone; add --set recipe\.reconstruction=ce"):
        train.run(changed(short, recipe={"reconstruction": "mse"}), store, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    run = train.run(short, store, tmp_path / "run").path
    first, last = (load_file(run / f"checkpoints/step-0000000{i}/model.safetensors") for i in (1, 4))
    assert last["embedding.weight"].shape == (320, 16)
    assert not torch.equal(first["embedding.weight"], last["embedding.weight"])
    finetune_decoder.run(FinetuneConfig(layers=1, steps=2, device="cpu"), run, store)
