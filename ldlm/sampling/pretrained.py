"""An exported model, in a folder or on the hub: what the models of all methods have in common.

    model.safetensors   averaged weights, in fp32 or bf16; read as fp32
    tokenizer/          that of the run, its JSON without spaces
    encoder/            the frozen encoder, which reads prompts, if it was asked for: settings and safetensors
    README.md           the model card; may be edited
    config.json         written last: sizes, settings, sampler, provenance, and sha256 of all the rest but the card

Weights are read from safetensors only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelHubMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldlm import files, hub, runtime
from ldlm.compute import DTYPES
from ldlm.config import AnySampleConfig, Shapes
from ldlm.errors import InputError
from ldlm.hub import load_tokenizer
from ldlm.sampling import generation
from ldlm.sampling.source import Generator

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
TOKENIZER, ENCODER = "tokenizer", "encoder"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

CLASSES = {"ldlm": "LDLM", "ldlm-tokens": "TokenDiffusion"}  # in `ldlm`, by the model_type in config.json


class ExportedModel(ModelHubMixin):
    """A model that draws texts; `save_pretrained` and `push_to_hub` write it.

    Its description `config` has `shapes`, `provenance`, `precision`, `networks()` on the meta device, and `to_json()`.
    """

    model_type: ClassVar[str]
    describe: ClassVar[Callable[..., Any]]  # content of `config.json` → description
    write_card: ClassVar[Callable[..., str]]  # description → model card

    def __init__(
        self,
        config: Any,
        networks: Mapping[str, nn.Module],
        tokenizer: Path,
        card: str | None = None,
        encoder: Path | None = None,
    ) -> None:
        """`networks` are those of `config.networks()`, with weights; `card` None writes a new one.

        `tokenizer` is a folder, and so is `encoder`, that of the model's frozen encoder, which stays where it is and is
        read when needed.
        """
        self.config, self.networks, self.device = config, dict(networks), torch.device("cpu")
        self.shapes: Shapes = config.shapes
        self.tokenizer = load_tokenizer(str(tokenizer))
        self.card = type(self).write_card(config) if card is None else card
        self.encoder = None if encoder is None else encoder.absolute()
        self._tokenizer_files = {name: path.read_bytes() for path, name in files.below(tokenizer)}
        self._generators: dict[Any, Generator] = {}  # with their compiled code

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no other class takes further options
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Load the model in a folder, or of that id on the Hugging Face hub, onto the CPU.

        The network is used only for a hub id. `InputError` if there is no such model, if one of its files is damaged,
        if its weights are pickled, or if it is for another class to open.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            options: dict[str, Any] = {
                "force_download": force_download, "token": token, "cache_dir": cache_dir,
                "local_files_only": local_files_only, "revision": revision,
            }  # fmt: skip
            name = str(pretrained_model_name_or_path)
            cls.described(hub.download(name, [CONFIG], **options))  # before downloading gigabytes that are not ours
            folder = hub.download(name, [CONFIG, WEIGHTS, CARD, f"{TOKENIZER}/*", f"{ENCODER}/*"], **options)
        return cls.from_folder(folder)

    @classmethod
    def described(cls, folder: Path) -> Any:
        """The description in a folder's `config.json`; `InputError` for a model that this class does not open."""
        return cls.describe(record(folder, cls.model_type))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load the model in a folder, as `from_pretrained` does."""
        read = verified(folder, cls.model_type)
        config = cls.describe(read)
        networks, tensors = config.networks(), load_file(folder / WEIGHTS)
        for name, network in networks.items():
            own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
            network.to_empty(device="cpu").load_state_dict(own)
            network.eval().requires_grad_(False)
        card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
        return cls(config, networks, folder / TOKENIZER, card, folder / ENCODER if _has_encoder(read) else None)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the files for `save_pretrained` and `push_to_hub`; `config.json` comes last and marks it complete."""
        tensors = {
            f"{name}/{key}": tensor.contiguous().cpu()
            for name, network in self.networks.items()
            for key, tensor in self._stored(network).items()
        }
        with files.replacing(save_directory / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        for name, data in self._tokenizer_files.items():
            files.write_atomic(save_directory / TOKENIZER / name, _without_spaces(name, data))
        encoder = self._save_encoder(save_directory)
        files.write_atomic(save_directory / CARD, self.card)
        names = [WEIGHTS, *(f"{TOKENIZER}/{name}" for name in self._tokenizer_files), *encoder]
        sha256 = {name: files.sha256_file(save_directory / name) for name in names}
        described = {"model_type": self.model_type, "format": FORMAT, **self.config.to_json(), "sha256": sha256}
        files.write_atomic(save_directory / CONFIG, files.dump_digested(described))

    def _stored(self, network: nn.Module) -> dict[str, Tensor]:
        """Weights in the precision of the export; buffers, such as statistics, are not weights and keep theirs."""
        weights = {key: weight.detach().to(DTYPES[self.config.precision]) for key, weight in network.named_parameters()}
        return {**network.state_dict(), **weights}

    def _save_encoder(self, save_directory: Path) -> list[str]:
        """Copy the files of the frozen encoder, unless they are already there; returns their names."""
        if self.encoder is None:
            return []
        names = [f"{ENCODER}/{name}" for _, name in files.below(self.encoder)]
        if (save_directory / ENCODER).absolute() != self.encoder:
            for name in names:
                with files.replacing(save_directory / name) as temporary:
                    shutil.copyfile(self.encoder.parent / name, temporary)
        return names

    def to(self, device: str | torch.device) -> Self:
        """Move the networks to a device (cpu, cuda, cuda:N or auto); returns itself."""
        self.device = runtime.device(str(device))
        self._generators.clear()
        for network in self.networks.values():
            network.to(self.device)
        return self

    @property
    def origin(self) -> dict[str, Any]:
        """Digest and step of the checkpoint that the model was exported from."""
        return {key: self.config.provenance[key] for key in ("checkpoint", "step")}

    @property
    def weights_precision(self) -> str:
        """Precision in which its weights are stored."""
        found: str = self.config.precision
        return found

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy: without the generators, whose locks and compiled code can't be copied."""
        return {**self.__dict__, "_generators": {}}

    def _texts(self, generator: Generator, config: AnySampleConfig) -> list[str]:
        batches = generation.batches(generator, config)
        return [
            line["text"]
            for seeds_B, tokens_BL in batches
            for line in generator.lines(self.tokenizer, tokens_BL, seeds_B, config.clean_up)
        ]


def _without_spaces(name: str, data: bytes) -> bytes:
    """Content of a tokenizer's file; JSON without line breaks and indents, which double a vocabulary's size."""
    if not name.endswith(".json"):
        return data
    return json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":")).encode()


# ----------------------------------------------------------------------------------------------------------------------
# Reading a folder


def model_type(folder: Path) -> str | None:
    """The type of the exported model in a folder, a key of `CLASSES`; None if it holds none of ours."""
    found = _model_type(files.read_json(folder / CONFIG)) if (folder / CONFIG).is_file() else None
    return found if found in CLASSES else None


def _model_type(found: Any) -> Any:
    return found.get("model_type") if isinstance(found, dict) else None


def record(folder: Path, expected: str) -> dict[str, Any]:
    """`config.json` alone; `InputError` if it does not describe a model of the expected type, or is damaged."""
    if not (folder / CONFIG).is_file():
        if (folder / "checkpoints").is_dir():
            raise InputError(
                f"{folder} is a training run; `ldlm export --run {folder} --output model` makes what this opens"
            )
        raise InputError(f"{folder} has no {CONFIG}{_pickled(folder)}; `ldlm export` makes a whole model")
    found = _model_type(files.read_json(folder / CONFIG))
    if found != expected:
        if found in list(CLASSES):
            raise InputError(f"{folder} holds a model of type {found}; open it with ldlm.{CLASSES[found]}")
        raise InputError(f"{folder} holds a model of type {found}, and not one that `ldlm export` made")
    read = files.read_digested(folder / CONFIG, "export or download it again")
    if read["format"] != FORMAT:
        raise InputError(f"{folder} has format {read['format']}, and this ldlm reads {FORMAT}; use the newer ldlm")
    return read


def verified(folder: Path, expected: str) -> dict[str, Any]:
    """`config.json`, with every file checked against its hash; `InputError` names one that is missing or damaged."""
    read = record(folder, expected)
    parts = [TOKENIZER, ENCODER] if _has_encoder(read) else [TOKENIZER]
    there = [WEIGHTS, *(f"{part}/{name}" for part in parts for _, name in files.below(folder / part))]
    for name in sorted({*read["sha256"], *there}):
        if name not in there or not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}{_pickled(folder)}; export or download it again")
        if files.sha256_file(folder / name) != read["sha256"].get(name):
            raise InputError(f"{folder / name} is damaged: it is not what was exported; export or download it again")
    return read


def _has_encoder(read: Mapping[str, Any]) -> bool:
    """Whether `config.json` lists files of an encoder; a folder of that name may be the user's own."""
    return any(name.startswith(f"{ENCODER}/") for name in read["sha256"])


def _pickled(folder: Path) -> str:
    """A remark on pickled weights in the folder; empty if there are none."""
    pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
    return f" ({', '.join(sorted(pickles))}: pickled weights are never read)" if pickles else ""
