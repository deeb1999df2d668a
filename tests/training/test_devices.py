"""A training on either kind of device: after a stop as without one, and in a process group as outside it."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from patience import patience
from torch.nn.parallel import DistributedDataParallel

from ldlm.config import ComputeConfig
from ldlm.features.store import FeatureStore
from ldlm.features.stream import Stream
from ldlm.stages import train
from ldlm.training.joint import start as begin
from ldlm.training.joint import train_step
from ldlm.training.log import MetricsFile

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # as `runtime.world` has them
PLAIN = ComputeConfig(precision="fp32", attention="sdpa", compile="off")
ONE = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")


def assert_same_losses(run: Path, other: Path) -> None:
    """To what sums of another order may change: a GPU's are not always in the same."""
    mine, theirs = (MetricsFile(path / "metrics.jsonl").read() for path in (run, other))
    assert [(line["kind"], line["step"]) for line in mine] == [(line["kind"], line["step"]) for line in theirs]
    for one, two in zip(mine, theirs, strict=True):
        for name in ("l_diff", "l_h", "l_w"):
            assert one[name] == pytest.approx(two[name], rel=1e-3), (one["step"], name)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(train_config, store, tmp_path, interrupted, device):
    config = replace(train_config, device=device, compute=PLAIN)
    whole = train.run(config, store, tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        train.run(config, store, tmp_path / "stopped", progress=interrupted(at=5))
    assert_same_losses(train.run(config, store, tmp_path / "stopped").path, whole)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_through_data_parallelism_of_one_process_is_the_step(train_config, store, monkeypatch, device):
    """Of two micro-batches, whose gradients are exchanged once."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    launched = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    config = replace(train_config, accumulate=2, device=device, compute=PLAIN)
    there, opened = torch.device(device), FeatureStore(store)
    with Stream(opened.split("train"), batch_size=config.batch_size, seed=0, device=there) as stream:
        batches = [batch for batch, _ in zip(stream, range(3), strict=False)]

    def weights(parallel: bool) -> dict[str, torch.Tensor]:
        state = begin(config, opened.shapes, scratch=False, device=there)
        state.enter_phase()
        if parallel:
            state.parallel = DistributedDataParallel(state.objective, gradient_as_bucket_view=True)
        steps = [train_step(state, batch) for batch in batches]
        assert all(state.read_step(step) for step in steps)
        return {name: value.cpu().clone() for name, value in state.model.state_dict().items()}

    dist.init_process_group(BACKENDS[device])
    try:
        found, expected = weights(True), weights(False)
    finally:
        dist.destroy_process_group()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu  # two processes on CPUs: test_parallel.py
def test_a_process_under_torchrun_trains_on_its_gpu(start, train_config, store, tiny_yaml, tmp_path):
    config = replace(train_config, device="cuda", compute=PLAIN)
    alone = train.run(config, store, tmp_path / "alone").path
    same = ("--precision", "fp32", "--attention", "sdpa", "--compile", "off", "--device", "cuda")
    command = ["train", "--features", str(store), "--config", str(tiny_yaml), *same]
    process = start(command, tmp_path / "run", launcher=ONE, stderr=subprocess.PIPE)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 0, error
    assert_same_losses(tmp_path / "run", alone)
