"""Documents of files of every kind, against the same documents in plain text; damage, pipes and long lines."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldlm.config import EvaluateConfig, ExtractConfig, PretrainConfig, PromptConfig, QuickstartConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.features import detection, formats, text, textfiles
from ldlm.features.textfiles import file_documents
from ldlm.sampling import prompts
from ldlm.stages import evaluate, extract_features, pretrain_encoder, quickstart

DOCUMENTS = [
    "One — naïve — line.",
    "Two,\u2028still two.",
    " indented",
    '{"not": "JSON", but a text',
    "[1] a reference",
]
SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared"


def objects(documents, column="text"):
    return [{"id": i, column: document} for i, document in enumerate(documents)]


def lines(values, **options):
    return "".join(json.dumps(value, **options) + "\n" for value in values).encode()


def parquet(documents, column="text"):
    return parquet_of([documents], [column])


def parquet_of(columns, names):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names=names), sink)
    return sink.getvalue().to_pybytes()


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def tar(data):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
KINDS = {
    "plain": ("\n\n".join(DOCUMENTS) + "\r\n  \r\n").encode(),
    "json lines": lines(objects(DOCUMENTS)) + b"\n",
    "json lines, as they stand": lines(objects(DOCUMENTS), ensure_ascii=False).replace(b"\n", b"\r\n").strip(),
    "json array": json.dumps(objects(DOCUMENTS), indent=2).encode(),
    "json array on a line": json.dumps(objects(DOCUMENTS)).encode(),
    "json array of strings": json.dumps(DOCUMENTS).encode(),
    "parquet": parquet(DOCUMENTS),
}


def read(path, column="text"):
    return list(file_documents([path], column))


# ----------------------------------------------------------------------------------------------------------------------
# Kinds


FILES = ["data", "data.txt", "data.JSONL", "data.dat", "data.gz", "data.json.zst"]
# A name that promises JSON is held to it.
NAMED = [(kind, name) for kind in KINDS for name in FILES if kind != "plain" or "json" not in name.lower()]


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_the_content_tells_the_kind_and_the_name_does_not(tmp_path, kind, name):
    (tmp_path / name).write_bytes(KINDS[kind])
    assert read(tmp_path / name) == DOCUMENTS
    assert samples.read(tmp_path / name).texts == DOCUMENTS


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "parquet"])
def test_compressed_files_are_read_by_any_name_and_in_several_members(tmp_path, kind, packing):
    data = KINDS[kind]
    (tmp_path / "whole").write_bytes(PACK[packing](data))
    (tmp_path / "parts").write_bytes(PACK[packing](data[:50]) + PACK[packing](data[50:]))
    assert read(tmp_path / "whole") == read(tmp_path / "parts") == DOCUMENTS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "parquet"])
def test_a_byte_order_mark_is_no_text(tmp_path, kind):
    (tmp_path / "data").write_bytes(b"\xef\xbb\xbf" + KINDS[kind])
    assert read(tmp_path / "data") == DOCUMENTS
    if "lines" in kind or kind == "plain":  # as `cat` leaves them inside
        (tmp_path / "data").write_bytes((b"\xef\xbb\xbf" + KINDS[kind].strip() + b"\n") * 2)
        assert read(tmp_path / "data") == DOCUMENTS * 2


def test_every_encoding_and_dictionary_of_strings_in_parquet_is_text(tmp_path):
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    for kind in kinds:
        table = pa.table({"body": pa.array(DOCUMENTS).cast(kind)})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        assert read(tmp_path / "a.parquet", "body") == DOCUMENTS


@pytest.mark.parametrize(
    "text_",
    [
        "[Music] la la",
        "[1] See below.",
        "[1, 2] as above",
        "[7]",
        "{ a set }",
        "[",
        "{}",
        "PAR1 is a protein.",
        '"Yes."',
    ],
)
def test_prose_that_begins_like_json_is_prose(tmp_path, text_):
    (tmp_path / "a.txt").write_text(f"{text_}\nmore\n")
    assert read(tmp_path / "a.txt") == [text_, "more"]


def test_json_by_another_name_is_said_and_can_be_taken_as_it_stands(tmp_path, notes, gpt2):
    path = tmp_path / "log.txt"
    path.write_bytes(lines(objects(DOCUMENTS * 20)))
    config = ExtractConfig(encoder=str(gpt2), data=(str(path),), seq_len=16, kind="scratch", device="cpu")
    extract_features.run(config, tmp_path / "out", progress=notes)
    (note,) = notes.lines
    assert note.startswith(f"{path} holds JSON, of which the field 'text' is read; ")
    if shutil.which("jq") is None:
        pytest.skip("the advice needs jq, which is not here")
    subprocess.run(re.search(r"jq .*", note)[0], shell=True, cwd=tmp_path, check=True)
    assert read(tmp_path / "lines.jsonl") == path.read_text().splitlines()


MDLM = {"generative_ppl": 39.5, "entropy": 5.1, "generated_seqs": ["[CLS] rain, and\nsun", "a 'letter'"]}


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("column", ["text", "generated_seqs"])
@pytest.mark.parametrize("name", ["mdlm.json", "mdlm.jsonl", "mdlm"])
def test_one_object_with_all_texts_is_taken_apart_by_the_command_that_is_named(tmp_path, indent, column, name):
    """The object is as MDLM and its descendants write their samples."""
    (tmp_path / name).write_text(json.dumps(MDLM, indent=indent) + "\n")
    with pytest.raises(InputError, match="make each of them a text: jq ") as error:
        read(tmp_path / name, column)
    said = str(error.value)
    assert "jq -c '.generated_seqs[]|{text:.}' " + name + " > texts.jsonl" in said
    assert said.startswith(str(tmp_path / name))
    assert "over several lines" not in said
    if shutil.which("jq") is None:
        pytest.skip("the advice needs jq, which is not here")
    command = re.search(r"jq .*?texts.jsonl", said.partition("a text: ")[2])[0]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert read(tmp_path / "texts.jsonl") == MDLM["generated_seqs"]


@pytest.mark.parametrize("column", ["text", "body"])
def test_a_list_beside_a_text_is_not_taken_for_the_texts(tmp_path, column):
    row = {column: "rain", "tags": ["a", "b"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, indent=4) + "\n")
    with pytest.raises(InputError, match="over several lines on one, with jq"):
        read(tmp_path / "a.jsonl", column)
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"set --text-column to another field \(fields: "):
        read(tmp_path / "b.jsonl", "tags")


def test_a_table_of_values_is_refused_and_its_column_can_be_had(tmp_path, gpt2, refuse):
    (tmp_path / "a.csv").write_text('id,text\n1,"rain, and\nsun"\n2,a letter\n')
    (tmp_path / "a.tsv").write_text('"id"\t"text"\n1\train\n')
    (tmp_path / "a.txt").write_text("id,text\n1,rain\n")
    config = EvaluateConfig(scorer=str(gpt2), resamples=10, device="cpu")
    for name, texts in (("a.csv", ["rain, and\nsun", "a letter"]), ("a.tsv", ["rain"])):
        line = refuse("evaluate", tmp_path / name, "--scorer", gpt2, "--max-tokens", 16)
        said, _, command = line.partition("; to read that column: ")
        assert said == f"{tmp_path / name} is a table with a column 'text', and not lines of text"
        subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=tmp_path, check=True)
        assert read(tmp_path / "a.parquet") == texts
        with pytest.raises(InputError, match="is a table with a column 'text'"):
            evaluate.run(config, [tmp_path / "a.txt"], reference=tmp_path / name)
        with pytest.raises(InputError, match="is a table with a column 'text'"):
            prompts.given(PromptConfig(prompts=str(tmp_path / name)))
    with pytest.raises(InputError, match="is a table with a column 'id'"):
        evaluate.run(replace(config, text_column="id"), [tmp_path / "a.csv"])
    assert len(evaluate.run(config, [tmp_path / "a.txt"])) == 1


def test_a_table_of_values_without_the_column_is_said(tmp_path, notes, gpt2):
    (tmp_path / "a.csv").write_text("id,body\n1,a letter\n")
    evaluate.run(EvaluateConfig(scorer=str(gpt2), resamples=10, device="cpu"), [tmp_path / "a.csv"], progress=notes)
    assert any("a.csv is read as lines of text, its header and marks" in line for line in notes.lines)
    (tmp_path / "b.csv").write_text('{"text": "rain"}\n')
    textfiles.check_no_table(tmp_path / "b.csv", "text")
    (said,) = textfiles.remarks([tmp_path / "b.csv"], "text")
    assert "holds JSON" in said


def test_json_by_its_name_and_plain_text_go_without_a_note(tmp_path):
    for name, kind in (
        ("a.jsonl.gz", "json lines"),
        ("a.NDJSON", "json lines"),
        ("a.json", "json array"),
        ("a", "plain"),
    ):
        (tmp_path / name).write_bytes(KINDS[kind])
        assert list(textfiles.remarks([tmp_path / name], "text")) == []


def test_a_large_array_is_read_element_by_element(tmp_path, monkeypatch):
    """Whatever the window cuts: strings, escapes, literals, numbers."""
    draw = random.Random(0)
    texts = ["".join(draw.choices('ab "\\\n\té—😀', k=draw.randint(1, 60))) + "x" for _ in range(300)]
    values = [{"n": draw.choice([None, True, -1.5e-3, 12345, float("inf")]), "text": value} for value in texts]
    for ascii_ in (True, False):
        (tmp_path / "a").write_text(json.dumps(values, ensure_ascii=ascii_), encoding="utf-8")
        for size in (16, 17, 50, 1000):
            monkeypatch.setattr(formats, "WINDOW", size)
            monkeypatch.setattr(detection, "HEAD", size)
            assert read(tmp_path / "a") == texts


def test_files_are_read_in_the_order_given(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    assert list(file_documents([tmp_path / "b.txt", tmp_path / "a.txt"])) == ["b1", "b2", "a1", "a2"]


def test_null_and_blank_rows_are_passed_over_in_every_kind(tmp_path):
    values = [None, "one", "", "  ", None, "two", "\t"]
    data = {
        "a.jsonl": lines(objects(values)),
        "a.json": json.dumps(objects(values)).encode(),
        "b.json": json.dumps(values).encode(),
        "a.parquet": parquet(values),
    }
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == ["one", "two"]
        # In a set of texts a blank one may be what a model drew.
        assert samples.read(tmp_path / name).texts == ["one", "", "  ", "two", "\t"]
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "train.jsonl").write_bytes(data["a.jsonl"])
    assert list(text.dataset_documents(str(tmp_path / "dataset"), "train", "text")) == ["one", "two"]


def test_a_null_row_takes_its_tokens_and_seed_along(tmp_path):
    rows = [{"text": t, "tokens": [i], "seed": i} for i, t in enumerate(["zero", None, "two"])]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    found = samples.read(tmp_path / "a.jsonl")
    assert (found.texts, found.seeds) == (["zero", "two"], [0, 2])
    assert np.concatenate(found.tokens).tolist() == [0, 2]


# ----------------------------------------------------------------------------------------------------------------------
# What can't be read


def broken(data, at=0.5):
    """The data with a stretch of other bytes."""
    start = int(len(data) * at)
    return data[:start] + bytes(255 - byte for byte in data[start : start + 40]) + data[start + 40 :]


LONG = lines(objects([f"{i} {'words of text ' * (i % 7 + 1)}" for i in range(3000)]))
BIG = b'{"text": "ok", "id": ' + b"9" * 5000 + b"}\n"
DEEP = b'{"text": "ok", "id": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
UNREADABLE = {
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b"\n \n\t\n", "holds no text"),
    "long blank.txt": (b" " * 200_000 + b"\n", "holds no text"),
    "null.jsonl": (b'{"text": null}\n', "holds no text"),
    "array.json": (b"[]", "holds no text"),
    "latin1.txt": (b"fine\ncaf\xe9\n", "line 2 is not UTF-8 (byte 0xe9); convert it"),
    "latin1.jsonl": (b'{"text": "caf\xe9"}\n', "line 1 is not UTF-8"),
    "latin1.json": (b'[{"text": "caf\xe9"}]', "is not UTF-8 (byte 0xe9); convert it"),
    "latin1 late.txt": (b"fine\n" + b"x " * 100_000 + b"\xe9\n", "line 2 is not UTF-8 (byte 0xe9)"),
    "cut.txt": (b"x " * 100_000 + b"\xc3", "line 1 is not UTF-8 (byte 0xc3)"),
    "nul.txt": (b"one\ntw\0o\n", "line 2 holds a NUL byte"),
    "hole.txt": (b"one\n" * 50_000 + bytes(200_000), "line 50001 holds a NUL byte"),
    "nul.jsonl": (b'{"text": "a\0b"}\n', "line 1 holds a NUL byte"),
    "half.jsonl": (
        b'{"text": "x"}\n{"text": "half \\ud83d a character"}\n',
        r"line 2 holds half a character, '\ud83d'",
    ),
    "half.json": (b'[{"text": "x"}, {"text": "\\udc00"}]', r"element 2 holds half a character, '\udc00'"),
    "big.jsonl": (b'{"text": "x"}\n' + BIG, "line 2 can't be read as JSON: Exceeds the limit (4300 digits)"),
    "big.json": (b"[" + BIG + b"]", "element 1 can't be read as JSON: Exceeds the limit"),
    "deep.jsonl": (DEEP, "line 1 can't be read as JSON: maximum recursion depth exceeded"),
    "half a line.jsonl": (b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
    "half a line.txt": (b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
    "half an array.json": (b'[{"text": "x"}, {"text": "y"', "element 2 is not JSON"),
    "no end.json": (b'[{"text": "x"}', "']' is missing before the end of the file"),
    "more.json": (b'[{"text": "x"}] 3', "holds more after the end of its JSON array"),
    "no comma.json": (b'[{"text": "x"} {"text": "y"}]', "']' is missing before '{'"),
    "bare.jsonl": (b"one\n", "line 1 is not JSON"),
    "spread.jsonl": (b'{\n "text": "x"\n}\n', "put an object that spreads over several lines on one, with jq -c ."),
    "column.jsonl": (b'{"body": "x", "id": 1}\n', "line 1 has no text in 'text' (fields: body, id); set --text-column"),
    "column.txt": (b'{"body": "x"}\n', "set --text-column; to take its lines as they stand, make each a text: jq"),
    "number.jsonl": (
        b'{"id": "a", "text": 3}\n',
        "line 1 holds 3 in 'text', which is no text; write it as a string, or set --text-column to another field "
        "(fields: id, text)",
    ),
    "number.json": (b'[{"text": "x"}, {"text": 3}]', "element 2 holds 3 in 'text', which is no text; write it as a"),
    "number.txt": (b'{"text": 3}\n', "(fields: text); to take its lines as they stand, make each a text: jq"),
    "words.jsonl": (b'{"text": ["one", "two"]}\n', "line 1 holds ['one', 'two'] in 'text', which is no text"),
    "many.jsonl": (b'{"text": [' + b"1, " * 999 + b"1]}\n", "line 1 holds [1, 1, 1, 1, 1, 1, ...] in 'text', which"),
    "false.jsonl": (b'{"text": false}\n', "line 1 holds False in 'text', which is no text"),
    "number.parquet": (
        parquet_of([[1], ["x"]], ["text", "id"]),
        "column 'text' holds int64, which is no text; write it as strings, or set --text-column to another column "
        "(columns: text, id)",
    ),
    "ids.jsonl": (
        b'{"input_ids": [5, 6], "mask": [1, 1]}\n',
        "line 1 has no text in 'text' (fields: input_ids, mask), but token ids in 'input_ids'; decode them with their "
        'tokenizer, special tokens kept, and write {"text": …, "tokens": …}',
    ),
    "ids in text.jsonl": (
        b'{"text": [5, 6]}\n',
        "which are token ids; decode them with their tokenizer, special tokens",
    ),
    "ids.parquet": (
        parquet_of([[[5, 6]]], ["input_ids"]),
        "has no column 'text' (columns: input_ids), but token ids in 'input_ids'; decode them with their tokenizer",
    ),
    "ids in text.parquet": (
        parquet_of([[[5, 6]]], ["text"]),
        "column 'text' holds token ids; decode them with their tokenizer",
    ),
    "list.jsonl": (b"[[]]\n", """line 1 has no text in 'text' (fields: none); write each text as {"text": "…"}"""),
    "one id.jsonl": (
        b"[1]\n",
        "line 1 holds [1], which are token ids; decode them with their tokenizer, special tokens",
    ),
    "bare ids.jsonl": (b"[5, 6]\n[7]\n", "line 1 holds [5, 6], which are token ids; decode them with their tokenizer"),
    "bare ids.txt": (b"[5,6]\n[7]\n", "line 1 holds [5, 6], which are token ids; decode them with their tokenizer"),
    "bare ids": (b"[1" + b", 11" * 2**16 + b"]\n", "which are token ids; decode them with their tokenizer"),
    "bare ids.json": (
        b"[[5, 6], [7]]",
        "element 1 holds [5, 6], which are token ids; decode them with their tokenizer",
    ),
    "one text's ids.json": (b"[5, 6]\n", "element 1 holds 5, as token ids do; decode them with their tokenizer"),
    "list.json": (b'[["x"]]', "element 1 has no text in 'text' (fields: none); write each text as"),
    "no object.txt": (b'{}\n{"text": "x"}\n', "line 1 has no text in 'text' (fields: none)"),
    "twice.parquet": (parquet_of([["x"], ["y"]], ["text", "text"]), "has 2 columns 'text'; rename one"),
    "no.parquet": (b"no parquet", "is not a parquet file"),
    "empty.parquet": (b"", "is not a parquet file"),
    "head.parquet": (parquet(DOCUMENTS * 100)[:-20], "is not a whole parquet file"),
    "packed.parquet.gz": (gzip.compress(parquet(DOCUMENTS)), "unpack it first"),
    "text.tar": (tar(b"one line\n"), "is an archive or binary"),
    "text.tar.gz": (gzip.compress(tar(b"one line\n")), "is an archive or binary"),
    "text.zip": (b"PK\x03\x04\x14\0\0\0\x08\0\xc9\xf2\xe9", "is an archive or binary"),
    "text.lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7\x1c\x10\xc0one line", "is an archive or binary"),
    "states.npy": (np.random.default_rng(0).bytes(999), "is an archive or binary"),
    **{f"half.{end}": (pack(LONG)[: len(pack(LONG)) // 2], "can't be read") for end, pack in PACK.items()},
    "broken.gz": (broken(gzip.compress(LONG)), "is not JSON"),  # its checksum comes last
    **{f"broken.{end}": (broken(PACK[end](LONG)), "can't be read") for end in ("bz2", "xz", "zst")},
}


@pytest.fixture(params=UNREADABLE)
def unreadable(request, tmp_path):
    """A file that holds no texts, and what must be said of it."""
    content, message = UNREADABLE[request.param]
    (tmp_path / request.param).write_bytes(content)
    return tmp_path / request.param, message


def test_a_file_without_documents_is_named_with_the_reason(unreadable):
    path, message = unreadable
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_to_evaluate_are_refused_alike(unreadable):
    path, message = unreadable
    with pytest.raises(InputError, match=re.escape(message)) as error:
        samples.read(path)
    assert str(error.value).startswith(str(path))


def test_what_comes_before_the_damage_is_given_and_its_place_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LONG)[:-2000])
    found = []
    with pytest.raises(
        InputError, match=r"a\.jsonl\.gz, after [\d,]+ bytes of text, can't be read: Compressed file ended"
    ):
        found.extend(file_documents([tmp_path / "a.jsonl.gz"]))
    assert found == [json.loads(line)["text"] for line in LONG.splitlines()[: len(found)]]
    assert len(found) > 100


def test_a_corrupt_page_of_parquet_is_named_by_its_row(tmp_path):
    pq.write_table(
        pa.table({"text": [f"{i} {random.Random(i).random()}" for i in range(9000)]}),
        tmp_path / "a.parquet", row_group_size=3000,
    )  # fmt: skip
    data = (tmp_path / "a.parquet").read_bytes()
    start = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).dictionary_page_offset
    (tmp_path / "a.parquet").write_bytes(data[:start] + bytes(4000) + data[start + 4000 :])
    with pytest.raises(InputError, match=r"a\.parquet, after row [\d,]+, can't be read: .*; get an intact copy of it$"):
        read(tmp_path / "a.parquet")


def test_bytes_in_parquet_that_are_no_utf_8_are_named(tmp_path):
    column = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, after row 0, can't be read: .*utf-8"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(("column", "message"), [("text", "has no column 'text'"), ("id", "column 'id' holds int64")])
def test_a_parquet_column_that_is_absent_or_no_text_is_named(tmp_path, column, message):
    pq.write_table(pa.table({"id": [1, 2], "body": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.parquet", column)


def test_a_folder_or_an_absent_file_is_no_text(tmp_path):
    for call in (read, lambda path: textfiles.fingerprints([path])):
        with pytest.raises(InputError, match="is a folder; give the text files in it"):
            call(tmp_path)
        with pytest.raises(InputError, match="there is no file"):
            call(tmp_path / "absent.txt")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose reading fails")
def test_what_the_system_does_not_give_is_named():
    for call in (read, lambda path: textfiles.fingerprints([path])):
        with pytest.raises(InputError, match=r"/proc/self/mem.* can't be read: Input/output error"):
            call(Path("/proc/self/mem"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-16be", "utf-32", "utf-16-be with a mark"])
def test_utf_16_is_named_with_a_remedy_that_works(tmp_path, encoding):
    data = "\n".join(["One naïve line.", "Two."])
    encoded = "\ufeff".encode("utf-16be") + data.encode("utf-16be") if " " in encoding else data.encode(encoding)
    (tmp_path / "a.txt").write_bytes(encoded)
    with pytest.raises(InputError, match=rf"a\.txt is {encoding[:6].upper()}, and UTF-8 is needed") as error:
        read(tmp_path / "a.txt")
    command = re.search(r"iconv .*", str(error.value))[0]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert read(tmp_path / "utf8-a.txt") == data.split("\n")


def test_the_remedy_against_nul_bytes_works(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\0\ntwo\n")
    with pytest.raises(InputError) as error:
        read(tmp_path / "a.txt")
    subprocess.run(re.search(r"tr .*", str(error.value))[0], shell=True, cwd=tmp_path, check=True)
    assert read(tmp_path / "text.txt") == ["one", "two"]


# From the commands, which leave nothing behind that refuses the corrected one.

BAD = {
    "half.jsonl": UNREADABLE["half.jsonl"][0],
    "big.jsonl": UNREADABLE["big.jsonl"][0],
    "late.jsonl": LONG[:-9],
    "late.jsonl.gz": gzip.compress(LONG)[:-2000],
    "nul.txt": b"one\n" * 5000 + b"\0\n",
    "corrupt.parquet": broken(parquet([f"{i} words" for i in range(3000)]), 0.1),
}


@pytest.mark.parametrize("name", BAD)
def test_the_corrected_command_is_not_refused(refuse, succeed, gpt2, corpus, tmp_path, name):
    path, out = tmp_path / name, tmp_path / "out"
    extract = ("extract-features", "--encoder", gpt2, "--seq-len", 16, "--kind", "scratch", "--device", "cpu")
    path.write_bytes(BAD[name])
    assert str(path) in refuse(*extract, "--data", path, "--output", out)
    assert not out.exists()
    assert str(path) in refuse("pretrain-encoder", "--data", path, "--output", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
    assert str(path) in refuse("quickstart", "--text", path, "--output", tmp_path / "quick")
    assert not (tmp_path / "quick").exists()
    assert str(path) in refuse("evaluate", path, "--scorer", gpt2)
    path.write_bytes(parquet(DOCUMENTS * 20) if name.endswith("parquet") else LONG)
    assert succeed(*extract, "--data", path, "--output", out)["rows"]["train"]


def interrupted_after(count):
    def documents(found):
        for number, document in enumerate(found):
            if number == count:
                raise KeyboardInterrupt
            yield document

    return documents


def test_a_fault_found_after_an_interruption_leaves_nothing_either(tmp_path, gpt2, monkeypatch):
    """The first call stops among the good lines, and the second comes to the bad one."""
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_bytes(LONG + LONG[:-9])
    extract = ExtractConfig(encoder=str(gpt2), data=(str(path),), seq_len=16, kind="scratch", device="cpu")
    pretrain = PretrainConfig(data=(str(path),), vocab_size=400, steps=1, device="cpu")

    for stage, config in ((extract_features, extract), (pretrain_encoder, pretrain)):
        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched:
            patched.setattr(textfiles, "not_blank", interrupted_after(100))
            stage.run(config, out)
        assert out.exists()
        with pytest.raises(InputError, match="line 6000 is not JSON"):
            stage.run(config, out)
        assert not out.exists()


# ----------------------------------------------------------------------------------------------------------------------
# Pipes


@pytest.fixture
def pipe(tmp_path):
    """Makes a named pipe that gives the data to each reader in turn."""
    made = []

    def feed(path, data):
        with suppress(BrokenPipeError), open(path, "wb") as file:
            file.write(data)

    def make(data, times=1):
        path = tmp_path / f"pipe{len(made)}"
        os.mkfifo(path)
        made.append(threading.Thread(target=lambda: [feed(path, data) for _ in range(times)], daemon=True))
        made[-1].start()
        return path

    return make


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "parquet"])
def test_a_pipe_is_read_like_a_file(pipe, kind):
    assert read(pipe(KINDS[kind])) == DOCUMENTS
    assert samples.read(pipe(gzip.compress(KINDS[kind]))).texts == DOCUMENTS


def test_a_pipe_of_parquet_is_refused_with_the_reason(pipe):
    with pytest.raises(InputError, match="holds parquet, which is read from its end; save it to a file"):
        read(pipe(KINDS["parquet"]))


def test_texts_on_standard_input_are_evaluated(gpt2, tmp_path):
    """By a shell's pipe, and beside a reference from another one."""
    (tmp_path / "t.jsonl").write_bytes(lines(objects(["The old captain found a letter.", "Nobody lost rain."])))
    ldlm = f"{sys.executable} -m ldlm.cli evaluate"
    common = f"--scorer {gpt2} --max-tokens 16 --device cpu --no-cache --json"
    command = f"cat t.jsonl | {ldlm} - {common} --reference <(gzip -c t.jsonl)"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["file"], found["num_texts"], found["reference"]["num_texts"]) == ("-", 2, 2)
    assert found["gen_ppl"] == found["reference"]["gen_ppl"]


def test_standard_input_can_not_be_two_files(refuse, gpt2, pipe):
    assert "- is given twice and can be read only once" in refuse("evaluate", "-", "--reference", "-", "--scorer", gpt2)
    path = pipe(b"one\n")
    assert "is given twice" in refuse("evaluate", path, path, "--scorer", gpt2)
    read(path)  # which lets its writer go


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_text_that_is_read_more_than_once_is_no_pipe(refuse, trained, gpt2, pipe, tmp_path, name):
    path = "-" if name == "-" else pipe(b"one\n" * 100)
    out = ("--output", tmp_path / "out")
    for command in (
        ("extract-features", "--encoder", gpt2, "--seq-len", 16, "--data", path, *out),
        ("extract-features", "--encoder", gpt2, "--seq-len", 16, "--data", __file__, "--validation-data", path, *out),
        ("train", "--features", "online", "--encoder", gpt2, "--seq-len", 16, "--data", path, "--preset", "tiny", *out),
        ("pretrain-encoder", "--data", path, *out),
        ("pretrain-encoder", "--data", path, "--dry-run"),
        ("extract-features", "--encoder", gpt2, "--seq-len", 16, "--data", path, "--dry-run"),
        ("pretrain-encoder", "--data", __file__, path, *out),
        ("quickstart", "--text", path, *out),
        ("sweep", "--run", trained, "--scorer", gpt2, "--reference", path, *out),
        ("sweep", "--run", trained, "--scorer", gpt2, "--external", f"other={path},1,1", *out),
    ):
        line = refuse(*command)
        assert f"{path} (" in line
        assert "can be read only once, and this text is read several times and its hash recorded" in line
        assert list(tmp_path.glob("out*")) == []
    if name == "pipe":
        read(path)


def test_the_quickstart_keeps_documents_that_have_line_ends_or_read_like_json(tmp_path, interrupted):
    documents = [json.dumps({"text": f"{i}"}) + "\n\n" + "words of text " * 800 for i in range(60)]
    (tmp_path / "a.parquet").write_bytes(parquet(documents, "body"))
    config = QuickstartConfig(text=str(tmp_path / "a.parquet"), text_column="body", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        quickstart.run(config, tmp_path / "out", progress=interrupted(at=0))
    plan = quickstart.Plan(config, tmp_path / "out")
    found = [list(file_documents([plan.part(name)])) for name in ("held-out", "scorer", "train")]
    assert sorted(document for part in found for document in part) == sorted(documents)
    assert plan.encoder.data == (plan.part("train"),)
    Path(plan.part("train")).rename(tmp_path / "out" / "text" / "train.txt")  # as an earlier version called it
    assert plan.part("train").endswith("train.txt")
