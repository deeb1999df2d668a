"""Launching an extraction: the stretch that a process begins with, phases as jobs of their own, and what is refused."""

import json
import random
import shutil
from dataclasses import replace

import pytest
from folders import content

from ldlm.config import LaunchConfig
from ldlm.errors import InputError
from ldlm.features import pieces
from ldlm.features.corpus import Count
from ldlm.features.packing import Packing
from ldlm.features.spool import Spool
from ldlm.features.writer import StoreWriter
from ldlm.stages import extract_features


@pytest.fixture(scope="module")
def config(few):
    """`few`, with its precision said, as a job that only packs must have it."""
    return replace(few, precision="fp32")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The extraction by one process, in one go."""
    return extract_features.run(config, tmp_path_factory.mktemp("whole") / "features").path


@pytest.fixture
def many_pieces(monkeypatch):
    """A text is divided into pieces of half a kilobyte, and this process tokenises them alone."""
    real = pieces.plan
    monkeypatch.setattr(pieces, "plan", lambda config, size: real(config, 512))
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")


@pytest.fixture
def written(monkeypatch):
    """Pieces, blocks and shards in the order in which this process makes them."""
    found = {"pieces": [], "blocks": [], "shards": []}

    def noted(cls, name, what, item):
        real = getattr(cls, name)

        def note(self, *arguments):
            found[what].append(item(*arguments))
            return real(self, *arguments)

        monkeypatch.setattr(cls, name, note)

    noted(Packing, "_tokenized", "pieces", lambda number, *rest: number)
    noted(Spool, "write", "blocks", lambda block, states: block)
    noted(StoreWriter, "write", "shards", lambda split, shard, *rest: (split, shard))
    return found


def launched(config, out, **launch):
    """One process, launched in a way."""
    return extract_features.run(config, out, launch=LaunchConfig(**launch))


def test_each_phase_begins_with_the_stretch_of_the_share(config, whole, many_pieces, written, tmp_path):
    out = tmp_path / "f"
    for only in ("pack", "encode", "seal"):
        launched(config, out, only=only, share="1/2")
    for items in written.values():
        everything, half = sorted(items), len(items) // 2
        assert half > 1
        assert items == [*everything[half:], *everything[:half][::-1]]
    assert content(out) == content(whole)


def test_the_share_of_the_environment_counts_and_that_of_the_option_counts_more(config, written, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    orders = {}
    for share in (None, "0/2"):
        launched(config, tmp_path / f"{share is None}", share=share)
        orders[share] = written["shards"].copy()
        written["shards"].clear()
    everything = sorted(orders[None])
    assert orders == {None: [*everything[3:], *everything[2::-1]], "0/2": [*everything[:3], *everything[:2:-1]]}


def test_the_phases_are_jobs_of_their_own_which_resume_and_change_no_byte(config, whole, many_pieces, tmp_path):
    out = tmp_path / "f"
    for only in ("pack", "pack", "encode", "encode", "seal", "seal", "encode", "pack", None):
        made = launched(config, out, only=only)
        assert made.complete == (out / "manifest.json").is_file()
        if only == "pack" and not made.complete:
            assert list((out / "packed").rglob("rows.json"))
            assert not (out / "store.json").exists()
        if only == "encode" and not made.complete:
            assert len(list((out / "ledger").iterdir())) == len(list((whole / "ledger").iterdir()))
    assert made.complete
    assert content(out) == content(whole)


def test_a_phase_before_its_time_is_refused_in_one_line_and_leaves_what_was_there(config, tmp_path):
    out = tmp_path / "f"
    with pytest.raises(
        InputError, match=r"^the text of .*/f is not packed; run the same command with --only pack first$"
    ):
        launched(config, out, only="encode")
    with pytest.raises(
        InputError, match=r"^the text of .*/f is not packed; run the same command with --only pack first$"
    ):
        launched(config, out, only="seal")
    assert not out.exists()
    launched(config, out, only="pack")
    before = content(out)
    with pytest.raises(
        InputError, match=r"^all shards of .* are missing; run the same command with --only encode first$"
    ):
        launched(config, out, only="seal")
    assert content(out) == before


def test_the_seal_says_how_many_shards_are_missing_and_removes_none(config, whole, tmp_path):
    out = tmp_path / "f"
    launched(config, out, only="pack")
    launched(config, out, only="encode")
    count = len(list((out / "ledger").iterdir()))
    (out / "ledger" / "train-00001.json").unlink()
    (shard,) = (out / "features.zarr" / "tokens" / "c").glob("0/0")
    kept = shard.read_bytes()
    shard.write_bytes(kept[:-1])
    before = content(out)
    message = rf"^2 of {count} shards of .*/f are missing; run the same command with --only encode first$"
    with pytest.raises(InputError, match=message):
        launched(config, out, only="seal")
    assert content(out) == before
    launched(config, out, only="encode")
    launched(config, out, only="seal")
    assert content(out) == content(whole)


def test_bad_text_leaves_nothing_of_a_job_that_only_packs(config, tmp_path):
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    with pytest.raises(InputError, match=r"blank\.txt"):
        launched(replace(config, data=(str(blank),), validation_docs=0), tmp_path / "f", only="pack")
    assert not (tmp_path / "f").exists()


def test_packing_alone_without_a_gpu_does_not_settle_the_precision_unasked(few, config, tmp_path):
    message = r"^--only pack begins the store, and --precision auto would be fp32 here, .* give --precision bf16 "
    with pytest.raises(InputError, match=message):
        launched(few, tmp_path / "f", only="pack")
    assert not (tmp_path / "f").exists()
    launched(config, tmp_path / "f", only="pack")
    launched(few, tmp_path / "f", only="pack")  # it is settled now
    assert launched(few, tmp_path / "f").config["precision"] == "fp32"


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"tokens": 9}, "--tokens and --rate are for planning; add --dry-run"),
        ({"rate": 9.0}, "--tokens and --rate are for planning; add --dry-run"),
        ({"address": "auto"}, "--address is that of a Ray cluster; add --engine ray"),
        ({"workers": 2}, "--workers needs --engine ray or --dry-run; without an engine, start that many processes"),
        ({"engine": "ray", "share": "0/2"}, "--share is for processes that are started one by one"),
        ({"share": "2/2"}, "--share 2/2: shares are numbered from 0, and the last of 2 is 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, tmp_path, launch, message):
    with pytest.raises(InputError) as refused:
        launched(config, tmp_path / "f", **launch)
    assert message in str(refused.value)
    assert not (tmp_path / "f").exists()


def test_several_processes_do_not_overwrite(config, tmp_path, monkeypatch):
    for launch, environment in ((LaunchConfig(share="0/2"), {}), (LaunchConfig(), {"SLURM_PROCID": "1"})):
        for name, value in {"SLURM_NTASKS": "2", **environment}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=r"--overwrite is for one process, and .+ names several; remove"):
            extract_features.run(config, tmp_path / "f", overwrite=True, launch=launch)


@pytest.mark.parametrize("only", ["encode", "seal"])
def test_a_phase_that_begins_no_store_does_not_overwrite_one(config, whole, tmp_path, only):
    out = tmp_path / "f"
    shutil.copytree(whole, out)
    before = content(out)
    with pytest.raises(InputError) as refused:
        extract_features.run(config, out, overwrite=True, launch=LaunchConfig(only=only))
    line = f"--overwrite would delete {out}, which --only {only} goes on with; leave --overwrite out, or begin a new"
    assert str(refused.value) == f"{line} store with --only pack --overwrite"
    assert content(out) == before


def test_the_command_line_takes_a_launch_and_says_what_is_done(ldlm, succeed, refuse, config, tmp_path):
    out = tmp_path / "f"
    command = [
        "extract-features",
        "--encoder",
        config.encoder,
        "--data",
        *config.data,
        "--seq-len",
        16,
        "--output",
        out,
    ]
    command += ["--device", "cpu"]
    assert refuse(*command, "--share", "4/4") == "--share 4/4: shares are numbered from 0, and the last of 4 is 3"
    assert refuse(*command, "--only", "sale") == "only is one of pack, encode, seal, not 'sale'"
    assert succeed(*command, "--precision", "fp32", "--only", "pack") == {"output": str(out), "done": "pack"}
    assert "share" not in (out / "config.yaml").read_text()
    shown = ldlm(*command, "--only", "encode", "--share", "0/2")
    assert shown.stdout.split() == ["output", str(out), "done", "encode"]
    assert succeed(*command, "--only", "seal")["rows"] == json.loads((out / "manifest.json").read_text())["rows"]


# ----------------------------------------------------------------------------------------------------------------------
# Plans


def test_a_plan_for_so_many_workers_and_tokens_is_arithmetic(config):
    """At a token per second, beside which packing takes no time."""

    def plan(**launch):
        return extract_features.plan(config, launch=LaunchConfig(rate=1.0, **launch))

    one = plan(tokens=9_000_000_000, workers=1)
    rows = 9_000_000_000 / 16
    assert (one["tokens"], one["rows"], one["workers"]) == (9_000_000_000, {"train": rows, "validation": 0}, 1)
    assert one["estimated"] is True
    assert one["shards"] == rows / 16
    assert one["bytes"]["fp16"] == 9_000_000_000 * (16 * 2 + 4)
    assert one["spool_bytes"] == 9_000_000_000 * 4 + 2_000_000 * 16 * 4  # tokens, and the sample's states in fp32
    assert one["tokens_per_second"] == 1
    assert one["hours"] == pytest.approx(9_000_000_000 / 3600, rel=0.01)
    assert plan(tokens=9_000_000_000, workers=1000)["hours"] == pytest.approx(one["hours"] / 1000, rel=0.01)
    # Three shards: the third worker's is whole, and a fourth has nothing to encode.
    hours = [plan(tokens=3 * 16 * 16, workers=workers)["hours"] for workers in (1, 2, 3, 4)]
    shard = 16 * 16 / 3600
    assert hours == pytest.approx([3 * shard, 2 * shard, shard, shard], rel=0.01)


def test_a_plan_gives_the_text_to_no_more_workers_than_it_has_pieces_for(config, tmp_path):
    """A file that is one piece is tokenised by one worker."""
    for number, lines in ((1, 10), (2, 30)):
        (tmp_path / f"{number}.txt").write_bytes(random.Random(number).randbytes(lines * 1000).hex().encode())
    paths = tuple(str(tmp_path / f"{number}.txt") for number in (1, 2))
    counts = {"train": Count(1000, True, 1000, 3600.0), "validation": Count(0, True, 0, 0.0)}

    def hours(workers, **launch):
        asked = LaunchConfig(rate=1e12, workers=workers, **launch)
        return extract_features.plan(replace(config, data=paths, validation_docs=0), None, asked, counts)["hours"]

    assert [hours(1), hours(2), hours(64)] == pytest.approx([1, 0.75, 0.75], rel=0.01)
    assert hours(64, tokens=1000 * 16) == pytest.approx(1 / 64, rel=0.01)  # whose pieces nobody knows


def test_a_plan_for_an_online_store_divides_the_sample_alone(config):
    online = replace(config, codec="online", stats_tokens=4 * 8 * 16)

    def plan(workers):
        return extract_features.plan(online, launch=LaunchConfig(rate=1.0, tokens=16 * 100, workers=workers))["hours"]

    block = 8 * 16 / 3600
    assert [plan(1), plan(2), plan(3), plan(4)] == pytest.approx([4 * block, 2 * block, 2 * block, block], rel=0.01)


def test_a_plan_refuses_the_launches_that_an_extraction_would(refuse, config):
    command = ["extract-features", "--encoder", config.encoder, "--data", *config.data, "--seq-len", 16, "--dry-run"]
    assert refuse(*command, "--share", "9/3") == "--share 9/3: shares are numbered from 0, and the last of 3 is 2"
    assert refuse(*command, "--address", "auto") == "--address is that of a Ray cluster; add --engine ray"
    assert "--engine ray starts its own" in refuse(*command, "--share", "0/3", "--engine", "ray")


def test_the_command_line_plans_for_workers(succeed, config):
    command = ["extract-features", "--encoder", config.encoder, "--data", *config.data, "--seq-len", 16, "--dry-run"]
    found = succeed(*command, "--device", "cpu", "--tokens", 10**9, "--workers", 7, "--rate", 1e6)
    assert (found["tokens"], found["workers"], found["tokens_per_second"]) == (10**9, 7, 10**6)
