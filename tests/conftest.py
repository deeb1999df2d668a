"""What the tests share: a generated corpus, tiny encoders trained on it, one feature store and one run of each.

Fixtures that a test writes to are copies. Nothing here needs a network, a GPU or files outside the repository.
"""

import gc
import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

# No test may go out to a hub; the libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import forked
import pytest
import torch
from object_server import bucket, proxy, s3  # noqa: F401  fixtures

from ldlm import config as configs
from ldlm.config import ExtractConfig, PretrainConfig, TrainConfig
from ldlm.progress import Progress, Task

# Bit-equality is promised with the threads pinned (SPEC 12.2).
torch.set_num_threads(1)

SEQ_LEN = 16
TINY_MODEL = {
    "autoencoder": {"layers": 1, "width": 16, "heads": 2},
    "denoiser": {"layers": 1, "width": 16, "heads": 2, "time_dim": 8},
    "token_decoder": {"layers": 1, "heads": 2},
}
TINY_TRAIN = {
    "steps": 8,
    "batch_size": 8,
    "model": TINY_MODEL,
    "recipe": {"warmup_steps": 4, "sigma_dec": 1.0},
    "timesteps": {"bins": 10, "refresh_steps": 3},
    "optimizer": {"lr": 1e-3, "lr_warmup_steps": 2},
    "log_every": 1,
    "eval_every": 4,
    "eval_rows": 10,
    "save_every": 3,
    "keep": 2,
    "plots": False,  # which take three times as long as the eight steps
    "device": "cpu",
}


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through what is imported and collected, which stays to the end."""
    gc.freeze()


def sentences(count: int, seed: int = 0) -> list[str]:
    """English-looking lines from a small grammar, with commas, capitals, digits and letters beyond ASCII."""
    draw = random.Random(seed)
    people = ["the old captain", "a young teacher", "Mrs Brontë", "my neighbour", "the café owner", "nobody"]
    verbs = ["found", "remembered", "carried", "painted", "lost", "described", "bought", "followed"]
    things = ["a letter", "three boats", "the winter of 1847", "an answer", "his naïve plan", "the long road", "rain"]
    ends = ["before dawn", "in the harbour", "without a word", "as ever", "near the mill", "and said so"]
    lines = []
    for _ in range(count):
        clauses = [" ".join(map(draw.choice, (people, verbs, things, ends))) for _ in range(draw.randint(1, 3))]
        line = ", and ".join(clauses)
        lines.append(line[0].upper() + line[1:] + ".")
    return lines


@dataclass
class Interrupted(Progress):
    """Progress whose user presses Ctrl-C at the `at`-th report, counted from 0 over all tasks; counts them too."""

    at: int | None = None
    reports: int = 0

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Task:
        return InterruptedTask(self)


@dataclass
class InterruptedTask(Task):
    owner: Interrupted

    def advance(self, count: int, **figures: float | str) -> None:
        self.owner.reports += 1
        if self.owner.reports - 1 == self.owner.at:
            raise KeyboardInterrupt


@dataclass
class StoppedAt(Progress):
    """Progress that sends this process a signal when the `at`-th step is reported, counted from 1."""

    at: int
    number: int = signal.SIGTERM
    seen: int = 0

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Task:
        return StoppedAtTask(self)


@dataclass
class StoppedAtTask(Task):
    owner: StoppedAt

    def advance(self, count: int, **figures: float | str) -> None:
        self.owner.seen += 1
        if self.owner.seen == self.owner.at:
            signal.raise_signal(self.owner.number)


@dataclass
class Notes(Progress):
    """Progress that keeps what the user would have read, and how many units of work were reported."""

    def __post_init__(self) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Task:
        self.begun.append(name)
        return Task()

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="session", autouse=True)
def undurable() -> Iterator[None]:
    """An fsync that waits for no disk: no power is cut while the tests run, and thousands of them take minutes.

    It still refuses a descriptor that is closed. Tests of what is synced, and when, put their own in its place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture(scope="session", autouse=True)
def score_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `evaluate` keeps scores while the tests run, in place of the user's own folder."""
    from ldlm.evaluation import scorecache

    path = tmp_path_factory.mktemp("cache") / "scores"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorecache, "folder", lambda: path)
        yield path


@pytest.fixture(scope="session")
def interrupted() -> type[Interrupted]:
    """The class; `interrupted(at=3)` raises KeyboardInterrupt at the fourth report of progress."""
    return Interrupted


@pytest.fixture(scope="session")
def stopped_at() -> type[StoppedAt]:
    """The class; `stopped_at(3)` sends SIGTERM when the third step is reported."""
    return StoppedAt


@pytest.fixture
def notes() -> Notes:
    """Progress that remembers what it was told."""
    return Notes()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 120 documents, one per line."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(sentences(120)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def unseen() -> list[str]:
    """100 documents of the same kind that the corpus does not hold."""
    return sentences(100, seed=1)


def _pretrain(arch: str, corpus: Path, out: Path, **settings: object) -> Path:
    from ldlm.stages import pretrain_encoder

    tiny = {"layers": 4, "width": 16, "heads": 2, "vocab_size": 320, "positions": SEQ_LEN, "steps": 3, "batch_size": 4}
    config = PretrainConfig(data=(str(corpus),), arch=arch, device="cpu", **{**tiny, **settings})
    return pretrain_encoder.run(config, out).path


@pytest.fixture(scope="session")
def gpt2(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 folder: 4 layers, width 16, its own byte-level BPE, three training steps."""
    return _pretrain("gpt2", corpus, tmp_path_factory.mktemp("gpt2") / "encoder")


@pytest.fixture(scope="session")
def other_gpt2(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return _pretrain("gpt2", corpus, tmp_path_factory.mktemp("other") / "encoder", seed=1)


@pytest.fixture(scope="session")
def bert(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT folder: 4 layers, width 16, its own WordPiece, three training steps."""
    return _pretrain("bert", corpus, tmp_path_factory.mktemp("bert") / "encoder")


# The probabilities of `bigrams`: of <eos>, a, b after each of them.
BIGRAMS = {"<eos>": (1 / 8, 1 / 2, 3 / 8), "a": (1 / 4, 1 / 4, 1 / 2), "b": (1 / 2, 1 / 8, 3 / 8)}


@pytest.fixture(scope="session")
def bigrams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 folder without blocks that predicts `BIGRAMS` exactly: every probability can be worked out by hand."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("bigrams") / "scorer"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(BIGRAMS)}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>").save_pretrained(path)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=3, n_positions=8, n_embd=3, n_layer=0, n_head=1, bos_token_id=0, eos_token_id=0,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    # A token is a unit vector; the norm makes two values of it, of which its bias takes the lower one away.
    high, low, _ = torch.nn.functional.layer_norm(torch.eye(3)[0], (3,)).tolist()
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(3))
        model.transformer.wpe.weight.zero_()
        model.transformer.ln_f.bias.fill_(-low)
        model.lm_head.weight.copy_(torch.tensor(list(BIGRAMS.values())).log().T / (high - low))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def few_lines(corpus, tmp_path_factory):
    """A text of 24 documents, for what is extracted many times over."""
    path = tmp_path_factory.mktemp("few") / "few.txt"
    path.write_text("\n".join(corpus.read_text(encoding="utf-8").splitlines()[:24]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def few(few_lines, gpt2):
    """Three shards and a bit, held-out rows, and blocks of which two make a shard."""
    return ExtractConfig(
        encoder=str(gpt2),
        data=(str(few_lines),),
        seq_len=SEQ_LEN,
        validation_docs=8,
        shard_rows=16,
        batch_size=8,
        device="cpu",
    )


@pytest.fixture(scope="session")
def extract_config(corpus: Path, gpt2: Path) -> ExtractConfig:
    """The configuration of `store`: several shards, blocks that do not fill them, and held-out rows."""
    return ExtractConfig(
        encoder=str(gpt2),
        data=(str(corpus),),
        seq_len=SEQ_LEN,
        validation_docs=12,
        codec="fp32",
        shard_rows=80,
        batch_size=20,
        device="cpu",
    )


@pytest.fixture(scope="session")
def store(extract_config: ExtractConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed feature store; read only."""
    from ldlm.stages import extract_features

    return extract_features.run(extract_config, tmp_path_factory.mktemp("store") / "features").path


@pytest.fixture
def store_copy(store: Path, tmp_path: Path) -> Path:
    """A copy of `store` to break."""
    return Path(shutil.copytree(store, tmp_path / "features"))


@pytest.fixture(scope="session")
def train_config() -> TrainConfig:
    """The configuration of `trained`."""
    return configs.from_dict(TrainConfig, TINY_TRAIN)


@pytest.fixture(scope="session")
def trained(train_config: TrainConfig, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 uninterrupted steps on `store`, with its pictures; read only."""
    from ldlm.stages import train

    return train.run(replace(train_config, plots=True), store, tmp_path_factory.mktemp("run") / "run").path


# A rival's training on `store`, in the steps and reports of TINY_TRAIN.
TINY_TOKENS: dict[str, Any] = {
    **{name: TINY_TRAIN[name] for name in TINY_TRAIN if name not in ("model", "recipe", "timesteps")},
    "model": {"denoiser": TINY_MODEL["denoiser"]},
}


@pytest.fixture(scope="session")
def token_config() -> Callable[[str], Any]:
    """The configuration of `token_runs`, by method."""

    def config(method: str) -> Any:
        own = {"curriculum": {"kind": "discrete"}} if method == "duo" else {}
        return configs.from_dict(configs.training_class(method), {**TINY_TOKENS, **own})

    return config


@pytest.fixture(scope="session")
def token_runs(
    token_config: Callable[[str], Any], store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A run of 8 uninterrupted steps on `store`, by method, made when it is asked for; read only."""
    made: dict[str, Path] = {}

    def run(method: str) -> Path:
        from ldlm.stages import train

        if method not in made:
            out = tmp_path_factory.mktemp("rival") / f"run-{method}"
            made[method] = train.run(token_config(method), store, out).path
        return made[method]

    return run


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to add decoders to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def traced(
    trained: Path, succeed: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A folder that `ldlm sample --trace` wrote, and its trace.json."""
    out, drawn = tmp_path_factory.mktemp("trace") / "trace", ("--steps", 8, "--seed", 1, "--device", "cpu")
    succeed("sample", "--run", trained, *drawn, "--trace", out, "--trace-text", 2, "--trace-frames", 5)
    return out, json.loads((out / "trace.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def rival(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of 40 steps of a rival, by method, which has learned to tell texts apart, with its pictures; read only."""
    from ldlm.stages import train

    longer = {"steps": 40, "batch_size": 16, "eval_every": 20, "save_every": 20, "optimizer": {"lr": 2e-2}}
    longer["plots"] = True

    @cache
    def made(method: str) -> Path:
        config = configs.from_dict(configs.training_class(method), configs.merge(TINY_TOKENS, longer))
        return train.run(config, store, tmp_path_factory.mktemp(method) / f"run-{method}").path

    return made


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY_TRAIN as a file for --config (JSON is YAML)."""
    path = tmp_path_factory.mktemp("yaml") / "tiny.yaml"
    path.write_text(json.dumps(TINY_TRAIN))
    return path


@pytest.fixture(scope="session")
def start():
    """Start the command line as a process of its own, with one thread: `start(arguments, output)`; output may be None.

    What it says goes to the test's own stderr, which pytest shows when the test fails. Without a `launcher`, such as
    torchrun, it is forked from one that has imported what it needs.
    """

    def begin(
        arguments: list[str],
        out: object,
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        launcher: Sequence[str] = (),
        forks: forked.Forks | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes] | forked.Process:
        output = [] if out is None else ["--output", str(out)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        if not launcher:
            return forked.start([*arguments, *output], forks=forks, env=env, **options)
        # From the two dashes on torchrun reads no options: --run could be one of its own.
        command = [sys.executable, *launcher, "-m", "--", "ldlm.cli", *arguments, *output]
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, **options)

    return begin


@pytest.fixture(scope="session")
def ldlm():
    """Call the command line in this process: `ldlm("train", "--steps", 3)`, click's result with stdout and stderr."""
    from click.testing import CliRunner

    from ldlm.cli import main

    # Before click 8.2 the two streams were one unless told otherwise, and since then they can't be.
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}

    def call(*arguments: object):
        return CliRunner(**apart).invoke(main, [str(argument) for argument in arguments], prog_name="ldlm")

    return call


@pytest.fixture(scope="session")
def succeed(ldlm):
    """The same for a command that must succeed with --json: the parsed result."""

    def call(*arguments: object):
        result = ldlm(*arguments, "--json")
        assert result.exit_code == 0, result.stderr or result.exception
        return json.loads(result.stdout)

    return call


@pytest.fixture(scope="session")
def refuse(ldlm):
    """The same for a command that must refuse: checks the one line on stderr and returns it.

    Work that was done before the fault was found may have left its line of progress, such as "tokenize … in 0:00".
    """

    def call(*arguments: object) -> str:
        result = ldlm(*arguments)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == 1, (result.exit_code, result.stderr)
        (line,) = (line for line in result.stderr.splitlines() if not re.search(r"  in \d+:\d\d$", line))
        assert line.startswith("Error: "), line
        assert result.stdout == ""
        return line.removeprefix("Error: ")

    return call
