"""A text on its way from noise, as a page and as an animation (Section 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.baselines.opening import method_at, open_source
from ldlm.config import SampleConfig
from ldlm.errors import InputError
from ldlm.location import folder_name, local
from ldlm.pages import film
from ldlm.pages.trace import page
from ldlm.progress import SILENT, Progress
from ldlm.sampling import trace
from ldlm.sampling.exported import LDLM
from ldlm.sampling.frames import Frame
from ldlm.sampling.generation import text_seeds
from ldlm.sampling.pretrained import ExportedModel
from ldlm.sampling.trained_run import TrainedRun


def plan(config: SampleConfig, run_path: Path) -> dict[str, Any]:
    """Evaluations of the denoiser and FLOPs that the text would take."""
    source = _opened(config, run_path, torch.device("cpu"))
    config = source.settled(config)
    source.check(config.sampler)
    one = dataclasses.replace(config, num_samples=1)
    return {"texts": 1, **{name: total // source.texts(one) for name, total in source.cost(one).items()}}


def _opened(config: SampleConfig, path: Path, device: torch.device) -> TrainedRun | LDLM:
    """The run or exported model of LDLM at `path`; `InputError` for any other."""
    source = open_source(path, device, config.checkpoint)
    if not isinstance(source, TrainedRun | LDLM):
        what = "model" if isinstance(source, ExportedModel) else "run"
        raise InputError(
            f"{path} is a token-level {what}, of method {method_at(path)}: it has no latents and no decoders, of which "
            "--trace makes its frames; leave --trace out"
        )
    return source


def run(
    config: SampleConfig, run_path: Path, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> Artifact:
    """Write `trace.html`, `trace.gif` and `trace.json` to `out`: the text number `trace_text` of `ldlm sample`."""
    source = _opened(config, run_path, runtime.device(config.device))
    asked, config = config, source.settled(config)
    if overwrite or not (out / "artifact.json").is_file():  # what an earlier version began keeps its sampler
        source.check(config.sampler)
    generator = source.drawing(config)
    weights = {"checkpoint": source.origin["checkpoint"], "weights_precision": source.weights_precision}
    inputs = {**weights, **source.conditioning, **generator.decoder.record}
    if generator.prompts is not None:
        inputs["prompts_sha256"] = generator.prompts.sha256
    with artifact.working(
        out,
        "trace",
        # The number of other texts and the batch size do not change this text.
        dataclasses.replace(config, num_samples=config.trace_text + 1),
        inputs,
        overwrite=overwrite,
        reads=local(run_path, config.prompting.prompts, config.prompting.encoder),
    ) as result:
        if result.complete:
            progress.note(f"{out} is complete; nothing to do")
            return result

        source.remark(asked, progress)
        generator.compute.tell(progress)
        seed = int(text_seeds(config.seed, config.trace_text, config.trace_text + 1))
        looks = (config.trace_frames, config.trace_times)
        frames = trace.record(generator, source.tokenizer, config.sampler, seed, *looks)
        drawn_by = {"run": folder_name(run_path), "step": source.origin["step"], "decoder": generator.decoder.name}
        about = {**drawn_by, **_drawn_with(config), "text_seed": seed}
        summary = {"text": frames[-1].text, "frames": len(frames), **about}
        files.write_json(out / "trace.json", {**summary, "frames": _plain(frames)})
        files.write_atomic(out / "trace.html", page(frames, {k.replace("_", " "): v for k, v in about.items()}))
        film.write(out / "trace.gif", frames)
        return result.finish(**summary)


def _drawn_with(config: SampleConfig) -> dict[str, Any]:
    """The settings of the sampler that the page names."""
    sampler = config.sampler
    return {name: getattr(sampler, name) for name in ("solver", "steps", "grid", "guidance", "temperature")}


def _plain(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    return [
        {
            "t": frame.t,
            "snr": frame.snr,
            "text": frame.text,
            "tokens": frame.tokens,
            "probabilities": [round(p, 6) for p in frame.probabilities],
        }
        for frame in frames
    ]
