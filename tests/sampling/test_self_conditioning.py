"""A run trained without self-conditioning: what reads ẑ_prev has learned nothing, and is given zeros everywhere."""

from dataclasses import replace

import pytest
import torch

from ldlm import LDLM, files
from ldlm.config import DistillConfig, SamplerConfig
from ldlm.features.store import FeatureStore
from ldlm.model.objective import JointObjective
from ldlm.runtime import ALONE
from ldlm.sampling.likelihood import RunBound
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import distill, train
from ldlm.training import heldout

CPU, SEEDS = torch.device("cpu"), torch.arange(3)
SAMPLERS = {
    "default": SamplerConfig(steps=4),
    "heun": SamplerConfig(steps=4, solver="heun"),
    "papers": SamplerConfig(steps=4, solver="euler-maruyama", grid="time"),
}


@pytest.fixture(scope="module")
def made(train_config, store, tmp_path_factory):
    """The run; read only."""
    config = replace(train_config, diffusion=replace(train_config.diffusion, self_conditioning=0.0))
    return train.run(config, store, tmp_path_factory.mktemp("plain") / "run").path


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def sampled(run, store):
    return [run.generator().latents(sampler, SEEDS) for sampler in SAMPLERS.values()]


def watched(run, store):
    seen = []
    run.generator().watched_ends(SAMPLERS["default"], SEEDS, lambda t, z_hat_BNC: seen.append(z_hat_BNC))
    return seen


def held_out(run, store):
    split = FeatureStore(store).split("validation")
    objective = JointObjective(run.model, run.config)
    found = heldout.evaluate(objective, split, rows=10, batch_size=5, device=CPU)
    return [torch.tensor(found.l_diff)]


def bounded(run, store):
    z_BNC = normal(4, *run.model.latent_shape)
    return [RunBound(run, run.decoder()).estimate(z_BNC, torch.full((4,), 0.5))]


def distilled(run, store):
    config = DistillConfig(evaluations=2, start=8, steps=6, plots=False, device="cpu")
    state = distill._start(distill.settings(config, run), run, CPU, ALONE)
    z_BNC = normal(4, *run.model.latent_shape)
    taught = [state.lesson(one, None, z_BNC, z_BNC, torch.tensor([1, 1, 0, 1]), None) for one in state.rounds]
    return [*(one.x_tilde for one in taught), *(state.student(one, None, None) for one in taught)]


@pytest.mark.parametrize("of", [sampled, watched, held_out, bounded, distilled], ids=lambda of: of.__name__)
def test_what_reads_the_previous_estimate_matters_only_where_it_has_learned(trained, made, store, of):
    for path, matters in ((trained, True), (made, False)):
        run = TrainedRun(path, CPU)
        before = [one.clone() for one in of(run, store)]
        run.model.denoiser.project_in.weight.detach()[:, run.model.latent_dim :] *= 2
        changed = [not one.equal(other) for one, other in zip(before, of(run, store), strict=True)]
        assert any(changed) if matters else not any(changed)


def test_guidance_by_it_is_refused_and_its_export_draws_the_same(made, store, gpt2, refuse, ldlm, succeed, tmp_path):
    model = tmp_path / "model"
    succeed("export", "--run", made, "--output", model)
    texts = succeed("sample", "--run", made, "--num-samples", 3, "--device", "cpu")["texts"]
    assert LDLM.from_pretrained(model).sample(3) == [one["text"] for one in texts]
    said = "which this model was trained without (diffusion.self_conditioning=0); leave --guidance at 1"
    for command in (
        ("sample", "--run", made, "--guidance", 1.5),
        ("sample", "--run", model, "--guidance", 1.5),
        ("sample", "--run", made, "--trace", tmp_path / "trace", "--guidance", 1.5),
        ("export", "--run", made, "--output", tmp_path / "other", "--set", "sampler.guidance=1.5"),
        ("distill", "--run", made, "--features", store, "--output", tmp_path / "run-4", "--guidance", 1.5),
    ):
        assert said in refuse(*command)
    sweep = ("sweep", "--run", made, "--scorer", gpt2, "--budgets", 4, "--texts", 2, "--screen-texts", 2)
    sweep += ("--solvers", "ddim", "--grids", "learned", "--device", "cpu")
    assert said in refuse(*sweep, "--guidances", 2, "--output", tmp_path / "none")
    done = ldlm(*sweep, "--output", tmp_path / "sweep")
    assert done.exit_code == 0
    assert "--guidances 1 alone" in done.stderr
    planned = [succeed(*sweep, "--guidances", 1, *two, "--dry-run")["trajectories"] for two in ((), (2,))]
    assert planned[0] == planned[1]


@pytest.mark.parametrize("command", ["sample", "trace", "sweep"])
def test_what_an_earlier_version_began_with_it_is_not_continued(made, gpt2, succeed, refuse, tmp_path, command):
    """Its texts followed another law; nothing else in its record says so."""
    out = tmp_path / "out"
    sweep = ("sweep", "--run", made, "--scorer", gpt2, "--budgets", 4, "--texts", 2, "--screen-texts", 2)
    sweep += ("--solvers", "ddim", "--grids", "learned", "--guidances", 1, "--output", out)
    commands = {
        "sample": ("sample", "--run", made, "--num-samples", 2, "--output", out),
        "trace": ("sample", "--run", made, "--trace", out),
        "sweep": sweep,
    }
    line = (*commands[command], "--device", "cpu")
    succeed(*line)
    record = out.with_name("out.meta.json") if command == "sample" else out / "artifact.json"
    found = files.read_json(record)
    del (found if command == "sample" else found["inputs"])["self_conditioned"]
    files.write_json(record, found)
    assert "self_conditioned" in refuse(*line)
