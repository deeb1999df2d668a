"""Pieces of a text, and the rows that any number of processes make of them: those of `text.pack`, byte for byte."""

import gzip
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import interruption
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import patience

from ldlm import locks
from ldlm.config import ExtractConfig
from ldlm.errors import InputError, StorageError
from ldlm.features import corpus, detection, documents, text, textfiles
from ldlm.features.detection import Span
from ldlm.features.helpers import Helpers, workers
from ldlm.features.packing import Ends, Packing, ahead
from ldlm.hub import load_tokenizer
from ldlm.progress import SILENT, Progress, Task

LENGTH = 16
WORDS = ["a", "Ωmega", "house of cards", "\N{FACE WITH TEARS OF JOY}", "word.", "  ", "\u2028", "x" * 40]


def lines(seed: int, count: int) -> list[str]:
    """Lines of text, some blank, some of hundreds of characters."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.choice((0, 1, 3, 3, 20)))) for _ in range(count)]


def as_text(seed: int) -> bytes:
    """A file of such lines with line ends of both kinds, and at random a byte order mark and no end at the last."""
    chance = random.Random(seed)
    written = "".join(line + chance.choice(("\n", "\r\n", "\n\n")) for line in lines(seed, chance.randrange(1, 12)))
    mark = "\ufeff" if chance.random() < 0.5 else ""
    return (mark + (written if chance.random() < 0.5 else written.rstrip("\r\n") + "!")).encode()


def as_json_lines(seed: int) -> bytes:
    rows = [json.dumps({"text": line or None}, ensure_ascii=seed % 2 == 0) for line in [*lines(seed, 9), "last"]]
    return ("\r\n" if seed % 3 == 0 else "\n").join(rows).encode() + b"\n" * (seed % 2)


@pytest.mark.parametrize(("name", "made"), [("a.txt", as_text), ("a.jsonl", as_json_lines)])
def test_any_byte_ranges_hold_every_document_once_and_in_order(tmp_path, monkeypatch, name, made):
    """Ranges that end within a character, a line end, a mark or a long line, and ranges without any line."""
    monkeypatch.setattr(documents, "LONGEST", 64)
    path, chance = tmp_path / name, random.Random(0)
    for seed in range(20):
        path.write_bytes(made(seed))
        whole = list(textfiles.documents_of(path, "text"))
        size = path.stat().st_size
        for count in (2, 5, size):
            edges = sorted({0, size, *(chance.randrange(size + 1) for _ in range(count))})
            spans = [Span(*edge) for edge in (pairwise(edges) if count < size else pairwise(range(size + 1)))]
            found = [part for span in spans for part in textfiles.documents_of(path, "text", span)]
            assert found == whole, (seed, spans)
            assert [type(part) for part in found] == [type(part) for part in whole]


def test_a_piece_within_a_long_line_reads_no_further_than_it_goes(tmp_path, monkeypatch):
    """Where no line begins, to look for one to the end of the line would read a long line once for every piece."""
    monkeypatch.setattr(detection, "HEAD", 2**10)
    monkeypatch.setattr(documents, "LONGEST", 2**10)
    read, real = [], detection._Stream._more
    monkeypatch.setattr(detection._Stream, "_more", lambda self, size: read.append(found := real(self, size)) or found)
    path = tmp_path / "a.txt"
    for end in (b"", b"\n", b"\nlast"):
        path.write_bytes(b"word " * 2**18 + end)
        _, *later = textfiles.spans(path, 2**16)
        assert len(later) >= 19
        for span, size in later[:-1]:
            read.clear()
            assert list(textfiles.documents_of(path, "text", span)) == []
            assert sum(map(len, read)) <= 2**10 + size + 4 * 2**10  # the head, and what is buffered
        assert list(textfiles.documents_of(path, "text", later[-1][0])) == [
            text for text in ["last"] if end.endswith(b"t")
        ]


def test_row_groups_hold_every_document_once_and_in_order(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [*lines(0, 50), None]}), path, row_group_size=7)
    whole = list(textfiles.documents_of(path, "text"))
    found = {size: [span for span, _ in textfiles.spans(path, size)] for size in (1, 600, 10**9)}
    assert len(found[1]) == 8 > len(found[600]) > len(found[10**9]) == 1
    for spans in found.values():
        assert [part for span in spans for part in textfiles.documents_of(path, "text", span)] == whole


def test_what_cannot_be_divided_is_one_piece(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a line\n" * 100))
    (tmp_path / "a.json").write_text(json.dumps(["a", "b", "c"]))
    assert [textfiles.spans(path, 1)[0][0] for path in sorted(tmp_path.iterdir())] == [None, None]
    assert [len(textfiles.spans(path, 1)) for path in tmp_path.iterdir()] == [1, 1]


def test_a_fault_in_a_later_piece_names_the_line_of_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 10 + b"b\xffd\n")
    for start in (0, 1, 24, 50):
        with pytest.raises(InputError, match=r"a.txt, line 11 is not UTF-8"):
            list(textfiles.documents_of(path, "text", Span(start, 53)))


# ----------------------------------------------------------------------------------------------------------------------
# Rows


@pytest.fixture(scope="module")
def tokenizer(gpt2):
    return load_tokenizer(str(gpt2))


@pytest.fixture(scope="module")
def config(gpt2, tmp_path_factory):
    """Files of every kind, whose documents are shorter and longer than a row."""
    folder = tmp_path_factory.mktemp("text")
    many = [line for line in lines(1, 60) if line.strip()]
    (folder / "a.txt").write_bytes("\r\n".join(many[:20]).encode())
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in many[20:30]))
    pq.write_table(pa.table({"text": many[30:40]}), folder / "c.parquet", row_group_size=3)
    (folder / "d.txt.gz").write_bytes(gzip.compress("\n".join(many[40:]).encode()))
    paths = tuple(map(str, sorted(folder.iterdir())))
    return ExtractConfig(encoder=str(gpt2), data=paths, seq_len=LENGTH, detokenizer="lm1b", device="cpu")


def packing(config: ExtractConfig, tokenizer, folder: Path) -> Packing:
    ends = Ends(*text.special_tokens(tokenizer))
    return Packing(config, folder / "packed", folder / "claims", tokenizer.backend_tokenizer, ends)


def serial(config: ExtractConfig, tokenizer) -> dict[str, list[list[int]]]:
    """The rows of each split, packed from its documents from the first to the last."""
    found = {split: corpus.documents(config, split) for split in ("train", "validation")}
    rows = {split: [text.pack(part, tokenizer, LENGTH)] for split, part in found.items() if part is not None}
    return {split: np.concatenate(list(part[0])).tolist() for split, part in rows.items()}


@pytest.mark.parametrize(
    ("workers", "size", "held_out"),
    [(1, 40, 0), (3, 40, 17), (2, 100, 1), (3, 100, 0), (1, 1500, 17), (2, 1500, 0), (3, 10**6, 1), (1, 10**6, 0)],
)
def test_rows_are_those_of_serial_packing(config, tokenizer, tmp_path, monkeypatch, workers, size, held_out):
    """Pieces may be shorter than a line or hold none; workers are threads here."""
    monkeypatch.setattr(text, "TOKENIZER_BATCH", 4)  # a piece has more documents than are tokenised at once
    config = replace(config, validation_docs=held_out)
    made = packing(config, tokenizer, tmp_path)
    planned = made.plan(size)
    assert len(planned) > 60 if size < 100 else len(planned) >= 4
    threads = [threading.Thread(target=made.tokenize, args=(planned, 0)) for _ in range(workers)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    found = made.rows(made.planned())
    expected = serial(config, tokenizer)
    assert {split: rows.read(0, rows.rows + 5).tolist() for split, rows in found.items()} == expected
    for start in range(0, found["train"].rows, 3):
        assert found["train"].read(start, start + 2).tolist() == expected["train"][start : start + 2]


def test_held_out_files_are_packed_apart(config, tokenizer, tmp_path):
    config = replace(config, data=config.data[:2], validation_data=config.data[2:])
    made = packing(config, tokenizer, tmp_path)
    made.tokenize(made.plan(), 0)
    found = made.rows(made.planned())
    assert {split: rows.read(0, rows.rows).tolist() for split, rows in found.items()} == serial(config, tokenizer)


def test_a_file_without_text_and_too_many_held_out_documents_are_refused(config, tokenizer, tmp_path):
    (tmp_path / "blank.txt").write_text(" \n\n")
    for change, message in (
        ({"data": (config.data[0], str(tmp_path / "blank.txt"))}, r"blank.txt holds no text"),
        ({"validation_docs": 10_000}, r"--validation-docs 10000 leaves nothing to train on: there are \d+ documents"),
    ):
        made = packing(replace(config, **change), tokenizer, tmp_path / str(change.keys()))
        planned = made.plan()
        made.tokenize(planned, 0)
        with pytest.raises(InputError, match=message):
            made.rows(planned)


def test_pieces_that_are_done_are_not_tokenised_again_and_leftovers_are_not_read(
    config, tokenizer, tmp_path, monkeypatch
):
    made = packing(config, tokenizer, tmp_path)
    planned, seen = made.plan(300), interruption.at_piece(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        made.tokenize(planned, 0)
    (made.folder / ".1-00.000003.tokens").write_bytes(b"half")  # of a killed process
    made.tokenize(made.planned(), 0)
    assert seen == [*planned[:4], *planned[3:]]
    assert made.rows(planned)["train"].read(0, 10**6).tolist() == serial(config, tokenizer)["train"]


def test_rows_that_were_removed_are_wanted_by_nobody(config, tokenizer, tmp_path):
    """A process that comes late, when another has sealed the store, makes no piece again."""
    made = packing(config, tokenizer, tmp_path)
    planned = made.plan()
    with made.leases.turn("pack") as lease:
        made.remove(lease.check)
    made.tokenize(planned, 0)
    assert made.planned() is None
    assert not made.folder.exists()


def test_a_process_that_lost_its_lease_leaves_the_plan(config, tokenizer, tmp_path):
    """It was stopped before it removed the rows; another took its place, and the store was begun anew."""
    made = packing(config, tokenizer, tmp_path)
    planned = made.plan()
    with made.leases.turn("pack") as lease:
        (made.claims / "pack.lease").unlink()
        with pytest.raises(StorageError, match="another took its place"):
            made.remove(lease.check)
    assert made.planned() == planned
    assert {path.name for path in made.folder.iterdir()} == {"plan.json", "tokenizer.json"}


# ----------------------------------------------------------------------------------------------------------------------
# Helpers


@pytest.fixture
def halved(config, tokenizer, tmp_path):
    """A packing that is planned in small pieces."""
    return packing(config, tokenizer, tmp_path)


def wait_until(condition):
    ends = time.monotonic() + patience()
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_helper_makes_pieces_and_ends_with_the_one_that_it_helps(halved, config, tokenizer):
    planned = halved.plan(300)
    first = halved.claims / "piece-000000"
    with locks.tried(first), Helpers(1, halved.task(), SILENT) as helping:
        wait_until(lambda: len(halved.kept.numbers()) == len(planned) - 1)  # and waits for the first
        helping.check()
        ((helper, _),) = helping._running
    assert helper.poll() == 0
    halved.tokenize(planned, 0)
    assert halved.rows(planned)["train"].read(0, 10**6).tolist() == serial(config, tokenizer)["train"]


class Told(Progress, Task):
    """Progress that keeps the name and the total of its task, and every advance."""

    def task(self, name, total, unit, done=0):
        self.name, self.total, self.advances = name, total, []
        return self

    def advance(self, count, **figures):
        self.advances.append(count)


def test_the_progress_of_tokenising_counts_the_pieces_of_both_processes(halved, monkeypatch):
    planned, told, own = halved.plan(300), Told(), []
    real = Packing._tokenized

    def tokenized(self, number, piece, tally):
        if not own:
            wait_until(self.kept.numbers)  # of the helper's
        own.append(number)
        return real(self, number, piece, tally)

    monkeypatch.setattr(Packing, "_tokenized", tokenized)
    replace(halved, progress=told).tokenize(planned, 1)
    assert (told.name, told.total) == ("tokenize", sum(piece.size for piece in planned))
    assert sum(told.advances) == told.total
    assert min(told.advances) >= 0
    assert 0 < len(own) < len(planned)
    assert sum(planned[number].size for number in own) < told.total


def test_bad_input_that_a_helper_finds_ends_the_packing_with_its_line(halved, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good line of text\n" * 50 + b"b\xffd\n")
    made = replace(halved, config=replace(halved.config, data=(str(path),)))
    made.plan(300)
    with Helpers(1, made.task(), SILENT) as helping:
        wait_until(lambda: helping._running[0][0].poll() is not None)
        with pytest.raises(InputError, match=r"bad.txt, line 51 is not UTF-8 \(byte 0xff\); convert it"):
            helping.check()


def test_a_helper_that_dies_is_reported_and_missed_by_nobody(halved, config, tokenizer, notes):
    planned = halved.plan(300)
    with Helpers(1, halved.task(), notes) as helping:
        helping._running[0][0].kill()
        wait_until(lambda: helping._running[0][0].poll() is not None)
        helping.check()
        assert notes.lines == ["a tokenisation helper ended with -9; others do its part"]
        halved.tokenize(planned, 0)
    assert halved.rows(planned)["train"].read(0, 10**6).tolist() == serial(config, tokenizer)["train"]


def test_workers_are_the_cores_of_a_process(monkeypatch):
    monkeypatch.setattr("ldlm.features.helpers.CORES", 8)
    for environment, count in (({}, 8), ({"LOCAL_WORLD_SIZE": "4"}, 2), ({"LOCAL_WORLD_SIZE": "16"}, 1)):
        for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK", "RAYON_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert workers() == count
        monkeypatch.setenv("RAYON_NUM_THREADS", "1")
        assert workers() == 1


@pytest.mark.parametrize(("cores", "ranks", "each"), [(7, 2, [4, 3]), (60, 8, [8] * 4 + [7] * 4), (3, 4, [1] * 4)])
def test_no_core_is_left_over_by_the_processes_of_a_job(monkeypatch, cores, ranks, each):
    monkeypatch.setattr("ldlm.features.helpers.CORES", cores)
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    found = []
    for rank in range(ranks):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found.append(workers())
    assert found == each


def test_the_cores_are_divided_among_the_processes(halved, monkeypatch):
    """Where there are fewer pieces than cores, each process has its tokenizer use several threads."""
    told = ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    [monkeypatch.delenv(name, raising=False) for name in (*told, "LOCAL_WORLD_SIZE")]
    monkeypatch.setattr("ldlm.features.helpers.CORES", 16)
    planned, found = halved.plan(300), []
    monkeypatch.setattr(Helpers, "_start", lambda self, task: found.append(tuple(map(os.environ.get, told))))
    monkeypatch.setattr(Packing, "share_pieces", lambda *given: found.append(tuple(map(os.environ.get, told))))
    for count, threads, alone in ((1, "16", None), (2, "8", None), (5, "3", None), (9, "1", "false")):
        found.clear()
        halved.tokenize(planned[:count])
        assert found == [(threads, alone)] * count
        assert tuple(map(os.environ.get, told)) == (None, None)
    monkeypatch.setenv("RAYON_NUM_THREADS", "6")
    found.clear()
    halved.tokenize(planned[:2])
    assert found == [("3", None)] * 2
    assert os.environ["RAYON_NUM_THREADS"] == "6"


@pytest.mark.parametrize(("count", "more"), [(3, 3), (1, 0)])
def test_a_tokenizer_has_the_threads_that_are_its_share(gpt2, count, more):
    """In a process of its own, as a pool keeps the number of threads with which it began."""
    program = (
        "import os, sys\n"
        "from ldlm.features import helpers, text\n"
        "from ldlm.hub import load_tokenizer\n"
        "tokenizer = load_tokenizer(sys.argv[1])\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        "with helpers.own_threads(int(sys.argv[2])):\n"
        "    list(text.stream([['some words'] * 99], tokenizer.backend_tokenizer, 0))\n"
        "print(count() - before)\n"
    )
    unset = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", program, gpt2, str(count)]
    done = subprocess.run(command, env=unset, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(more), "")


def test_reading_ahead_gives_every_item_and_the_error():
    def items():
        yield from (1, 2, 3)
        raise InputError("bad")

    found = []
    with pytest.raises(InputError, match="bad"):
        for item in ahead(items()):
            found.append(item)
    assert found == [1, 2, 3]
