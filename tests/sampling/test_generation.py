"""`TextGenerator`: its times, and what it does not decode."""

from dataclasses import replace

import pytest
import torch

from ldlm.config import SamplerConfig
from ldlm.errors import InputError
from ldlm.sampling.trained_run import TrainedRun

SEEDS = torch.arange(3)


@pytest.fixture(scope="module")
def run(trained):
    return TrainedRun(trained, torch.device("cpu"))


@pytest.mark.parametrize("t_min", [0.01, 0.5])
def test_times_below_the_smallest_of_training_are_apart(run, t_min):
    """The learned grid is that of F(t), which knows no smallest time."""
    later, sampler = run.timesteps, SamplerConfig(steps=64, grid="learned")
    later.t_min = t_min
    found = replace(run.generator(), timesteps=later).latents(sampler, SEEDS)
    assert found.isfinite().all()
    assert found.equal(run.generator().latents(sampler, SEEDS))


@pytest.mark.parametrize(
    "settings, remedy",
    [({"t_min": 1e-9, "grid": "log-snr"}, "take a larger --t-min"), ({"temperature": 1e-40}, "take a --temperature")],
)
def test_logits_that_are_not_finite_are_no_texts(run, settings, remedy):
    with pytest.raises(InputError, match=remedy):
        run.generator().tokens(SamplerConfig(steps=4, **settings), SEEDS)
