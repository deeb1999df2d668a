"""Export what is needed to draw texts from a run: a folder to share, or to upload to the Hugging Face hub (SPEC 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldlm import artifact, files, hub
from ldlm import config as configs
from ldlm.artifact import Artifact
from ldlm.baselines import exporting as of_tokens
from ldlm.baselines.opening import open_exported
from ldlm.compute import DTYPES
from ldlm.config import AnyExportConfig, ExportConfig
from ldlm.errors import InputError
from ldlm.location import local
from ldlm.progress import SILENT, Progress
from ldlm.sampling import exporting as of_latents
from ldlm.sampling.exporting import Export


def plan(config: AnyExportConfig, run_path: Path, *, encoder: str | None = None) -> dict[str, Any]:
    """What `run` would export, and the size of the weights."""
    export = _of_run(config, run_path, encoder)
    amount = DTYPES[config.precision].itemsize * export.parameters + 4 * export.encoder_parameters
    size = {"parameters": export.parameters, "bytes": amount}
    return {"step": export.origin["step"], **export.contents, **size}


def run(
    config: AnyExportConfig,
    run_path: Path,
    out: Path,
    *,
    encoder: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Write the model to the folder `out`, and upload it if the settings say so.

    `encoder` is the folder or hub name of the frozen encoder to include, if it has moved since extraction. It is not a
    setting, since settings are part of the folder that is shared.
    """
    export = _of_run(config, run_path, encoder)
    if overwrite or not (out / "artifact.json").is_file():  # an export that an earlier version began keeps its sampler
        export.check()
    if not overwrite:
        _check_method(config, out)
    reads = local(run_path, encoder)
    with artifact.working(out, "model", export.config, export.inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            progress.note(f"{out} is complete; nothing to do")
        else:
            export.remark(progress)
            export.model(out).save_pretrained(out)
            result = result.finish(
                **export.origin, **export.contents, sha256=files.sha256_file(out / "model.safetensors")
            )
    if config.push_to_hub is not None:
        progress.note(f"uploaded to {_push(out, config.push_to_hub)}")
    return result


def _of_run(config: AnyExportConfig, run_path: Path, encoder: str | None) -> Export:
    if encoder is not None and not (isinstance(config, ExportConfig) and config.with_encoder):
        raise InputError("--encoder says where --with-encoder finds the encoder; add that, or leave --encoder out")
    if isinstance(config, ExportConfig):
        return of_latents.of_run(config, run_path, encoder)
    return of_tokens.of_run(config, run_path)


def _check_method(config: AnyExportConfig, out: Path) -> None:
    """`InputError` if `out` is an export of a run of another method."""
    record, settings = out / "artifact.json", out / "config.yaml"
    if not settings.is_file() or not record.is_file() or files.read_json(record).get("kind") != "model":
        return
    there, asked = (configs.method_of(found) for found in (files.read_yaml(settings), configs.to_dict(config)))
    if there != asked:
        raise InputError(
            f"{out} is a model of method {there}, not {asked}; choose another --output, or add --overwrite"
        )


def _push(out: Path, repo_id: str) -> str:
    """Upload the model, with its model card as it is now; returns the address."""
    model = open_exported(out)
    try:
        return str(model.push_to_hub(repo_id, commit_message="Model exported by ldlm"))
    except Exception as error:  # the client and the HTTP library below it raise many kinds
        raise InputError(
            f"{out} is complete and could not be uploaded to {repo_id!r} ({hub.why(error)}); log in with "
            f"`hf auth login` and run the same command again"
        ) from None
