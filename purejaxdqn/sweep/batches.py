"""Trains the batches of a planned sweep, writes their checkpoints, and collects their numbers."""

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.filesize import decimal

from purejaxdqn.engine.memory import memory_bytes, peak_bytes, return_free_memory
from purejaxdqn.engine.programs import Programs, compile_programs
from purejaxdqn.engine.progress import format_duration
from purejaxdqn.engine.rounds import Event, Kept, Record, forecast_round, train_round
from purejaxdqn.runtime import processes
from purejaxdqn.runtime.interrupts import EXIT_INTERRUPTED, catch_signals
from purejaxdqn.storage import provenance, results
from purejaxdqn.storage.files import WriteSchedule
from purejaxdqn.sweep.dataset import SweepInterrupted, SweepResult, stack_params, to_dataset
from purejaxdqn.sweep.folder import Paused, copy_from_devices, copy_to_devices
from purejaxdqn.sweep.plan import Group
from purejaxdqn.sweep.resume import OpenSweep, list_code
from purejaxdqn.tracking import Evaluated
from purejaxdqn.types import ConfigError

_SAVE_SECONDS = 15.0  # between two writes of results that are not finished, at least
_CHECKPOINT_SECONDS = 30.0  # between two checkpoints, at least
_DISBELIEF_FACTOR = 1.6  # ignore XLA's estimate of memory if ours is this many times larger
_FIRST_RUN_BYTES = 20_000_000  # that JAX keeps of the first run of programs, as measured
TIMES = ("compile_seconds", "train_seconds", "evaluation_seconds", "checkpoint_seconds")


class BatchTrainer:
    """Trains the batches of a sweep, keeps them on disk, and resumes those that were kept there."""

    def __init__(self, sweep: OpenSweep, devices: Sequence[jax.Device]) -> None:
        self._experiment, plan, self._options, _, self._folder, self._bar, attrs = sweep
        self._plan, self._devices = plan, devices
        self._runs = plan.design.runs
        self._share: Sequence[int] = range(len(plan.batches))  # of a task, only its own
        self._configs = {number: group.config for group in plan.groups for number in group.batches}
        self._records: dict[int, Record] = {}
        self._finished: set[int] = set()
        self._compiled: dict[int, Programs] = {}  # by the first batch of each group
        self._unsaved: set[int] = set()  # finished, but the disk could not take them
        self._saving = WriteSchedule(_SAVE_SECONDS)
        self._checkpointing = WriteSchedule(_CHECKPOINT_SECONDS, sweep.options.checkpoint_seconds)
        self._trained_steps = 0
        self._spent = dict.fromkeys((*TIMES, "trained_steps"), 0.0)  # by earlier processes
        self._times_file: str | None = None  # where this process keeps its own times
        num_devices = plan.groups[0].plan.num_devices * jax.process_count()
        layout = {"width": plan.width, "device": devices[0].device_kind, "num_devices": num_devices}
        memory = {"memory_budget": plan.budget, "planned_peak_bytes": 0, "peak_bytes": 0}
        times = dict.fromkeys((*TIMES, "env_steps_per_second"), 0.0)
        self._facts: dict[str, Any] = {**plan.environment, **layout, **memory, **times, **attrs}

    def run(self) -> SweepResult:
        """Trains every batch that is not finished; a sweep that is finished is only read.

        Raises:
          SweepInterrupted: on Ctrl-C and SIGTERM, with everything that was finished.
        """
        with catch_signals() as self._stop:
            if (known := self._read_earlier()) is not None:
                return known
            with self._bar:
                return self._train_and_write()

    def _train_and_write(self) -> SweepResult:
        exit_code: int | None = None
        try:
            if self._options.progress:
                self.compile_and_forecast()
            self._train()
            own = {n: self._records[n] for n in self._finished if processes.is_assigned_here(n)}
            for records, unsaved in processes.gather((own, self._unsaved)):
                self._records |= records
                self._unsaved |= unsaved
        except KeyboardInterrupt as error:
            exit_code = getattr(error, "exit_code", EXIT_INTERRUPTED)
        except Exception as error:
            if self._folder is not None:
                error.add_note(f"What was kept is in {self._folder.output}: resume=True goes on.")
            raise
        self._stop.is_deferred = True  # only the results are still to be written
        return_free_memory()  # for these, and for the figures of whoever asked for them
        if exit_code is not None:
            with self._bar.attempt():
                self._read_finished()  # those of other processes
        result = self._make_result("finished" if exit_code is None else "interrupted")
        text = "the sweep was interrupted"
        if self._folder is not None:
            text += f"; resume=True goes on from what is kept in {self._folder.output}"
            if processes.is_first_process():
                if result.dataset.evaluation_return.notnull().any():
                    results.save_or_rescue(result.dataset, self._folder.output)
                if exit_code is None and not self._unsaved:
                    self._folder.delete_running()
        if exit_code is not None:
            raise SweepInterrupted(text, result, exit_code)
        return result

    def _read_earlier(self) -> SweepResult | None:
        """Reads times and finished batches; where all are finished, also the result as written."""
        if (folder := self._folder) is None:
            return None
        process = f"{jax.process_index()}-"
        self._times_file = f"{process}{uuid.uuid4().hex[:8]}"
        for times in folder.read_times(process):
            self._spent = {
                name: spent + times.get(name, 0.0) for name, spent in self._spent.items()
            }
        self._trained_steps = int(self._spent["trained_steps"])
        speed = self._trained_steps / max(self._spent["train_seconds"], 1e-9)
        self._facts |= {name: self._spent[name] for name in TIMES} | {"env_steps_per_second": speed}
        self._read_finished()
        # The processes may see different files, but must all decide the same.
        if not all(processes.gather(len(self._finished) == len(self._share))):
            return None
        try:
            dataset = processes.run_on_first_process(lambda: results.load(folder.output))
        except (OSError, ConfigError):  # damaged, or not of this version: it is written again
            return None
        if dataset.attrs.get("status") != "finished":
            return None
        # It may be damaged, or of a sweep before this one that was to be overwritten.
        known = self._make_result("finished")
        added = [name for name in dataset.variables if name not in known.dataset.variables]
        if not dataset.drop_vars(added).equals(known.dataset):  # a user may have added variables
            file = folder.output / results.FILE_NAME
            self._bar.message(f"{file} differs from the checkpoints: rewriting it")
            return None
        self._bar.message(f"the sweep in {folder.output} is finished already")
        return known._replace(dataset=dataset)

    def _read_finished(self) -> None:
        """Reads those batches that are finished on disk, and not known yet."""
        if self._folder is None:
            return
        for number in [number for number in self._share if number not in self._finished]:
            if record := self._folder.load_finished(number, self._configs[number]):
                self._records[number] = record
                self._finished.add(number)

    def compile_and_forecast(self) -> None:
        """Compiles all programs that are needed, runs each for a second, and shows the plan."""
        self._bar.message(f"{self._plan.describe(len(self._finished))}\ncompiling ...")
        groups = [group for group in self._plan.groups if self._unfinished(group)]
        for group in groups:
            self._compile(group)
        begin = time.perf_counter()
        self._write_times()
        write_seconds = time.perf_counter() - begin
        seconds = sum(self._forecast_seconds(group, write_seconds) for group in groups)
        self._plan_peak_memory()
        took = self._facts["compile_seconds"] - self._spent["compile_seconds"]
        peak, forecast = self._facts["planned_peak_bytes"], format_duration(seconds)
        self._bar.message(
            f"compiled in {took:.1f} s; memory up to {decimal(peak, precision=2)}, compiling "
            f"included; training and evaluating should take {forecast}"
        )

    def _forecast_seconds(self, group: Group, write_seconds: float) -> float:
        """Trains a group's first round for a second, and forecasts how long its batches take.

        Each batch is written once, and each round's times; either takes `write_seconds`.
        """
        at_once, left = group.plan.num_devices, self._unfinished(group)
        first = [self._runs[i] for number in left[:at_once] for i in self._plan.batches[number]]
        forecast = forecast_round(self._compile(group), group.config, first)
        reached = {} if self._folder is None else self._folder.find_running_steps()
        under_way = [reached[number] for number in left if number in reached]
        fresh = math.ceil((len(left) - len(under_way)) / at_once)  # rounds from the start
        seconds = fresh * forecast.seconds_left(group.config)
        seconds += forecast.seconds_left(group.config, min(under_way)) if under_way else 0.0
        return seconds + (len(left) + fresh + bool(under_way)) * write_seconds

    def _plan_peak_memory(self, has_run: bool = True) -> None:
        """Notes how much memory this process is going to have, from what it has between runs."""
        if keeps := self._options.output is not None:
            import netCDF4  # noqa: F401  # both of which the first write of results would
            import xarray  # noqa: F401
        return_free_memory()
        now = memory_bytes() + (0 if has_run else _FIRST_RUN_BYTES)
        running = 0
        is_on_host = self._devices[0].platform == "cpu"
        is_resumed = self._folder is not None and bool(self._folder.list_running())
        for group in filter(self._unfinished, self._plan.groups):
            compiled = self._compiled.get(group.batches[0])
            by_xla = 0 if compiled is None else compiled.round_bytes  # 0 too if it does not know
            # XLA knows its own buffers better than we do, but not those of libraries that it calls.
            is_known = by_xla > group.round_bytes / _DISBELIEF_FACTOR
            training = by_xla if is_known else group.round_bytes
            copied = group.restoring_bytes if is_resumed or (keeps and not is_on_host) else 0
            running = max(running, copied, training if is_on_host else 0)
        added = self._plan.added_bytes(running, self._finished, keeps)
        known = self._facts["planned_peak_bytes"]
        self._facts["planned_peak_bytes"] = max(known, peak_bytes(), now + added)

    def _unfinished(self, group: Group) -> list[int]:
        """Lists the batches of a group that this process has still to train."""
        left = [n for n in group.batches if n in self._share and n not in self._finished]
        return [*filter(processes.is_assigned_here, left)]

    def _compile(self, group: Group) -> Programs:
        """Compiles the programs of a group, once."""
        key = group.batches[0]
        if key not in self._compiled:
            how = (group.plan, self._devices, self._options.diagnostics, group.run.functions)
            self._compiled[key] = compile_programs(self._experiment, group.config, *how)
            self._facts["compile_seconds"] += self._compiled[key].compile_seconds
            return_free_memory()  # compiling takes hundreds of megabytes more than programs do
            self._saving.start()
            self._checkpointing.start()
        return self._compiled[key]

    def _train(self) -> None:
        """Trains the batches of this process that are not finished."""
        for group in self._plan.groups:
            while left := self._unfinished(group):
                if group.batches[0] not in self._compiled:
                    self._compile(group)
                    self._plan_peak_memory(has_run=False)
                paused = self._load_paused(left, group)
                self._train_round(group, [*paused] or left[: group.plan.num_devices], paused)

    def _load_paused(self, left: Sequence[int], group: Group) -> dict[int, Paused]:
        """Reads the first batch that is left, if it is under way, and others at the same step."""
        paused: dict[int, Paused] = {}
        if self._folder is None:
            return paused
        for number in left:
            one = None
            with self._bar.attempt():  # a folder that is out of reach holds up no training
                one = self._folder.load_running(number, group.config)
            if one and all(one.step == other.step for other in paused.values()):
                paused[number] = one
            if len(paused) in (0, group.plan.num_devices):
                break
        return paused

    def _train_round(self, group: Group, numbers: Sequence[int], paused: dict[int, Paused]) -> None:
        """Trains some batches side by side, from their start or their checkpoint to their end."""
        programs, config, stop = self._compile(group), group.config, self._stop
        members: list[int] = []
        rows: dict[int, slice] = {}
        for number in numbers:
            batch = self._plan.batches[number]
            rows[number] = slice(len(members), len(members) + len(batch))
            members += batch
            record = paused[number].record if number in paused else Record(config, len(batch))
            self._records[number] = record
        kept, last_step = None, config.prefill_steps
        if paused:
            train = group.run.functions.train
            if train.env.is_host and train.begin_anew is None:
                raise ConfigError(
                    f"{train.env.name} steps on the host, and this run cannot be resumed there: "
                    "give its Replay cut, or its Train begin_anew, or start again with --overwrite"
                )
            kept = copy_to_devices(programs, [*paused.values()])
            paused.clear()  # of large arrays, which are on the devices now
            last_step = kept.step
            self._bar.message(
                f"going on at step {last_step:,} with {len(members)} run(s) that were under way"
            )
        steps_before = self._count_finished()
        stop.is_deferred = True
        for event in train_round(programs, config, [self._runs[i] for i in members], kept=kept):
            self._trained_steps += len(members) * (event.step - last_step)
            last_step = event.step
            env_steps = steps_before + len(members) * event.step
            self._bar.add_event(event, self._facts, self._trained_steps, env_steps)
            if event.kept is None:
                self._take_evaluation(event, rows, members)
                continue
            if stop.number is not None or self._checkpointing.is_due():
                self._write_checkpoint(programs, event.kept, rows)
            stop.raise_if_requested()
        self._finished |= {*numbers}
        self._unsaved |= {*numbers}
        self._save_finished()
        self._write_times()
        return_free_memory()  # else what is left between kept weights adds up over many rounds
        stop.raise_if_requested()
        stop.is_deferred = False

    def _count_finished(self) -> int:
        """Counts the environment steps of all finished batches."""
        return sum(
            len(self._plan.batches[n]) * self._configs[n].total_steps for n in self._finished
        )

    def _take_evaluation(self, event: Event, rows: dict[int, slice], members: list[int]) -> None:
        """Records an evaluation, publishes it, and saves results if due."""
        diverged = np.concatenate([self._records[n].add(event, at) for n, at in rows.items()])
        for row in np.flatnonzero(diverged):
            labels = self._runs[members[row]].labels
            shown = ", ".join(f"{name}={value}" for name, value in labels.items())
            self._bar.message(
                f"the run with {shown} diverged by step {event.step:,}: it is marked, and the "
                "others go on"
            )
        self._publish(event, members)
        self._save_results()

    def _publish(self, event: Event, members: list[int]) -> None:
        """Shows an evaluation of some runs, and hands it to the tracker."""
        assert event.episode_return is not None
        self._bar.show_evaluation(event.step, event.episode_return)
        if self._options.on_evaluation is not None:
            labels = [dict(self._runs[run].labels) for run in members]
            numbers = (event.episode_return, event.training_return, event.metrics)
            self._options.on_evaluation(Evaluated(event.step, np.array(members), labels, *numbers))

    def _write_checkpoint(self, programs: Programs, kept: Kept, rows: Mapping[int, slice]) -> None:
        if self._folder is None:
            return
        paused = copy_from_devices(programs, kept, rows, self._records)
        with self._checkpointing.measure():
            self._save_finished()
            with self._bar.attempt():
                self._folder.save_running(paused)
        before = self._spent["checkpoint_seconds"]
        self._facts["checkpoint_seconds"] = before + self._checkpointing.total
        self._write_times()

    def _write_times(self) -> None:
        if self._folder is not None and self._times_file is not None:
            now = {**self._facts, "trained_steps": self._trained_steps}
            own = {name: now[name] - before for name, before in self._spent.items()}
            with self._bar.attempt():
                self._folder.write_times(self._times_file, own)

    def _save_finished(self) -> None:
        """Writes finished batches, also those that the disk had no room for before."""
        for number in sorted(self._unsaved):
            with self._bar.attempt():
                if self._folder is not None:
                    self._folder.save_finished(number, self._records[number])
                self._unsaved.discard(number)

    def _save_results(self) -> None:
        """Writes the results so far, if it is time, and this process writes them."""
        if self._folder is not None and processes.is_first_process() and self._saving.is_due():
            with self._saving.measure(), self._bar.attempt():
                results.save(self._make_result("running").dataset, self._folder.output)

    def _make_result(self, status: str) -> SweepResult:
        self._facts["peak_bytes"] = max(self._facts["peak_bytes"], peak_bytes())
        design, batches = self._plan.recorded, self._plan.batches
        dataset = to_dataset(design, batches, self._records)
        code = list_code(self._experiment, [group.config for group in self._plan.groups])
        attrs = provenance.collect_provenance(design.shared, self._experiment, code)
        params = None
        if status != "running":
            structure = jax.tree.structure(self._plan.groups[0].run.state.learner.params)
            params = stack_params(dataset.diverged.shape, batches, self._records, structure)
        return SweepResult(dataset.assign_attrs(attrs, status=status, **self._facts), params)
