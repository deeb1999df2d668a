"""The causal language model that scores texts: −ln p of each token, and the last hidden state of a text.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm import files, hub
from ldlm.errors import InputError
from ldlm.evaluation.scorecache import ScoreCache
from ldlm.features.states import longest, positions, runs
from ldlm.features.text import batched
from ldlm.hub import check_whole, load_model, load_tokenizer

LOGITS_AT_ONCE = 2**27  # elements of logits or hidden states; bounds the memory of a forward pass
TEXTS_AT_ONCE = 64  # given to the tokenizer, whose own records take hundreds of bytes per token
CHARACTERS_PER_TOKEN = 16  # several times the usual number


class Scorer:
    """A causal language model, by hub name or folder, in float32."""

    def __init__(self, name: str, device: torch.device, note: Callable[[str], None] = lambda line: None) -> None:
        """`note` is told if texts go on where the model has only seen their ends."""
        from transformers import AutoModelForCausalLM

        self.name, self.device, self._note = name, device, note
        self.tokenizer = load_tokenizer(name)
        self.model, made_up = load_model(AutoModelForCausalLM, name)
        check_whole(self.model, made_up, name)
        self.model.eval().requires_grad_(False)
        config = self.model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.positions = positions(self.model)
        self.model.to(device)
        self._check_causal()

    @torch.no_grad()
    def _check_causal(self) -> None:
        """`InputError` if a prediction depends on later tokens, as BERT's do: its perplexity would mean nothing."""
        tokens_BL = torch.tensor([[0, 1, 0], [0, 1, 1]], device=self.device)  # they differ only in the last token
        logits_BLV = self.model(input_ids=tokens_BL).logits[:, :2]
        self._check_finite(logits_BLV[..., :1])
        if (logits_BLV[0] - logits_BLV[1]).abs().max() > 1e-4 * logits_BLV.abs().max():
            raise InputError(f"the scorer {self.name} is no causal model: its predictions depend on later tokens")

    def check_length(self, max_tokens: int) -> None:
        """`InputError` if `max_tokens` is larger than the scorer's number of positions."""
        usable = self.positions or longest(lambda length: runs(self.model, length), max_tokens)
        if max_tokens > usable:
            raise InputError(
                f"--max-tokens {max_tokens} is longer than the {usable} positions of the scorer {self.name}; "
                f"use at most {usable}"
            )

    def _check_finite(self, values: Tensor) -> None:
        """`InputError` if the model gives NaN or infinity: its weights are damaged."""
        if not torch.isfinite(values).all():
            raise InputError(
                f"the scorer {self.name} gives NaN or infinity, so its weights are damaged; download or train it "
                f"again, or choose another one"
            )

    def fitting(self, length: int, note: Callable[[str], None] = lambda line: None) -> int:
        """Default length at which to cut texts: `length`, or the scorer's positions, with a note, if they are fewer."""
        if self.positions is None or length <= self.positions:
            return length
        note(
            f"texts are cut after {self.positions:,} tokens, the most that the scorer {self.name} takes, instead of "
            f"after {length:,}"
        )
        return self.positions

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text: EOS, or SEP if the tokenizer has no EOS; None if it has neither."""
        tokenizer = self.tokenizer
        return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    @property
    def eos(self) -> str | None:
        """The string of `eos_id`."""
        return None if self.eos_id is None else str(self.tokenizer.convert_ids_to_tokens(self.eos_id))

    def has_token(self, written: str) -> bool:
        """Whether a special token, as it is written, is one token of the scorer's."""
        return written in self.tokenizer.get_vocab()

    @property
    def dtype(self) -> str:
        """Name of the model's dtype."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def revision(self) -> str:
        """Identity of the weights: `commit:…` from the hub, or `sha256:…` of a folder's configuration and weights."""
        folder = Path(self.name)
        if not folder.is_dir():
            return f"commit:{hub.commit(self.name)}"
        paths = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
        return f"sha256:{files.sha256_json({path.name: files.sha256_file(path) for path in paths})}"

    def cache(self, folder: Path, note: Callable[[str], None] = lambda line: None) -> ScoreCache:
        """The cache in `folder` for the likelihoods that these weights give in this dtype."""
        kind, _, digest = self.revision.partition(":")
        return ScoreCache(folder / f"{kind}-{digest[:40]}-{self.dtype}.sqlite", note)

    def tokens(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Token ids (≤ max_tokens,) int32 of each text, with the special tokens that it spells and none added."""
        return [row for batch in batched(texts, TEXTS_AT_ONCE) for row in self._tokenize(batch, max_tokens)]

    def _tokenize(self, texts: Sequence[str], max_tokens: int) -> Iterator[np.ndarray]:
        """Tokenize only the beginning of each text, to twice the needed length, since a cut changes the last tokens."""
        characters = CHARACTERS_PER_TOKEN * max_tokens
        for text, ids in zip(texts, self._ids([text[:characters] for text in texts]), strict=True):
            read = characters
            while len(ids) < 2 * max_tokens and read < len(text):
                read *= 2
                (ids,) = self._ids([text[:read]])
            yield np.asarray(ids[:max_tokens], np.int32)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    @torch.no_grad()
    def token_nll(
        self,
        rows: Sequence[np.ndarray],
        batch_size: int,
        advance: Callable[[int], None] = lambda count: None,
        cache: ScoreCache | None = None,
    ) -> list[np.ndarray]:
        """−ln p(token | preceding tokens) for every token of each row but its first; float32 (len − 1,) each.

        Rows in the cache are not computed again; new ones are added to it batch by batch. `advance` is told of all
        rows, also of those without a second token.
        """
        nothing = np.zeros(0, np.float32)
        known = [nothing if len(row) < 2 else cache.get(row) if cache else None for row in rows]
        result = [nothing if nll is None else nll for nll in known]
        missing = [i for i, nll in enumerate(known) if nll is None]
        advance(len(rows) - len(missing))
        logits_at_once = max(1, LOGITS_AT_ONCE // self.vocab_size)
        for chosen, tokens_BL in self._batches(rows, missing, batch_size, logits_at_once):
            logits_BLV = self.model(input_ids=tokens_BL).logits
            for place, i in enumerate(chosen):
                length = len(rows[i])
                nll = F.cross_entropy(
                    logits_BLV[place, : length - 1].float(), tokens_BL[place, 1:length], reduction="none"
                )
                self._check_finite(nll)
                result[i] = nll.cpu().numpy()
                if cache:
                    cache.put(rows[i], result[i])
            advance(len(chosen))
        self._remark_on_ends(rows)
        return result

    def _remark_on_ends(self, rows: Sequence[np.ndarray]) -> None:
        """Note, once, that most texts go on at the last position of a model that has only seen ends of text there."""
        if self.positions is None or not self._ends_at_last_position:
            return
        on = sum(len(row) == self.positions and row[-1] != self.eos_id for row in rows)
        if 2 * on <= len(rows):
            return
        self._note(
            f"{on:,} of {len(rows):,} texts go on at the last of the {self.positions:,} positions of the scorer "
            f"{self.name}, where `ldlm pretrain-encoder` has shown it nothing but ends of text: their perplexity is "
            f"too high. `ldlm evaluate --max-tokens {self.positions - 1}` leaves that token out, and a scorer trained "
            f"with more --positions has no such place"
        )
        self._note = lambda line: None

    @cached_property
    def _ends_at_last_position(self) -> bool:
        """Whether the model is of `ldlm pretrain-encoder`, whose rows all end with EOS at the last position."""
        record = Path(self.name) / "artifact.json"
        return record.is_file() and files.read_json(record).get("kind") == "encoder"

    @torch.no_grad()
    def last_states(
        self, rows: Sequence[np.ndarray], batch_size: int, advance: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """The hidden state of each row's last token, after the final norm; (rows, D) float32. No row may be empty."""
        result: list[np.ndarray | None] = [None] * len(rows)
        tokens_at_once = max(1, LOGITS_AT_ONCE // self.model.config.get_text_config().hidden_size)
        for chosen, tokens_BL in self._batches(rows, range(len(rows)), batch_size, tokens_at_once):
            h_BLD = self.model.base_model(input_ids=tokens_BL).last_hidden_state
            for place, i in enumerate(chosen):
                self._check_finite(h_BLD[place, len(rows[i]) - 1])
                result[i] = h_BLD[place, len(rows[i]) - 1].float().cpu().numpy()
            advance(len(chosen))
        return np.stack(result)  # type: ignore[arg-type]

    def _batches(
        self, rows: Sequence[np.ndarray], wanted: Sequence[int], batch_size: int, tokens_at_once: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of rows of similar length, the longest first: row numbers and padded tokens (B, L)."""
        by_length = sorted(wanted, key=lambda i: len(rows[i]), reverse=True)
        start = 0
        while start < len(by_length):
            longest = len(rows[by_length[start]])
            size = max(1, min(batch_size, tokens_at_once // longest))
            chosen = by_length[start : start + size]
            # Padding comes after everything that is scored, so a causal model can't see it.
            padded_BL = np.zeros((len(chosen), longest), np.int64)
            for place, i in enumerate(chosen):
                padded_BL[place, : len(rows[i])] = rows[i]
            yield chosen, torch.from_numpy(padded_BL).to(self.device)
            start += size
