"""Documents from files, and their packing into rows, against an implementation that is too simple to be wrong."""

import json

import numpy as np
import pytest

from ldlm import text
from ldlm.encoder import tokenizer_fingerprint
from ldlm.errors import InputError
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


def test_text_jsonl_and_parquet_files_give_the_same_documents(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = ["One — naïve — line.", "Two,\u2028still two.", " indented"]
    (tmp_path / "a.txt").write_bytes(("\n\n".join(documents) + "\r\n  \r\n").encode())
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": d}) for d in documents) + "\n\n")
    pq.write_table(pa.table({"body": [*documents[:1], None, *documents[1:], ""]}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert list(text.file_documents([tmp_path / name], "body")) == documents


def test_files_are_read_in_the_order_given(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    assert list(text.file_documents([tmp_path / "b.txt", tmp_path / "a.txt"])) == ["b1", "b2", "a1", "a2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"\n \n\t\n", "holds no text"),
        ("a.txt", b"fine\ncaf\xe9\n", "line 2 is not UTF-8 (byte 0xe9); convert it"),
        ("a.txt", "text".encode("utf-16"), "line 1 is not UTF-8"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', "line 1 has no text in 'text' (fields: body, id); set --text-column"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 has no text in 'text'"),
        ("a.jsonl", b'["x"]\n', "line 1 has no text in 'text' (fields: none)"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "line 1 is not UTF-8"),
        ("a.parquet", b"no parquet", "is not a parquet file"),
        ("a.parquet", b"", "is not a parquet file"),
    ],
)
def test_a_file_without_documents_is_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        list(text.file_documents([tmp_path / name]))
    assert str(error.value).startswith(f"{tmp_path / name}")
    assert message in str(error.value)


@pytest.mark.parametrize(("column", "message"), [("text", "has no column 'text'"), ("id", "column 'id' holds int64")])
def test_a_parquet_column_that_is_absent_or_no_text_is_named(tmp_path, column, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1, 2], "body": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError) as error:
        list(text.file_documents([tmp_path / "a.parquet"], column))
    assert message in str(error.value)


def test_a_folder_or_an_absent_file_is_no_text(tmp_path):
    with pytest.raises(InputError, match="is a folder; give the text files in it"):
        list(text.file_documents([tmp_path]))
    with pytest.raises(InputError, match="there is no file"):
        list(text.file_documents([tmp_path / "absent.txt"]))


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
    with pytest.raises(InputError, match="field 'id' holds 1, no text"):
        list(text.dataset_documents(str(tmp_path), "train", "id"))


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
    ("tokenised", "text"),
    [
        ("It 's the best , he said .", "It's the best, he said."),
        ("They do n't know ; we 're late !", "They don't know; we're late!"),
        ('He said : " Wait ! "', 'He said: "Wait!"'),
        ("See http : / / a.b / c ( now )", "See http://a.b/c (now)"),
        ("It cost $ 3.5 million [ sic ] .", "It cost $3.5 million [sic]."),
        ("Is it 3 p.m. ? Yes .", "Is it 3 p.m.? Yes."),
    ],
)
def test_the_lm1b_detokeniser_undoes_what_the_benchmark_did(tokenised, text):
    from ldlm.text import detokenize_lm1b

    assert detokenize_lm1b(tokenised) == text
