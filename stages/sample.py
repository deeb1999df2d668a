"""Texts from noise: the reverse process of the run's method, and for LDLM one pass through a decoder (Section 4.3)."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldlm import config, files, fingerprints, locks, runtime
from ldlm.baselines.opening import open_source
from ldlm.config import AnySampleConfig, PromptConfig, SampleConfig
from ldlm.errors import InputError
from ldlm.evaluation import samples
from ldlm.location import check_output, folder_name, local
from ldlm.progress import SILENT, Progress, Task
from ldlm.sampling import generation
from ldlm.sampling.source import Generator, Source
from ldlm.versions import library_versions

STRANGE = "another process has drawn into it too; once that has ended, call this again with --overwrite"


def plan(config: AnySampleConfig, run_path: Path) -> dict[str, Any]:
    """Number of texts, evaluations of the network and FLOPs that `run` would take."""
    source = open_source(run_path, torch.device("cpu"), config.checkpoint)
    config = source.settled(config)
    source.check(config.sampler)
    return {"texts": source.texts(config), **source.cost(config)}


def draw(config: AnySampleConfig, run_path: Path, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Draw texts and write nothing; returns what `run` does, with the objects that it would write under `texts`."""
    source = open_source(run_path, runtime.device(config.device), config.checkpoint)
    asked, config = config, source.settled(config)
    source.check(config.sampler)
    generator = source.drawing(config)
    config = replace(config, num_samples=source.texts(config))
    provenance = _provenance(config, run_path, generator, source)
    source.remark(asked, progress)
    generator.compute.tell(progress)
    started = time.perf_counter()
    with progress.task("sample", config.num_samples, "text") as task:
        texts = [line for lines in _drawn(generator, config, source.tokenizer, 0, task) for line in lines]
    return {**provenance, **_cost(started, len(texts), generator), "texts": texts}


def run(
    config: AnySampleConfig, run_path: Path, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Write texts to `out`, a JSON object each; returns their record with the time that drawing took.

    Texts are appended to `out.partial` batch by batch, and the same call resumes an interrupted one. A finished file
    with fewer texts of the same settings is extended likewise, and stays as it is until the longer one is complete.
    `InputError` while another process draws texts for `out`.
    """
    check_output(out, "samples.jsonl", without="the texts are printed")
    source = open_source(run_path, runtime.device(config.device), config.checkpoint)
    asked, config = config, source.settled(config)
    generator = source.drawing(config)
    each, config = config.num_samples, replace(config, num_samples=source.texts(config))
    provenance = _provenance(config, run_path, generator, source)
    place = Place(files.target(out))
    if overwrite or not place.record.exists():  # a file that an earlier version began keeps its sampler
        source.check(config.sampler)
    with locks.to_itself(place.lock, _busy(out)):
        if overwrite:
            _check_spares(place, out, _reads(config, run_path))
            place.clear()
        _check_continues(place, out, provenance, config.num_samples // each)
        if place.texts == config.num_samples:
            place.finish(provenance)
            progress.note(f"{out} is complete; nothing to do")
            return files.read_json(place.record)

        source.remark(asked, progress)
        generator.compute.tell(progress)
        done = place.begin(provenance)
        started = time.perf_counter()
        with (
            files.writing(out),
            open(place.partial, "a", encoding="utf-8") as file,
            progress.task("sample", config.num_samples, "text", done) as task,
        ):
            for lines in _drawn(generator, config, source.tokenizer, done, task):
                if files.size(place.partial) != file.tell():  # where locks hold nothing, only this tells
                    raise InputError(_busy(out))
                file.write(files.dump_jsonl(lines))
                file.flush()
            os.fsync(file.fileno())

        place.finish(provenance)
        if place.texts != config.num_samples:
            begun = f"{place.partial} has {_lines(place.partial):,} texts of {config.num_samples:,}"
            raise InputError(f"{begun}: {STRANGE}")
        return {**provenance, **_cost(started, config.num_samples - done, generator)}


def _busy(out: Path) -> str:
    return f"another process draws texts for {out}; wait for it, or choose another --output"


def _drawn(
    generator: Generator, config: AnySampleConfig, tokenizer: Any, done: int, task: Task
) -> Iterator[list[dict[str, Any]]]:
    """The lines of each batch of texts from number `done` on; a batch is reported once its lines are consumed."""
    for seeds_B, tokens_BL in generation.batches(generator, config, done):
        yield generator.lines(tokenizer, tokens_BL, seeds_B, config.clean_up)
        task.advance(len(seeds_B))


def _cost(started: float, texts: int, generator: Generator) -> dict[str, Any]:
    """Time, place, texts and evaluations of the drawing, for the result but not for the record."""
    seconds, device = round(time.perf_counter() - started, 2), generator.compute.device
    return {"seconds": seconds, **runtime.occasion(device), "texts_made": texts, **generator.figures()}


def _provenance(sample: AnySampleConfig, path: Path, generator: Generator, source: Source) -> dict[str, Any]:
    settings = config.identity(sample)
    # The settings of --trace don't change texts. Records of earlier versions have no `clean_up`, which was off.
    names = [name for name in settings if not name.startswith("trace_") and (name != "clean_up" or sample.clean_up)]
    if "prompts" in generator.record:  # it has their hash, wherever they come from
        settings["prompting"] = {"prompt_guidance": settings["prompting"]["prompt_guidance"]}
    else:
        names = [name for name in names if name != "prompting"]
    return {
        "kind": "samples",
        "config": {name: settings[name] for name in names},
        **generator.record,
        "precision": generator.compute.precision,
        "weights_precision": source.weights_precision,
        "run": folder_name(path),
        **samples.record_of(source.tokenizer, sample.clean_up),
        **source.origin,
        "versions": library_versions(),
    }


# ----------------------------------------------------------------------------------------------------------------------
# The file, the partial file and the record beside it


@dataclass(frozen=True)
class Place:
    """A file of texts (not a link), the partial file that is being written, and the record beside them."""

    path: Path

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    @property
    def lock(self) -> Path:
        """The file that a process locks while it draws; the others can't serve, since they are replaced meanwhile."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def record(self) -> Path:
        return samples.record_path(self.path)

    @property
    def foreign(self) -> bool:
        """Whether the record, or a file without one, is not of `ldlm sample`."""
        if not self.record.exists():
            return self.path.exists()
        try:
            return bool(files.read_json(self.record).get("kind", "samples") != "samples")
        except InputError:  # damaged, or emptied by `clear`
            return False

    @property
    def texts(self) -> int:
        """Number of texts in the finished file; 0 if there is none."""
        return _lines(self.path)

    def clear(self) -> None:
        """Remove the three files; one that is a mount point is emptied."""
        for path in (self.path, self.partial, self.record):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                os.truncate(path, 0)

    def begin(self, provenance: Mapping[str, Any]) -> int:
        """Make the partial file, with the texts that are already there; returns their number.

        The record of a new file is written first. That of a finished file stays until the longer one is complete.
        """
        files.make_folder(self.path.parent)
        if not self.texts:
            if not self.record.exists():  # texts of unknown origin
                self.partial.unlink(missing_ok=True)
            files.write_json(self.record, provenance)
        elif _lines(self.partial) < self.texts:
            copy = self.partial.with_name(self.partial.name + ".tmp")
            with files.writing(copy):
                shutil.copyfile(self.path, copy)
            copy.replace(self.partial)
        if self.partial.exists():  # drop a line that a kill cut off
            data = self.partial.read_bytes()
            files.write_atomic(self.partial, data[: data.rfind(b"\n") + 1])
        return self._in_order(provenance)

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Rename the partial file, once it is complete, and update the record; calling it again changes nothing."""
        count = provenance["config"]["num_samples"]
        if _lines(self.partial) == count == self._in_order(provenance):
            files.put(self.partial, self.path)
        if files.read_json(self.record)["config"]["num_samples"] != count:
            files.write_json(self.record, provenance)

    def _in_order(self, provenance: Mapping[str, Any]) -> int:
        """Number of texts in the partial file; `InputError` if they are not the first ones in order, each once."""
        seeds = [line.get("seed") for line in files.read_jsonl(self.partial)] if self.partial.exists() else []
        wanted = generation.text_seeds(provenance["config"]["seed"], 0, len(seeds)).tolist()
        for number, (seed, due) in enumerate(zip(seeds, wanted, strict=True), 1):
            if seed != due:
                where = f"line {number:,} of {self.partial} has the text of seed {seed}, and not of {due}"
                raise InputError(f"{where}: {STRANGE}")
        return len(seeds)


def _lines(path: Path) -> int:
    """Number of whole lines."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(files.PART), b""))


def _check_continues(place: Place, out: Path, provenance: Mapping[str, Any], prompts: int) -> None:
    """`InputError` if the requested texts do not continue those in the file (SPEC 12.1, 13.3).

    With prompts, of which there are `prompts`, --num-samples counts the texts of each.
    """
    if place.foreign and (files.size(place.path) or place.record.exists()):  # an empty file is as good as none
        raise InputError(f"{out} exists and was not made by ldlm sample; choose another --output, or add --overwrite")
    if place.record.exists():
        before = _identity(files.read_json(place.record))
        changed = config.differences(before, fingerprints.as_recorded(_identity(provenance), before))
        if changed:
            raise InputError(
                f"{out} was made differently ({'; '.join(changed)}); choose another --output, or add --overwrite"
            )
    wanted, there = provenance["config"]["num_samples"], place.texts
    asked = f"--num-samples {wanted // prompts}"
    if there > wanted:
        raise InputError(
            f"{out} holds {there:,} texts of these settings already, and {asked} asks for fewer; take "
            f"its first {wanted:,} lines, choose another --output, or add --overwrite"
        )
    begun = _lines(place.partial)
    if there < wanted < begun:
        raise InputError(
            f"{begun:,} texts for {out} are drawn already, and {asked} asks for fewer; continue with "
            f"--num-samples {-(-begun // prompts)} or more, choose another --output, or add --overwrite"
        )


def _reads(config: AnySampleConfig, run_path: Path) -> list[Path]:
    """The files and folders that drawing reads."""
    prompting = config.prompting if isinstance(config, SampleConfig) else PromptConfig()
    return local(run_path, prompting.prompts, prompting.encoder)


def _check_spares(place: Place, out: Path, reads: Sequence[Path]) -> None:
    """`InputError` if --overwrite would delete a file that is to be read; texts drawn into a run may be replaced."""
    own = [path.resolve() for path in (place.path, place.partial, place.record)]
    for read in reads:
        if read.resolve() in own or (place.foreign and own[0].is_relative_to(read.resolve())):
            what = f"{out}, a file of {read}" if read.is_dir() else read
            raise InputError(f"--overwrite would delete {what}, which is to be read; choose another --output")


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the texts depend on: the settings except their number, and decoder, checkpoint and precision.

    The names by which the user chose decoder and checkpoint are left out: the record has both beside the settings. So
    are settings that change no text, which earlier versions took.
    """
    kept = {key: provenance.get(key) for key in ("decoder", "precision", "checkpoint", "prompts", "self_conditioned")}
    kept |= {key: provenance[key] for key in fingerprints.LATER if key in provenance}
    settings: Mapping[str, Any] = provenance.get("config", {})
    named = ("num_samples", "decoder", "checkpoint", "trace_text", "trace_frames", "trace_times")
    own = {name: value for name, value in settings.items() if name not in named}
    if "sampler" in own:
        own["sampler"] = config.used_in_record(provenance.get("method", config.LDLM), own["sampler"])
    return {"config": own, **kept}
