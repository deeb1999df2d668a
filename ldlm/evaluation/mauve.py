"""MAUVE (Pillutla et al., 2021): the similarity of the distributions of two sets of texts, from 0 to 1 (SPEC 9).

The definition is that of the package `mauve-text` with its defaults. The feature of a text is the hidden state of its
last token. Texts and reference together are clustered by k-means (best of 5, at most 500 rounds, seed 25) into n/10
buckets, after a PCA that keeps 0.9 of the variance. MAUVE is the area under the divergence curve of the two histograms,
scaled by 5. The package is under the GPL, so it is imported only when needed and no part of it is copied here. Features
come from our own loader, which reads only safetensors.

Shape letters: CONTRIBUTING.md; T is texts, D the width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldlm.config import EvaluateConfig
from ldlm.errors import InputError
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import Mauve
from ldlm.progress import Progress

FEWEST = 20  # texts on each side: n/10 buckets are two
PACKAGES = {"mauve": "mauve-text", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}  # by module
SETTINGS = {
    "num_buckets": "auto",
    "pca_max_data": -1,
    "kmeans_explained_var": 0.9,
    "kmeans_num_redo": 5,
    "kmeans_max_iter": 500,
    "divergence_curve_discretization_size": 25,
    "mauve_scaling_factor": 5,
    "seed": 25,
}


def library() -> Any:
    """The module `mauve`; if it or a dependency is absent, `InputError` names the package to install."""
    try:
        import mauve
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise InputError(
            f"MAUVE needs the package {package}, which is not installed; pip install 'ldlm[mauve]', or -e '.[mauve]' "
            f"in a checkout (mauve-text is GPL)"
        ) from None
    return mauve


def check_number(name: str, texts: int) -> None:
    """Raise `InputError` if these are too few texts for MAUVE."""
    if texts < FEWEST:
        raise InputError(
            f"MAUVE needs at least {FEWEST} texts on each side, and the {name} are {texts}; 1,000 or more are usual"
        )


def score(p_TD: np.ndarray, q_TD: np.ndarray) -> Mauve:
    """MAUVE of texts with features `p_TD` against a reference with features `q_TD`."""
    check_number("texts", len(p_TD))
    check_number("reference", len(q_TD))
    if not np.ptp(np.vstack([p_TD, q_TD]), axis=0).any():
        raise InputError("all features are alike, so MAUVE has nothing to compare; check how they were computed")
    found = library().compute_mauve(p_features=p_TD, q_features=q_TD, **SETTINGS)
    counts = {"num_buckets": int(found.num_buckets), "texts": len(p_TD), "reference_texts": len(q_TD)}
    return Mauve(float(found.mauve), {**SETTINGS, **counts})


def read_features(path: Path) -> np.ndarray:
    """Features (T, D) from a .npy file without pickle; `InputError` names what is wrong with any other file."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with open(path, "rb") as file:
            features = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise InputError(
            f"{path} is no plain .npy file: {str(error).splitlines()[0]}; write it with numpy.save"
        ) from None
    if features.ndim != 2 or features.dtype.kind != "f":
        raise InputError(f"{path} must hold one array of floats of shape (texts, width)")
    if not np.isfinite(features).all():
        raise InputError(f"{path} holds NaN or infinity; compute these features again")
    return features


def of_texts(
    sets: Sequence[Texts], scorer: Scorer, config: EvaluateConfig, max_tokens: int, progress: Progress
) -> list[Mauve]:
    """MAUVE of every set against the last, which is the reference; the same number of texts is taken of each."""
    model = scorer if config.mauve_model in (None, scorer.name) else Scorer(config.mauve_model, scorer.device)
    if config.max_tokens is None:
        max_tokens = model.fitting(max_tokens, progress.note)
    model.check_length(max_tokens)
    spelled = [texts.boundaries.spell(texts.texts, config.boundaries, model) for texts in sets]
    rows = [[ids for ids in model.tokens(texts, max_tokens) if len(ids)] for texts in spelled]
    *drawn, real = rows
    collapsed = [len(some) < FEWEST <= len(texts) for some, texts in zip(drawn, spelled, strict=False)]
    count = min([len(real), *(len(some) for some, nothing in zip(drawn, collapsed, strict=True) if not nothing)])
    with progress.task("mauve", count * (len(sets) - sum(collapsed)), "text") as task:

        def states(some: Sequence[np.ndarray]) -> np.ndarray:
            return model.last_states(some[:count], config.batch_size, task.advance)

        reference = states(real)
        found = [
            Mauve(None, {}) if nothing else score(states(some), reference)
            for some, nothing in zip(drawn, collapsed, strict=True)
        ]
    named = {"model": model.name, "model_revision": model.revision, "max_tokens": max_tokens}
    return [Mauve(one.value, {**one.settings, **named}) for one in found]
