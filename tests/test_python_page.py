"""docs/python.md: its code runs as it stands, from top to bottom, and gives what it says."""

import re
from pathlib import Path

import torch

from ldlm.features.store import FeatureStore

ROOT = Path(__file__).resolve().parent.parent


def test_the_code_of_the_page_runs(trained, store, rival, succeed, tmp_path, monkeypatch):
    for name, target in {"examples": ROOT / "examples", "run": trained, "features": store}.items():
        (tmp_path / name).symlink_to(target)
    succeed("export", "--run", rival("mdlm"), "--output", tmp_path / "model-mdlm")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    scope, sizes = {}, []
    for block in blocks:
        exec(block, scope)
        sizes.append(len(scope["texts"]))
    assert sizes == [4, 2, 2, 4, 4]

    drawn = succeed("sample", "--run", ROOT / "examples" / "novels", "--num-samples", 1, "--seed", 1, "--steps", 16,
                    "--temperature", 0.6)  # fmt: skip
    exec(blocks[0], scope)
    assert scope["texts"][0] == drawn["texts"][0]["text"]

    run = scope["run"]
    assert scope["decoded_BL"].shape == (1, run.shapes.seq_len)
    assert scope["z_BNC"].shape == (4, *run.model.latent_shape)
    held_out = FeatureStore(store).split("validation")
    assert torch.equal(scope["h_BLD"], torch.from_numpy(held_out.hidden[:8]).float())
