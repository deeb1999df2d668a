"""Continuing a text: the condition is the store's, the prompt stays, and the rest depends on it and the seed."""

import copy
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ldlm import LDLM, hub, noise
from ldlm import config as configs
from ldlm.config import ComputeConfig, ExportConfig, PromptConfig, SampleConfig, SamplerConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.features.encoder import OnlineEncoder, check_causal
from ldlm.features.store import FeatureStore
from ldlm.model.joint import build
from ldlm.model.objective import JointObjective
from ldlm.sampling import generation, prompts, solvers
from ldlm.sampling.trained_run import TrainedRun
from ldlm.stages import export, extract_features, sample, train
from ldlm.training import checkpoint, heldout
from ldlm.training.log import MetricsFile

CPU = torch.device("cpu")
PROMPT = "Rain lost"
SAMPLER = SamplerConfig(steps=4, temperature=1.0)


@pytest.fixture(scope="module")
def prefix_config(train_config):
    """The configuration of `run`."""
    rates = {"optimizer": {"lr": 2e-2}, "steps": 30, "recipe": {"sigma_dec": 0.3}}
    settings = configs.merge(configs.to_dict(train_config), rates, {"model": {"condition": "prefix"}})
    return configs.from_dict(TrainConfig, settings)


@pytest.fixture(scope="module")
def run(prefix_config, store, tmp_path_factory):
    """A run that has learned to tell prompts apart; read only."""
    return train.run(prefix_config, store, tmp_path_factory.mktemp("prefix") / "run").path


def settings(**given):
    """Settings of `ldlm sample` of the four texts that continue PROMPT, but for those given."""
    own = {name: given.pop(name) for name in list(given) if name in PromptConfig.__dataclass_fields__}
    prompting = PromptConfig(**({"prompt": PROMPT} | own))
    defaults = {"num_samples": 4, "sampler": SAMPLER, "batch_size": 4, "device": "cpu"}
    return SampleConfig(prompting=prompting, **(defaults | given))


def drawn(run, out, **given):
    """The lines of texts that `ldlm sample` writes with these settings."""
    sample.run(settings(**given), run, out, overwrite=True)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


# ----------------------------------------------------------------------------------------------------------------------
# The condition


def test_the_states_of_a_prompt_are_the_stores(run, store, tmp_path):
    """Of rows of the store whose first tokens, as a text, are a prompt."""
    opened, split = TrainedRun(run, CPU), FeatureStore(str(store)).split("train")
    parts, tokens = split.read(0, 12)
    stored_BLD = split.states(parts, torch.from_numpy(tokens).long())
    compared = 0
    for row_L, stored_LD in zip(tokens.tolist(), stored_BLD, strict=True):
        for k in (2, 5, 8):
            text = opened.tokenizer.decode(row_L[1:k])
            if prompts.tokenised([text], opened.tokenizer, 16) != [row_L[:k]]:
                continue  # the text would be tokenised otherwise
            found = prompts.prompts_of(settings(prompt=text), opened)
            assert found.k_T.tolist() == [k]
            assert found.tokens_TL[0].tolist() == row_L[:k]
            assert torch.allclose(found.h_TLD[0], stored_LD[:k], atol=1e-5)
            compared += 1
    assert compared > 10


def test_the_states_of_many_prompts_take_no_more_memory_than_they_need(run, tmp_path, monkeypatch):
    """They run as rows of 16 tokens, of which a prompt here has three."""
    opened, texts = TrainedRun(run, CPU), ["Rain", "Lily", "The", "A"] * 20
    rows = prompts.tokenised(texts, opened.tokenizer, 16)
    most = max(map(len, rows))
    assert most < 16
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    rows_at_once, real = [], OnlineEncoder.__call__

    def encode(self, tokens_BL):
        rows_at_once.append(len(tokens_BL))
        return real(self, tokens_BL)

    monkeypatch.setattr(OnlineEncoder, "__call__", encode)
    found = prompts.prompts_of(settings(prompt=None, prompts=str(tmp_path / "prompts.txt")), opened)
    assert found.h_TLD.shape == (80, most, 16)
    assert found.h_TLD.untyped_storage().nbytes() == 80 * most * 16 * 4
    assert rows_at_once == [32, 32, 16]
    one = prompts.prompts_of(settings(prompt="The"), opened)
    assert torch.allclose(found.h_TLD[42, : one.h_TLD.shape[1]], one.h_TLD[0], atol=1e-5)


def test_the_condition_does_not_depend_on_what_comes_after_the_prompt(run):
    """The row that goes through the encoder is filled up with anything."""
    opened = TrainedRun(run, CPU)
    rows = torch.tensor([[0, 5, 6, 7] + [i] * 12 for i in (1, 9, 30)])
    h_BLD = opened.frozen_encoder(None)(rows)
    assert torch.equal(h_BLD[0, :4], h_BLD[1, :4])
    assert torch.equal(h_BLD[0, :4], h_BLD[2, :4])
    assert not torch.allclose(h_BLD[0, 4:], h_BLD[1, 4:])


def test_an_encoder_that_sees_ahead_is_refused_with_the_reason(bert, few, prefix_config, tmp_path):
    features = extract_features.run(replace(few, encoder=str(bert), codec="fp32"), tmp_path / "features").path
    with pytest.raises(
        InputError, match=r"needs a causal encoder, such as GPT-2, and the states of .* depend on later"
    ):
        train.run(prefix_config, features, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_sees_ahead_is_refused_with_a_single_row(gpt2, bert, few, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h i j k l m n")
    alone = replace(few, data=(str(text),), validation_docs=0)
    for encoder in (gpt2, bert):
        extract_features.run(replace(alone, encoder=str(encoder)), tmp_path / encoder.parent.name)
    opened = {encoder: FeatureStore(tmp_path / encoder.parent.name) for encoder in (gpt2, bert)}
    assert [store.rows["train"] for store in opened.values()] == [1, 1]
    check_causal(opened[gpt2])
    with pytest.raises(InputError, match=r"needs a causal encoder"):
        check_causal(opened[bert])


@pytest.mark.parametrize("codec", ["fp16", "int8-token", "online"])
def test_a_causal_encoder_is_taken_however_its_states_are_stored(few, tmp_path, codec):
    features = extract_features.run(replace(few, codec=codec, max_channel_error=1.0), tmp_path / "features").path
    check_causal(FeatureStore(features))


# ----------------------------------------------------------------------------------------------------------------------
# Training


@torch.no_grad()
def _l_diff_of_prefixes(model, split, rows):
    """Equation 1 in two passes that see the first k states, at times of a golden-ratio walk."""
    parts, tokens = split.read(0, rows)
    h = split.states(parts, torch.from_numpy(tokens).long())
    z_0, losses = model.latent_encoder(h), []
    row_B = torch.arange(rows)
    eps = noise.normal(heldout.SEED, "eps", 0, row_B, z_0.shape[1:])
    u_B = noise.uniform(heldout.SEED, "prefix", 0, row_B, (2,))[:, 1]
    for row, u in enumerate(u_B.tolist()):
        t = (row + 0.5) * (math.sqrt(5) - 1) / 2 % 1
        alpha = 1 / math.sqrt(1 + 9 * math.tan(math.pi * t / 2) ** 2)
        z_t = alpha * z_0[row : row + 1] + math.sqrt(1 - alpha**2) * eps[row : row + 1]
        seen = model.prefix(h[row : row + 1], torch.tensor([1 + int(u * (h.shape[1] - 8))]))
        first = model.denoiser(z_t, torch.tensor([t]), torch.zeros_like(z_t), seen)
        second = model.denoiser(z_t, torch.tensor([t]), first, seen)
        losses.append(((second - z_0[row]) ** 2).mean().item())
    return sum(losses) / rows


def test_held_out_figures_are_those_without_a_prefix_and_beside_them_one_with(run, prefix_config, store):
    """`l_diff` is what the same weights have in a model that knows of no prefix, so that runs compare."""
    opened = TrainedRun(run, CPU)
    plain = build(replace(opened.config.model, condition="none"), opened.shapes, seed=0)
    plain.load_state_dict({n: w for n, w in opened.model.state_dict().items() if "denoiser.prefix" not in n})
    asked = {"rows": 10, "batch_size": 4, "device": CPU}
    split = FeatureStore(str(store)).held_out()
    with_one, without = (
        heldout.evaluate(JointObjective(model, opened.config), split, **asked) for model in (opened.model, plain)
    )
    assert with_one.l_diff == pytest.approx(without.l_diff, rel=1e-5)
    assert without.l_diff_prefix is None
    assert with_one.l_diff_prefix == pytest.approx(_l_diff_of_prefixes(opened.model, split, 10), rel=1e-5)
    lines = [line for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == "eval"]
    assert all(line["l_diff_prefix"] > 0 for line in lines)


def test_a_training_that_was_stopped_goes_on_to_the_bit(run, prefix_config, store, tmp_path, stopped_at):
    from ldlm.runtime import Stopped

    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train.run(prefix_config, store, out, progress=stopped_at(11))
    train.run(prefix_config, store, out)
    ours, theirs = (checkpoint.latest(path / "checkpoints").tensors("ema") for path in (out, run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ----------------------------------------------------------------------------------------------------------------------
# The texts


def test_texts_begin_with_the_prompt_and_keep_prompt_and_continuation_apart(run, tmp_path):
    opened = TrainedRun(run, CPU)
    (tokens,) = prompts.tokenised([PROMPT], opened.tokenizer, 16)
    lines = drawn(run, tmp_path / "a.jsonl")
    for line in lines:
        assert line["text"].startswith(PROMPT)
        assert line["text"] == line["prompt"] + line["continuation"]
        assert line["prompt_tokens"] == tokens
        assert line["tokens"] == tokens + line["continuation_tokens"]
        assert len(line["tokens"]) == 16
        assert opened.tokenizer.decode(line["tokens"][1:]) == line["text"]
    assert len({line["continuation"] for line in lines}) > 1


def test_texts_depend_on_seed_and_prompt_and_not_on_their_batch(run, tmp_path):
    lines = drawn(run, tmp_path / "a.jsonl")
    assert drawn(run, tmp_path / "b.jsonl", batch_size=1) == lines
    assert drawn(run, tmp_path / "c.jsonl", num_samples=6)[:4] == lines
    assert [line["tokens"] for line in drawn(run, tmp_path / "d.jsonl", seed=1)] != [line["tokens"] for line in lines]


def latents(run, **given):
    """z_0 of three texts."""
    config = settings(**given)
    return TrainedRun(run, CPU).drawing(config).latents(config.sampler, generation.text_seeds(0, 0, 3))


def test_latents_depend_on_the_prompt_the_more_the_stronger_the_guidance(run):
    plain, none = latents(run), latents(run, prompt=None)
    assert (latents(run, prompt="Nobody found") - plain).abs().max() > 1e-4
    far = [(latents(run, prompt_guidance=w) - none).norm() for w in (0.0, 0.5, 1.0, 3.0)]
    assert far[0] == 0
    assert far == sorted(far)
    assert far[2] == (plain - none).norm() > 1e-3


def test_texts_are_the_decoded_ends_of_the_conditioned_process(run, tmp_path):
    """By the solver as the maths has it, with the network called on the prompt's own states."""
    opened, config = TrainedRun(run, CPU), settings(prompt_guidance=1.7, sampler=replace(SAMPLER, guidance=1.5))
    found, seeds_B = opened.drawing(config), generation.text_seeds(0, 0, 3)
    h_BKD, k_B = found.prompts.of(seeds_B)
    network = opened.model.denoiser

    def denoise(z, t, previous):
        t_B = t.float().expand(len(z))
        seen = network(z, t_B, previous, network.prefix(h_BKD, k_B))
        unseen = network(z, t_B, previous)
        return unseen + 1.7 * (seen - unseen)

    def guided(z, t, previous):
        none = denoise(z, t, torch.zeros_like(previous))
        return none + 1.5 * (denoise(z, t, previous) - none)

    sampler, zeros_B = config.sampler, torch.zeros_like(seeds_B)
    grid = solvers.grid_of(sampler, found.schedule, found.timesteps)
    recurrence, normal = solvers.solver(sampler)(found.schedule, grid), found.compute.normal
    start = normal(seeds_B, "z_1", 0, zeros_B, found.latent_shape)
    with torch.no_grad():
        noise = partial(normal, seeds_B, "sde", rows=zeros_B, shape=found.latent_shape)
        expected = solvers.solve(recurrence, guided, start, lambda row: noise(step=torch.tensor([row])))
    assert torch.allclose(found.ends(sampler, seeds_B).x0, expected.x0, atol=1e-5)
    assert torch.allclose(found.watched_ends(sampler, seeds_B, lambda t, z: None).x0, expected.x0, atol=1e-5)


def test_guidance_of_0_forgets_the_prompt_and_of_1_is_none(run, tmp_path):
    plain = drawn(run, tmp_path / "a.jsonl")
    assert drawn(run, tmp_path / "b.jsonl", prompt_guidance=1.0) == plain
    unconditional = drawn(run, tmp_path / "c.jsonl", prompt=None)
    zero = drawn(run, tmp_path / "d.jsonl", prompt_guidance=0.0)
    k = len(zero[0]["prompt_tokens"])
    assert [line["tokens"][k:] for line in zero] == [line["tokens"][k:] for line in unconditional]


def test_a_file_of_prompts_is_continued_as_often_as_asked_and_its_texts_go_on(run, tmp_path):
    path, out = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    texts = [PROMPT, "Nobody", "The old captain"]
    path.write_text("".join(json.dumps({"start": text}) + "\n" for text in texts))
    many = {"prompt": None, "prompts": str(path), "text_column": "start", "num_samples": 2}
    lines = drawn(run, out, **many)
    assert [line["prompt"] for line in lines] == texts * 2
    assert [line["seed"] for line in lines] == [*range(6)]
    for number, line in enumerate(lines):  # each is the text of its seed that continues its prompt alone
        alone = drawn(run, tmp_path / "alone.jsonl", prompt=line["prompt"], num_samples=number + 1)
        assert alone[number]["tokens"] == line["tokens"]
    record = json.loads(Path(f"{out}.meta.json").read_text())
    assert (record["config"]["num_samples"], record["prompts"]["count"]) == (6, 3)

    before = out.read_bytes()
    sample.run(settings(**{**many, "num_samples": 3}), run, out)  # the same prompts, one more text of each
    assert out.read_bytes().startswith(before)
    with pytest.raises(InputError, match="holds 9 texts of these settings already, and --num-samples 2 asks for fewer"):
        sample.run(settings(**many), run, out)
    path.write_text(json.dumps({"start": "Rain"}) + "\n")
    with pytest.raises(InputError, match=r"was made differently \(prompts\.count: 3 -> 1; prompts\.sha256"):
        sample.run(settings(**many), run, out)


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.jsonl.partial"])
def test_the_prompts_are_not_overwritten_by_their_texts(run, refuse, tmp_path, name):
    path, out = tmp_path / name, tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": PROMPT}))
    before = path.read_bytes()
    drawn = ("sample", "--run", run, "--prompts", path, "--num-samples", 1, "--steps", 2, "--device", "cpu")
    assert f"--overwrite would delete {path}, which is to be read" in refuse(*drawn, "--output", out, "--overwrite")
    assert path.read_bytes() == before


def test_an_exported_model_continues_texts_as_the_run_does(run, gpt2, tmp_path):
    model = export.run(ExportConfig(sampler=SAMPLER), run, tmp_path / "model").path
    lines = drawn(run, tmp_path / "a.jsonl", prompt_guidance=1.5)
    assert "It also continues texts" in (model / "README.md").read_text(encoding="utf-8")
    opened, asked = LDLM.from_pretrained(model), {"prompt": PROMPT, "prompt_guidance": 1.5}
    assert opened.sample(4, encoder=str(gpt2), batch_size=4, **asked) == [line["text"] for line in lines]
    assert drawn(model, tmp_path / "b.jsonl", prompt_guidance=1.5, encoder=str(gpt2)) == lines
    kept = opened.frozen_encoder(str(gpt2))
    assert kept._encoder is not None  # loaded by the first call, and not again
    assert opened.frozen_encoder(str(gpt2)) is kept
    assert copy.deepcopy(opened).frozen_encoder(str(gpt2)) is not kept
    with pytest.raises(
        InputError, match=r"'encoder' is neither a folder here .*say where the encoder is with --encoder"
    ):
        opened.sample(4, **asked)
    assert opened.sample(2)  # without a prompt it needs no encoder


def test_generators_of_other_prompts_share_what_was_compiled(run):
    trained = TrainedRun(run, CPU)
    bare = trained.drawing(SampleConfig(sampler=SAMPLER, compute=ComputeConfig(precision="bf16")))
    asked = SampleConfig(prompting=PromptConfig(prompt=PROMPT))
    first, second = (bare.prompted(prompts.prompts_of(asked, trained)) for _ in range(2))
    assert first.prompts is not None and bare.prompts is None
    assert first.estimate is second.estimate is bare.estimate
    assert first.update is second.update is bare.update


def test_a_trace_shows_the_text_with_its_prompt(run, succeed, tmp_path):
    given = ("--prompt", PROMPT, "--steps", 4, "--device", "cpu", "--num-samples", 3)
    succeed("sample", "--run", run, *given, "--output", tmp_path / "a.jsonl")
    line = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[2])
    succeed("sample", "--run", run, *given, "--trace-text", 2, "--trace", tmp_path / "trace")
    frames = json.loads((tmp_path / "trace" / "trace.json").read_text())["frames"]
    assert frames[-1]["tokens"] == line["tokens"]
    assert all(frame["tokens"][:3] == line["tokens"][:3] for frame in frames)


def test_a_trace_of_a_file_of_prompts_knows_its_content(run, succeed, refuse, ldlm, tmp_path):
    path, out = tmp_path / "prompts.txt", tmp_path / "trace"
    path.write_text(f"{PROMPT}\n")
    traced = (
        "sample",
        "--run",
        run,
        "--prompts",
        path,
        "--steps",
        2,
        "--trace-frames",
        2,
        "--trace",
        out,
        "--device",
        "cpu",
    )
    succeed(*traced)
    path.write_text(f"{PROMPT[:-1]}\n")
    assert "prompts_sha256" in refuse(*traced)
    record = json.loads((out / "artifact.json").read_text())
    del record["inputs"]["prompts_sha256"]  # as an earlier version left it
    (out / "artifact.json").write_text(json.dumps(record))
    assert "is complete; nothing to do" in ldlm(*traced).stderr


def test_a_dry_run_counts_evaluations_of_every_prompt_and_of_guidance(run, succeed, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Rain\nNobody\n")
    given = ("sample", "--run", run, "--prompts", path, "--num-samples", 3, "--steps", 4, "--dry-run")
    assert succeed(*given)["texts"] == 6
    assert succeed(*given)["denoiser_evaluations"] == 24
    assert succeed(*given, "--prompt-guidance", 2, "--guidance", 1.5)["denoiser_evaluations"] == 96


def test_a_dry_run_counts_the_flops_that_a_prompt_adds(run, succeed):
    """Keys and values of all blocks once for a text, and two products of matrices in each evaluation that sees them."""
    opened = TrainedRun(run, CPU)
    sizes, shapes = opened.config.model.denoiser, opened.shapes
    (tokens,) = prompts.tokenised([PROMPT], opened.tokenizer, 16)
    keys = 2 * len(tokens) * (shapes.hidden_dim * sizes.width + sizes.width * 2 * sizes.layers * sizes.width)
    attends = sizes.layers * 4 * opened.model.num_latents * len(tokens) * sizes.width
    given = ("sample", "--run", run, "--num-samples", 3, "--steps", 4, "--dry-run")
    plain, seen = (succeed(*given, *more)["flops"] for more in ((), ("--prompt", PROMPT)))
    assert seen - plain == 3 * (keys + 4 * attends)
    guided = succeed(*given, "--prompt", PROMPT, "--prompt-guidance", 2)["flops"]
    assert guided == seen + plain


def test_other_commands_take_the_run_as_an_unconditional_one(run, store, gpt2, succeed, tmp_path):
    """Each ends with its figures, and the decoder that one of them fine-tunes draws continuations, too."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    on, rows = ("--run", folder, "--device", "cpu"), ("--features", store)
    succeed("finetune-decoder", *on, *rows, "--layers", 1, "--steps", 1)
    bound = succeed("likelihood", *on, *rows, "--split", "train", "--rows", 4, "--output", tmp_path / "likelihood")
    assert 0 < bound["bits_per_token"] < 100
    few = ("--pairs", 2, "--points", 3, "--scorer", gpt2, "--output", tmp_path / "interpolate")
    assert succeed("interpolate", *on, *rows, *few)["pairs"] == 2
    few = ("--budgets", 2, "--solvers", "ddim", "--screen-texts", 2, "--texts", 2, "--scorer", gpt2)
    assert succeed("sweep", *on, *few, "--output", tmp_path / "sweep")["screened"]
    sample.run(settings(decoder="layers-1"), folder, tmp_path / "a.jsonl")


# ----------------------------------------------------------------------------------------------------------------------
# What can't be continued


BAD = [
    (("--prompt", ""), "--prompt is empty; give the beginning of a text"),
    (("--prompt", "The old captain found a letter before dawn, and said so."), "tokens, and at most 7 fit; shorten it"),
    (("--prompt", "Rain", "--prompts", "x"), "give one of the two"),
    (("--prompt", "none"), "to continue that word, give it in a file"),
    (("--prompt", "caf\udce9"), "prompting.prompt holds '\\udce9', which is no whole character"),
    (("--prompts", "absent.txt"), "there is no file absent.txt"),
    (("--prompt-guidance", 2), "add --prompt TEXT"),
    (("--encoder", "x"), "add --prompt TEXT"),
    (("--prompt", "Rain", "--encoder", "./absent"), "there is no model folder ./absent"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_prompts_get_one_line(run, refuse, tmp_path, arguments, message):
    line = refuse("sample", "--run", run, *arguments, "--device", "cpu", "--output", tmp_path / "a.jsonl")
    assert message in line
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Rain\n\nNobody\n"),
        ("a.jsonl", '{"text": "Rain"}\n{"text": " "}\n{"text": "Nobody"}\n'),
        ("a.jsonl", '{"text": "Rain"}\n{"text": null}\n{"text": "Nobody"}\n'),
    ],
)
def test_a_blank_prompt_in_a_file_is_refused(run, refuse, tmp_path, name, content):
    """It would shift the prompts after it."""
    (tmp_path / name).write_text(content)
    given = ("--prompts", tmp_path / name, "--device", "cpu", "--output", tmp_path / "texts.jsonl")
    assert f"{name}: row 2 is blank" in refuse("sample", "--run", run, *given)
    assert not (tmp_path / "texts.jsonl").exists()


def test_another_encoder_is_refused(run, refuse, other_gpt2, tmp_path):
    given = ("--prompt", PROMPT, "--encoder", other_gpt2, "--device", "cpu", "--output", tmp_path / "a.jsonl")
    assert "is not the encoder that the features were prepared with" in refuse("sample", "--run", run, *given)


def test_an_encoder_that_has_moved_is_asked_for(run, refuse, succeed, gpt2, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((copy / "features.json").read_text())
    record["encoder"]["name"] = "nobody/nothing"
    (copy / "features.json").write_text(json.dumps(record))
    given = ("sample", "--run", copy, "--prompt", PROMPT, "--num-samples", 2, "--steps", 2, "--device", "cpu")
    line = refuse(*given, "--output", tmp_path / "a.jsonl")
    assert "'nobody/nothing' is neither a folder here nor was it fetched from the hub before" in line
    assert "--encoder DIR" in line
    succeed(*given, "--encoder", gpt2, "--output", tmp_path / "a.jsonl")


def test_a_run_of_the_papers_recipe_says_how_to_train_one_that_continues_texts(trained, refuse, tmp_path):
    line = refuse("sample", "--run", trained, "--prompt", PROMPT, "--output", tmp_path / "a.jsonl")
    assert "has not learned to continue texts" in line
    assert "--set model.condition=prefix" in line


def test_token_level_runs_have_no_prompts(token_runs, refuse, tmp_path):
    given = ("sample", "--run", token_runs("mdlm"), "--output", tmp_path / "a.jsonl")
    end = "for runs of LDLM, and this one is of mdlm, which has no latents; leave"
    assert refuse(*given, "--prompt", PROMPT) == f"--prompt is {end} it out"
    both = ("--prompt", PROMPT, "--decoder", "joint", "--prompt-guidance", 2)
    assert refuse(*given, *both) == f"--prompt, --prompt-guidance, --decoder are {end} them out"
    assert refuse(*given, "--set", "prompting.prompts=a.txt") == f"--prompts is {end} it out"
    assert refuse(*given, "--set", "prompting=a") == f"prompting is {end} it out"


def test_a_prompt_may_begin_a_document_and_has_no_words_that_the_tokenizer_does_not_know(run, bigrams):
    tokenizer = TrainedRun(run, CPU).tokenizer
    (row,) = prompts.tokenised(["<|endoftext|>Rain"], tokenizer, 16)
    assert row[:2] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    words = hub.load_tokenizer(str(bigrams))
    assert prompts.tokenised(["a b"], words, 16) == [[0, 1, 2]]
    with pytest.raises(InputError, match="the prompt 'a c' can't be written in the model's tokens, which make 'a b'"):
        prompts.tokenised(["a c"], words, 16)
    for spaced in ("a b ", " a b", "a  b"):
        with pytest.raises(InputError, match=r"which make '.*' of it; write it with these spaces$"):
            prompts.tokenised([spaced], words, 16)


# ----------------------------------------------------------------------------------------------------------------------
# Compiled


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's about its own tracing
@pytest.mark.slow
def test_compiled_it_draws_and_trains_the_same(run, prefix_config, store, tmp_path):
    torch._dynamo.reset()
    given = {"prompt_guidance": 1.7, "sampler": replace(SAMPLER, guidance=1.5)}
    plain = latents(run, **given)
    assert torch.allclose(latents(run, **given, compute=ComputeConfig(compile="on")), plain, atol=1e-4)
    optimizer = replace(prefix_config.optimizer, lr=1e-3)  # at a higher one rounding grows within three steps
    short = replace(prefix_config, steps=3, optimizer=optimizer)
    found = [
        train.run(replace(short, compute=ComputeConfig(compile=how)), store, tmp_path / how).manifest["held_out"]
        for how in ("off", "on")
    ]
    assert found[1]["l_diff_prefix"] == pytest.approx(found[0]["l_diff_prefix"], rel=1e-4)
