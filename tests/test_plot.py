"""`ldlm plot` and the pictures that a training leaves."""

import shutil

import pytest
from PIL import Image

PICTURES = {"training.png", "dynamics.png", "timesteps.png"}


def test_a_training_leaves_pictures(trained):
    assert {path.name for path in (trained / "plots").iterdir()} == PICTURES
    for path in (trained / "plots").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 30  # something is drawn


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


@pytest.mark.parametrize("what", ["nothing", "no run", "no metrics"])
def test_what_can_not_be_drawn_is_said(run_copy, refuse, store, what):
    (run_copy / "metrics.jsonl").write_text("")
    arguments, message = {
        "nothing": ((), "no runs to draw"),
        "no run": ((store,), "a training run is needed"),
        "no metrics": ((run_copy,), "has no metrics yet"),
    }[what]
    assert message in refuse("plot", *arguments)
