"""What a sweep keeps on disk so that nothing finished is lost, and it can go on after a kill.

    results.nc              the numbers so far, written every few seconds
    checkpoint/sweep        what is being trained, and with what; written once
    checkpoint/changes/*    with what it went on, where that may give other bits
    checkpoint/times/*      how long each process has worked on it
    checkpoint/finished/3   the numbers and the last weights of batch 3
    checkpoint/running/*    everything that batches under way need to go on
    checkpoint/lock         held by the process that began, and puts the numbers together

A batch is as many runs as the width, always the same ones; it is what trains on one device. Several
processes, on several machines, may keep their batches in the same folder: no two write under one
name, and none drops what another may need.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from purejaxdqn.engine.record import Record
from purejaxdqn.storage import arrays as checkpoint
from purejaxdqn.storage import results
from purejaxdqn.storage.arrays import CheckpointDamaged
from purejaxdqn.storage.results import CHECKPOINT, LOCK, claim
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError

_KEPT_EACH = 2  # checkpoints of a batch under way, so that a damaged one has one before it


class Paused(NamedTuple):
    """A batch under way.

    Attributes:
      step: environment steps of each run so far.
      state: the `TrainState`, as a list of host arrays.
      params_before: the weights at the evaluation before, the same way; empty without diagnostics.
      window: sums since the last evaluation, `[n]` by name.
      record: the numbers so far.
    """

    step: int
    state: list[np.ndarray]
    params_before: list[np.ndarray]
    window: dict[str, np.ndarray]
    record: Record


class SweepFolder:
    """The folder of one sweep.

    Args:
      output: an existing folder.
      say: takes messages for the user.
    """

    def __init__(self, output: Path, say: Callable[[str], None] = print) -> None:
        self.output = output
        self._say = say
        self._root = output / CHECKPOINT
        self._lock = filelock.FileLock(self._root / LOCK)
        self._damaged: set[str] = set()  # checkpoints that were tried in vain

    # ------------------------------------------------------------------------------ the whole sweep

    def lock(self) -> None:
        """Claims the folder until `unlock`, or the end of this process, however it ends.

        Raises:
          ConfigError: if another process has it.
          OSError: if it cannot be written.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        claim(self._lock, self.output)
        for half_written in self._root.rglob(f"{checkpoint.TEMPORARY}*"):
            shutil.rmtree(half_written, ignore_errors=True)
        for half_written in results.half_written(self.output / results.FILE_NAME):
            half_written.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Gives the folder back."""
        self._lock.release()

    def is_begun(self) -> bool:
        """Whether a sweep was begun here."""
        return (self._root / "sweep").exists()

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Forgets whatever was kept here, results too, and keeps what is to be trained."""
        (self.output / results.FILE_NAME).unlink(missing_ok=True)
        for name in ("sweep", "changes", "times", "finished", "running"):
            shutil.rmtree(self._root / name, ignore_errors=True)
        checkpoint.write(self._root / "sweep", [], facts)

    def begun(self) -> dict[str, Any]:
        """What is being trained here.

        Raises:
          ConfigError: if that can no longer be read.
        """
        try:
            facts: dict[str, Any] = checkpoint.read(self._root / "sweep")[1]
        except CheckpointDamaged as error:
            raise ConfigError(
                f"{self._root / 'sweep'} is damaged ({error}): nothing says any more what was "
                "trained there. Choose another folder with --output, or start again with "
                "--overwrite"
            ) from error
        return facts

    def note_change(self, line: str) -> None:
        """Keeps that what is trained from here on may have other bits, and why."""
        number = len(self._changes())
        name = f"{number}-{uuid.uuid4().hex[:8]}"
        checkpoint.write(self._root / "changes" / name, [], {"line": line})

    def changes(self) -> list[str]:
        """Why what was trained later may have other bits than what was trained first."""
        lines = []
        for folder in self._changes():
            try:
                line = checkpoint.read(folder)[1]["line"]
            except CheckpointDamaged as error:
                line = f"{folder.name}: what changed can no longer be read ({error})"
            if line not in lines:
                lines.append(line)
        return lines

    def keep_times(self, name: str, times: Mapping[str, float]) -> None:
        """Keeps what a process has spent so far, under a name of its own.

        Raises:
          OSError: if it cannot be written.
        """
        checkpoint.write(self._root / "times" / name, [], times)

    def times(self, beginning: str) -> Iterator[dict[str, float]]:
        """What earlier processes have spent, whose names have that beginning."""
        for folder in (self._root / "times").glob(f"{beginning}*"):
            with contextlib.suppress(CheckpointDamaged):  # they are of no weight
                yield checkpoint.read(folder)[1]

    def _changes(self) -> list[Path]:
        """Those that were noted, the first one first."""
        paths = (self._root / "changes").glob("*")
        noted = [path for path in paths if re.match(r"\d+-", path.name)]
        return sorted(noted, key=lambda path: int(path.name.partition("-")[0]))

    # ----------------------------------------------------------------------------- finished batches

    def save_finished(self, batch: int, record: Record) -> None:
        """Keeps a batch's numbers and weights for good.

        Raises:
          OSError: if they cannot be written.
        """
        arrays, facts = record.to_arrays()
        checkpoint.write(self._root / "finished" / str(batch), arrays, facts)

    def has_finished(self) -> bool:
        """Whether any batch is finished."""
        return (self._root / "finished").exists()

    def load_finished(self, batch: int, config: RunConfig) -> Record | None:
        """A batch's numbers, if it is finished and what was kept of it is undamaged."""
        folder = self._root / "finished" / str(batch)
        if not folder.exists():
            return None
        try:
            return Record.from_arrays(config, *checkpoint.read(folder))
        except CheckpointDamaged as error:
            self._say(f"{folder} is damaged ({error}): its runs are trained again")
            return None

    # ---------------------------------------------------------------------------- batches under way

    def save_running(self, paused: Mapping[int, Paused]) -> None:
        """Keeps batches under way, by number.

        Raises:
          OSError: if they cannot be written.
        """
        arrays: list[np.ndarray] = []
        facts = []
        for number, batch in paused.items():
            numbers, record_facts = batch.record.to_arrays()
            lists = [batch.state, batch.params_before, [*batch.window.values()], numbers]
            arrays += [array for part in lists for array in part]
            facts.append(
                {
                    "batch": number,
                    "lengths": [len(part) for part in lists],
                    "window": list(batch.window),
                    "record": record_facts,
                }
            )
        (step,) = {batch.step for batch in paused.values()}  # batches of one round share it
        # A process that was thought dead may still write the same: never under the same name.
        name = f"{step}-{min(paused)}-{uuid.uuid4().hex[:8]}"
        checkpoint.write(self._root / "running" / name, arrays, {"step": step, "batches": facts})
        self._prune()

    def load_running(self, batch: int, config: RunConfig) -> Paused | None:
        """A batch as it was kept last; of a damaged checkpoint, as it was kept before."""
        for folder in self._running():
            if folder.name in self._damaged:
                continue
            try:
                if batch not in _batches(checkpoint.read_manifest(folder)["facts"]):
                    continue
                arrays, facts = checkpoint.read(folder, lambda facts: _arrays_of(batch, facts))
            except CheckpointDamaged as error:
                if folder.exists():  # else another process had no more need of it
                    self._damaged.add(folder.name)
                    self._say(f"{folder} is damaged ({error}): going back to the checkpoint before")
                continue
            return _paused(batch, arrays, facts, config)
        return None

    def is_under_way(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(self._running())

    def forget_running(self) -> None:
        """Drops what is no longer needed once all batches are finished."""
        shutil.rmtree(self._root / "running", ignore_errors=True)

    def _running(self) -> list[Path]:
        """Checkpoints of batches under way, those that are furthest on first."""
        folder = self._root / "running"
        paths = [*folder.iterdir()] if folder.exists() else []
        return sorted(filter(_numbers, paths), key=_numbers, reverse=True)

    def _prune(self) -> None:
        """Drops checkpoints all of whose batches are finished, or have enough newer ones."""
        newer: dict[int, int] = {}
        for folder in self._running():
            try:
                batches = _batches(checkpoint.read_manifest(folder)["facts"])
            except CheckpointDamaged:
                batches = _numbers(folder)[1:2]  # it may only be out of reach for now
            if folder.name in self._damaged:
                batches = []
            wanted = [
                batch
                for batch in batches
                if newer.get(batch, 0) < _KEPT_EACH
                and not (self._root / "finished" / str(batch)).exists()
            ]
            for batch in batches:
                newer[batch] = newer.get(batch, 0) + 1
            if not wanted:
                shutil.rmtree(folder, ignore_errors=True)


def _numbers(folder: Path) -> list[int]:
    """The step of a checkpoint, and its first batch, by its name; empty for anything else."""
    match = re.match(r"(\d+)-(\d+)-", folder.name)
    return [] if match is None else [*map(int, match.groups())]


def _batches(facts: Mapping[str, Any]) -> list[int]:
    return [one["batch"] for one in facts["batches"]]


def _arrays_of(batch: int, facts: Mapping[str, Any]) -> range:
    """Which arrays of a checkpoint are a batch's."""
    begin = 0
    for one in facts["batches"]:
        end = begin + sum(one["lengths"])
        if one["batch"] == batch:
            return range(begin, end)
        begin = end
    raise AssertionError(f"batch {batch} is not in the checkpoint")


def _paused(
    batch: int, arrays: Sequence[np.ndarray], facts: Mapping[str, Any], config: RunConfig
) -> Paused:
    """A batch from its arrays in a checkpoint."""
    one = next(one for one in facts["batches"] if one["batch"] == batch)
    ends = np.cumsum(one["lengths"])
    state, params_before, sums, numbers = (
        [*arrays[end - length : end]] for end, length in zip(ends, one["lengths"], strict=True)
    )
    window = dict(zip(one["window"], sums, strict=True))
    record = Record.from_arrays(config, numbers, one["record"])
    return Paused(facts["step"], state, params_before, window, record)


_NOTHING = object()  # where JSON has no value, not even null


def differences(begun: Any, asked: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, a line each, such as "seeds: [0, 1] there, [0, 2] now"."""
    if isinstance(begun, dict) and isinstance(asked, dict):
        return [
            line
            for key in {**begun, **asked}
            for line in differences(
                begun.get(key, _NOTHING), asked.get(key, _NOTHING), f"{name}.{key}" if name else key
            )
        ]
    if begun == asked:
        return []
    return [f"{name}: {_short(begun)} there, {_short(asked)} now"]


def _short(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
