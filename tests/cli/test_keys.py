"""Every key that is written to a JSON file or printed with --json stands in docs/files.md, and every one there is."""

import json
import re
import shutil
from pathlib import Path

import pytest
from folders import lines

from ldlm.baselines.methods import CAPPED
from ldlm.stages import features as store_stage

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "files.md").read_text(encoding="utf-8")

# Documented keys that this pipeline does not write, and why.
ELSEWHERE = {
    "timing": {"flops_utilisation"},  # of a run that has lasted a while
    "status.json": {"reason"},  # of one that failed
    "state.json of a checkpoint": {"recent", "seconds"},  # of an encoder that has trained for a while
    "artifact.json": {"emptied"},  # of one that is being replaced
    "metrics.jsonl: eval": {"l_diff_prefix"},  # of a run that continues texts, as are these
    "lines of texts": {"prompt", "continuation", "prompt_tokens", "continuation_tokens"},
    "f.jsonl.meta.json": {"prompts.count", "prompts.sha256", "self_conditioned"},  # the last: of one without it
    "manifest.json: model": {"encoder_parameters"},  # as are these, which have their encoder with them
    "dry run: export": {"encoder_parameters"},
    "evaluate": {"mauve", "mauve_settings.*", "name"},  # with --mauve, and of a quickstart
    "manifest.json: quickstart": None,  # takes minutes: `None` stands for all of it
}


# ----------------------------------------------------------------------------------------------------------------------
# The page


def slug(heading):
    """The anchor that a heading has."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections():
    """By heading, in small letters: the rows of its table as {key: anchors of the tables that it links to}."""
    found = {}
    for heading, body in re.findall(r"^###? (.+?)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        if "| key | unit | meaning |" not in body:
            continue
        rows = {}
        for keys, _, meaning in re.findall(r"^\| (`[^|]*) \|([^|]*)\|(.*)\|$", body, re.MULTILINE):
            links = re.findall(r"\]\(#([\w-]+)\)", meaning)
            for key in re.findall(r"`([^`]+)`", keys):
                assert key not in rows, f"{heading}: {key} twice"
                rows[key] = links
        found[heading.lower()] = rows
    return found


SECTIONS = sections()
BY_ANCHOR = {slug(heading): heading for heading in SECTIONS}


def test_the_page_has_every_table_that_it_links_to_and_names_each_once():
    assert len(BY_ANCHOR) == len(SECTIONS) > 30
    for rows in SECTIONS.values():
        assert {link for links in rows.values() for link in links} <= set(BY_ANCHOR)


def test_the_page_names_every_attention_kernel():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `attention` |")]
    assert len(rows) == 4
    for row in rows:
        assert "as in `status.json`" in row or all(f"`{name}`" in row for name in ("xformers", "sdpa", CAPPED)), row


# ----------------------------------------------------------------------------------------------------------------------
# What is written


class Seen:
    """Compares what is written with the page, and remembers which of its keys that were."""

    def __init__(self):
        self.keys = {heading: set() for heading in SECTIONS}
        self.undocumented = []

    def look(self, value, *headings, prefix=""):
        """A JSON object or list of objects against the tables under these headings together."""
        if isinstance(value, list):
            for one in value:
                self.look(one, *headings, prefix=prefix)
            return
        for key, inside in value.items():
            self._look(f"{prefix}{key}", inside, headings)

    def _look(self, key, value, headings):
        nested = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        name = f"{key}[]" if nested is value else key
        objects = [one for one in nested if isinstance(one, dict)]
        for heading in headings:
            if (row := self._row(heading, name)) is not None:
                self.keys[heading].add(row)
                links = SECTIONS[heading][row]
                if links:
                    self.look(objects, *(BY_ANCHOR[link] for link in links))
                elif objects and f"{name}.*" in SECTIONS[heading]:
                    self.look(objects, heading, prefix=f"{name}.")
                elif objects and row not in ("config", "inputs.*"):  # whose keys are settings, and names of inputs
                    self.undocumented.append(f"{heading}: {name} has keys of its own")
                return
        if objects:
            self.look(objects, *headings, prefix=f"{name}.")
        else:
            self.undocumented.append(f"{headings[0]}: {name}")

    @staticmethod
    def _row(heading, name):
        """The key of the table that stands for this name: itself, or one with * in place of any key."""
        if name in SECTIONS[heading]:
            return name
        for row in SECTIONS[heading]:
            if "*" in row and re.fullmatch(re.escape(row).replace(r"\*", "[^\0]+?"), name):
                return row
        return None


def manifest(kind):
    """The tables of a manifest of that kind."""
    return ("manifest.json: every kind", f"manifest.json: {kind}")


@pytest.fixture(scope="module")
def seen(succeed, corpus, gpt2, store, trained, rival, token_runs, tmp_path_factory):
    """All commands but quickstart, one after the other, their results and files looked at."""
    root = tmp_path_factory.mktemp("keys")
    run, cpu, found = root / "run", ("--device", "cpu"), Seen()
    shutil.copytree(trained, run)
    shutil.copytree(rival("mdlm"), root / "rival")
    text = ("--data", corpus, *cpu)
    small = ("--layers", 2, "--width", 16, "--heads", 2, "--positions", 16, "--vocab-size", 320, "--batch-size", 4)

    pretrain = ("pretrain-encoder", *text, *small, "--steps", 2, "--output", root / "encoder")
    found.look(succeed(*pretrain, "--dry-run"), "dry run: pretrain-encoder")
    found.look(succeed(*pretrain), *manifest("encoder"))
    extract = ("extract-features", "--encoder", gpt2, *text, "--seq-len", 16, "--validation-docs", 9)
    found.look(succeed(*extract, "--dry-run"), "dry run: extract-features")
    found.look(succeed(*extract, "--output", root / "features"), *manifest("features"))
    alone = tmp_path_factory.mktemp("packed") / "features"
    packed = succeed(*extract, "--precision", "fp32", "--only", "pack", "--output", alone)
    found.look(packed, "extract-features --only pack or encode")
    found.look(succeed("features", "info", root / "features"), "features info")
    found.look(store_stage.bench(root / "features", seconds=0.01), "features bench")
    assert set(succeed("features", "repair", root / "features")) == {"repaired"}
    assert succeed("features", "texts", store, "--rows", 8, "--output", root / "real.jsonl").keys() == {"output"}

    cost = ("train", "--features", store, "--config", run / "config.yaml", "--dry-run")
    found.look(succeed(*cost, "--fit", "40GB"), "dry run: train")
    found.look(succeed(*cost, "--set", "model.space=cosmos"), "dry run: train")
    train = ("train", "--features", store, "--config", run / "config.yaml", "--output", run)
    found.look(succeed(*train), *manifest("run"))  # which is complete
    tune = ("finetune-decoder", "--run", run, "--layers", 1, "--steps", 2, *cpu)
    found.look(succeed(*tune, "--dry-run"), "dry run: finetune-decoder")
    found.look(succeed(*tune, "--features", store), *manifest("decoder"))
    found.look(succeed("finetune-decoder", "--run", run, "--list"), "finetune-decoder --list")
    few = ("distill", "--run", run, "--evaluations", 2, "--start", 4, "--steps", 2, "--set", "log_every=1", *cpu)
    found.look(succeed(*few, "--dry-run"), "dry run: distill")
    found.look(succeed(*few, "--features", store, "--output", root / "distilled"), *manifest("run"))

    draw = ("sample", "--run", run, "--decoder", "layers-1", "--num-samples", 4, "--steps", 2, *cpu)
    found.look(succeed(*draw, "--dry-run"), "dry run: sample")
    found.look(succeed(*draw, "--output", run / "samples.jsonl"), "f.jsonl.meta.json")
    found.look(succeed(*draw), "f.jsonl.meta.json")
    succeed(*draw, "--seed", 1, "--output", root / "more.jsonl")
    found.look(succeed(*draw, "--trace", run / "trace"), *manifest("trace"))
    score = ("--scorer", gpt2, *cpu)
    sweep = ("sweep", *score, "--budgets", 2, "--screen-texts", 2, "--texts", 3, "--solvers", "ddim")
    sweep += ("--grids", "learned", "--guidances", 1, "--temperatures", 0)
    found.look(succeed(*sweep, "--dry-run"), "dry run: sweep")
    real = ("--reference", root / "real.jsonl", "--external", f"a={run / 'samples.jsonl'},4,0.5")
    found.look(succeed(*sweep, "--run", run, *real), *manifest("sweep"))
    both = (*sweep, "--run", run, root / "rival", "--token-samplers", "ancestral", "--top-ps", 1)
    found.look(succeed(*both, "--dry-run"), "dry run: sweep")
    found.look(succeed(*both, *real, "--output", root / "frontier"), *manifest("frontier"))
    way = ("interpolate", "--features", store, "--pairs", 2, "--points", 3, *score)
    found.look(succeed(*way, "--dry-run"), "dry run: interpolate")
    found.look(succeed(*way, "--run", run), *manifest("interpolation"))
    shutil.copytree(trained, root / "other")
    two = (*way, "--run", run, root / "other", "--output", root / "comparison")
    found.look(succeed(*two), *manifest("comparison"))
    likely = ("likelihood", "--features", store, "--split", "train", "--rows", 8, "--taus", 2, 1, *cpu)
    likely += ("--run", run, root / "rival")
    found.look(succeed(*likely, "--dry-run"), "dry run: likelihood")
    shutil.copytree(token_runs("flm"), root / "rival-flm")
    for one in succeed(*likely, root / "rival-flm", "--causal", gpt2)["runs"]:
        found.look(one, *manifest("likelihood"))
    ends = ("--from", "The old captain.", "--to", "A letter.", "--points", 3, *cpu)
    found.look(succeed("interpolate", "--run", run, *ends), "interpolate --from --to")

    evaluate = ("evaluate", run / "samples.jsonl", *score, "--max-tokens", 16)
    found.look(succeed(*evaluate, "--dry-run"), "dry run: evaluate")
    beside = ("--reference", root / "real.jsonl", "--training", store)
    found.look(succeed(*evaluate, root / "more.jsonl", "--seeds", *beside), "evaluate")
    written = ("stories", "--documents", 40)
    found.look(succeed(*written, "--dry-run"), "dry run: stories")
    found.look(succeed(*written, "--output", root / "stories.txt"), "stories", "stories.txt.meta.json")
    (root / "wrong.txt").write_text("Anna had a red kite. He lost it by the lake. It was still by the lake.\n" * 40)
    both = (root / "stories.txt", root / "wrong.txt")
    found.look(succeed("evaluate", "--source", "stories", *both, "--seeds"), "evaluate --source")
    export = ("export", "--run", run, "--output", root / "model")
    found.look(succeed(*export, "--dry-run"), "dry run: export")
    found.look(succeed(*export), *manifest("model"))
    tokens = ("--run", rival("mdlm"), "--sampler", "remdm")
    found.look(succeed("export", *tokens, "--dry-run"), "dry run: export")
    found.look(succeed("export", *tokens, "--output", root / "tokens"), *manifest("model"))
    draw = ("sample", *tokens, "--num-samples", 2, "--steps", 2, *cpu)
    found.look(succeed(*draw, "--dry-run"), "dry run: sample")
    found.look(succeed(*draw, "--output", root / "tokens.jsonl"), "f.jsonl.meta.json")
    assert succeed("report", run).keys() == {"output"}
    assert succeed("plot", run).keys() == {"drawn"}
    found.look(succeed("quickstart", "--output", root / "quickstart", "--dry-run"), "dry run: quickstart")
    found.look(succeed("paper", "list"), "paper list")
    found.look(succeed("paper", "table-7", "--dry-run"), "dry run: paper")
    found.look(succeed("paper", "table-7", "--scale", "paper"), "paper --scale paper")
    found.look(succeed("paper", "figure-5", "--output", root / "paper"), "paper")
    files(found, root)
    (shard,) = (root / "features" / "features.zarr" / "tokens" / "c").glob("0/0")
    shard.write_bytes(shard.read_bytes()[:-1])
    found.look(store_stage.verify(root / "features"), "features verify")
    return found


def files(found, root):
    """Every JSON file of the folder that is documented by key."""
    by_name = {name: name for name in ("status.json", "features.json", "artifact.json")}
    by_name["state.json"] = "state.json of a checkpoint"
    for path in sorted(root.rglob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "manifest.json":
            kinds = manifest(value["kind"]) if "kind" in value else ("manifest.json of a checkpoint",)
            found.look(value, *kinds)
        elif path.name in by_name:
            found.look(value, by_name[path.name])
        elif path.name == "interpolation.json":
            found.look(value, "manifest.json: interpolation")
        elif path.name == "figure-5-tiny.json":
            found.look(value, "paper")
        elif path.name in ("sweep.json", "frontier.json", "trace.json"):
            found.look(value, f"manifest.json: {path.stem}")
        elif path.name == "stories.txt.meta.json":
            found.look(value, "stories.txt.meta.json")
        elif path.name.endswith(".meta.json"):
            found.look(value, "f.jsonl.meta.json")
        else:
            known = {"config.json", "generation_config.json", "store.json", "tokenizer.json", "tokenizer_config.json"}
            assert path.name in known | {"zarr.json"} or path.parent.name in ("ledger", "trajectories"), path
    for path in sorted(root.rglob("*.jsonl")):
        if path.name == "metrics.jsonl":
            of = " of a decoder" if "decoders" in path.parts else ""
            of = " of a token-level run" if path.parent.name.startswith("rival") else of
            of = " of a distilled run" if path.parent.name == "distilled" else of
            for line in lines(path):
                found.look(line, f"metrics.jsonl{of}: {line['kind']}")
        else:
            found.look(lines(path), "lines of texts")


def test_every_key_that_is_written_is_documented(seen):
    assert seen.undocumented == []


def test_every_key_that_is_documented_is_written(seen):
    unwritten = {}
    for heading, rows in SECTIONS.items():
        elsewhere = ELSEWHERE.get(heading, set())
        if elsewhere is not None and (missing := set(rows) - seen.keys[heading] - elsewhere):
            unwritten[heading] = sorted(missing)
    assert unwritten == {}


def test_an_undocumented_key_is_found():
    found = Seen()
    found.look({"state": "running", "speed": 3, "more": {"a": [{"b": 1}]}}, "status.json")
    assert found.undocumented == ["status.json: speed", "status.json: more.a[].b"]
    assert found.keys["status.json"] == {"state"}
