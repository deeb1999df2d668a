"""The Hugging Face hub: there or not, told within seconds."""

from __future__ import annotations

from functools import cache


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
