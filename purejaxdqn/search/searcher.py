"""Trains what Optuna proposes, batch by batch, and prunes it between chunks."""

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
from rich.console import Console
from rich.table import Table

from purejaxdqn.engine.memory import peak_bytes
from purejaxdqn.engine.programs import Experiment, Programs, compile_programs
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.engine.record import Record
from purejaxdqn.engine.rounds import train_round
from purejaxdqn.engine.run import Run
from purejaxdqn.runtime.interrupts import EXIT_INTERRUPTED, Interrupted, Stop
from purejaxdqn.search import study
from purejaxdqn.search.study import Proposals
from purejaxdqn.storage import results
from purejaxdqn.sweep import dataset as datasets
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.plan import SweepPlan
from purejaxdqn.training.settings import RunConfig

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Statistic = Callable[[np.ndarray], float]  # of one score a seed, [num_seeds]


class Best(NamedTuple):
    """The trial with the highest score, of those that were trained to their end.

    Attributes:
      trial: its number in the study.
      settings: those that were searched, by name.
      score: the statistic over its seeds. It chose this trial out of many, and is too good for
        that: seeds of their own say how good the setting is.
      config: all settings.
    """

    trial: int
    settings: dict[str, float]
    score: float
    config: RunConfig


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
      dataset: the numbers, labelled; see `search`.
      best: the best trial; None where none was trained to its end.
    """

    dataset: xr.Dataset
    best: Best | None

    def print(self, console: Console, at_most: int = 10) -> None:
        """A table of the best trials that were trained to their end, and the best one's flags."""
        dataset = self.dataset
        of_trials = [str(n) for n in dataset.coords if dataset[n].dims == ("trial",)]
        names = [name for name in of_trials if name != "trial"]
        complete = dataset.isel(trial=dataset.state.values == "complete")
        order = np.argsort(-complete.score.isel(step=-1).values, kind="stable")[:at_most]
        table = Table("trial", "score", *names)
        for at in order:
            trial = complete.isel(trial=at)
            settings = [f"{float(trial[name]):.4g}" for name in names]
            table.add_row(str(int(trial.trial)), f"{float(trial.score[-1]):.1f}", *settings)
        console.print(table)
        if self.best is None:
            console.print("no trial was trained to its end")
            return
        flags = " ".join(f"--{n.replace('_', '-')} {v}" for n, v in self.best.settings.items())
        console.print(f"best: {flags}", soft_wrap=True)
        console.print("It was chosen by its score: only other seeds say how good it is.")

    def summary(self) -> dict[str, Any]:
        """In a few numbers, ready for JSON."""
        states = self.dataset.state.values.tolist()
        counts = {state: states.count(state) for state in ("complete", "pruned", "diverged")}
        facts = {"status": self.dataset.attrs["status"], "num_trials": len(states), **counts}
        if self.best is None:
            return {**facts, "best": None}
        trial, settings, score, _ = self.best
        found = {"trial": trial, "score": score, "settings": results.jsonable(settings)}
        return {**facts, "best": found}


class SearchInterrupted(Interrupted):
    """Ctrl-C or SIGTERM during a search.

    Its `result` is the `SearchResult` of the batches before, None without any.
    """


class Searcher:
    """Trains what is proposed, batch by batch.

    Args:
      experiment: `config -> Train`.
      config: all settings, before the searched ones are replaced.
      proposals: the study.
      plan: of a batch.
      devices: what to train on.
      folder: where all is kept; the records of finished trials by the study's numbers.
      statistic: of one score a seed.
      bar: shows progress.
      attrs: of the dataset, beside those that are worked out here.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: RunConfig,
        proposals: Proposals,
        plan: SweepPlan,
        devices: Sequence[jax.Device],
        folder: SweepFolder,
        statistic: Statistic,
        bar: SweepProgress,
        attrs: dict[str, Any],
    ) -> None:
        self._experiment, self._config, self._proposals = experiment, config, proposals
        self._plan, self._devices, self._folder = plan, devices, folder
        self._statistic, self._bar = statistic, bar
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

    def take_up(self, num_trials: int) -> SearchResult | None:
        """Reads what an earlier process has left; gives the result where so many are done."""
        known = self._proposals.done()
        for trial in known:
            numbers = self._folder.load_finished(trial.number, self._config)
            if numbers is None:
                self._bar.message(
                    f"trial {trial.number} is not trained again: its score stays in the study, but "
                    "its numbers are lost"
                )
            else:
                self._records[trial.number] = numbers
        under_way = self._proposals.under_way()
        self._settle()
        done = self._proposals.done()
        if len(done) >= num_trials and (dataset := self._read()) is not None:
            self._bar.message(f"the search in {self._output} is finished already")
            return SearchResult(dataset, self._best())
        if known or under_way:
            text = f"going on after {len(done)} trial(s)"
            if again := len(known) + len(under_way) - len(done):
                text += f"; {again} that were under way are proposed again"
            self._bar.message(text)
        return None

    def _read(self) -> xr.Dataset | None:
        """The results as an earlier process has written them, if they are all there."""
        with contextlib.suppress(OSError):
            dataset = results.load(self._output)
            numbers = [trial.number for trial in self._proposals.done()]
            is_finished = dataset.attrs.get("status") == "finished"
            if is_finished and dataset.trial.values.tolist() == numbers:
                return dataset
        return None

    def run(self, num_trials: int, trials_per_batch: int, stop: Stop) -> SearchResult:
        """Searches until so many trials are done.

        Raises:
          SearchInterrupted: when `stop` was asked for.
        """
        exit_code: int | None = None
        programs: Programs | None = None
        try:
            while (left := num_trials - len(self._proposals.done())) > 0:
                programs = programs or self._compile()
                stop.waits = True
                self._train(programs, self._proposals.ask(min(trials_per_batch, left)), stop)
                self._bar.attempt(lambda: results.save(self._dataset("running"), self._output))
                stop.check()
                stop.waits = False
        except KeyboardInterrupt as error:
            exit_code = getattr(error, "exit_code", EXIT_INTERRUPTED)
        stop.waits = True  # what is left is to write down what there is
        if exit_code is not None:
            self._settle()
        result = None
        if self._proposals.done():
            dataset = self._dataset("finished" if exit_code is None else "interrupted")
            results.save_or_rescue(dataset, self._output)
            result = SearchResult(dataset, self._best())
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

    def _train(self, programs: Programs, trials: Sequence[optuna.Trial], stop: Stop) -> None:
        """Trains a batch, as many trials side by side as there is room for."""
        records: dict[int, Record] = {}
        steps_before = len(self._proposals.done()) * len(self._seeds) * self._config.total_steps
        for begin in range(0, len(trials), self._at_once):
            side_by_side = trials[begin : begin + self._at_once]
            records |= self._train_round(programs, side_by_side, steps_before, stop)
            steps_before += len(side_by_side) * len(self._seeds) * self._config.total_steps
        # All are kept before any is told: a kill in between leaves nothing half done.
        for number, numbers in records.items():
            self._folder.save_finished(number, numbers)
        self._settle()

    def _train_round(
        self, programs: Programs, trials: Sequence[optuna.Trial], steps_before: int, stop: Stop
    ) -> dict[int, Record]:
        """Trains some trials side by side; gives their records by number."""
        num_seeds = len(self._seeds)
        runs = [
            Run(seed, _replace(self._config, trial.params), trial.params)
            for trial in trials
            for seed in self._seeds
        ]
        records = [Record(self._config, num_seeds) for _ in trials]
        goes_on = np.ones(len(trials), bool)
        for trial in trials:
            self._bar.message(f"trial {trial.number}: {show(trial.params)}")
        last_step = self._config.prefill_steps
        for event in train_round(
            programs, self._config, runs, wanted=lambda: np.repeat(goes_on, num_seeds)
        ):
            self._trained_steps += int(goes_on.sum()) * num_seeds * (event.step - last_step)
            last_step = event.step
            self._bar.count(
                event, self._facts, self._trained_steps, steps_before + len(runs) * event.step
            )
            if event.step < self._config.total_steps:
                stop.check()
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
            numbers.params = []  # of hundreds of trials they would fill the disk
        return {trial.number: numbers for trial, numbers in zip(trials, records, strict=True)}

    def _report(self, trial: optuna.Trial, numbers: Record, step: int) -> tuple[bool, str]:
        """Tells the study of an evaluation; gives whether the trial goes on, and a note."""
        score = self._score(numbers, numbers.steps.index(step))
        if step == numbers.steps[0]:
            return True, f"{score:.1f}"  # before learning: it says nothing of the settings
        trial.report(score, step)
        if not math.isfinite(score):
            return False, "diverged"
        if step < numbers.steps[-1] and trial.should_prune():
            return False, f"{score:.1f} (pruned)"
        return True, f"{score:.1f}"

    def _score(self, numbers: Record, at: int) -> float:
        """The statistic at an evaluation; NaN where a seed has diverged, or did not get there."""
        means = numbers.evaluation_return[:, at].mean(axis=1, dtype=np.float64)
        if numbers.diverged.any() or not np.isfinite(means).all():
            return math.nan
        return float(self._statistic(means))

    def _settle(self) -> None:
        """Tells the batch that is under way if all of it is kept; it is failed otherwise."""
        numbers = self._proposals.under_way()
        records = {n: self._folder.load_finished(n, self._config) for n in numbers}
        kept = {n: one for n, one in records.items() if one is not None}
        if len(kept) < len(numbers):
            for number in numbers:
                self._proposals.fail(number)
            return
        for number, one in kept.items():
            self._proposals.tell(number, self._score(one, -1))
        self._records |= kept

    # ----------------------------------------------------------------------------- put together

    def _dataset(self, status: str) -> xr.Dataset:
        trials = self._proposals.done()
        configs = {trial.number: _replace(self._config, trial.params) for trial in trials}
        design = grid_design(lambda trial: configs[trial], self._seeds, {"trial": [*configs]})
        num_seeds = len(self._seeds)
        members = [range(i * num_seeds, (i + 1) * num_seeds) for i in range(len(trials))]
        records = {
            i: self._records[trial.number]
            for i, trial in enumerate(trials)
            if trial.number in self._records
        }
        dataset = datasets.to_dataset(design, members, records)
        steps = dataset.step.values.tolist()
        scores = [[t.intermediate_values.get(s, math.nan) for s in steps] for t in trials]
        settings = {
            name: ("trial", [trial.params[name] for trial in trials]) for name in trials[0].params
        }
        fixed = {k: v for k, v in dataclasses.asdict(self._config).items() if k not in settings}
        self._facts["peak_bytes"] = peak_bytes()
        return (
            dataset.assign(
                state=("trial", [self._state(trial) for trial in trials]),
                score=(("trial", "step"), np.array(scores)),
            )
            .assign_coords(settings)
            .assign_attrs(results.provenance(fixed, self._experiment), status=status, **self._facts)
        )

    def _state(self, trial: FrozenTrial) -> str:
        if study.is_complete(trial):
            return "complete"
        numbers = self._records.get(trial.number)
        return "diverged" if numbers is not None and numbers.diverged.any() else "pruned"

    def _best(self) -> Best | None:
        values = {
            trial.number: trial.value
            for trial in self._proposals.done()
            if trial.value is not None and study.is_complete(trial)
        }
        if not values:
            return None
        number = max(values, key=values.__getitem__)
        settings = next(t.params for t in self._proposals.done() if t.number == number)
        return Best(number, settings, values[number], _replace(self._config, settings))


def _replace(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    return dataclasses.replace(config, **settings)


def show(settings: Mapping[str, float]) -> str:
    """Such as "learning_rate=0.000312, discount=0.98"."""
    return ", ".join(f"{name}={value:.4g}" for name, value in settings.items())
