"""`ldlm interpolate`: paths between held-out texts and between given ones, of one run and of several."""

import gc
import json
import shutil
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ldlm import artifact, locks
from ldlm import config as configs
from ldlm.cli.interpolate import _table
from ldlm.config import InterpolateConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics, smoothness
from ldlm.evaluation.smoothness import edit_distance
from ldlm.features import text
from ldlm.features.store import FeatureStore
from ldlm.pages import drawing, results
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import extract_features, interpolate, train
from ldlm.training import heldout

CPU = torch.device("cpu")
TEXTS = ("A teacher found rain.", "Nobody lost an answer.")


def made(train_config, store, out, *, sigma_dec=1.0, space="ldlm", seed=0):
    """A run that says something else for every latent: decoders that have hardly learned take no favourites."""
    body = {"kind": "self_attention", "position_std": 1.0}
    changes = {
        "steps": 1,
        "seed": seed,
        "model": {"autoencoder": body, "space": space},
        "recipe": {"sigma_dec": sigma_dec},
    }
    changes["recipe"]["reconstruction"] = "ce" if space == "scratch" else "mse"
    return train.run(configs.from_dict(TrainConfig, configs.merge(configs.to_dict(train_config), changes)), store, out)


@pytest.fixture(scope="module")
def trained(train_config, store, tmp_path_factory):
    """A run of one step; read only."""
    return made(train_config, store, tmp_path_factory.mktemp("first") / "run").path


@pytest.fixture(scope="module")
def other(train_config, store, tmp_path_factory):
    """Another of the same name."""
    return made(train_config, store, tmp_path_factory.mktemp("second") / "run", sigma_dec=0.5, seed=1).path


@pytest.fixture(scope="module")
def config(gpt2):
    return InterpolateConfig(pairs=3, points=5, scorer=str(gpt2), device="cpu")


@pytest.fixture(scope="module")
def measured(config, trained, store, tmp_path_factory):
    """The artefact of either path, by name."""
    root = tmp_path_factory.mktemp("measured")
    return {
        path: interpolate.run(replace(config, path=path), trained, store, root / path)
        for path in ("linear", "spherical")
    }


def ends_of(run, store, pairs, seed=0):
    """z_A and z_B of the drawn pairs."""
    split = FeatureStore(store).held_out()
    rows = smoothness.draw_pairs(split.rows, pairs, seed)
    return [heldout.encode_rows(run.model, split, part, CPU)[0] for part in rows]


@torch.no_grad()
def decoded(run, z_BNC):
    return run.model.token_decoder(run.model.latent_decoder(z_BNC)).argmax(-1).numpy()


def texts_of(result):
    """Texts by (pair, a)."""
    lines = map(json.loads, (result.path / "texts.jsonl").read_text(encoding="utf-8").splitlines())
    return {(line["pair"], line["a"]): line["text"] for line in lines}


# ----------------------------------------------------------------------------------------------------------------------
# Pairs of held-out texts


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_the_ends_are_the_reconstructions_of_the_texts(measured, trained, store, path):
    run, found = TrainedRun(trained, CPU), texts_of(measured[path])
    reconstructed = [metrics.decode_tokens(run.tokenizer, decoded(run, z)) for z in ends_of(run, store, 3)]
    for a, texts in zip((0, 1), reconstructed, strict=True):
        assert [found[pair, a] for pair in range(3)] == texts
    assert len({*reconstructed[0], *reconstructed[1]}) > 3  # so that the ends are told apart


def test_the_points_between_are_decoded_from_where_the_path_says(measured, trained, store):
    run, found = TrainedRun(trained, CPU), texts_of(measured["linear"])
    z_A, z_B = ends_of(run, store, 3)
    for a in (0.25, 0.75):
        tokens = decoded(run, (1 - a) * z_A + a * z_B)
        assert [found[pair, a] for pair in range(3)] == metrics.decode_tokens(run.tokenizer, tokens)
    linear, spherical = (texts_of(measured[path]) for path in ("linear", "spherical"))
    assert any(linear[pair, 0.5] != spherical[pair, 0.5] for pair in range(3))


def test_edits_are_counted_from_point_to_point_and_from_end_to_end(measured, trained, store):
    run, manifest = TrainedRun(trained, CPU), measured["linear"].manifest
    z_A, z_B = ends_of(run, store, 3)
    tokens = [decoded(run, (1 - a) * z_A + a * z_B) for a in (0, 0.25, 0.5, 0.75, 1)]
    steps = [edit_distance(tokens[i], tokens[i + 1]) for i in range(4)]
    assert [point["edits"] for point in manifest["points"]] == [None, *(step.mean() for step in steps)]
    assert manifest["edits"] == {
        "path": pytest.approx(np.sum(steps) / 3),
        "ends": edit_distance(tokens[0], tokens[-1]).mean(),
    }
    assert manifest["edits"]["path"] >= manifest["edits"]["ends"] > 0
    low, high = manifest["points"][2]["intervals"]["edits"]
    assert min(steps[1]) <= low <= steps[1].mean() <= high <= max(steps[1])


def test_the_record_has_figures_intervals_and_what_they_were_made_with(measured, gpt2):
    manifest = measured["spherical"].manifest
    assert measured["spherical"].kind == "interpolation"
    assert (manifest["path"], manifest["pairs"], manifest["sigma_dec"]) == ("spherical", 3, 1.0)
    assert (manifest["scorer"], manifest["protocol"], manifest["max_tokens"]) == (str(gpt2), "mdlm", 16)
    for figures in (*manifest["points"], manifest["mean"], manifest["real"]):
        assert 0 <= figures["diversity"] <= 1
        for name in ("gen_ppl", "entropy"):
            low, high = figures["intervals"][name]
            assert low < figures[name] < high
    texts = {figures["diversity_texts"] for figures in (*manifest["points"], manifest["mean"], manifest["real"])}
    assert texts == {3}  # of real text no more than of each point: diversity falls with the number
    assert (manifest["boundaries"], manifest["boundary_tokens"], manifest["clean_up"]) == (
        "eos", ["<|endoftext|>"], False,
    )  # fmt: skip
    assert manifest == {**manifest, **json.loads((measured["spherical"].path / "interpolation.json").read_text())}
    assert {path.name for path in measured["spherical"].path.iterdir()} == {
        "artifact.json", "config.yaml", "interpolation.json", "interpolation.png", "manifest.json", "mean.png",
        "texts.jsonl",
    }  # fmt: skip


def test_real_text_is_that_which_the_paths_begin_at(measured, store):
    split = FeatureStore(store).held_out()
    chosen = smoothness.draw_pairs(split.rows, 3, 0)[0]
    tokens = split.read_tokens(np.sort(chosen))
    found = measured["linear"].manifest["real"]
    assert found["diversity"] == pytest.approx(metrics.diversity(tokens))
    assert found["entropy"] == pytest.approx(metrics.entropies(tokens).mean())


def test_what_an_earlier_version_found_is_still_shown(measured, trained, store, ldlm, gpt2, tmp_path):
    """Its real text was of twice as many texts, and it did not say of how many its diversity is."""
    old = json.loads((measured["linear"].path / "interpolation.json").read_text())
    for figures in (*old["points"], old["mean"], old["real"]):
        del figures["diversity_texts"]
    for key in ("boundaries", "boundary_tokens", "clean_up"):
        del old[key]
    drawing.png(tmp_path / "interpolation.png", results.along({"run": old}))
    drawing.png(tmp_path / "mean.png", results.mean_of_two({"run": old}))
    assert not results.real_is_alike(old)
    assert results.real_is_alike(measured["linear"].manifest)
    assert "the diversity of real text is that of twice as many texts" in _table("run", old)


def test_a_scorer_of_fewer_positions_than_a_row_has_tokens_cuts_the_texts(
    config, trained, store, bigrams, tmp_path, notes
):
    short = replace(config, scorer=str(bigrams), points=2)
    made = interpolate.run(short, trained, store, tmp_path / "out", progress=notes)
    assert made.manifest["max_tokens"] == 8
    line = f"texts are cut after 8 tokens, the most that the scorer {bigrams} takes, instead of after 16"
    assert line in notes.lines


def test_the_mean_of_two_is_the_middle_of_the_straight_path_whatever_is_asked_for(
    measured, config, trained, store, tmp_path
):
    middle = measured["linear"].manifest["points"][2]
    expected = {name: middle[name] for name in ("gen_ppl", "entropy", "diversity")}
    even = interpolate.run(replace(config, points=4), trained, store, tmp_path / "even").manifest
    for manifest in (even, measured["linear"].manifest, measured["spherical"].manifest):
        assert {name: manifest["mean"][name] for name in expected} == expected
    assert [point["a"] for point in even["points"]] == [0, 1 / 3, 2 / 3, 1]
    assert measured["spherical"].manifest["points"][2]["gen_ppl"] != expected["gen_ppl"]
    assert interpolate.plan(replace(config, points=4))["texts_decoded"] == 3 * 5
    assert interpolate.plan(replace(config, points=5))["texts_decoded"] == 3 * 5
    assert interpolate.plan(replace(config, points=5))["texts_scored"] == 3 * (5 + 1)  # and real text


def test_a_seed_decides_the_pairs_and_a_batch_size_nothing(measured, config, trained, store, tmp_path):
    again = interpolate.run(replace(config, batch_size=2), trained, store, tmp_path / "again")
    fresh = interpolate.run(replace(config, seed=1), trained, store, tmp_path / "fresh")
    assert texts_of(again) == texts_of(measured["linear"])
    assert texts_of(fresh) != texts_of(measured["linear"])
    for one, two in zip(again.manifest["points"], measured["linear"].manifest["points"], strict=True):
        assert one["gen_ppl"] == pytest.approx(two["gen_ppl"], rel=1e-6)
    assert fresh.manifest["real"]["gen_ppl"] != again.manifest["real"]["gen_ppl"]


@pytest.mark.parametrize("at", [2, 5])  # on the path, and behind the last set
def test_an_interrupted_one_goes_on_with_what_it_has_scored(
    measured, config, trained, store, tmp_path, interrupted, monkeypatch, at
):
    monkeypatch.undo()  # it compares the pictures too
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interpolate.run(config, trained, store, out, progress=interrupted(at=at))
    assert len(list((out / "scored").iterdir())) == at + 1
    scored = json.loads((out / "scored" / "0.0.json").read_text())
    scored["texts"][0] = "kept: " + scored["texts"][0]  # which a new one would not say
    (out / "scored" / "0.0.json").write_text(json.dumps(scored))
    again = interpolate.run(config, trained, store, out)
    texts = texts_of(measured["linear"])
    assert texts_of(again) == {**texts, (0, 0): "kept: " + texts[0, 0]}
    for name in ("interpolation.json", "interpolation.png"):
        assert (out / name).read_bytes() == (measured["linear"].path / name).read_bytes()
    assert again.complete
    assert not (out / "scored").exists()


def test_it_is_put_into_the_run_where_nothing_else_is_said(ldlm, refuse, succeed, trained, store, gpt2, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    command = ("interpolate", "--run", run, "--features", store, "--pairs", 2, "--points", 3, "--scorer", gpt2)
    assert succeed(*command)["output"] == str(run / "interpolation")
    assert artifact.open_artifact(run / "interpolation", "interpolation").manifest["pairs"] == 2
    again = ldlm(*command)
    assert again.stderr.endswith("is complete; nothing to do\n")
    for line in ("2 pairs, linear path", "a = 0.50", "mean of the two", "real text"):
        assert line in again.stdout
    assert "path: linear -> spherical" in refuse(*command, "--path", "spherical")
    assert succeed(*command, "--path", "spherical", "--overwrite")["path"] == "spherical"


def test_a_single_pair_is_measured_without_intervals(ldlm, trained, store, gpt2, tmp_path):
    out = tmp_path / "out"
    command = ("interpolate", "--run", trained, "--features", store, "--pairs", 1, "--points", 3, "--scorer", gpt2)
    shown = ldlm(*command, "--output", out)
    assert shown.exit_code == 0, shown.stderr
    assert "1 pair, linear path" in shown.stdout
    assert "intervals" not in shown.stdout
    found = artifact.open_artifact(out, "interpolation").manifest
    assert all(set(point["intervals"].values()) == {None} for point in found["points"])


def test_a_run_that_is_at_work_is_not_waited_for(config, trained, store, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    with locks.exclusive_lock(run):
        work = threading.Thread(target=interpolate.run, args=(config, run, store), daemon=True)
        work.start()
        work.join(60)
        assert not work.is_alive()
    assert artifact.open_artifact(run / "interpolation", "interpolation").complete


def test_an_output_that_holds_the_run_is_not_overwritten(refuse, trained, store, gpt2, tmp_path):
    run = shutil.copytree(trained, tmp_path / "all" / "run")
    command = ("interpolate", "--features", store, "--pairs", 2, "--scorer", gpt2, "--output", run.parent)
    assert f"would delete {run}" in refuse(*command, "--run", run, "--overwrite")
    assert f"would delete {run}" in refuse(*command, "--run", run, trained, "--overwrite")
    assert (run / "manifest.json").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Several runs


@pytest.fixture(scope="module")
def compared(config, trained, other, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "both"
    return interpolate.compare(config, [(trained, store), (other, store)], out)


def test_each_run_is_measured_as_it_would_be_alone(compared, measured, trained, other):
    names = [f"{path.parent.name}-run" for path in (trained, other)]
    assert list(compared.manifest["runs"]) == names
    alone = json.loads((measured["linear"].path / "interpolation.json").read_text())
    assert compared.manifest["runs"][names[0]] == alone
    second = compared.manifest["runs"][names[1]]
    assert second["sigma_dec"] == 0.5
    assert second["points"] != alone["points"]
    assert second["real"] == alone["real"]
    for name in names:
        assert artifact.open_artifact(compared.path / name, "interpolation").complete


def test_the_pictures_hold_all_runs(compared, measured):
    for name in ("interpolation.png", "mean.png"):
        with Image.open(compared.path / name) as both, Image.open(measured["linear"].path / name) as one:
            assert min(both.size) > 300
            assert both.tobytes() != one.tobytes()


def test_no_two_models_are_on_the_device_while_runs_are_compared(config, trained, other, store, tmp_path, monkeypatch):
    models = []
    opened, scorer = interpolate._open, interpolate._scorer

    def alone():
        gc.collect()
        assert not any(model() is not None for model in models)

    def opens(*arguments):
        alone()
        subject = opened(*arguments)
        models.append(weakref.ref(subject.run.model))
        return subject

    monkeypatch.setattr(interpolate, "_open", opens)
    monkeypatch.setattr(interpolate, "_scorer", lambda *arguments: (alone(), scorer(*arguments))[1])
    interpolate.compare(config, [(trained, store), (other, store)], tmp_path / "both")
    assert len(models) == 4  # each is opened for its inputs, and to be measured


def test_an_interrupted_comparison_keeps_the_run_that_is_finished(
    compared, config, trained, other, store, tmp_path, interrupted
):
    runs, out = [(trained, store), (other, store)], tmp_path / "both"
    with pytest.raises(KeyboardInterrupt):
        interpolate.compare(config, runs, out, progress=interrupted(at=8))  # after two points of the second run
    first, second = (out / f"{path.parent.name}-run" for path, _ in runs)
    finished = (first / "manifest.json").stat().st_mtime_ns
    assert not (second / "manifest.json").exists()
    again = interpolate.compare(config, runs, out)
    assert again.manifest["runs"] == compared.manifest["runs"]
    assert (first / "manifest.json").stat().st_mtime_ns == finished


def test_what_is_where_a_later_run_goes_is_found_before_the_first_is_measured(
    config, trained, other, store, tmp_path, interrupted
):
    runs, out = [(trained, store), (other, store)], tmp_path / "both"
    with pytest.raises(KeyboardInterrupt):
        interpolate.compare(config, runs, out, progress=interrupted(at=0))
    first, second = (out / f"{path.parent.name}-run" for path, _ in runs)
    shutil.rmtree(first)
    artifact.begin(second, "interpolation", replace(config, seed=1), {})
    with pytest.raises(InputError, match=r"-run was made with other settings \(.*seed: 1 -> 0"):
        interpolate.compare(config, runs, out)
    assert not first.exists()


def test_several_runs_by_command_line(ldlm, succeed, trained, other, store, gpt2, tmp_path):
    common = ("interpolate", "--pairs", 2, "--points", 2, "--scorer", gpt2, "--output", tmp_path / "both")
    runs = succeed(*common, "--run", trained, "--features", store, "--run", other, "--features", store)["runs"]
    again = ldlm(*common, "--run", trained, other, "--features", store)  # the same, said shorter
    assert again.stderr.endswith("is complete; nothing to do\n")
    assert all(f"{name}: 2 pairs, linear path" in again.stdout for name in runs)


# ----------------------------------------------------------------------------------------------------------------------
# Two given texts


@torch.no_grad()
def reconstruction(run, store, gpt2, row):
    """Tokens of a row that has gone through the encoder, E_z, D_h and D_w; the encoder as transformers has it."""
    from transformers import AutoModel

    states = AutoModel.from_pretrained(gpt2)(torch.from_numpy(row)[None].long(), output_hidden_states=True)
    mean, std = map(torch.from_numpy, FeatureStore(store).statistics())
    h_1LD = (states.hidden_states[-3] - mean) / std
    return decoded(run, run.model.latent_encoder(h_1LD))


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_the_path_of_given_texts_leads_from_one_reconstruction_to_the_other(succeed, trained, store, gpt2, path):
    arguments = ("--from", TEXTS[0], "--to", TEXTS[1], "--points", 5, "--path", path, "--device", "cpu")
    found = succeed("interpolate", "--run", trained, *arguments)
    run = TrainedRun(trained, CPU)
    assert [point["a"] for point in found["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert (found["from"], found["to"], found["path"]) == (*TEXTS, path)
    rows = [reconstruction(run, store, gpt2, text.row_of(t, run.tokenizer, 16)[0]) for t in TEXTS]
    assert [found["points"][i]["row"] for i in (0, -1)] == [metrics.decode_tokens(run.tokenizer, r)[0] for r in rows]
    assert sum(point["edits"] for point in found["points"][1:]) >= edit_distance(*rows).item() > 0
    assert not (trained / "interpolation").exists()


def test_it_is_printed_line_by_line(ldlm, trained, other):
    arguments = ("--from", TEXTS[0], "--to", TEXTS[1], "--points", 4)
    shown = ldlm("interpolate", "--run", trained, *arguments)
    assert shown.exit_code == 0, shown.stderr
    head, *lines = shown.stdout.removesuffix("\n").split("\n")
    assert head == f"{trained}: linear path, decoder joint"
    assert [line.partition("  ")[0] for line in lines] == ["0.00", "0.33", "0.67", "1.00"]
    assert all(line.isprintable() for line in lines)
    both = ldlm("interpolate", "--run", trained, "--run", other, *arguments).stdout
    assert both.startswith(shown.stdout)
    assert f"{other}: linear path" in both


def test_a_text_that_is_longer_than_a_row_is_cut_with_a_note(trained, notes, config):
    long = " ".join(TEXTS * 3)
    found = interpolate.between(config, trained, (long, TEXTS[1]), progress=notes)
    tokens = len(TrainedRun(trained, CPU).tokenizer(long)["input_ids"])
    assert notes.lines == [f"--from has {tokens} tokens and a row of {trained} holds 14; the rest is cut off"]
    cut = interpolate.between(config, trained, (long + " And more.", TEXTS[1]))
    assert cut["points"] == found["points"]


def test_the_text_of_a_row_ends_at_its_first_end_of_text(trained):
    tokenizer = TrainedRun(trained, CPU).tokenizer
    bos, eos = text.special_tokens(tokenizer)
    a, b = tokenizer("a b")["input_ids"][:2]
    rows = np.array([[bos, a, b, eos, a, eos], [bos, a, b, a, b, a], [a, b, eos, b, b, eos], [bos, eos, a, b, a, eos]])
    words = [tokenizer.decode(ids) for ids in ([a, b], [a, b, a, b, a], [a, b], [])]
    assert interpolate._first_documents(tokenizer, rows) == words


def test_latents_of_a_row_are_those_of_the_store(trained, store):
    run = TrainedRun(trained, CPU)
    z_BNC, tokens_BL = heldout.encode_rows(run.model, FeatureStore(store).held_out(), np.arange(4), CPU)
    torch.testing.assert_close(run.encode(torch.from_numpy(tokens_BL)), z_BNC, rtol=1e-4, atol=1e-4)


def test_embeddings_from_scratch_need_no_encoder(train_config, few, succeed, tmp_path):
    store = extract_features.run(replace(few, kind="scratch"), tmp_path / "features").path
    run = made(train_config, store, tmp_path / "run", space="scratch").path
    found = succeed("interpolate", "--run", run, "--from", TEXTS[0], "--to", TEXTS[1], "--points", 3)
    assert found["points"][0]["row"] != found["points"][-1]["row"]


def test_the_encoder_must_be_the_one_that_the_run_was_trained_with(refuse, trained, other_gpt2, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    features = json.loads((run / "features.json").read_text())
    command = ("interpolate", "--run", run, "--from", TEXTS[0], "--to", TEXTS[1])
    for name, message in (
        (str(other_gpt2), "is not the encoder that the features were prepared with"),
        (str(tmp_path / "gone"), f"there is no model folder {tmp_path / 'gone'}"),
    ):
        features["encoder"]["name"] = name
        (run / "features.json").write_text(json.dumps(features))
        assert message in refuse(*command)
    assert "say where with --encoder DIR" in refuse(*command)


def test_an_encoder_that_has_moved_is_found_where_the_user_says(succeed, refuse, trained, other_gpt2, gpt2, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    command = ("interpolate", "--run", run, "--from", TEXTS[0], "--to", TEXTS[1], "--points", 3)
    expected = succeed(*command)
    features = json.loads((run / "features.json").read_text())
    moved = shutil.copytree(features["encoder"]["name"], tmp_path / "moved")
    features["encoder"]["name"] = "gone"
    (run / "features.json").write_text(json.dumps(features))
    assert succeed(*command, "--encoder", moved) == expected
    assert "is not the encoder that the features were prepared with" in refuse(*command, "--encoder", other_gpt2)
    assert "--encoder is for --from and --to" in refuse("interpolate", "--run", run, "--encoder", moved)


# ----------------------------------------------------------------------------------------------------------------------
# What doesn't go together


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "RUN", "--from", "a"), '--from needs the other end of the path, too; for example --to "'),
        (("--run", "RUN", "--to", "a"), '--to needs the other end of the path, too; for example --from "'),
        (("--run", "RUN", "--from", "a", "--to", " "), "--to is empty; give a text"),
        (("--run", "RUN", "--from", "a", "--to", "caf\udce9"), r"--to holds half a character, '\udce9'"),
        (("--run", "RUN", "--from", "a", "--to", "b", "--features", "STORE"), "leave --features out"),
        (("--run", "RUN", "--from", "a", "--to", "b", "--output", "OUT"), "leave --output out"),
        (("--run", "RUN", "--from", "a", "--to", "b", "--pairs", 3), "leave --pairs out"),
        (("--run", "RUN", "--from", "a", "--to", "b", "--scorer", "GPT2"), "leave --scorer out"),
        (("--run", "RUN", "--from", "a", "--to", "b", "--boundaries", "drop"), "leave --boundaries out"),
        (("--from", "a", "--to", "b"), "--run is missing"),
        (("--run", "RUN"), "--features is missing"),
        (("--run", "RUN", "OTHER", "--features", "STORE"), "say where with --output DIR"),
        (
            ("--run", "RUN", "--features", "STORE", "STORE", "--output", "OUT"),
            "1 --run and 2 --features don't pair up; give one store",
        ),
        (("--run", "RUN", "RUN", "--features", "STORE", "--output", "OUT"), "name a folder twice"),
        (("--run", "RUN", "--features", "STORE", "--path", "curved"), "path is one of linear, spherical, not 'curved'"),
    ],
)
def test_what_does_not_go_together_is_refused(refuse, trained, other, store, gpt2, tmp_path, arguments, message):
    out = tmp_path / "out"
    places = {"RUN": trained, "OTHER": other, "STORE": store, "GPT2": gpt2, "OUT": out}
    assert message in refuse("interpolate", *(places.get(argument, argument) for argument in arguments))
    assert not out.exists()
    assert not (trained / "interpolation").exists()


def test_runs_of_different_length_are_not_compared(refuse, train_config, few, trained, store, gpt2, tmp_path):
    short = extract_features.run(replace(few, seq_len=12), tmp_path / "features").path
    run = made(train_config, short, tmp_path / "short").path
    command = ("interpolate", "--pairs", 2, "--scorer", gpt2, "--output", tmp_path / "out")
    line = refuse(*command, "--run", trained, run, "--features", store, short)
    assert "the runs have rows of different length (run: 16, short: 12)" in line
    assert not (tmp_path / "out").exists()
