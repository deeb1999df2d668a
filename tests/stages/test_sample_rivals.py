"""Texts of the rivals by `ldlm sample`: every sampler, whatever the batch, taken up again, and what is refused."""

import json

import pytest
import torch

from ldlm import config as configs
from ldlm.baselines.generation import InPrecision
from ldlm.baselines.trained import TrainedTokenRun
from ldlm.config import SampleConfig
from ldlm.errors import InputError
from ldlm.sampling import generation
from ldlm.sampling.generation import text_seeds
from ldlm.stages import sample

CPU = torch.device("cpu")

# Each sampler of each method, and settings that draw another way.
SAMPLERS = {
    "mdlm": ("mdlm", {"steps": 12}),
    "mdlm-few": ("mdlm", {"steps": 3, "end": "draw"}),
    "mdlm-race": ("mdlm", {"steps": 6, "drawing": "race"}),
    "mdlm-nucleus": ("mdlm", {"steps": 6, "top_p": 0.9, "nucleus_rule": "inclusive"}),
    "remdm": ("mdlm", {"name": "remdm", "steps": 12, "eta": 0.3}),
    "remdm-cap": ("mdlm", {"name": "remdm", "steps": 12, "schedule": "cap", "eta": 0.3}),
    "remdm-conf": ("mdlm", {"name": "remdm", "steps": 12, "schedule": "conf"}),
    "remdm-loop": ("mdlm", {"name": "remdm", "steps": 12, "schedule": "loop", "eta": 0.3}),
    "duo": ("duo", {"steps": 8}),
    "duo-race": ("duo", {"steps": 4, "drawing": "race", "top_p": 0.95}),
    "psi": ("duo", {"name": "psi", "steps": 8}),
    "psi-kappa": ("duo", {"name": "psi", "steps": 8, "mode": "kappa", "eta": 0.5, "top_p": 1.0}),
    "candi": ("candi", {"steps": 8}),
    "candi-flow": ("candi", {"steps": 8, "update": "flow", "temperature": 0.7, "drawing": "race"}),
    "flm": ("flm", {"steps": 8}),
}


def settings(method, sampler, **given):
    """Settings of a stage, which compute in float32 on the CPU."""
    return configs.drawing_config(
        SampleConfig, method, {"sampler": sampler, "device": "cpu", "num_samples": 7, **given}
    )


def drawn(run, out, method, sampler, progress=None, **given):
    """The bytes of a file of texts."""
    arguments = {} if progress is None else {"progress": progress}
    sample.run(settings(method, sampler, **given), run, out, **arguments)
    return out.read_bytes()


def tokens(data):
    """The token rows of a file."""
    return [json.loads(line)["tokens"] for line in data.splitlines()]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_text_depends_on_its_seed_and_not_on_its_batch(rival, tmp_path, name):
    method, sampler = SAMPLERS[name]
    together = drawn(rival(method), tmp_path / "7.jsonl", method, sampler, batch_size=7)
    for size in (1, 3):
        assert drawn(rival(method), tmp_path / f"{size}.jsonl", method, sampler, batch_size=size) == together
    rows = tokens(together)
    assert len({tuple(row) for row in rows}) > 1
    vocab = TrainedTokenRun(rival(method), CPU).shapes.vocab_size
    assert all(0 <= token < vocab for row in rows for token in row)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mdlm", "duo", "candi", "flm"])
def test_compiled_it_draws_the_same_tokens_but_for_rounding_and_pads_its_last_batch(rival, method):
    drawn = {}
    for compile in ("off", "on"):
        opened = TrainedTokenRun(rival(method), CPU)
        config = settings(method, {"steps": 4}, compute={"compile": compile}, batch_size=4)
        batches = generation.batches(opened.drawing(config), config)
        drawn[compile] = torch.cat([tokens_BL for _, tokens_BL in batches])
        assert not any("forward" in vars(block) for block in opened.network.blocks)  # the run's own stay as they are
    assert drawn["on"].shape == (7, 16)
    assert (drawn["on"] == drawn["off"]).float().mean() > 0.9


def test_half_precision_is_of_the_body_and_not_of_the_head(rival, tmp_path):
    network = TrainedTokenRun(rival("flm"), CPU).network
    exact, half = (InPrecision.of(network, dtype) for dtype in (torch.float32, torch.bfloat16))
    e_BLW = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    h_BLW, half_BLW = exact.hidden(e_BLW, torch.ones(1)), half.hidden(e_BLW, torch.ones(1))
    assert half_BLW.dtype == torch.float32
    assert 1e-5 < (h_BLW - half_BLW).abs().max() < 0.1
    assert torch.equal(exact.logits(h_BLW), half.logits(h_BLW))
    # Cast once, and nothing twice that stays as it is.
    dtypes = {name: parameter.dtype for name, parameter in half.body.named_parameters()}
    kept = {"embedding", "head.weight", "head.bias"}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == kept
    assert half.body.head is network.head and half.embedding is network.embedding
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    drawn(rival("flm"), tmp_path / "s.jsonl", "flm", {"steps": 2}, compute={"precision": "bf16"})
    assert json.loads((tmp_path / "s.jsonl.meta.json").read_text())["precision"] == "bf16"


# ----------------------------------------------------------------------------------------------------------------------
# The file and its record


def test_an_interrupted_file_is_taken_up_and_a_finished_one_extended(rival, tmp_path, interrupted):
    of = ("mdlm", SAMPLERS["remdm"][1])
    whole = drawn(rival("mdlm"), tmp_path / "whole.jsonl", *of, batch_size=7)
    with pytest.raises(KeyboardInterrupt):
        drawn(rival("mdlm"), tmp_path / "a.jsonl", *of, interrupted(at=1), batch_size=2)
    assert not (tmp_path / "a.jsonl").exists()
    assert len((tmp_path / "a.jsonl.partial").read_bytes().splitlines()) == 4
    assert drawn(rival("mdlm"), tmp_path / "a.jsonl", *of, batch_size=3) == whole
    assert drawn(rival("mdlm"), tmp_path / "b.jsonl", *of, num_samples=3) == b"".join(whole.splitlines(True)[:3])
    assert drawn(rival("mdlm"), tmp_path / "b.jsonl", *of) == whole
    for changed in ({"eta": 0.2}, {"name": "ancestral"}, {"nucleus_rule": "inclusive"}, {"drawing": "race"}):
        other = {**of[1], **changed}
        if changed.get("name"):
            del other["eta"]
        with pytest.raises(InputError, match="sampler." + next(iter(changed))):
            drawn(rival("mdlm"), tmp_path / "b.jsonl", "mdlm", other)


def test_the_record_says_how_it_was_drawn_and_the_result_what_it_took(rival, succeed, tmp_path):
    run, out = rival("mdlm"), tmp_path / "remdm.jsonl"
    draw = ("sample", "--run", run, "--sampler", "remdm", "--num-samples", 4, "--steps", 6, "--device", "cpu")
    result = succeed(*draw, "--top-p", 0.8, "--schedule", "cap", "--output", out)
    record = json.loads((tmp_path / "remdm.jsonl.meta.json").read_text())
    assert record["config"]["sampler"] == {
        "name": "remdm", "steps": 6, "top_p": 0.8, "nucleus_rule": "exclusive", "end": "argmax", "drawing": "exact",
        "schedule": "cap", "eta": 0.008, "t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9,
    }  # fmt: skip
    opened = TrainedTokenRun(run, CPU)
    assert (record["method"], record["precision"]) == ("mdlm", "fp32")
    assert (record["checkpoint"], record["step"]) == (opened.checkpoint.digest, opened.checkpoint.step)
    assert "decoder" not in record
    assert record.items() <= result.items()
    assert result["rows"] == 7
    assert 0 < result["evaluations_per_text"] <= 7


def test_evaluations_are_those_that_happened(rival, monkeypatch):
    opened = TrainedTokenRun(rival("mdlm"), CPU)
    counted, hidden = [], opened.network.hidden
    monkeypatch.setattr(opened.network, "hidden", lambda e, *rest: counted.append(len(e)) or hidden(e, *rest))
    config = settings("mdlm", {"steps": 64})
    generator = opened.drawing(config)
    for number in range(3):  # texts one by one: most of the rows ask nothing of the network
        generator.tokens(config.sampler, text_seeds(0, number, number + 1))
    figures = generator.figures()
    assert figures == {"rows": 65, "evaluations_per_text": sum(counted) / 3}
    assert figures["evaluations_per_text"] < 20  # of 16 tokens, some at once
    generator.tokens(config.sampler, text_seeds(0, 0, 3))
    assert generator.figures()["evaluations_per_text"] == sum(counted) / 6


@pytest.mark.parametrize("method", ["mdlm", "duo", "candi", "flm"])
def test_the_first_sampler_of_a_method_is_its_default_and_a_dry_run_counts_it(rival, succeed, tmp_path, method):
    draw = ("sample", "--run", rival(method), "--num-samples", 3, "--device", "cpu")
    plan = succeed(*draw, "--dry-run")
    rows = 129 if method in ("mdlm", "duo") else 128
    assert (plan["texts"], plan["rows"], plan["evaluations_at_most"]) == (3, rows, 3 * rows)
    shapes, width, condition = TrainedTokenRun(rival(method), CPU).shapes, 16, 16
    length = shapes.seq_len
    block = 2 * length * 12 * width**2 + 4 * length**2 * width + 2 * condition * 6 * width
    around = 2 * (8 * condition + condition**2 + condition * 2 * width) + 2 * length * width * shapes.vocab_size
    assert plan["flops"] == 3 * rows * (block + around)
    result = succeed(*draw, "--steps", 2, "--output", tmp_path / "s.jsonl")
    assert result["config"]["sampler"]["name"] == {"candi": "cached", "flm": "euler"}.get(method, "ancestral")


def test_what_is_printed_names_sampler_rows_and_evaluations(rival, ldlm, tmp_path):
    draw = ("sample", "--run", rival("duo"), "--sampler", "psi", "--steps", 4, "--num-samples", 2, "--device", "cpu")
    result = ldlm(*draw, "--output", tmp_path / "s.jsonl")
    assert "2 texts, sampler psi of duo, 4 steps each, 5 rows and 5.0 evaluations of the network" in result.stdout
    again = ldlm(*draw, "--output", tmp_path / "s.jsonl")
    one = ldlm("sample", "--run", rival("flm"), "--steps", 1, "--num-samples", 2, "--output", tmp_path / "one.jsonl")
    assert ", 1 row and 1.0 evaluations" in one.stdout
    assert "nothing to do" in again.stderr
    assert "sampler psi of duo, 4 steps each" in again.stdout


def test_settings_read_back_as_themselves(rival, ldlm, tmp_path):
    sets = ("--set", "sampler.mode_high=rescale", "--set", "sampler.t_on=0.6")
    given = ("--run", rival("duo"), "--sampler", "psi", "--mode", "cap", "--eta", 0.2, *sets)
    first = ldlm("sample", *given, "--dump-config").stdout
    (tmp_path / "c.yaml").write_text(first)
    again = ldlm("sample", "--run", rival("duo"), "--config", tmp_path / "c.yaml", "--dump-config")
    assert again.stdout == first
    assert "mode: cap" in first
    other = ldlm("sample", "--run", rival("duo"), "--config", tmp_path / "c.yaml", "--eta", 0.3, "--dump-config")
    assert other.stdout == first.replace("eta: 0.2", "eta: 0.3")


def test_help_says_what_flags_of_ldlm_s_sampler_are_for_a_rival(ldlm):
    said = " ".join(ldlm("sample", "--help").stdout.split())
    for words in (
        "[default: 32]; for mdlm, duo: steps, one evaluation each at most; one more removes any noise that is left "
        "[default: 128]; for candi:",
        "[default: 0.0]; for remdm of mdlm: η; none means the published one",
        "for psi of duo: η; published: 0.05 for rescale-duo, and 0.01 with p = 0.95 for profile loop [default: 0.05]",
        "[default: 0.0]; for candi: temperature at which tokens are drawn, more than 0 [default: 1.0]",
    ):
        assert words in said
    assert "for remdm of mdlm" not in ldlm("sweep", "--help").stdout


def test_settings_that_change_nothing_are_in_no_table():
    def idle(method, **given):
        chosen = configs.token_sampler(method, given)
        return configs.to_dict(chosen).keys() - configs.used(chosen).keys()

    loop = {"t_on", "t_off", "alpha_on"}
    assert idle("mdlm", name="remdm") == loop
    assert idle("mdlm", name="remdm", schedule="conf") == {"eta", *loop}
    assert idle("mdlm", name="remdm", schedule="loop") == set()
    assert idle("duo", name="psi") == loop
    assert idle("duo", name="psi", mode="ancestral") == {"eta", *loop}
    assert idle("duo", name="psi", mode_high="cap") == {"alpha_on"}
    assert idle("duo", name="psi", mode="ancestral", profile="loop") == {"eta"}
    assert idle("candi") == idle("flm") == idle("duo", top_p=0.9) == set()
    assert idle("duo") == {"nucleus_rule"}


def test_a_record_with_a_setting_that_this_version_does_not_know_is_compared_as_it_is():
    settings = {"name": "remdm", "newer": 1}
    assert configs.used_in_record("mdlm", settings) == settings
    for given in (("remdm", "schedule=conf"), ("psi", "mode=ancestral")):  # as they are dumped they are read
        base = configs.assignments([f"sampler.name={given[0]}", f"sampler.{given[1]}"])
        method = "mdlm" if given[0] == "remdm" else "duo"
        dumped = configs.to_dict(configs.drawing_config(SampleConfig, method, base))
        assert configs.to_dict(configs.drawing_config(SampleConfig, method, dumped)) == dumped


# ----------------------------------------------------------------------------------------------------------------------
# What is refused, in one line


REFUSED = [
    ("mdlm", ("--sampler", "psi"), "a run of method mdlm has no sampler 'psi'; it draws with ancestral or remdm"),
    ("mdlm", ("--sampler", "paper"), "no sampler 'paper'; it draws with ancestral or remdm"),
    ("flm", ("--sampler", "ancestral"), "a run of method flm has no sampler 'ancestral'; it draws with euler"),
    ("mdlm", ("--sampler", "remdm", "--eta", 1.5), "sampler.eta must be at most 1, not 1.5"),
    ("duo", ("--sampler", "psi", "--mode", "kappa", "--eta", -0.1), "sampler.eta must be at least 0, not -0.1"),
    ("mdlm", ("--top-p", 0), "sampler.top_p must be more than 0, not 0"),
    ("mdlm", ("--top-p", 1.1), "sampler.top_p must be at most 1, not 1.1"),
    ("candi", ("--steps", 0), "sampler.steps must be at least 1, not 0"),
    ("mdlm", ("--schedule", "linear"), "sampler.schedule is a setting of remdm of mdlm, and not of ancestral of mdlm"),
    ("mdlm", ("--sampler", "remdm", "--schedule", "linear"), "sampler.schedule is one of rescale, cap, conf, loop"),
    (
        "mdlm",
        ("--solver", "heun"),
        "sampler.solver is a setting of LDLM, and not of ancestral of mdlm, which has steps",
    ),
    ("flm", ("--top-p", 0.9), "sampler.top_p is a setting of mdlm, duo, and not of euler of flm, which has steps"),
    ("flm", ("--temperature", 1), "sampler.temperature is a setting of LDLM, candi, and not of euler of flm"),
    ("candi", ("--decoder", "joint"), "--decoder is for runs of LDLM, and this one is of candi"),
    ("mdlm", ("--set", "prompting.stepz=1"), "prompting is for runs of LDLM, and this one is of mdlm"),
    ("mdlm", ("--trace-frames", 3), "--trace-frames is for runs of LDLM, and this one is of mdlm"),
    ("mdlm", ("--set", "sampler.stepz=3"), "unknown setting sampler.stepz; did you mean sampler.steps?"),
    (
        "mdlm",
        ("--sampler", "remdm", "--schedule", "conf", "--eta", 0.5),
        "sampler.eta changes nothing with sampler.schedule=conf; leave it out, or choose another schedule",
    ),
    ("duo", ("--sampler", "psi", "--mode", "ancestral", "--eta", 0.5), "sampler.eta changes nothing with sampler.mode"),
    (
        "duo",
        ("--sampler", "psi", "--set", "sampler.profile=loop", "--set", "sampler.t_on=0.01"),
        "t_off=0.05 must be less than t_on=0.01: times fall while a text is drawn",
    ),
    (
        "mdlm",
        ("--sampler", "remdm", "--schedule", "loop", "--set", "sampler.t_off=0.6"),
        "t_off=0.6 must be less than t_on=0.55",
    ),
    ("mdlm", ("--checkpoint", "step-00000001"), "there is no checkpoint 'step-00000001'"),
]


@pytest.mark.parametrize(("method", "arguments", "said"), REFUSED)
def test_settings_that_do_not_fit_are_refused_by_name(rival, refuse, tmp_path, method, arguments, said):
    assert said in refuse("sample", "--run", rival(method), *arguments, "--output", tmp_path / "s.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_rivals_are_refused_for_a_run_of_ldlm(trained, refuse, tmp_path):
    out = ("--output", tmp_path / "s.jsonl")
    line = refuse("sample", "--run", trained, "--top-p", 0.9, *out)
    assert "sampler.top_p is a setting of mdlm, duo, and not of LDLM, which has steps" in line
    assert line.endswith("temperature")
    assert "there is no sampler 'remdm'; choose paper" in refuse("sample", "--run", trained, "--sampler", "remdm", *out)


def test_a_run_of_a_method_that_is_not_known_is_refused(rival, refuse, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("method: later\n")
    assert "is of the method 'later', which this ldlm does not know" in refuse("sample", "--run", run)
