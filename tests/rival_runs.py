"""Runs of the rivals for tests: a run folder like that of a training, whose network has learned for a few steps."""

import numpy as np
import torch
from toy_language import teach

from ldlm import artifact, files
from ldlm import config as configs
from ldlm.baselines import methods
from ldlm.features.store import FeatureStore
from ldlm.training import checkpoint

TINY_RIVAL = {
    "steps": 60,
    "batch_size": 32,
    "model": {"denoiser": {"layers": 1, "width": 16, "heads": 2, "time_dim": 8}},
}


def make(method, features, out, **settings):
    """A run of a method on the first rows of a store."""
    store = FeatureStore(features)
    config = configs.from_dict(configs.training_class(method), {"method": method, **TINY_RIVAL, **settings})
    made = artifact.begin(out, "run", config, {"features": store.fingerprint, "precision": "fp32"})
    record = {
        "encoder": store.encoder, "shapes": vars(store.shapes), "store": store.fingerprint,
        "text": store.text_fingerprint, "rows": store.rows,
    }  # fmt: skip
    files.write_json(out / "features.json", record)
    files.copy_tree(store.tokenizer_path, out / "tokenizer")
    network = methods.network(config, store.shapes)
    x_BL = torch.from_numpy(store.split("train").read_tokens(np.arange(config.batch_size)).astype("int64"))
    teach(methods.held_out_method(config, store.shapes), network, x_BL, config.steps)
    weights = network.state_dict()
    saved = checkpoint.save(
        out / "checkpoints", config.steps, {"model": weights, "ema": weights}, {"rows_seen": 0, "skipped": 0}
    )
    made.finish(
        step=config.steps, checkpoint=saved.digest, shapes=vars(store.shapes), parameters={}, attention="sdpa",
        held_out={}, skipped=0, seconds=0.0,
    )  # fmt: skip
    return out
