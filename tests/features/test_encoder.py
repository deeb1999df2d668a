"""The frozen encoder against transformers' own hidden states, and the statistics against numpy over everything."""

import hashlib
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from ldlm.errors import InputError
from ldlm.features.encoder import FrozenEncoder, Statistics
from ldlm.training import checkpoint

DEPTH = 4  # of the tiny encoders


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def folder(request):
    return str(request.getfixturevalue(request.param))


def full_model(folder):
    """The whole model as transformers loads it."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens_BL(folder):
    vocabulary = full_model(folder).config.vocab_size
    return torch.randint(vocabulary, (5, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hidden_states(folder, tokens_BL):
    with torch.no_grad():
        return full_model(folder)(input_ids=tokens_BL, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layer", [-1, -2, -3, -4, -5, 0, 1, 2, 3, 4])
def test_the_truncated_encoder_equals_the_whole_model_bit_for_bit(folder, tokens_BL, hidden_states, layer):
    assert len(hidden_states) == DEPTH + 1
    h_BLD = FrozenEncoder(folder, layer=layer)(tokens_BL)
    assert h_BLD.dtype == torch.float32
    assert torch.equal(h_BLD, hidden_states[layer])
    others = [state for i, state in enumerate(hidden_states) if i != layer % (DEPTH + 1)]
    assert not any(torch.equal(h_BLD, state) for state in others)


def test_the_last_layer_of_a_gpt2_is_taken_after_its_final_norm(gpt2):
    tokens_BL = torch.arange(12).view(1, 12)
    model = full_model(str(gpt2))
    with torch.no_grad():
        before = model(input_ids=tokens_BL, output_hidden_states=True).hidden_states[-2]
        last = model.h[-1](before)
        expected = model.ln_f(last[0] if isinstance(last, tuple) else last)  # as transformers before 5.1 has it
    assert torch.equal(FrozenEncoder(str(gpt2), layer=-1)(tokens_BL), expected)


@pytest.mark.parametrize(("layer", "kept"), [(-1, 4), (-3, 2), (1, 1)])
def test_the_blocks_above_the_layer_are_gone_and_never_run(folder, tokens_BL, layer, kept):
    encoder = FrozenEncoder(folder, layer=layer)
    (blocks,) = (module for module in encoder.network.modules() if isinstance(module, nn.ModuleList))
    assert len(blocks) == kept
    ran = Counter()
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: ran.update([type(module).__name__]))
    try:
        encoder(tokens_BL)
    finally:
        hook.remove()
    assert ran[type(blocks[0]).__name__] == kept


def test_the_check_costs_two_passes_over_one_row(folder):
    ran = []

    def note(module, args, output):
        if type(module).__name__ in ("GPT2Block", "BertLayer"):
            ran.append(args[0].shape[:2])

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        FrozenEncoder(folder, layer=-3, seq_len=16)
    finally:
        hook.remove()
    assert ran == [(1, 16)] * (DEPTH + DEPTH - 2)  # of the whole model, and of the cut one


def test_rows_are_encoded_as_they_are_whatever_stands_in_the_batch(folder, tokens_BL):
    encoder = FrozenEncoder(folder, layer=-2)
    together = encoder(tokens_BL)
    alone = torch.cat([encoder(row[None]) for row in tokens_BL])
    # float32 matrix products of another batch size may round differently
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_the_encoder_takes_the_int32_rows_of_a_store(folder, tokens_BL):
    encoder = FrozenEncoder(folder)
    assert torch.equal(encoder(tokens_BL.int()), encoder(tokens_BL))


def test_kind_embedding_is_the_models_token_table_and_nothing_more(folder, tokens_BL):
    table = full_model(folder).get_input_embeddings().weight
    encoder = FrozenEncoder(folder, kind="embedding", layer=99)  # has no layer
    assert torch.equal(encoder(tokens_BL), table[tokens_BL])
    assert sum(p.numel() for p in encoder.network.parameters()) == table.numel()


def test_no_weight_of_the_encoder_can_be_trained_and_no_dropout_is_on(folder):
    network = FrozenEncoder(folder).network
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("kind", ["hidden", "embedding"])
def test_a_fingerprint_is_the_same_each_time_and_from_any_place(folder, tmp_path, kind):
    shutil.copytree(folder, tmp_path / "elsewhere")
    first = FrozenEncoder(folder, kind=kind).fingerprint()
    assert FrozenEncoder(folder, kind=kind).fingerprint() == first
    assert FrozenEncoder(str(tmp_path / "elsewhere"), kind=kind).fingerprint() == first


@pytest.mark.parametrize(("layer", "index"), [(-3, 2), (1, 1), (-1, 4), (0, 0)])
def test_a_fingerprint_is_what_stores_have_recorded_from_the_first_version_on(folder, layer, index):
    """SHA-256 over kind, layer and the weights of the blocks up to it, of at least one, without the pooler's."""
    digest = hashlib.sha256(f"hidden/{index}".encode())
    for name, tensor in sorted(full_model(folder).state_dict().items()):
        block = re.match(r"(?:h|encoder\.layer)\.(\d+)\.", name)
        if not name.startswith("pooler.") and (block is None or int(block[1]) < max(1, index)):
            digest.update(name.encode() + tensor.numpy().tobytes())
    assert FrozenEncoder(folder, layer=layer).fingerprint() == digest.hexdigest()


def test_a_layer_is_the_same_counted_from_either_end(folder):
    assert FrozenEncoder(folder, layer=-3).fingerprint() == FrozenEncoder(folder, layer=2).fingerprint()


def test_fingerprints_tell_weights_layers_and_kinds_apart(gpt2, other_gpt2, bert):
    prints = [
        FrozenEncoder(str(gpt2)).fingerprint(),
        FrozenEncoder(str(gpt2), layer=-2).fingerprint(),
        FrozenEncoder(str(gpt2), layer=1).fingerprint(),
        FrozenEncoder(str(gpt2), layer=0).fingerprint(),  # which keeps the same block
        FrozenEncoder(str(gpt2), kind="embedding").fingerprint(),
        FrozenEncoder(str(other_gpt2)).fingerprint(),
        FrozenEncoder(str(bert)).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("layer", [-6, 5, 12])
def test_a_layer_that_does_not_exist_is_refused_with_the_range(folder, layer):
    with pytest.raises(InputError, match=rf"--layer {layer} is out of range: .* has hidden_states -5 … 4"):
        FrozenEncoder(folder, layer=layer)


def test_rows_longer_than_the_positions_are_refused(folder):
    FrozenEncoder(folder, seq_len=16)
    with pytest.raises(InputError, match="--seq-len 17 is longer than the 16 positions"):
        FrozenEncoder(folder, seq_len=17)
    FrozenEncoder(folder, kind="embedding", seq_len=17)  # a table has no positions


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_damaged_model_folder_is_one_line(gpt2, tmp_path, file, damage):
    copy = shutil.copytree(gpt2, tmp_path / "encoder")
    content = (copy / file).read_bytes()
    (copy / file).unlink()
    if damage != "missing":
        (copy / file).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(InputError, match="is not a usable model folder") as error:
        FrozenEncoder(str(copy))
    assert "\n" not in str(error.value)


def test_weights_that_the_file_lacks_are_not_made_up(gpt2, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(gpt2, tmp_path / "encoder")
    tensors = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".h.0." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights .*h\.0\."):
        FrozenEncoder(str(copy))


def test_a_pickle_of_weights_is_never_opened(gpt2, tmp_path):
    copy = shutil.copytree(gpt2, tmp_path / "encoder")
    (copy / "model.safetensors").unlink()
    torch.save(full_model(str(gpt2)).state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="is not a usable model folder"):
        FrozenEncoder(str(copy))


# ----------------------------------------------------------------------------------------------------------------------
# Statistics


@pytest.fixture(scope="module")
def states():
    """(40, 16, 6) with means far from 0 against their spread, as at GPT-2's massive activations."""
    random = np.random.default_rng(0)
    mean, std = np.array([0, 1e-3, -5, 300, 3e3, -2e4]), np.array([1, 1e-1, 2, 0.5, 100, 30])
    return (random.standard_normal((40, 16, 6)) * std + mean).astype(np.float32)


@pytest.mark.parametrize("cuts", [[], [1], [20], [7, 8, 9, 33], list(range(1, 40))])
def test_merged_statistics_equal_numpys_over_everything_however_it_is_split(states, cuts):
    total = Statistics(0, np.zeros(6), np.zeros(6))
    for part in np.split(states, cuts):
        total = total.merge(Statistics.of(part))
    flat = states.reshape(-1, 6).astype(np.float64)
    assert total.count == len(flat)
    # float64 accumulation: the rounding of a few hundred additions
    np.testing.assert_allclose(total.mean_D, flat.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(total.std_D, flat.std(axis=0), rtol=1e-11)


def test_merging_in_another_order_gives_the_same_up_to_rounding(states):
    parts = [Statistics.of(part) for part in np.split(states, 8)]
    forward, backward = parts[0], parts[-1]
    for part in parts[1:]:
        forward = forward.merge(part)
    for part in parts[-2::-1]:
        backward = backward.merge(part)
    np.testing.assert_allclose(forward.mean_D, backward.mean_D, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(forward.m2_D, backward.m2_D, rtol=1e-11)


def test_nothing_merged_with_nothing_is_nothing():
    nothing = Statistics(0, np.zeros(3), np.zeros(3))
    assert nothing.merge(nothing).count == 0
    assert nothing.merge(Statistics.of(np.ones((2, 3), np.float32))).mean_D.tolist() == [1, 1, 1]


def test_a_constant_dimension_has_the_floor_of_the_variance():
    h = np.zeros((10, 3), np.float32)
    h[:, 1] = np.linspace(-1e-3, 1e-3, 10)  # variance below the floor
    h[:, 2] = np.linspace(-1, 1, 10)
    std = Statistics.of(h).std_D
    np.testing.assert_allclose(std, [1e-2, 1e-2, h[:, 2].astype(np.float64).std()], rtol=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# pretrain-encoder, which makes the encoders of these tests


@pytest.mark.parametrize("arch", ["gpt2", "bert"])
def test_an_interrupted_pretraining_ends_with_the_weights_of_an_uninterrupted_one(
    corpus, tmp_path, monkeypatch, interrupted, arch
):
    from ldlm.config import PretrainConfig
    from ldlm.stages import pretrain_encoder

    monkeypatch.setattr(pretrain_encoder, "SAVE_EVERY", 2)
    sizes = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 300, "positions": 16, "batch_size": 4}
    config = PretrainConfig(data=(str(corpus),), arch=arch, steps=12, device="cpu", **sizes)
    whole = pretrain_encoder.run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain_encoder.run(config, tmp_path / "broken", progress=interrupted(at=6))
    assert checkpoint.latest(tmp_path / "broken" / "checkpoints").step == 6
    rest = interrupted()
    broken = pretrain_encoder.run(config, tmp_path / "broken", progress=rest)
    assert rest.reports == 6  # it went on and did not begin again
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (whole.path / name).read_bytes() == (broken.path / name).read_bytes(), name
    assert whole.manifest["final_loss"] == broken.manifest["final_loss"]


def test_pretraining_notices_a_changed_text_even_behind_the_same_name(corpus, tmp_path):
    from ldlm.config import PretrainConfig
    from ldlm.stages import pretrain_encoder

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_bytes(corpus.read_bytes())
    texts = tuple(str(tmp_path / name / "text.txt") for name in ("a", "b"))
    sizes = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 300, "positions": 16, "batch_size": 4}
    config = PretrainConfig(data=texts, steps=1, device="cpu", **sizes)
    pretrain_encoder.run(config, tmp_path / "out")
    with open(texts[0], "a") as file:
        file.write("One line more.\n")
    with pytest.raises(InputError, match=r"inputs\.text"):
        pretrain_encoder.run(config, tmp_path / "out")


def test_pretraining_learns(corpus, tmp_path):
    from ldlm.config import PretrainConfig
    from ldlm.stages import pretrain_encoder

    sizes = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 320, "positions": 16, "batch_size": 16}
    config = PretrainConfig(data=(str(corpus),), steps=60, lr=1e-2, device="cpu", **sizes)
    # a uniform guess costs ln V; the corpus has a few dozen words
    assert pretrain_encoder.run(config, tmp_path / "out").manifest["final_loss"] < 0.6 * np.log(320)
