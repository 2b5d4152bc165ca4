"""The training of a sweep that is planned: batch by batch, kept on disk, and put together."""

from __future__ import annotations

import contextlib
import functools
import math
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from rich.filesize import decimal

from purejaxdqn.engine.forecast import round_seconds
from purejaxdqn.engine.memory import memory_bytes, peak_bytes
from purejaxdqn.engine.pace import Pace
from purejaxdqn.engine.programs import Experiment, Programs, compile_programs
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.engine.record import Record
from purejaxdqn.engine.rounds import Event, Kept, train_round
from purejaxdqn.runtime import processes as distributed
from purejaxdqn.runtime.interrupts import EXIT_INTERRUPTED, Interrupted, Stop, listen
from purejaxdqn.storage import results
from purejaxdqn.sweep import dataset as datasets
from purejaxdqn.sweep.folder import Paused, SweepFolder
from purejaxdqn.sweep.plan import Group, SweepPlan, peak_memory
from purejaxdqn.tracking import Evaluated, Tracker
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import Params

_SAVE_SECONDS = 5.0  # between two writes of results that are not finished, at least
TIMES = ("compile_seconds", "train_seconds", "evaluation_seconds", "checkpoint_seconds")
_CHECKPOINT_SECONDS = 10.0  # between two checkpoints, at least


class SweepResult(NamedTuple):
    """What a sweep found.

    Attributes:
      dataset: the numbers, labelled; see `run_design`.
      params: the final weights as NumPy arrays `[*grid, num_seeds, ...]`, or `[run, ...]` of a
        random search; NaN for runs that were not finished. None where no run was, or where
        the runs' weights differ in shape.
    """

    dataset: xr.Dataset
    params: Params


class SweepInterrupted(Interrupted):
    """Ctrl-C or SIGTERM during a sweep; `result` is the `SweepResult` of what was finished."""


class Trainer:
    """Trains the batches of a plan, keeps them on disk, and takes up what was kept there.

    Args:
      experiment: `config -> Train`.
      plan: the runs, laid out.
      devices: what to train on.
      folder: where everything is kept; None keeps nothing.
      bar: shows progress.
      diagnostics: whether to look inside the learner.
      checkpoint_seconds: between two checkpoints; None chooses.
      on_evaluation: called with each `Evaluated`.
      attrs: of the dataset, beside those that are worked out here.
    """

    def __init__(
        self,
        experiment: Experiment,
        plan: SweepPlan,
        devices: Sequence[jax.Device],
        folder: SweepFolder | None,
        *,
        bar: SweepProgress,
        diagnostics: bool = False,
        checkpoint_seconds: float | None = None,
        on_evaluation: Tracker | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> None:
        self._experiment, self._plan, self._devices = experiment, plan, devices
        self._folder, self._bar, self._diagnostics = folder, bar, diagnostics
        self._on_evaluation = on_evaluation
        self._runs = plan.design.runs
        self._all = range(len(plan.batches))
        self._configs = {number: group.config for group in plan.groups for number in group.batches}
        self._records: dict[int, Record] = {}
        self._finished: set[int] = set()
        self._compiled: dict[int, Programs] = {}
        self._unsaved: set[int] = set()  # finished, but the disk could not take them
        self._saving = Pace(_SAVE_SECONDS)
        self._checkpointing = Pace(_CHECKPOINT_SECONDS, checkpoint_seconds)
        self._trained_steps = 0
        self._spent = dict.fromkeys((*TIMES, "trained_steps"), 0.0)  # by earlier processes
        self._times_file: str | None = None  # where this process keeps its own
        self._facts: dict[str, Any] = {
            "width": plan.width,
            "device": devices[0].device_kind,
            "num_devices": plan.groups[0].plan.num_devices * jax.process_count(),
            "memory_budget": plan.budget,
            "planned_peak_bytes": 0,
            "peak_bytes": 0,
            **dict.fromkeys(TIMES, 0.0),
            "env_steps_per_second": 0.0,
            **(attrs or {}),
        }

    def go(self, announce: bool = False) -> SweepResult:
        """Reads a finished sweep, or runs it; see `run`."""
        with listen() as stop:
            self._take_times()
            known = self.take_finished()
            if known is not None:
                return known
            with self._bar:
                return self.run(stop, announce)

    def run(self, stop: Stop, announce: bool = False) -> SweepResult:
        """Trains whatever is not finished; with `announce` says first how, and for how long.

        Raises:
          SweepInterrupted: when `stop` was asked for.
        """
        exit_code: int | None = None
        try:
            if announce:
                self.announce()
            self.train(self._all, stop)
            self._gather()
        except KeyboardInterrupt as error:
            exit_code = getattr(error, "exit_code", EXIT_INTERRUPTED)
        stop.waits = True  # what is left is to write down what there is
        if exit_code is not None:
            self._read_finished(self._all)  # what other processes have written
        result = self._result("finished" if exit_code is None else "interrupted")
        if self._folder is not None and distributed.is_first():
            if any(record.has_begun for record in self._records.values()):
                results.save_or_rescue(result.dataset, self._folder.output)
            if exit_code is None and not self._unsaved:
                self._folder.forget_running()
        if exit_code is not None:
            text = "the sweep was interrupted"
            if self._folder is not None:
                text += f"; resume=True goes on from what is kept in {self._folder.output}"
            raise SweepInterrupted(text, result, exit_code)
        return result

    def _take_times(self) -> None:
        """Adds what earlier processes have spent, and has this one's kept from here on."""
        if self._folder is None:
            return
        process = f"{jax.process_index()}-"
        for times in self._folder.times(process):
            for name in self._spent:
                self._spent[name] += times[name]
        self._times_file = f"{process}{uuid.uuid4().hex[:8]}"
        self._facts |= {name: self._spent[name] for name in TIMES}
        if trained := self._spent["trained_steps"]:
            self._trained_steps = int(trained)
            self._facts["env_steps_per_second"] = trained / max(self._spent["train_seconds"], 1e-9)

    def _keep_times(self) -> None:
        folder, file = self._folder, self._times_file
        if folder is None or file is None:
            return
        now = {**self._facts, "trained_steps": self._trained_steps}
        own = {name: now[name] - before for name, before in self._spent.items()}
        self._bar.attempt(lambda: folder.keep_times(file, own))

    def take_finished(self) -> SweepResult | None:
        """Reads the batches that are finished; where all are, the result as it was written."""
        folder = self._folder
        if folder is None:
            return None
        self._read_finished(self._all)
        # Processes that do not see the same must not part ways here.
        if not all(distributed.gather(len(self._finished) == len(self._plan.batches))):
            return None

        def written() -> xr.Dataset | None:
            with contextlib.suppress(OSError):
                return results.load(folder.output)
            return None

        dataset = distributed.first(written)
        if dataset is None or dataset.attrs.get("status") != "finished":
            return None
        # It may be damaged, or of a sweep before this one that was to be overwritten.
        known = self._result("finished")
        added = [name for name in dataset.variables if name not in known.dataset.variables]
        if not dataset.drop_vars(added).equals(known.dataset):  # a user may have put more beside
            self._bar.message(
                f"{folder.output / results.FILE_NAME} is not what was trained: it is written again"
            )
            return None
        self._bar.message(f"the sweep in {folder.output} is finished already")
        return known._replace(dataset=dataset)

    def _read_finished(self, numbers: Sequence[int]) -> None:
        """Takes those batches that are finished on disk, and not known yet."""
        if self._folder is None:
            return
        for number in numbers:
            if number not in self._finished:
                record = self._folder.load_finished(number, self._configs[number])
                if record is not None:
                    self._records[number] = record
                    self._finished.add(number)

    def announce(self) -> None:
        """Compiles all programs that are needed, runs each for a second, and shows the plan."""
        self._bar.message(f"{self._plan.describe()}\ncompiling ...")
        left = [group for group in self._plan.groups if self._left(group)]
        programs = [self._programs(group) for group in left]
        now = memory_bytes()  # without what the start below leaves behind
        seconds = sum(map(self._expected_seconds, left, programs))
        self._plan_peak(now, seconds)
        compiled = self._facts["compile_seconds"] - self._spent["compile_seconds"]
        peak = decimal(self._facts["planned_peak_bytes"])
        self._bar.message(
            f"compiled in {compiled:.1f} s; memory up to {peak}; expected to take "
            f"{_duration(seconds)}"
        )

    def _expected_seconds(self, group: Group, programs: Programs) -> float:
        at_once, left = group.plan.num_devices, self._left(group)
        first = [self._runs[i] for number in left[:at_once] for i in self._plan.batches[number]]
        return math.ceil(len(left) / at_once) * round_seconds(programs, group.config, first)

    def _plan_peak(self, now: int, seconds: float) -> None:
        """Keeps among the facts how much memory this process is going to have."""
        compiled = {key: programs.round_bytes for key, programs in self._compiled.items()}
        folder = self._folder
        self._facts["planned_peak_bytes"] = peak_memory(
            self._plan,
            compiled,
            now,
            is_in_process=self._devices[0].platform == "cpu",
            is_kept=folder is not None,
            goes_on=folder is not None and folder.is_under_way(),
            is_checkpointed=self._checkpointing.comes_within(seconds),
        )

    def _left(self, group: Group) -> list[int]:
        """The batches of a group that this process has still to train."""
        return [n for n in group.batches if n not in self._finished and distributed.mine(n)]

    def _programs(self, group: Group) -> Programs:
        """The compiled programs of a group."""
        key = group.batches[0]
        if key not in self._compiled:
            programs = compile_programs(
                self._experiment, group.config, group.plan, self._devices, self._diagnostics
            )
            self._facts["compile_seconds"] += programs.compile_seconds
            self._compiled[key] = programs
        return self._compiled[key]

    def train(self, numbers: Sequence[int], stop: Stop) -> None:
        """Trains batches, those of this process that are not finished."""
        for group in self._plan.groups:
            wanted = [number for number in self._left(group) if number in numbers]
            if not wanted:
                continue
            programs = self._programs(group)
            if not self._facts["planned_peak_bytes"]:
                self._plan_peak(memory_bytes(), math.inf)
            self._saving.start()
            self._checkpointing.start()
            while wanted:
                paused = self._take_paused(wanted, group.config, group.plan.num_devices)
                taken = [*paused] or wanted[: group.plan.num_devices]
                self._train_batches(programs, group.config, taken, paused, stop)
                wanted = [number for number in wanted if number not in taken]

    def _take_paused(
        self, wanted: Sequence[int], config: RunConfig, at_most: int
    ) -> dict[int, Paused]:
        """Batches to go on with at the same step: the first wanted one and others beside it."""
        paused: dict[int, Paused] = {}
        if self._folder is None:
            return paused
        for number in wanted:
            one = self._folder.load_running(number, config)
            if not paused and one is None:
                break
            if one is not None and len({one.step, *(p.step for p in paused.values())}) == 1:
                paused[number] = one
            if len(paused) == at_most:
                break
        return paused

    def _train_batches(
        self,
        programs: Programs,
        config: RunConfig,
        numbers: Sequence[int],
        paused: dict[int, Paused],
        stop: Stop,
    ) -> None:
        """Trains some batches side by side, from where they are to their end."""
        members = np.array([run for number in numbers for run in self._plan.batches[number]])
        ends = np.cumsum([len(self._plan.batches[number]) for number in numbers])
        rows = {
            number: slice(end - len(self._plan.batches[number]), end)
            for number, end in zip(numbers, ends, strict=True)
        }
        for number in numbers:
            size = len(self._plan.batches[number])
            fresh = number not in paused
            self._records[number] = Record(config, size) if fresh else paused[number].record
        kept = _kept(programs, [*paused.values()]) if paused else None
        paused.clear()  # they are on the devices now, and large
        if kept is not None:
            self._bar.message(
                f"going on at step {kept.step:,} with {len(members)} run(s) that were under way"
            )
        steps_before = sum(map(self._steps_of, self._finished))
        last_step = config.prefill_steps if kept is None else kept.step
        stop.waits = True
        for event in train_round(programs, config, [self._runs[i] for i in members], kept=kept):
            self._trained_steps += len(members) * (event.step - last_step)
            last_step = event.step
            self._bar.count(
                event, self._facts, self._trained_steps, steps_before + len(members) * event.step
            )
            if event.kept is not None:
                if stop.number is not None or self._checkpointing.is_due():
                    self._checkpoint(programs, event.kept, rows)
                stop.check()
                continue
            for number in numbers:
                diverged = self._records[number].add(event, rows[number])
                for at in np.flatnonzero(diverged):
                    labels = self._runs[self._plan.batches[number][at]].labels
                    shown = ", ".join(f"{name}={value}" for name, value in labels.items())
                    self._bar.message(
                        f"the run with {shown} diverged by step {event.step:,}: it is marked, and "
                        "the others go on"
                    )
            self._tell(event, members)
            if self._folder is not None and distributed.is_first() and self._saving.is_due():
                with self._saving.measured():
                    self._bar.attempt(lambda: self._save_snapshot())
        self._finished |= {*numbers}
        self._unsaved |= {*numbers}
        self._save_finished()
        self._keep_times()
        stop.check()
        stop.waits = False

    def _steps_of(self, number: int) -> int:
        """Environment steps of a finished batch."""
        return len(self._plan.batches[number]) * self._configs[number].total_steps

    def _tell(self, event: Event, members: np.ndarray) -> None:
        """Shows an evaluation, and hands it on."""
        assert event.episode_return is not None
        self._bar.evaluated(event.step, event.episode_return)
        if self._on_evaluation is not None:
            self._on_evaluation(
                Evaluated(
                    event.step,
                    members,
                    [self._runs[run].labels for run in members],
                    event.episode_return,
                    event.training_return,
                    event.metrics,
                )
            )

    # ---------------------------------------------------------------------------------- on disk

    def _checkpoint(self, programs: Programs, kept: Kept, rows: dict[int, slice]) -> None:
        if self._folder is None:
            return
        folder = self._folder
        states = programs.split(kept.state)
        before = None if kept.params_before is None else programs.split(kept.params_before)
        paused = {
            number: Paused(
                kept.step,
                states[device],
                [] if before is None else before[device],
                {name: sums[at] for name, sums in kept.window.items()},
                self._records[number],
            )
            for device, (number, at) in enumerate(rows.items())
        }
        with self._checkpointing.measured():
            self._save_finished()
            self._bar.attempt(lambda: folder.save_running(paused))
        spent = self._spent["checkpoint_seconds"] + self._checkpointing.total
        self._facts["checkpoint_seconds"] = spent
        self._keep_times()

    def _save_finished(self) -> None:
        """Writes the batches that are finished, also those that the disk had no room for before."""
        if self._folder is None:
            return
        folder = self._folder

        def save(number: int) -> None:
            folder.save_finished(number, self._records[number])
            self._unsaved.discard(number)

        for number in sorted(self._unsaved):
            self._bar.attempt(functools.partial(save, number))

    def _save_snapshot(self) -> None:
        assert self._folder is not None
        results.save(self._result("running").dataset, self._folder.output)

    # ----------------------------------------------------------------------------- put together

    def _gather(self) -> None:
        """Has the numbers of all processes in each."""
        mine = {n: self._records[n] for n in self._finished if distributed.mine(n)}
        for records, unsaved in distributed.gather((mine, self._unsaved)):
            self._records |= records
            self._unsaved |= unsaved

    def _result(self, status: str) -> SweepResult:
        self._facts["peak_bytes"] = max(self._facts["peak_bytes"], peak_bytes())
        dataset = datasets.to_dataset(self._plan.design, self._plan.batches, self._records)
        attrs = results.provenance(self._plan.design.shared, self._experiment)
        dataset = dataset.assign_attrs(attrs, status=status, **self._facts)
        return SweepResult(dataset, None if status == "running" else self._params())

    def _params(self) -> Params:
        leaves = datasets.stack_params(self._plan.batches, self._records, len(self._runs))
        if leaves is None:
            return None
        design = self._plan.design
        shape: tuple[int, ...] = (len(self._runs),)
        if design.is_grid:
            shape = (*map(len, design.axes.values()), len(design.seeds))
        structure = jax.tree.structure(self._plan.groups[0].params)
        return jax.tree.unflatten(structure, [x.reshape(*shape, *x.shape[1:]) for x in leaves])


def _kept(programs: Programs, paused: Sequence[Paused]) -> Kept:
    """Batches under way, back on the devices."""
    first = paused[0]
    before = None
    if first.params_before:
        before = programs.join([one.params_before for one in paused], weights_only=True)
    window = {name: np.concatenate([one.window[name] for one in paused]) for name in first.window}
    return Kept(first.step, programs.join([one.state for one in paused]), before, window)


def _duration(seconds: float) -> str:
    """Such as "about 3 min"."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
