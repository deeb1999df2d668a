"""`ldlm features info|verify|repair|texts|bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ldlm.cli import show
from ldlm.cli.options import path_option, require
from ldlm.location import locate

DAMAGED = 3  # exit status of verify


@click.group(short_help="inspect and maintain a feature store: info, verify, repair, texts, bench")
def command() -> None:
    """Inspect, verify and repair a feature store, write its held-out text, and measure how fast it reads.

    \b
    Examples:
      ldlm features info features
      ldlm features texts features --rows 1000 --output real.jsonl
      ldlm features verify features && ldlm train --features features --output run
    """


def _store(function: Callable[..., Any]) -> Callable[..., Any]:
    json_option = click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
    return click.argument("store", metavar="DIR")(json_option(function))


def _show(result: Any, as_json: bool, text: Callable[[], str]) -> None:
    show.say(show.json_line(result) if as_json else text())


@command.command(short_help="sizes, codec and its error, encoder, statistics")
@_store
def info(store: str, as_json: bool) -> None:
    """Show sizes, codec and its error, encoder and statistics.

    \b
    Examples:
      ldlm features info features
      ldlm features info s3://bucket/features --json
    """
    from ldlm.stages import features as stage

    result = stage.info(locate(store))
    _show(result, as_json, lambda: show.pairs(result))
    for line in stage.remarks(locate(store), result["hard_links"]):
        show.Terminal().note(line)


@command.command(short_help="hash every byte against the ledger; exit status 3 when something differs")
@_store
def verify(store: str, as_json: bool) -> None:
    """Hash every byte and compare with the ledger; exit status 3, with the shards' names, when something differs.

    \b
    Example:
      ldlm features verify features && ldlm train --features features --output run
    """
    from ldlm.stages import features as stage

    faults = stage.verify(locate(store))
    lines = [f"{fault['shard']}: {fault['file']} {fault['problem']}" for fault in faults]
    lines += [stage.remedy(store, faults)] if faults else ["whole"]
    _show(faults, as_json, lambda: "\n".join(lines))
    if faults:
        click.get_current_context().exit(DAMAGED)


@command.command(short_help="write damaged and missing shards again")
@_store
@path_option("--encoder", "folder or hub name of the frozen encoder, if it has moved since extraction")
@click.option("--device", default="auto", metavar="TEXT", help="where the encoder runs  [default: auto]")
def repair(store: str, as_json: bool, encoder: str | None, device: str) -> None:
    """Write damaged and missing shards again, from the store's own text and encoder.

    An extraction that was not finished goes on, too. --encoder is accepted only if it is the encoder of the store.

    \b
    Examples:
      ldlm features repair features
      ldlm features repair features --encoder /new/place/encoder
    """
    from ldlm.stages import features as stage

    bad, _ = stage.repair(locate(store), encoder=encoder, device=device, progress=show.Terminal())
    _show({"repaired": bad}, as_json, lambda: f"made again: {', '.join(bad)}" if bad else "whole; nothing to do")


@command.command(short_help="held-out rows as text, to compare samples with")
@_store
@click.option(
    "--rows",
    default=1000,
    metavar="INT",
    type=click.IntRange(1),
    help="number of rows, from the first  [default: 1000]",
)
@click.option("--clean-up", is_flag=True, help="decode with the tokenizer's clean-up of spaces, as in `ldlm sample`")
@path_option("--output", "file to write, one JSON object per text", metavar="F.jsonl")
def texts(store: str, as_json: bool, rows: int, clean_up: bool, output: str | None) -> None:
    """Write held-out rows as text, cut and decoded like samples: the --reference of `evaluate` and `sweep`.

    Of a store without held-out rows it writes training rows, and says so.

    \b
    Example:
      ldlm features texts features --rows 1000 --output real.jsonl
    """
    from ldlm.stages import features as stage

    out = require(output, "--output", "real.jsonl")
    written = stage.texts(locate(store), rows, out, clean_up=clean_up, progress=show.Terminal())
    _show({"output": str(written)}, as_json, lambda: f"{rows:,} texts in {written}")


@command.command(short_help="read rate of shuffled batches, against a memory map of the same rows")
@_store
@click.option("--batch-size", default=32, metavar="INT", type=click.IntRange(1), help="rows per batch  [default: 32]")
@click.option(
    "--shuffle-rows",
    default=None,
    metavar="INT",
    type=click.IntRange(1),
    help="rows of the window within which rows are shuffled  [default: as in training]",
)
def bench(store: str, as_json: bool, batch_size: int, shuffle_rows: int | None) -> None:
    """Measure the read rate of shuffled batches as float32 tensors, against a memory map of the same rows.

    Meanwhile the map is in the temporary folder (TMPDIR). It has 512 MB of rows, or one window if that is more, and at
    most all rows; a window is 2 GiB or four batches by default. Two windows are in memory, as in training.

    \b
    Examples:
      ldlm features bench features
      ldlm features bench features --batch-size 512
    """
    from ldlm.stages import features as stage

    result = stage.bench(locate(store), batch_size=batch_size, shuffle_rows=shuffle_rows, progress=show.Terminal())
    _show(result, as_json, lambda: show.pairs(result))
