"""Documents from files, and their packing into rows, against an implementation that is too simple to be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from ldlm.errors import InputError
from ldlm.features import text
from ldlm.features.encoder import tokenizer_fingerprint
from ldlm.hub import load_tokenizer


def naive_rows(documents: list[str], tokenizer, seq_len: int) -> list[list[int]]:
    """SPEC 1, one document and one token at a time."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    rows, chunk = [], []
    for document in documents:
        for token in [*tokenizer(document, add_special_tokens=False)["input_ids"], end]:
            chunk.append(token)
            if len(chunk) == seq_len - 2:
                rows.append([begin, *chunk, end])
                chunk = []
    return rows


def packed(documents, tokenizer, seq_len):
    """All rows of `pack` in one list."""
    return [row for batch in text.pack(iter(documents), tokenizer, seq_len) for row in batch.tolist()]


@pytest.fixture(scope="module")
def documents(corpus):
    return corpus.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def tokenizer(request):
    return load_tokenizer(str(request.getfixturevalue(request.param)))


@pytest.mark.parametrize("seq_len", [3, 7, 16, 500])
def test_packing_equals_the_naive_implementation(documents, tokenizer, seq_len):
    rows = packed(documents, tokenizer, seq_len)
    assert rows == naive_rows(documents, tokenizer, seq_len)
    assert len(rows) > 256 or seq_len > 7  # the short rows are more than pack gives out at a time


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_packing_does_not_depend_on_how_many_documents_are_tokenised_at_once(documents, tokenizer, monkeypatch, size):
    monkeypatch.setattr(text, "TOKENIZER_BATCH", size)
    assert packed(documents, tokenizer, 16) == naive_rows(documents, tokenizer, 16)


def test_a_document_alone_fills_a_row_with_itself(tokenizer):
    """Of the naive rows of a corpus that holds the document again and again, the first."""
    short, long = "nobody lost rain", " ".join(["the old captain found a letter"] * 9)
    bos, eos = text.special_tokens(tokenizer)
    ids = tokenizer(short, add_special_tokens=False)["input_ids"]
    for document, seq_len in ((short, 2 + 4 * len(ids)), (short, 3 + len(ids)), (short, 1 + len(ids)), (long, 12)):
        row, tokens = text.row_of(document, tokenizer, seq_len)
        assert row.tolist() == naive_rows([document] * 30, tokenizer, seq_len)[0]
        assert tokens == len(tokenizer(document, add_special_tokens=False)["input_ids"])
    exact, _ = text.row_of(short, tokenizer, len(ids) + 2)
    assert exact.tolist() == [bos, *ids, eos]


def test_a_row_begins_with_bos_and_ends_with_eos(documents, gpt2, bert):
    gpt2_tokenizer, bert_tokenizer = load_tokenizer(str(gpt2)), load_tokenizer(str(bert))
    end = gpt2_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    cls, sep = bert_tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    for tokenizer, first, last in ((gpt2_tokenizer, end, end), (bert_tokenizer, cls, sep)):
        rows = np.array(packed(documents, tokenizer, 16))
        assert (rows[:, 0] == first).all()
        assert (rows[:, -1] == last).all()
        # Inside a row the end token ends a document, and no other special token occurs.
        inside = rows[:, 1:-1].ravel()
        assert (inside == last).sum() in (len(documents), len(documents) - 1)
        assert not np.isin(inside, [i for i in tokenizer.all_special_ids if i != last]).any()


def test_only_the_last_short_chunk_is_dropped(documents, tokenizer):
    stream = sum(len(tokenizer(d, add_special_tokens=False)["input_ids"]) + 1 for d in documents)
    for seq_len in (3, 10, 11, 12):
        assert len(packed(documents, tokenizer, seq_len)) == stream // (seq_len - 2)
    assert len(packed(documents, tokenizer, stream + 2)) == 1  # exactly one chunk, nothing dropped
    assert packed(documents, tokenizer, stream + 3) == []


def test_the_documents_can_be_read_back_from_the_rows(documents, gpt2):
    tokenizer = load_tokenizer(str(gpt2))
    rows = np.array(packed(documents, tokenizer, 3))  # one token a row: nothing is dropped
    assert tokenizer.decode(rows[:, 1]).split("<|endoftext|>")[:-1] == documents


def test_rows_are_int32_batches_that_only_depend_on_order(documents, tokenizer):
    batches = list(text.pack(documents, tokenizer, 16))
    assert all(batch.dtype == np.int32 and batch.shape[1] == 16 for batch in batches)
    assert packed(documents[::-1], tokenizer, 16) != packed(documents, tokenizer, 16)


def test_a_tokenizer_without_ends_is_refused(gpt2):
    tokenizer = load_tokenizer(str(gpt2))
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither BOS and EOS nor CLS and SEP"):
        text.special_tokens(tokenizer)


def test_a_tokenizer_is_recognised_by_what_it_does_and_not_by_where_it_lies(gpt2, bert, tmp_path):
    tokenizer = load_tokenizer(str(gpt2))
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path / "elsewhere"))) == tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(load_tokenizer(str(bert))) != tokenizer_fingerprint(tokenizer)


def test_bare_vocabulary_folders_make_the_tokenizers_they_belong_to(gpt2, bert, tmp_path):
    for folder in (tmp_path / "gpt2", tmp_path / "bert"):
        folder.mkdir()
    model = json.loads((gpt2 / "tokenizer.json").read_text())["model"]
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "gpt2" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    vocabulary = json.loads((bert / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    for trained, bare in ((gpt2, tmp_path / "gpt2"), (bert, tmp_path / "bert")):
        line = "The café owner lost three boats."
        expected, got = load_tokenizer(str(trained)), load_tokenizer(str(bare))
        assert got(line, add_special_tokens=False)["input_ids"] == expected(line, add_special_tokens=False)["input_ids"]
        assert text.special_tokens(got) == text.special_tokens(expected)


# ----------------------------------------------------------------------------------------------------------------------
# Documents


def test_a_local_dataset_folder_is_read_split_by_split(tmp_path):
    for split, lines in (("train", ["one", "two"]), ("test", ["three"])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    assert list(text.dataset_documents(str(tmp_path), "train", "text")) == ["one", "two"]
    assert list(text.dataset_documents(str(tmp_path), "test", "text")) == ["three"]
    with pytest.raises(InputError, match=r"has no field 'body' \(fields: text\); set --text-column"):
        list(text.dataset_documents(str(tmp_path), "train", "body"))
    with pytest.raises(InputError, match="can't be read"):
        list(text.dataset_documents(str(tmp_path), "validation", "text"))


def test_a_dataset_skips_what_is_blank_as_files_do_and_refuses_what_is_no_text(tmp_path):
    rows = [{"text": "one", "id": 1}, {"text": None, "id": 2}, {"text": "  ", "id": 3}, {"text": "two", "id": 4}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(text.dataset_documents(str(tmp_path), "train", "text")) == ["one", "two"]
    with pytest.raises(InputError, match="field 'id' holds 1, which is no text; set --text-column to another"):
        list(text.dataset_documents(str(tmp_path), "train", "id"))
    rows = [{"text": [1] * 999}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"field 'text' holds \[1, 1, 1, 1, 1, 1, \.\.\.\], which is no text"):
        list(text.dataset_documents(str(tmp_path), "train", "text"))


def test_a_dataset_with_several_configurations_is_read_by_the_name_of_one(tmp_path):
    for name in ("small", "large"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    files = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("small", "large"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    with pytest.raises(InputError, match=r"Config name is missing"):
        text.dataset_source(str(tmp_path))
    for name in ("small", "large"):
        assert list(text.dataset_documents(str(tmp_path), "train", "text", name)) == [name]
        assert list(text.dataset_source(str(tmp_path), name)[1]) == [str(tmp_path / f"{name}.jsonl")]


@pytest.mark.parametrize(
    ("tokenised", "mdlm", "clean"),
    [
        ("It 's the best , he said .", "It's the best, he said.", "It's the best, he said."),
        ("They do n't know ; we 're late !", "They do n't know; we're late!", "They don't know; we're late!"),
        ('He said : " Wait ! "', 'He said: "Wait!"', 'He said: "Wait!"'),
        ("See http : / / a.b / c ( now )", "See http://a.b/c (now)", "See http://a.b/c (now)"),
        ("It cost $ 3.5 million [ sic ] .", "It cost $3.5 million [sic] .", "It cost $3.5 million [sic]."),
        ("Is it 3 p.m. ? Yes .", "Is it 3 p.m.? Yes.", "Is it 3 p.m.? Yes."),
        ("He left Jan . 3 , at 5 % .", "He left Jan. 3, at 5 % .", "He left Jan. 3, at 5 %."),
        ("and so on ,", "and so on ,", "and so on,"),
        ("the boys ' and girls ' games", "the boys 'and girls' games", "the boys 'and girls' games"),
        ("a , , b ? ! c", "a, , b?! c", "a,, b?! c"),
    ],
)
def test_the_lm1b_detokenisers_undo_what_the_benchmark_did_as_mdlm_does_and_further(tokenised, mdlm, clean):
    assert text.DETOKENIZERS["lm1b"](tokenised) == mdlm
    assert text.DETOKENIZERS["lm1b-clean"](tokenised) == clean
    assert text.DETOKENIZERS["none"] is None


SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared"
LM1B = SHARED / "data" / "lm1b-heldout-10-11.txt"


@pytest.mark.skipif(not LM1B.exists(), reason="../shared/data is not here")
def test_on_the_real_benchmark_the_detokenisers_differ_on_one_line_in_thirty():
    """And only in where spaces stand."""
    lines = LM1B.read_text(encoding="utf-8").splitlines()
    pairs = [[text.DETOKENIZERS[name](line) for name in ("lm1b", "lm1b-clean")] for line in lines]
    differing = [(mdlm, clean) for mdlm, clean in pairs if mdlm != clean]
    assert all(mdlm.replace(" ", "") == clean.replace(" ", "") for mdlm, clean in differing)
    assert (len(lines), len(differing)) == (12_216, 416)


def test_a_tokenizer_that_truncates_and_pads_does_so_no_more_and_another_is_left_alone(gpt2):
    bare = load_tokenizer(str(gpt2)).backend_tokenizer
    bare.enable_truncation(3)
    bare.enable_padding(length=8)
    text.keep_whole(bare)
    assert (bare.truncation, bare.padding) == (None, None)

    class Busy:
        """A tokenizer that another thread is encoding with: any change fails."""

        truncation = padding = None

    text.keep_whole(Busy())
