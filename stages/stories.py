"""Stories whose distribution is known, as a text file with one story per line, and the tokenizer that fits them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldlm import config, files
from ldlm.config import StoriesConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.evaluation.boundaries import Boundaries
from ldlm.location import check_output
from ldlm.progress import SILENT, Progress
from ldlm.stories import process, tokens
from ldlm.stories.process import STORIES

BATCH = 1_000  # stories written to the file at a time


def plan(stories: StoriesConfig) -> dict[str, Any]:
    """The number of stories, their average amount of text, and the vocabulary and entropies of their source."""
    expected = STORIES.expected
    return {
        "documents": stories.documents,
        "words": round(stories.documents * expected.words),
        "vocabulary": len(STORIES.vocabulary),
        **entropies(),
    }


def entropies() -> dict[str, float]:
    """The exact entropies of the source: nats per story, and per word or punctuation mark on average."""
    expected = STORIES.expected
    return {"nats_per_story": expected.nats, "nats_per_word": expected.nats / expected.words}


def run(
    stories: StoriesConfig,
    out: Path,
    tokenizer: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write the stories to `out`, one per line, and their record beside it; returns the record.

    The file appears once it is complete. `tokenizer` is a folder for the tokenizer.
    """
    check_output(out, "stories.txt")
    if tokenizer is not None:
        _check_apart(out, tokenizer)
    begun = {
        "kind": "texts",
        "source": "stories",
        "version": process.VERSION,
        **config.identity(stories),
        "boundaries": Boundaries().to_json(),  # whole stories
        "clean_up": None,
    }
    found = files.read_json(samples.record_path(out)) if samples.record_path(out).is_file() else {}
    kept = out.exists() and not overwrite
    if kept and ({name: found.get(name) for name in begun} != begun or found.get("sha256") != files.sha256_file(out)):
        raise InputError(
            f"{out} exists and does not hold these stories; choose another --output, or replace it with --overwrite"
        )
    if tokenizer is not None:  # not before `out` has been looked at: what is refused leaves nothing behind
        write_tokenizer(tokenizer, overwrite=overwrite)
    if kept:
        progress.note(f"{out} is complete; nothing to do")
        return found
    hashed, words = hashlib.sha256(), 0
    with (
        files.replacing(out) as temporary,
        open(temporary, "wb") as file,
        progress.task("write", stories.documents, "text") as task,
    ):
        for batch in _batches(stories):
            data = "".join(f"{story}\n" for story in batch).encode()
            file.write(data)
            hashed.update(data)
            words += sum(story.count(" ") + 1 + sum(map(story.count, process.PUNCTUATION)) for story in batch)
            task.advance(len(batch))
        file.flush()
        record = {**begun, "words": words, "sha256": hashed.hexdigest()}
        files.write_json(samples.record_path(out), record)
    return record


def _check_apart(out: Path, tokenizer: Path) -> None:
    """`InputError` if the tokenizer's folder would be the file of the stories or their record, or in one of them."""
    folder = tokenizer.resolve()
    if {out.resolve(), samples.record_path(out).resolve()} & {folder, *folder.parents}:
        raise InputError(
            f"--tokenizer {tokenizer} is in the way of the stories, {out}, or of their record; name another folder"
        )


def _batches(stories: StoriesConfig) -> Iterator[list[str]]:
    for start in range(0, stories.documents, BATCH):
        yield [*process.stories(stories.seed, start, min(start + BATCH, stories.documents))]


def write_tokenizer(folder: Path, *, overwrite: bool = False) -> None:
    """Write the tokenizer to a folder of its own; if it is already there, it stays.

    `InputError` for another tokenizer that is not to be overwritten, or that a model was trained with.
    """
    made, there = tokens.tokenizer(STORIES), folder / "tokenizer.json"
    if there.is_file() and there.read_text(encoding="utf-8") == made.backend_tokenizer.to_str(pretty=True):
        return
    if any((folder / name).exists() for name in ("artifact.json", "config.json")):
        raise InputError(f"{folder} holds a model, whose tokenizer stays; name a new folder with --tokenizer DIR")
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds something else; name a new folder with --tokenizer DIR")
    files.make_folder(folder)
    with files.writing(folder):
        made.save_pretrained(folder)
