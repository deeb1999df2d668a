"""`hidden_states[layer]` of a transformers model, computed with as few of its blocks as possible (SPEC 2).

A model's blocks and positions are found by trial. The whole model runs once over a row; a cheaper way is taken only
if it gives the states that the whole model calls `hidden_states[layer]`. For most models that is the output of the
block below, with the blocks above removed. Some stay whole: Mamba numbers its states differently, DeBERTa-v2 may add a
convolution after its first block, Longformer pads.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldlm.errors import InputError

Way = Literal["output", "cut", "whole"]
Read = Callable[[Tensor], Any]  # tokens (B, L) → states (B, L, D)

PROBE_LEN = 13  # tokens, if the length of rows isn't given: not a multiple of any window that a model pads to
TOLERANCE = 1e-5  # of a state's norm, for rounding: the same kernels give the same bits, and other layers differ more
SPARE_POSITIONS = 8  # rows that a table of positions may have beyond those that the configuration states


# ----------------------------------------------------------------------------------------------------------------------
# The model


def text_encoder(model: Any, name: str) -> Any:
    """The part of a model that reads text: the encoder of an encoder-decoder, else the whole model."""
    takes_target = "decoder_input_ids" in inspect.signature(model.forward).parameters
    if not (model.config.is_encoder_decoder or takes_target):
        return model
    encoder = model.get_encoder()
    if not hasattr(encoder, "get_input_embeddings"):
        raise InputError(f"{name} has no encoder that works on its own; give another --encoder")
    return encoder


def token_table(model: Any, name: str) -> Any:
    """The model's token embeddings, with a weight (V, D); `InputError` when it has no such table."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        table = None
    if getattr(getattr(table, "weight", None), "ndim", 0) != 2:
        raise InputError(f"{name} has no table of token embeddings; give an encoder or a causal model of text")
    return table


def plain_tokens(model: Any, length: int) -> Tensor:
    """A row of tokens (1, length) int64 spread over the vocabulary, without special ones.

    Padding would take no position in models whose positions begin after its index; an image token would need an image.
    """
    configs = (model.config, model.config.get_text_config())
    settings = [setting for config in configs for setting in config.to_dict().items()]
    special = {value for key, value in settings if key.endswith(("_id", "_index")) and isinstance(value, int)}
    vocabulary = range(len(model.get_input_embeddings().weight))
    ids = torch.tensor([i for i in vocabulary if i not in special] or list(vocabulary))
    return ids[torch.arange(length).mul(7919).remainder(len(ids))][None]


# ----------------------------------------------------------------------------------------------------------------------
# The longest row


def positions(model: Any) -> int | None:
    """Number of tokens in the longest row that a model on the CPU has positions for; None if there is no bound.

    If positions are in a table, lengths are tried: RoBERTa's table begins after the padding index, so 514 positions are
    512 tokens.
    """
    claimed = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if claimed is None or claimed <= 0:
        return None
    if not _has_position_table(model, claimed):
        return int(claimed)
    return longest(lambda length: _enters(model, length), claimed) or None


def _has_position_table(model: Any, claimed: int) -> bool:
    """Whether an embedding other than the tokens' has about `claimed` rows; I-BERT's is not an `nn.Embedding`."""
    others = [module for module in model.modules() if module is not model.get_input_embeddings()]
    tables = [module.weight for module in others if hasattr(module, "padding_idx") and hasattr(module, "weight")]
    return any(0 <= len(table) - claimed <= SPARE_POSITIONS for table in tables)


def longest(takes: Callable[[int], bool], most: int) -> int:
    """The greatest length up to `most` that `takes` accepts, by bisection; 0 when there is none."""
    if takes(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low


class _EnteredError(Exception):
    """Raised where the first block begins."""


def _enters(model: Any, length: int) -> bool:
    """Whether the model takes a row of this length, found by a forward pass that ends at the first block."""

    def stop(*_: Any) -> None:
        raise _EnteredError

    blocks = {block for found in model.modules() if isinstance(found, nn.ModuleList) for block in found}
    handles = [block.register_forward_pre_hook(stop) for block in blocks]
    try:
        return runs(model, length)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def runs(model: Any, length: int) -> bool:
    """Whether the model accepts a row of `length` tokens."""
    try:
        model(input_ids=plain_tokens(model, length).to(model.device))
    except _EnteredError:
        return True
    except Exception:  # IndexError, RuntimeError, ValueError …: every model fails in its own way
        return False
    return True


# ----------------------------------------------------------------------------------------------------------------------
# The states


class HiddenStates:
    """`hidden_states[layer]` of a model on the CPU, whose unneeded blocks are removed.

    They are checked on a row of `seq_len` tokens, the length of the rows to come. `index` is the layer counted from 0,
    of `depth + 1`. `way` names the source of its states: the model `cut` off above the layer, the model's `output`, or
    the hidden states of the `whole` model.
    `InputError`, naming the usable layers, when the model has no such states.
    """

    way: Way
    read: Read

    def __init__(self, model: Any, layer: int, seq_len: int, name: str) -> None:
        tokens_BL = plain_tokens(model, seq_len)
        states = _all_states(model, tokens_BL, name)
        self.depth = len(states) - 1
        self.index = _resolve_layer(layer, self.depth, name)
        expected_BLD = states[self.index]
        _check_per_token(states, layer, self.index, tokens_BL, name)
        self.hidden_dim: int = expected_BLD.shape[-1]
        for way, read in _ways(model, self.index, self.depth):
            if _agrees(read, tokens_BL, expected_BLD):
                self.way, self.read = way, read
                return
        raise InputError(f"{name} gives different states for the same tokens each time; give another --encoder")


@torch.no_grad()
def _all_states(model: Any, tokens_BL: Tensor, name: str) -> tuple[Tensor, ...]:
    try:
        found = model(input_ids=tokens_BL, output_hidden_states=True).hidden_states
    except Exception as error:
        asked, reason = tokens_BL.shape[1], (str(error).strip() or type(error).__name__).splitlines()[0]
        works = longest(lambda length: runs(model, length), asked)
        raise InputError(
            f"--seq-len {asked} is longer than {name} takes ({reason}); use at most {works}"
            if works
            else f"{name} can't read rows of tokens alone ({reason}); give an encoder or a causal model of text"
        ) from None
    if not found:
        raise InputError(f"{name} doesn't return its hidden states; give another --encoder")
    return tuple(map(_first, found))


def _first(state: Any) -> Any:
    """The state of a block, which may come in a tuple with others: Pegasus-X has global tokens."""
    return state[0] if isinstance(state, tuple | list) else state


def _resolve_layer(layer: int, depth: int, name: str) -> int:
    index = layer if layer >= 0 else depth + 1 + layer
    if not 0 <= index <= depth:
        raise InputError(f"--layer {layer} is out of range: {name} has hidden_states {-depth - 1} … {depth}")
    return index


def _check_per_token(states: tuple[Any, ...], layer: int, index: int, tokens_BL: Tensor, name: str) -> None:
    """`InputError` when a layer doesn't have one state per token: the model pads or pools, or lacks the layer."""
    length, shape = tokens_BL.shape[1], tuple(getattr(states[index], "shape", ()))
    if shape[:2] == tokens_BL.shape:
        return
    if len(shape) == 3 and shape[1] > length:
        raise InputError(
            f"--layer {layer} of {name} pads rows of {length} tokens to {shape[1]}; use --seq-len {shape[1]}"
        )
    usable = [str(i) for i, state in enumerate(states) if tuple(getattr(state, "shape", ()))[:2] == tokens_BL.shape]
    which = f"use one of --layer {', '.join(usable)}" if usable else "give another --encoder"
    raise InputError(f"--layer {layer} of {name} doesn't have one state per token; {which}")


def _ways(model: Any, index: int, depth: int) -> Iterator[tuple[Way, Read]]:
    """Ways to compute hidden_states[index], the cheapest first. Asking for the next one undoes the last."""
    if index == depth:  # after the final norm, if there is one
        yield "output", lambda tokens_BL: model(input_ids=tokens_BL).last_hidden_state
    else:
        for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]:
            kept, removed = max(1, index), list(blocks)[max(1, index) :]
            del blocks[kept:]
            tap = _Tap(model, blocks[kept - 1], entering=index == 0)
            yield "cut", tap.read
            tap.handle.remove()
            blocks.extend(removed)
    yield "whole", lambda tokens_BL: _first(model(input_ids=tokens_BL, output_hidden_states=True).hidden_states[index])


class _Tap:
    """Reads the input or output of a block of a model."""

    def __init__(self, model: nn.Module, block: nn.Module, *, entering: bool) -> None:
        self.model, self.noted = model, None
        if entering:
            self.handle = block.register_forward_pre_hook(self._note_input, with_kwargs=True)
        else:
            self.handle = block.register_forward_hook(self._note_output)

    def read(self, tokens_BL: Tensor) -> Any:
        """The block's input or output while the model runs over the tokens."""
        self.model(input_ids=tokens_BL)
        noted, self.noted = self.noted, None
        return noted

    def _note_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.noted = args[0] if args else kwargs["hidden_states"]

    def _note_output(self, module: nn.Module, args: Any, output: Any) -> None:
        self.noted = _first(output)


@torch.no_grad()
def _agrees(read: Read, tokens_BL: Tensor, expected_BLD: Tensor) -> bool:
    """Whether `read` gives the expected states, up to rounding."""
    try:
        found_BLD = read(tokens_BL)
    except Exception:  # some models need the removed blocks, and fail in many ways
        return False
    if not isinstance(found_BLD, Tensor) or found_BLD.shape != expected_BLD.shape:
        return False
    norm_BL1 = expected_BLD.norm(dim=-1, keepdim=True)
    return torch.allclose(found_BLD / norm_BL1, expected_BLD / norm_BL1, rtol=0, atol=TOLERANCE, equal_nan=True)
