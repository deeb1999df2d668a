"""Variables of launchers that are empty or hold no whole number count as unset, or are refused."""

import pytest

from ldlm import launcher, runtime
from ldlm.errors import InputError
from ldlm.features.helpers import workers

LAUNCHER = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAYON_NUM_THREADS",
    "SLURM_LOCALID",
)  # fmt: skip
ODD = ["", "abc", "²", "-1", "1.5", "٣"]


@pytest.fixture
def launched(monkeypatch):
    """Set launchers' variables to these alone."""

    def call(**variables):
        for name in LAUNCHER:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return call


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_whole_number_counts_as_unset_where_only_order_or_speed_depend_on_it(launched, monkeypatch, text):
    launched()
    alone = workers()
    launched(**dict.fromkeys(("LOCAL_WORLD_SIZE", "RAYON_NUM_THREADS"), text), RANK=text, OMP_NUM_THREADS="1")
    assert launcher.number("RAYON_NUM_THREADS") is None
    assert workers() == alone
    assert runtime.device("cpu").type == "cpu"
    assert launcher.reports()


def test_an_extraction_goes_on_beside_odd_variables(launched, succeed, few, tmp_path):
    for number, text in enumerate(("", "abc")):
        launched(**dict.fromkeys(LAUNCHER, text))
        command = ["--encoder", few.encoder, "--data", *few.data, "--seq-len", 16, "--device", "cpu"]
        assert succeed("extract-features", *command, "--output", tmp_path / f"{number}")["tokens"] > 0


def test_empty_variables_of_a_job_count_as_unset(launched):
    launched(WORLD_SIZE="", RANK="")
    assert launcher.processes() == 1
    with runtime.world() as world:
        assert world == runtime.ALONE


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        *(({"WORLD_SIZE": text}, f"WORLD_SIZE is {text!r}") for text in [*ODD[1:], "0"]),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "abc"}, "RANK is 'abc'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
    ],
)
def test_a_job_whose_shape_is_not_told_is_refused_by_variable_and_value(launched, variables, named):
    launched(**variables)
    with pytest.raises(InputError) as refused, runtime.world():
        raise AssertionError
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "torchrun" in str(refused.value)


def test_a_training_says_which_variable_is_wrong(launched, refuse, succeed, store, tiny_yaml, tmp_path):
    train = ("train", "--features", store, "--config", tiny_yaml, "--steps", 1, "--output", tmp_path / "run")
    launched(WORLD_SIZE="abc")
    assert refuse(*train).startswith("WORLD_SIZE is 'abc'")
    assert refuse(*train, "--dry-run").startswith("WORLD_SIZE is 'abc'")
    assert not (tmp_path / "run").exists()
    launched(WORLD_SIZE="")
    assert succeed(*train)["step"] == 1


def test_the_number_of_a_process_on_its_machine_is_refused_where_it_chooses_the_gpu(launched, monkeypatch):
    monkeypatch.setattr(runtime.torch.cuda, "is_available", lambda: True)
    launched(LOCAL_RANK="abc")
    with pytest.raises(InputError, match=r"^LOCAL_RANK is 'abc'"):
        runtime.device("cuda")


@pytest.mark.parametrize(
    ("variables", "gpus", "chosen"),
    [
        ({}, 8, "cuda"),
        ({"LOCAL_RANK": "5"}, 8, "cuda:5"),
        ({"SLURM_LOCALID": "3"}, 8, "cuda:3"),  # srun without torchrun
        ({"SLURM_LOCALID": "3", "LOCAL_RANK": ""}, 8, "cuda:3"),
        ({"SLURM_LOCALID": "0", "LOCAL_RANK": "5"}, 8, "cuda:5"),  # torchrun within a task
        ({"SLURM_LOCALID": "3"}, 1, "cuda:0"),  # SLURM shows each task its own GPU alone
        ({"SLURM_LOCALID": "x"}, 8, "cuda"),
    ],
)
def test_the_processes_of_a_machine_take_a_gpu_each(launched, monkeypatch, variables, gpus, chosen):
    launched(**variables)
    for name, found in {"is_available": lambda: True, "device_count": lambda: gpus, "set_device": str}.items():
        monkeypatch.setattr(runtime.torch.cuda, name, found)
    assert str(runtime.device("auto")) == chosen
    assert str(runtime.device("cuda:0")) == "cuda:0"
