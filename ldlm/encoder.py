"""The frozen text encoder E_h: tokens → hidden states h, and their normalisation (Section 4.1 and 6, SPEC 2).

Any encoder or causal model of transformers. `hidden_states[layer]` is taken from a model whose blocks above that layer
have been removed, so that they cost neither time nor memory.

Shapes in names: B batch, L tokens, D encoder width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ldlm.compute import DTYPES, Compute
from ldlm.errors import InputError
from ldlm.hub import check_whole, load_model
from ldlm.text import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VARIANCE_FLOOR = 1e-4


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what the tokenizer does, wherever it was loaded from."""
    description = f"{tokenizer.backend_tokenizer.to_str()}{special_tokens(tokenizer)}"
    return hashlib.sha256(description.encode()).hexdigest()


class FrozenEncoder:
    """E_h for one `kind` and `layer` (SPEC 2).

    kind `hidden`: contextual states; `embedding`: the model's token embeddings. `layer` indexes `hidden_states`.
    `precision` is that of matrix products and attention; the states are float32 in any case.
    """

    def __init__(
        self,
        name: str,
        *,
        kind: str = "hidden",
        layer: int = -3,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        from transformers import AutoModel

        model, made_up = load_model(AutoModel, name)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self.name, self.kind, self.compute = name, kind, Compute(torch.device(device))
        self.compute_in(precision)
        config = model.config.get_text_config()
        self.hidden_dim: int = config.hidden_size
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.positions: int | None = getattr(config, "max_position_embeddings", None)
        self._captured: Tensor | None = None
        self.depth: int = config.num_hidden_layers
        self.layer = layer
        if getattr(model, "pooler", None) is not None:
            # It takes no part; and where the checkpoint has none, it would be random and the fingerprint with it.
            model.pooler = None
        if kind == "hidden":
            self._truncate(model, _resolve_layer(layer, self.depth, name))
            self.network: nn.Module = model
        else:
            self.network = model.get_input_embeddings()
        check_whole(self.network, made_up, name)
        self.network.eval().requires_grad_(False).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.compute.device

    def compute_in(self, precision: Literal["fp32", "bf16"]) -> None:
        """Do matrix products and attention in another precision from now on."""
        self.compute = replace(self.compute, dtype=DTYPES[precision])

    def _truncate(self, model: nn.Module, index: int) -> None:
        """Remove the blocks above `hidden_states[index]` and note that state as it passes."""
        self._index = index
        if index == self.depth:  # after the final norm, where there is one: the model's own output
            return
        blocks = _blocks(model, self.depth, self.name)
        if index == 0:  # what enters the first block
            del blocks[1:]
            blocks[0].register_forward_pre_hook(self._note_input, with_kwargs=True)
        else:
            del blocks[index:]
            blocks[index - 1].register_forward_hook(self._note_output)

    def _note_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._captured = args[0] if args else kwargs["hidden_states"]

    def _note_output(self, module: nn.Module, args: Any, output: Any) -> None:
        self._captured = output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def __call__(self, tokens_BL: Tensor) -> Tensor:
        """h (B, L, D) float32, not normalised, on the encoder's device."""
        tokens_BL = tokens_BL.to(self.device, torch.int64)
        if self.kind == "embedding":
            return self.network(tokens_BL).float()
        with self.compute.autocast():
            output = self.network(input_ids=tokens_BL)
        state = output.last_hidden_state if self._index == self.depth else self._captured
        self._captured = None
        assert state is not None
        return state.float()

    def check_length(self, seq_len: int) -> None:
        """`InputError` when rows of `seq_len` tokens are longer than the encoder's positions."""
        if self.kind == "hidden" and self.positions is not None and seq_len > self.positions:
            raise InputError(
                f"--seq-len {seq_len} is longer than the {self.positions} positions of {self.name}; use at most "
                f"{self.positions}"
            )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """`InputError` when the tokenizer gives tokens that the encoder has no embedding for."""
        if len(tokenizer) > self.vocab_size:
            raise InputError(
                f"{self.name}: its tokenizer has {len(tokenizer):,} tokens and its embeddings "
                f"are {self.vocab_size:,}; use the tokenizer that the encoder was trained with"
            )

    def fingerprint(self) -> str:
        """A hash of the weights that take part, the kind and the layer; the same wherever the model came from."""
        digest = hashlib.sha256(f"{self.kind}/{self._index if self.kind == 'hidden' else ''}".encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _resolve_layer(layer: int, depth: int, name: str) -> int:
    index = layer if layer >= 0 else depth + 1 + layer
    if not 0 <= index <= depth:
        raise InputError(f"--layer {layer} is out of range: {name} has hidden_states {-depth - 1} … {depth}")
    return index


def _blocks(model: nn.Module, depth: int, name: str) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise InputError(f"can't tell which part of {name} is its {depth} blocks; use --layer -1")
    return found[0]


@dataclass(frozen=True)
class Statistics:
    """Per-dimension mean and variance of the states, float64, and how many positions they were taken over."""

    count: int
    mean_D: np.ndarray
    m2_D: np.ndarray  # sum of squared deviations from the mean

    @classmethod
    def of(cls, h: np.ndarray) -> Statistics:
        """Of states (…, D)."""
        flat = h.reshape(-1, h.shape[-1]).astype(np.float64)
        mean = flat.mean(axis=0) if len(flat) else np.zeros(flat.shape[1])
        flat -= mean
        return cls(len(flat), mean, np.einsum("nd,nd->d", flat, flat))

    def merge(self, other: Statistics) -> Statistics:
        """Of both together (Chan et al., 1979). Merge in a fixed order and the bits are fixed."""
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
        """For a safetensors file, under `name`."""
        return {f"{name}/count": np.array(self.count), f"{name}/mean": self.mean_D, f"{name}/m2": self.m2_D}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], name: str) -> Statistics:
        """Inverse of `tensors`."""
        return cls(int(tensors[f"{name}/count"]), tensors[f"{name}/mean"], tensors[f"{name}/m2"])

    @property
    def std_D(self) -> np.ndarray:
        """Standard deviation with the variance floored at 1e-4."""
        return np.sqrt(np.maximum(self.m2_D / max(1, self.count), VARIANCE_FLOOR))
