"""Seeds times hyper-parameters to one labelled dataset: many runs over every device, in chunks.

A run is a function of its config, its seed and the width (runs per device program). Neither the
runs beside it, nor its slot, nor the number of devices, nor the chunking, nor a kill and a resume
changes a bit of it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import psutil
import xarray as xr
from rich.filesize import decimal

from purejaxdqn import checkpoint, design, distributed, record, results
from purejaxdqn.config import RunConfig
from purejaxdqn.design import Design, grid_design
from purejaxdqn.devices import ensure_devices
from purejaxdqn.planning import Group, SweepPlan, peak_bytes, plan_sweep
from purejaxdqn.programs import Experiment, Programs, compile_programs
from purejaxdqn.progress import SweepProgress
from purejaxdqn.record import Record
from purejaxdqn.rounds import Event, Kept, evaluation_steps, train_round
from purejaxdqn.stopping import EXIT_INTERRUPTED, Stop, listen
from purejaxdqn.sweep_folder import Paused, SweepFolder, differences
from purejaxdqn.tracking import Evaluated, Tracker
from purejaxdqn.types import ConfigError, Params

SeedMode = Literal["vmap", "map"]

_SAVE_SECONDS = 5.0  # between two writes of results that are not finished, at least
_CHECKPOINT_SECONDS = 10.0  # between two checkpoints, at least
_MEASURED_SECONDS = 1.0  # of training, to say how long all of it takes
_COST = 20.0  # whatever is written may take one part in so many of the time


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


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a sweep; `result` holds what was finished.

    The process should end with `exit_code`: 130 after Ctrl-C, 75 after SIGTERM.
    """

    def __init__(self, result: SweepResult, exit_code: int, how_to_go_on: str) -> None:
        super().__init__(f"the sweep was interrupted{how_to_go_on}")
        self.result = result
        self.exit_code = exit_code


def run_sweep(
    experiment: Experiment,
    config: RunConfig | design.Configure,
    seeds: Sequence[int],
    *,
    width: int | None = None,
    seed_mode: SeedMode = "vmap",
    devices: Sequence[jax.Device] | None = None,
    output: Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float | None = None,
    memory_budget: int | None = None,
    on_evaluation: Tracker | None = None,
    progress: bool = True,
    diagnostics: bool = False,
    **grid: Sequence[Any],
) -> SweepResult:
    """Trains every seed at every combination of the swept settings, on every device.

    Args:
      experiment: `config -> Train`, such as `purejaxdqn.dqn.dqn` or `purejaxdqn.pqn.pqn`.
      config: the settings that all runs share; or a function that makes all settings of the swept
        ones.
      seeds: whole numbers from 0 to 2**32 - 1, no two the same.
      width: see `run_design`, as for all that follow.
      seed_mode: "vmap" or "map".
      devices: what to train on.
      output: a folder.
      resume: whether to go on.
      checkpoint_seconds: between two checkpoints.
      memory_budget: bytes.
      on_evaluation: a `Tracker`.
      progress: whether to show any.
      diagnostics: whether to look inside the learner.
      **grid: settings by name with the values to sweep, such as `learning_rate=[1e-4, 1e-3]`. All
        values of floats share one compiled program; other settings take one for each value.

    Returns:
      A `SweepResult`; see `run_design`.

    Raises:
      ConfigError: for settings that cannot be kept, before anything is compiled.
      SweepInterrupted: on Ctrl-C and SIGTERM, with everything that was finished.
    """
    return run_design(
        experiment,
        grid_design(config, seeds, grid),
        width=width,
        seed_mode=seed_mode,
        devices=devices,
        output=output,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        memory_budget=memory_budget,
        on_evaluation=on_evaluation,
        progress=progress,
        diagnostics=diagnostics,
    )


def run_design(
    experiment: Experiment,
    design: Design,
    *,
    width: int | None = None,
    seed_mode: SeedMode = "vmap",
    devices: Sequence[jax.Device] | None = None,
    output: Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float | None = None,
    memory_budget: int | None = None,
    on_evaluation: Tracker | None = None,
    progress: bool = True,
    diagnostics: bool = False,
) -> SweepResult:
    """Trains every run of a design, on every device.

    Args:
      experiment: `config -> Train`.
      design: the runs, of `grid_design` or `random_design`.
      width: runs per device program, to repeat an earlier result bit for bit; by default the plan's
        own choice. It stands in the dataset's attributes.
      seed_mode: "vmap" batches the runs of a device; "map" trains them one after another, each
        bitwise as if alone.
      devices: what to train on; by default every core, or the accelerators there are.
      output: a folder in which `results.nc` is kept up to date while the sweep runs, and beside it
        whatever is needed to go on after a kill.
      resume: whether to go on with the sweep that was begun in that folder. One that is finished
        is only read; where none was begun, this one is.
      checkpoint_seconds: between two checkpoints of what is under way; by default 20 times as long
        as the last one took, and at least 10. 0 makes one after each chunk.
      memory_budget: bytes that runs may take on the devices at a time; by default most of what is
        free.
      on_evaluation: called with each `Evaluated` as it comes; see `purejaxdqn.tracking`.
      progress: whether to show progress on standard error.
      diagnostics: whether to look inside the learner at each evaluation: see
        `purejaxdqn.diagnostics`. It changes no bit of anything else, and takes one more program.

    Returns:
      A `SweepResult` whose dataset has for a grid the dimensions `(*grid, seed, step, episode)`,
      and for a random search `(run, step, episode)` with the coordinates `run`, `sample`, `seed`
      and the swept settings. Called `runs` here, its first dimensions have these variables:
        - `evaluation_return (*runs, step, episode)`: greedy returns, undiscounted;
        - `final_return (*runs, episode)`: those of each run's last step;
        - `training_return (*runs, step)`: mean return of the training episodes that ended
          since the step before, NaN if none did;
        - one variable `(*runs, step)` for each metric of the learner, its mean since
          the step before;
        - `num_updates (step)`: gradient steps taken, `(*runs, step)` where runs differ in it;
        - `diverged (*runs)`: whether weights or returns stopped being finite numbers;
        - `settings (*grid)` or `(run)`: all settings, as JSON;
        - with `diagnostics`, a variable `(*runs, step)` for each of
          `purejaxdqn.diagnostics.DIAGNOSTICS`.
      Runs that were not finished have NaN where they did not get to. Its attributes say how it was
      made, and how long that took. With several processes (`jax.distributed`) each trains its
      share, and each returns all of it.

    Raises:
      ConfigError: for settings that cannot be kept, before anything is compiled.
      SweepInterrupted: on Ctrl-C and SIGTERM, with everything that was finished.
    """
    devices = devices or ensure_devices()

    def plan(width: int | None) -> SweepPlan:
        return _plan(experiment, design, devices, width, memory_budget)

    with opened(
        experiment,
        design,
        plan,
        width=width,
        seed_mode=seed_mode,
        output=output,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        diagnostics=diagnostics,
    ) as sweep:
        trainer = Trainer(
            experiment,
            sweep.plan,
            devices,
            sweep.folder,
            bar=sweep.bar,
            diagnostics=diagnostics,
            checkpoint_seconds=checkpoint_seconds,
            on_evaluation=on_evaluation,
            attrs=sweep.attrs,
        )
        return trainer.go(announce=progress)


class Opened(NamedTuple):
    """A sweep that is about to be trained.

    Attributes:
      plan: the runs, laid out.
      folder: where everything is kept, and claimed; None keeps nothing.
      bar: to show progress.
      attrs: of the dataset: how it is trained, and what happened before.
    """

    plan: SweepPlan
    folder: SweepFolder | None
    bar: SweepProgress
    attrs: dict[str, Any]


@contextlib.contextmanager
def opened(
    experiment: Experiment,
    design: Design,
    plan: Callable[[int | None], SweepPlan],
    *,
    width: int | None,
    seed_mode: SeedMode,
    output: Path | None,
    resume: bool,
    checkpoint_seconds: float | None,
    progress: bool,
    diagnostics: bool,
) -> Iterator[Opened]:
    """Checks what a sweep was asked for, plans it, and claims its folder for as long as it takes.

    Args:
      experiment: see `run_design`, as for all that is not explained here.
      design: the runs.
      plan: lays them out at a width, or at one that it chooses.
      width: runs per batch.
      seed_mode: "vmap" or "map".
      output: a folder.
      resume: whether to go on.
      checkpoint_seconds: between two checkpoints.
      progress: whether to show any.
      diagnostics: whether to look inside the learner.

    Yields:
      The `Opened` sweep.

    Raises:
      ConfigError: for what cannot be kept, before anything is compiled.
    """
    width = width_of(seed_mode, width)
    check_checkpoint_seconds(checkpoint_seconds)
    if resume and output is None:
        raise ConfigError("resume (True) needs an output folder: give output")
    bar = SweepProgress(_total_steps(design), enabled=progress)
    folder = None if output is None else SweepFolder(output, bar.message)
    with contextlib.ExitStack() as stack:
        history: dict[str, Any] = {}
        if folder is not None:
            distributed.first(folder.lock)
            stack.callback(folder.unlock)
            if width is None:
                width = distributed.first(lambda: _width_begun(folder, resume))
        planned = plan(width)
        if folder is not None:
            asked = asked_for(experiment, planned, seed_mode, diagnostics)
            history = distributed.first(lambda: open_folder(folder, asked, resume, bar.message))
        yield Opened(planned, folder, bar, {"seed_mode": seed_mode, **history})


def print_plan(
    experiment: Experiment,
    design: Design,
    *,
    width: int | None = None,
    seed_mode: SeedMode = "vmap",
    devices: Sequence[jax.Device] | None = None,
    memory_budget: int | None = None,
    diagnostics: bool = False,
) -> SweepPlan:
    """Says on standard error how `run_design` would go about it, and how long it would take.

    The programs are compiled, and run for a second each.

    Args:
      experiment: see `run_design`, as for the others.
      design: the runs.
      width: runs per batch.
      seed_mode: "vmap" or "map".
      devices: what to train on.
      memory_budget: bytes.
      diagnostics: whether to look inside the learner.

    Returns:
      The plan.

    Raises:
      ConfigError: for settings that cannot be kept, before anything is compiled.
    """
    width = width_of(seed_mode, width)
    devices = devices or ensure_devices()
    plan = plan_sweep(experiment, design, devices, width=width, memory_budget=memory_budget)
    with SweepProgress(0) as bar, listen():
        Trainer(experiment, plan, devices, None, bar=bar, diagnostics=diagnostics).announce()
    return plan


def _plan(
    experiment: Experiment,
    design: Design,
    devices: Sequence[jax.Device],
    width: int | None,
    memory_budget: int | None,
) -> SweepPlan:
    """The same batches in each process, whose width all have room for."""

    def plan(width: int | None) -> SweepPlan:
        return plan_sweep(
            experiment,
            design,
            devices,
            width=width,
            memory_budget=memory_budget,
            num_devices=len(devices) * jax.process_count(),
        )

    if jax.process_count() > 1:
        plans = distributed.everywhere(lambda: (design, plan(width).width))
        for process, (other, _) in enumerate(plans):
            if other != plans[0][0]:
                raise ConfigError(
                    f"process {process} was given another design than process 0: give all "
                    "processes the same settings and seeds"
                )
        width = min(width for _, width in plans)
    return plan(width)


def _total_steps(design: Design) -> int:
    return sum(run.setting.config.total_steps for run in design.runs)


def width_of(seed_mode: SeedMode, width: int | None) -> int | None:
    """The runs per device program that a mode and a wish ask for; None leaves the choice open."""
    if seed_mode not in ("vmap", "map"):
        raise ConfigError(f"seed_mode ({seed_mode!r}) must be 'vmap' or 'map'")
    if seed_mode == "map" and width not in (None, 1):
        raise ConfigError(f"width ({width}) must be 1 with seed_mode 'map': leave it out")
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise ConfigError(f"width ({width!r}) must be at least 1, and a whole number")
    return 1 if seed_mode == "map" else width


def check_checkpoint_seconds(seconds: float | None) -> None:
    """Refuses what is no time between two checkpoints."""
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ConfigError(
            f"checkpoint_seconds ({seconds}) must be at least 0 and finite, such as 60"
        )


# ------------------------------------------------------------------------ begun, and gone on with


def asked_for(
    experiment: Experiment, plan: SweepPlan, seed_mode: SeedMode, diagnostics: bool
) -> dict[str, Any]:
    """All that the numbers of a sweep hang on, as JSON holds it."""
    settings = {
        ", ".join(f"{name}={value}" for name, value in setting.labels.items()): json.loads(
            design.config_to_json(setting.config)
        )
        for setting in plan.design.settings
    }
    if len(settings) == 1:
        (settings,) = settings.values()
    asked = {
        **results.experiment_names(experiment),
        "settings": settings,
        "axes": plan.design.axes,
        "seeds": list(plan.design.seeds),
        "width": plan.width,
        "seed_mode": seed_mode,
        "diagnostics": diagnostics,
    }
    return json.loads(json.dumps(asked))


def _width_begun(folder: SweepFolder, resume: bool) -> int | None:
    """The width of the sweep that goes on in a folder."""
    if not (resume and folder.is_begun()):
        return None
    width: int = folder.begun()["asked"]["width"]
    return width


def open_folder(
    folder: SweepFolder,
    asked: dict[str, Any],
    resume: bool,
    say: Callable[[str], None],
    what: str = "sweep",
) -> dict[str, Any]:
    """Begins a sweep in a folder, or makes sure that the one begun there is the same.

    Args:
      folder: of the sweep.
      asked: all that its numbers hang on, as JSON holds it.
      resume: whether to go on with what was begun there.
      say: takes warnings.
      what: it is called in messages.

    Returns:
      Attributes that say what happened before.
    """
    made_with = results.made_with()
    if not (resume and folder.is_begun()):
        if resume and (folder.output / results.FILE_NAME).exists():
            raise ConfigError(
                f"{folder.output} holds results, but no checkpoint to go on from: choose another "
                "folder with --output, or start again with --overwrite"
            )
        folder.begin({"asked": asked, "made_with": made_with, "not_bitwise": []})
        return {}
    begun = folder.begun()
    if lines := differences(begun["asked"], asked):
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise ConfigError(
            f"the {what} in {folder.output} was begun with other settings ({shown}): resume with "
            "the same ones, choose another folder with --output, or start again with --overwrite"
        )
    return note_changes(folder, made_with, say)


def note_changes(
    folder: SweepFolder, made_with: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Keeps what a part of a sweep is made with, where other bits may come of it.

    Args:
      folder: of the sweep.
      made_with: what `results.made_with` gives where that part is trained.
      say: takes warnings.

    Returns:
      Attributes that say what was different so far.
    """
    begun = folder.begun()
    changed = [*begun["not_bitwise"]]
    for line in differences(begun["made_with"], made_with):
        say(f"warning: what is trained from here on may have other bits: {line}")
        if line not in changed:
            changed.append(line)
    if changed != begun["not_bitwise"]:
        folder.note(begun | {"not_bitwise": changed})
    return {"not_bitwise": json.dumps(changed)} if changed else {}


# ----------------------------------------------------------------------------------------- training


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
        self._saving = _Pace(_SAVE_SECONDS)
        self._checkpointing = _Pace(_CHECKPOINT_SECONDS, checkpoint_seconds)
        self._trained_steps = 0  # in this process
        self._facts: dict[str, Any] = {
            "width": plan.width,
            "device": devices[0].device_kind,
            "num_devices": plan.groups[0].plan.num_devices * jax.process_count(),
            "memory_budget": plan.budget,
            "planned_peak_bytes": 0,
            "peak_bytes": 0,
            "compile_seconds": 0.0,
            "train_seconds": 0.0,
            "evaluation_seconds": 0.0,
            "checkpoint_seconds": 0.0,
            "env_steps_per_second": 0.0,
            **(attrs or {}),
        }

    def go(self, announce: bool = False) -> SweepResult:
        """Reads a finished sweep, or runs it; see `run`."""
        with listen() as stop:
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
            raise SweepInterrupted(result, exit_code, self._how_to_go_on())
        return result

    def _how_to_go_on(self) -> str:
        if self._folder is None:
            return ""
        return f"; the same command with --resume goes on (in {self._folder.output})"

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
            with contextlib.suppress(OSError, ValueError):
                return results.load(folder.output)
            return None

        dataset = distributed.first(written)
        if dataset is None or dataset.attrs.get("status") != "finished":
            return None
        self._bar.message(f"the sweep in {folder.output} is finished already")
        return SweepResult(dataset, self._params())

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
        seconds = 0.0
        for group in self._plan.groups:
            if not self._left(group):
                continue
            programs = self._programs(group)
            seconds += self._expected_seconds(group, programs)
        self._bar.message(
            f"compiled in {self._facts['compile_seconds']:.1f} s; memory up to "
            f"{decimal(self._plan_peak())}; expected to take {_duration(seconds)}"
        )

    def _expected_seconds(self, group: Group, programs: Programs) -> float:
        """Of training all batches of a program that are left, by a short start of one round."""
        config, plan = group.config, group.plan
        left = self._left(group)
        runs = [self._runs[i] for n in left[: plan.num_devices] for i in self._plan.batches[n]]
        evaluation_seconds, train_seconds, per_step = 0.0, 0.0, 0.0
        step = config.prefill_steps
        for event in train_round(programs, config, runs):
            if event.kept is None:
                if train_seconds:
                    break
                evaluation_seconds = event.evaluation_seconds
                continue
            train_seconds += event.train_seconds
            per_step = event.train_seconds / (event.step - step)  # of the longest chunk yet
            step = event.step
            if train_seconds > _MEASURED_SECONDS:
                break
        num_rounds = math.ceil(len(left) / plan.num_devices)
        num_evaluations = len(evaluation_steps(config))
        seconds = per_step * (config.total_steps - config.prefill_steps)
        return num_rounds * (seconds + num_evaluations * evaluation_seconds)

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

    def _plan_peak(self) -> int:
        """The most memory that this process is going to have, and keeps it among the facts."""
        now = psutil.Process().memory_info().rss
        groups = self._plan.groups
        running = max(group.round_bytes for group in groups)
        if self._folder is not None:
            if self._folder.is_under_way():  # what is read of a device is there beside its copy
                running += max(group.round_bytes // group.plan.num_devices for group in groups)
            running += checkpoint.working_bytes(running)
        if self._devices[0].platform != "cpu":
            running = 0  # elsewhere than in the process's own memory
        peak = max(peak_bytes(), now + running + self._plan.result_bytes)
        self._facts["planned_peak_bytes"] = peak
        return peak

    def train(self, numbers: Sequence[int], stop: Stop) -> None:
        """Trains batches, those of this process that are not finished."""
        for group in self._plan.groups:
            wanted = [number for number in self._left(group) if number in numbers]
            if not wanted:
                continue
            programs = self._programs(group)
            if not self._facts["planned_peak_bytes"]:
                self._plan_peak()
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
            self._count(event, steps_before + len(members) * event.step)
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
        stop.check()
        stop.waits = False

    def _steps_of(self, number: int) -> int:
        """Environment steps of a finished batch."""
        return len(self._plan.batches[number]) * self._configs[number].total_steps

    def _count(self, event: Event, env_steps: int) -> None:
        """Keeps the time, and shows it."""
        self._facts["train_seconds"] += event.train_seconds
        self._facts["evaluation_seconds"] += event.evaluation_seconds
        speed = self._trained_steps / max(self._facts["train_seconds"], 1e-9)
        self._facts["env_steps_per_second"] = speed
        self._bar.update(env_steps, event.training_return, speed)

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
        self._facts["checkpoint_seconds"] = self._checkpointing.total

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
        dataset = record.to_dataset(self._plan.design, self._plan.batches, self._records)
        config = self._plan.design.settings[0].config
        attrs = results.provenance(config, self._experiment)
        dataset = dataset.assign_attrs(attrs, status=status, **self._facts)
        return SweepResult(dataset, None if status == "running" else self._params())

    def _params(self) -> Params:
        leaves = record.stack_params(self._plan.batches, self._records, len(self._runs))
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


class _Pace:
    """How often something is written: so that it costs little of the time.

    Args:
      at_least: seconds between the end of one and the start of the next.
      seconds: these, and not what its cost says; None lets the cost say.
    """

    def __init__(self, at_least: float, seconds: float | None = None) -> None:
        self._at_least, self._seconds = at_least, seconds
        self._last_end = time.perf_counter()
        self._last_cost = 0.0
        self.total = 0.0

    def start(self) -> None:
        """Counts from now on."""
        self._last_end = time.perf_counter()

    def is_due(self) -> bool:
        """Whether it is time."""
        wanted = self._seconds
        if wanted is None:
            wanted = max(self._at_least, _COST * self._last_cost)
        return time.perf_counter() - self._last_end >= wanted

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measures what is written within."""
        start = time.perf_counter()
        yield
        self._last_end = time.perf_counter()
        self._last_cost = self._last_end - start
        self.total += self._last_cost
