"""The output of a training run: begun, or resumed from what an earlier process left in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ldlm import artifact, files, fingerprints, kinds, locks
from ldlm.artifact import Artifact
from ldlm.completion import is_complete
from ldlm.config import from_stored
from ldlm.errors import InputError, Occupied
from ldlm.features.store import FeatureStore, Split
from ldlm.features.stream import Stream, default_window
from ldlm.progress import Progress
from ldlm.training import checkpoint
from ldlm.training.learner import Bound, Learner

PARTIAL = "training on what is there, which can be resumed only while the store has these shards and no others"


def begin(
    learner: Learner,
    out: Path,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    *,
    reads: Sequence[Path],
    rows: Split,
    overwrite: bool,
    held: ExitStack,
    progress: Progress,
) -> Artifact:
    """Begin or resume the output `out` of a learner, locked against other jobs until `held` closes.

    `reads` are folders that must not be overwritten, and `rows` those of the training. A finished output is resumed if
    the learner has more steps to take, unless something fixes their number (`Learner.binds_steps`). All processes of
    the job get what the main one finds.
    """
    if overwrite:
        rows.try_encoder(learner.device)
    steps = learner.config.steps
    bound = learner.binds_steps
    if bound is not None:
        inputs = {**inputs, "steps": steps}

    def begin_alone() -> str:
        if not overwrite:
            _check_steps(out, steps, bound)
        try:
            result = artifact.begin(out, kind, config, inputs, overwrite=overwrite, reads=reads, held=held)
        except Occupied as error:
            raise Occupied(f"{error}{_of_features(out, inputs)}") from None
        if not result.complete:
            return result.state
        held.enter_context(locks.exclusive_lock(out))
        if not is_complete(out):  # another process has gone on with it since it was looked at
            return "partial"
        return _go_on(result, config, learner.steps, progress)

    state = learner.world.main_only(begin_alone)
    return Artifact(out, kind, learner.world.from_main(state))


def _go_on(finished: Artifact, config: Any, steps: int, progress: Progress) -> str:
    """State of a finished output: complete, or partial again if more `steps` are requested than were taken."""
    done = finished.manifest["step"]
    if done < steps:
        finished.write_config(config)
        (finished.path / "manifest.json").unlink()
        return "partial"
    fewer = "" if done == steps else f", and {steps} are asked for"
    progress.note(f"{finished.path} is complete at step {done}{fewer}; nothing to do")
    return "complete"


def _check_steps(out: Path, steps: int, bound: Bound | None) -> None:
    """`InputError` if `out` was begun for a number of steps other than `steps` and something fixes that number."""
    record = out / "artifact.json"
    found = files.read_json(record) if record.is_file() else {}
    begun, place = found.get("inputs", {}).get("steps"), kinds.NAMED_BY.get(found.get("kind", ""), "--output")
    if bound is not None and begun not in (None, steps):
        raise InputError(
            f"{out} was begun for {begun} steps, over which {bound.why}, so it can't continue to {steps}; give "
            f"--steps {begun}, choose another {place}, or add --overwrite (with {bound.unless} it could continue to "
            f"any number)"
        )


def _of_features(out: Path, inputs: Mapping[str, Any]) -> str:
    """The reason, as text, why the features of `out` are not those of `inputs`; empty if they are."""
    begun = files.read_json(out / "artifact.json").get("inputs", {})
    if fingerprints.as_recorded(inputs, begun).get("features") == begun.get("features"):
        return ""
    if "shards" not in begun:  # of a sealed store, or by an earlier version
        return "; its features have grown or changed since, or are others"
    there = f"{inputs['shards']} are" if "shards" in inputs else "all are"
    return f"; it was begun on {begun['shards']} shards of a store that was not sealed, and {there} there now"


def shuffle_rows(config: Any, out: Path, split: Split, batch_size: int, *, overwrite: bool) -> int:
    """Rows in the shuffle window of the output `out`: as configured, else as it was begun, else the default.

    An output older than the setting keeps the window that all outputs had then.
    """
    if config.shuffle_rows is None and not overwrite and (out / "config.yaml").is_file():
        settings = files.read_yaml(out / "config.yaml")
        # `begin` says more about the other settings, which may be those of another command.
        own = {key: value for key, value in settings.items() if key == "shuffle_rows"}
        window: int = from_stored(type(config), own).shuffle_rows
        return window
    return config.shuffle_rows or default_window(split, batch_size)


def resume(learner: Learner, stream: Stream, begun: Artifact, store: FeatureStore, progress: Progress) -> bool:
    """Continue from the newest checkpoint that verifies, the same in all processes; False if there is none.

    The user is told what may be missing in the store, and in the output.
    """
    assert isinstance(begun.path, Path)  # only features may be objects
    folder = begun.path / "checkpoints"
    _remark(begun, folder, store, progress)
    newest = checkpoint.latest(folder) if learner.world.main else None
    name = learner.world.from_main(None if newest is None else newest.path.name)
    if name is None:
        return False
    learner.load(checkpoint.Checkpoint(folder / name))
    stream.position = learner.position
    progress.note(f"resuming from step {learner.step}")
    return True


def _remark(begun: Artifact, folder: Path, store: FeatureStore, progress: Progress) -> None:
    """Note rows that are missing, evaluations on training rows, and an output of which nothing has been saved."""
    if not store.sealed:
        progress.note(f"{store.path} is not sealed: {store.missing()}; {PARTIAL}")
    if store.held_out().name == "train":
        progress.note(f"{store.path} has no held-out rows, so evaluations are on training rows")
    if begun.state == "partial" and not checkpoint.all_in(folder):
        progress.note(f"{begun.path} was begun and has no checkpoint yet; starting from step 0")
