"""Trains the trials that Optuna proposes, batch by batch, to the numbers that a search returns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from purejaxdqn.engine.memory import peak_bytes
from purejaxdqn.engine.programs import Programs, Run, compile_programs
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.engine.rounds import Record, train_round
from purejaxdqn.runtime.devices import Plan
from purejaxdqn.runtime.interrupts import EXIT_INTERRUPTED, Interrupted, StopRequest
from purejaxdqn.search import study
from purejaxdqn.storage import provenance, results
from purejaxdqn.sweep.dataset import to_dataset
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.resume import list_code
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError

if TYPE_CHECKING:
    import optuna


_STATES = ("complete", "pruned", "diverged")


class Best(NamedTuple):
    """The trial with the highest score, of those that were trained to their end.

    The score is too good an estimate, because it chose this trial out of many: other seeds say how
    good the settings are.
    """

    trial: int  # its number in the study
    settings: dict[str, float]  # the searched ones, by name
    score: float  # the statistic over its seeds
    config: RunConfig


class SearchResult(NamedTuple):
    """The numbers of a search.

    The dataset has the dimensions `(trial, seed, step, episode)` and the variables of a
    `SweepResult`, NaN from where a trial ended, and beside these
      - the coordinates `trial`, the study's numbers, and for each of them the searched settings;
      - `state (trial)`: "complete", "pruned" or "diverged";
      - `score (trial, step)`: the scores that were reported to the study, NaN where none was.
    """

    dataset: xr.Dataset
    best: Best | None  # None where no trial was trained to its end

    def print(self, console: Console, at_most: int = 10) -> None:
        """Prints a table of the best trials that were trained to their end, and the best flags."""
        table = Table("trial", "score", *_list_searched(self.dataset))
        for number, score, settings in rank_trials(self.dataset)[:at_most]:
            # Settings to the last digit: they are there to be used.
            table.add_row(str(number), f"{score:.1f}", *map(str, settings.values()))
        console.print(table)
        states = ", ".join(f"{self.summary()[name]} {name}" for name in _STATES)
        console.print(f"scores over {self.dataset.sizes['seed']} seeds; of the trials, {states}")
        if self.best is None:
            console.print("no trial was trained to its end")
            return
        flags = " ".join(f"--{n.replace('_', '-')} {v}" for n, v in self.best.settings.items())
        console.print(f"best: {flags}", soft_wrap=True)
        console.print("It was chosen by its score: only other seeds say how good it is.")

    def summary(self) -> dict[str, Any]:
        """Returns the counts and the best trial, ready for JSON."""
        states = self.dataset.state.values.tolist()
        counts = {state: states.count(state) for state in _STATES}
        facts = {"status": self.dataset.attrs["status"], "num_trials": len(states), **counts}
        names = ("trial", "score", "settings")
        best = self.best and {name: getattr(self.best, name) for name in names}
        return {**facts, "best": provenance.to_jsonable(best)}


def _list_searched(dataset: xr.Dataset) -> list[str]:
    coords = dataset.coords.items()
    return [str(n) for n, values in coords if values.dims == ("trial",) and n != "trial"]


def rank_trials(dataset: xr.Dataset) -> list[tuple[int, float, dict[str, Any]]]:
    """Returns number, score and settings of the trials trained to their end, the best first.

    Of several that are as good the first one comes first.
    """
    scores = dataset.score.isel(step=-1, trial=dataset.state.values == "complete")
    names = _list_searched(dataset)
    return [
        (int(one.trial), float(one), {name: float(one[name]) for name in names})
        for one in scores.sortby(-scores)
    ]


class SearchInterrupted(Interrupted):
    """Ctrl-C or SIGTERM; `result` is the `SearchResult` so far, None without a finished batch."""


@dataclasses.dataclass
class TrialTrainer:
    """Trains proposed trials in batches that are laid out alike; `attrs` go into the dataset."""

    request: study.SearchRequest
    opened: optuna.Study
    layout: Plan
    devices: Sequence[jax.Device]
    folder: SweepFolder
    bar: SweepProgress
    env: str  # as results name it
    attrs: dict[str, Any]

    def __post_init__(self) -> None:
        self._config, self._seeds = self.request.config, self.request.seeds
        self._output, last_step = self.folder.output, self._config.total_steps
        self._at_once = self.layout.slots_per_round // len(self._seeds)  # trials of a round
        self._load = functools.cache(lambda n: self.folder.load_finished(n, self._config))
        self._digests = self.folder.read_trials()

        def is_kept(number: int) -> bool:
            return str(number) in self._digests and self._load(number) is not None

        self._tell_batch = functools.partial(study.tell_batch, self.opened, is_kept, last_step)
        self._trained_steps = 0
        times = ("compile_seconds", "train_seconds", "evaluation_seconds", "env_steps_per_second")
        layout = {"width": self.layout.width, "device": self.devices[0].device_kind}
        layout["num_devices"] = self.layout.num_devices
        self._facts: dict[str, Any] = {**layout, **dict.fromkeys(times, 0.0), **self.attrs}

    def read_earlier(self, num_trials: int) -> SearchResult | None:
        """Reads the trials of earlier processes; returns the result if so many are done already."""
        for trial in study.read_done(self.opened):
            if self._load(trial.number) is None:
                self.bar.message(
                    f"trial {trial.number} is not trained again: its score stays in the study, but "
                    "its numbers are lost"
                )
        num_failed = self._tell_batch()
        numbers = [trial.number for trial in study.read_done(self.opened)]
        if len(numbers) >= num_trials:
            with contextlib.suppress(OSError, ConfigError):
                dataset = results.load(self._output)
                is_finished = dataset.attrs.get("status") == "finished"
                if is_finished and dataset.trial.values.tolist() == numbers:
                    self.bar.message(f"the search in {self._output} is finished already")
                    return SearchResult(dataset, self._find_best(dataset))
        if numbers or num_failed:
            again = f"; {num_failed} that were under way are proposed again" if num_failed else ""
            self.bar.message(f"going on after {len(numbers)} trial(s){again}")
        return None

    def run(self, num_trials: int, trials_per_batch: int, stop: StopRequest) -> SearchResult:
        """Searches until so many trials are done; raises `SearchInterrupted` if asked to stop."""
        try:
            while (left := num_trials - len(study.read_done(self.opened))) > 0:
                programs = self._programs
                stop.is_deferred = True
                trials = study.ask(self.opened, self.request, min(trials_per_batch, left))
                records: dict[int, Record] = {}
                for begin in range(0, len(trials), self._at_once):
                    side_by_side = trials[begin : begin + self._at_once]
                    records |= self._train_round(programs, side_by_side, begin, stop)
                # All are saved before the study learns of any: a kill leaves nothing half done.
                for number, record in records.items():
                    record.params = []  # the weights of hundreds of trials would fill the disk
                    self.folder.save_finished(number, record)
                self._digests = study.digest_trials(self.opened)
                self.folder.write_trials(self._digests)
                self._tell_batch()
                with self.bar.attempt():
                    results.save(self._make_dataset("running"), self._output)
                stop.raise_if_requested()
                stop.is_deferred = False
        except KeyboardInterrupt as error:
            stop.is_deferred = True  # only the results are still to be written
            self._tell_batch()
            result = self._write("interrupted") if study.read_done(self.opened) else None
            text = f"the search was interrupted; the same call goes on (in {self._output})"
            exit_code = getattr(error, "exit_code", EXIT_INTERRUPTED)
            raise SearchInterrupted(text, result, exit_code) from None
        stop.is_deferred = True
        return self._write("finished")

    @functools.cached_property
    def _programs(self) -> Programs:
        self.bar.message(
            f"{self._at_once} trial(s) of {len(self._seeds)} seed(s) at a time, "
            f"{self.layout.width} run(s) a device; compiling ..."
        )
        experiment = self.request.experiment
        programs = compile_programs(experiment, self._config, self.layout, self.devices)
        self._facts["compile_seconds"] = programs.compile_seconds
        self.bar.message(f"compiled in {programs.compile_seconds:.1f} s")
        return programs

    def _train_round(
        self, programs: Programs, trials: Sequence[optuna.Trial], before: int, stop: StopRequest
    ) -> dict[int, Record]:
        """Trains trials side by side, after so many of their batch; returns records by number."""
        num_seeds, config = len(self._seeds), self._config
        configs = [dataclasses.replace(config, **trial.params) for trial in trials]
        runs = [Run(seed, one, {}) for one in configs for seed in self._seeds]
        records = {trial.number: Record(config, num_seeds) for trial in trials}
        goes_on = np.ones(len(trials), bool)
        for trial in trials:
            shown = ", ".join(f"{name}={value:.4g}" for name, value in trial.params.items())
            self.bar.message(f"trial {trial.number}: {shown}")
        steps_before = (len(study.read_done(self.opened)) + before) * num_seeds * config.total_steps
        last_step = config.prefill_steps
        wanted = functools.partial(np.repeat, goes_on, num_seeds)
        for event in train_round(programs, config, runs, wanted=wanted):
            self._trained_steps += int(goes_on.sum()) * num_seeds * (event.step - last_step)
            last_step = event.step
            env_steps = steps_before + len(runs) * event.step
            self.bar.add_event(event, self._facts, self._trained_steps, env_steps)
            if event.step < config.total_steps:
                stop.raise_if_requested()
            if event.episode_return is None:
                continue
            notes = []
            for i, (trial, record) in enumerate(zip(trials, records.values(), strict=True)):
                if goes_on[i]:
                    record.add(event, slice(i * num_seeds, (i + 1) * num_seeds))
                    goes_on[i], note = self._report(trial, record, event.step)
                    notes.append(f"trial {trial.number}: {note}")
            self.bar.message(f"step {event.step:>9,}  {', '.join(notes)}")
        return records

    def _report(self, trial: optuna.Trial, record: Record, step: int) -> tuple[bool, str]:
        """Reports an evaluation to the study; returns whether the trial goes on, and a note."""
        returns = record.evaluation_return[:, record.steps.index(step)]
        means = returns.mean(axis=1, dtype=np.float64)
        is_finite = np.isfinite(means).all() and not record.diverged.any()
        score = float(self.request.statistic(means)) if is_finite else math.nan
        if step > record.steps[0]:  # before learning it says nothing about the settings
            trial.report(score, step)
            if not math.isfinite(score):
                return False, "diverged"
            if step < record.steps[-1] and trial.should_prune():
                return False, f"{score:.1f} (pruned)"
        return True, f"{score:.1f}"

    def _write(self, status: str) -> SearchResult:
        dataset = self._make_dataset(status)
        results.save_or_rescue(dataset, self._output)
        return SearchResult(dataset, self._find_best(dataset))

    def _make_dataset(self, status: str) -> xr.Dataset:
        trials = study.read_done(self.opened)
        configs = {t.number: dataclasses.replace(self._config, **t.params) for t in trials}
        design = grid_design(lambda trial: configs[trial], self._seeds, {"trial": [*configs]})
        named = [dataclasses.replace(config, env=self.env) for config, _ in design.points]
        points = [one._replace(config=c) for one, c in zip(design.points, named, strict=True)]
        design = design._replace(points=tuple(points))
        members = np.arange(len(design.runs)).reshape(len(trials), -1).tolist()
        loaded = {i: self._load(number) for i, number in enumerate(configs)}
        records = {i: record for i, record in loaded.items() if record is not None}
        dataset = to_dataset(design, members, records)
        steps = dataset.step.values.tolist()
        scores = [[t.intermediate_values.get(s, math.nan) for s in steps] for t in trials]
        # The last report of a trial that has diverged is NaN, which the study keeps no value of.
        states = ["diverged" if t.value is None else t.state.name.lower() for t in trials]
        settings = {name: ("trial", [t.params[name] for t in trials]) for name in trials[0].params}
        experiment = self.request.experiment
        fixed = {name: value for name, value in design.shared.items() if name not in settings}
        attrs = provenance.collect_provenance(
            fixed, experiment, list_code(experiment, [self._config])
        )
        return (
            dataset.assign(state=("trial", states), score=(("trial", "step"), np.array(scores)))
            .assign_coords(settings)
            .assign_attrs(attrs, status=status, peak_bytes=peak_bytes(), **self._facts)
        )

    def _find_best(self, dataset: xr.Dataset) -> Best | None:
        for number, score, settings in rank_trials(dataset):
            return Best(number, settings, score, dataclasses.replace(self._config, **settings))
        return None
