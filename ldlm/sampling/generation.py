"""Texts from noise: the reverse process in the latent space, then one pass through a decoder (Section 4.3).

A `TextGenerator` holds everything needed to draw texts. A run (`TrainedRun.generator`) and the model exported from it
(`LDLM.generator`) make generators that draw the same texts.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ldlm import noise
from ldlm.compute import WARM_UPS, Compute, compiled, recorded
from ldlm.config import TEXTS_PER_SEED, AnySampleConfig, ModelConfig, SampleConfig, SamplerConfig
from ldlm.model.denoiser import DiT
from ldlm.model.diffusion import Schedule
from ldlm.model.prefix import Prefix
from ldlm.model.timesteps import TimestepSampler
from ldlm.sampling import prompts, solvers
from ldlm.sampling.prompts import Prompts
from ldlm.sampling.solvers import Denoise, End, Recurrence
from ldlm.sampling.source import Generator, plain_lines
from ldlm.sampling.tokens import draw_tokens
from ldlm.training import cost

Watch = Callable[[Tensor, Tensor], None]  # called with t and ẑ_0 (B, N, C) after each evaluation of the denoiser

JOINT = "joint"  # the name of D_w∘D_h among the decoders
LOGITS_AT_ONCE = 2**27  # elements; bounds the memory of a decoder pass
LARGEST_BATCH = 256  # texts; an interruption loses a batch
MEASURE_SECONDS = 0.1  # at least, for each batch size tried


@dataclass(frozen=True)
class Decoder:
    """A decoder of latents, by name."""

    name: str
    logits: nn.Module  # z_0 (B, N, C) → (B, L, V)
    sha256: str | None = None  # of a fine-tuned decoder's manifest, which exports of earlier versions do not record

    @property
    def record(self) -> dict[str, Any]:
        """Name and hash, for the record of what it decodes and as inputs of artefacts."""
        return {"decoder": self.name, **({} if self.sha256 is None else {"decoder_sha256": self.sha256})}


def conditioning(self_conditioned: bool) -> dict[str, bool]:
    """For records: `self_conditioned` if it is false, which earlier versions did not tell from true."""
    return {} if self_conditioned else {"self_conditioned": False}


@dataclass(frozen=True, eq=False)
class TextGenerator:
    """Draws texts, each a function of its seed alone, not of the batch around it."""

    denoiser: DiT
    decoder: Decoder
    schedule: Schedule
    timesteps: TimestepSampler  # its F(t) defines the `learned` grid
    latent_shape: tuple[int, int]  # (N, C)
    seq_len: int
    vocab_size: int
    compute: Compute
    self_conditioned: bool  # whether the denoiser has learned to read ẑ_prev
    prompts: Prompts | None = None  # that its texts continue
    _lock: Lock = field(default_factory=Lock, repr=False)  # batches share the tensors of `_processes`

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.compute.device

    @property
    def record(self) -> dict[str, Any]:
        """Decoder, conditioning and prompts, for the record of the texts."""
        prompts = {} if self.prompts is None else self.prompts.record
        return {**self.decoder.record, **conditioning(self.self_conditioned), **prompts}

    def figures(self) -> dict[str, Any]:
        """Empty: the cost of a text is known before it is drawn (`drawing_cost`)."""
        return {}

    @torch.no_grad()
    def ends(self, sampler: SamplerConfig, seeds_B: Tensor) -> End:
        """Run the reverse process for the texts of `seeds_B`; returns last state and last estimate, (B, N, C) each."""
        recurrence = self._recurrence(sampler)
        with self._lock:
            process = self._process(recurrence, sampler.guidance, len(seeds_B))
            process.begin(recurrence, sampler.guidance, seeds_B)
            for _ in recurrence.times:
                process.step()
            return End(process.z_BNC.clone(), process.z_hat_BNC.clone())

    @torch.no_grad()
    def watched_ends(self, sampler: SamplerConfig, seeds_B: Tensor, watch: Watch) -> End:
        """Run the reverse process with `solvers.solve`, observed by `watch`; the same as `ends` but for rounding.

        If nothing is compiled, as on a CPU, it is the same bit for bit.
        """
        recurrence = self._recurrence(sampler)
        seeds_B, text_B = seeds_B.to(self.device), torch.zeros_like(seeds_B, device=self.device)
        modulations_EMW = self.modulations(recurrence.times)
        modulations = dict(zip(recurrence.times.tolist(), modulations_EMW.split(1), strict=True))
        guidance = None if sampler.guidance == 1 else sampler.guidance
        found = _guided(self.estimate, guidance, self.prefix(seeds_B), self.prompt_guidance)

        def watched(z_BNC: Tensor, t: Tensor, z_hat_prev_BNC: Tensor) -> Tensor:
            z_hat_BNC = found(z_BNC, modulations[t.item()], z_hat_prev_BNC)
            watch(t, z_hat_BNC)
            return z_hat_BNC

        def eps(row: int) -> Tensor:
            row_1 = torch.tensor([row], device=self.device)
            return self.compute.normal(seeds_B, "sde", row_1, text_B, self.latent_shape)

        return solvers.solve(recurrence, watched, noise.normal(seeds_B, "z_1", 0, text_B, self.latent_shape), eps)

    def modulations(self, times_E: Tensor) -> Tensor:
        """The denoiser's modulations (E, M, W) for these times, computed in float32, in `compute`'s precision."""
        return self.denoiser.modulations(times_E.to(self.device, torch.float32)).to(self.compute.dtype)

    def prefix(self, seeds_B: Tensor) -> Prefix | None:
        """The condition on the prompts of the texts with these seeds, in the precision of `compute`; None without any.

        It is computed in float32, once per text, since it is the same at all times.
        """
        if self.prompts is None:
            return None
        assert self.denoiser.prefix is not None
        made: Prefix = self.denoiser.prefix(*self.prompts.of(seeds_B))
        return Prefix(made.kv_BLMW.to(self.compute.dtype), made.seen_BL)

    def prompted(self, prompts: Prompts) -> TextGenerator:
        """A generator of texts that continue `prompts`, sharing the networks that this one has compiled."""
        made = replace(self, prompts=prompts)
        vars(made).update(estimate=self.estimate, update=self.update)
        return made

    @property
    def prompt_guidance(self) -> Tensor | None:
        """The weight w of guidance by the prompt, on the device; None if it is off."""
        if self.prompts is None or self.prompts.guidance == 1:
            return None
        return torch.tensor(self.prompts.guidance, device=self.device)

    @torch.no_grad()
    def prepare(self, sampler: SamplerConfig, texts: int) -> None:
        """Compile now what `ends` needs for batches of `texts` texts, so that their timing does not include it."""
        with self._lock:
            self._process(self._recurrence(sampler), sampler.guidance, texts)

    def padded(self, seeds_B: Tensor, texts: int) -> Tensor:
        """The seeds of a last batch, padded by the function `padded`."""
        return padded(self.compute, seeds_B, texts)

    def _recurrence(self, sampler: SamplerConfig) -> Recurrence:
        return solvers.solver(sampler)(self.schedule, solvers.grid_of(sampler, self.schedule, self.timesteps))

    def _process(self, recurrence: Recurrence, guidance: float, texts: int) -> ReverseProcess:
        """The reverse process in use, or a new one if its size or its kind does not fit."""
        room = max(WARM_UPS + 1, 1 << (len(recurrence.times) - 1).bit_length())
        key = (room, bool(recurrence.eps.any()), guidance != 1, texts)
        if key not in self._processes:
            self._processes.clear()
            self._processes[key] = ReverseProcess(self, *key)
        return self._processes[key]

    @cached_property
    def _processes(self) -> dict[tuple[int, bool, bool, int], ReverseProcess]:
        return {}

    @cached_property
    def estimate(self) -> Callable[..., Tensor]:
        """`DiT.estimate`, or `DiT.unconditioned`, in the precision of `compute`."""
        exact = self.compute.dtype == torch.float32
        network = self.denoiser if exact else copy.deepcopy(self.denoiser).to(self.compute.dtype)
        return network.estimate if self.self_conditioned else network.unconditioned

    @cached_property
    def update(self) -> Callable[..., None]:
        """`_update`, compiled if `compute` asks for it."""
        return compiled(_update) if self.compute.compiled else _update

    def latents(self, sampler: SamplerConfig, seeds_B: Tensor) -> Tensor:
        """Latents z_0 (B, N, C): the end that `sampler.final` names."""
        return getattr(self.ends(sampler, seeds_B), sampler.final)

    def tokens(self, sampler: SamplerConfig, seeds_B: Tensor) -> Tensor:
        """Token rows (B, L) int64 of the texts with these seeds."""
        return self.decode(self.latents(sampler, seeds_B), seeds_B, sampler.temperature)

    @torch.no_grad()
    def decode(self, z_0_BNC: Tensor, seeds_B: Tensor, temperature: float = 0.0) -> Tensor:
        """Tokens (B, L) of latents, without noise: the most likely, or drawn at a temperature above 0.

        The positions of a prompt get the prompt's own tokens. `InputError` for logits that are not finite.
        """
        size = texts_at_once(self.seq_len, self.vocab_size)
        pieces = zip(z_0_BNC.split(size), seeds_B.to(self.device).split(size), strict=True)
        return torch.cat([self.draw_tokens(self.decoder.logits(z), seeds, temperature) for z, seeds in pieces])

    def draw_tokens(self, logits_BLV: Tensor, seeds_B: Tensor, temperature: float) -> Tensor:
        """Tokens (B, L) from the decoder's logits, after those of the prompts."""
        tokens_BL = draw_tokens(logits_BLV, seeds_B, temperature)
        return tokens_BL if self.prompts is None else self.prompts.put_into(tokens_BL, seeds_B)

    def lines(self, tokenizer: Any, tokens_BL: Tensor, seeds_B: Tensor, clean_up: bool) -> list[dict[str, Any]]:
        """JSON objects of texts; those that continue a prompt also have prompt and continuation separately."""
        write = plain_lines if self.prompts is None else self.prompts.lines
        return write(tokenizer, tokens_BL, seeds_B, clean_up)

    def batch_size(self, most: int) -> int:
        """Batch size at which the denoiser is fastest per text, found by `fastest`."""
        return fastest(self._seconds, most)

    @torch.no_grad()
    def _seconds(self, size: int) -> float:
        """Seconds of one evaluation of a batch, not compiled, since compiling each size would take long."""
        z = torch.zeros(size, *self.latent_shape, device=self.device, dtype=self.compute.dtype)
        return seconds_of(partial(self.estimate, z, z, self.modulations(torch.full((1,), 0.5))))


class ReverseProcess:
    """The reverse process of a batch of texts, in tensors allocated once.

    A step changes them in place and needs nothing from the host, not even its number. So, when compiled for a GPU, it
    is a CUDA graph: one launch in place of hundreds. `room` is the number of rows that the tables can hold.
    """

    def __init__(self, generator: TextGenerator, room: int, noisy: bool, guided: bool, texts: int) -> None:
        self.modulations, self.compute, self.shape = generator.modulations, generator.compute, generator.latent_shape
        self.prefix_of, self.prompt_guidance = generator.prefix, generator.prompt_guidance
        self.estimate, self.update, self.noisy = generator.estimate, generator.update, noisy
        on: Any = {"device": generator.device}
        one_1MW = self.modulations(torch.zeros(1))
        self.z_BNC, self.z_hat_BNC = torch.zeros(texts, *self.shape, **on), torch.zeros(texts, *self.shape, **on)
        self.seeds_B = torch.zeros(texts, dtype=torch.int64, **on)
        self.text_B = torch.zeros_like(self.seeds_B)  # row in the noise's address: a seed has one text, its row 0
        self.guidance = torch.ones((), **on) if guided else None
        self.prefix = self.prefix_of(self.seeds_B)
        self.row_1 = torch.zeros(1, dtype=torch.int64, **on)  # the table row that the next step takes
        self.coefficients_E4 = torch.zeros(room, 4, **on)
        self.modulations_EMW = one_1MW.new_zeros(room, *one_1MW.shape[1:])
        self._replay = recorded(self._step, generator.device) if self.compute.compiled else None

    def begin(self, recurrence: Recurrence, guidance: float, seeds_B: Tensor) -> None:
        """Start from the noise of texts with these seeds; the tables are computed here, once, in float32."""
        self.seeds_B.copy_(seeds_B)
        self.z_BNC.copy_(noise.normal(self.seeds_B, "z_1", 0, self.text_B, self.shape))
        self.z_hat_BNC.zero_()
        self.row_1.zero_()
        if self.prefix is not None:
            for mine, new in zip(self.prefix, self.prefix_of(self.seeds_B) or (), strict=True):
                mine.copy_(new)
        if self.guidance is not None:
            self.guidance.fill_(guidance)
        rows = len(recurrence.times)
        self.coefficients_E4[:rows].copy_(recurrence.coefficients)
        self.modulations_EMW[:rows].copy_(self.modulations(recurrence.times))

    def step(self) -> None:
        """Take one row of the recurrence, as `solvers.solve` does."""
        if self._replay is None:
            self._step()
        else:
            self._replay()

    def _step(self) -> None:
        eps_BNC = None
        if self.noisy:
            eps_BNC = self.compute.normal(self.seeds_B, "sde", self.row_1, self.text_B, self.shape)
        modulations_1MW = self.modulations_EMW.index_select(0, self.row_1)
        coefficients_14 = self.coefficients_E4.index_select(0, self.row_1)
        guides = (self.guidance, self.prefix, self.prompt_guidance)
        self.update(self.estimate, self.z_BNC, self.z_hat_BNC, modulations_1MW, coefficients_14, eps_BNC, *guides)
        self.row_1.add_(1)


def _update(
    estimate: Callable[..., Tensor],
    z_BNC: Tensor,
    z_hat_BNC: Tensor,
    modulations_1MW: Tensor,
    coefficients_14: Tensor,
    eps_BNC: Tensor | None,
    guidance: Tensor | None,
    prefix: Prefix | None,
    prompt_guidance: Tensor | None,
) -> None:
    """Replace state and estimate with those after a row; both are float32, whatever the network computes in."""

    found_BNC = _guided(estimate, guidance, prefix, prompt_guidance)(z_BNC, modulations_1MW, z_hat_BNC)
    z_BNC.copy_(solvers.advance(coefficients_14[0].unbind(), z_BNC, found_BNC, z_hat_BNC, eps_BNC))
    z_hat_BNC.copy_(found_BNC)


def _guided(
    estimate: Callable[..., Tensor],
    guidance: float | Tensor | None,
    prefix: Prefix | None,
    prompt_guidance: float | Tensor | None,
) -> Denoise:
    """The network as a solver calls it, with modulations in place of a time; guidance None means no guidance."""
    denoise: Denoise = partial(_estimate, estimate)
    if prefix is not None:
        seeing: Denoise = partial(_estimate, estimate, prefix=prefix)
        denoise = seeing if prompt_guidance is None else solvers.prompted(seeing, denoise, prompt_guidance)
    return denoise if guidance is None else solvers.guided(denoise, guidance)


def _estimate(
    estimate: Callable[..., Tensor],
    z_BNC: Tensor,
    modulations_1MW: Tensor,
    z_hat_prev_BNC: Tensor,
    prefix: Prefix | None = None,
) -> Tensor:
    """ẑ_0 (B, N, C) in the dtype of z, from a network that computes in the dtype of its modulations."""
    dtype = modulations_1MW.dtype
    return estimate(z_BNC.to(dtype), z_hat_prev_BNC.to(dtype), modulations_1MW, prefix).to(z_BNC.dtype)


def texts_at_once(seq_len: int, vocab_size: int) -> int:
    """Number of texts whose logits fit in memory together."""
    return max(1, LOGITS_AT_ONCE // (seq_len * vocab_size))


def text_seeds(seed: int, start: int, stop: int) -> Tensor:
    """Seeds (stop − start,) int64 of texts start … stop−1 of `seed`; no two values of `seed` share one."""
    return seed * TEXTS_PER_SEED + torch.arange(start, stop)


def batches(generator: Generator, config: AnySampleConfig, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw the texts of a configuration from number `done` on: seeds (B,) and tokens (B, L) in batches, on the CPU."""
    wanted = text_seeds(config.seed, done, config.num_samples)
    if not len(wanted):
        return
    size = min(config.batch_size or generator.batch_size(min(len(wanted), LARGEST_BATCH)), len(wanted))
    for seeds_B in wanted.split(size):
        yield seeds_B, generator.tokens(config.sampler, generator.padded(seeds_B, size))[: len(seeds_B)].cpu()


def padded(compute: Compute, seeds_B: Tensor, texts: int) -> Tensor:
    """Pad the seeds of a last batch to `texts`: recompiling for a smaller batch costs more than the extra texts."""
    missing = texts - len(seeds_B) if compute.compiled else 0
    return torch.cat([seeds_B, seeds_B[-1:].expand(missing)])


def fastest(seconds: Callable[[int], float], most: int) -> int:
    """Batch size at which an evaluation is fastest per text, measured: a power of 2 up to `most`.

    It doubles as long as that gains at least 5 % and fits the device's memory.
    """
    best, rate, size = 1, 0.0, 1
    while size <= max(1, most):
        try:
            found = size / seconds(size)
        except torch.OutOfMemoryError:
            break
        if found < 1.05 * rate:
            break
        best, rate, size = size, found, 2 * size
    return best


def seconds_of(evaluate: Callable[[], Tensor]) -> float:
    """Seconds of an evaluation, the fastest of several: the slowest of ten takes twice as long."""
    began, seconds = time.perf_counter(), list[float]()
    while len(seconds) < 3 or time.perf_counter() - began < MEASURE_SECONDS:
        started = time.perf_counter()
        evaluate().sum().item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def drawing_cost(config: SampleConfig, model: ModelConfig, source: prompts.Continues) -> dict[str, Any]:
    """Evaluations of the denoiser that settings of `ldlm sample` take, and their FLOPs, as JSON.

    The evaluations see the prompt, except the extra ones of prompt guidance; the prompt's keys and values are computed
    once per text. Neither the frozen encoder's one pass over a prompt nor the decoder's over a text is included.
    """
    texts, shapes, prompt = prompts.texts_in_all(config), source.shapes, prompts.longest(config, source)
    seeing = texts * config.sampler.steps * solvers.evaluations_per_step(config.sampler)
    blind = seeing if config.prompting.prompt_guidance != 1 else 0
    flops = seeing * cost.denoiser_flops(model, shapes, prompt) + blind * cost.denoiser_flops(model, shapes)
    flops += texts * cost.prefix_flops(model, shapes, prompt)
    return {"denoiser_evaluations": seeing + blind, "flops": flops}
