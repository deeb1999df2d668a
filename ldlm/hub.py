"""Loaders of models, tokenizers, datasets and exported models by name, from a folder or the Hugging Face hub.

If the hub can't be reached, which is noticed within seconds, earlier downloads are read. A model's own code is never
run, and its pickles are never opened.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldlm import files
from ldlm.errors import InputError
from ldlm.kinds import MADE_BY, article

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

DESCRIPTIONS = ("config.json", "tokenizer_config.json", "tokenizer.json")  # a model or tokenizer has at least one


# ----------------------------------------------------------------------------------------------------------------------
# Names and what they stand for


@cache
def check_hub() -> None:
    """Go offline at once if the hub can't be reached: its client would retry for a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # which kind depends on the HTTP library, and so on the version, of the hub's client
        import datasets.config

        log.warning(
            "%s can't be reached; looking for models and datasets in its cache on this machine", constants.ENDPOINT
        )
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def offline() -> bool:
    """Whether the hub is unused, because the user says so or because it can't be reached."""
    from huggingface_hub import constants

    check_hub()
    return constants.HF_HUB_OFFLINE


def looks_like_path(name: str) -> bool:
    """Whether a name means a path on this machine, not a repository on the hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or os.path.exists(name)


@cache  # so that this process keeps its model even if the branch moves meanwhile
def snapshot(name: str) -> Path:
    """The cache folder of a model or tokenizer on the hub; the folder's name is the commit.

    That is the hub's main branch now or, if the hub can't be reached, the commit fetched last.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    check_hub()
    for number, file in enumerate(DESCRIPTIONS, 1):
        try:
            return Path(hf_hub_download(name, file)).parent
        except EntryNotFoundError:
            if number == len(DESCRIPTIONS):
                raise
    raise AssertionError


def commit(name: str) -> str:
    """The commit that this process loads of a model or tokenizer on the hub."""
    return snapshot(name).name


def kept_here(name: str, revision: str | None = None) -> str:
    """The folder of a model on this machine: its own, or the cache's for a hub name; the network is not used.

    `InputError` if there is neither.
    """
    from huggingface_hub import try_to_load_from_cache

    if looks_like_path(name):
        if not Path(name).is_dir():
            raise InputError(f"there is no model folder {name}")
        return name
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(found, str):
        raise InputError(f"the model {name!r} is neither a folder here nor was it fetched from the hub before")
    return str(Path(found).parent)


def revision(name: str) -> str | None:
    """The commit of a model loaded by hub name; None for a local folder."""
    return None if Path(name).is_dir() else commit(name)


def cached_dataset(name: str, revision: str | None = None) -> Path | None:
    """The cache folder of a hub dataset, named by its commit; None if the hub can be reached.

    Also None if the dataset was never downloaded. `LocalEntryNotFoundError` if the download lacks files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if os.path.exists(name) or not offline():
        return None
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if type(error) is not LocalEntryNotFoundError:
            raise
        return None


def why(error: BaseException) -> str:
    """The reason why a model or dataset can't be loaded by name, in one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "it is gated; accept its licence on the hub and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has nothing of this name, or it is private"
    if type(error) is errors.LocalEntryNotFoundError:
        return "the hub can't be reached, and it has not been downloaded before"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def download(repo_id: str, names: list[str], **options: Any) -> Path:
    """A folder with the files of a repository whose names match; cached files are not fetched again.

    `options` are those of `huggingface_hub.snapshot_download`. `InputError` if the download fails.
    """
    from huggingface_hub import snapshot_download

    if looks_like_path(repo_id):
        raise InputError(f"there is no model folder {repo_id}; `ldlm export` makes one")
    try:
        if not options.get("local_files_only"):
            check_hub()
        return Path(snapshot_download(repo_id, allow_patterns=names, **options))
    except Exception as error:  # the client and the HTTP library below it raise many types, which all mean the same
        raise InputError(
            f"{repo_id!r} is not a folder here, and can't be fetched from the Hugging Face hub ({why(error)}); give a "
            f"folder made by `ldlm export`"
        ) from None


# ----------------------------------------------------------------------------------------------------------------------
# Models and tokenizers of transformers


def quiet_transformers() -> None:
    """Keep transformers' load reports and progress bars out of our output."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_pretrained(auto_class: Any, name: str, **options: Any) -> Any:
    """`auto_class.from_pretrained` of a folder or hub name, without running its code; `InputError` if it fails."""
    quiet_transformers()
    local = Path(name).is_dir()
    if looks_like_path(name) and not local:
        raise InputError(f"there is no model folder {name}")
    try:
        folder = Path(name) if local else snapshot(name)
        _check_kernels(folder, name)
        # Given only a tokenizer's name, transformers 5.0 asks for a config.json, and fails without the hub.
        if local or (offline() and not (folder / "config.json").is_file()):
            return auto_class.from_pretrained(str(folder), trust_remote_code=False, **options)
        return auto_class.from_pretrained(name, revision=folder.name, trust_remote_code=False, **options)
    except InputError:
        raise
    except Exception as error:  # transformers, safetensors and the hub client raise many types, which all mean the same
        raise _refusal(name, local, error) from None


def _check_kernels(folder: Path, name: str) -> None:
    """`InputError` if a model's configuration names kernels on the hub, which would be fetched and run."""
    described = json.loads((folder / "config.json").read_bytes()) if (folder / "config.json").is_file() else {}
    for kernel in _kernels(described):
        raise InputError(
            f"{name!r} asks for the kernels {kernel}, and ldlm never runs code that comes with a model; use one of "
            f"transformers' own implementations, such as sdpa, in its config.json"
        )


def _kernels(described: Any) -> Iterator[str]:
    for key, value in described.items() if isinstance(described, dict) else ():
        if key.endswith("_implementation") and "/" in str(value):
            yield str(value)
        yield from _kernels(value)


def _refusal(name: str, local: bool, error: Exception) -> InputError:
    if "trust_remote_code" in str(error):
        return InputError(
            f"{name!r} needs Python code of its own, and ldlm never runs code that comes with a model; use one of "
            f"transformers' own architectures, with one of its own tokenizers"
        )
    if local and (kind := _kind(Path(name))) not in (None, "encoder"):
        return InputError(
            f"{name!r} holds {article(kind)} of ldlm, and a transformers model is needed; give a hub name or a folder "
            f"made by `ldlm pretrain-encoder`"
        )
    if local:
        return InputError(
            f"{name!r} is not a usable model folder ({why(error)}); it needs config.json and model.safetensors"
        )
    return InputError(
        f"{name!r} is not a folder here, and can't be fetched from the Hugging Face hub ({why(error)}); give a local "
        f"folder, for example one made by `ldlm pretrain-encoder`"
    )


def _kind(folder: Path) -> str | None:
    """The kind of the artefact of ours in a folder; None if it holds none."""
    record = folder / "artifact.json"
    found = files.read_json(record).get("kind") if record.is_file() else None
    return found if found in MADE_BY else None


def load_model(auto_class: Any, name: str) -> tuple[Any, dict[int, str]]:
    """The model in float32, and the parameters that its file lacks, which are random: id → name."""
    import torch

    model, report = load_pretrained(
        auto_class, name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    absent = set(report["missing_keys"])
    return model, {id(p): key for key, p in model.named_parameters() if key in absent}


def save_model(model: Any, folder: Path) -> None:
    """Write a transformers model as safetensors and `config.json`, without mention of its path or of code."""
    quiet_transformers()
    model.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_bytes())
    files.write_atomic(folder / "config.json", json.dumps(_unplaced(described), indent=2, sort_keys=True) + "\n")


def _unplaced(described: Any) -> Any:
    if not isinstance(described, dict):
        return described
    return {key: _unplaced(value) for key, value in described.items() if key not in ("_name_or_path", "auto_map")}


def check_whole(network: nn.Module, absent: dict[int, str], name: str) -> None:
    """`InputError` if `network` has parameters that its file lacks; `absent` comes from `load_model`."""
    lacking = [absent[id(p)] for p in network.parameters() if id(p) in absent]
    if lacking:
        raise InputError(f"{name} lacks the weights {', '.join(lacking[:3])} ({len(lacking)} in all)")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by hub name or folder; a bare GPT-2 (vocab.json, merges.txt) or BERT (vocab.txt) folder will do."""
    from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer

    folder = Path(name)
    if folder.is_dir() and not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer_config.json")):
        if (folder / "merges.txt").exists():
            return load_pretrained(GPT2Tokenizer, name)
        if (folder / "vocab.txt").exists():
            return load_pretrained(BertTokenizer, name)
    return load_pretrained(AutoTokenizer, name)
