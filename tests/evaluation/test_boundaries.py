"""Boundaries of rows and documents in decoded text, and how a scorer reads them (SPEC 13.6)."""

import json

import pytest
import torch

from ldlm import files
from ldlm.config import SampleConfig
from ldlm.evaluation import samples
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.scorer import Scorer
from ldlm.hub import load_tokenizer
from ldlm.sampling.exported import LDLM
from ldlm.stages import features, sample

EOS = "<|endoftext|>"
BERT = Boundaries(("[CLS]", "[SEP]"), spaced=True)


@pytest.fixture(scope="module")
def scorer(gpt2):
    return Scorer(str(gpt2), torch.device("cpu"))


def test_they_are_what_the_tokenizer_writes(gpt2, bert):
    assert Boundaries.of(load_tokenizer(str(gpt2))) == Boundaries((EOS,), spaced=False)
    assert Boundaries.of(load_tokenizer(str(bert))) == BERT
    assert Boundaries.from_json(json.loads(json.dumps(BERT.to_json()))) == BERT


@pytest.mark.parametrize(
    ("written", "eos", "drop"),
    [
        ("[CLS] rain. [SEP] an answer [SEP]", f"{EOS}rain.{EOS}an answer{EOS}", "rain. an answer"),
        ("[CLS] [SEP] [SEP] rain", f"{EOS}{EOS}{EOS}rain", "rain"),
        ("[CLS]", EOS, ""),
        ("", "", ""),
        ("rain", "rain", "rain"),
        ("[CLS]  two  spaces [SEP]", f"{EOS} two  spaces{EOS}", " two  spaces"),  # one of them is the text's own
    ],
)
def test_berts_become_the_scorers_or_go(scorer, written, eos, drop):
    spelled = {how: BERT.spell([written], how, scorer)[0] for how in ("eos", "drop", "text")}
    assert spelled == {"eos": eos, "drop": drop, "text": written}


def test_a_tokenizers_own_decoding_without_special_tokens_is_what_is_left(scorer, bert):
    """transformers leaves them out as `drop` does."""
    tokenizer = load_tokenizer(str(bert))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    words = tokenizer("the old captain found a letter", add_special_tokens=False)["input_ids"]
    rows = [[cls, *words, sep, *words[:3], sep], [cls, sep, sep, *words, sep]]
    with_them, without = (tokenizer.batch_decode(rows, skip_special_tokens=skip) for skip in (False, True))
    assert BERT.spell(with_them, "drop", scorer) == without


def test_gpt2s_own_stay_as_they_are(scorer):
    own = Boundaries((EOS,))
    texts = [f"{EOS}Rain.{EOS} An answer{EOS}", f"{EOS} {EOS}"]
    assert own.are_the_scorers(scorer)
    assert own.spell(texts, "eos", scorer) is own.spell(texts, "text", scorer) is texts
    assert own.spell(texts, "drop", scorer) == ["Rain. An answer", " "]
    assert own.spell([f"rain{EOS}sun"], "drop", scorer) == ["rain sun"]  # and not one word


def test_those_that_are_named_are_found_in_the_texts():
    assert Boundaries.in_texts(["[CLS]", "[SEP]"], ["[CLS] rain [SEP]", "no boundary"]) == BERT
    assert not Boundaries.in_texts(["</s>", "<s>"], ["<s>rain</s>", "<s> rain </s>"]).spaced
    assert not Boundaries.in_texts([EOS], [EOS, "rain"]).spaced
    assert Boundaries.in_texts([], ["[CLS] rain"]) == Boundaries()


def test_a_scorer_without_an_end_of_text_is_refused_where_there_is_something_to_replace(scorer, monkeypatch):
    monkeypatch.setattr(Scorer, "eos_id", None)
    assert BERT.spell(["rain"], "eos", scorer) == ["rain"]
    assert BERT.spell(["[CLS] rain"], "drop", scorer) == ["rain"]
    with pytest.raises(ValueError, match=r"no end-of-text token to stand for .* use --boundaries drop, or text"):
        BERT.spell(["[CLS] rain"], "eos", scorer)


# ----------------------------------------------------------------------------------------------------------------------
# What is recorded


def test_samples_and_held_out_texts_say_which_they_are(trained, store, succeed, tmp_path):
    common = ("sample", "--run", trained, "--num-samples", 2, "--steps", 2, "--device", "cpu")
    made = succeed(*common, "--output", tmp_path / "s.jsonl")
    assert (made["boundaries"], made["clean_up"]) == ({"tokens": [EOS], "spaced": False}, False)
    features.texts(store, 3, tmp_path / "real.jsonl", clean_up=True)
    for name, clean_up in (("s", False), ("real", True)):
        path = tmp_path / f"{name}.jsonl"
        found = samples.described(samples.read(path), path)
        assert (found.boundaries, found.clean_up) == (Boundaries((EOS,)), clean_up)
        assert found.first(1).boundaries == found.boundaries


def test_a_record_of_an_earlier_version_is_taken_up(trained, tmp_path):
    config = SampleConfig(num_samples=2, sampler=SampleConfig().sampler, device="cpu")
    out = tmp_path / "s.jsonl"
    sample.run(config, trained, out)
    record = files.read_json(samples.record_path(out))
    assert "clean_up" not in record["config"]
    for key in ("boundaries", "clean_up"):
        del record[key]
    files.write_json(samples.record_path(out), record)
    sample.run(config, trained, out)  # complete, and made with the same settings
    assert samples.described(samples.read(out), out, [EOS]).boundaries == Boundaries((EOS,))


def test_a_clean_up_of_spaces_is_a_setting_of_the_samples(trained, refuse, tmp_path):
    common = ("sample", "--run", trained, "--num-samples", 1, "--steps", 1, "--device", "cpu")
    out = tmp_path / "s.jsonl"
    sample.run(SampleConfig(num_samples=1, device="cpu"), trained, out)
    assert "clean_up: none -> True" in refuse(*common, "--steps", 32, "--clean-up", "true", "--output", out)


def test_an_exported_model_says_which_they_are(trained, succeed, tmp_path):
    succeed("export", "--run", trained, "--output", tmp_path / "model")
    model = LDLM.from_pretrained(tmp_path / "model")
    assert model.config.provenance["boundaries"] == {"tokens": [EOS], "spaced": False}
    assert model.sample(1, steps=1, clean_up=True)


# ----------------------------------------------------------------------------------------------------------------------
# Files without a record


NAME_THEM = 'occur in 6 of 6 texts and are {}; name them: --boundary-tokens "[CLS]" "[SEP]"'


def unnamed(tmp_path, unseen, begin, end):
    path = tmp_path / "theirs.txt"
    path.write_text("".join(f"{begin}{line}{end}\n" for line in unseen[:6]))
    return path


def test_boundary_tokens_that_nobody_named_are_noted(ldlm, gpt2, unseen, tmp_path):
    def shown(path, *more):
        found = ldlm("evaluate", path, "--scorer", gpt2, "--max-tokens", 16, *more)
        assert found.exit_code == 0, found.stderr
        return found

    bert = unnamed(tmp_path, unseen, "[CLS] ", " [SEP]")
    said = f"{bert}: [CLS] and [SEP] {NAME_THEM.format('read letter by letter')}"
    assert said in shown(bert).stderr.splitlines()
    assert "boundaries eos (none known)" in shown(bert).stdout
    assert f"{bert}: [CLS] and [SEP] {NAME_THEM.format('not left out')}" in shown(bert, "--boundaries", "drop").stderr
    assert (
        f'{bert}: [CLS] occurs in 6 of 6 texts and is read letter by letter; name it: --boundary-tokens "[SEP]" '
        in (shown(bert, "--boundary-tokens", "[SEP]").stderr)
    )
    for silent in (("--boundary-tokens", "[CLS]", "[SEP]"), ("--boundaries", "text")):
        found = shown(bert, *silent)
        assert "name them" not in found.stderr
    assert "none known" not in shown(bert, "--boundary-tokens", "[CLS]", "[SEP]").stdout

    own = unnamed(tmp_path, unseen, EOS, EOS)  # one token for the scorer
    assert "occurs in" not in shown(own).stderr
    assert f"{own}: {EOS} occurs in 6 of 6 texts and is not left out" in shown(own, "--boundaries", "drop").stderr


def test_a_marker_in_few_texts_is_part_of_a_text(scorer):
    few = ["rain"] * 30 + ["of <s> in HTML"]
    assert samples.unread(samples.Texts(few, None), "eos", scorer) is None
    assert samples.unread(samples.Texts(few[-8:], None), "eos", scorer).startswith("<s> occurs in 1 of 8 texts")


def test_a_record_settles_what_the_boundaries_are(ldlm, gpt2, unseen, tmp_path):
    path = unnamed(tmp_path, unseen, "", " [PAD] [PAD]")
    samples.write_record(path, "texts", {"boundaries": BERT.to_json(), "clean_up": False})
    assert "[PAD]" not in ldlm("evaluate", path, "--scorer", gpt2, "--max-tokens", 16).stderr
