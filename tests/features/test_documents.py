"""Long documents in parts, against the same documents whole: tokens, documents, memory."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldlm.config import ExtractConfig, PretrainConfig
from ldlm.features import corpus, text
from ldlm.features.documents import Part, count_documents, parts, section, whole
from ldlm.features.textfiles import file_documents
from ldlm.hub import load_tokenizer
from ldlm.stages import pretrain_encoder

SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared"


def read(path, column="text"):
    return list(file_documents([path], column))


def naive_rows(documents, tokenizer, seq_len):
    """SPEC 1 on whole documents."""
    bos, eos = text.special_tokens(tokenizer)
    stream = [t for d in documents for t in [*tokenizer(d, add_special_tokens=False, verbose=False)["input_ids"], eos]]
    chunks = [stream[i : i + seq_len - 2] for i in range(0, len(stream), seq_len - 2)]
    return [[bos, *chunk, eos] for chunk in chunks if len(chunk) == seq_len - 2]


def packed(documents, tokenizer, seq_len):
    return [row for batch in text.pack(documents, tokenizer, seq_len) for row in batch.tolist()]


WORDS = [
    *("the", "café", "'s", "don't", "3.14", "1847", "naïve", "—", "“quoted”", "(and)", "so-called", "e\u0301"),
    *("Straße", "東京", "привет", "½", "😀", "_x_", "<|endoftext|>", "..."),
]
GAPS = [" "] * 8 + ["  ", "\t", " \t ", "\u2003", "\u00a0", ", ", "; "]


BREAKS = ["\n", "\n\n", " \n ", "\r\n", "\u2028", "\x0b", "\x1c", "\x85"]


def prose(words, seed=0, gaps=GAPS):
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(gaps) for _ in range(words)).strip()


@pytest.fixture(params=["gpt2", "bert", "shared/gpt2", "shared/bert-base-uncased"])
def tokenizer(request):
    if not request.param.startswith("shared"):
        return load_tokenizer(str(request.getfixturevalue(request.param)))
    path = SHARED / "tokenizers" / request.param.removeprefix("shared/")
    if not path.exists():
        pytest.skip("../shared/tokenizers is not here")
    return load_tokenizer(str(path))


@pytest.mark.parametrize("longest", [32, 64, 1000])
def test_a_document_in_parts_has_the_tokens_that_it_has_whole(tokenizer, monkeypatch, longest):
    documents = [prose(words, seed, GAPS + BREAKS) for seed, words in enumerate((1, 30, 400, 3, 200, *[90] * 20))]
    expected = naive_rows(documents, tokenizer, 16)
    assert packed(documents, tokenizer, 16) == expected
    monkeypatch.setattr("ldlm.features.documents.LONGEST", longest)
    assert sum(1 for d in documents for _ in parts(d)) > len(documents) + (longest < 1000)
    assert packed(documents, tokenizer, 16) == expected


def test_a_line_gives_the_parts_of_its_document_whatever_it_is_read_in(tmp_path, monkeypatch):
    documents = [prose(words, seed) for seed, words in enumerate((1, 300, 2, 77))]
    documents += ["無空白の文、" * 40, "x" * 500, "  lead" + "é" * 90, "end" + " " * 99]
    ends = ["\n", "\r\n", "\n", "\r\r\n", "\n", "\n\n", "\n", ""]
    (tmp_path / "a.txt").write_bytes("".join(map("".join, zip(documents, ends, strict=True))).encode())
    for longest in (16, 33, 64):
        monkeypatch.setattr("ldlm.features.documents.LONGEST", longest)
        found = read(tmp_path / "a.txt")
        assert found == [part for document in documents for part in parts(document)]
        assert max(map(len, found)) <= longest
        assert list(whole(found)) == documents
        assert [type(part) for part in found] == [type(part) for document in documents for part in parts(document)]
        assert count_documents(found) == len(documents)
        for start, stop in ((0, 3), (2, 5), (1, None), (3, 3), (0, 0), (7, 99)):
            assert list(whole(section(found, start, stop))) == documents[start:stop]


def test_script_without_spaces_is_cut_where_gpt2s_tokens_end(gpt2, monkeypatch):
    documents = ["東京は日本の首都です。人口は、多い。" * 20]
    tokenizer = load_tokenizer(str(gpt2))
    expected = naive_rows(documents, tokenizer, 16)
    monkeypatch.setattr("ldlm.features.documents.LONGEST", 40)
    assert packed(documents, tokenizer, 16) == expected


def test_the_last_documents_are_held_out_whole(tmp_path, gpt2, monkeypatch):
    documents = [prose(words, seed) for seed, words in enumerate((1, 300, 2, 77, 90))]
    (tmp_path / "a.txt").write_text("\n".join(documents), encoding="utf-8")
    monkeypatch.setattr("ldlm.features.documents.LONGEST", 50)
    config = ExtractConfig(encoder=str(gpt2), data=(str(tmp_path / "a.txt"),), validation_docs=2)
    split = {name: list(corpus.documents(config, name)) for name in ("train", "validation")}
    assert any(isinstance(part, Part) for part in split["validation"])
    assert list(whole(split["train"])) == documents[:3]
    assert list(whole(split["validation"])) == documents[3:]
    assert corpus.count_rows(config, load_tokenizer(str(gpt2)), "train").exact


def test_a_word_piece_vocabulary_is_that_of_whole_documents(tmp_path, monkeypatch):

    lines_ = [" ".join(re.findall(r"\w+", prose(400, seed))) for seed in range(3)]
    (tmp_path / "a.txt").write_text("\n".join(lines_), encoding="utf-8")
    for arch in ("gpt2", "bert"):
        config = PretrainConfig(data=(str(tmp_path / "a.txt"),), vocab_size=400, arch=arch)
        whole = pretrain_encoder._trained_tokenizer(config).get_vocab()
        with monkeypatch.context() as patched:
            patched.setattr("ldlm.features.documents.LONGEST", 64)
            assert pretrain_encoder._trained_tokenizer(config).get_vocab() == whole


PEAK = """
import pathlib, re, sys
from ldlm.features import text, textfiles
from ldlm.hub import load_tokenizer
# Of this process alone: what getrusage tells begins with the peak of the process that started it.
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""
MEASURED = f"""{PEAK}
tokenizer = load_tokenizer(sys.argv[1])
rows = lambda path: sum(map(len, text.pack(textfiles.file_documents([path]), tokenizer, 64)))
rows(sys.argv[2])
before = peak()
print(rows(sys.argv[3]), peak() - before)
"""
READ = f"""{PEAK}
read = lambda path: sum(map(len, textfiles.file_documents([path])))
read(sys.argv[1])
before = peak()
print(read(sys.argv[2]), peak() - before)
"""


def test_the_memory_for_a_line_does_not_grow_with_it(tmp_path, gpt2, corpus):
    """Three megabytes took 360 MB more than 0.6; now about as much, for parts are as long."""
    line = " ".join(corpus.read_text(encoding="utf-8").split())
    for name, size in (("short", 600_000), ("long", 3_000_000)):
        (tmp_path / name).write_text((line + " ") * (size // len(line)), encoding="utf-8")
    command = [sys.executable, "-c", MEASURED, gpt2, tmp_path / "short", tmp_path / "long"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, grown = map(int, done.stdout.split())
    assert rows > 5_000
    assert grown * 1024 < 60e6


@pytest.mark.parametrize(("size", "batch"), [(2_500, 1024), (500_000, 2)])
def test_the_memory_for_parquet_does_not_grow_with_its_row_groups(tmp_path, size, batch):
    """One group, of 5 and of 50 MB of text: it took 50 MB more, or 150 if documents were long, and now hardly any."""
    chance = random.Random(0)
    for name, characters in (("short", 5_000_000), ("long", 50_000_000)):
        texts = [chance.randbytes(size // 2).hex() for _ in range(characters // size)]
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), tmp_path / name, write_batch_size=batch)
    command = [sys.executable, "-c", READ, tmp_path / "short", tmp_path / "long"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, grown = map(int, done.stdout.split())
    assert found == 50_000_000
    assert grown * 1024 < 25e6
