"""`ldlm evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, changed, path_option, require_place, stage_options
from ldlm.config import EvaluateConfig
from ldlm.errors import InputError

if TYPE_CHECKING:
    from ldlm.evaluation.scores import FileScores, SeedScores, Spread
    from ldlm.evaluation.validity import SourceScores, SourceSeedScores

NUMBERS = {"stories": "whole stories", "sentences": "whole sentences", "cut_sentences": "cut sentences"}
VALIDITY = {
    "stories_valid": "valid, of whole stories",
    "sentences_valid": "valid, of whole sentences",
    "cut_sentences_valid": "valid, of cut sentences",
    "nats_per_story": "nats per valid story",
    "nats_per_word": "nats per word of valid stories",
    "coverage": "choices that occur",
    "entropy": "entropy",
    "diversity": "diversity",
}
NAMES = {"gen_ppl": "gen. ppl", "entropy": "entropy", "diversity": "diversity"}
# Settings that --source has no use for.
OF_SCORER = ("scorer", "protocol", "max_tokens", "boundaries", "mauve_model", "resamples")
ASKED_FOR = {"mauve": "mauve", "copied_8grams": "copied 8-grams"}


@click.command(cls=Command, short_help="score anybody's texts: perplexity, entropy, diversity, MAUVE")
@click.argument("texts", nargs=-1, metavar="FILE...")
@stage_options(EvaluateConfig, overwrite=False)
@path_option("--reference", "real text to compare with", metavar="FILE")
@click.option(
    "--seeds", is_flag=True, help="the files, or those in the folders, are seeds of one model: also show mean ± std"
)
@click.option("--mauve", "with_mauve", is_flag=True, help="MAUVE against --reference; needs the extra ldlm[mauve]")
@path_option(
    "--training",
    "feature store: show the share of the texts' 8-grams that its training text contains",
    anywhere=True,
)
@path_option("--features-p", "features of the texts, (texts, width), computed elsewhere, for MAUVE", metavar="FILE.npy")
@path_option("--features-q", "features of the reference, (texts, width), for MAUVE", metavar="FILE.npy")
@click.option("--no-cache", is_flag=True, help="neither read nor write the cache of scores, XDG_CACHE_HOME/ldlm/scores")
def command(
    options: Options,
    texts: tuple[str, ...],
    reference: str | None,
    seeds: bool,
    with_mauve: bool,
    training: str | None,
    features_p: str | None,
    features_q: str | None,
    no_cache: bool,
) -> None:
    """Score texts by generative perplexity, and by entropy and diversity, since collapse lowers perplexity.

    With --source stories, for models trained on `ldlm stories`: how many are valid and how likely they are, without a
    scorer.

    The files, from anybody's model, are JSON with a "text" field, parquet, or plain text with a text per line; - is
    standard input.

    \b
    Examples:
      ldlm evaluate samples.jsonl --reference real.jsonl --scorer gpt2-large --max-tokens 128
      ldlm evaluate seed-*.jsonl --seeds --reference real.jsonl --mauve
      ldlm evaluate samples.jsonl --reference real.jsonl --training features
      ldlm evaluate bert.jsonl --boundary-tokens "[CLS]" "[SEP]" --scorer gpt2-large
      ldlm evaluate --features-p samples.npy --features-q real.npy
      ldlm evaluate --source stories samples.jsonl
      ldlm evaluate --source stories seed-*.jsonl --seeds
    """
    config = options.build()
    others = {"--reference": reference, "--mauve": with_mauve, "--training": training}
    if features_p or features_q:
        others |= {"--seeds": seeds, "--dry-run": options.dry_run}
        return _show_mauve(options, config, texts, features_p, features_q, [one for one in others if others[one]])
    if not texts:
        raise InputError("no texts to evaluate; for example ldlm evaluate samples.jsonl")
    if config.source is not None:
        return _by_source(options, config, texts, seeds, [flag for flag, given in others.items() if given])
    if config.mauve_model is not None and not with_mauve:
        raise InputError("--mauve-model chooses the model of --mauve; add --mauve, or leave --mauve-model out")
    from ldlm.evaluation import scorecache, scores
    from ldlm.stages import evaluate as stage

    paths, real = [Path(text) for text in texts], None if reference is None else Path(reference)
    if options.dry_run:
        return options.show_plan(stage.plan(config, paths, real, seeds=seeds))
    results = stage.run(
        config,
        paths,
        real,
        seeds=seeds,
        with_mauve=with_mauve,
        training=None if training is None else require_place(training, "--training", "features"),
        cache=None if no_cache else scorecache.folder(),
        progress=show.Terminal(),
    )
    over_seeds = scores.over_seeds(results) if seeds else None
    options.show(_record(results, over_seeds, config.device), lambda: _table(results, over_seeds))


def _record(results: list[FileScores], over_seeds: SeedScores | None, device: str) -> dict[str, Any]:
    from ldlm import runtime
    from ldlm.versions import library_versions

    own = [result.to_json() for result in results if result.role == "texts"]
    reference = [result.to_json() for result in results if result.role == "reference"]
    return {
        **({"over_seeds": over_seeds.to_json()} if over_seeds else {}),
        **(own[0] if len(own) == 1 else {"files": own}),
        **({"reference": reference[0]} if reference else {}),
        **runtime.occasion(runtime.device(device)),
        "versions": library_versions(),
    }


def _show_mauve(
    options: Options,
    config: EvaluateConfig,
    texts: tuple[str, ...],
    features_p: str | None,
    features_q: str | None,
    others: list[str],
) -> None:
    if not features_p or not features_q or texts:
        raise InputError("MAUVE of features takes --features-p FILE.npy and --features-q FILE.npy, and no texts")
    names = [field.name for field in dataclasses.fields(config) if field.metadata["identity"]]
    if idle := ", ".join([*others, *changed(config, names)]):
        are = "are" if "," in idle else "is"
        raise InputError(
            f"--features-p and --features-q give the MAUVE of features, and {idle} {are} for texts; leave {idle} out"
        )
    from ldlm.stages import evaluate as stage

    found = stage.mauve_of_features(Path(features_p), Path(features_q))
    options.show(found, lambda: show.pairs({key: found[key] for key in ("mauve", "file", "reference")}))


def _by_source(
    options: Options, config: EvaluateConfig, texts: tuple[str, ...], seeds: bool, others: list[str]
) -> None:
    if idle := ", ".join([*others, *changed(config, OF_SCORER)]):
        raise InputError(f"--source compares with real texts of its own and needs no {idle}; leave {idle} out")
    from ldlm.evaluation import validity
    from ldlm.stages import evaluate as stage

    paths = [Path(text) for text in texts]
    if options.dry_run:
        return options.show_plan(stage.plan(config, paths, None, seeds=seeds))
    found = stage.by_source(config, paths, seeds=seeds, progress=show.Terminal())
    own, over_seeds = [scores.to_json() for scores in found], validity.over_seeds(found) if seeds else None
    record = {
        **({"over_seeds": over_seeds.to_json()} if over_seeds else {}),
        **(own[0] if len(own) == 1 else {"files": own}),
    }
    options.show(record, lambda: _validities(found, over_seeds))


def _validities(found: list[SourceScores], over_seeds: SourceSeedScores | None) -> str:
    """All tables: one for each file, one of their mean over seeds, and the figures of the source itself."""
    first = found[0]
    return "\n\n".join(
        [
            *map(_validity, found),
            *([_over_seeds(over_seeds)] if over_seeds else []),
            f"the source itself: {show.value(first.source_nats_per_story)} nats per story, "
            f"{show.value(first.source_nats_per_word)} per word, "
            f"{show.value(first.source_words_per_story)} words per story\n"
            "fewer nats than in real texts mean collapse, not quality; where rows cut stories, the whole ones are "
            "short, in real texts as well",
        ]
    )


def _over_seeds(over_seeds: SourceSeedScores) -> str:
    """Mean ± std of all figures over files, and of the real texts beside them."""

    def cell(name: str, figure: Spread) -> str:
        return "-" if figure.mean is None else _spread(name, figure, over_seeds.files)

    rows = [
        (VALIDITY[name], cell(name, one), cell(name, over_seeds.real[name])) for name, one in over_seeds.figures.items()
    ]
    rows += [(f"violations: {kind}", cell(kind, one), "0") for kind, one in over_seeds.violations.items() if one.mean]
    return show.table((f"mean ± std of {over_seeds.files} seeds", "texts", "real"), rows)


def _validity(scores: SourceScores) -> str:
    """The table of a file judged by a source, beside real texts."""
    record, real = scores.found.to_json(), scores.real.to_json()
    rows: list[tuple[Any, ...]] = [
        *((name, record[key], real[key]) for key, name in NUMBERS.items()),
        *((name, _figure(record, key), _figure(real, key)) for key, name in VALIDITY.items()),
        *((f"violations: {kind}", n, real["violations"][kind]) for kind, n in record["violations"].items() if n),
    ]
    for back, number in record["distances"].items():
        rows.append((f"contradicting {_back(int(back))}", number, real["distances"].get(back, 0)))
    return show.table((scores.file, "texts", "real"), rows)


def _back(sentences: int) -> str:
    return {0: "its own sentence", 1: "the sentence before"}.get(sentences, f"{sentences} sentences back")


def _table(results: list[FileScores], over_seeds: SeedScores | None) -> str:
    heads = NAMES | {name: head for name, head in ASKED_FOR.items() if name in results[0].to_json()}
    rows: list[tuple[Any, ...]] = []
    for record in (result.to_json() for result in results):
        file = record["file"] + (" (reference)" if record["role"] == "reference" else "")
        rows.append((file, *(_figure(record, name) for name in heads), record["num_texts"]))
    if over_seeds is not None:
        means = (_spread(name, over_seeds.figures[name], over_seeds.files) for name in heads)
        rows.append((f"mean ± std of {over_seeds.files} seeds", *means, over_seeds.texts_each))
    return "\n".join([show.table(("", *heads.values(), "texts"), rows), "", *_foot(results)])


def _figure(result: dict[str, Any], name: str) -> str:
    """A cell of the table: a figure with its interval, or - if there is none."""
    if result.get(name) is None:
        return "-"
    interval = result["intervals"].get(name)
    return _value(name, result[name]) + (f" [{', '.join(map(show.value, interval))}]" if interval else "")


def _spread(name: str, figure: Spread, files: int) -> str:
    """A cell of the table: mean ± standard deviation, with the number of files if some lack the figure."""
    some = "" if figure.files == files else f" ({figure.files} of {files})"
    return f"{_value(name, figure.mean)} ± {_value(name, figure.std)}{some}"


def _value(name: str, value: float | None) -> str:
    """A figure as the table shows it; the share of copied text is small, and shown in per cent."""
    return f"{value:.2%}" if name == "copied_8grams" and value is not None else show.value(value)


def _foot(results: list[FileScores]) -> list[str]:
    first = results[0].scores
    unknown = [result.file for result in results if not result.scores.boundary_tokens]
    known = f" (none known{'' if len(unknown) == len(results) else ' for ' + ', '.join(unknown)})" if unknown else ""
    lines = [
        f"protocol {first.protocol}, boundaries {first.boundaries}{known}, scorer {first.scorer}, at most "
        f"{first.max_tokens} tokens a text; "
        "[95 % bootstrap interval over texts]"
    ]
    fewest = first.diversity_texts
    if any(result.scores.num_texts > fewest for result in results):
        few = "text" if fewest == 1 else f"{fewest:,} texts"
        lines.append(f"diversity is that of the first {few} of each, since it falls as their number grows")
    counted = {whose: _files(results, whose) for whose in ("file", "scorer")}
    if not all(counted.values()):
        whose = "tokens in the file" if counted["file"] else "scorer's tokens"
        lines.append(f"entropy and diversity count the {whose}")
    else:
        lines.append(
            f"entropy and diversity count the tokens in the file for {counted['file']}, and the scorer's for "
            f"{counted['scorer']}; they compare only if both are of one tokenizer"
        )
    for result in results:
        if result.scores.gen_ppl is None:
            lines.append(f"{result.file}: no text has a token to score, so there is no perplexity")
        elif unscored := result.scores.num_texts - result.scores.texts_scored:
            lines.append(f"{result.file}: {unscored:,} texts have no token to score; perplexity is that of the others")
    return lines


def _files(results: list[FileScores], whose: str) -> str:
    """The files whose entropy and diversity count these tokens."""
    return ", ".join(result.file for result in results if result.scores.tokens_from == whose)
