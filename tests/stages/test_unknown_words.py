"""Text that the tokenizer does not know, as that of stories knows no other: what each stage says of it."""

import numpy as np
import pytest

from ldlm.features import text
from ldlm.hub import load_tokenizer

STORY = "Oscar had a shiny flute, and Henry liked it very much."
OTHER = "Quarterly revenue exceeded forecasts."


@pytest.fixture(scope="module")
def encoder(succeed, tmp_path_factory):
    """A GPT-2 with the tokenizer of stories."""
    folder = tmp_path_factory.mktemp("stories")
    succeed("stories", "--documents", 400, "--output", folder / "stories.txt", "--tokenizer", folder / "words")
    sizes = ("--layers", 3, "--width", 16, "--heads", 2, "--positions", 32, "--steps", 1, "--device", "cpu")
    words = ("--data", folder / "stories.txt", "--tokenizer", folder / "words")
    succeed("pretrain-encoder", *words, *sizes, "--output", folder / "encoder")
    return folder / "encoder"


@pytest.fixture
def extract(ldlm, encoder, tmp_path):
    def call(data, out):
        words = ("--encoder", encoder, "--data", data, "--seq-len", 16, "--device", "cpu", "--output", out)
        result = ldlm("extract-features", *words)
        assert result.exit_code == 0, result.stderr
        return result.stderr

    return call


def test_an_extraction_says_that_its_tokenizer_does_not_know_the_text(extract, encoder, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join([OTHER] * 200))
    told = extract(tmp_path / "other.txt", tmp_path / "other")
    assert f"of the tokens are <|unknown|>: the tokenizer of {encoder} does not know this text" in told
    assert "<|unknown|>" not in extract(encoder.parent / "stories.txt", tmp_path / "stories")


def test_paths_between_texts_say_so_too(extract, encoder, ldlm, tiny_yaml, tmp_path):
    extract(encoder.parent / "stories.txt", tmp_path / "features")
    words = ("--features", tmp_path / "features", "--config", tiny_yaml, "--steps", 1, "--output", tmp_path / "run")
    assert ldlm("train", *words).exit_code == 0
    path = ("interpolate", "--run", tmp_path / "run", "--points", 3, "--device", "cpu", "--from", STORY, "--to")
    told = ldlm(*path, OTHER)
    assert told.exit_code == 0
    assert "of the tokens of --to are <|unknown|>" in told.stderr
    assert "of --from" not in told.stderr
    assert "<|unknown|>" not in ldlm(*path, STORY).stderr


def test_a_tokenizer_that_can_write_any_text_has_no_unknown_words(gpt2):
    tokenizer = load_tokenizer(str(gpt2))
    assert text.unknown_share(np.full((2, 4), text.special_tokens(tokenizer)[0]), tokenizer) == 0
