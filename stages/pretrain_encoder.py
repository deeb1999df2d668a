"""Train a small GPT-2 or BERT with its own tokenizer: a frozen encoder, or a scorer, for machines without a model hub.

The result is a plain transformers folder, to try the pipeline with. If the hub can be reached, use the paper's GPT-2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import artifact, files, runtime
from ldlm.artifact import Artifact
from ldlm.config import PretrainConfig
from ldlm.errors import InputError
from ldlm.features import digests, text, textfiles
from ldlm.features.digests import Seen
from ldlm.features.documents import parts, section
from ldlm.features.encoder import tokenizer_fingerprint
from ldlm.hub import load_tokenizer, quiet_transformers
from ldlm.location import local
from ldlm.progress import SILENT, Progress
from ldlm.training import checkpoint
from ldlm.training.optim import load_optimizer_tensors, optimizer_tensors

SAVE_EVERY = 500
MASK_SHARE = 0.15
TOKENIZER_DOCUMENTS = 50_000
PUBLISHED_STD = 0.02
EMBEDDING_STD = 0.2  # large enough to keep words apart in the states (docs/recipe.md)


def plan(config: PretrainConfig) -> dict[str, Any]:
    """Parameters, vocabulary, steps and tokens seen in the training."""
    _check(config)
    for path in config.data:
        textfiles.check_file(Path(path))
    named = _named_tokenizer(config)
    _check_vocabulary(config, named)
    tokenizer = _trained_tokenizer(config) if named is None else named
    with torch.device("meta"):
        parameters = sum(p.numel() for p in _model(config, tokenizer).parameters())
    return {
        "parameters": parameters,
        "vocab_size": len(tokenizer),
        "steps": config.steps,
        "tokens_seen": config.steps * config.batch_size * config.positions,
    }


def run(config: PretrainConfig, out: Path, *, overwrite: bool = False, progress: Progress = SILENT) -> Artifact:
    """Train a model and write it, with its tokenizer, to `out`; the manifest holds the final loss."""
    _check(config)
    device = runtime.device(config.device)
    quiet_transformers()
    named = _named_tokenizer(config)
    if overwrite or not (out / "artifact.json").exists():  # 0.1 took any size, and what it began goes on
        _check_vocabulary(config, named)
    seen = textfiles.seen(config.data)
    inputs: dict[str, Any] = {"text": {path: one.sha256 for path, one in seen.items()}}
    if named is not None:
        inputs["tokenizer_sha256"] = tokenizer_fingerprint(named)
    reads = local(*config.data, config.tokenizer)
    prepared = None
    if overwrite:  # what is refused is found before anything is deleted
        artifact.check_overwrite(out, "encoder", reads)
        prepared = _prepared(config, named, seen, progress)
    with artifact.working(out, "encoder", config, inputs, overwrite=overwrite, reads=reads) as result:
        if result.complete:
            progress.note(f"{out} is complete; nothing to do")
            return result

        begun = result if checkpoint.latest(out / "checkpoints") else replace(result, state="new")
        with begun.or_nothing():  # bad input also removes an interrupted training without a checkpoint
            tokenizer, rows, model = prepared or _prepared(config, named, seen, progress)
        model = model.to(device)
        loss, seconds = _train(model, tokenizer, rows, config, out, device, progress)

        with files.writing(out):
            model.cpu().eval().save_pretrained(out, safe_serialization=True)
            tokenizer.save_pretrained(out)
        for path in out.glob("*.safetensors"):
            files.by_umask(path)
        return result.finish(
            rows=len(rows),
            tokens=int(rows.size),
            final_loss=loss,
            parameters=sum(p.numel() for p in model.parameters()),
            vocab_size=len(tokenizer),
            seconds=seconds,
        )


def _prepared(
    config: PretrainConfig, named: Any, seen: Mapping[str, Seen], progress: Progress
) -> tuple[Any, np.ndarray, Any]:
    """Tokenizer, rows and untrained model; `InputError` for bad text, and for settings that don't fit it."""
    with digests.as_hashed(seen):
        for remark in textfiles.remarks(config.data, config.text_column):
            progress.note(remark)
        tokenizer = _trained_tokenizer(config) if named is None else named
        rows = _rows(config, tokenizer)
    return tokenizer, rows, _model(config, tokenizer)


def _check(config: PretrainConfig) -> None:
    """`InputError` without text, and for a setting of GPT-2 beside BERT."""
    if not config.data:
        raise InputError("nothing to train on: give --data FILE")
    if config.arch == "bert" and config.init != PretrainConfig().init:
        raise InputError(f"--init {config.init} is for GPT-2, and BERT starts with its published weights; leave it out")


def _named_tokenizer(config: PretrainConfig) -> Any:
    """The tokenizer that the configuration names, if it does; `InputError` if the model can't be trained with it."""
    if config.tokenizer is None:
        return None
    named = load_tokenizer(config.tokenizer)
    if config.arch == "bert" and named.mask_token_id is None:
        raise InputError(
            f"{config.tokenizer} has no mask token, which BERT learns to fill in; give another --tokenizer, or "
            f"--arch gpt2"
        )
    return named


def _check_vocabulary(config: PretrainConfig, named: Any) -> None:
    """`InputError` for a size of vocabulary beside a tokenizer of another size."""
    if named is not None and config.vocab_size not in (PretrainConfig().vocab_size, len(named)):
        raise InputError(
            f"--vocab-size {config.vocab_size} is for a tokenizer that is trained, and {config.tokenizer} has "
            f"{len(named):,} tokens; leave --vocab-size out"
        )


def _trained_tokenizer(config: PretrainConfig) -> Any:
    def documents() -> Iterator[str]:
        found = section(_documents(config), 0, TOKENIZER_DOCUMENTS)
        return chain.from_iterable(map(parts, found))

    return (_byte_pairs if config.arch == "gpt2" else _word_pieces)(documents, config.vocab_size)


def _documents(config: PretrainConfig) -> Iterator[str]:
    return textfiles.file_documents(config.data, config.text_column)


def _byte_pairs(documents: Callable[[], Iterator[str]], vocab_size: int) -> Any:
    """GPT-2's byte-level BPE, with its end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def _word_pieces(documents: Callable[[], Iterator[str]], vocab_size: int) -> Any:
    """BERT's lower-cased WordPiece."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    # The trainer numbers single letters in the order of a hash map, and breaks ties by these numbers. Given the letters
    # as special tokens, it makes a vocabulary that depends only on the text, as a resumed training needs.
    words: set[str] = set()
    for document in documents():
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(document)))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({word[0] for word in words}) + sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + letters, show_progress=False)
    tokenizer.train_from_iterator(documents(), trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab())


def _rows(config: PretrainConfig, tokenizer: Any) -> np.ndarray:
    packed = list(text.pack(_documents(config), tokenizer, config.positions))
    rows = np.concatenate(packed) if packed else np.zeros((0, config.positions), np.int32)
    if len(rows) < config.batch_size:
        raise InputError(
            f"{', '.join(config.data)}: {len(rows)} rows of {config.positions} tokens are too few for one batch of "
            f"{config.batch_size}; give more text, or lower --batch-size or --positions"
        )
    return rows


def _model(config: PretrainConfig, tokenizer: Any) -> Any:
    if config.width % config.heads:
        raise InputError(f"--heads {config.heads} must divide --width {config.width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return (_gpt2 if config.arch == "gpt2" else _bert)(config, tokenizer)


def _gpt2(config: PretrainConfig, tokenizer: Any) -> Any:
    """An untrained GPT-2.

    The published initial weights suit the published width. A narrow model that starts with them learns slowly, and its
    states do not tell apart words that are used alike (docs/recipe.md).
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    bos, eos = text.special_tokens(tokenizer)
    scaled = config.init == "width"
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.positions,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=config.width**-0.5 if scaled else PUBLISHED_STD,
            bos_token_id=bos,
            eos_token_id=eos,
        )
    )
    if scaled:
        torch.nn.init.normal_(model.transformer.wte.weight, std=EMBEDDING_STD)
    return model


def _bert(config: PretrainConfig, tokenizer: Any) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=config.positions,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _train(
    model: Any,
    tokenizer: Any,
    rows: np.ndarray,
    config: PretrainConfig,
    out: Path,
    device: torch.device,
    progress: Progress,
) -> tuple[float, float]:
    """Train for next or masked tokens, from the checkpoint if there is one.

    Returns the mean loss of the last tenth, and the seconds of training over all interruptions.
    """
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    folder = out / "checkpoints"
    start, recent = 0, []
    if (found := checkpoint.latest(folder)) is not None:
        model.load_state_dict(found.tensors("model"), strict=False)
        load_optimizer_tensors(optimizer, model, found.tensors("optimizer"))
        start, recent = found.step, found.state["recent"]
        started -= found.state.get("seconds", 0)  # 0.1 did not record it

    model.train()
    with progress.task(f"pretrain {out.name} ({config.arch})", config.steps, "step", done=start) as task:
        for step in range(start, config.steps):
            random = np.random.default_rng([config.seed, step])
            tokens_BL = torch.from_numpy(rows[random.integers(0, len(rows), config.batch_size)]).long()
            inputs_BL, labels_BL = _masked(tokens_BL, tokenizer, random) if config.arch == "bert" else (tokens_BL,) * 2

            optimizer.param_groups[0]["lr"] = _cosine(step, config)
            loss = model(input_ids=inputs_BL.to(device), labels=labels_BL.to(device)).loss
            recent = [*recent, _finite(loss.item(), step, config)][-max(1, config.steps // 10) :]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            task.advance(1, loss=recent[-1])
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < config.steps:
                weights = dict(model.named_parameters())
                tensors = {"model": weights, "optimizer": optimizer_tensors(optimizer, model)}
                state = {"recent": recent, "seconds": _since(started)}
                saved = checkpoint.save(folder, step + 1, tensors, state)
                checkpoint.prune(folder, 1, {saved.path: saved.digest})
    return float(np.mean(recent)), _since(started)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def _finite(loss: float, step: int, config: PretrainConfig) -> float:
    """The loss of a step; `InputError` if it is not finite, since no later one would be."""
    if math.isfinite(loss):
        return loss
    raise InputError(
        f"the loss of step {step + 1} is {loss}: the training has diverged; take a lower --lr than {config.lr:g}, and "
        "another --output or --overwrite"
    )


def _cosine(step: int, config: PretrainConfig) -> float:
    """The learning rate of a step: a short linear warm-up, then cosine to zero."""
    warmup = max(1, config.steps // 20)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def _masked(tokens_BL: Tensor, tokenizer: Any, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and labels for BERT (Devlin, 2018): of 15 % of the tokens, 80 % are masked and 10 % replaced.

    At least one token is chosen, since the loss of none is not a number.
    """
    shape = tuple(tokens_BL.shape)
    drawn = random.random(shape)
    chosen = torch.from_numpy((drawn < MASK_SHARE) | (drawn == drawn.min()))
    fate = torch.from_numpy(random.random(shape))
    replacement = torch.from_numpy(random.integers(0, len(tokenizer), shape))
    inputs_BL = torch.where(chosen & (fate < 0.8), tokenizer.mask_token_id, tokens_BL)
    inputs_BL = torch.where(chosen & (fate >= 0.9), replacement, inputs_BL)
    return inputs_BL, torch.where(chosen, tokens_BL, -100)
