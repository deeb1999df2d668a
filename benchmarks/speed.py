"""Every stage as a share of what the machine can do, compared with a plain implementation and with a rival.

Plain means eager float32 with attention written out (einsum, softmax, einsum), what depends only on the time computed
at each evaluation, all logits at once, and the frozen encoder inside the training step. The rival is a denoiser of the
same size that reads token embeddings and projects to the vocabulary at every evaluation, as discrete diffusion does
(SPEC 12.9); it is compiled if ours is. Weights are random, which does not affect speed.

Needs only torch, numpy, scipy, safetensors, transformers and click; extraction and streaming also need zarr.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import Share, limits, peak_memory, settled, timed
from benchmarks.parts import part
from ldlm import attention, config, files, noise, runtime
from ldlm.cli import show
from ldlm.compute import Compute
from ldlm.config import ComputeConfig, DenoiserConfig, ModelConfig, SamplerConfig, Shapes, TrainConfig
from ldlm.features.batch import Batch
from ldlm.model import autoencoder, layers, token_loss
from ldlm.model.denoiser import DiT
from ldlm.model.diffusion import Schedule
from ldlm.model.joint import JointModel, build, build_meta
from ldlm.model.timesteps import TimestepSampler
from ldlm.sampling import solvers
from ldlm.sampling.generation import JOINT, Decoder, TextGenerator, text_seeds
from ldlm.training import cost
from ldlm.training.joint import TrainState, start, train_step

WARM, STEPS = 8, 16  # training steps, the same for all; those with self-conditioning evaluate the denoiser twice
PRECISIONS = ("fp32", "bf16")
PLAIN = ComputeConfig(precision="fp32", attention="sdpa", compile="off")


@dataclass(frozen=True)
class Scale:
    """Sizes that suit a machine."""

    preset: str
    texts: int  # drawn at a time
    steps: int  # of the sampler, timed from noise to latents, for the last way
    fewer_steps: int  # for the other ways
    rows: int  # of a training step
    encoder_layers: int  # of the frozen encoder, up to its third-to-last
    stored: int  # approximate number of rows of text to extract
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 2.0  # of each measurement


SCALES = {
    "cuda": Scale("owt-1024", texts=16, steps=1024, fewer_steps=8, rows=8, encoder_layers=10, stored=2048),
    "cpu": Scale(
        "tiny",
        texts=32,
        steps=16,
        fewer_steps=16,
        rows=32,
        encoder_layers=2,
        stored=4096,
        lengths=(128, 512, 1024, 2048, 4096),
    ),
}


def run(folder: Path) -> dict[str, Any]:
    """Measure everything; return the figures by name."""
    device = runtime.device("auto")
    bench = bench_of(device)
    found, cache = limits(device), part("cache")
    sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "sampling": lambda: list(bench.sampling()),
        "training": lambda: list(bench.training()),
        "stages": lambda: [bench.decoding(), *([] if isinstance(cache, str) else cache.rows(bench, folder))],
        "rival": bench.rival,
        "attention_growth": bench.attention_growth,
        "growth": bench.growth,
    }
    figures: dict[str, Any] = {}
    for name, measure in sections.items():
        figures[name] = measure()
        found = found.best(limits(device))
    return {
        "device": device.type,
        "preset": bench.scale.preset,
        "attention": attention.use_attention("auto", device),
        "limits": {"flops": found.flops, "copy_bytes": found.copy, "read_bytes": found.read},
        "without": cache if isinstance(cache, str) else None,
        "rows": settled([*figures.pop("sampling"), *figures.pop("training"), *figures.pop("stages")], found),
        **settled(figures, found),
    }


def bench_of(device: torch.device, name: str | None = None) -> Bench:
    """The measurements that suit the device, with the preset of that name if one is given."""
    scale = SCALES[device.type]
    preset = config.preset(name or scale.preset)
    settings = replace(config.from_dict(TrainConfig, preset.overrides), batch_size=scale.rows, accumulate=1)
    return Bench(device, scale, settings, preset.shapes)


@dataclass(frozen=True)
class Bench:
    """The measurements of one preset on one machine."""

    device: torch.device
    scale: Scale
    settings: TrainConfig
    shapes: Shapes

    def ways(self) -> dict[str, ComputeConfig]:
        """The compared ways to compute; compiled ones for bf16 on a GPU, or on a CPU if there is a C++ compiler."""
        cuda, ways = self.device.type == "cuda", {}
        for precision, compile in product(PRECISIONS, ("off", "on")):
            if compile == "off" or (precision == "bf16" if cuda else shutil.which("c++")):
                name = precision if compile == "off" else f"{precision}, compiled"
                ways[name] = ComputeConfig(precision=precision, attention="auto", compile=compile)  # type: ignore[arg-type]
        return ways

    # ------------------------------------------------------------------------------------------------------------------
    # Sampling

    def sampling(self) -> Iterator[dict[str, Any]]:
        """From noise to latents."""
        model = build(self.settings.model, self.shapes, seed=0).to(self.device).eval().requires_grad_(False)
        seeds, ways, few = text_seeds(0, 0, self.scale.texts), self.ways(), self.scale.fewer_steps
        one_step = self.scale.texts * cost.denoiser_flops(self.settings.model, self.shapes)
        for name, way in ways.items():
            # Plain and ours in turns: the speed of a machine with other work varies.
            with plain_attention():
                plain = self.seconds(lambda: self._plain_latents(model, SamplerConfig(steps=few), seeds)) / few
            steps = self.scale.steps if name == list(ways)[-1] else few
            generator, sampler = self.generator(model, way), SamplerConfig(steps=steps)
            yield self._timed(
                f"sampling, {steps} steps, {name}",
                lambda generator=generator, sampler=sampler: generator.latents(sampler, seeds),  # type: ignore[misc]
                tokens=self.scale.texts * self.shapes.seq_len,
                flops=steps * one_step,
                way=way,
                plain=steps * plain,
            )

    def generator(self, model: JointModel, way: ComputeConfig) -> TextGenerator:
        """A generator of texts by the joint decoder."""
        return TextGenerator(
            denoiser=model.denoiser,
            decoder=Decoder(JOINT, model.decoder()),
            schedule=Schedule.of(self.settings.diffusion),
            timesteps=TimestepSampler(self.settings.timesteps, self.settings.diffusion.t_min),
            latent_shape=(model.num_latents, model.latent_dim),
            seq_len=self.shapes.seq_len,
            vocab_size=self.shapes.vocab_size,
            compute=Compute.of(way, self.device),
            self_conditioned=self.settings.diffusion.self_conditioned,
        )

    @torch.no_grad()
    def _plain_latents(self, model: JointModel, sampler: SamplerConfig, seeds_B: Tensor) -> Tensor:
        """Latents by the network as it is in training, one step of the recurrence after the other."""
        generator, shape = self.generator(model, PLAIN), (model.num_latents, model.latent_dim)
        seeds_B = seeds_B.to(self.device)
        row_B = torch.zeros_like(seeds_B)
        times = solvers.grid_of(sampler, generator.schedule, generator.timesteps)
        end = solvers.solve(
            solvers.solver(sampler)(generator.schedule, times),
            lambda z, t, z_hat_prev: model.denoiser(z, t.to(z.device, torch.float32).expand(len(z)), z_hat_prev),
            noise.normal(seeds_B, "z_1", 0, row_B, shape),
            lambda row: noise.normal(seeds_B, "sde", row, row_B, shape),
        )
        return getattr(end, sampler.final)

    # ------------------------------------------------------------------------------------------------------------------
    # Training and decoding

    def training(self) -> Iterator[dict[str, Any]]:
        """One optimiser step, on stored states (cached) or on states that the frozen encoder makes first (online)."""
        tokens = self.scale.rows * self.shapes.seq_len
        kinds = self.coins()
        flops = tokens * self.step_flops_per_token(kinds)
        batch, encoder = self.batch(), self._encoder()
        for name, way in self.ways().items():
            for kind, online in (("cached", None), ("online", encoder)):
                with plain_attention(), mock.patch.dict(token_loss.CHUNK, {self.device.type: 2**62}):
                    plain = self.seconds(self.step(PLAIN, batch, encoder), kinds)
                yield self._timed(
                    f"training, {kind}, {name}",
                    self.step(way, batch, online),
                    tokens=tokens,
                    flops=flops,
                    way=way,
                    plain=plain,
                    kinds=kinds,
                )

    def coins(self) -> list[bool]:
        """Which of the timed steps are self-conditioned."""
        seed, p = self.settings.seed, self.settings.diffusion.self_conditioning
        return [noise.coin(seed, "self_condition", step, p) for step in range(WARM, WARM + STEPS)]

    def step_flops_per_token(self, kinds: Sequence[bool]) -> int:
        """Mean FLOPs per token over steps, each self-conditioned or not as in `kinds`."""
        fallen = replace(self.settings.diffusion, self_conditioning=statistics.mean(kinds))
        return cost.flops_per_token(replace(self.settings, diffusion=fallen), self.shapes)

    def state(self, way: ComputeConfig) -> TrainState:
        """A training at its first step."""
        torch._dynamo.reset()  # otherwise its recompilation limit is reached, and later ways stay uncompiled
        return start(replace(self.settings, compute=way), self.shapes, scratch=False, device=self.device)

    def step(self, way: ComputeConfig, batch: Batch, encoder: Callable[[Tensor], Tensor] | None) -> Callable[[], Any]:
        """A training step on a batch, whose states are stored or made by the encoder first."""
        state = self.state(way)

        def step() -> None:
            with state.compute.autocast():
                states = batch.hidden_BLD if encoder is None else encoder(batch.tokens_BL).float()
            train_step(state, batch._replace(hidden_BLD=states))

        return step

    def batch(self, rows: int | None = None) -> Batch:
        """Random states and tokens."""
        rows = rows or self.scale.rows
        shape = (rows, self.shapes.seq_len)
        return Batch(
            torch.randn(*shape, self.shapes.hidden_dim, device=self.device),
            torch.randint(self.shapes.vocab_size, shape, device=self.device),
            torch.arange(rows),
            0,
        )

    def _encoder(self) -> Callable[[Tensor], Tensor]:
        """A random GPT-2 with the states' width, as deep as the used part of the frozen encoder."""
        from transformers import GPT2Config, GPT2Model

        sizes = GPT2Config(
            vocab_size=self.shapes.vocab_size,
            n_positions=self.shapes.seq_len,
            n_embd=self.shapes.hidden_dim,
            n_layer=self.scale.encoder_layers,
            n_head=self.settings.model.token_decoder.heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        network: nn.Module = GPT2Model(sizes).eval().requires_grad_(False)
        network.to(self.device)
        return lambda tokens_BL: network(input_ids=tokens_BL).last_hidden_state

    def decoding(self) -> dict[str, Any]:
        """Latents to tokens."""
        model = build(self.settings.model, self.shapes, seed=0).to(self.device).eval().requires_grad_(False)
        generator = self.generator(model, PLAIN)
        z_0 = torch.randn(self.scale.texts, *generator.latent_shape, device=self.device)
        seeds = text_seeds(0, 0, self.scale.texts)
        with plain_attention():
            plain = self.seconds(lambda: generator.decode(z_0, seeds))
        return self._timed(
            "decoding, fp32",
            lambda: generator.decode(z_0, seeds),
            tokens=self.scale.texts * self.shapes.seq_len,
            flops=self.scale.texts * decoder_flops(self.settings.model, self.shapes),
            way=PLAIN,
            plain=plain,
        )

    # ------------------------------------------------------------------------------------------------------------------
    # The rival, and growth

    def rival(self) -> list[dict[str, Any]]:
        """Seconds of one evaluation on a batch of texts: by our denoiser, and by one that ends in the vocabulary."""
        rows, flops = [], self.scale.texts * cost.denoiser_flops(self.settings.model, self.shapes)
        head = self.scale.texts * 2 * self.shapes.seq_len * self.shapes.hidden_dim * self.shapes.vocab_size
        for name, way in self.ways().items():
            compute = Compute.of(way, self.device)
            mine = self._denoiser(self.shapes.seq_len)
            theirs = VocabularyDenoiser(self.settings.model.denoiser, self.shapes)
            z = torch.randn(self.scale.texts, self.shapes.seq_len, self.shapes.hidden_dim, device=self.device)
            tokens = torch.randint(self.shapes.vocab_size, z.shape[:2], device=self.device)
            t = torch.full((len(z),), 0.5, device=self.device)
            ours = self._evaluation(mine, compute, z, t, z)
            other = self._evaluation(theirs, compute, tokens, t)
            of = compute.precision
            shares = {"share": Share(flops / ours, of), "vocabulary_share": Share((flops + head) / other, of)}
            rows.append({"way": name, "ours": ours, "vocabulary": other, "ratio": other / ours, **shares})
        return rows

    def attention_growth(self) -> list[dict[str, Any]]:
        """Attention alone, forward and backward, beside the same written out: seconds and peak memory."""
        rows, compute = [], Compute.of(ComputeConfig(), self.device)
        for length in self.scale.lengths:
            shape = (1, length, self.settings.model.denoiser.heads, 64)
            row: dict[str, Any] = {"length": length}
            for name, context in (("kernel", nullcontext()), ("plain", plain_attention())):
                with context:
                    there: dict[str, Any] = {"device": self.device, "dtype": compute.dtype, "requires_grad": True}
                    q, k, v = (torch.randn(shape, **there) for _ in range(3))

                    def both(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
                        attention.attention(q, k, v).sum().backward()

                    with peak_memory(self.device) as peak:
                        row[f"{name}_seconds"] = self.seconds(both)
                    row[f"{name}_bytes"] = peak.bytes
            # Two products forward and four backward; what a kernel recomputes does not count.
            flops = 6 * 2 * length**2 * shape[-2] * shape[-1]
            row["share"] = Share(flops / row["kernel_seconds"], compute.precision)
            rows.append(row)
        return rows

    def growth(self) -> list[dict[str, Any]]:
        """One evaluation of the denoiser, for longer texts and for more of them; by default settings, and plain."""
        plain, compute = Compute.of(PLAIN, self.device), Compute.of(ComputeConfig(), self.device)
        sizes = [(1, length) for length in self.scale.lengths]
        sizes += [(count, self.shapes.seq_len) for count in self.scale.batches]
        rows = []
        for texts, length in dict.fromkeys(sizes):
            shapes = replace(self.shapes, seq_len=length)
            flops = texts * cost.denoiser_flops(self.settings.model, shapes)
            z = torch.randn(texts, length, self.shapes.hidden_dim, device=self.device)
            inputs = (z, torch.full((texts,), 0.5, device=self.device), z)
            seconds = self._evaluation(self._denoiser(length), compute, *inputs)
            with plain_attention():
                slow = self._evaluation(self._denoiser(length), plain, *inputs)
            share = Share(flops / seconds, compute.precision)
            rows.append({"texts": texts, "length": length, "seconds": seconds, "share": share, "plain_seconds": slow})
        return rows

    # ------------------------------------------------------------------------------------------------------------------

    def _denoiser(self, length: int) -> DiT:
        """A denoiser with a latent per token, as wide as h, as in all presets."""
        return DiT(self.settings.model.denoiser, num_latents=length, latent_dim=self.shapes.hidden_dim)

    @torch.no_grad()
    def _evaluation(self, network: nn.Module, compute: Compute, *inputs: Tensor) -> float:
        """Seconds of a call in the given precision, compiled if that is asked for."""
        network = network.to(self.device, compute.dtype).eval()
        given = [tensor.to(compute.dtype) if tensor.is_floating_point() else tensor for tensor in inputs]
        if compute.compiled:
            torch._dynamo.reset()  # otherwise earlier sizes count against its limit, and this one stays uncompiled
            layers.compile_blocks(network)
        return self.seconds(lambda: network(*given))

    def seconds(self, work: Callable[[], Any], kinds: Sequence[bool] = ()) -> float:
        """The median or, for calls of several kinds, the mean of their kinds' medians. NaN if out of memory."""
        try:
            # The warm-up compiles steps of both kinds before the clock starts.
            return timed(work, self.device, self.scale.seconds, warm=WARM if kinds else 2, kinds=kinds).median
        except torch.OutOfMemoryError:
            return math.nan

    def _timed(
        self,
        name: str,
        work: Callable[[], Any],
        *,
        tokens: int,
        flops: int,
        way: ComputeConfig,
        plain: float,
        kinds: Sequence[bool] = (),
    ) -> dict[str, Any]:
        with peak_memory(self.device) as peak:
            seconds = self.seconds(work, kinds)
        precision = Compute.of(way, self.device).precision
        return self.row(name, seconds, tokens=tokens, flops=flops, precision=precision, memory=peak.bytes, plain=plain)

    def row(
        self,
        name: str,
        seconds: float,
        *,
        tokens: int,
        flops: int | None = None,
        precision: str | None = None,
        stored: int | None = None,
        memory: int | None,
        plain: float,
    ) -> dict[str, Any]:
        """A row of the table; its limit is the matrix product in that precision or, for stored bytes, the file read."""
        if flops is not None:
            done, limit = flops, str(precision)
        else:
            done, limit = stored or 0, "read"
        return {
            "name": name,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "unit": "byte" if flops is None else "FLOP",
            "per_second": done / seconds,
            "share": Share(done / seconds, limit),
            "bytes": memory,
            "plain_seconds": plain,
            "faster": plain / seconds,
        }


class VocabularyDenoiser(nn.Module):
    """A transformer with the denoiser's blocks that reads tokens and outputs logits: (B, L), (B,) → (B, L, V)."""

    def __init__(self, sizes: DenoiserConfig, shapes: Shapes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shapes.vocab_size, shapes.hidden_dim)
        self.body = DiT(sizes, num_latents=shapes.seq_len, latent_dim=shapes.hidden_dim)
        self.head = nn.Linear(shapes.hidden_dim, shapes.vocab_size, bias=False)

    def forward(self, tokens_BL: Tensor, t_B: Tensor) -> Tensor:
        x_BLD = self.embedding(tokens_BL)
        return self.head(self.body(x_BLD, t_B, x_BLD))


def decoder_flops(config: ModelConfig, shapes: Shapes) -> int:
    """FLOPs of decoding one text by D_w∘D_h."""
    model = build_meta(config, shapes).requires_grad_(False)
    z_BNC = torch.empty(1, model.num_latents, model.latent_dim, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.decoder()(z_BNC)
    return counter.get_total_flops()


@contextmanager
def plain_attention() -> Iterator[None]:
    """Context with attention as einsum, softmax, einsum: in our networks and, through torch's function, the encoder."""

    def written_out(q_BHNK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, **_: Any) -> Tensor:
        scores = torch.einsum("bhnk,bhlk->bhnl", q_BHNK, k_BHLK) / math.sqrt(q_BHNK.shape[-1])
        return torch.einsum("bhnl,bhlk->bhnk", scores.softmax(-1), v_BHLK)

    def of_networks(q_BNHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> Tensor:
        return written_out(q_BNHK.transpose(1, 2), k_BLHK.transpose(1, 2), v_BLHK.transpose(1, 2)).transpose(1, 2)

    with ExitStack() as patches:
        for module in (attention, autoencoder, layers):
            patches.enter_context(mock.patch.object(module, "attention", of_networks))
        patches.enter_context(mock.patch.object(F, "scaled_dot_product_attention", written_out))
        yield


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    limit = figures["limits"]
    skipped = [] if figures["without"] is None else [f"extraction, streaming: skipped, no {figures['without']}"]
    flops = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in limit["flops"].items())
    elsewhere = "" if figures["attention"] == "sdpa" else ", in float32 by sdpa"
    return "\n".join(
        [
            f"limits of this {figures['device']}: matrix product {flops}; copy {limit['copy_bytes'] / 1e9:.3g} GB/s; "
            f"file read {limit['read_bytes'] / 1e9:.3g} GB/s",
            "",
            f"preset {figures['preset']}, attention by {figures['attention']}{elsewhere};",
            "shares are of the matrix product in the same precision, of streaming those of the file read; plain is",
            "eager float32 with attention written out, all logits at a time and, in training, the encoder inside the",
            "step, whose own FLOPs are not counted; beside extraction and streaming it is the encoder alone; nan: out",
            "of memory",
            *skipped,
            "",
            _whole(figures["rows"]),
            "",
            "one evaluation of the denoiser, and of one of the same size that ends in the vocabulary",
            "",
            _rival(figures["rival"]),
            "",
            "attention of one row, forward and backward, in the default precision",
            "",
            _attention(figures["attention_growth"]),
            "",
            "one evaluation of the denoiser, by texts at a time and latents of each",
            "",
            _growth(figures["growth"]),
        ]
    )


def _whole(found: list[dict[str, Any]]) -> str:
    """Table of extraction, streaming, training, decoding and sampling."""
    rows = [
        (
            row["name"],
            f"{row['seconds'] * 1e3:,.1f} ms",
            round(row["tokens_per_second"]),
            f"{row['per_second'] / 1e9:,.1f} G{'FLOP' if row['unit'] == 'FLOP' else 'B'}/s",
            f"{row['share']:.0%}",
            _size(row["bytes"]),
            f"{row['plain_seconds'] * 1e3:,.1f} ms",
            f"{row['faster']:.2f}",
        )
        for row in found
    ]
    return show.table(("", "time", "tokens/s", "rate", "share", "memory", "plain", "times faster"), rows)


def _rival(found: list[dict[str, Any]]) -> str:
    """Table of the denoiser beside one that ends in the vocabulary."""
    rows = [
        (
            row["way"],
            f"{row['ours'] * 1e3:,.2f} ms",
            f"{row['share']:.0%}",
            f"{row['vocabulary'] * 1e3:,.2f} ms",
            f"{row['vocabulary_share']:.0%}",
            f"{row['ratio']:.2f}",
        )
        for row in found
    ]
    return show.table(("", "ours", "share", "vocabulary", "share", "ratio"), rows)


def _attention(found: list[dict[str, Any]]) -> str:
    """Table of attention by length."""
    rows = [
        (
            row["length"],
            f"{row['kernel_seconds'] * 1e3:,.2f} ms",
            f"{row['share']:.0%}",
            f"{row['plain_seconds'] * 1e3:,.2f} ms",
            *(_size(row[f"{name}_bytes"]) for name in ("kernel", "plain")),
        )
        for row in found
    ]
    return show.table(("length", "kernel", "share", "plain", "memory", "plain"), rows)


def _growth(found: list[dict[str, Any]]) -> str:
    """Table of the denoiser by batch size and latents."""
    rows = [
        (
            row["texts"],
            row["length"],
            f"{row['seconds'] * 1e3:,.2f} ms",
            f"{row['seconds'] / row['texts'] / row['length'] * 1e6:,.1f} µs",
            f"{row['share']:.0%}",
            f"{row['plain_seconds'] * 1e3:,.2f} ms",
        )
        for row in found
    ]
    return show.table(("texts", "latents", "time", "per latent", "share", "plain"), rows)


def _size(count: int | None) -> str:
    return "-" if count is None else files.amount(count)
