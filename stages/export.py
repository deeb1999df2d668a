"""Export of a run's denoiser and decoders: a folder to share, or to upload to the Hugging Face hub (SPEC 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldlm import artifact, files, hub
from ldlm import config as configs
from ldlm.artifact import Artifact
from ldlm.config import ExportConfig
from ldlm.errors import InputError
from ldlm.evaluation.boundaries import Boundaries
from ldlm.progress import SILENT, Progress
from ldlm.sampling import solvers
from ldlm.sampling.description import ModelDescription
from ldlm.sampling.exported import LDLM
from ldlm.sampling.generation import JOINT
from ldlm.sampling.trained_run import TrainedRun
from ldlm.training.log import MetricsFile


def plan(config: ExportConfig, run_path: Path) -> dict[str, Any]:
    """Decoders that it would export, and the size of the weights."""
    run = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    names = _decoders(config, run)
    parameters = sum(p.numel() for network in _networks(run, names).values() for p in network.parameters())
    return {"step": run.checkpoint.step, "decoders": names, "parameters": parameters, "bytes": 4 * parameters}


def run(
    config: ExportConfig, run_path: Path, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> Artifact:
    """Write the model to the folder `out`, and upload it when asked to."""
    if overwrite or not (out / "artifact.json").is_file():  # an export that an earlier version began keeps its sampler
        solvers.check(config.sampler)
    run = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    names = _decoders(config, run)
    decoders = {name: _record(run, name) for name in names}
    inputs = {
        "checkpoint": run.checkpoint.digest,
        "decoders": {name: files.sha256_json(record) for name, record in decoders.items()},
    }
    result = artifact.begin(out, "model", config, inputs, overwrite=overwrite, reads=[run_path])
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
    else:
        description = _describe(config, run, decoders)
        LDLM(description, _networks(run, names), run.path / "tokenizer").save_pretrained(out)
        result = result.finish(**run.origin, decoders=names, sha256=files.sha256_file(out / "model.safetensors"))
    if config.push_to_hub is not None:
        progress.note(f"uploaded to {_push(out, config.push_to_hub)}")
    return result


def _decoders(config: ExportConfig, run: TrainedRun) -> list[str]:
    """Names of the decoders to export, the default first; `InputError` when there is none."""
    if config.decoder is None and run.usable_decoders():
        return run.usable_decoders()
    return [run.decoder(config.decoder).name]


def _networks(run: TrainedRun, names: list[str]) -> dict[str, nn.Module]:
    return {"denoiser": run.model.denoiser, **{f"decoders/{name}": run.decoder(name).logits for name in names}}


def _record(run: TrainedRun, name: str) -> dict[str, Any]:
    """The manifest of a fine-tuned decoder; empty for `joint`, which has none of its own."""
    return {} if name == JOINT else artifact.open_artifact(run.path / "decoders" / name, "decoder").manifest


def _describe(config: ExportConfig, run: TrainedRun, decoders: dict[str, dict[str, Any]]) -> ModelDescription:
    return ModelDescription(
        model=run.config.model,
        shapes=run.shapes,
        latent_shape=(run.model.num_latents, run.model.latent_dim),
        schedule=run.schedule,
        t_min=run.config.diffusion.t_min,
        timestep_p=tuple(run.timesteps.p.tolist()),
        sampler=config.sampler,
        decoders={name: record.get("network", {}) for name, record in decoders.items()},
        provenance=_provenance(run, decoders) | {"boundaries": Boundaries.of(run.tokenizer).to_json()},
    )


def _provenance(run: TrainedRun, decoders: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Provenance of the weights, without paths of the machine that they were trained on."""
    encoder = run.features["encoder"]
    finished = run.artifact.manifest if run.artifact.complete else {}
    return {
        **run.origin,
        "settings": configs.identity(run.config),
        "features": {key: run.features.get(key) for key in ("store", "text", "rows")},
        # A name without a commit is a folder's; the fingerprint identifies the encoder wherever it is.
        "encoder": {**encoder, "name": encoder["name"] if encoder.get("revision") else Path(encoder["name"]).name},
        "held_out": _held_out(run),
        "decoders": {name: record["held_out"] for name, record in decoders.items() if record},
        "versions": {"training": finished.get("versions"), "export": artifact.versions()},
    }


def _held_out(run: TrainedRun) -> dict[str, Any]:
    """The scalar figures of the last evaluation up to the checkpoint; empty before the first."""
    lines = [line for line in MetricsFile(run.path / "metrics.jsonl").read() if line["kind"] == "eval"]
    lines = [line for line in lines if line["step"] <= run.checkpoint.step]
    last = lines[-1] if lines else {}
    return {key: value for key, value in last.items() if key != "kind" and not isinstance(value, list | dict)}


def _push(out: Path, repo_id: str) -> str:
    """Upload the model, with its card as it is now; returns the address."""
    model = LDLM.from_pretrained(out)
    try:
        return str(model.push_to_hub(repo_id, commit_message="Model exported by ldlm"))
    except Exception as error:  # the client and the HTTP library below it raise many kinds
        raise InputError(
            f"{out} is complete and could not be uploaded to {repo_id!r} ({hub.why(error)}); log in with "
            f"`hf auth login` and run the same command again"
        ) from None
