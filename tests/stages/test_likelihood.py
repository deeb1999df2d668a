"""`ldlm likelihood`: rows, the choice of τ, resuming, rivals and causal models beside LDLM, and what is refused."""

import gc
import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldlm import artifact, files, locks
from ldlm import config as configs
from ldlm.baselines import bounded
from ldlm.config import DecoderNoise, ExtractConfig, LikelihoodConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.evaluation import likelihood as bound
from ldlm.features.store import FeatureStore
from ldlm.model.diffusion import Schedule
from ldlm.model.token_loss import TokenLosses
from ldlm.pages.chart import number
from ldlm.sampling.generation import Decoder
from ldlm.sampling.likelihood import RunBound
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import extract_features, likelihood, report, stories, train
from ldlm.stories.process import STORIES
from ldlm.training import checkpoint

CPU = torch.device("cpu")
CONFIG = LikelihoodConfig(split="train", rows=16, taus=(2.0, 1.0, 0.5), batch_size=5, device="cpu")
REPORTED = np.arange(1, 16, 2)  # of those 16 rows; the others choose τ


@pytest.fixture(scope="module")
def made(trained, store, tmp_path_factory):
    """The finished artefact of `trained` under `CONFIG`; read only."""
    return likelihood.run(CONFIG, trained, store, tmp_path_factory.mktemp("likelihood") / "out")


def unigram_bits(store, rows):
    """Entropy of the tokens of rows, in bits."""
    _, counts = np.unique(FeatureStore(store).split("train").read_tokens(rows), return_counts=True)
    p = counts / counts.sum()
    return -(p * np.log2(p)).sum()


def test_the_figures_are_those_of_the_rows_that_did_not_choose_the_level(made, trained, store):
    found = made.manifest
    assert (found["rows_chosen_on"], found["rows_reported"], found["seq_len"]) == (8, 8, 16)
    assert [line["row"] for line in found["rows"]] == list(range(1, 16, 2))
    mean = -np.mean([line["loglikelihood"] for line in found["rows"]])
    assert found["bits_per_token"] == pytest.approx(mean / 16 / math.log(2))
    curve = {point["tau"]: point for point in found["curve"]}
    assert list(curve) == [2.0, 1.0, 0.5]
    assert found["tau"] == min(curve, key=lambda tau: curve[tau]["chosen_by"])
    assert found["bits_per_token"] == pytest.approx(curve[found["tau"]]["bits_per_token"])
    assert found["t"] == pytest.approx(2 / math.pi * math.atan(found["tau"] / 3))
    assert found["passes"] == 2 and found["is"] == "bound" and found["decoder"] == "joint"
    assert not (made.path / likelihood.KEPT).exists()


def test_a_model_that_has_learned_nothing_does_not_beat_the_frequencies_of_tokens(made, store):
    assert made.manifest["bits_per_token"] > unigram_bits(store, REPORTED)


def test_the_bound_is_that_of_the_runs_own_parts(made, trained, store):
    """The latents of the store's states, a denoiser that conditions on its own estimate, and sums over elements."""
    run = TrainedRun(trained, CPU)
    parts, tokens = FeatureStore(store).split("train").read_rows(REPORTED)
    h, w = torch.from_numpy(parts["hidden"]), torch.from_numpy(tokens).long()
    mu = run.model.latent_encoder(h).detach()

    @torch.no_grad()
    def estimate(z, t):
        first = run.model.denoiser(z, t.float(), torch.zeros_like(z))
        return run.model.denoiser(z, t.float(), first)

    @torch.no_grad()
    def decode(z, t):
        tau = 3 * torch.tan(math.pi * t / 2)
        logits = run.model.token_decoder(run.model.latent_decoder(z * (1 + tau**2).sqrt()[:, None, None].float()))
        return -logits.double().log_softmax(-1).gather(-1, w[..., None]).sum((1, 2))

    found = bound.bounds(
        run.schedule, mu, torch.from_numpy(REPORTED), denoise=estimate, decode=decode, taus=CONFIG.taus, draws=2
    )
    bits = (found.decoding_BT + found.kl_BT).mean(0) / 16 / math.log(2)
    assert [point["bits_per_token"] for point in made.manifest["curve"]] == pytest.approx(bits.tolist(), rel=1e-5)


class Seen(torch.nn.Module):
    """A decoder that keeps what it reads, of rows of two tokens that cost a nat each."""

    def losses(self, z, tokens):
        self.z = z
        return TokenLosses(torch.ones(()), torch.ones(tokens.shape), tokens > 0)


@pytest.mark.parametrize(
    ("noise", "middle", "scaled"),
    [
        (DecoderNoise("additive", 3.0), 3.0, True),
        (DecoderNoise("diffused", 0.5), 3.0, False),
        (DecoderNoise("smoothed"), 1.0, True),
        (DecoderNoise("additive", 0.0), 1.0, True),
    ],
    ids=str,
)
def test_decoders_read_noisy_latents_as_in_their_training_and_levels_are_around_that_noise(noise, middle, scaled):
    run: Any = SimpleNamespace(schedule=Schedule(), noise=lambda name: noise)
    own = RunBound(run, Decoder("seen", Seen()))
    assert own.levels()[6] == pytest.approx(middle)
    z_t, t, w = torch.ones(2, 3, 4), torch.tensor([0.5, 0.25], dtype=torch.float64), torch.ones(2, 2)
    assert own.coding(w, z_t, t).tolist() == [2.0, 2.0]
    alpha = 1 / torch.sqrt(1 + (3 * torch.tan(math.pi * t / 2)) ** 2)
    expected = 1 / alpha if scaled else torch.ones(2)
    torch.testing.assert_close(own.decoder.logits.z[:, 0, 0].double(), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupted_one_goes_on_where_it_stopped(made, trained, store, tmp_path, interrupted, notes, at):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        likelihood.run(CONFIG, trained, store, out, progress=interrupted(at=at))
    kept = out / likelihood.KEPT
    whole = kept.read_text()
    kept.write_text(whole + '{"kl": [1')  # a line that a kill cut off
    assert not artifact.open_artifact(out, "likelihood", complete=False).complete
    again = likelihood.run(CONFIG, trained, store, out, progress=notes)
    assert again.manifest["rows"] == made.manifest["rows"]
    assert again.manifest["tau"] == 2.0  # next to nothing is learned, so that the least said of the latents is best
    assert "the bound is lowest at the end of the curve, τ = 2; --taus beyond it" in notes.lines[-1]
    assert likelihood.run(CONFIG, trained, store, out, progress=notes).complete
    assert "nothing to do" in notes.lines[-1]


def test_a_store_that_is_replaced_meanwhile_gives_no_figures(trained, store_copy, tmp_path, monkeypatch):
    real = RunBound.of

    def of(run_bound, split, rows, *arguments):
        found = real(run_bound, split, rows, *arguments)
        (store_copy / "store.json").write_text("of another")
        return found

    monkeypatch.setattr(RunBound, "of", of)
    with pytest.raises(InputError, match=f"{store_copy} was replaced while it was read"):
        likelihood.run(CONFIG, trained, store_copy, tmp_path / "out")
    assert (tmp_path / "out" / likelihood.KEPT).read_text() == ""


def test_a_result_of_other_rows_by_an_earlier_version_is_not_taken_for_this_ones(made, trained, store, tmp_path):
    out = shutil.copytree(made.path, tmp_path / "out")
    record = files.read_json(out / "artifact.json")
    del record["inputs"]["halves"]
    files.write_json(out / "artifact.json", record)
    with pytest.raises(InputError, match="is of the second half of the rows, as earlier versions reported"):
        likelihood.run(CONFIG, trained, store, out)
    assert artifact.open_artifact(out, "likelihood").manifest == made.manifest  # it still opens
    files.write_json(out / "artifact.json", {key: record[key] for key in ("kind", "schema")} | {"emptied": True})
    likelihood.check_halves(out)  # that --overwrite was killed at
    files.write_json(out / "artifact.json", record)
    assert likelihood.run(CONFIG, trained, store, out, overwrite=True).manifest["rows"] == made.manifest["rows"]


def test_the_check_of_several_runs_has_one_in_memory_at_a_time(trained, store, monkeypatch):
    opened, earlier = bounded.opened, list[weakref.ref[bounded.Subject]]()

    def watched(*given):
        gc.collect()
        assert not any(subject() for subject in earlier)
        subject = opened(*given)
        earlier.append(weakref.ref(subject))
        return subject

    monkeypatch.setattr(bounded, "opened", watched)
    likelihood.check_all(CONFIG, [trained] * 3, (), store)
    assert len(earlier) == 3


def test_two_processes_do_not_write_lines_of_the_same_rows(trained, store, tmp_path):
    (tmp_path / "out").mkdir()
    with locks.exclusive_lock(tmp_path / "out"), pytest.raises(InputError, match="another process is at work"):
        likelihood.run(CONFIG, trained, store, tmp_path / "out")
    assert likelihood.run(CONFIG, trained, store, tmp_path / "out").complete


def test_another_seed_is_another_estimate_of_the_same_within_its_error(made, trained, store, tmp_path):
    other = configs.from_dict(LikelihoodConfig, {**configs.to_dict(CONFIG), "seed": 1})
    again = likelihood.run(other, trained, store, tmp_path / "out").manifest
    off, error = again["bits_per_token"] - made.manifest["bits_per_token"], again["estimate_se"]
    assert again["tau"] == made.manifest["tau"]
    assert 0 < abs(off) < 6 * error


def test_the_batch_does_not_matter(made, trained, store, tmp_path):
    other = configs.from_dict(LikelihoodConfig, {**configs.to_dict(CONFIG), "batch_size": 16})
    again = likelihood.run(other, trained, store, tmp_path / "out")
    nats = [[line["loglikelihood"] for line in one.manifest["rows"]] for one in (made, again)]
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# By the command, beside others


def test_one_table_of_all_methods_and_a_causal_model(ldlm, succeed, run_copy, token_runs, gpt2, store, tmp_path):
    runs = [run_copy]
    for method in ("mdlm", "duo", "candi", "flm"):
        runs.append(shutil.copytree(token_runs(method), tmp_path / f"run-{method}"))
    all_of_them = ("likelihood", "--run", *runs, "--causal", gpt2, "--features", store, "--split", "train")
    few = ("--rows", 16, "--taus", 2, 1, "--device", "cpu")
    found = succeed(*all_of_them, *few)["runs"]
    by_method = {one["method"]: one for one in found}
    assert [one["is"] for one in found] == ["bound", "bound", "bound", "none", "none", "exact"]
    for method in ("ldlm", "mdlm", "duo", "causal"):
        assert [line["row"] for line in by_method[method]["rows"]] == list(range(1, 16, 2))
        assert by_method[method]["bits_per_token"] > unigram_bits(store, REPORTED) - 1
    assert (run_copy / "likelihood" / "manifest.json").exists()

    # Next to nothing has been learned of 320 tokens: uniform over them is log2(320) = 8.3 bits.
    for method in ("mdlm", "duo", "causal"):
        assert by_method[method]["bits_per_token"] == pytest.approx(math.log2(320), abs=0.8)
    assert {line["standard_error"] for line in by_method["causal"]["rows"]} == {0.0}

    for run in runs[:2]:
        bits = f"{number(by_method['ldlm' if run == run_copy else 'mdlm']['bits_per_token'])} bits per token of all 16"
        assert bits in report.run(run).read_text(encoding="utf-8")
    said = ldlm(*all_of_them, *few).stdout  # from what is kept
    assert "run-flm: no likelihood, because its loss bounds no likelihood (flm)" in said
    assert "8 train rows, per token of all 16 of a row" in said
    assert succeed(*all_of_them[:-2], *few, "--dry-run", "--split", "train")["passes_per_row"][str(run_copy)] == 8


def test_a_dry_run_tells_runs_apart_whose_folders_have_one_name(trained, token_runs, store, tmp_path):
    runs = []
    for place, run in (("a", trained), ("b", token_runs("mdlm"))):
        (tmp_path / place).mkdir()
        runs.append(tmp_path / place / "run")
        runs[-1].symlink_to(run)
    passes = likelihood.plan(CONFIG, runs, store)["passes_per_row"]
    assert passes.keys() == {str(run) for run in runs}
    assert passes[str(runs[0])] != passes[str(runs[1])]


def test_runs_in_folders_of_one_name_are_told_apart(succeed, ldlm, refuse, run_copy, token_runs, store, tmp_path):
    runs = [tmp_path / seed / "run" for seed in ("seed-0", "seed-1", "seed-2")]
    for path, source in zip(runs, (run_copy, token_runs("mdlm"), token_runs("candi")), strict=True):
        shutil.copytree(source, path)
    of = ("likelihood", "--features", store, "--split", "train", "--rows", 8, "--taus", 2, "--device", "cpu", "--run")
    found = succeed(*of, *runs)["runs"]
    assert [one["run"] for one in found] == ["seed-0-run", "seed-1-run", "seed-2-run"]
    assert [one["path"] for one in found] == [str(path) for path in runs]
    said = ldlm(*of, *runs).stdout
    assert all(name in said for name in ("seed-0-run  ", "seed-1-run  ", "seed-2-run: no", "seed-0-run, decoder joint"))
    assert "name a folder twice" in refuse(*of, runs[0], runs[0])

    record = files.read_json(runs[1] / "likelihood" / "artifact.json")
    del record["inputs"]["halves"]
    files.write_json(runs[1] / "likelihood" / "artifact.json", record)
    shutil.rmtree(runs[0] / "likelihood")
    assert "of the second half of the rows" in refuse(*of, *runs)
    assert not (runs[0] / "likelihood").exists()


def test_causal_models_in_folders_of_one_name_are_told_apart(succeed, refuse, gpt2, store, tmp_path):
    models = [Path(shutil.copytree(gpt2, tmp_path / place / "encoder")) for place in ("a", "b")]
    of = ("likelihood", "--features", store, "--split", "train", "--rows", 8, "--device", "cpu", "--causal")
    assert [one["run"] for one in succeed(*of, *models)["runs"]] == [str(model) for model in models]
    assert succeed(*of, models[0])["run"] == "encoder"
    assert "name a causal model twice" in refuse(*of, models[0], models[0])


@pytest.mark.parametrize("mistyped", [("--run", "missing"), ("--causal", "missing"), ("--causal", "bigrams")])
def test_all_models_are_looked_at_before_the_first_is_measured(refuse, run_copy, bigrams, store, tmp_path, mistyped):
    kind, name = mistyped
    other = bigrams if name == "bigrams" else tmp_path / name
    runs = ("--run", run_copy, other) if kind == "--run" else ("--run", run_copy, kind, other)
    line = refuse("likelihood", *runs, "--features", store, "--split", "train", "--rows", 8, "--device", "cpu")
    assert str(other) in line
    assert not (run_copy / "likelihood").exists()


def test_all_results_are_looked_at_before_the_first_is_measured(
    refuse, succeed, run_copy, token_runs, gpt2, store, tmp_path
):
    other = Path(shutil.copytree(token_runs("mdlm"), tmp_path / "run-mdlm"))
    of = ("likelihood", "--features", store, "--split", "train", "--rows", 8, "--device", "cpu", "--run")
    succeed(*of, other)
    line = refuse(*of, run_copy, other, "--draws", 3)
    assert line == f"{other / 'likelihood'} was made with other settings (draws: 2 -> 3); add --overwrite"
    assert not (run_copy / "likelihood").exists()
    line = refuse(*of, other, "--draws", 3, "--causal", gpt2)
    assert line.endswith("(draws: 2 -> 3); choose another --output, or add --overwrite")  # which is for one run
    succeed(*of, other, "--draws", 3, "--causal", gpt2, "--output", tmp_path / "out")
    shutil.rmtree(other / "likelihood")
    artifact.begin(other / "likelihood", "likelihood", configs.from_dict(LikelihoodConfig, {}), {})
    record = files.read_json(other / "likelihood" / "artifact.json")
    files.write_json(other / "likelihood" / "artifact.json", {**record, "kind": "run"})
    assert "which --overwrite doesn't replace" in refuse(*of, run_copy, other, "--overwrite")
    assert not (run_copy / "likelihood").exists()


def test_an_encoder_that_is_gone_is_found_before_the_rivals_are_measured(
    refuse, few, gpt2, train_config, token_config, tmp_path
):
    encoder = Path(shutil.copytree(gpt2, tmp_path / "encoder"))
    store = extract_features.run(replace(few, codec="online", encoder=str(encoder)), tmp_path / "features").path
    ours = train.run(train_config, store, tmp_path / "run").path
    rival = train.run(token_config("mdlm"), store, tmp_path / "run-mdlm").path
    shutil.rmtree(encoder)
    of = ("--features", store, "--device", "cpu", "--run")
    assert str(encoder) in refuse("likelihood", *of, rival, ours, "--split", "train", "--rows", 8)
    assert not (rival / "likelihood").exists()
    both, out = (ours, Path(shutil.copytree(ours, tmp_path / "again"))), tmp_path / "both"
    assert str(encoder) in refuse("interpolate", *of, *both, "--pairs", 2, "--scorer", gpt2, "--output", out)
    assert not out.exists()


def test_a_comparison_of_runs_that_are_measured_needs_no_encoder(succeed, few, gpt2, train_config, tmp_path):
    encoder = Path(shutil.copytree(gpt2, tmp_path / "encoder"))
    store = extract_features.run(replace(few, codec="online", encoder=str(encoder)), tmp_path / "features").path
    ours = train.run(train_config, store, tmp_path / "run").path
    both, out = (ours, Path(shutil.copytree(ours, tmp_path / "again"))), tmp_path / "both"
    words = ("interpolate", "--features", store, "--device", "cpu", "--run", *both, "--pairs", 2, "--scorer", gpt2)
    found = succeed(*words, "--output", out)
    (out / "manifest.json").unlink()  # killed just before its end
    shutil.rmtree(encoder)
    assert succeed(*words, "--output", out)["runs"] == found["runs"]


def test_what_is_for_a_result_is_refused_where_no_run_has_one(refuse, succeed, token_runs, store, tmp_path):
    base = ("likelihood", "--features", store, "--split", "train", "--run", token_runs("candi"))
    assert succeed(*base)["is"] == "none"
    for flags in (("--output", tmp_path / "out"), ("--overwrite",), ("--taus", 2), ("--draws", 4)):
        line = refuse(*base, *flags)
        assert flags[0].removeprefix("--") in line and "leave it out" in line


def test_a_likelihood_that_is_not_finite_is_refused(refuse, run_copy, store):
    latest = checkpoint.latest(run_copy / "checkpoints").path
    for path in latest.glob("*.safetensors"):
        weights = load_file(path)
        save_file({name: torch.full_like(weight, math.nan) for name, weight in weights.items()}, path)
    hashes = {path.name: files.sha256_file(path) for path in latest.iterdir() if path.name != "manifest.json"}
    files.write_json(latest / "manifest.json", {"sha256": hashes})
    rows = ("--features", store, "--split", "train", "--rows", 8, "--device", "cpu")
    line = refuse("likelihood", "--run", run_copy, *rows)
    assert f"{run_copy} gives row 0 a likelihood that is not finite" in line


def test_a_causal_models_likelihood_is_the_sum_over_its_tokens(gpt2, store):
    from transformers import AutoModelForCausalLM

    found = likelihood.of_causal(CONFIG, str(gpt2), store)
    tokens = torch.from_numpy(FeatureStore(store).split("train").read_tokens(REPORTED)).long()
    log_p = AutoModelForCausalLM.from_pretrained(gpt2)(tokens).logits[:, :-1].double().log_softmax(-1)
    exact = log_p.gather(-1, tokens[:, 1:, None]).sum((1, 2))
    assert [line["loglikelihood"] for line in found["rows"]] == pytest.approx(exact.tolist(), rel=1e-5)
    assert found["bits_per_inner_token"] == pytest.approx(-exact.mean().item() / 14 / math.log(2), rel=1e-5)


def test_what_does_not_compare_or_has_no_likelihood_is_refused(refuse, trained, gpt2, bert, bigrams, store, tmp_path):
    base = ("likelihood", "--features", store, "--device", "cpu", "--split", "train")
    assert "--run is missing" in refuse(*base)
    assert "--features is missing" in refuse("likelihood", "--run", trained)
    assert "has another tokenizer" in refuse(*base, "--causal", bigrams)
    assert "--output is for one run" in refuse(*base, "--run", trained, trained, "--output", tmp_path / "out")
    assert "rows must be at least 4" in refuse(*base, "--run", trained, "--rows", 2)
    assert "taus must be at least 1e-09" in refuse(*base, "--run", trained, "--taus", 0)
    assert "taus must be at least 1e-09" in refuse(*base, "--run", trained, "--taus", 1e-300)
    assert "taus must be at most 1000000000.0" in refuse(*base, "--run", trained, "--taus", 1, 1e200)
    assert "has no decoder 'nosuch'" in refuse(*base, "--run", trained, "--decoder", "nosuch")
    model = tmp_path / "model"
    model.mkdir()
    files.write_json(model / "config.json", {"model_type": "ldlm"})
    assert "is an exported model" in refuse(*base, "--run", model)
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_tokenizer_is_not_the_runs(trained, store):
    """Though all else is, as it can be in one of kind scratch, whose states no encoder has made."""
    run = TrainedRun(trained, torch.device("cpu"))
    run.check_store(FeatureStore(store))
    run.features["encoder"]["tokenizer"] = "0" * 64
    with pytest.raises(InputError, match="was made with another tokenizer"):
        run.check_store(FeatureStore(store))


# ----------------------------------------------------------------------------------------------------------------------
# A source of known entropy


@pytest.mark.slow
def test_the_bound_of_stories_is_not_under_their_entropy(succeed, train_config, tmp_path):
    """Rows are cut from a stationary stream, so a row of n words has no less entropy than n times that of a word."""
    stories.run(configs.StoriesConfig(documents=300), tmp_path / "stories.txt", tmp_path / "words")
    succeed(
        "pretrain-encoder", "--data", tmp_path / "stories.txt", "--tokenizer", tmp_path / "words", "--layers", 4,
        "--width", 16, "--heads", 2, "--positions", 32, "--steps", 2, "--batch-size", 4, "--device", "cpu",
        "--output", tmp_path / "encoder",
    )  # fmt: skip
    extract = ExtractConfig(
        encoder=str(tmp_path / "encoder"), data=(str(tmp_path / "stories.txt"),), seq_len=32, validation_docs=50,
        shard_rows=128, batch_size=32, device="cpu",
    )  # fmt: skip
    store = extract_features.run(extract, tmp_path / "features").path
    tiny = configs.merge(configs.to_dict(train_config), {"steps": 30, "eval_every": 30, "save_every": 30})
    trained = train.run(configs.from_dict(TrainConfig, tiny), store, tmp_path / "run").path
    found = likelihood.run(LikelihoodConfig(taus=(2.0, 1.0), device="cpu"), trained, store).manifest
    expected = STORIES.expected
    entropy = expected.nats / (expected.words + 1) * 30  # a story and the EOS after it; 30 of 32 tokens are not fixed
    assert -np.mean([line["loglikelihood"] for line in found["rows"]]) > entropy
    assert json.loads((trained / "likelihood" / "manifest.json").read_text())["split"] == "validation"
