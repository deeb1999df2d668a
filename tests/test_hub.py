"""Models, tokenizers and datasets by their names on a hub: fetched, and later from the cache, as from a folder."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from hub_server import HubServer
from sessions import line, process, result, session

from ldlm import LDLM, files
from ldlm import config as configs
from ldlm.config import TrainConfig
from ldlm.features.store import FeatureStore
from ldlm.stages import train

SEQ_LEN = 16


def hf(arguments, **environment):
    """Run the hub's own client."""
    client = [sys.executable, "-m", "huggingface_hub.cli.hf"]
    subprocess.run([*client, *arguments], env={**os.environ, **environment}, check=True, capture_output=True)


# ----------------------------------------------------------------------------------------------------------------------
# A hub with everything on it


@pytest.fixture(scope="module")
def jsonl(corpus):
    """The corpus as a JSON object per line, and some held-out documents."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    made = ["".join(json.dumps({"text": text}) + "\n" for text in part).encode() for part in (lines[:80], lines[80:])]
    return {"train": made[0], "test": made[1]}


@pytest.fixture(scope="module")
def parquet(jsonl):
    """The same as parquet."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    found = {}
    for split, data in jsonl.items():
        rows = pa.Table.from_pylist([json.loads(line) for line in data.splitlines()])
        sink = io.BytesIO()
        pq.write_table(rows, sink, row_group_size=16)
        found[split] = sink.getvalue()
    return found


CARD = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train.jsonl}
  - {split: test, path: en/test.jsonl}
- config_name: other
  data_files: other/*.jsonl
---
# A corpus
"""


def sharded(folder, out):
    """A copy of a model whose weights are in several files, as the hub's large ones are."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out, max_shard_size="8KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, out)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    return out


@pytest.fixture(scope="module")
def hub(gpt2, other_gpt2, bert, jsonl, parquet, tmp_path_factory):
    """The server, and in `hub.commit` the commit of each name's main branch."""
    words = {name: (bert / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    pickled = {**words, "config.json": b'{"model_type": "gpt2"}', "pytorch_model.bin": b"."}
    english = {"README.md": CARD, "en/train.jsonl": jsonl["train"], "en/test.jsonl": jsonl["test"]}
    with HubServer() as server:
        server.commit = {
            "me/encoder": server.add("me/encoder", gpt2),
            "me/scorer": server.add("me/scorer", other_gpt2),
            "me/sharded": server.add("me/sharded", sharded(other_gpt2, tmp_path_factory.mktemp("sharded") / "model")),
            "me/words": server.add("me/words", words),
            "me/pickled": server.add("me/pickled", pickled),
            "me/corpus": server.add(
                "me/corpus", {f"data/{split}-00000-of-00001.parquet": data for split, data in parquet.items()},
                kind="datasets",
            ),
        }  # fmt: skip
        server.renamed = {"scorer": "me/scorer"}  # as gpt2 and other names without an owner are
        server.old = server.add("me/lines", english, kind="datasets", ref="v1")
        half = jsonl["train"][: jsonl["train"].index(b"\n", len(jsonl["train"]) // 2) + 1]
        changed = {**english, "en/train.jsonl": half, "other/x.jsonl": half}
        server.commit["me/lines"] = server.add("me/lines", changed, kind="datasets")
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """HF_HOME, where everything is downloaded to."""
    return tmp_path_factory.mktemp("home") / ".cache" / "huggingface"


TRAIN = ("--steps", 2, "--batch-size", 4, "--device", "cpu")


def commands(root, encoder, scorer, sharded, words, corpus, texts, store, trained, tiny):
    """Each command that takes a name, with results below `root`."""
    extract = ("extract-features", "--seq-len", SEQ_LEN, "--batch-size", 8, "--shard-rows", 32, "--device", "cpu")
    score = ("--scorer", scorer, "--device", "cpu")
    few = ("--budgets", 2, "--solvers", "heun", "--grids", "time", "--guidances", 1, "--screen-texts", 2, "--texts", 3)
    found = {
        "extract": (*extract, "--encoder", encoder, *corpus, "--codec", "online", "--output", root / "online"),
        "train": ("train", "--config", tiny, *TRAIN, "--features", root / "online", "--output", root / "run"),
        "interpolate two": (
            "interpolate", "--run", root / "run", "--from", "The old captain.", "--to", "Nobody lost rain.",
            "--device", "cpu",
        ),
        "export": ("export", "--run", root / "run", "--output", root / "model"),
        "pretrain": (
            "pretrain-encoder", "--arch", "bert", "--tokenizer", words, "--data", texts, "--layers", 1, "--width", 8,
            "--heads", 1, "--positions", 16, "--steps", 1, "--batch-size", 4, "--device", "cpu",
            "--output", root / "bert",
        ),
        "evaluate": ("evaluate", texts, "--max-tokens", 16, *score),
        "evaluate with shards": ("evaluate", texts, "--max-tokens", 16, *score[2:], "--scorer", sharded),
        "sweep": ("sweep", "--run", trained, *few, *score, "--output", root / "sweep"),
        "interpolate": (
            "interpolate", "--run", trained, "--features", store, "--pairs", 2, "--points", 3, *score,
            "--output", root / "paths",
        ),
    }  # fmt: skip
    return {name: (*arguments, "--json") for name, arguments in found.items()}


@pytest.fixture(scope="module")
def texts(unseen, tmp_path_factory):
    """A file to score and to train a tokenizer's model on."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(unseen[:20]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def of_the_hub(texts, store, trained, tiny_yaml):
    """The commands, by their names on the hub."""
    corpus = ("--dataset", "me/corpus", "--validation-split", "test")
    return lambda root: commands(
        root, "me/encoder", "scorer", "me/sharded", "me/words", corpus, texts, store, trained, tiny_yaml
    )  # fmt: skip


@pytest.fixture(scope="module")
def local(gpt2, other_gpt2, bert, texts, jsonl, store, trained, tiny_yaml, succeed, tmp_path_factory):
    """The results with the same models and text from folders, which is what a hub must give."""
    root = tmp_path_factory.mktemp("local")
    for split, data in jsonl.items():
        (root / f"{split}.jsonl").write_bytes(data)
    corpus = ("--data", root / "train.jsonl", "--validation-data", root / "test.jsonl")
    asked = commands(root, gpt2, other_gpt2, other_gpt2, bert, corpus, texts, store, trained, tiny_yaml)
    return root, {name: succeed(*arguments[:-1]) for name, arguments in asked.items()}


NAMES = {
    "nobody/nothing": "the hub has nothing of this name, or it is private",
    "me/corpus": "the hub has nothing of this name",  # a dataset
    "me/pickled": "can't be fetched from the Hugging Face hub",
}


@pytest.fixture(scope="module")
def first(hub, home, of_the_hub, texts, tmp_path_factory):
    """The folder and what is said to every command, and to wrong names, with a hub that is there."""
    root = tmp_path_factory.mktemp("online")
    wrong = [("evaluate", texts, "--scorer", name, "--json") for name in NAMES]
    found = session(
        [*of_the_hub(root).values(), *wrong], HF_HOME=str(home), XDG_CACHE_HOME=str(root), **hub.environment
    )
    return root, found


@pytest.fixture(scope="module")
def online(first, of_the_hub):
    """The folder and the results of every command."""
    root, found = first
    return root, {name: result(one) for name, one in zip(of_the_hub(root), found, strict=False)}


@pytest.fixture(scope="module")
def wrong(first):
    """What is said to the wrong names."""
    return first[1][-len(NAMES) :]


# How a process finds no hub: because it is told so, or because nobody answers.
WITHOUT = {"told": {"HF_HUB_OFFLINE": "1"}, "unreachable": {"HF_ENDPOINT": "http://127.0.0.1:9"}}


@pytest.fixture(scope="module")
def refused(online, hub, home, of_the_hub, texts, tmp_path_factory):
    """What is said without a hub to a command whose dataset was streamed, and to one whose model is a new one."""
    extract = of_the_hub(tmp_path_factory.mktemp("refused"))["extract"]
    environment = {**hub.environment, "HF_HOME": str(home), **WITHOUT["told"]}
    found = session([extract, ("evaluate", texts, "--scorer", "me/unasked", "--json")], **environment)
    return [line(one) for one in found]


@pytest.fixture(scope="module")
def offline(refused, hub, home, of_the_hub, tmp_path_factory):
    """The same results without a hub, once the advice to download the dataset was followed."""
    (advice,) = re.findall(r"`hf (.*?)`", refused[0])
    hf(advice.split(), HF_HOME=str(home), **hub.environment)
    root = tmp_path_factory.mktemp("offline")
    asked, before = of_the_hub(root), len(hub.asked)
    environment = {**hub.environment, "HF_HOME": str(home), "XDG_CACHE_HOME": str(root), **WITHOUT["unreachable"]}
    found = session(asked.values(), **environment)
    assert len(hub.asked) == before
    assert sum("can't be reached; looking for models and datasets in its cache" in one.err for one in found) == 1
    return root, {name: result(one) for name, one in zip(asked, found, strict=True)}


# ----------------------------------------------------------------------------------------------------------------------
# What a name gives is what a folder gives


def weights(run):
    """Of the newest checkpoint, as bytes."""
    return max(run.glob("checkpoints/*/model.safetensors")).read_bytes()


IN_NAME_ONLY = {"scorer", "scorer_revision", "file", "seconds", "output", "run", "features", "inputs", "versions"}


def figures(value):
    """A result without what names places and times."""
    if isinstance(value, list):
        return [figures(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: figures(one) for key, one in value.items() if key not in {*IN_NAME_ONLY, "config", "git"}}


def check(found, expected, hub):
    """The results of one session are those from folders, and tell the commits."""
    (root, named), (folder, plain) = found, expected
    mine, theirs = (FeatureStore(place / "online").encoder for place in (root, folder))
    assert mine == {**theirs, "name": "me/encoder", "revision": hub.commit["me/encoder"]}
    assert theirs["revision"] is None
    config = files.read_yaml(root / "online" / "config.yaml")
    assert (config["dataset"], config["revision"]) == ("me/corpus", hub.commit["me/corpus"])
    assert named["extract"]["rows"] == plain["extract"]["rows"]
    assert weights(root / "run") == weights(folder / "run")
    card = (root / "model" / "README.md").read_text()
    assert f"| me/encoder at commit `{hub.commit['me/encoder']}`, kind hidden, layer -3 |" in card
    assert "| encoder, kind hidden, layer -3 |" in (folder / "model" / "README.md").read_text()
    assert named["interpolate two"]["points"] == plain["interpolate two"]["points"]
    assert named["pretrain"]["final_loss"] == plain["pretrain"]["final_loss"]
    for name, repo in (("evaluate", "me/scorer"), ("evaluate with shards", "me/sharded")):
        assert named[name]["scorer_revision"] == f"commit:{hub.commit[repo]}"
    for name in ("evaluate", "evaluate with shards", "sweep", "interpolate"):
        assert figures(named[name]) == figures(plain[name]), name


def test_every_command_gives_by_name_what_it_gives_from_folders(online, local, hub):
    check(online, local, hub)


def test_later_everything_comes_from_what_was_downloaded(offline, local, hub):
    check(offline, local, hub)


def test_what_was_never_downloaded_is_refused_where_there_is_no_hub(refused):
    streamed, never = refused
    assert "the dataset 'me/corpus' can't be read" in streamed
    assert "'me/unasked'" in never
    assert "the hub can't be reached, and it has not been downloaded before" in never


def test_a_dataset_is_streamed_in_parts_and_weights_are_fetched_once(online, offline, hub):
    assert hub.ranges  # of parquet
    for commit in {hub.commit["me/scorer"], hub.commit["me/encoder"]}:
        assert sum(path.endswith("model.safetensors") and f"/{commit}/" in path for path in hub.asked) <= 2  # HEAD, GET


# ----------------------------------------------------------------------------------------------------------------------
# Revisions of a dataset

DOCUMENTS = """
import json, sys
from ldlm.features import text
from ldlm.errors import InputError

def read(split, configuration, revision, name):
    try:
        commit, hashes, _ = text.dataset_source(name, configuration, revision)
        return [commit, hashes, list(text.dataset_documents(name, split, "text", configuration, commit))]
    except InputError as error:
        return str(error)

print(json.dumps([read(*asked) for asked in json.loads(sys.argv[1])]))
"""


def documents(asked, **environment):
    return json.loads(process(DOCUMENTS, json.dumps(asked), **environment).splitlines()[-1])


def lines_of(data):
    return [json.loads(line)["text"] for line in data.splitlines()]


WRONG = {
    ("train", None, None, "me/nothing"): r"Dataset 'me/nothing' doesn't exist on the Hub",
    ("train", "en", "v9", "me/lines"): r"Revision 'v9' doesn't exist",
    ("train", "fr", None, "me/lines"): r"BuilderConfig 'fr' not found. Available: \['en', 'other'\]",
    ("dev", "en", None, "me/lines"): r"Bad split: dev. Available splits: \[.*train.*test.*\]",
    ("train", None, None, "me/script"): r"'me/script' comes as a Python program, and ldlm never runs code",
    ("train", None, None, "me/torn"): r"'me/torn' \(split 'train'\) can't be read: ",
}

REVISIONS = (None, "main", "v1", "OLD", "NEW")


@pytest.fixture(scope="module")
def read(hub, jsonl, tmp_path_factory):
    """What was asked for by revision, what was found with a hub and without, and what was said to wrong names."""
    hub.add("me/script", {"script.py": b"import datasets", "train.jsonl": jsonl["train"]}, kind="datasets")
    hub.add("me/torn", {"train.jsonl": jsonl["train"] + b'{"text": "One'}, kind="datasets")
    commits = {"OLD": hub.old, "NEW": hub.commit["me/lines"]}
    asked = [("train", "en", commits.get(revision, revision), "me/lines") for revision in REVISIONS]
    asked += [("test", "en", "v1", "me/lines"), ("train", "other", None, "me/lines")]
    home = {**hub.environment, "HF_HOME": str(tmp_path_factory.mktemp("datasets"))}
    found = documents([*asked, *WRONG], **home)
    hf(["download", "me/lines", "--repo-type", "dataset", "--revision", "v1"], **home)
    later = documents(asked, **{**home, **WITHOUT["told"]})
    return {"asked": asked, "online": found[: len(asked)], "wrong": found[len(asked) :], "offline": later}


def test_a_dataset_is_read_by_branch_tag_and_commit(read, hub, jsonl):
    old, new = hub.old, hub.commit["me/lines"]
    everything, half = lines_of(jsonl["train"]), lines_of(hub.files("me/lines", "datasets")["en/train.jsonl"])
    assert len(half) < len(everything)
    assert read["online"] == [
        *([new, {"me/lines": new}, half],) * 2,
        *([old, {"me/lines": old}, everything],) * 2,
        [new, {"me/lines": new}, half],
        [old, {"me/lines": old}, lines_of(jsonl["test"])],
        [new, {"me/lines": new}, half],
    ]


def test_without_a_hub_a_dataset_is_read_at_the_revision_that_was_downloaded_and_no_other(read, hub):
    for (_, _, revision, _), before, one in zip(read["asked"], read["online"], read["offline"], strict=True):
        if revision in ("v1", hub.old):
            assert one == before
        else:
            assert "`hf download me/lines --repo-type dataset` fetches it" in one


def test_a_dataset_that_cannot_be_read_is_refused_in_one_line(read):
    for one, expected in zip(read["wrong"], WRONG.values(), strict=True):
        assert isinstance(one, str)
        assert re.search(expected, one), one
        assert "\n" not in one


def test_a_name_that_is_no_usable_model_is_refused_in_one_line_and_no_pickle_is_fetched(online, wrong, hub):
    for one, expected in zip(wrong, NAMES.values(), strict=True):
        assert expected in line(one)
    assert not [path for path in hub.asked if path.endswith(".bin") or "convert" in path or "discussions" in path]


# ----------------------------------------------------------------------------------------------------------------------
# An exported model

EXPORTED = """
import json, os, sys
from ldlm import LDLM

def draw(name, **options):
    try:
        return LDLM.from_pretrained(name, **options).sample(3, steps=2)
    except ValueError as error:
        return str(error)

print(json.dumps([draw(name, **options) for name, options in json.loads(sys.argv[1])]))
"""


def drawn(asked, **environment):
    return json.loads(process(EXPORTED, json.dumps(asked), **environment).splitlines()[-1])


def test_an_exported_model_goes_to_the_hub_and_comes_back_by_revision_and_from_the_cache(hub, trained, tmp_path):
    out, environment = tmp_path / "model", {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    before = len(hub.asked)
    command = ("export", "--run", trained, "--output", out, "--json")
    kept, pushed = session([command, (*command, "--push-to-hub", "me/model")], **environment)
    assert result(kept)["decoders"] == result(pushed)["decoders"]
    earlier = hub.asked[before : hub.asked.index("/api/repos/create")]
    assert not [path for path in earlier if "model" in path]  # nothing leaves the machine before it is told to
    assert f"uploaded to {hub.address}/me/model" in pushed.err
    first = hub.refs["models", "me/model"]["main"]
    of_the_stage = {"artifact.json", "config.yaml", "manifest.json"}
    assert hub.files("me/model") == {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in of_the_stage
    }
    hub.add("me/model", {**hub.files("me/model"), "model.safetensors": b"torn"})
    texts = LDLM.from_pretrained(out).sample(3, steps=2)
    asked = [("me/model", {"revision": first}), ("me/model", {}), ("me/scorer", {}), ("me/model", {"revision": "v9"})]
    by_name, torn, other, absent = drawn(asked, **environment)
    assert by_name == texts
    assert "is damaged" in torn
    assert "holds a model of type gpt2" in other
    assert "can't be fetched from the Hugging Face hub" in absent
    assert not [path for path in hub.asked[before:] if "/scorer/" in path and path.endswith(".safetensors")]
    later = drawn([("me/model", {"revision": first}), ("me/other", {})], **{**environment, **WITHOUT["unreachable"]})
    assert later[0] == texts
    assert "has not been downloaded before" in later[1]


def test_a_token_level_model_comes_back_from_the_hub_as_well(hub, rival, tmp_path):
    from ldlm import TokenDiffusion

    environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    export = ("export", "--run", rival("mdlm"), "--output", tmp_path / "model", "--push-to-hub", "me/tokens", "--json")
    (pushed,) = session([export], **environment)
    assert result(pushed)["method"] == "mdlm"
    of_tokens = EXPORTED.replace("LDLM", "TokenDiffusion")
    (texts,) = json.loads(process(of_tokens, json.dumps([("me/tokens", {})]), **environment).splitlines()[-1])
    assert texts == TokenDiffusion.from_pretrained(tmp_path / "model").sample(3, steps=2)


def test_an_encoder_that_was_taken_along_comes_back_from_the_hub_too(hub, train_config, store, tmp_path):
    settings = configs.merge(configs.to_dict(train_config), {"steps": 2, "model": {"condition": "prefix"}})
    run = train.run(configs.from_dict(TrainConfig, settings), store, tmp_path / "run").path
    environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    command = ("export", "--run", run, "--output", tmp_path / "model", "--with-encoder", "--json")
    (pushed,) = session([(*command, "--push-to-hub", "me/prefix")], **environment)
    assert result(pushed)["encoder_parameters"] > 0
    for name in ("config.json", "model.safetensors"):
        assert hub.files("me/prefix")[f"encoder/{name}"] == (tmp_path / "model" / "encoder" / name).read_bytes()
    prompted = EXPORTED.replace("sample(3, steps=2)", 'sample(3, steps=2, prompt="Rain lost")')
    (texts,) = json.loads(process(prompted, json.dumps([("me/prefix", {})]), **environment).splitlines()[-1])
    assert texts == LDLM.from_pretrained(tmp_path / "model").sample(3, steps=2, prompt="Rain lost")
