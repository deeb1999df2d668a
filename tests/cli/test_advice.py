"""Advice works when it is followed: each message that names a command, an option or a number is brought about, and what
it says is done."""

import re
import shutil
import sys

import pytest
import yaml

# A command, what it must say, and what is added to the same command then; \1 … are what the message names. Words in
# braces are those of `places`.
SAMPLE = "sample --run {run} --steps 2 --num-samples 2 --device cpu --output {out}"
TRAIN = "train --features {store} --config {tiny} --steps 2 --output {out}"
EXTRACT = "extract-features --encoder {gpt2} --data {corpus} --seq-len 16 --device cpu --output {out}"
FINETUNE = "finetune-decoder --run {run} --features {store} --steps 1 --device cpu"
INTERPOLATE = "interpolate --run {run} --features {store} --scorer {gpt2} --pairs 2 --device cpu --output {out}"
EVALUATE = "evaluate {corpus} --scorer {gpt2} --device cpu --max-tokens 16 --no-cache"
TEXTS = "features texts {store} --rows 2 --output {out}.jsonl"
ADVICE = {
    "too many pairs": (f"{INTERPOLATE} --pairs 1000", r"use at most (\d+)", r"--pairs \1"),
    "half a path": ("interpolate --run {run} --from sea", r'for example (--to) "She', r"\1 rain"),
    "shards across batches": (f"{EXTRACT} --batch-size 24", r"use (--shard-rows) (\d+)", r"\1 \2"),
    "shards across chunks": (f"{EXTRACT} --shard-rows 40", r"use (--shard-rows) (\d+)", r"\1 \2"),
    "long rows": (f"{EXTRACT} --seq-len 17", r"use at most (\d+)", r"--seq-len \1"),
    "a layer too many": (f"{EXTRACT} --layer 9", r"hidden_states (-\d+) … \d+", r"--layer \1"),
    "a codec that loses": (
        f"{EXTRACT} --codec int8-token --max-channel-error 1e-9", r"use (--overwrite) (--codec) (\w+), or", r"\1 \2 \3",
    ),
    "a bound that is too low": (
        f"{EXTRACT} --codec int8-token --max-channel-error 1e-9", r"or raise (--[-a-z]+)", r"\1 0.5",
    ),
    "long texts": (f"{EVALUATE} --max-tokens 1000", r"use at most (\d+)", r"--max-tokens \1"),
    "heads of E_z": (f"{TRAIN} --set model.autoencoder.heads=3", r"to one of (\d+), (\d+)",
                     r"--set model.autoencoder.heads=\2"),
    "heads of the DiT": (f"{TRAIN} --set model.denoiser.heads=3", r"one of (\d+), (\d+), (\d+)",
                         r"--set model.denoiser.heads=\3"),
    "odd heads": (f"{TRAIN} --set model.token_decoder.heads=16", r"set it to one of (\d+)",
                  r"--set model.token_decoder.heads=\1"),
    "heads of a decoder": (f"{FINETUNE} --heads 3", r"set it to one of (\d+)", r"--heads \1"),
    "a batch of more rows than there are": (
        f"{TRAIN} --batch-size 100000", r"has (\d+) train rows, too few .*; lower (batch)_size", r"--\2-size \1",
    ),
    "rows that no split has": (
        f"{TEXTS} --rows 1000000", r"has \d+ \w+ rows and not 1,000,000; give (--rows) (\d+)$", r"\1 \2",
    ),
    "no such decoder": (f"{SAMPLE} --decoder nosuch", r"it has: (\w+)", r"--decoder \1"),
    "no such checkpoint": (f"{SAMPLE} --checkpoint nosuch", r"there are: ([-\w]+)", r"--checkpoint \1"),
    "no such setting": (f"{TRAIN} --set stepz=3", r"did you mean (\w+)\?", None),
    "no GPU": (f"{SAMPLE} --device cuda:7", r"; use (cpu)$", r"--device \1"),
    "no such device": (f"{SAMPLE} --device tpu", r"use (cpu), cuda", r"--device \1"),
    "no kernels": (f"{SAMPLE} --attention xformers", r"use (--attention) (sdpa)", r"\1 \2"),
    "no sizes": ("train --dry-run", r"or (--preset) NAME", r"\1 tiny"),
    "no such preset": ("train --dry-run --preset nosuch", r"choose one of .*\b(tiny)\b", r"--preset \1"),
    "no run": (SAMPLE.replace("--run {run} ", ""), r"(--run) is missing; for example --run run$", r"\1 {run}"),
    "no output": ("export --run {run}", r"for example (--output) (\S+)$", r"\1 {out}-\2"),
    "no steps at all": (f"{SAMPLE} --num-samples 0", r"must be at least (\d+)", r"--num-samples \1"),
    "a folder for a file": (f"{SAMPLE} --output {{here}}", r"is a folder; .*, for example (\S+)$", r"--output \1"),
    "a file of others": (f"{SAMPLE} --output {{corpus_copy}}", r"or add (--overwrite)", r"\1"),
    "a folder of others": (f"{TRAIN} --output {{foreign}}", r"choose another (--output), or", r"\1 {out}"),
    "overwriting a folder of others": (
        f"{TRAIN} --output {{foreign}} --overwrite", r"choose another (--output), or", r"\1 {out}",
    ),
    "a folder of another kind": (f"{EXTRACT} --output {{run_copy}}", r"choose another (--output)$", r"\1 {out}"),
    "overwriting another kind": (
        f"{EXTRACT} --output {{run_copy}} --overwrite", r"choose another (--output)$", r"\1 {out}",
    ),
    "a report that is no page": ("report {run} --output {out}.pdf", r"end in (\.html);", r"--output {out}\1"),
    "tokens that don't learn by errors": (
        "train --features {scratch} --config {tiny} --steps 2 --output {out}", r"add (--set) (\S+=\w+)", r"\1 \2",
    ),
    "an example of outside samples": (
        "sweep --run {run} --scorer {gpt2} --external nosuch",
        r"for example (\w+)=\S+,(\d+),([.\d]+),", None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def scratch(succeed, gpt2, corpus, tmp_path_factory):
    """A store of tokens alone."""
    out = tmp_path_factory.mktemp("scratch") / "store"
    succeed(*f"extract-features --kind scratch --encoder {gpt2} --data {corpus} --seq-len 16 --output {out}".split())
    return out


@pytest.fixture
def places(trained, run_copy, store, gpt2, corpus, scratch, tiny_yaml, tmp_path):
    """What the words in braces stand for."""
    (tmp_path / "foreign").mkdir()
    for name in ("foreign/photo.jpg", "corpus_copy"):
        (tmp_path / name).write_text("somebody's")
    return {
        "run": run_copy, "store": store, "gpt2": gpt2, "corpus": corpus, "scratch": scratch, "tiny": tiny_yaml,
        "here": tmp_path, "out": tmp_path / "out", "run_copy": run_copy, "foreign": tmp_path / "foreign",
        "corpus_copy": tmp_path / "corpus_copy",
    }  # fmt: skip


def filled(line, places):
    return [part.format(**places) for part in line.split()]


@pytest.mark.parametrize("name", ADVICE)
def test_advice_works_when_it_is_followed(name, places, refuse, succeed):
    command, message, more = ADVICE[name]
    said = refuse(*filled(command, places))
    found = re.search(message, said)
    assert found, said
    if more is not None:
        succeed(*filled(command, places), *filled(found.expand(more), places))


# ----------------------------------------------------------------------------------------------------------------------
# Advice that takes more than one command


def test_an_output_of_other_settings_is_another_option_for_each_command(places, refuse, succeed, tmp_path):
    first, second, third = (filled(line, places) for line in (FINETUNE, f"{SAMPLE} --seed 0", TRAIN))
    trace = [*second[: second.index("--output")], "--trace", str(tmp_path / "trace")]
    for command, elsewhere in ((first, "other"), (trace, tmp_path / "b"), (third, tmp_path / "c")):
        succeed(*command)
        said = refuse(*command, "--seed", 1)
        option = re.search(r"choose another (--\w+), or add (--overwrite)$", said)
        assert option, said
        succeed(*command, "--seed", 1, option[1], elsewhere)
        succeed(*command, "--seed", 1, option[2])


def test_a_cosine_run_takes_the_steps_that_the_message_names(places, refuse, succeed):
    cosine = [*filled(TRAIN, places), "--set", "optimizer.lr_decay=cosine"]
    succeed(*cosine)
    said = refuse(*cosine, "--steps", 3)
    found = re.search(r"give (--steps) (\d+), choose another (--output), or add (--overwrite)", said)
    succeed(*cosine, "--steps", 3, found[1], found[2])
    succeed(*cosine, "--steps", 3, found[3], f"{places['out']}-b")
    succeed(*cosine, "--steps", 3, found[4])


def test_a_run_without_a_decoder_names_the_command_that_makes_one(places, refuse, succeed):
    deferred = places["here"] / "deferred"
    settings = ("--set", "model.token_decoder.mode=deferred", "--output", deferred)
    succeed(*filled(TRAIN, places), *settings)
    draw = filled(SAMPLE.replace("{run}", str(deferred)), places)
    found = re.search(r"run `ldlm (.* --features) DIR` first", refuse(*draw))
    succeed(*found[1].split(), places["store"], "--steps", 1)
    assert succeed(*draw)["decoder"] == "layers-2"
    succeed(*filled(TRAIN, places), *settings, "--steps", 3)  # whose decoder is of another checkpoint then
    said = refuse(*draw, "--overwrite")
    assert said.endswith("run `ldlm finetune-decoder` again with --overwrite")  # for there is no other
    succeed(*found[1].split(), places["store"], "--steps", 1, "--overwrite")
    succeed(*draw, "--overwrite")


def test_a_decoder_of_another_checkpoint_names_what_to_do(places, refuse, succeed, tiny_yaml):
    succeed(*filled(FINETUNE, places))
    longer = f"train --features {{store}} --config {{tiny}} --steps 10 --output {places['run']}"
    succeed(*filled(longer, places))
    found = re.search(r"run `ldlm (finetune-decoder)` again with (--overwrite), or choose (--decoder) (\w+)",
                      refuse(*filled(SAMPLE, places)))  # fmt: skip
    succeed(*filled(SAMPLE, places), found[3], found[4])
    succeed(*filled(FINETUNE, places), found[2])
    succeed(*filled(SAMPLE, places), "--overwrite")


def test_a_space_names_the_features_that_it_needs(places, refuse, succeed):
    command = [*filled(TRAIN, places), "--set", "model.space=embedding"]
    found = re.search(r"make them with `ldlm extract-features (--kind) (\w+)`", refuse(*command))
    other = places["here"] / "other"
    succeed(*filled(EXTRACT, places), found[1], found[2], "--output", other)
    succeed(*command, "--features", other)


@pytest.mark.parametrize(
    "name", ["config.yaml", "artifact.json", "store.json", "manifest.json", "tokenizer/tokenizer.json"]
)
def test_a_damaged_store_is_mended_as_it_says(places, refuse, succeed, ldlm, name):
    store = places["here"] / "store"
    extract = [*filled(EXTRACT, places), "--output", store]
    succeed(*extract)
    (store / name).write_text((store / name).read_text() + "\n")
    # All of them are read by who opens a store.
    opens = filled(TRAIN if name == "manifest.json" else TEXTS, places)
    opens = [str(store) if part == str(places["store"]) else part for part in opens]
    for said in (refuse(*opens), ldlm("features", "verify", store).stdout):
        found = re.search(r"`ldlm (features repair) (\S+)`|extract again with (--overwrite)", said)
        assert found, said
        assert (found[3] is not None) == (name in ("config.yaml", "artifact.json")), said
    succeed(*(extract if found[3] else found[1].split()), found[3] or found[2])
    succeed(*opens)


def test_a_store_that_is_not_sealed_names_both_ways_on(places, refuse, succeed, few, tmp_path):
    from ldlm.stages import extract_features

    extract_features.run(few, tmp_path / "few")
    for name in ("manifest.json", "ledger/train-00002.json"):  # as if it had been killed before
        (tmp_path / "few" / name).unlink()
    train = [*filled(TRAIN, places), "--features", tmp_path / "few"]
    found = re.search(r"run the same `ldlm extract-features` command again .* with (--allow-partial)$", refuse(*train))
    succeed(*train, found[1])
    extract_features.run(few, tmp_path / "few")
    succeed(*train, "--overwrite")


def test_an_online_run_may_be_overwritten_without_its_store(places, ldlm, succeed):
    text = filled("--encoder {gpt2} --data {corpus} --seq-len 16", places)
    train = [*filled(TRAIN, places), "--features", "online", *text]
    succeed(*train)
    made = (places["here"] / "out-features" / "manifest.json").stat().st_mtime_ns
    decay = ("--set", "optimizer.weight_decay=0.5")
    assert ldlm(*train, *decay).stderr.rstrip().endswith("or add --overwrite")
    succeed(*train, *decay, "--overwrite")
    assert (places["here"] / "out-features" / "manifest.json").stat().st_mtime_ns == made


def test_processes_that_a_launcher_starts_are_told_to_remove_what_they_can_not_overwrite(
    places, refuse, succeed, monkeypatch
):
    succeed(*filled(EXTRACT, places))
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2"), patch.setenv("RANK", "0")
        assert refuse(*filled(EXTRACT, places), "--seed", 1).endswith("choose another --output, or remove it")
        found = re.search(r"remove (\S+) first", refuse(*filled(EXTRACT, places), "--seed", 1, "--overwrite"))
    shutil.rmtree(found[1])
    succeed(*filled(EXTRACT, places), "--seed", 1)


def test_who_overwrites_and_is_interrupted_is_told_to_go_on_without_overwriting(places, ldlm, succeed, monkeypatch):
    command = [*filled(SAMPLE, places), "--num-samples", "4", "--batch-size", "2"]
    succeed(*command, "--seed", 1)
    from ldlm.sampling import generation

    real = generation.batches

    def held_up(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generation, "batches", held_up)
        patch.setattr(sys, "argv", ["ldlm", *command, "--overwrite"])
        said = ldlm(*command, "--overwrite").stderr.splitlines()[-1]
    assert said == "interrupted; the same command, without --overwrite, continues from what was kept, if anything"
    assert succeed(*command)["texts_made"] == 2


def test_a_string_that_yaml_takes_for_a_number_is_read_in_quotes(places, refuse, succeed):
    path = places["here"] / "c.yaml"
    path.write_text("text_column: 7\n")
    command = [*filled(EXTRACT, places), "--config", path, "--dry-run"]
    assert refuse(*command).endswith("in a YAML file, put it in quotes")
    path.write_text(yaml.safe_dump({"text_column": "7"}))
    succeed(*command)
