"""Texts to be continued: their tokens, and the encoder's states of those, which the denoiser is conditioned on.

A prompt is the beginning of a row: BOS and its tokens, without EOS. It runs through the frozen encoder as a row of full
length, as rows did at extraction, and the states are cut off after the prompt: with a causal encoder they do not depend
on what fills the rest of the row. Text number i of a seed continues prompt i modulo the number of prompts.

Shape letters: CONTRIBUTING.md. T counts prompts here, and L the tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ldlm import files
from ldlm.config import TEXTS_PER_SEED, PromptConfig, SampleConfig, Shapes
from ldlm.errors import InputError
from ldlm.evaluation import metrics
from ldlm.features import detection, formats, textfiles
from ldlm.features.documents import Part, check_whole
from ldlm.features.encoder import ROWS_PER_PASS, OnlineEncoder
from ldlm.features.text import keep_whole, special_tokens
from ldlm.model.prefix import longest_prefix


class Continues(Protocol):
    """A run or an exported model that may have learned to continue texts."""

    device: torch.device

    @property
    def shapes(self) -> Shapes:
        """Sizes of its features."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that it was trained with."""

    @property
    def condition(self) -> str:
        """`model.condition` of its training."""

    def frozen_encoder(self, where: str | None) -> OnlineEncoder:
        """The encoder of its features: `where` is its folder or hub name, None for the one on record."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts and what is needed to continue them, on the generator's device."""

    texts: tuple[str, ...]
    tokens_TL: Tensor  # int64, each row with BOS, and EOS after the prompt's end
    k_T: Tensor  # number of tokens of each, BOS included
    h_TLD: Tensor  # normalised states
    guidance: float  # w, the strength of the condition; 1 is off

    @property
    def sha256(self) -> str:
        """Hash of the prompts."""
        return files.sha256_json(list(self.texts))

    @property
    def record(self) -> dict[str, Any]:
        """Number and hash of the prompts, for the record of their texts."""
        return {"prompts": {"count": len(self.texts), "sha256": self.sha256}}

    def numbers(self, seeds_B: Tensor) -> Tensor:
        """Which prompt (B,) each text continues, by the text's seed."""
        return seeds_B % TEXTS_PER_SEED % len(self.texts)

    def of(self, seeds_B: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, L, D) and lengths (B,) of the prompts of texts."""
        number_B = self.numbers(seeds_B.to(self.k_T.device))
        return self.h_TLD[number_B], self.k_T[number_B]

    def put_into(self, tokens_BL: Tensor, seeds_B: Tensor) -> Tensor:
        """Token rows with the first k tokens of each text replaced by its prompt's."""
        number_B, length = self.numbers(seeds_B.to(self.k_T.device)), self.tokens_TL.shape[1]
        is_prompt_BL = torch.arange(length, device=self.k_T.device) < self.k_T[number_B, None]
        kept_BL = torch.where(is_prompt_BL, self.tokens_TL[number_B], tokens_BL[:, :length])
        return torch.cat([kept_BL, tokens_BL[:, length:]], dim=1)

    def lines(self, tokenizer: Any, tokens_BL: Tensor, seeds_B: Tensor, clean_up: bool) -> list[dict[str, Any]]:
        """JSON objects of continued texts: the whole text, then prompt and continuation separately, with their tokens.

        A text begins with its prompt as given, without BOS.
        """
        number_B = self.numbers(seeds_B).tolist()
        return [
            self._line(tokenizer, number, row, seed, clean_up)
            for number, row, seed in zip(number_B, tokens_BL.tolist(), seeds_B.tolist(), strict=True)
        ]

    def _line(self, tokenizer: Any, number: int, row: list[int], seed: int, clean_up: bool) -> dict[str, Any]:
        prompt, k = self.texts[number], int(self.k_T[number])
        without_bos, rest = (_text(tokenizer, ids, clean_up) for ids in (row[1:], row[k:]))
        continuation = without_bos[len(prompt) :] if without_bos.startswith(prompt) else rest
        own = {"text": prompt + continuation, "tokens": row, "seed": seed}
        apart = {"prompt_tokens": row[:k], "continuation_tokens": row[k:]}
        return {**own, "prompt": prompt, "continuation": continuation, **apart}


def _text(tokenizer: Any, ids: list[int], clean_up: bool = False) -> str:
    return metrics.decode_tokens(tokenizer, torch.tensor([ids]), clean_up=clean_up)[0]


# ----------------------------------------------------------------------------------------------------------------------
# Which prompts are asked for


def given(config: PromptConfig) -> tuple[str, ...]:
    """The prompts of a configuration; empty for none. `InputError` for prompt settings without a prompt."""
    if config.prompt is not None and config.prompts is not None:
        raise InputError("--prompt is one text and --prompts a file of them; give one of the two")
    if config.prompt is not None:
        return (_checked(config.prompt),)
    if config.prompts is not None:
        return _of_file(Path(config.prompts), config.text_column)
    for name, value in (("prompt_guidance", config.prompt_guidance != 1), ("encoder", config.encoder is not None)):
        if value:
            raise InputError(f"--{name.replace('_', '-')} is for continuing texts; add --prompt TEXT")
    return ()


def _of_file(path: Path, column: str) -> tuple[str, ...]:
    """The prompts of a file; a blank one is refused, since it would shift those after it against their texts."""
    textfiles.check_no_table(path, column)
    found, held = list[str](), list[str]()
    for text in _rows(path, column):
        if not held and not (text or "").strip():
            raise InputError(f"{path}: row {len(found) + 1} is blank, and each row is a prompt; fill or remove it")
        held.append(text or "")
        if not isinstance(text, Part):
            found.append("".join(held))
            held.clear()
    if not found:
        raise textfiles.no_text(path)
    return tuple(found)


def _rows(path: Path, column: str) -> Iterator[str | None]:
    """All rows of a file, including blank lines of plain text; a long line comes in parts."""
    with detection.opened(path) as source:
        if source.kind == "plain":
            yield from formats.lines(source)
            return
    yield from (row.text for row in textfiles.rows(path, column))


def _checked(prompt: str) -> str:
    if not prompt.strip():
        raise InputError('--prompt is empty; give the beginning of a text, for example --prompt "The sea was calm"')
    check_whole(prompt, "--prompt")
    return prompt


def texts_in_all(config: SampleConfig) -> int:
    """Number of texts that a configuration asks for: `num_samples`, or as many for each prompt."""
    count = config.num_samples * max(1, len(given(config.prompting)))
    if count > TEXTS_PER_SEED:
        raise InputError(
            f"--num-samples {config.num_samples:,} of each prompt are {count:,} texts, and a seed has "
            f"{TEXTS_PER_SEED:,}; draw fewer at a time, with another --seed for each part"
        )
    return count


# ----------------------------------------------------------------------------------------------------------------------
# What is needed to continue them


def prompts_of(config: SampleConfig, source: Continues) -> Prompts | None:
    """The prompts of a configuration, tokenised and encoded; None without any.

    `InputError` for a run that has not learned to continue texts, a prompt that is too long or that its tokens do not
    decode to, and an encoder that can't be loaded.
    """
    asked = config.prompting
    texts = given(asked)
    if not texts:
        return None
    rows = _token_rows(texts, source)
    k_T, most = torch.tensor([len(row) for row in rows]), max(map(len, rows))
    _, eos = special_tokens(source.tokenizer)
    tokens_TL = torch.full((len(rows), source.shapes.seq_len), eos)
    for row_L, row in zip(tokens_TL, rows, strict=True):
        row_L[: len(row)] = torch.tensor(row)
    h_TLD = _encoded(tokens_TL, most, asked.encoder, source)
    return Prompts(texts, tokens_TL[:, :most].to(source.device), k_T.to(source.device), h_TLD, asked.prompt_guidance)


def longest(config: SampleConfig, source: Continues) -> int:
    """Tokens of the longest prompt of a configuration, BOS counted; 0 without any. `InputError` as for `prompts_of`."""
    texts = given(config.prompting)
    return max(map(len, _token_rows(texts, source))) if texts else 0


def _token_rows(texts: Sequence[str], source: Continues) -> list[list[int]]:
    """The tokens of prompts, as rows of a store begin; `InputError` if the model has not learned to continue texts."""
    if source.condition != "prefix":
        raise InputError(
            "this model has not learned to continue texts (its model.condition is none); train one with `ldlm train "
            "--set model.condition=prefix`, or leave --prompt out"
        )
    return tokenised(texts, source.tokenizer, longest_prefix(source.shapes.seq_len))


def tokenised(texts: Sequence[str], tokenizer: Any, most: int) -> list[list[int]]:
    """BOS and the tokens of each text, as rows of a store begin; at most `most` in all."""
    bos, _ = special_tokens(tokenizer)
    bare = tokenizer.backend_tokenizer
    keep_whole(bare)
    rows = []
    for text in texts:
        ids = bare.encode(text, add_special_tokens=False).ids
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        if len(ids) + 1 > most:
            raise InputError(f"the prompt {shown!r} has {len(ids):,} tokens, and at most {most - 1:,} fit; shorten it")
        if (back := _text(tokenizer, ids)) != text:
            spaced = "".join(back.split()) == "".join(text.split())
            remedy = "write it with these spaces" if spaced else "use words and signs that it knows"
            raise InputError(
                f"the prompt {shown!r} can't be written in the model's tokens, which make {back[:60]!r} of it; {remedy}"
            )
        rows.append([bos, *ids])
    return rows


def _encoded(tokens_TL: Tensor, most: int, where: str | None, source: Continues) -> Tensor:
    """States (T, `most`, D) of the first tokens. Rows run whole, in few at a time: all states would fill the memory."""
    try:
        encoder = source.frozen_encoder(where)
        h_TLD = torch.empty(len(tokens_TL), most, source.shapes.hidden_dim, device=source.device)
        for h_BLD, tokens_BL in zip(h_TLD.split(ROWS_PER_PASS), tokens_TL.split(ROWS_PER_PASS), strict=True):
            h_BLD.copy_(encoder(tokens_BL.to(source.device))[:, :most])
        return h_TLD
    except InputError as error:  # it can't be loaded, or is a different one
        if where is not None:
            raise
        raise InputError(f"{error}; say where the encoder is with --encoder DIR (encoder=DIR in Python)") from None
