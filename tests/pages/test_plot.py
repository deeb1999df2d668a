"""`ldlm plot` and the pictures that a training leaves."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from PIL import Image

from ldlm.pages import plots
from ldlm.stages import train

PICTURES = {"training.png", "dynamics.png", "timesteps.png"}


def test_a_training_leaves_pictures(trained):
    assert {path.name for path in (trained / "plots").iterdir()} == PICTURES
    for path in (trained / "plots").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 30  # something is drawn


def test_one_that_leaves_none_is_the_same_run(trained, train_config, store, tmp_path):
    """`plots` is off in the configuration of most of these tests."""
    assert not train_config.plots
    bare = train.run(train_config, store, tmp_path / "run").path
    assert not (bare / "plots").exists()
    weights = [run / "checkpoints" / "step-00000008" / "ema.safetensors" for run in (bare, trained)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_pictures_are_drawn_again_of_a_run_that_has_not_ended(run_copy, succeed):
    shutil.rmtree(run_copy / "plots")
    (run_copy / "manifest.json").unlink()
    drawn = succeed("plot", run_copy)["drawn"]
    assert {path.rsplit("/", 1)[1] for path in drawn} == PICTURES
    assert {path.name for path in (run_copy / "plots").iterdir()} == PICTURES


def test_several_runs_go_into_one_picture(trained, run_copy, succeed, refuse, tmp_path):
    assert "say where with --output DIR" in refuse("plot", trained, run_copy)
    drawn = succeed("plot", trained, run_copy, "--output", tmp_path / "both")["drawn"]
    assert drawn[-1] == str(tmp_path / "both" / "dynamics.png")
    with Image.open(drawn[-1]) as both, Image.open(trained / "plots" / "dynamics.png") as one:
        assert both.tobytes() != one.tobytes()


def test_runs_in_folders_of_one_name_are_told_apart_by_their_paths(run_copy, succeed, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "dynamics", lambda path, courses: drawn.update({path.parent.name: [*courses]}))
    runs = [shutil.copytree(run_copy, tmp_path / name / "run") for name in "ab"]
    succeed("plot", *runs, "--output", tmp_path / "both")
    assert drawn["both"] == ["a-run", "b-run"]


@pytest.mark.parametrize("what", ["nothing", "no run", "no metrics"])
def test_what_can_not_be_drawn_is_said(run_copy, refuse, store, what):
    (run_copy / "metrics.jsonl").write_text("")
    arguments, message = {
        "nothing": ((), "no runs to draw"),
        "no run": ((store,), "a training run is needed"),
        "no metrics": ((run_copy,), "has no metrics yet"),
    }[what]
    assert message in refuse("plot", *arguments)


@pytest.fixture
def another_process(trained, tmp_path):
    """What python prints that runs `code` in a process of its own, with `run` in it, under these variables."""
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "plots")

    def call(code, **environment):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        script = f"run = {str(run)!r}\n{textwrap.dedent(code)}"
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), run / "plots"

    return call


NOTEBOOK = "module://matplotlib_inline.backend_inline"  # as it sets the variable; the package is not installed here
DRAW = """
    import json
    from pathlib import Path
    from ldlm.config import TrainConfig
    from ldlm.pages import film, plots
    from ldlm.pages.curves import Course
    plots.training(Path(run), Course(TrainConfig(), [json.loads(line) for line in open(run + "/metrics.jsonl")]))
    film._font(12)
"""


def test_a_users_settings_of_matplotlib_change_no_picture(another_process, trained, tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "backend: nosuch\ntext.usetex: True\nfont.family: monospace\nlines.marker: x\n"
    )
    _, plots = another_process(DRAW, MPLBACKEND=NOTEBOOK)
    assert (plots / "training.png").read_bytes() == (trained / "plots" / "training.png").read_bytes()


def test_who_draws_in_the_same_process_keeps_the_own_settings(another_process):
    own = textwrap.dedent("""
        import os, sys, matplotlib
        print(os.environ["MPLBACKEND"], matplotlib.rcParams["backend"], matplotlib.rcParams["lines.marker"])
    """)
    assert another_process(textwrap.dedent(DRAW) + own, MPLBACKEND="svg")[0] == ["svg", "svg", "None"]
    before = "import matplotlib\nmatplotlib.rcParams['lines.marker'] = 'x'\n" + textwrap.dedent(DRAW)
    assert another_process(before + own, MPLBACKEND="pdf")[0] == ["pdf", "pdf", "x"]
