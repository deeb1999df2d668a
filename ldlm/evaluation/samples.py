"""Sets of texts on disk: the JSON lines of `ldlm sample`, or files of any kind that `textfiles` reads."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldlm import files
from ldlm.config import differences
from ldlm.errors import InputError
from ldlm.evaluation.boundaries import Boundaries
from ldlm.features import textfiles
from ldlm.features.detection import NAMES
from ldlm.features.documents import Part

if TYPE_CHECKING:  # it imports torch, and `pages` reads sets of texts without torch
    from ldlm.evaluation.scorer import Scorer

# Special tokens that tokenizers in wide use write, and the share of texts in which one is hardly the text's own.
WELL_KNOWN = ("[CLS]", "[SEP]", "[PAD]", "<|endoftext|>", "<s>", "</s>", "<pad>")
MANY = 0.1

Row = Sequence[int] | np.ndarray  # the tokens of a text


@dataclass(frozen=True)
class Texts:
    """A set of texts."""

    texts: list[str]
    tokens: Sequence[Row] | None  # from which the texts were decoded; None unless the file has them for every text
    seeds: list[int] | None = None  # None unless the file has them for every text
    boundaries: Boundaries = Boundaries()
    clean_up: bool | None = None  # whether they were decoded with clean-up of spaces; None: unknown
    unusable: str | None = None  # why the tokens in the file are not used; None if they are, or there are none

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> Texts:
        """The first `count` texts, or all if there are fewer."""
        parts = {name: getattr(self, name) for name in ("texts", "tokens", "seeds")}
        return replace(self, **{name: part[:count] for name, part in parts.items() if part is not None})


def read(path: Path, column: str = "text") -> Texts:
    """Read the texts of a file of any kind, with their tokens and `seed` if every row has them.

    The tokens of `text` are in the field or column `tokens`, and those of another column in `COLUMN_tokens`.
    A blank text counts, since a model may have drawn it; a null row or a blank line of plain text does not.
    """
    texts: list[str] = []
    tokens: list[np.ndarray | None] = []
    seeds: list[object] = []
    unusable, some = None, False
    held: list[str] = []
    own = "tokens" if column == "text" else f"{column}_tokens"
    for text, fields in textfiles.rows(path, column, beside=(own, "seed")):
        if text is not None:
            held.append(text)
        if text is None or isinstance(text, Part):
            continue
        texts.append("".join(held))
        tokens.append(_tokens(value := fields.get(own), texts[-1]))
        some = some or value is not None
        if tokens[-1] is None:
            unusable = unusable or _complaint(len(texts), value)
        seeds.append(fields.get("seed"))
        held.clear()
    if not texts:
        raise InputError(f"{path} holds no text; give a file with a text per line, JSON lines or parquet")
    return Texts(
        texts,
        [row for row in tokens if row is not None] if all(row is not None for row in tokens) else None,
        [seed for seed in seeds if isinstance(seed, int)] if all(isinstance(seed, int) for seed in seeds) else None,
        unusable=unusable if some else None,
    )


def read_all(paths: Sequence[Path], column: str, named: Sequence[str], note: Callable[[str], None]) -> list[Texts]:
    """Read the texts of files that stand side by side, each `described`; notes say what may surprise in how.

    A file without the field or column is read by its `text`, if another has it. `InputError` for a table of values.
    """
    for path in paths:
        textfiles.check_no_table(path, column)
    chosen = _columns(paths, column)
    for path, its in chosen.items():
        if its != column:
            note(f"{path} has no {column!r}, and its {its!r} is read")
        for remark in textfiles.remarks([path], its):
            note(remark)
    for remark in remarks(chosen, named):
        note(remark)
    sets = [described(read(path, chosen[path]), path, named) for path in paths]
    for path, texts in zip(paths, sets, strict=True):
        if texts.unusable is not None:
            note(f"{path}: {texts.unusable}, so entropy and diversity count the scorer's tokens")
    return sets


def _columns(paths: Sequence[Path], column: str) -> dict[Path, str]:
    """The field or column with the texts of each file: this one, or `text` in the files that lack it beside others.

    `InputError` names the files that have neither, if others have one.
    """
    fields = {path: textfiles.field_names(path, column) for path in paths} if column != "text" else {}
    names = {path: found for path, found in fields.items() if found is not None and column not in found}
    if len(names) == len(fields):  # none has it, so that it is misspelt
        return dict.fromkeys(paths, column)
    lacking = {path: found for path, found in names.items() if "text" not in found}
    if lacking and len(lacking) < len(fields):
        where = ", ".join(f"{path} (fields: {', '.join(found)})" for path, found in lacking.items())
        raise InputError(f"neither {column!r} nor 'text' is in {where}; rename the field of the texts there to text")
    return {path: "text" if path in names and path not in lacking else column for path in paths}


def _tokens(value: object, text: str) -> np.ndarray | None:
    """Token ids (L,) int32 of a text, which take an eighth of the list's memory; None for what can't be its tokens."""
    if not isinstance(value, list) or not all(map(_is_token, value)):
        return None
    if not value and text.strip():
        return None
    return np.array(value, np.int32)


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _complaint(number: int, value: object) -> str:
    """The complaint about what stands in place of the tokens of a text."""
    if value is None or value == []:
        return f"text {number:,} has no tokens"
    wrong = next(token for token in value if not _is_token(token)) if isinstance(value, list) else value
    return f"tokens of text {number:,} are no token ids ({reprlib.repr(wrong)})"


def in_folders(paths: Iterable[Path], reference: Path | None = None) -> list[Path]:
    """The paths, each folder replaced by the text files directly in it but the reference, in order of their names.

    `InputError` for a folder without any, and for the reference among the paths.
    """
    real = None if reference is None else reference.resolve()
    found: list[Path] = []
    for path in paths:
        if path.resolve() == real:
            raise InputError(f"{path} is the reference, and so no seed of a model; leave it out of the files")
        inside = sorted(filter(textfiles.is_named_text, path.iterdir())) if path.is_dir() else [path]
        inside = [one for one in inside if one.resolve() != real]
        if not inside:
            raise InputError(f"{path} holds no {', '.join(NAMES[:-1])} or {NAMES[-1]} file")
        found += inside
    return found


def rows(texts: Sequence[str], tokens: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[dict[str, object]]:
    """The JSON objects for a file of drawn texts."""
    return [
        {"text": text, "tokens": list(ids), "seed": int(seed)}
        for text, ids, seed in zip(texts, tokens, seeds, strict=True)
    ]


# ----------------------------------------------------------------------------------------------------------------------
# The record beside a file of texts


def described(texts: Texts, path: Path, named: Sequence[str] = ()) -> Texts:
    """Texts with boundaries and clean-up from the record beside their file; without one, `named` are the boundaries."""
    found = record(path)
    if "boundaries" in found:
        return replace(texts, boundaries=Boundaries.from_json(found["boundaries"]), clean_up=found["clean_up"])
    return replace(texts, boundaries=Boundaries.in_texts(named, texts.texts))


def remarks(paths: Iterable[Path], named: Sequence[str]) -> Iterator[str]:
    """Notes to the user, a line each, on files whose boundary tokens may not be the expected ones."""
    for path in paths:
        found = record(path)
        if "boundaries" in found and named:
            known = " ".join(found["boundaries"]["tokens"]) or "none"
            yield f"{path} has a record of its boundary tokens ({known}), and --boundary-tokens is not used for it"
        if found and "boundaries" not in found and not named:
            yield f"{path} has no record of its boundary tokens and is scored as written; name them: --boundary-tokens"


def unread_remarks(paths: Iterable[Path], sets: Iterable[Texts], how: str, scorer: Scorer) -> Iterator[str]:
    """Notes to the user, a line each, on files whose boundary tokens nobody has named and the scorer reads as words."""
    for path, texts in zip(paths, sets, strict=True):
        if "boundaries" not in record(path) and (found := unread(texts, how, scorer)):
            yield f"{path}: {found}"


def unread(texts: Texts, how: str, scorer: Scorer) -> str | None:
    """The complaint about well-known special tokens in the texts that are not among their boundaries; None if none.

    With boundaries as `eos` these are the ones that the scorer splits into several tokens, and with `drop` all; with
    `text` nothing is wrong.
    """
    known = texts.boundaries.tokens
    others = [one for one in WELL_KNOWN if one not in known and (how == "drop" or not scorer.has_token(one))]
    counts = {one: sum(one in text for text in texts.texts) for one in others}
    found = [one for one, count in counts.items() if count >= MANY * len(texts)]
    if not found or how == "text":
        return None
    *rest, last = found
    within = sum(any(one in text for one in found) for text in texts.texts)
    some = f"{within:,} of {len(texts):,} texts"
    subject = f"{', '.join(rest)} and {last} occur in {some} and are" if rest else f"{last} occurs in {some} and is"
    read = "not left out" if how == "drop" else "read letter by letter"
    named = " ".join(f'"{one}"' for one in (*known, *found))
    return f"{subject} {read}; name {'them' if rest else 'it'}: --boundary-tokens {named}"


def record_of(tokenizer: Any, clean_up: bool) -> dict[str, Any]:
    """The part of a record about decoding: boundary tokens of the tokenizer, and clean-up."""
    return {"boundaries": Boundaries.of(tokenizer).to_json(), "clean_up": clean_up}


def record_path(path: Path) -> Path:
    """Path of the record of a file of texts: beside the file itself, to which a link may point."""
    there = files.target(path)
    return there.with_name(there.name + ".meta.json")


def write_record(path: Path, kind: str, values: dict[str, Any]) -> None:
    """Write the record of a file of texts; its kind is `samples` (from a model) or `texts` (from elsewhere)."""
    files.write_json(record_path(path), {"kind": kind, **values})


def record(path: Path) -> dict[str, Any]:
    """The record that `ldlm sample` or `ldlm features texts` left beside a file of texts; empty if there is none."""
    found = files.read_json(record_path(path)) if record_path(path).is_file() else {}
    return found if isinstance(found, dict) and found.get("kind") in ("samples", "texts") else {}


# ----------------------------------------------------------------------------------------------------------------------
# Several seeds of one model


def check_seeds(paths: Sequence[Path], sets: Sequence[Texts]) -> None:
    """`InputError` for files that are not several seeds of one model, drawn in one way."""
    if len(paths) < 2:
        raise InputError("--seeds takes the spread over several files of one model, and there is one; give more")
    kinds = {record(path).get("kind"): path for path in reversed(paths)}
    if {"samples", "texts"} <= kinds.keys():
        raise InputError(
            f"{kinds['texts']} has texts that ldlm sample did not draw, unlike {kinds['samples']}; leave one out"
        )
    drawn = [found for path in paths if (found := _settings(record(path)))]
    for settings in drawn[1:]:
        both = sorted(drawn[0].keys() & settings.keys())  # a record of another version may lack some
        if changed := differences({key: drawn[0][key] for key in both}, {key: settings[key] for key in both}):
            raise InputError(
                f"these are not seeds of one model: they differ in more than the seed ({'; '.join(changed)}); "
                "leave one out"
            )
    seen: dict[tuple[str, ...], tuple[Path, Texts]] = {}
    for path, texts in zip(paths, sets, strict=False):
        other, before = seen.setdefault(tuple(texts.texts), (path, texts))
        others = texts.seeds and before.seeds and texts.seeds != before.seeds  # a collapsed model always draws one text
        if (other != path and not others) or paths.count(path) > 1:
            raise InputError(f"{other} and {path} hold the same texts, so they are not two seeds; leave one out")
    counts = [len(texts) for texts in sets[: len(paths)]]
    if len(set(counts)) > 1:
        raise InputError(
            f"the seeds have {', '.join(map(str, counts))} texts; diversity falls with their number, so give as many "
            "of each"
        )


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    """The settings of `ldlm sample` in a record, without the seed; empty for a record of other texts."""
    if found.get("kind") != "samples":
        return {}
    sampler = {f"sampler.{key}": value for key, value in found["config"]["sampler"].items()}
    prompting = {"prompts": found.get("prompts"), **found["config"].get("prompting", {"prompt_guidance": None})}
    names = ("decoder", "decoder_sha256", "precision", "weights_precision", "checkpoint", "clean_up")
    return {**sampler, **prompting, **{name: found[name] for name in names if name in found}}
