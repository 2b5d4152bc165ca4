"""Keeps a sweep on disk: nothing finished is lost, and the sweep can be resumed after a kill.

docs/architecture.md says what lies in the folder; all of it but the results and the lock are
checkpoints of `purejaxdqn.storage.checkpoint`. Several processes, on several machines, may keep
their batches in one folder: no two write under one name, and none drops what another may need.
"""

import collections
import contextlib
import itertools
import json
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
from purejaxdqn.storage.files import TEMPORARY
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError

FORMAT = 4  # of the folder; another number here means that older folders cannot be resumed
# Of a checkpoint that is damaged, or that something else has written.
_UNREADABLE = (CheckpointDamaged, AttributeError, IndexError, KeyError, TypeError, ValueError)
_KEPT_EACH = 2  # checkpoints of a batch under way, so that a damaged one has one before it


class Paused(NamedTuple):
    """One batch under way, as a checkpoint has it: on the host, and with the numbers so far.

    Trees are lists of arrays, and `params_before` is empty without diagnostics.
    """

    step: int
    state: list[np.ndarray]
    params_before: list[np.ndarray]
    window: dict[str, np.ndarray]
    record: Record


def copy_from_devices(
    programs: Programs, kept: Kept, rows: Mapping[int, slice], records: Mapping[int, Record]
) -> dict[int, Paused]:
    """Copies the batches of a round, which have these rows, from the devices, by number.

    On a CPU the arrays are the devices' own memory, to be read before the next chunk.
    """
    states, before = programs.split(kept.state), programs.split(kept.params_before)
    paused = {}
    for device, (number, at) in enumerate(rows.items()):
        window = {name: sums[at] for name, sums in kept.window.items()}
        paused[number] = Paused(kept.step, states[device], before[device], window, records[number])
    return paused


def copy_to_devices(programs: Programs, paused: Sequence[Paused]) -> Kept:
    """Copies batches under way back onto the devices; empties their lists of arrays on the way."""
    first = paused[0]
    before = None
    if first.params_before:
        before = programs.join([one.params_before for one in paused], weights_only=True)
    window = {name: np.concatenate([one.window[name] for one in paused]) for name in first.window}
    state = programs.join([one.state for one in paused])
    return Kept(first.step, state, before, window, is_restored=True)


class SweepFolder:
    """Reads and writes the folder of one sweep. Writing raises `OSError` where the disk is full.

    The folder exists already; `say` takes messages for the user.
    """

    def __init__(self, output: Path, say: Callable[[str], None] = print) -> None:
        self.output = output
        self.say = say
        self._root = output / results.CHECKPOINT
        self._lock = filelock.FileLock(self._root / results.LOCK)
        self._damaged: set[str] = set()  # checkpoints that could not be read
        self._made: list[Path] = []  # by `lock`, the innermost first

    def lock(self) -> None:
        """Locks the folder until `unlock` or the end of this process; refused if another has it."""
        if self._lock.is_locked:
            return
        paths = [self._root / results.LOCK, self._root, *self._root.parents]
        self._made = [path for path in paths if not path.exists()]
        self._root.mkdir(parents=True, exist_ok=True)
        try:
            results.acquire_lock(self._lock, self.output)
        except results.Locked:
            self._made = []  # it is the other process's now
            raise

    def unlock(self) -> None:
        """Unlocks the folder; where nothing was begun there, what `lock` made is gone again."""
        with contextlib.suppress(OSError):  # another process may have come since
            for path in [] if self.is_begun() else self._made:
                path.rmdir() if path.is_dir() else path.unlink()
        self._made = []
        results.release_lock(self._lock)

    def is_there(self) -> bool:
        """Tells whether anything was ever kept here."""
        return self._root.exists()

    def clean(self) -> None:
        """Deletes what killed processes have left half written."""
        for half_written in [
            *self._root.rglob(f"{TEMPORARY}*"),
            *self.output.glob(f"{TEMPORARY}*"),
        ]:
            if half_written.is_dir():
                shutil.rmtree(half_written, ignore_errors=True)
            else:
                half_written.unlink(missing_ok=True)

    def is_begun(self) -> bool:
        """Tells whether a sweep was begun here."""
        return (self._root / "sweep").exists()

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Drops everything that was kept here, results too, and writes a sweep's description."""
        for place in (self.output, self._root):
            (place / results.FILE_NAME).unlink(missing_ok=True)
        for name in ("sweep", "changes", "times", "trials", "finished", "running"):
            checkpoint.remove(self._root / name)
        checkpoint.write(self._root / "sweep", [], {**facts, "format": FORMAT})

    def read_begun(self) -> dict[str, Any]:
        """Reads what sweep was begun here; refuses damaged folders, and those of other versions."""
        path = self._root / "sweep"
        remedy = "choose another folder with --output, or start again with --overwrite"
        try:
            facts: dict[str, Any] = checkpoint.read_manifest(path)["facts"]
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
        for name in ("asked", "made_with"):
            if not isinstance(facts.get(name), dict):
                raise ConfigError(f"{path} does not say what was {name}: {remedy}")
        return facts

    def read_asked(self) -> dict[str, Any]:
        """Reads what the sweep that was begun here was asked for; {} if none was begun."""
        return self.read_begun()["asked"] if self.is_begun() else {}

    def note_changes(self, versions: Mapping[str, Any]) -> dict[str, Any]:
        """Warns if runs from here on are trained with other `versions`, and notes that.

        Returns the attribute `not_bitwise`, with all changes so far; no attribute without any.
        """
        noted = []
        for folder in sorted(filter(_numbers, (self._root / "changes").glob("*")), key=_numbers):
            try:
                noted.append(str(checkpoint.read(folder)[1]["line"]))
            except _UNREADABLE as error:
                noted.append(f"{folder.name}: what changed can no longer be read ({error})")
        for line in find_differences(self.read_begun()["made_with"], versions):
            self.say(f"warning: what is trained from here on may have other bits: {line}")
            if line not in noted:
                name = f"{len(noted)}-{uuid.uuid4().hex[:8]}"
                checkpoint.write(self._root / "changes" / name, [], {"line": line})
                noted.append(line)
        return {"not_bitwise": json.dumps([*dict.fromkeys(noted)])} if noted else {}

    def write_times(self, name: str, times: Mapping[str, float]) -> None:
        """Writes what a process has spent so far, under a name of its own."""
        checkpoint.write(self._root / "times" / name, [], times)

    def read_times(self, prefix: str) -> Iterator[dict[str, float]]:
        """Reads what earlier processes have spent, whose names begin with a prefix."""
        for folder in (self._root / "times").glob(f"{prefix}*"):
            with contextlib.suppress(*_UNREADABLE):  # times change no result
                facts = checkpoint.read(folder)[1]
                yield {name: float(seconds) for name, seconds in facts.items()}

    def write_trials(self, digests: Mapping[str, str]) -> None:
        """Writes the digests of a search's trials, by number."""
        checkpoint.write(self._root / "trials", [], digests)

    def read_trials(self) -> dict[str, str]:
        """Reads the digests of a search's trials; {} where none were kept."""
        folder = self._root / "trials"
        if not folder.exists():
            return {}
        try:
            return checkpoint.read(folder)[1]
        except CheckpointDamaged as error:
            self.say(f"{folder} is damaged ({error}): damage of the study may go unnoticed")
            return {}

    def save_finished(self, batch: int, record: Record) -> None:
        """Writes a finished batch's numbers and weights."""
        checkpoint.write(self._root / "finished" / str(batch), *record.to_arrays())

    def has_finished(self) -> bool:
        """Tells whether any batch is finished."""
        return (self._root / "finished").exists()

    def load_finished(self, batch: int, config: RunConfig) -> Record | None:
        """Reads a batch's numbers; None if the batch is not finished, or its checkpoint damaged."""
        folder = self._root / "finished" / str(batch)
        if not folder.exists():
            return None
        try:
            record = Record.from_arrays(config, *checkpoint.read(folder))
            if record.evaluation_return.shape[1:] != (len(record.steps), config.eval_episodes):
                raise CheckpointDamaged("it is of other settings")
            return record
        except _UNREADABLE as error:
            self.say(f"{folder} is damaged ({error}): its runs are trained again")
            return None

    def save_running(self, paused: Mapping[int, Paused]) -> None:
        """Writes one checkpoint of the batches under way in a round, by number."""
        arrays: list[np.ndarray] = []
        batches = []
        for number, batch in paused.items():
            numbers, record = batch.record.to_arrays()
            parts = [batch.state, batch.params_before, [*batch.window.values()], numbers]
            arrays += itertools.chain(*parts)
            facts = {"batch": number, "lengths": [*map(len, parts)], "window": [*batch.window]}
            batches.append({**facts, "record": record})
        (step,) = {batch.step for batch in paused.values()}  # batches of one round share it
        # A process that was thought dead may still write the same batches: never under one name.
        name = f"{step}-{min(paused)}-{uuid.uuid4().hex[:8]}"
        checkpoint.write(self._root / "running" / name, arrays, {"step": step, "batches": batches})
        self._drop_old_checkpoints()

    def load_running(self, batch: int, config: RunConfig) -> Paused | None:
        """Reads a batch's last checkpoint; where it is damaged, the one before."""
        for folder in [x for x in self.list_running() if x.name not in self._damaged]:
            try:
                arrays, facts = checkpoint.read(folder, lambda x: _find_batches(x).get(batch, ()))
            except _UNREADABLE as error:
                if folder.exists():  # else another process has dropped it
                    self._damaged.add(folder.name)
                    self.say(f"{folder} is damaged ({error}): going back to the checkpoint before")
                continue
            one = next((one for one in facts["batches"] if one["batch"] == batch), None)
            if one is None:
                continue
            rest = iter(arrays)
            state, before, sums, numbers = ([*itertools.islice(rest, n)] for n in one["lengths"])
            window = dict(zip(one["window"], sums, strict=True))
            record = Record.from_arrays(config, numbers, one["record"])
            return Paused(facts["step"], state, before, window, record)
        return None

    def delete_running(self) -> None:
        """Deletes the checkpoints of batches under way, once all batches are finished."""
        checkpoint.remove(self._root / "running")

    def list_running(self) -> list[Path]:
        """Lists the checkpoints of batches under way, those of the latest step first."""
        paths = [x for x in (self._root / "running").glob("*") if len(_numbers(x)) == 2]
        return sorted(paths, key=_numbers, reverse=True)

    def find_running_steps(self) -> dict[int, int]:
        """Finds how far each batch under way has come, as its last checkpoint says."""
        steps: dict[int, int] = {}
        for folder in self.list_running():
            with contextlib.suppress(CheckpointDamaged):  # it is said where it is read
                facts = checkpoint.read_manifest(folder)["facts"]
                steps = {**dict.fromkeys(_find_batches(facts), facts["step"]), **steps}
        return steps

    def _drop_old_checkpoints(self) -> None:
        """Drops checkpoints all of whose batches are finished, or have enough newer ones."""
        newer: collections.Counter[int] = collections.Counter()
        for folder in self.list_running():
            batches: Sequence[int] = []
            if folder.name not in self._damaged:
                try:
                    batches = [*_find_batches(checkpoint.read_manifest(folder)["facts"])]
                except _UNREADABLE:
                    batches = _numbers(folder)[1:]  # it may only be out of reach for now
            too_old = [batch for batch in batches if newer[batch] >= _KEPT_EACH]
            newer.update(batches)
            finished = self._root / "finished"
            if all(batch in too_old or (finished / str(batch)).exists() for batch in batches):
                checkpoint.remove(folder)


def _numbers(folder: Path) -> list[int]:
    """Reads a change's number, or step and first batch of those under way; else nothing."""
    *numbers, _ = folder.name.split("-")
    return [*map(int, numbers)] if all(x.isascii() and x.isdecimal() for x in numbers) else []


def _find_batches(facts: Mapping[str, Any]) -> dict[int, range]:
    """Finds the arrays of each batch in a checkpoint of batches under way."""
    found, end = {}, 0
    for one in facts["batches"]:
        begin, end = end, end + sum(one["lengths"])
        found[one["batch"]] = range(begin, end)
    return found


_NOTHING = object()  # where JSON has no value, not even null


def find_differences(begun: Any, request: Any, name: str = "") -> list[str]:
    """Lists where two JSON values differ, such as "seeds: [0, 1] there, [0, 2] now"."""
    # A fingerprint that is a text has its parts below it where it has any.
    if isinstance(begun, str) and isinstance(request, dict):
        begun = {"": begun}
    if isinstance(request, str) and isinstance(begun, dict):
        request = {"": request}
    if isinstance(begun, dict) and isinstance(request, dict):
        lines = []
        for key in {**begun, **request}:
            values = (begun.get(key, _NOTHING), request.get(key, _NOTHING))
            lines += find_differences(*values, f"{name}.{key}".strip("."))
        return lines
    if begun == request:
        return []
    texts = ["nothing" if x is _NOTHING else json.dumps(x) for x in (begun, request)]
    there, now = (text if len(text) <= 60 else f"{text[:57]}..." for text in texts)
    return [f"{name}: {there} there, {now} now"]
