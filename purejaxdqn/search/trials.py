"""Trains the trials that Optuna proposes, batch by batch, and prunes them between chunks."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from purejaxdqn.engine.memory import peak_bytes
from purejaxdqn.engine.programs import Programs, compile_programs
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.engine.record import Record
from purejaxdqn.engine.rounds import train_round
from purejaxdqn.engine.run import Run
from purejaxdqn.runtime.interrupts import EXIT_INTERRUPTED, StopRequest
from purejaxdqn.search import study
from purejaxdqn.search.result import Best, SearchInterrupted, SearchResult, format_settings
from purejaxdqn.search.study import Proposals
from purejaxdqn.storage import provenance, results
from purejaxdqn.sweep.dataset import to_dataset
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.plan import SweepPlan
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import RunConfig

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from purejaxdqn.search.study import Distribution

Statistic = Callable[[np.ndarray], float]  # scores [num_seeds] -> score


class SearchRequest(NamedTuple):
    """The arguments of a search that its numbers depend on; see `purejaxdqn.search.search.search`.

    `distributions` is the `space` as Optuna has it.
    """

    experiment: Experiment
    config: RunConfig
    space: Mapping[str, Any]
    distributions: Mapping[str, Distribution]
    seeds: Sequence[int]
    statistic: Statistic
    sampler_seed: int
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    pruner: optuna.pruners.BasePruner


class TrialTrainer:
    """Trains proposed trials, batch by batch, and keeps their records by the study's numbers.

    Each batch is laid out as in `plan`. `attrs` are added to the attributes of the dataset.
    """

    def __init__(
        self,
        request: SearchRequest,
        proposals: Proposals,
        plan: SweepPlan,
        devices: Sequence[jax.Device],
        folder: SweepFolder,
        bar: SweepProgress,
        attrs: dict[str, Any],
    ) -> None:
        self._experiment, self._config = request.experiment, request.config
        self._statistic = request.statistic
        self._proposals, self._plan, self._devices = proposals, plan, devices
        self._folder, self._bar = folder, bar
        self._seeds = plan.design.seeds
        self._layout = plan.groups[0].plan
        self._at_once = self._layout.slots_per_round // len(self._seeds)  # trials of a round
        self._records: dict[int, Record] = {}  # of the trials that are done, by number
        self._trained_steps = 0
        self._facts: dict[str, Any] = {
            "width": plan.width,
            "device": devices[0].device_kind,
            "num_devices": self._layout.num_devices,
            "peak_bytes": 0,
            "compile_seconds": 0.0,
            "train_seconds": 0.0,
            "evaluation_seconds": 0.0,
            "env_steps_per_second": 0.0,
            **attrs,
        }

    def read_earlier(self, num_trials: int) -> SearchResult | None:
        """Reads the trials of earlier processes; returns the result if so many are done already."""
        known = self._proposals.read_done()
        for trial in known:
            numbers = self._folder.load_finished(trial.number, self._config)
            if numbers is None:
                self._bar.message(
                    f"trial {trial.number} is not trained again: its score stays in the study, but "
                    "its numbers are lost"
                )
            else:
                self._records[trial.number] = numbers
        under_way = self._proposals.read_running()
        self._tell_batch()
        done = self._proposals.read_done()
        if len(done) >= num_trials and (dataset := self._load_results()) is not None:
            self._bar.message(f"the search in {self._output} is finished already")
            return SearchResult(dataset, self._find_best())
        if known or under_way:
            text = f"going on after {len(done)} trial(s)"
            if again := len(known) + len(under_way) - len(done):
                text += f"; {again} that were under way are proposed again"
            self._bar.message(text)
        return None

    def _load_results(self) -> xr.Dataset | None:
        """Loads the results that an earlier process has written, if all trials are in them."""
        with contextlib.suppress(OSError):
            dataset = results.load(self._output)
            numbers = [trial.number for trial in self._proposals.read_done()]
            is_finished = dataset.attrs.get("status") == "finished"
            if is_finished and dataset.trial.values.tolist() == numbers:
                return dataset
        return None

    def run(self, num_trials: int, trials_per_batch: int, stop: StopRequest) -> SearchResult:
        """Searches until so many trials are done.

        Raises:
          SearchInterrupted: when `stop` was asked for.
        """
        exit_code: int | None = None
        programs: Programs | None = None
        try:
            while (left := num_trials - len(self._proposals.read_done())) > 0:
                programs = programs or self._compile()
                stop.is_deferred = True
                self._train_batch(programs, self._proposals.ask(min(trials_per_batch, left)), stop)
                self._bar.attempt(lambda: results.save(self._make_dataset("running"), self._output))
                stop.raise_if_requested()
                stop.is_deferred = False
        except KeyboardInterrupt as error:
            exit_code = getattr(error, "exit_code", EXIT_INTERRUPTED)
        stop.is_deferred = True  # only the results are still to be written
        if exit_code is not None:
            self._tell_batch()
        result = None
        if self._proposals.read_done():
            dataset = self._make_dataset("finished" if exit_code is None else "interrupted")
            results.save_or_rescue(dataset, self._output)
            result = SearchResult(dataset, self._find_best())
        if exit_code is not None:
            text = f"the search was interrupted; the same call goes on (in {self._output})"
            raise SearchInterrupted(text, result, exit_code)
        assert result is not None
        return result

    @property
    def _output(self) -> Path:
        return self._folder.output

    def _compile(self) -> Programs:
        self._bar.message(
            f"{self._at_once} trial(s) of {len(self._seeds)} seed(s) at a time, "
            f"{self._plan.width} run(s) a device; compiling ..."
        )
        programs = compile_programs(self._experiment, self._config, self._layout, self._devices)
        self._facts["compile_seconds"] = programs.compile_seconds
        self._bar.message(f"compiled in {programs.compile_seconds:.1f} s")
        return programs

    # ------------------------------------------------------------------------ a batch, and its end

    def _train_batch(
        self, programs: Programs, trials: Sequence[optuna.Trial], stop: StopRequest
    ) -> None:
        """Trains a batch of trials, as many side by side as there is room for."""
        records: dict[int, Record] = {}
        steps_each = len(self._seeds) * self._config.total_steps
        steps_before = len(self._proposals.read_done()) * steps_each
        for begin in range(0, len(trials), self._at_once):
            side_by_side = trials[begin : begin + self._at_once]
            records |= self._train_round(programs, side_by_side, steps_before, stop)
            steps_before += len(side_by_side) * steps_each
        # All are saved before the study learns of any: a kill in between leaves nothing half done.
        for number, numbers in records.items():
            self._folder.save_finished(number, numbers)
        self._tell_batch()

    def _train_round(
        self,
        programs: Programs,
        trials: Sequence[optuna.Trial],
        steps_before: int,
        stop: StopRequest,
    ) -> dict[int, Record]:
        """Trains some trials side by side, and returns their records by number."""
        num_seeds = len(self._seeds)
        runs = [
            Run(seed, dataclasses.replace(self._config, **trial.params), trial.params)
            for trial in trials
            for seed in self._seeds
        ]
        records = [Record(self._config, num_seeds) for _ in trials]
        goes_on = np.ones(len(trials), bool)
        for trial in trials:
            self._bar.message(f"trial {trial.number}: {format_settings(trial.params)}")
        last_step = self._config.prefill_steps
        for event in train_round(
            programs, self._config, runs, wanted=lambda: np.repeat(goes_on, num_seeds)
        ):
            self._trained_steps += int(goes_on.sum()) * num_seeds * (event.step - last_step)
            last_step = event.step
            env_steps = steps_before + len(runs) * event.step
            self._bar.add_event(event, self._facts, self._trained_steps, env_steps)
            if event.step < self._config.total_steps:
                stop.raise_if_requested()
            if event.episode_return is None:
                continue
            notes = []
            for i, (trial, numbers) in enumerate(zip(trials, records, strict=True)):
                if goes_on[i]:
                    numbers.add(event, slice(i * num_seeds, (i + 1) * num_seeds))
                    goes_on[i], note = self._report(trial, numbers, event.step)
                    notes.append(f"trial {trial.number}: {note}")
            self._bar.message(f"step {event.step:>9,}  {', '.join(notes)}")
        for numbers in records:
            numbers.params = []  # the weights of hundreds of trials would fill the disk
        return {trial.number: numbers for trial, numbers in zip(trials, records, strict=True)}

    def _report(self, trial: optuna.Trial, numbers: Record, step: int) -> tuple[bool, str]:
        """Reports an evaluation to the study; returns whether the trial goes on, and a note."""
        score = self._compute_score(numbers, numbers.steps.index(step))
        if step == numbers.steps[0]:
            return True, f"{score:.1f}"  # before learning, which says nothing about the settings
        trial.report(score, step)
        if not math.isfinite(score):
            return False, "diverged"
        if step < numbers.steps[-1] and trial.should_prune():
            return False, f"{score:.1f} (pruned)"
        return True, f"{score:.1f}"

    def _compute_score(self, numbers: Record, at: int) -> float:
        """Computes the score at an evaluation; NaN if a seed diverged, or has not reached it."""
        means = numbers.evaluation_return[:, at].mean(axis=1, dtype=np.float64)
        if numbers.diverged.any() or not np.isfinite(means).all():
            return math.nan
        return float(self._statistic(means))

    def _tell_batch(self) -> None:
        """Tells the study of the batch under way, or fails it unless all of it is on the disk."""
        numbers = self._proposals.read_running()
        records = {n: self._folder.load_finished(n, self._config) for n in numbers}
        kept = {n: one for n, one in records.items() if one is not None}
        if len(kept) < len(numbers):
            for number in numbers:
                self._proposals.fail(number)
            return
        for number, one in kept.items():
            self._proposals.tell(number, self._compute_score(one, -1))
        self._records |= kept

    # ----------------------------------------------------------------------------- put together

    def _make_dataset(self, status: str) -> xr.Dataset:
        trials = self._proposals.read_done()
        configs = {t.number: dataclasses.replace(self._config, **t.params) for t in trials}
        design = grid_design(lambda trial: configs[trial], self._seeds, {"trial": [*configs]})
        num_seeds = len(self._seeds)
        members = [range(i * num_seeds, (i + 1) * num_seeds) for i in range(len(trials))]
        records = {
            i: self._records[trial.number]
            for i, trial in enumerate(trials)
            if trial.number in self._records
        }
        dataset = to_dataset(design, members, records)
        steps = dataset.step.values.tolist()
        scores = [[t.intermediate_values.get(s, math.nan) for s in steps] for t in trials]
        settings = {
            name: ("trial", [trial.params[name] for trial in trials]) for name in trials[0].params
        }
        fixed = {k: v for k, v in dataclasses.asdict(self._config).items() if k not in settings}
        self._facts["peak_bytes"] = peak_bytes()
        return (
            dataset.assign(
                state=("trial", [self._name_state(trial) for trial in trials]),
                score=(("trial", "step"), np.array(scores)),
            )
            .assign_coords(settings)
            .assign_attrs(
                provenance.collect_provenance(fixed, self._experiment), status=status, **self._facts
            )
        )

    def _name_state(self, trial: FrozenTrial) -> str:
        if study.is_complete(trial):
            return "complete"
        numbers = self._records.get(trial.number)
        return "diverged" if numbers is not None and numbers.diverged.any() else "pruned"

    def _find_best(self) -> Best | None:
        complete = [
            (trial.value, trial)
            for trial in self._proposals.read_done()
            if trial.value is not None and study.is_complete(trial)
        ]
        if not complete:
            return None
        score, trial = max(complete, key=lambda pair: pair[0])
        config = dataclasses.replace(self._config, **trial.params)
        return Best(trial.number, trial.params, score, config)
