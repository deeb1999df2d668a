"""`ldlm pretrain-encoder`: the weights that a model starts with."""

import shutil
from dataclasses import replace

import pytest
from folders import content
from transformers import AutoModel

from ldlm import files
from ldlm.config import PretrainConfig
from ldlm.errors import InputError
from ldlm.stages import pretrain_encoder
from ldlm.training import checkpoint


@pytest.fixture(scope="module")
def untrained(corpus):
    """A training of one step that leaves the weights as they were."""
    small = {"vocab_size": 512, "layers": 2, "width": 64, "heads": 2, "positions": 16, "steps": 1, "batch_size": 2}
    return PretrainConfig(data=(str(corpus),), lr=1e-12, device="cpu", **small)


def weights(config, out):
    return dict(AutoModel.from_pretrained(pretrain_encoder.run(config, out).path).named_parameters())


def test_a_narrow_gpt2_can_start_with_matrices_that_fit_its_width_and_larger_embeddings(untrained, tmp_path):
    scaled = weights(replace(untrained, init="width"), tmp_path / "scaled")
    assert scaled["wte.weight"].std().item() == pytest.approx(0.2, rel=0.02)
    for name in ("wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"):
        assert scaled[name].std().item() == pytest.approx(64**-0.5, rel=0.04), name


def test_it_starts_with_the_published_weights_otherwise(untrained, tmp_path):
    published = weights(untrained, tmp_path / "published")
    for name in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"):
        assert published[name].std().item() == pytest.approx(0.02, rel=0.04), name


def test_another_tokenizer_of_the_same_name_is_refused_and_records_without_one_are_not_compared(
    untrained, gpt2, bigrams, tmp_path
):
    named, out = tmp_path / "tokenizer", tmp_path / "out"
    config = replace(untrained, tokenizer=str(shutil.copytree(gpt2, named)), vocab_size=320)
    pretrain_encoder.run(config, out)
    shutil.copytree(bigrams, named, dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"made with other settings \(inputs\.tokenizer_sha256: "):
        pretrain_encoder.run(config, out)
    record = files.read_json(out / "artifact.json")
    del record["inputs"]["tokenizer_sha256"]  # as in 0.1
    files.write_json(out / "artifact.json", record)
    assert pretrain_encoder.run(config, out).complete


def test_bert_learns_from_batches_so_small_that_no_token_may_be_drawn_for_masking(untrained, tmp_path):
    few = replace(untrained, arch="bert", batch_size=1, positions=4, steps=20)  # 4 tokens, none in half of the steps
    assert 0 < pretrain_encoder.run(few, tmp_path / "bert").manifest["final_loss"] < 10


def test_a_tokenizer_without_a_mask_is_none_for_bert_and_the_model_that_is_there_stays(gpt2, untrained, tmp_path):
    made = pretrain_encoder.run(untrained, tmp_path / "out")
    masked = replace(untrained, arch="bert", tokenizer=str(gpt2))
    for out in ("out", "new"):
        with pytest.raises(InputError, match=f"{gpt2} has no mask token, .* give another --tokenizer, or --arch gpt2"):
            pretrain_encoder.run(masked, tmp_path / out, overwrite=True)
    with pytest.raises(InputError, match="has no mask token"):
        pretrain_encoder.plan(masked)
    assert made.manifest["rows"] > 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("bad", [{"heads": 3}, {"batch_size": 10**6}])
def test_overwriting_deletes_no_model_for_settings_that_can_not_be_trained_with(untrained, tmp_path, bad):
    out = pretrain_encoder.run(untrained, tmp_path / "out").path
    before = content(out)
    with pytest.raises(InputError, match=r"--heads 3 must divide|too few for one batch"):
        pretrain_encoder.run(replace(untrained, **bad), out, overwrite=True)
    assert content(out) == before


def test_another_size_than_the_tokenizers_is_refused_except_where_an_earlier_version_began_with_it(
    gpt2, untrained, tmp_path, monkeypatch
):
    both, out = replace(untrained, tokenizer=str(gpt2)), tmp_path / "out"
    with pytest.raises(InputError, match="--vocab-size 512 is for a tokenizer that is trained"):
        pretrain_encoder.run(both, out)
    assert not out.exists()
    with monkeypatch.context() as earlier:
        earlier.setattr(pretrain_encoder, "_check_vocabulary", lambda *_: None)
        pretrain_encoder.run(both, out)
    assert pretrain_encoder.run(both, out).complete
    with pytest.raises(InputError, match="leave --vocab-size out"):
        pretrain_encoder.run(both, out, overwrite=True)


def test_a_training_that_diverges_says_so_with_the_remedy_and_its_last_checkpoint_stays(
    untrained, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretrain_encoder, "SAVE_EVERY", 1)
    with pytest.raises(InputError, match=r"the loss of step \d+ is (nan|inf): .* lower --lr than 1e\+30"):
        pretrain_encoder.run(replace(untrained, lr=1e30, steps=20), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert all(
        p.isfinite().all() for p in checkpoint.latest(tmp_path / "out" / "checkpoints").tensors("model").values()
    )


def test_the_time_is_that_of_all_calls(untrained, tmp_path, monkeypatch, interrupted):
    monkeypatch.setattr(pretrain_encoder, "SAVE_EVERY", 1)
    config, out = replace(untrained, steps=3), tmp_path / "out"
    for hours in (1, 0):
        with pytest.raises(KeyboardInterrupt):
            pretrain_encoder.run(config, out, progress=interrupted(at=1))
        saved = checkpoint.latest(out / "checkpoints")
        assert 0 <= saved.state["seconds"] < 3600
        state = {**saved.state, "seconds": 3600} if hours else {"recent": saved.state["recent"]}  # as in 0.1
        tensors = {name: saved.tensors(name) for name in ("model", "optimizer")}
        checkpoint.save(out / "checkpoints", saved.step, tensors, state)
        seconds = pretrain_encoder.run(config, out).manifest["seconds"]
        assert 3600 * hours <= seconds < 3600 * (hours + 1)
        shutil.rmtree(out)
