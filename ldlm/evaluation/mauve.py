"""MAUVE (Pillutla et al., 2021): how near the distribution of some texts is to that of others, between 0 and 1.

The definition is that of the package `mauve-text` with its defaults: the state above a text's last token stands for
the text; texts and reference are sorted together into n/10 buckets by k-means (best of 5, at most 500 rounds, seed 25)
after a PCA that keeps 0.9 of the variance; MAUVE is the area under the divergence curve of the two histograms, scaled
by 5. The package is under the GPL, so it is imported when it is asked for and no part of it stands here. The states
come from our own loader, which reads safetensors only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ldlm.errors import InputError
from ldlm.evaluation.scores import Mauve

FEWEST = 20  # n/10 buckets make two
PACKAGES = {"mauve": "mauve-text", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}  # by the module they bring
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
    """The module `mauve`; `InputError` says what to install when it or what it needs is absent."""
    try:
        import mauve
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise InputError(
            f"MAUVE needs the package {package}, which is not installed; pip install 'ldlm[mauve]' (mauve-text is GPL)"
        ) from None
    return mauve


def score(p_TD: np.ndarray, q_TD: np.ndarray) -> Mauve:
    """MAUVE of texts with features `p_TD` against a reference with `q_TD`."""
    for name, features in (("texts", p_TD), ("reference", q_TD)):
        if len(features) < FEWEST:
            raise InputError(
                f"MAUVE needs at least {FEWEST} texts on each side, and the {name} are {len(features)}; 1,000 and more "
                "is usual"
            )
    if not np.ptp(np.vstack([p_TD, q_TD]), axis=0).any():
        raise InputError("all features are alike, so MAUVE has nothing to compare")
    found = library().compute_mauve(p_features=p_TD, q_features=q_TD, **SETTINGS)
    counts = {"num_buckets": int(found.num_buckets), "texts": len(p_TD), "reference_texts": len(q_TD)}
    return Mauve(float(found.mauve), {**SETTINGS, **counts})


def read_features(path: Path) -> np.ndarray:
    """Features (texts, D) from a .npy file without pickle; `InputError` names what is wrong with it."""
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
        raise InputError(f"{path} holds NaN or infinity")
    return features
