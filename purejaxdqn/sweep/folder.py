"""Keeps a sweep on disk: nothing finished is lost, and the sweep can be resumed after a kill.

    results.nc              the numbers so far, written every few seconds
    checkpoint/sweep        the runs that are trained, and the versions; written once
    checkpoint/changes/*    other versions that it was resumed with, which may give other bits
    checkpoint/times/*      how long each process has worked on it
    checkpoint/finished/3   the numbers and the last weights of batch 3
    checkpoint/running/*    everything that batches under way need to be resumed
    checkpoint/lock         held by the process that began, and puts the numbers together

Each of these but the lock is a checkpoint as `purejaxdqn.storage.checkpoint` writes it. A batch is
as many runs as the width, always the same ones; it is what trains on one device. Several processes,
on several machines, may keep their batches in the same folder: no two write under one name, and
none drops what another may need.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from purejaxdqn.engine.programs import Programs
from purejaxdqn.engine.rounds import Kept, Record
from purejaxdqn.storage import checkpoint, results
from purejaxdqn.storage.checkpoint import CheckpointDamaged
from purejaxdqn.storage.files import find_half_written
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError

FORMAT = 1  # of the folder; another number here means that older folders cannot be resumed
_KEPT_EACH = 2  # checkpoints of a batch under way, so that a damaged one has one before it


class Paused(NamedTuple):
    """One batch under way, as a checkpoint has it.

    It is on the host and has the numbers so far. The engine's `Kept` is a whole round of batches,
    on the devices and without these numbers.

    Attributes:
      step: environment steps of each run so far.
      state: the `TrainState`, as a list of host arrays.
      params_before: the weights at the evaluation before, likewise; empty without diagnostics.
      window: sums since the last evaluation, `[n]` by name.
      record: the numbers so far.
    """

    step: int
    state: list[np.ndarray]
    params_before: list[np.ndarray]
    window: dict[str, np.ndarray]
    record: Record


def copy_from_devices(
    programs: Programs, kept: Kept, rows: Mapping[int, slice], records: Mapping[int, Record]
) -> dict[int, Paused]:
    """Copies the batches of a round from the devices, by number.

    `rows` are the rows of the round that each batch has, in the order of the devices. On a CPU the
    arrays are the devices' own memory, to be read before the next chunk.
    """
    states = programs.split(kept.state)
    before = None if kept.params_before is None else programs.split(kept.params_before)
    return {
        number: Paused(
            kept.step,
            states[device],
            [] if before is None else before[device],
            {name: sums[at] for name, sums in kept.window.items()},
            records[number],
        )
        for device, (number, at) in enumerate(rows.items())
    }


def copy_to_devices(programs: Programs, paused: Sequence[Paused]) -> Kept:
    """Copies batches under way back onto the devices; empties their lists of arrays on the way."""
    first = paused[0]
    before = None
    if first.params_before:
        before = programs.join([one.params_before for one in paused], weights_only=True)
    window = {name: np.concatenate([one.window[name] for one in paused]) for name in first.window}
    return Kept(first.step, programs.join([one.state for one in paused]), before, window)


class SweepFolder:
    """Reads and writes the folder of one sweep. Writing raises `OSError` where the disk is full.

    Args:
      output: an existing folder.
      say: takes messages for the user.
    """

    def __init__(self, output: Path, say: Callable[[str], None] = print) -> None:
        self.output = output
        self._say = say
        self._root = output / results.CHECKPOINT
        self._lock = filelock.FileLock(self._root / results.LOCK)
        self._damaged: set[str] = set()  # checkpoints that could not be read

    # ------------------------------------------------------------------------------ the whole sweep

    def lock(self) -> None:
        """Locks the folder until `unlock`, or the end of this process, however it ends.

        Raises:
          ConfigError: if another process has it.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        results.acquire_lock(self._lock, self.output)
        for half_written in self._root.rglob(f"{checkpoint.TEMPORARY}*"):
            shutil.rmtree(half_written, ignore_errors=True)
        for half_written in find_half_written(self.output / results.FILE_NAME):
            half_written.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def is_begun(self) -> bool:
        """Tells whether a sweep was begun here."""
        return (self._root / "sweep").exists()

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Drops everything that was kept here, results too, and writes a sweep's description."""
        (self.output / results.FILE_NAME).unlink(missing_ok=True)
        for name in ("sweep", "changes", "times", "finished", "running"):
            shutil.rmtree(self._root / name, ignore_errors=True)
        checkpoint.write(self._root / "sweep", [], {**facts, "format": FORMAT})

    def read_begun(self) -> dict[str, Any]:
        """Reads the description of the sweep that was begun here.

        Raises:
          ConfigError: if it cannot be read, or another version of the package wrote the folder.
        """
        path = self._root / "sweep"
        remedy = "choose another folder with --output, or start again with --overwrite"
        try:
            facts: dict[str, Any] = checkpoint.read(path)[1]
        except CheckpointDamaged as error:
            raise ConfigError(
                f"{path} is damaged ({error}): nothing says any more what was trained there. "
                f"{remedy.capitalize()}"
            ) from error
        if facts.get("format") != FORMAT:
            found = f"format {facts['format']!r}" if "format" in facts else "no format number"
            raise ConfigError(
                f"the checkpoints in {self._root} are of another version of purejaxdqn ({found}, "
                f"where this version has format {FORMAT}): resume them with that version, {remedy}"
            )
        return facts

    def note_change(self, line: str) -> None:
        """Writes why runs from here on may have other bits than those before."""
        name = f"{len(self._change_folders())}-{uuid.uuid4().hex[:8]}"
        checkpoint.write(self._root / "changes" / name, [], {"line": line})

    def read_changes(self) -> list[str]:
        """Reads why later runs may have other bits than earlier ones."""
        lines = []
        for folder in self._change_folders():
            try:
                line = checkpoint.read(folder)[1]["line"]
            except CheckpointDamaged as error:
                line = f"{folder.name}: what changed can no longer be read ({error})"
            if line not in lines:
                lines.append(line)
        return lines

    def write_times(self, name: str, times: Mapping[str, float]) -> None:
        """Writes what a process has spent so far, under a name of its own."""
        checkpoint.write(self._root / "times" / name, [], times)

    def read_times(self, prefix: str) -> Iterator[dict[str, float]]:
        """Reads what earlier processes have spent, whose names begin with a prefix."""
        for folder in (self._root / "times").glob(f"{prefix}*"):
            with contextlib.suppress(CheckpointDamaged):  # times change no result
                yield checkpoint.read(folder)[1]

    def _change_folders(self) -> list[Path]:
        """Lists the folders of changes, the first one first."""
        paths = (self._root / "changes").glob("*")
        noted = [path for path in paths if re.match(r"\d+-", path.name)]
        return sorted(noted, key=lambda path: int(path.name.partition("-")[0]))

    # ----------------------------------------------------------------------------- finished batches

    def save_finished(self, batch: int, record: Record) -> None:
        """Writes a finished batch's numbers and weights."""
        arrays, facts = record.to_arrays()
        checkpoint.write(self._root / "finished" / str(batch), arrays, facts)

    def has_finished(self) -> bool:
        """Tells whether any batch is finished."""
        return (self._root / "finished").exists()

    def load_finished(self, batch: int, config: RunConfig) -> Record | None:
        """Reads a batch's numbers; None if the batch is not finished, or its checkpoint damaged."""
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
        """Writes one checkpoint of the batches under way in a round, by number."""
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
        # A process that was thought dead may still write the same batches: never under one name.
        name = f"{step}-{min(paused)}-{uuid.uuid4().hex[:8]}"
        checkpoint.write(self._root / "running" / name, arrays, {"step": step, "batches": facts})
        self._drop_old_checkpoints()

    def load_running(self, batch: int, config: RunConfig) -> Paused | None:
        """Reads a batch's last checkpoint; where it is damaged, the one before."""
        for folder in self._list_running():
            if folder.name in self._damaged:
                continue
            try:
                if batch not in _batches(checkpoint.read_manifest(folder)["facts"]):
                    continue
                arrays, facts = checkpoint.read(folder, lambda facts: _arrays_of(batch, facts))
            except CheckpointDamaged as error:
                if folder.exists():  # else another process has dropped it
                    self._damaged.add(folder.name)
                    self._say(f"{folder} is damaged ({error}): going back to the checkpoint before")
                continue
            return _unpack(batch, arrays, facts, config)
        return None

    def has_running(self) -> bool:
        """Tells whether there is a checkpoint of a batch under way."""
        return bool(self._list_running())

    def delete_running(self) -> None:
        """Deletes the checkpoints of batches under way, once all batches are finished."""
        shutil.rmtree(self._root / "running", ignore_errors=True)

    def _list_running(self) -> list[Path]:
        """Lists the checkpoints of batches under way, those of the latest step first."""
        folder = self._root / "running"
        paths = [*folder.iterdir()] if folder.exists() else []
        return sorted(filter(_step_and_batch, paths), key=_step_and_batch, reverse=True)

    def _drop_old_checkpoints(self) -> None:
        """Drops checkpoints all of whose batches are finished, or have enough newer ones."""
        newer: dict[int, int] = {}
        for folder in self._list_running():
            try:
                batches = _batches(checkpoint.read_manifest(folder)["facts"])
            except CheckpointDamaged:
                batches = _step_and_batch(folder)[1:]  # it may only be out of reach for now
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


def _step_and_batch(folder: Path) -> list[int]:
    """Reads the step of a checkpoint and its first batch from its name; nothing of other names."""
    match = re.match(r"(\d+)-(\d+)-", folder.name)
    return [] if match is None else [*map(int, match.groups())]


def _batches(facts: Mapping[str, Any]) -> list[int]:
    return [one["batch"] for one in facts["batches"]]


def _arrays_of(batch: int, facts: Mapping[str, Any]) -> range:
    """Finds the arrays of a batch in a checkpoint."""
    begin = 0
    for one in facts["batches"]:
        end = begin + sum(one["lengths"])
        if one["batch"] == batch:
            return range(begin, end)
        begin = end
    raise AssertionError(f"batch {batch} is not in the checkpoint")


def _unpack(
    batch: int, arrays: Sequence[np.ndarray], facts: Mapping[str, Any], config: RunConfig
) -> Paused:
    """Makes a batch of its arrays in a checkpoint."""
    one = next(one for one in facts["batches"] if one["batch"] == batch)
    ends = np.cumsum(one["lengths"])
    state, params_before, sums, numbers = (
        [*arrays[end - length : end]] for end, length in zip(ends, one["lengths"], strict=True)
    )
    window = dict(zip(one["window"], sums, strict=True))
    record = Record.from_arrays(config, numbers, one["record"])
    return Paused(facts["step"], state, params_before, window, record)
