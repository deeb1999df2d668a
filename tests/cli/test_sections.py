"""A section of a configuration file that holds something else than settings is refused in one line."""

import pytest

from ldlm import files

COMMANDS = (
    ("stories",), ("pretrain-encoder",), ("extract-features",), ("train",), ("finetune-decoder",), ("distill",),
    ("sample",), ("sweep",), ("interpolate",), ("likelihood",), ("evaluate", "texts.jsonl"), ("export",),
    ("quickstart",), ("paper", "table-7"), *(("train", "--method", name) for name in ("mdlm", "duo", "candi", "flm")),
)  # fmt: skip


def sections(settings, *within):
    """The paths of all sections of a configuration."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield (*within, name)
            yield from sections(value, *within, name)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_section_is_a_mapping(command, ldlm, tmp_path):
    dumped = ldlm(*command, "--dump-config")
    assert dumped.exit_code == 0, dumped.stderr
    place = tmp_path / "default.yaml"
    place.write_text(dumped.stdout)
    found = [*sections(files.read_yaml(place))]
    more = {"distill": [("distillation",)], "train": [("distillation",)]}.get(command[0], [])
    for path in [*found, *more]:
        for value in (3, [1], None, "word"):
            given = value
            for name in reversed(path):
                given = {name: given}
            (tmp_path / "given.yaml").write_text(files.dump_yaml(given))
            result = ldlm(*command, "--config", tmp_path / "given.yaml", "--dump-config")
            assert result.exception is None or isinstance(result.exception, SystemExit), (path, value, result.exception)
            assert result.exit_code == 1 and path[0] in result.stderr, (path, value, result.stderr)
