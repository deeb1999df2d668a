"""`ldlm pretrain-encoder`: the weights that a model starts with."""

from dataclasses import replace

import pytest
import yaml
from transformers import AutoModel

from ldlm import config as configs
from ldlm import files
from ldlm.config import PretrainConfig
from ldlm.stages import pretrain_encoder


@pytest.fixture(scope="module")
def untrained(corpus):
    """A training of one step that leaves the weights as they were."""
    small = {"vocab_size": 512, "layers": 2, "width": 64, "heads": 2, "positions": 16, "steps": 1, "batch_size": 2}
    return PretrainConfig(data=(str(corpus),), lr=1e-12, device="cpu", **small)


def weights(config, out):
    return dict(AutoModel.from_pretrained(pretrain_encoder.run(config, out).path).named_parameters())


def test_a_narrow_gpt2_starts_with_matrices_that_fit_its_width_and_larger_embeddings(untrained, tmp_path):
    scaled = weights(untrained, tmp_path / "scaled")
    assert scaled["wte.weight"].std().item() == pytest.approx(0.2, rel=0.02)
    for name in ("wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"):
        assert scaled[name].std().item() == pytest.approx(64**-0.5, rel=0.04), name


def test_published_weights_are_on_request(untrained, tmp_path):
    published = weights(replace(untrained, init="published"), tmp_path / "published")
    for name in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"):
        assert published[name].std().item() == pytest.approx(0.02, rel=0.04), name


def test_an_output_of_an_earlier_version_is_gone_on_with_as_published(untrained, tmp_path):
    made = pretrain_encoder.run(replace(untrained, init="published"), tmp_path / "encoder")
    before = files.sha256_file(made.path / "model.safetensors")
    recorded = configs.to_dict(untrained)
    recorded.pop("init")  # which an earlier version did not write
    (made.path / "config.yaml").write_text(yaml.safe_dump(recorded), encoding="utf-8")

    assert pretrain_encoder.run(untrained, made.path).complete

    (made.path / "manifest.json").unlink()  # as if that version had been interrupted
    pretrain_encoder.run(untrained, made.path)
    assert files.sha256_file(made.path / "model.safetensors") == before
