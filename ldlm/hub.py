"""The Hugging Face hub: there or not, told within seconds."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from ldlm.errors import InputError


@cache
def check_hub() -> None:
    """Fall back at once on what is cached where there is no network; the hub's client would retry for a minute."""
    import datasets.config
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of whichever HTTP library the hub's client uses
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def looks_like_path(name: str) -> bool:
    """Whether a name means a place on this machine and not a repository on the hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or os.path.exists(name)


def download(repo_id: str, names: list[str], **options: Any) -> Path:
    """A folder with the files of a repository whose names match; what is cached is not fetched again.

    `options` are those of `huggingface_hub.snapshot_download`. `InputError` in one line when it can't be had.
    """
    from huggingface_hub import snapshot_download

    if looks_like_path(repo_id):
        raise InputError(f"there is no model folder {repo_id}; `ldlm export` makes one")
    try:
        if not options.get("local_files_only"):
            check_hub()
        return Path(snapshot_download(repo_id, allow_patterns=names, **options))
    except Exception as error:  # the client and the HTTP library below it raise many kinds, and all mean the same
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{repo_id!r} can't be had from the Hugging Face hub ({reason}); give a folder made by `ldlm export`"
        ) from None
