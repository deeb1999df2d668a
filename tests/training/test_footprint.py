"""Memory of a training step: the estimate against what torch's allocators report of a real one."""

import re
from dataclasses import replace

import allocator
import pytest
import torch

from ldlm.config import Shapes, TrainConfig, from_dict
from ldlm.errors import InputError
from ldlm.features.batch import Batch
from ldlm.features.store import FeatureStore
from ldlm.model.joint import build_meta
from ldlm.stages import train
from ldlm.training import checkpoint
from ldlm.training.fit import RESERVE, capacity, fitted, largest
from ldlm.training.footprint import footprint
from ldlm.training.joint import start, train_step
from ldlm.training.joint_method import JointTraining

CPU = torch.device("cpu")


def case(width, length, *, vocabulary=1_000, rows=4, layers=2, num_latents=None, **changes):
    """A configuration, and its sizes."""
    heads = width // 64
    sizes = {"width": width, "heads": heads}
    model = {
        "autoencoder": {"layers": layers, "num_latents": num_latents, **sizes},
        "denoiser": {"layers": 2 * layers, **sizes},
        "token_decoder": {"layers": 1, "heads": heads},
    }
    config = from_dict(TrainConfig, {"batch_size": rows, "model": model, "device": "cpu", **changes})
    return config, Shapes(seq_len=length, hidden_dim=width, vocab_size=vocabulary)


def two_steps(config, shapes, device, scratch=False):
    """The second has the optimiser's moments from its beginning."""
    state, rows = start(config, shapes, scratch=scratch, device=device), config.batch_size
    for _ in range(2):
        hidden_BLD = None if scratch else torch.zeros(rows, shapes.seq_len, shapes.hidden_dim, device=device)
        tokens_BL = torch.zeros(rows, shapes.seq_len, dtype=torch.int64, device=device)
        train_step(state, Batch(hidden_BLD, tokens_BL, torch.arange(rows), 0))


def estimated(config, shapes, device="cpu"):
    found = footprint(config, shapes, bf16=config.compute.precision == "bf16", device=device)
    return found.memory(config.batch_size // config.accumulate, config.batch_size, batches=1).total


SHAPES = {
    "256": case(256, 128),
    "256, more rows than weights, recomputed": case(256, 96, rows=8, recompute=True),
    "256, in micro-batches": case(256, 64, rows=8, accumulate=4),
    "256, bf16, half as many latents": case(256, 128, rows=16, num_latents=64, compute={"precision": "bf16"}),
    "384": case(384, 128, vocabulary=8_000, layers=3, rows=8),
    "512": case(512, 256, vocabulary=16_000, rows=6),
    "768": case(768, 512, vocabulary=50_257, rows=4),
    "768, recomputed": case(768, 1_024, vocabulary=50_257, layers=3, rows=2, recompute=True),
}
QUICK = 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i >= QUICK)) for i, name in enumerate(SHAPES)]
)
def test_the_estimate_is_what_the_profiler_sees(name, tmp_path):
    config, shapes = SHAPES[name]
    seen = allocator.peak(lambda: two_steps(config, shapes, CPU), tmp_path)
    assert estimated(config, shapes) == pytest.approx(seen, rel=0.1)


def test_embeddings_from_scratch_count_and_states_that_are_not_there_do_not(tmp_path):
    config, shapes = case(256, 96, vocabulary=8_000, recipe={"reconstruction": "ce"})
    seen = allocator.peak(lambda: two_steps(config, shapes, CPU, scratch=True), tmp_path)
    found = footprint(config, shapes, bf16=False, device="cpu", scratch=True).memory(4, 4, batches=1)
    assert found.total == pytest.approx(seen, rel=0.1)
    with_states, without = (train.plan(config, shapes, features=kind) for kind in ("hidden", "scratch"))
    assert without["parameters"] == {**with_states["parameters"], "embedding": 8_000 * 256}
    assert without["weight_bytes"] == 4 * 4 * sum(without["parameters"].values()) == found.weights
    assert without["batch_bytes"] == 4 * 4 * 96 * 8  # four batches of tokens alone


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_estimate_is_what_the_gpus_allocator_counts(precision, recompute):
    changes = {"recompute": recompute, "compute": {"precision": precision, "compile": "off"}}
    config, shapes = case(768, 1_024, vocabulary=50_257, layers=3, rows=8, **changes, device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    two_steps(config, shapes, torch.device("cuda"))
    seen = torch.cuda.max_memory_allocated() - before
    assert estimated(config, shapes, "cuda") == pytest.approx(seen, rel=0.1)


@pytest.fixture(scope="module")
def small():
    """A configuration of 64 rows, its sizes, and its memory with and without recomputation."""
    config, shapes = case(64, 32, vocabulary=300, rows=64, layers=1)
    return config, shapes, [footprint(replace(config, recompute=r), shapes, bf16=True, device="cuda") for r in (0, 1)]


def test_weights_and_batches_are_those_that_stay_on_the_device(small):
    """float32 weights, AdamW's two moments and the average; two batches ahead, one that is read and the step's."""
    config, shapes, (found, _) = small
    memory = found.memory(rows=8, share=32, devices=2)
    assert memory.weights == 4 * 4 * sum(p.numel() for p in build_meta(config.model, shapes).parameters())
    assert memory.batches == 4 * 32 * 32 * (4 * 64 + 8)  # rows of 32 tokens with 64 float32 numbers and an int64 each
    assert memory.total == memory.weights + memory.batches + memory.step


def test_the_largest_micro_batch_fits_and_the_next_that_divides_the_share_does_not(small):
    _, _, (found, _) = small
    for share, rows, named in ((64, 1, 1), (64, 7, 4), (64, 40, 32), (60, 29, 20), (60, 45, 30), (61, 40, 1)):
        size = f"{found.memory(rows, share).total / (1 - RESERVE) / 1e9 + 1e-9:.9f}GB"
        assert largest(found, size, share, 1) == named
    whole = f"{found.memory(64, 64).total / (1 - RESERVE) / 1e9 + 1e-9:.9f}GB"
    assert largest(found, whole, 64, 1) == 64  # at once they keep no gradients, and need no more than 63 would
    assert largest(found, "0.001GB", 64, 1) == 0


def test_fit_recomputes_only_where_nothing_else_fits_and_takes_the_fewest_micro_batches(small):
    config, shapes, (kept, recomputed) = small

    def chosen(limit):
        found, flags = fitted(
            JointTraining(config), shapes, f"{limit / (1 - RESERVE) / 1e9:.9f}GB", devices=2, bf16=True, device="cuda"
        )
        accumulate, recompute = found.config.accumulate, found.config.recompute
        assert flags == f"--accumulate {accumulate} --recompute {str(recompute).lower()}"
        return accumulate, recompute

    def total(found, rows):
        return found.memory(rows, 32, devices=2).total + 2

    assert chosen(total(kept, 32)) == (1, False)
    assert chosen(total(kept, 16)) == (2, False)
    assert chosen(total(kept, 1)) == (32, False)
    assert total(recomputed, 1) < total(kept, 1)
    between = total(kept, 1) - 1000
    accumulate, recompute = chosen(between)
    assert recompute
    assert total(recomputed, 32 // accumulate) <= between
    assert accumulate == 1 or total(recomputed, 64 // accumulate) > between
    with pytest.raises(InputError, match=r"--fit 0\.001GB: .* needs .* and may use 878\.9 KiB; use "):
        fitted(JointTraining(config), shapes, "0.001GB", devices=2, bf16=True, device="cuda")


def test_sizes_are_read_with_their_unit():
    assert capacity("80GB") == 80 * 10**9
    assert capacity("79.5 GiB") == 79.5 * 2**30
    for wrong in ("80", "GB", "0GB", "80MB", "-1GB"):
        with pytest.raises(InputError, match=rf"--fit '{re.escape(wrong)}' is not an amount of memory; write it like"):
            capacity(wrong)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_dry_run_names_the_size_of_a_checkpoint(train_config, store, tmp_path, kind):
    config = replace(train_config, steps=2, optimizer=replace(train_config.optimizer, kind=kind))
    saved = checkpoint.latest(train.run(config, store, tmp_path / "run").path / "checkpoints")
    held = [saved.tensors(name) for name in ("model", "ema", "optimizer")]
    steps = sum(tensor.nbytes for name, tensor in held[2].items() if name.startswith("step/"))  # a number for each
    size = sum(tensor.nbytes for tensors in held for tensor in tensors.values()) - steps
    assert train.plan(config, FeatureStore(store).shapes)["checkpoint_bytes"] == size
    assert sum(path.stat().st_size for path in saved.path.iterdir()) < 1.5 * size  # so small a one has a long index


def test_a_dry_run_takes_the_length_of_its_rows_and_the_devices_without_a_store(ldlm, succeed, refuse):
    long = ("train", "--preset", "tiny", "--seq-len", 4096, "--dry-run")
    plan = succeed(*long, "--devices", 4, "--fit", "40GB")
    assert plan["devices"] == 4
    assert plan["device"] == "cuda"
    assert plan["flags"] == f"--accumulate {plan['accumulate']} --recompute {str(plan['recompute']).lower()}"
    assert plan["memory_bytes"] == plan["weight_bytes"] + plan["batch_bytes"] + plan["step_bytes"]
    assert plan["memory_bytes"] <= 0.9 * 40e9
    assert plan["rows_at_once"] <= plan["largest_rows_at_once"]["40GB"] <= plan["largest_rows_at_once"]["80GB"]
    assert "need an encoder with as many positions" in ldlm(*long).stderr
    assert "--fit chooses accumulate" in refuse(*long, "--fit", "40GB", "--accumulate", 2)
    assert "--devices is for --dry-run" in refuse(*long[:-1], "--devices", 2)


def test_training_takes_what_fits(succeed, store, tiny_yaml, tmp_path):
    succeed(
        "train", "--features", store, "--config", tiny_yaml, "--fit", "40GB", "--set", "steps=1", "--set",
        "accumulate=4", "--output", tmp_path / "run",
    )  # fmt: skip
    assert "accumulate: 1\n" in (tmp_path / "run" / "config.yaml").read_text()
