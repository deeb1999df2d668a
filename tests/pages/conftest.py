"""Fixtures that the tests of several pages share."""

import json

import pytest

SETTINGS = ("--steps", 8, "--seed", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def traced(trained, succeed, tmp_path_factory):
    """A folder that `ldlm sample --trace` wrote, and its trace.json."""
    out = tmp_path_factory.mktemp("trace") / "trace"
    succeed("sample", "--run", trained, *SETTINGS, "--trace", out, "--trace-text", 2, "--trace-frames", 5)
    return out, json.loads((out / "trace.json").read_text(encoding="utf-8"))
