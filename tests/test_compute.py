"""Precision, attention kernels and compilation: what may change, and what may not."""

from __future__ import annotations

import dataclasses
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldlm import compute, noise
from ldlm.attention import use_attention
from ldlm.baselines import learner
from ldlm.baselines.backbone import Dropout
from ldlm.baselines.registry import training_method
from ldlm.compute import Compute
from ldlm.config import ComputeConfig, DuoCurriculumConfig, FinetuneConfig, SampleConfig, SamplerConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.features.store import FeatureStore
from ldlm.features.stream import Stream
from ldlm.runtime import ALONE
from ldlm.sampling import generation, solvers
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import finetune_decoder, sample, train
from ldlm.training import heldout
from ldlm.training.joint import start, train_step
from ldlm.training.log import MetricsFile

CPU = torch.device("cpu")
TRAININGS = [
    ("ldlm", None),
    ("mdlm", None),
    ("duo", "top-k"),
    ("duo", "full"),
    ("duo", "discrete"),
    ("duo", "none"),
    ("candi", None),
    ("flm", None),
]


@pytest.fixture
def training(train_config, token_config):
    """Settings of a training by method, with a curriculum over all of its steps where one is named."""

    def of(method, curriculum):
        if method == "ldlm":
            return train_config
        config = token_config(method)
        if curriculum is None:
            return config
        return replace(config, curriculum=DuoCurriculumConfig(kind=curriculum, share=1.0))

    return of


def test_without_a_gpu_auto_is_float32_torch_s_attention_and_nothing_compiled():
    found = Compute.of(ComputeConfig(), CPU)
    assert (found.dtype, found.compiled) == (torch.float32, False)
    assert use_attention("auto", CPU) == "sdpa"
    with found.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_xformers_is_refused_on_a_cpu_before_it_can_fail_in_a_step():
    with pytest.raises(InputError, match=r"--attention xformers has no kernels for cpu; use --attention sdpa, or auto"):
        Compute.of(ComputeConfig(attention="xformers"), CPU)


def run_with(train_config: TrainConfig, store, out, **settings: str):
    config = dataclasses.replace(train_config, compute=ComputeConfig(**settings), log_every=1)
    return train.run(config, store, out).path


def losses(run) -> dict[str, list[float]]:
    lines = [line for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == "train"]
    return {name: [line[name] for line in lines] for name in ("l_diff", "l_h", "l_w")}


def test_bf16_training_follows_float32_and_keeps_float32_weights(train_config, store, tmp_path):
    exact, rounded = (
        run_with(train_config, store, tmp_path / "a"),
        run_with(train_config, store, tmp_path / "b", precision="bf16"),
    )
    for name, values in losses(exact).items():
        assert losses(rounded)[name] == pytest.approx(values, rel=0.03)
        assert losses(rounded)[name] != values
    run = TrainedRun(rounded, CPU)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_losses_and_latents_stay_float32_under_bf16(train_config, store, tmp_path):
    config = dataclasses.replace(train_config, compute=ComputeConfig(precision="bf16"))
    opened = FeatureStore(store)
    state = start(config, opened.shapes, scratch=False, device=CPU)
    seen = {}
    state.model.denoiser.register_forward_hook(lambda module, args, out: seen.update(z_t=args[0].dtype, out=out.dtype))
    stream = Stream(opened.split("train"), batch_size=config.batch_size, seed=0, device=CPU)
    with stream:
        step = train_step(state, next(iter(stream)))
    assert seen == {"z_t": torch.float32, "out": torch.bfloat16}
    (found,) = step.losses
    assert {value.dtype for value in (found.loss, found.l_diff, found.l_h, found.l_w)} == {torch.float32}


def test_another_precision_is_another_run_and_another_kernel_is_not(train_config, store, tmp_path):
    run_with(train_config, store, tmp_path / "run")
    run_with(train_config, store, tmp_path / "run", attention="sdpa", compile="off")  # complete, nothing to do
    with pytest.raises(InputError, match="precision: auto -> bf16"):
        run_with(train_config, store, tmp_path / "run", precision="bf16")


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("solver", ["euler-maruyama", "heun", "dpm++2m-sde"])
def test_a_generator_follows_the_solver_with_the_network_as_it_is_trained(trained, solver, guidance):
    """The network is called with a time for each row; the generator works the times out once, and steps in place."""
    generator, seeds = TrainedRun(trained, CPU).generator(), torch.tensor([3, 2**40 + 1, 7])
    sampler = SamplerConfig(steps=5, solver=solver, guidance=guidance)
    times = solvers.grid_of(sampler, generator.schedule, generator.timesteps)

    def network(z, t, last):
        return generator.denoiser(z, t.float().expand(len(z)), last)

    def normal(purpose, row):
        return noise.normal(seeds, purpose, row, torch.zeros_like(seeds), generator.latent_shape)

    expected = solvers.solve(
        solvers.solver(sampler)(generator.schedule, times),
        network if guidance == 1 else solvers.guided(network, guidance),
        normal("z_1", 0),
        lambda row: normal("sde", row),
    )
    for _ in range(2):  # the second time in the tensors of the first
        torch.testing.assert_close(generator.ends(sampler, seeds), expected, rtol=1e-4, atol=1e-5)

    seen = []
    watched = generator.watched_ends(sampler, seeds, lambda t, z_hat: seen.append((t, z_hat)))
    assert all(torch.equal(*pair) for pair in zip(watched, generator.ends(sampler, seeds), strict=True))
    assert torch.equal(seen[-1][1], watched.x0)
    assert [t.item() for t, _ in seen] == solvers.solver(sampler)(generator.schedule, times).times.tolist()


@pytest.fixture
def as_compiled(monkeypatch):
    """Everything that compilation brings with it but the compiler, which takes minutes."""
    for module in (compute, generation):
        monkeypatch.setattr(module, "compiled", lambda function, **options: function)
    return Compute(CPU, compiled=True)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("solver", ["heun", "dpm++2m-sde"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_steps_in_which_a_graph_is_compiled_leave_no_trace(trained, as_compiled, steps, solver, guidance):
    sampler, seeds = SamplerConfig(steps=steps, solver=solver, guidance=guidance), torch.tensor([3, 9])
    run = TrainedRun(trained, CPU)
    generator, expected = run.generator(compute=as_compiled), run.generator().ends(sampler, seeds)
    for _ in range(2):
        torch.testing.assert_close(generator.ends(sampler, seeds), expected, rtol=0, atol=0)
    generator.prepare(sampler, 2)
    torch.testing.assert_close(generator.ends(sampler, seeds), expected, rtol=0, atol=0)


def test_what_is_recorded_serves_all_batches_of_a_size_and_grids_of_about_a_length(trained, as_compiled, monkeypatch):
    """The last batch is filled up, and what fills it is nowhere to be seen."""
    run, sizes, make = TrainedRun(trained, CPU), [], generation.ReverseProcess
    plain, generator = run.generator(), run.generator(compute=as_compiled)
    configs = [SampleConfig(num_samples=5, batch_size=2, sampler=SamplerConfig(steps=steps)) for steps in (5, 8)]
    expected = [plain.tokens(config.sampler, generation.text_seeds(0, 0, 5)) for config in configs]
    monkeypatch.setattr(generation, "ReverseProcess", lambda *given: sizes.append(given[-1]) or make(*given))
    for config, tokens in zip(configs, expected, strict=True):
        found = list(generation.batches(generator, config))
        assert [len(seeds) for seeds, _ in found] == [len(drawn) for _, drawn in found] == [2, 2, 1]
        assert torch.equal(torch.cat([drawn for _, drawn in found]), tokens)
        assert sizes == [2]
    few = SampleConfig(num_samples=3, batch_size=256, sampler=SamplerConfig(steps=2))
    assert [len(drawn) for _, drawn in generation.batches(generator, few)] == [3]
    assert sizes == [2, 3]


def test_threads_may_share_a_generator(trained):
    generator, sampler = TrainedRun(trained, CPU).generator(), SamplerConfig(steps=4)
    seeds = [torch.arange(i, i + 3) for i in range(0, 40, 10)]
    expected = [generator.latents(sampler, one) for one in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        for _ in range(5):
            for found, latents in zip(pool.map(partial(generator.latents, sampler), seeds), expected, strict=True):
                assert torch.equal(found, latents)


def test_what_was_drawn_stays_when_more_is_drawn(trained):
    generator, sampler = TrainedRun(trained, CPU).generator(), SamplerConfig(steps=3)
    first = generator.latents(sampler, torch.arange(2))
    kept, seen = first.clone(), []
    generator.ends(sampler, torch.arange(5, 7))
    generator.watched_ends(sampler, torch.arange(5, 7), lambda t, z_hat: seen.append(z_hat))
    assert torch.equal(first, kept)
    assert not torch.equal(seen[0], seen[1])


def test_a_step_takes_no_new_tensor_for_the_state(trained):
    """Which a graph would not see: it works in the memory in which it was recorded."""
    generator, sampler = TrainedRun(trained, CPU).generator(), SamplerConfig(steps=3)
    places = set()
    for seeds in (torch.arange(2), torch.arange(7, 9)):
        generator.ends(sampler, seeds)
        (process,) = generator._processes.values()
        places.add(tuple(t.data_ptr() for t in vars(process).values() if isinstance(t, torch.Tensor)))
    assert len(places) == 1


def test_sampling_in_bf16_keeps_the_state_in_float32_and_the_weights_of_the_run(trained):
    run = TrainedRun(trained, CPU)
    exact = run.generator()
    rounded = run.generator(compute=Compute.of(ComputeConfig(precision="bf16"), CPU))
    seeds, sampler = torch.arange(4), SamplerConfig(steps=8)
    a, b = exact.latents(sampler, seeds), rounded.latents(sampler, seeds)
    assert (a.dtype, b.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(a, b)
    assert (a - b).norm() / a.norm() < 0.02
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_auto_is_not_taken_up_where_it_means_another_precision(train_config, store, run_copy, tmp_path, monkeypatch):
    """As on a machine with a GPU, after one without."""
    finetune, drawn = FinetuneConfig(layers=0, steps=2, batch_size=8, eval_rows=8), tmp_path / "s.jsonl"
    sampling = SampleConfig(num_samples=2, sampler=SamplerConfig(steps=2), decoder="joint")
    finetune_decoder.run(finetune, run_copy, store)
    sample.run(sampling, run_copy, drawn)
    monkeypatch.setattr(compute, "precision_on", lambda precision, device: "bf16")
    for again in (
        lambda: train.run(train_config, store, run_copy),
        lambda: finetune_decoder.run(finetune, run_copy, store),
        lambda: sample.run(sampling, run_copy, drawn),
    ):
        with pytest.raises(InputError, match=r"precision: fp32 -> bf16"):
            again()


@pytest.mark.slow
def test_compiled_noise_is_the_same_whatever_the_step_and_compiled_once():
    torch._dynamo.reset()
    compiled, rows = Compute(CPU, compiled=True).normal, torch.tensor([0, 2**33])
    for step in (0, 5, 2**31):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            found = compiled(11, "eps", torch.tensor(step), rows, (30, 33))
        torch.testing.assert_close(found, noise.normal(11, "eps", step, rows, (30, 33)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_sampling_gives_the_same_latents_and_compiles_once(trained):
    run = TrainedRun(trained, CPU)
    plain, compiled = run.generator(), run.generator(compute=Compute.of(ComputeConfig(compile="on"), CPU))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    seeds, sampler = torch.arange(4), SamplerConfig(steps=8)
    expected = plain.latents(sampler, seeds)
    torch.testing.assert_close(compiled.latents(sampler, seeds), expected, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2  # the step and its noise
    assert not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled.latents(replace(sampler, steps=9), seeds + 5)
    for guidance in (1.5, 2.0):
        guided = replace(sampler, guidance=guidance)
        torch.testing.assert_close(compiled.latents(guided, seeds), plain.latents(guided, seeds), rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 3  # with guidance, whatever its strength


@pytest.mark.slow
def test_more_shapes_than_torch_compiles_by_itself_are_compiled():
    torch._dynamo.reset()
    double = compute.compiled(lambda x: 2 * x)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for size in range(1, 20):
            assert double(torch.ones(size)).sum() == 2 * size


@pytest.mark.gpu
def test_a_cuda_graph_does_what_the_function_does():
    device = torch.device("cuda")
    network, x, count = (
        torch.nn.Linear(8, 8).to(device),
        torch.zeros(3, 8, device=device),
        torch.zeros((), device=device),
    )

    def work() -> None:
        x.copy_(network(x))
        count.add_(1)

    with torch.no_grad():
        replay = compute.recorded(work, device)
        assert replay is not None
        x.fill_(1.0)
        count.zero_()
        replay()
        replay()
        expected = network(network(torch.ones(3, 8, device=device)))
    torch.testing.assert_close(x, expected)
    assert count.item() == 2


@pytest.mark.gpu
def test_what_is_fetched_is_what_was_there_when_it_was_asked_for():
    x = torch.randn(2**22, device="cuda")
    expected = x.cpu()
    arrive = compute.fetch(x.clone())  # whose memory is free again before the copy has begun
    for _ in range(10):
        torch.empty_like(x).zero_()
    torch.testing.assert_close(arrive(), expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [7, torch.tensor([2**40 + 3, 5])])
def test_compiled_noise_on_a_gpu_is_the_noise_of_the_cpu(seed):
    """Of more elements than 16 bits number, times constants that 31 bits don't hold."""
    cuda, rows, shape = torch.device("cuda"), torch.tensor([0, 2**33]), (300, 999)
    there = Compute(cuda, compiled=True).normal(
        seed if isinstance(seed, int) else seed.to(cuda), "eps", torch.tensor(3, device=cuda), rows.to(cuda), shape
    )
    torch.testing.assert_close(there.cpu(), noise.normal(seed, "eps", 3, rows, shape), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # which a compiled float32 product may say
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_sampling_on_a_gpu_gives_the_latents_of_the_cpu(trained, precision, tolerance, compile):
    """Every batch size and solver is a graph of its own; a grid of another length, or another batch, takes the same."""
    cuda = torch.device("cuda")
    config = ComputeConfig(precision=precision, compile=compile)
    there = TrainedRun(trained, cuda).generator(compute=Compute.of(config, cuda))
    here = TrainedRun(trained, CPU).generator()
    for count, settings in [
        (4, {}),
        (7, {}),
        (7, {"steps": 1}),
        (7, {"steps": 7}),
        (7, {"solver": "heun"}),
        (7, {"guidance": 1.5}),
    ]:
        sampler = SamplerConfig(**{"steps": 8, **settings})
        for seeds in (torch.arange(count), torch.arange(count) + 2**40):
            expected = here.latents(sampler, seeds)
            error = (there.latents(sampler, seeds).cpu() - expected).square().mean().sqrt()
            assert error < tolerance * expected.std()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's about its own tracing
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize(("method", "curriculum"), TRAININGS)
def test_a_step_on_a_gpu_waits_for_nothing(training, store, method, curriculum, compile):
    cuda, found = torch.device("cuda"), FeatureStore(store)
    config = replace(training(method, curriculum), compute=ComputeConfig(precision="bf16", compile=compile))
    chosen = training_method(config)
    state = chosen.start(found, device=cuda, world=ALONE)
    with Stream(chosen.rows(found)[0], batch_size=config.batch_size, seed=0, device=cuda) as stream:
        batches = [batch for batch, _ in zip(stream, range(7), strict=False)]
    coins = [noise.coin(config.seed, "self_condition", step, 0.5) for step in range(7)]
    assert set(coins[:5]) == set(coins[5:]) == {False, True}  # both kinds of steps are compiled, and both are watched
    for batch in batches[:5]:
        chosen.step(state, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [chosen.step(state, batch) for batch in batches[5:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(step.gradient_norm.isfinite() for step in steps)


class Waits(TorchDispatchMode):
    """Counts what would wait for a device: numbers that the host reads, and shapes that depend on numbers."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.READS:
            self.found.append("".join(traceback.format_stack(limit=12)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "curriculum"), TRAININGS[1:])
def test_losses_and_gradients_of_a_rival_are_made_without_the_host(training, store, method, curriculum):
    """The second step: the first fills tables."""
    config, found = training(method, curriculum), FeatureStore(store)
    state = learner.start(config, found.shapes, device=CPU)
    rows_B, tokens_BL = torch.arange(8), torch.arange(8 * found.shapes.seq_len).reshape(8, -1) % found.shapes.vocab_size
    for step in (0, 1):
        with Waits() as waits:
            draws = state.objective.method.draw(seed=0, step=step, rows_B=rows_B, batch=8, seq_len=found.shapes.seq_len)
            state.objective(tokens_BL, draws, Dropout(0, torch.tensor([step]), rows_B)).mean.backward()
    assert waits.found == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's about its own tracing
@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_the_same_losses_without_breaks_or_recompilations(
    train_config, store, tmp_path, recompute
):
    """Both branches of self-conditioning are compiled within the first steps."""
    config = dataclasses.replace(train_config, recompute=recompute)
    plain = run_with(config, store, tmp_path / "plain")
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = run_with(config, store, tmp_path / "compiled", compile="on")
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    for name, values in losses(plain).items():
        assert losses(compiled)[name] == pytest.approx(values, rel=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_steps_and_the_first_evaluation(train_config, store):
    config = dataclasses.replace(train_config, compute=ComputeConfig(compile="on"))
    opened = FeatureStore(store)
    torch._dynamo.reset()
    state = start(config, opened.shapes, scratch=False, device=CPU)
    split, rows = opened.split("train"), config.batch_size
    stream = Stream(split, batch_size=rows, seed=0, device=CPU)
    evaluate = partial(heldout.evaluate, state.objective, split, rows=2 * rows, batch_size=rows, device=CPU)

    def steps(count: int) -> set[bool]:
        taken = set()
        for _ in range(count):
            taken.add(noise.coin(config.seed, "self_condition", state.step, config.diffusion.self_conditioning))
            train_step(state, next(batches))
        return taken

    with stream:
        batches = iter(stream)
        assert steps(6) == {False, True}
        evaluate()
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert steps(6) == {False, True}
            evaluate()
