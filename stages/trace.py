"""A text on its way from noise, as a page and as an animation (Section 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.config import SampleConfig
from ldlm.location import folder_name, local
from ldlm.pages import film
from ldlm.pages.trace import page
from ldlm.progress import SILENT, Progress
from ldlm.sampling import trace
from ldlm.sampling.frames import Frame
from ldlm.sampling.generation import text_seeds
from ldlm.sampling.trained_run import TrainedRun


def plan(config: SampleConfig, run_path: Path) -> dict[str, Any]:
    """Evaluations of the denoiser and FLOPs that the text would take."""
    run = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    config = run.settled(config)
    run.check(config.sampler)
    one = dataclasses.replace(config, num_samples=1)
    return {"texts": 1, **{name: total // run.texts(one) for name, total in run.cost(one).items()}}


def run(
    config: SampleConfig, run_path: Path, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> Artifact:
    """Write `trace.html`, `trace.gif` and `trace.json` to `out`: the text number `trace_text` of `ldlm sample`."""
    run = TrainedRun(run_path, runtime.device(config.device), config.checkpoint)
    asked, config = config, run.settled(config)
    if overwrite or not (out / "artifact.json").is_file():  # what an earlier version began keeps its sampler
        run.check(config.sampler)
    generator = run.drawing(config)
    inputs = {"checkpoint": run.checkpoint.digest, **run.conditioning, **generator.decoder.record}
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

        run.remark(asked, progress)
        generator.compute.tell(progress)
        seed = int(text_seeds(config.seed, config.trace_text, config.trace_text + 1))
        frames = trace.record(generator, run.tokenizer, config.sampler, seed, config.trace_frames, config.trace_times)
        about = _about(config, run, generator.decoder.name, seed)
        summary = {"text": frames[-1].text, "frames": len(frames), **about}
        files.write_json(out / "trace.json", {**summary, "frames": _plain(frames)})
        files.write_atomic(out / "trace.html", page(frames, {k.replace("_", " "): v for k, v in about.items()}))
        film.write(out / "trace.gif", frames)
        return result.finish(**summary)


def _about(config: SampleConfig, run: TrainedRun, decoder: str, seed: int) -> dict[str, Any]:
    """The run that the text comes from, and how it was drawn."""
    sampler = config.sampler
    return {
        "run": folder_name(run.path),
        "step": run.checkpoint.step,
        "decoder": decoder,
        "solver": sampler.solver,
        "steps": sampler.steps,
        "grid": sampler.grid,
        "guidance": sampler.guidance,
        "temperature": sampler.temperature,
        "text_seed": seed,
    }


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
