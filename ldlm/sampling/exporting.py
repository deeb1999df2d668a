"""The parts of a run that are exported: the networks that draw texts, and their provenance."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldlm import artifact, files, hub
from ldlm import config as configs
from ldlm.config import ExportConfig
from ldlm.errors import InputError
from ldlm.evaluation.boundaries import Boundaries
from ldlm.features.encoder import recorded_encoder
from ldlm.progress import Progress
from ldlm.sampling import pretrained
from ldlm.sampling.description import ModelDescription, Normalisation
from ldlm.sampling.exported import LDLM
from ldlm.sampling.generation import JOINT
from ldlm.sampling.pretrained import ExportedModel
from ldlm.sampling.source import OpenRun
from ldlm.sampling.trained_run import TrainedRun
from ldlm.training.log import MetricsFile
from ldlm.versions import library_versions


@dataclass(frozen=True)
class Export:
    """An export of a checkpoint, before it is written."""

    config: Any  # the settings, with what depends on the run filled in
    origin: Mapping[str, Any]  # digest and step of the checkpoint
    inputs: Mapping[str, Any]  # hashes of what it is made from
    contents: Mapping[str, Any]  # what it holds, for the manifest, as JSON
    parameters: int
    check: Callable[[], None]  # `InputError` for a default sampler that is not offered
    remark: Callable[[Progress], None]  # notes that the run is not finished, if that is so
    model: Callable[[Path], ExportedModel]  # for a folder, into which it writes the frozen encoder, if that is included
    encoder_parameters: int = 0  # of that encoder


@dataclass(frozen=True)
class TakenEncoder:
    """The frozen encoder of a run, to be included in an export."""

    record: Mapping[str, Any]  # of the features
    seq_len: int
    model: Any  # of transformers, whole, float32

    @classmethod
    def of(cls, run: TrainedRun, where: str | None) -> TakenEncoder:
        """The encoder in the folder or of the hub name `where`, or in its place; `InputError` if it can't be loaded."""
        if run.condition != "prefix":
            raise InputError(
                f"{run.path} has not learned to continue texts (its model.condition is none), and drawing from it "
                f"takes no encoder; leave --with-encoder out"
            )
        try:
            record = run.encoder_record(where)
            recorded_encoder(record, run.shapes.seq_len)
        except InputError as error:
            if where is not None:
                raise
            raise InputError(f"{error}; say where the encoder is with --encoder DIR") from None
        return cls(record, run.shapes.seq_len, _whole_model(record["name"]))

    @property
    def parameters(self) -> int:
        """The encoder's number of parameters."""
        return parameters({"encoder": self.model})

    def write(self, folder: Path) -> Path:
        """Write it to a folder that opens as the same encoder; returns the folder."""
        shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted export
        hub.save_model(self.model, folder)
        recorded_encoder({**self.record, "name": str(folder)}, self.seq_len)
        return folder


def _whole_model(name: str) -> Any:
    from transformers import AutoModel

    return hub.load_model(AutoModel, name)[0]


def of_run(config: ExportConfig, path: Path, encoder: str | None = None) -> Export:
    """The export of a run of LDLM: its denoiser and its decoders, and its frozen encoder if `config` asks for it.

    `encoder` is that encoder's folder or hub name, if it is not in its place.
    """
    run = TrainedRun(path, torch.device("cpu"), config.checkpoint)
    asked, config = config, run.settled(config)
    names = _decoders(config, run)
    decoders = {name: _record(run, name) for name in names}
    networks: dict[str, nn.Module] = {"denoiser": run.model.denoiser}
    networks |= {f"decoders/{name}": run.decoder(name).logits for name in names}
    if run.condition == "prefix":
        networks["normalisation"] = Normalisation(*run.statistics())
    taken = TakenEncoder.of(run, encoder) if config.with_encoder else None
    own = None if taken is None else taken.parameters

    def model(out: Path) -> LDLM:
        described = _describe(config, run, decoders, own)
        folder = None if taken is None else taken.write(out / pretrained.ENCODER)
        return LDLM(described, networks, run.path / "tokenizer", encoder=folder)

    def remark(progress: Progress) -> None:
        run.remark_on_end(progress)
        run.remark_on_grid(asked.sampler, progress, "; --set sampler.grid takes another")

    return Export(
        config=config,
        origin=run.origin,
        inputs={
            "checkpoint": run.checkpoint.digest,
            "decoders": {name: files.sha256_json(record) for name, record in decoders.items()},
        },
        contents={
            "decoders": names,
            "precision": config.precision,
            **({} if own is None else {"encoder_parameters": own}),
        },
        parameters=parameters(networks),
        check=lambda: run.check(config.sampler),
        remark=remark,
        model=model,
        encoder_parameters=own or 0,
    )


def parameters(networks: Mapping[str, nn.Module]) -> int:
    """Total number of parameters of networks."""
    return sum(p.numel() for network in networks.values() for p in network.parameters())


def provenance(run: OpenRun, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance of a run's weights, without paths on the machine that trained them."""
    encoder = run.features["encoder"]
    finished = run.artifact.manifest if run.artifact.complete else {}
    return {
        **run.origin,
        "settings": settings,
        "features": {key: run.features.get(key) for key in ("store", "text", "rows")},
        # A name without a commit is that of a folder; the fingerprint identifies the encoder wherever it is.
        "encoder": {**encoder, "name": encoder["name"] if encoder.get("revision") else Path(encoder["name"]).name},
        "held_out": _held_out(run),
        "versions": {"training": finished.get("versions"), "export": library_versions()},
        "boundaries": Boundaries.of(run.tokenizer).to_json(),
    }


def _held_out(run: OpenRun) -> dict[str, Any]:
    """The scalar figures of the last evaluation up to the checkpoint; empty before the first."""
    lines = [line for line in MetricsFile(run.path / "metrics.jsonl").read() if line["kind"] == "eval"]
    lines = [line for line in lines if line["step"] <= run.checkpoint.step]
    last = lines[-1] if lines else {}
    return {key: value for key, value in last.items() if key != "kind" and not isinstance(value, list | dict)}


# ----------------------------------------------------------------------------------------------------------------------
# Of LDLM


def _decoders(config: ExportConfig, run: TrainedRun) -> list[str]:
    """Names of the decoders to export, the default first; `InputError` if there are none."""
    if config.decoder is None and run.usable_decoders():
        return run.usable_decoders()
    return [run.decoder(config.decoder).name]


def _record(run: TrainedRun, name: str) -> dict[str, Any]:
    """The manifest of a fine-tuned decoder; empty for `joint`, which has none of its own."""
    return {} if name == JOINT else artifact.open_artifact(run.path / "decoders" / name, "decoder").manifest


def _describe(
    config: ExportConfig, run: TrainedRun, decoders: Mapping[str, Mapping[str, Any]], encoder_parameters: int | None
) -> ModelDescription:
    finetuned = {name: record for name, record in decoders.items() if record}
    of_decoders = {
        "decoders": {name: record["held_out"] for name, record in finetuned.items()},
        "decoder_sha256": {name: files.sha256_json(record) for name, record in finetuned.items()},
    }
    return ModelDescription(
        model=run.config.model,
        shapes=run.shapes,
        latent_shape=(run.model.num_latents, run.model.latent_dim),
        schedule=run.schedule,
        t_min=run.config.diffusion.t_min,
        timestep_p=tuple(run.timesteps.p.tolist()),
        sampler=config.sampler,
        precision=config.precision,
        encoder_parameters=encoder_parameters,
        decoders={name: record.get("network", {}) for name, record in decoders.items()},
        provenance={**provenance(run, configs.identity(run.config)), **of_decoders, **_student(run)},
    )


def _student(run: TrainedRun) -> dict[str, Any]:
    """The sampler that a distilled run has learned, for the provenance; empty for other runs."""
    return {} if run.student is None else {"student": configs.to_dict(run.student)}
