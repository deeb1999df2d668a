"""An output that is a symbolic link or a mount point stays one: it is emptied and refilled, and a kill at any moment
leaves what the same command goes on from."""

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from folders import content

from ldlm import artifact, files, locks
from ldlm.artifact import begin, open_artifact
from ldlm.config import SampleConfig, SamplerConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.progress import SILENT
from ldlm.stages import sample, train

OLD, NEW = TrainConfig(steps=5), TrainConfig(steps=5, seed=1)
NUMBERED = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "truncate")


class Killed(BaseException):
    """In place of SIGKILL: after it nothing of the process touches the disk any more."""


@contextmanager
def killed_before(number):
    """The process dies before so many calls of the system's that change something, counted from 1."""
    passed, real = itertools.count(1), {name: getattr(os, name) for name in NUMBERED}

    def armed(call):
        def checked(*arguments, **options):
            if next(passed) >= number:
                raise Killed
            return call(*arguments, **options)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name, call in real.items():
            patch.setattr(os, name, armed(call))
        yield


def every_kill(prepare, work):
    """Do `work` after `prepare`, killed before each of its calls in turn; yields after each kill, and at the end."""
    for number in itertools.count(1):
        prepare()
        try:
            with killed_before(number):
                work()
        except Killed:
            yield number
        else:
            assert number > 3
            return


def fill(out):
    """A finished artefact with what large ones have: folders, another artefact in it, links."""
    made = begin(out, "run", OLD, {})
    for name in ("checkpoints/step-00000005/manifest.json", "checkpoints/step-00000005/model.safetensors", "log"):
        files.write_atomic(out / name, name)
    begin(out / "decoders" / "a", "decoder", OLD, {}).finish()
    (out / "elsewhere").symlink_to(out.parent)
    return made.finish(step=5)


def link(tmp_path, kind):
    """(the output, where it really is)"""
    real = tmp_path / "disk" / "deep"
    if kind == "parent":
        real.mkdir(parents=True)
        (tmp_path / "here").symlink_to(real)
        return tmp_path / "here" / "out", real / "out"
    if kind == "chain":
        (tmp_path / "middle").symlink_to(real)
        real = tmp_path / "middle"
    if kind != "dangling":
        (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to(real)
    return tmp_path / "out", tmp_path / "disk" / "deep"


KINDS = ["link", "dangling", "chain", "parent"]


@pytest.mark.parametrize("kind", KINDS)
def test_overwrite_refills_what_a_link_names_and_keeps_the_link(tmp_path, kind):
    out, real = link(tmp_path, kind)
    fill(out)
    assert begin(out, "run", OLD, {}).complete
    assert begin(out, "run", NEW, {}, overwrite=True).state == "new"
    assert begin(out, "run", NEW, {}).state == "partial"
    assert set(content(real)) == {"artifact.json", "config.yaml"}
    assert (out if kind != "parent" else out.parent).is_symlink()
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "disk", "middle", "here"}
    assert [p.name for p in real.parent.iterdir()] == [real.name]
    assert out.parent.exists()  # which a link in the output named


def test_bad_input_found_later_leaves_a_link_and_an_empty_folder(tmp_path):
    out, real = link(tmp_path, "dangling")
    with pytest.raises(InputError), begin(out, "run", OLD, {}).or_nothing():
        raise InputError("the file is empty")
    assert out.is_symlink()
    assert list(real.iterdir()) == []
    assert begin(out, "run", NEW, {}).state == "new"


def test_a_link_that_leads_back_to_itself_is_named(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "out")
    with pytest.raises((InputError, OSError), match=r"leads back to itself|symbolic links"):
        begin(tmp_path / "out", "run", OLD, {})


@pytest.mark.parametrize("kind", ["plain", "link"])
def test_a_kill_at_any_moment_of_overwriting_leaves_what_the_same_command_goes_on_from(tmp_path, kind):
    out, real = (tmp_path / "out",) * 2 if kind == "plain" else link(tmp_path, kind)
    seen = set()

    def prepare():
        begin(out, "run", OLD, {}, overwrite=True)
        shutil.rmtree(real / "decoders", ignore_errors=True)
        fill(out)
        seen.add(len(content(real)))

    for number in every_kill(prepare, lambda: begin(out, "run", NEW, {}, overwrite=True)):
        inner = real / "decoders" / "a"
        if (real / "manifest.json").exists():
            assert len(content(real)) == max(seen), number
        with pytest.raises(InputError) if not (real / "manifest.json").exists() else files.writing(out):
            open_artifact(out, "run")
        if (inner / "manifest.json").exists():
            assert (inner / "config.yaml").exists(), number
        try:
            assert begin(out, "run", NEW, {}).state in ("new", "partial")
        except InputError as error:
            assert "made with other settings" in str(error), number
        assert begin(out, "run", NEW, {}, overwrite=True).state == "new"
        assert set(content(real)) == {"artifact.json", "config.yaml"}
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"out", "disk"} if kind == "link" else {"out"})


def test_what_is_being_replaced_is_opened_by_nobody_and_replaced_by_anybody(tmp_path):
    out = tmp_path / "out"
    fill(out)
    with pytest.raises(Killed), killed_before(8):
        begin(out, "run", NEW, {}, overwrite=True)
    assert json.loads((out / "artifact.json").read_text())["emptied"]
    for complete in (True, False):
        with pytest.raises(InputError, match="is not finished; run the same `ldlm train` command again"):
            open_artifact(out, "run", complete=complete)
    assert begin(out, "sweep", NEW, {}).state == "new"
    assert set(content(out)) == {"artifact.json", "config.yaml"}


def test_a_training_that_was_being_replaced_begins_anew_without_the_flag(tmp_path, train_config, store):
    """The command that an interrupted `--overwrite` advises in its last line makes the output."""
    out = train.run(replace(train_config, steps=2), store, tmp_path / "run").path
    (out / "manifest.json").unlink()
    (out / "artifact.json").write_text(json.dumps({"kind": "run", "schema": artifact.SCHEMA, "emptied": True}))
    assert train.run(replace(train_config, steps=2, seed=1), store, out).manifest["step"] == 2


def test_links_to_empty_folders_are_content(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is not empty and not made by ldlm"):
        artifact.begin(tmp_path / "out", "run", TrainConfig(), {})


def test_a_record_that_is_no_record_is_foreign_content(tmp_path):
    (tmp_path / "artifact.json").write_text("[]")
    with pytest.raises(InputError, match="is not empty and not made by ldlm"):
        artifact.begin(tmp_path, "run", TrainConfig(), {})


def test_a_fresh_file_systems_own_folder_is_nobodys_content(tmp_path):
    (tmp_path / "lost+found").mkdir()
    assert begin(tmp_path, "run", OLD, {}).state == "new"
    assert begin(tmp_path, "run", NEW, {}, overwrite=True).state == "new"
    assert (tmp_path / "lost+found").is_dir()


# ----------------------------------------------------------------------------------------------------------------------
# Mount points


@pytest.fixture
def mounted(monkeypatch):
    """`mounted(path)`: from here on the path can neither be renamed, removed nor replaced, as the kernel has it."""
    points = set()

    def refusing(call):
        def checked(*arguments, **options):
            named = {os.path.abspath(one) for one in arguments if isinstance(one, str | os.PathLike)}
            if named & points and not options.get("dir_fd"):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            return call(*arguments, **options)

        return checked

    for name in ("replace", "rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    return lambda path: points.add(os.path.abspath(path))


def test_overwrite_refills_a_mount_point_and_one_below_it(tmp_path, mounted):
    out = tmp_path / "out"
    out.mkdir()
    mounted(out)
    fill(out)
    mounted(out / "checkpoints")
    assert begin(out, "run", NEW, {}, overwrite=True).state == "new"
    assert set(content(out)) == {"artifact.json", "config.yaml"}
    with pytest.raises(InputError), begin(out, "run", NEW, {}, overwrite=True).or_nothing():
        raise InputError("the file is empty")
    assert begin(out, "run", OLD, {}).state == "new"


@pytest.mark.parametrize("name", ["file", "link", "mount"])
def test_a_file_is_written_where_its_name_leads(tmp_path, mounted, name):
    out = real = tmp_path / "out.txt"
    if name == "link":
        real = tmp_path / "disk" / "real.txt"
        out.symlink_to(real)
    if name == "mount":
        out.touch()
        mounted(out)
    for text in ("long, as it is at first", "short"):
        files.write_atomic(out, text)
        assert (out.read_text(), real.read_text()) == (text, text)
        with files.replacing(out) as temporary:
            temporary.write_text(text[::-1])
        assert out.read_text() == text[::-1]
    assert out.is_symlink() == (name == "link")
    assert {p.name for p in real.parent.iterdir()} == {real.name}


REAL = """
    import subprocess, sys, json
    from pathlib import Path
    from ldlm.cli import main
    from ldlm.stages import sample, train

    here, run, store = map(Path, sys.argv[1:])

    def ldlm(*arguments):
        try:
            main([str(one) for one in arguments])
        except SystemExit as ended:
            return ended.code or 0

    def mount(*arguments):
        subprocess.run(["mount", *map(str, arguments)], check=True)

    model, text, real = here / "model", here / "texts.jsonl", here / "real.jsonl"
    model.mkdir()
    mount("-t", "tmpfs", "none", model)
    export = ("export", "--run", run, "--output", model)
    assert ldlm(*export) == 0
    assert ldlm(*export, "--set", "sampler.steps=7") == 1
    assert ldlm(*export, "--set", "sampler.steps=7", "--overwrite") == 0
    assert model.is_mount() and json.loads((model / "config.json").read_text())["sampler"]["steps"] == 7

    for path in (text, real):
        path.touch()
        (here / "disk").mkdir(exist_ok=True)
        (here / "disk" / path.name).touch()
        mount("--bind", here / "disk" / path.name, path)
    draw = ("sample", "--run", model, "--steps", 2, "--device", "cpu", "--output", text)
    lines = lambda: text.read_text().count("\\n")
    assert ldlm(*draw, "--num-samples", 3) == 0 and lines() == 3
    assert ldlm(*draw, "--num-samples", 5) == 0 and lines() == 5
    assert ldlm(*draw, "--num-samples", 2) == 1 and lines() == 5
    assert ldlm(*draw, "--num-samples", 2, "--overwrite") == 0 and lines() == 2
    assert ldlm("features", "texts", store, "--rows", 4, "--output", real) == 0
    assert real.read_text().count("\\n") == 4
    texts = {f"{name}.jsonl{end}" for name in ("texts", "real") for end in ("", ".meta.json")}
    assert {p.name for p in here.iterdir()} == {"disk", "model", *texts}
    print("done")
"""


def _may_mount():
    found = shutil.which("unshare")
    if found is None:
        return False
    return not subprocess.run([found, "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode


@pytest.mark.skipif(not _may_mount(), reason="needs unshare, and a kernel that lets users mount; simulated above")
def test_commands_write_to_real_mounts(trained, store, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(REAL))
    (tmp_path / "here").mkdir()
    command = ["unshare", "-rm", sys.executable, str(script), str(tmp_path / "here"), str(trained), str(store)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


# ----------------------------------------------------------------------------------------------------------------------
# Every command


@pytest.fixture(scope="module")
def commands(corpus, gpt2, store, trained, tiny_yaml):
    """By name: arguments without the output, and what changes the settings."""
    few, scorer = ("--device", "cpu"), ("--scorer", gpt2)
    return {
        "pretrain-encoder": (
            ["--data", corpus, "--layers", 1, "--width", 8, "--heads", 1, "--vocab-size", 300, "--positions", 16,
             "--steps", 1, "--batch-size", 2, *few],
            ["--seed", 1],
        ),
        "extract-features": (["--data", corpus, "--encoder", gpt2, "--seq-len", 16, *few], ["--seq-len", 12]),
        "train": (["--features", store, "--config", tiny_yaml, "--steps", 1], ["--seed", 1]),
        "export": (["--run", trained], ["--set", "sampler.steps=7"]),
        "sweep": (
            ["--run", trained, *scorer, "--budgets", 2, "--solvers", "dpm++2m", "--grids", "time", "--guidances", 1,
             "--screen-texts", 2, "--texts", 2, *few],
            ["--seed", 1],
        ),
        "interpolate": (["--run", trained, "--features", store, "--pairs", 2, *scorer, *few], ["--seed", 1]),
        "sample": (["--run", trained, "--num-samples", 2, "--steps", 2, *few], ["--seed", 1]),
        "sample --trace": (["--run", trained, "--steps", 2, *few], ["--seed", 1]),
    }  # fmt: skip


NAMES = (
    "pretrain-encoder", "extract-features", "train", "export", "sweep", "interpolate", "sample", "sample --trace",
)  # fmt: skip


BEGUN = {
    "pretrain-encoder": "encoder", "extract-features": "features", "train": "run", "export": "model", "sweep": "sweep",
    "interpolate": "interpolation",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "train")) for n in BEGUN])
def test_a_command_that_ended_between_its_first_two_files_is_run_again(commands, succeed, tmp_path, name):
    arguments, _ = commands[name]
    out = tmp_path / "out"
    files.write_json(out / "artifact.json", {"kind": BEGUN[name], "schema": artifact.SCHEMA})
    succeed(name, *arguments, "--output", out)
    assert (out / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["pretrain-encoder", "export", "sweep", "interpolate", "sample --trace"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_an_output_at_which_another_process_is_at_work_is_left_to_it(commands, refuse, tmp_path, name, overwrite):
    out = tmp_path / "out"
    kind = {**BEGUN, "sample --trace": "trace"}[name]
    files.write_json(out / "artifact.json", {"kind": kind, "schema": artifact.SCHEMA})
    command, flag = name.split()[0], "--trace" if "--trace" in name else "--output"
    with locks.exclusive_lock(out):
        line = refuse(command, *commands[name][0], *overwrite, flag, out)
    assert f"another process is at work in {out}" in line
    assert not {path.name for path in out.iterdir()} - {"artifact.json", "config.yaml"}


def test_a_process_that_is_refused_has_changed_nothing_of_the_others_output(commands, succeed, refuse, tmp_path):
    out, arguments = tmp_path / "out", ["pretrain-encoder", *commands["pretrain-encoder"][0], "--output"]
    succeed(*arguments, out)
    (out / "manifest.json").unlink()
    before = content(out)
    with locks.exclusive_lock(out):
        assert "another process is at work" in refuse(*arguments, out, "--device", "auto")
    assert content(out) == before
    succeed(*arguments, out, "--device", "auto")
    assert "device: auto" in (out / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "flag"),
    [("pretrain-encoder", "--tokenizer"), ("extract-features", "--encoder"), ("sweep", "--scorer"),
     ("interpolate", "--scorer")],
)  # fmt: skip
def test_no_command_overwrites_a_model_that_it_reads(commands, gpt2, refuse, tmp_path, name, flag):
    model = tmp_path / "model"
    shutil.copytree(gpt2, model, ignore=shutil.ignore_patterns("artifact.json", "manifest.json", "config.yaml"))
    before, arguments = content(model), [arg for arg in commands[name][0] if arg not in ("--vocab-size", 300)]
    line = refuse(name, *arguments, flag, model, "--output", model, "--overwrite")
    assert f"--overwrite would delete {model}, which is to be read" in line
    assert content(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_every_command_refills_what_a_link_names(commands, succeed, refuse, tmp_path, name):
    arguments, change = commands[name]
    command, flag = name.split()[0], "--trace" if "--trace" in name else "--output"
    out, real = tmp_path / "out", tmp_path / "disk" / "real"
    out.symlink_to(real)
    succeed(command, *arguments, flag, out)
    first = content(real) if real.is_dir() else real.read_bytes()
    assert "add --overwrite" in refuse(command, *arguments, *change, flag, out)
    succeed(command, *arguments, *change, "--overwrite", flag, out)
    assert first != (content(real) if real.is_dir() else real.read_bytes())
    again = succeed(command, *arguments, *change, flag, out)
    assert again["output"] == str(out)
    assert out.is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"out", "disk"}
    assert {p.name.removesuffix(".meta.json") for p in real.parent.iterdir()} == {"real"}


def test_a_decoder_a_report_pictures_and_held_out_texts_go_where_links_lead(store, run_copy, succeed, tmp_path):
    disk = tmp_path / "disk"
    links = {
        run_copy / "decoders" / "layers-0": disk / "decoder", run_copy / "report.html": disk / "page.html",
        run_copy / "plots": disk / "plots", tmp_path / "real.jsonl": disk / "held-out" / "real.jsonl",
    }  # fmt: skip
    shutil.rmtree(run_copy / "plots", ignore_errors=True)
    for name, real in links.items():
        name.parent.mkdir(exist_ok=True)
        name.symlink_to(real)
    finetune = ("finetune-decoder", "--run", run_copy, "--features", store, "--layers", 0, "--device", "cpu")
    succeed(*finetune, "--steps", 1)
    succeed(*finetune, "--steps", 1, "--seed", 1, "--overwrite")
    for _ in range(2):
        succeed("report", run_copy)
        succeed("plot", run_copy)
        succeed("features", "texts", store, "--rows", 3, "--output", tmp_path / "real.jsonl")
    for name, real in links.items():
        assert name.is_symlink() and real.exists()
    assert artifact.open_artifact(disk / "decoder", "decoder").config["seed"] == 1


@pytest.mark.parametrize("name", ["a folder", "/dev/null"])
def test_what_is_no_file_is_not_written_to(trained, store, refuse, tmp_path, name):
    out = tmp_path if name == "a folder" else Path(name)
    commands = (
        ("sample", "--run", trained, "--num-samples", 1, "--steps", 1),
        ("report", trained),
        ("features", "texts", store, "--rows", 1),
    )
    for command in commands:
        line = refuse(*command, "--output", out)
        assert f"{out} is {'a folder' if name == 'a folder' else 'a device or a pipe, not a file'}" in line


# ----------------------------------------------------------------------------------------------------------------------
# More texts (SPEC 13.3)


@pytest.fixture(scope="module")
def draw(trained):
    """`draw(out, 5)`: so many texts of one run."""
    sampler = SamplerConfig(steps=2)

    def call(out, count, progress=SILENT, **settings):
        options = {"overwrite": settings.pop("overwrite", False), "progress": progress}
        config = SampleConfig(num_samples=count, sampler=sampler, device="cpu", batch_size=2, **settings)
        return sample.run(config, trained, out, **options)

    return call


def recorded(out):
    return json.loads(samples.record_path(out).read_text())["config"]["num_samples"]


def test_a_finished_file_goes_on_to_more_texts_and_not_to_fewer(draw, tmp_path, notes):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "s.jsonl"
    draw(whole, 7)
    for count, made in ((3, 3), (7, 4), (7, 0)):
        assert draw(out, count, notes).get("texts_made", 0) == made
        assert recorded(out) == count
    assert notes.lines == [f"{out} is complete; nothing to do"]
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(InputError, match=r"holds 7 texts of these settings already, and --num-samples 5 asks"):
        draw(out, 5)
    with pytest.raises(InputError, match=r"made differently \(config.seed: 0 -> 1\)"):
        draw(out, 9, seed=1)
    assert out.read_bytes() == whole.read_bytes()
    assert draw(out, 5, overwrite=True)["texts_made"] == 5
    assert out.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:5])


def test_the_finished_file_stays_whole_until_the_longer_one_is_wherever_it_is_killed(draw, tmp_path):
    whole, short, out = (tmp_path / name / "s.jsonl" for name in ("whole", "short", "out"))
    draw(whole, 7)
    draw(short, 3)

    def prepare():
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(short.parent, out.parent)

    for number in every_kill(prepare, lambda: draw(out, 7)):
        assert out.read_bytes() in (short.read_bytes(), whole.read_bytes()), number
        if out.read_bytes() == short.read_bytes():
            draw(out, 3)  # which is what it is
            assert (out.read_bytes(), recorded(out)) == (short.read_bytes(), 3)
        draw(out, 7)
        assert (out.read_bytes(), recorded(out)) == (whole.read_bytes(), 7), number
        left = {path.name for path in out.parent.iterdir() if not files.is_temporary(path)}
        assert left == {"s.jsonl", "s.jsonl.meta.json"}, number


def test_a_file_goes_on_however_its_decoder_and_checkpoint_are_named(draw, trained, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    draw(whole, 4)
    draw(out, 2)
    (newest,) = (path.name for path in sorted((trained / "checkpoints").iterdir())[-1:])
    draw(out, 4, decoder="joint", checkpoint=newest)
    assert out.read_bytes() == whole.read_bytes()


def test_texts_without_a_record_are_not_gone_on_from(draw, tmp_path):
    draw(tmp_path / "whole.jsonl", 2)
    (tmp_path / "out.jsonl.partial").write_text("foreign\n")
    draw(tmp_path / "out.jsonl", 2)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("at", [0, 1])
def test_texts_that_are_drawn_when_it_is_stopped_are_not_drawn_again(draw, tmp_path, interrupted, at):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "s.jsonl"
    draw(whole, 8)
    draw(out, 3)
    with pytest.raises(KeyboardInterrupt):
        draw(out, 8, interrupted(at=at))
    with pytest.raises(InputError, match=rf"{5 + 2 * at} texts for .* are drawn already, and --num-samples 4 asks for"):
        draw(out, 4)
    assert draw(out, 8)["texts_made"] == 8 - (5 + 2 * at)
    assert out.read_bytes() == whole.read_bytes()


def test_a_file_that_is_a_mount_point_is_filled_again_after_a_kill_in_the_middle(draw, tmp_path, mounted, monkeypatch):
    whole, out = tmp_path / "whole" / "s.jsonl", tmp_path / "out" / "s.jsonl"
    draw(whole, 7)
    out.parent.mkdir()
    out.touch()
    mounted(out)
    real = shutil.copyfile

    def cut(source, target, **options):
        if Path(target) != out:
            return real(source, target, **options)
        Path(target).write_bytes(Path(source).read_bytes()[:-20])
        raise Killed

    for count in (4, 7):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(shutil, "copyfile", cut)
            draw(out, count)
        assert draw(out, count)["texts_made"] == 0
        assert out.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:count])
    assert {path.name for path in out.parent.iterdir()} == {"s.jsonl", "s.jsonl.meta.json"}


# ----------------------------------------------------------------------------------------------------------------------
# A full disk


@contextmanager
def room(most):
    """No file can have more bytes: the system refuses what goes beyond, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Limits are spread over the sizes of a command's files; the largest file is the first that finds no room.
@pytest.mark.parametrize("limits", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_said_in_one_line_and_the_same_command_goes_on(commands, succeed, ldlm, tmp_path, name, limits):
    arguments, _ = commands[name]
    command, flag = name.split()[0], "--trace" if "--trace" in name else "--output"
    succeed(command, *arguments, flag, tmp_path / "whole" / "out")
    # TensorBoard's file and the plots of a finished run stop no training.
    paths = (path for path in (tmp_path / "whole").rglob("*") if path.parent.name not in ("tensorboard", "plots"))
    sizes = sorted({path.stat().st_size for path in paths if path.is_file()})
    for number, size in enumerate({sizes[(len(sizes) - 1) * part // limits] for part in range(1, limits + 1)}):
        out = tmp_path / f"{number}" / "out"
        with room(size - 1):
            result = ldlm(command, *arguments, flag, out)
        assert (result.exit_code, type(result.exception)) == (1, SystemExit), repr(result.exception)
        line = result.stderr.splitlines()[-1]
        assert line.startswith("Error: /"), line  # which file
        assert line.endswith("File too large; make room and run the same command again"), line
        assert succeed(command, *arguments, flag, out)["output"] == str(out)
        assert not list(tmp_path.rglob(".*.tmp"))
