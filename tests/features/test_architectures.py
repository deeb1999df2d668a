"""The frozen encoder on many architectures of transformers, against the whole model and against docs/encoders.md."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, POSITIONS

from ldlm.config import ExtractConfig
from ldlm.errors import InputError
from ldlm.features.encoder import FrozenEncoder, online_encoder
from ldlm.features.states import positions
from ldlm.features.store import FeatureStore
from ldlm.stages import extract_features

DOCS = Path(__file__).parent.parent.parent / "docs" / "encoders.md"
UPDATE = os.environ.get("LDLM_UPDATE_ENCODERS") == "1"
LAYERS = (-3, 1, -1, 0)

# One of each kind: common ones, and all that are peculiar.
FAST = """
albert; bart; bert; canine; clip_text_model; cpmant; deberta-v2, convolution; fsmt; funnel; gpt2; ibert; layoutlm; led;
llama; llava; longformer; mamba; mixtral; openai-gpt; opt, projected; pegasus_x; qwen2_vl; reformer; roberta;
squeezebert; t5, its encoder alone; udop; xlm; xlnet
"""
NAMES = [
    pytest.param(name, marks=[] if name in re.split(r"[;\n] ?", FAST) else pytest.mark.slow) for name in ARCHITECTURES
]


def tokens(seq_len):
    """Two rows of tokens that are not special in any of the models."""
    return torch.randint(3, 300, (2, seq_len), generator=torch.Generator().manual_seed(0))


def whole_states(model, tokens_BL):
    """hidden_states of the whole model, or of an encoder-decoder's encoder."""
    part = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        states = part(input_ids=tokens_BL, output_hidden_states=True).hidden_states
    return [state[0] if isinstance(state, tuple) else state for state in states]  # Pegasus-X has global ones beside


def takes(model, seq_len):
    """Whether the whole model takes rows so long, as transformers says."""
    try:
        whole_states(model, tokens(seq_len))
    except Exception:
        return False
    return True


def row_of(name, model, folder):
    """The architecture's row in the table: how its states are had, and its longest row; after checking both."""
    try:
        ways = {layer: way_of(model, folder, layer, architectures.rows(name)) for layer in LAYERS}
    except InputError as error:
        assert "\n" not in str(error)
        return f"| {name} | refused: {str(error).replace(str(folder), 'it')} | |"
    below = {layer: way for layer, way in ways.items() if way != "output"}
    usual = max(below.values(), key=list(below.values()).count)
    others = "".join(f", {way} at layer {layer}" for layer, way in below.items() if way != usual)
    return f"| {name} | {usual}{others} | {longest_row(model, folder)} |"


def way_of(model, folder, layer, seq_len):
    """How the encoder has the states of a layer, which must be the whole model's to the bit."""
    encoder = FrozenEncoder(str(folder), layer=layer, seq_len=seq_len)
    # Frozen as the encoder's: on some processors weights that could have a gradient go through other kernels.
    expected_BLD = whole_states(model.requires_grad_(False), tokens(seq_len))[layer]
    assert encoder.hidden_dim == expected_BLD.shape[-1]
    assert torch.equal(encoder(tokens(seq_len)), expected_BLD)
    return encoder.states.way


def longest_row(model, folder):
    """`any`, or the number that the refusal of a longer row advises, at which both models run."""
    with_spare = POSITIONS + 16
    try:
        FrozenEncoder(str(folder), layer=-1, seq_len=with_spare)(tokens(with_spare))
    except InputError as error:
        advised = int(re.search(r"use at most (\d+)$", str(error))[1])
    else:
        return "any"
    assert torch.isfinite(FrozenEncoder(str(folder), layer=-1, seq_len=advised)(tokens(advised))).all()
    with pytest.raises(InputError, match=f"longer than .*; use at most {advised}$"):
        FrozenEncoder(str(folder), layer=-1, seq_len=advised + 1)
    assert advised == POSITIONS or not takes(model, advised + 1)
    return str(advised)


def table():
    """The rows of the table in the docs, by architecture."""
    found = re.findall(r"^\| ([^|]+) \|.*\|$", DOCS.read_text(), re.MULTILINE)
    lines = re.findall(r"^\| .*\|$", DOCS.read_text(), re.MULTILINE)
    return dict(zip(found, lines, strict=True))


def record(name, row):
    """Write a row into the table, in the order of the architectures."""
    lines = {**table(), name: row}
    head, *_ = DOCS.read_text().partition("| architecture")
    order = ["architecture", *ARCHITECTURES]
    rows = [lines[name] for name in order if name in lines]
    DOCS.write_text(head + "\n".join([rows[0], "|---|---|---|", *rows[1:]]) + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_states_are_the_whole_models_and_the_table_says_how(name, tmp_path):
    model = architectures.make(name)
    model.save_pretrained(tmp_path / "model")
    row = row_of(name, model, tmp_path / "model")
    if UPDATE:
        record(name, row)
    assert table().get(name) == row, "write the table anew with LDLM_UPDATE_ENCODERS=1"


def test_the_table_names_what_was_tried_and_nothing_else():
    assert list(table())[1:] == list(ARCHITECTURES)
    assert sum("refused" not in row for row in table().values()) > 45


@pytest.mark.parametrize("name", ["pegasus_x", "reformer"])
def test_rows_that_a_model_would_pad_are_refused_with_a_length_that_works(name, tmp_path):
    architectures.make(name).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"--layer 1 of .* pads rows of 12 tokens to 16; use --seq-len 16") as error:
        FrozenEncoder(str(tmp_path), layer=1, seq_len=12)
    advised = int(re.search(r"\d+$", str(error.value))[0])
    assert FrozenEncoder(str(tmp_path), layer=1, seq_len=advised)(tokens(advised)).shape[:2] == (2, advised)


def test_a_layer_that_pools_is_refused_with_those_that_do_not(tmp_path):
    architectures.make("funnel").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"--layer 4 of .* doesn't have one state per token; use one of ") as error:
        FrozenEncoder(str(tmp_path), layer=4, seq_len=12)
    for advised in map(int, re.search(r"--layer ([\d, ]+)$", str(error.value))[1].split(", ")):
        assert FrozenEncoder(str(tmp_path), layer=advised, seq_len=12)(tokens(12)).shape[:2] == (2, 12)


@pytest.mark.parametrize(("seq_len", "way"), [(12, "whole"), (16, "cut")])
def test_a_model_that_pads_to_a_window_is_cut_where_rows_fill_it(tmp_path, seq_len, way):
    model = architectures.make("longformer")
    model.save_pretrained(tmp_path)
    assert way_of(model, tmp_path, -3, seq_len) == way


def test_positions_that_are_not_in_a_table_are_not_tried():
    """A row of ten million would take the machine's memory."""
    assert positions(architectures.make("llama", max_position_embeddings=10_000_000)) == 10_000_000


def test_a_model_that_draws_at_random_is_refused(tmp_path):
    """Reformer's LSH attention hashes with new random rotations each time, unless it has a seed for them."""
    settings = {"attn_layers": ["lsh"] * 4, "num_buckets": [2, 2], "lsh_attn_chunk_length": 4, "hash_seed": None}
    architectures.make("reformer", **settings).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="gives different states for the same tokens each time; give another"):
        FrozenEncoder(str(tmp_path), layer=-1, seq_len=64)


# ----------------------------------------------------------------------------------------------------------------------
# In the commands


@pytest.fixture
def encoder(gpt2, tmp_path):
    """Makes a model folder of an architecture, with the tokenizer of the tiny GPT-2, whose vocabulary is as large."""

    def make(name, **settings):
        folder = tmp_path / "encoder"
        architectures.make(name, **settings).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(gpt2 / file, folder)
        return folder

    return make


@pytest.mark.parametrize("name", ["roberta", "led", "longformer"])
def test_a_row_that_is_too_long_is_refused_and_the_advised_length_goes_to_the_same_output(
    encoder, corpus, tmp_path, refuse, succeed, name
):
    """LED's configuration has no `max_position_embeddings`; the others' is more than their rows can have."""
    out = tmp_path / "out" / "features"
    command = ["extract-features", "--encoder", encoder(name), "--data", corpus, "--device", "cpu", "--output", out]
    for too_long in (200, POSITIONS + 1, POSITIONS):
        if name == "led" and too_long == POSITIONS:
            continue
        line = refuse(*command, "--seq-len", too_long)
        assert f"--seq-len {too_long} is longer than" in line
        assert not out.parent.exists()
    advised = re.search(r"use at most (\d+)$", line)[1]
    assert succeed(*command, "--seq-len", advised)["shapes"]["seq_len"] == int(advised)


@pytest.mark.parametrize("name", ["mamba", "openai-gpt", "t5, its encoder alone", "layoutlm"])
def test_a_store_holds_the_whole_models_states(encoder, corpus, tmp_path, name):
    folder = encoder(name)
    config = ExtractConfig(encoder=str(folder), data=(str(corpus),), seq_len=12, layer=1, codec="fp32", device="cpu")
    store = FeatureStore(extract_features.run(config, tmp_path / "features").path)
    parts, tokens = store.split("train").read(0, 8)
    mean_D, std_D = store.statistics()
    stored_BLD = store.split("train").states(parts, torch.from_numpy(tokens)).numpy() * std_D + mean_D
    model = architectures.load(name, folder)
    expected_BLD = whole_states(model, torch.from_numpy(tokens).long())[1].numpy()
    np.testing.assert_allclose(stored_BLD, expected_BLD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mamba", "longformer"])
def test_an_encoder_that_stays_whole_runs_inside_the_step(encoder, corpus, tmp_path, name):
    config = ExtractConfig(encoder=str(encoder(name)), data=(str(corpus),), seq_len=12, layer=1, device="cpu")
    stores = [
        FeatureStore(extract_features.run(replace(config, codec=codec), tmp_path / codec).path)
        for codec in ("online", "fp32")
    ]
    (nothing, tokens), (parts, _) = (store.split("train").read(0, 8) for store in stores)
    made_BLD = stores[0].split("train", online_encoder(stores[0])).states(nothing, torch.from_numpy(tokens).long())
    kept_BLD = stores[1].split("train").states(parts, torch.from_numpy(tokens))
    torch.testing.assert_close(made_BLD, kept_BLD, rtol=1e-5, atol=1e-5)


def test_a_dry_run_takes_an_encoder_that_stays_whole(encoder, corpus, succeed):
    command = ("extract-features", "--encoder", encoder("xlnet"), "--data", corpus, "--seq-len", 12, "--dry-run")
    assert succeed(*command)["saved_share_of_step"] > 0


@pytest.mark.parametrize(
    ("name", "kind", "usable"),
    [("roberta", "RobertaForCausalLM", 62), ("opt", "OPTForCausalLM", 64), ("mpt", "MptForCausalLM", 64)],
)
def test_a_scorer_takes_texts_as_long_as_its_positions_really_are(
    encoder, unseen, tmp_path, refuse, succeed, name, kind, usable
):
    scorer = encoder(name, **{"class": kind}, is_decoder=True)
    (tmp_path / "long.txt").write_text(" ".join(unseen) + "\n")
    command = ["evaluate", tmp_path / "long.txt", "--scorer", scorer, "--device", "cpu"]
    line = refuse(*command, "--max-tokens", usable + 1)
    assert f"use at most {usable}" in line
    assert succeed(*command, "--max-tokens", re.search(r"use at most (\d+)$", line)[1])
