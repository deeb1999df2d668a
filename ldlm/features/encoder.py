"""The frozen text encoder E_h: tokens → hidden states h, and their normalisation (Sections 4.1 and 6, SPEC 2).

Any encoder or causal model of transformers will do. `hidden_states[layer]` is taken from a model whose blocks above
that layer have been removed, so that they cost neither time nor memory; `states.py` checks that the states are that
layer's.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ldlm import hub
from ldlm.compute import DTYPES, Compute
from ldlm.errors import InputError
from ldlm.features import states
from ldlm.features.text import special_tokens
from ldlm.hub import check_whole, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ldlm.features.store import FeatureStore

VARIANCE_FLOOR = 1e-4
CAUSAL_ROWS = 16  # rows whose first states are compared
ROUNDING = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2, "int8-token": 2e-2}  # of a state, by how it was made and stored
ROWS_PER_PASS = 32  # of the online encoder, so that its memory doesn't grow with the batch


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokenizer's rules and special tokens, wherever it was loaded from."""
    description = f"{tokenizer.backend_tokenizer.to_str()}{special_tokens(tokenizer)}"
    return hashlib.sha256(description.encode()).hexdigest()


class FrozenEncoder:
    """E_h for one `kind` and `layer` (SPEC 2).

    kind `hidden`: contextual states; `embedding`: the model's token embeddings. `layer` indexes `hidden_states`.
    `seq_len` is the length of the rows that will be encoded; the states of such a row are checked against the whole
    model's. `InputError` when the rows are too long for the model, or it has no such layer.
    `precision` is that of matrix products and attention; the states are float32 in any case.
    """

    def __init__(
        self,
        name: str,
        *,
        kind: str = "hidden",
        layer: int = -3,
        seq_len: int | None = None,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        from transformers import AutoModel

        model, absent = load_model(AutoModel, name)
        model = states.text_encoder(model, name).eval().requires_grad_(False)
        self.name, self.kind, self.layer = name, kind, layer
        self.compute = Compute(torch.device(device))
        self.compute_in(precision)
        table = states.token_table(model, name)
        self.vocab_size: int = table.weight.shape[0]
        if kind == "hidden":
            self.network: nn.Module = model
            self._take_states(model, seq_len)
        elif isinstance(table, nn.Embedding):
            self.network, self.hidden_dim = table, table.embedding_dim
        else:
            raise InputError(f"{name} computes its token embeddings; use --kind hidden")
        check_whole(self.network, absent, name)
        self.network.to(self.device)

    def _take_states(self, model: Any, seq_len: int | None) -> None:
        """Remove the blocks above the layer, on the CPU: on a GPU, a position out of range would end the process."""
        if getattr(model, "pooler", None) is not None:
            # The pooler is not used. A checkpoint may lack it, and its random weights would enter the fingerprint.
            model.pooler = nn.Identity().eval()
        self.positions = states.positions(model)
        if seq_len is not None and self.positions is not None and seq_len > self.positions:
            raise InputError(
                f"--seq-len {seq_len} is longer than the {self.positions} positions of {self.name}; use at most "
                f"{self.positions}"
            )
        length = seq_len or min(states.PROBE_LEN, self.positions or states.PROBE_LEN)
        self.states = states.HiddenStates(model, self.layer, length, self.name)
        self.hidden_dim, self.depth = self.states.hidden_dim, self.states.depth

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.compute.device

    @cached_property
    def revision(self) -> str | None:
        """The commit that it was loaded from; None for a folder, unless that stands for an encoder of the hub."""
        return hub.revision(self.name)

    def compute_in(self, precision: Literal["fp32", "bf16"]) -> None:
        """Set the precision of matrix products and attention."""
        self.compute = replace(self.compute, dtype=DTYPES[precision])

    @torch.no_grad()
    def __call__(self, tokens_BL: Tensor) -> Tensor:
        """h (B, L, D) float32, not normalised, on the encoder's device."""
        tokens_BL = tokens_BL.to(self.device, torch.int64)
        if self.kind == "embedding":
            return self.network(tokens_BL).float()
        with self.compute.autocast():
            state_BLD: Tensor = self.states.read(tokens_BL)
        assert state_BLD.shape[:2] == tokens_BL.shape  # holds for rows of the length that was checked
        return state_BLD.float()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """`InputError` when the tokenizer gives tokens that the encoder has no embedding for."""
        if len(tokenizer) > self.vocab_size:
            raise InputError(
                f"{self.name}: its tokenizer has {len(tokenizer):,} tokens and its embeddings "
                f"are {self.vocab_size:,}; use the tokenizer that the encoder was trained with"
            )

    def fingerprint(self) -> str:
        """A hash of the weights that are used, the kind and the layer, wherever the model came from."""
        digest = hashlib.sha256(f"{self.kind}/{self._layer_taken()}".encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _layer_taken(self) -> str:
        if self.kind != "hidden":
            return ""
        return f"{self.states.index}{'/whole' if self.states.way == 'whole' else ''}"


@dataclass(frozen=True)
class Statistics:
    """Per-dimension mean and variance of states, float64, and the number of positions that they are taken over."""

    count: int
    mean_D: np.ndarray
    m2_D: np.ndarray  # sum of squared deviations from the mean

    @classmethod
    def of(cls, h: np.ndarray) -> Statistics:
        """The statistics of states (…, D)."""
        flat = h.reshape(-1, h.shape[-1]).astype(np.float64)
        mean = flat.mean(axis=0) if len(flat) else np.zeros(flat.shape[1])
        flat -= mean
        return cls(len(flat), mean, np.einsum("nd,nd->d", flat, flat))

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both together (Chan et al., 1979). A fixed order of merging fixes the bits."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean_D - self.mean_D
        return Statistics(
            count,
            self.mean_D + delta * (other.count / count),
            self.m2_D + other.m2_D + delta**2 * (self.count * other.count / count),
        )

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Tensors for a safetensors file, under `name`."""
        return {f"{name}/count": np.array(self.count), f"{name}/mean": self.mean_D, f"{name}/m2": self.m2_D}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], name: str) -> Statistics:
        """Inverse of `tensors`."""
        return cls(int(tensors[f"{name}/count"]), tensors[f"{name}/mean"], tensors[f"{name}/m2"])

    @property
    def std_D(self) -> np.ndarray:
        """Standard deviation with the variance floored at 1e-4."""
        return np.sqrt(np.maximum(self.m2_D / max(1, self.count), VARIANCE_FLOOR))

    def summary(self) -> dict[str, float]:
        """Number of positions, and the largest and median deviations, for people to read."""
        return {
            "positions": self.count,
            "largest_std": float(self.std_D.max()),
            "median_std": float(np.median(self.std_D)),
            "largest_abs_mean": float(np.abs(self.mean_D).max()),
        }


def recorded_encoder(record: Mapping[str, Any], seq_len: int, device: torch.device | str = "cpu") -> FrozenEncoder:
    """The encoder that a store's record describes, loaded from its `name`; `InputError` if that is another encoder."""
    name, kind, layer, precision = (record[key] for key in ("name", "kind", "layer", "precision"))
    encoder = FrozenEncoder(name, kind=kind, layer=layer, seq_len=seq_len, device=device, precision=precision)
    if encoder.fingerprint() != record["fingerprint"]:
        raise InputError(
            f"{name} is not the encoder that the features were prepared with: its fingerprint is "
            f"{encoder.fingerprint()[:12]} and theirs {record['fingerprint'][:12]}"
        )
    return encoder


def online_encoder(store: FeatureStore) -> OnlineEncoder | None:
    """The encoder that makes the states of `store` inside the step; None if it holds them or needs none."""
    return OnlineEncoder(store.encoder, *store.statistics()) if store.needs_encoder else None


def check_online(store: FeatureStore) -> None:
    """`InputError` if the encoder that a store `needs_encoder` for can't be loaded, or is another one by now."""
    if store.needs_encoder:
        recorded_encoder(store.encoder, store.shapes.seq_len)


def check_causal(store: FeatureStore) -> None:
    """`InputError` if states depend on later tokens, as BERT's do: the first k would give away what comes after them.

    Every row begins with BOS, and a causal encoder has seen nothing else there, so all rows have the same first state.
    If the rows do not differ, the encoder reads one of them with other tokens.
    """
    split = store.split("train", online_encoder(store))
    parts, tokens = split.read(0, min(CAUSAL_ROWS, split.rows))
    tokens_BL = torch.from_numpy(tokens).to(torch.int64)
    alike = bool((tokens_BL == tokens_BL[0]).all())
    if alike:
        others_L = torch.cat([tokens_BL[0, :1], (tokens_BL[0, 1:] + 1) % store.shapes.vocab_size])
        tokens_BL = torch.stack([tokens_BL[0], others_L])
        split = replace(split, encode=OnlineEncoder(store.encoder, *store.statistics()))
    h_BLD = split.states(parts, tokens_BL)
    assert h_BLD is not None  # only scratch embeddings have no states
    first_BD = h_BLD[:, 0].double()
    rounded = "bf16" if store.encoder["precision"] == "bf16" else "fp32" if alike else store.codec.name
    _check_alike(first_BD, ROUNDING.get(rounded, ROUNDING["fp32"]), store.encoder["name"], f"rows of {store.path}")


def check_encoder_causal(encoder: FrozenEncoder, seq_len: int) -> None:
    """`InputError` if states of an encoder depend on later tokens, as two rows that share only the first one show."""
    encoder.compute_in("fp32")
    tokens_L = torch.arange(seq_len) % encoder.vocab_size
    first_BD = encoder(torch.stack([tokens_L, torch.zeros_like(tokens_L)]))[:, 0].double()
    _check_alike(first_BD, ROUNDING["fp32"], encoder.name, "two rows")


def _check_alike(first_BD: Tensor, tolerance: float, name: str, rows: str) -> None:
    """`InputError` if the first states of rows that begin alike differ by more than rounding."""
    apart = ((first_BD - first_BD[0]).norm(dim=1).max() / first_BD[0].norm()).item()
    if apart > tolerance:
        raise InputError(
            f"model.condition=prefix needs a causal encoder, such as GPT-2, and the states of {name} depend on later "
            f"tokens: its first ones, all of one token, differ by {apart:.1%} between {rows}"
        )


class OnlineEncoder:
    """Tokens (B, L) → normalised states (B, L, D) float32, as a store with codec fp32 holds them.

    `record` is the store's description of its encoder. The model is loaded at the first call, to the tokens' device.
    """

    def __init__(self, record: Mapping[str, Any], mean_D: np.ndarray, std_D: np.ndarray) -> None:
        self.record = record
        self.mean_D, self.std_D = torch.from_numpy(mean_D), torch.from_numpy(std_D)
        self._encoder: FrozenEncoder | None = None

    def __call__(self, tokens_BL: Tensor) -> Tensor:
        encoder = self._load(tokens_BL.device, tokens_BL.shape[1])
        h_BLD = torch.cat([encoder(tokens) for tokens in tokens_BL.split(ROWS_PER_PASS)])
        return (h_BLD - self.mean_D) / self.std_D

    def _load(self, device: torch.device, seq_len: int) -> FrozenEncoder:
        """The encoder on `device`; `InputError` when it is not the encoder of the statistics."""
        if self._encoder is None or self._encoder.device != device:
            self._encoder = recorded_encoder(self.record, seq_len, device)
            self.mean_D, self.std_D = self.mean_D.to(device), self.std_D.to(device)
        return self._encoder
