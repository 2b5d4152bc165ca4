"""Search for good settings: Optuna proposes batches of them, each trained with several seeds.

Every batch is one round, or a few, of the same compiled program: the settings that are searched are
floats, which enter it as arguments. Bad trials are pruned between chunks. The folder of a search
holds, beside what `purejaxdqn.sweep_folder` keeps there,

    study.db     Optuna's own SQLite storage, for its dashboard and its plots
    results.nc   every number of every trial, written after each batch

A batch is told to the study as a whole, once its numbers are on the disk: after a kill, the search
goes on with the batch that was under way, from its start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from purejaxdqn import record, results, study
from purejaxdqn.config import RunConfig, float_fields
from purejaxdqn.design import Run, Setting, config_to_json, grid_design, random_design
from purejaxdqn.devices import ensure_devices, max_width
from purejaxdqn.opening import open_folder, width_of
from purejaxdqn.planning import SweepPlan, peak_bytes, plan_sweep
from purejaxdqn.programs import Experiment, Programs, compile_programs
from purejaxdqn.progress import SweepProgress
from purejaxdqn.record import Record
from purejaxdqn.rounds import train_round
from purejaxdqn.statistics import interquartile_mean
from purejaxdqn.stopping import EXIT_INTERRUPTED, Stop, listen
from purejaxdqn.study import STUDY_FILE, Proposals
from purejaxdqn.sweep_folder import SweepFolder
from purejaxdqn.types import ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_MIN_BATCHES = 4  # by default: proposals of one batch cannot learn from each other

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
            settings = [f"{float(trial[name]):.3g}" for name in names]
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
        return {**facts, "best": {"trial": trial, "score": score, "settings": settings}}


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a search; `result` holds the batches before, None without any.

    The process should end with `exit_code`: 130 after Ctrl-C, 75 after SIGTERM.
    """

    def __init__(self, result: SearchResult | None, exit_code: int, output: Path) -> None:
        super().__init__(f"the search was interrupted; the same command goes on (in {output})")
        self.result = result
        self.exit_code = exit_code


def search(
    experiment: Experiment,
    config: RunConfig,
    space: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    num_trials: int,
    output: Path,
    trials_per_batch: int | None = None,
    overwrite: bool = False,
    statistic: Statistic = interquartile_mean,
    sampler_seed: int = 0,
    sampler: Callable[[int], optuna.samplers.BaseSampler] = study.default_sampler,
    pruner: optuna.pruners.BasePruner | None = None,
    width: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    memory_budget: int | None = None,
    progress: bool = True,
) -> SearchResult:
    """Searches for the settings with the highest greedy return.

    A trial is one proposal, trained with all seeds. Its score at an evaluation is the statistic,
    over seeds, of each seed's mean greedy return; its value is the score of the last one. Scores
    are reported to the study at each evaluation but the one before learning, and where the pruner
    says so the trial ends there. A device all of whose trials have ended stands still; the other
    runs are not changed by that, to the bit.

    A trial of which any seed diverges (weights or returns that are no finite numbers) ends at the
    next evaluation, and the study has it as pruned with a last report of NaN: so the sampler
    learns to stay away from there, which it does not from trials that failed.

    Where the output folder holds a search that was begun with the same arguments, it goes on, up to
    `num_trials`, which may have grown. Trials that were under way when it was killed are failed
    in the study, and proposed again.

    What is promised: the sampler is seeded anew for each batch, from `sampler_seed` and the number
    of trials that were done before it. So the same arguments give the same proposals and the same
    numbers, bit for bit, killed and continued or not, on the same kind of processor and with the
    same versions. For samplers that remember more than the finished trials (such as
    `QMCSampler`), not after a kill.

    Args:
      experiment: `config -> Train`, such as `purejaxdqn.dqn.dqn`.
      config: all settings; those that are searched are replaced.
      space: by the name of a float setting, what it is searched in: `scipy.stats.uniform(low,
        high - low)`, `scipy.stats.loguniform(low, high)`, or a list of numbers.
      seeds: of each trial, whole numbers from 0 to 2**32 - 1.
      num_trials: to be done in all, those included that are done already; pruned ones count.
      output: the folder of the search.
      trials_per_batch: trials that are proposed together; by default as many as train at the same
        time, but at most a quarter of `num_trials`. It stays for as long as the search goes on.
      overwrite: whether to start again, and drop what the folder holds.
      statistic: of one score per seed `[num_seeds]`; the interquartile mean by default, which of
        fewer than four seeds is the mean.
      sampler_seed: of the proposals.
      sampler: makes one of a seed; by default Optuna's `TPESampler`.
      pruner: by default Optuna's `MedianPruner` that spares the first quarter of a run.
      width: runs per device program, see `purejaxdqn.sweep.run_design`; by default chosen so that
        the seeds of a trial share a device. It stays for as long as the search goes on.
      devices: what to train on; by default every core, or the accelerators there are.
      memory_budget: bytes that runs may take on the devices at a time.
      progress: whether to show progress on standard error.

    Returns:
      A `SearchResult` whose dataset has the dimensions `(trial, seed, step, episode)`: those
      variables of `purejaxdqn.sweep.run_design`, NaN from where a trial ended, and
        - the coordinates `trial`, the study's numbers, and for each of them the searched settings;
        - `state (trial)`: "complete", "pruned" or "diverged";
        - `score (trial, step)`: what was reported to the study, NaN where nothing was.

    Raises:
      ConfigError: for what cannot be searched, before anything is compiled.
      SearchInterrupted: on Ctrl-C and SIGTERM, with everything that was finished.
    """
    study.require()
    distributions = _distributions(config, space)
    _check_whole("num_trials", num_trials, 1)
    _check_whole("trials_per_batch", 1 if trials_per_batch is None else trials_per_batch, 1)
    _check_whole("sampler_seed", sampler_seed, 0)
    width_of("vmap", width)
    _check_space(config, distributions, seeds)

    results.prepare_output(output, overwrite, resume=not overwrite)
    devices = devices or ensure_devices()
    if jax.process_count() > 1:
        raise ConfigError(
            f"a search runs in one process, not in {jax.process_count()}: start it without "
            "jax.distributed"
        )
    pruner = pruner or study.default_pruner(config.total_steps)
    with contextlib.ExitStack() as stack:
        total_steps = num_trials * len(seeds) * config.total_steps
        bar = SweepProgress(total_steps, enabled=progress)
        folder = SweepFolder(output, bar.message)
        folder.lock()
        stack.callback(folder.unlock)
        if folder.is_begun() and not overwrite:
            begun = folder.begun()["asked"]
            trials_per_batch = trials_per_batch or begun.get("trials_per_batch")
            width = width or begun["width"]
        at_once = len(devices) * max(1, max_width() // len(seeds))
        if trials_per_batch is None:
            trials_per_batch = min(at_once, math.ceil(num_trials / _MIN_BATCHES))
        if width is None:
            width = _width(min(trials_per_batch, at_once), len(seeds), len(devices))
        # As many runs as in the batches to come, to be planned for.
        batch = random_design(config, seeds, space, trials_per_batch, np.random.default_rng(0))
        plan = plan_sweep(experiment, batch, devices, width=width, memory_budget=memory_budget)
        _check_slots(plan)
        asked = {
            **results.experiment_names(experiment),
            "settings": json.loads(config_to_json(config)),
            "space": {name: study.to_json(one) for name, one in distributions.items()},
            "seeds": [int(seed) for seed in seeds],
            "trials_per_batch": trials_per_batch,
            "width": width,
            "statistic": results.experiment_names(statistic),
            "sampler": results.experiment_names(sampler),
            "sampler_seed": sampler_seed,
            "pruner": type(pruner).__name__,
        }
        path = output / STUDY_FILE
        _make_way(path, folder.is_begun(), overwrite)
        history = open_folder(folder, asked, not overwrite, bar.message, "search")
        if not path.exists() and folder.has_finished():
            raise ConfigError(
                f"{path} is missing, which says what was tried there: put it back, choose another "
                "folder with --output, or start again with --overwrite"
            )
        opened = stack.enter_context(study.open_study(path, pruner))
        for name, value in asked.items():
            opened.set_user_attr(name, value)
        searcher = _Searcher(
            experiment,
            config,
            Proposals(opened, distributions, sampler, sampler_seed),
            plan,
            devices,
            folder,
            statistic,
            bar,
            {"num_trials": num_trials, "trials_per_batch": trials_per_batch, **history},
        )
        stop = stack.enter_context(listen())
        if (known := searcher.take_up(num_trials)) is not None:
            return known
        stack.enter_context(bar)
        return searcher.run(num_trials, trials_per_batch, stop)


# --------------------------------------------------------------------------------- what is searched


def _check_whole(name: str, value: Any, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {at_least}")


def _distributions(config: RunConfig, space: Mapping[str, Any]) -> dict[str, study.Distribution]:
    """What each setting is searched in, as Optuna has it."""
    if not space:
        raise ConfigError(
            "space is empty: give at least one setting to search, such as "
            "learning_rate=scipy.stats.loguniform(1e-5, 1e-2), on a command line "
            "--learning-rate loguniform:1e-5:1e-2"
        )
    floats, names = float_fields(config), [field.name for field in dataclasses.fields(config)]
    found = {}
    for name, source in space.items():
        if name in names and name not in floats:
            raise ConfigError(
                f"{name} cannot be searched: all trials share one compiled program, in which only "
                "floats vary, such as learning_rate; fix it, or sweep over it with "
                "purejaxdqn.sweep.run_sweep"
            )
        found[name] = study.distribution(name, source)
    return found


def _check_space(
    config: RunConfig, distributions: Mapping[str, study.Distribution], seeds: Sequence[int]
) -> None:
    """Refuses names and seeds that are none, and values that are wrong, alone or two together."""
    for names in itertools.combinations(distributions, min(2, len(distributions))):
        grid_design(config, seeds, {name: study.ends(distributions[name]) for name in names})


def _width(num_trials: int, num_seeds: int, num_devices: int) -> int:
    """Runs per device for so many trials at a time: whole trials, where there are enough."""
    devices_each = num_devices // num_trials
    if devices_each < 2:
        return math.ceil(num_trials / num_devices) * num_seeds
    return math.ceil(num_seeds / devices_each)


def _check_slots(plan: SweepPlan) -> None:
    num_seeds, layout = len(plan.design.seeds), plan.groups[0].plan
    if layout.slots_per_round < num_seeds:
        raise ConfigError(
            f"the {num_seeds} seeds of a trial must train at the same time, but at width "
            f"({layout.width}) the {layout.num_devices} device(s) have {layout.slots_per_round} "
            "slots: raise the width, take fewer seeds, or train on more devices"
        )


def _make_way(path: Path, is_begun: bool, overwrite: bool) -> None:
    """For a new study, where there is to be one."""
    if overwrite:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    elif path.exists() and not is_begun:
        raise ConfigError(
            f"{path} is of no search that was begun there: choose another folder with --output, or "
            "start again with --overwrite"
        )


# ----------------------------------------------------------------------------------------- training


class _Searcher:
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
        with contextlib.suppress(OSError, ValueError):
            dataset = results.load(self._output)
            numbers = [trial.number for trial in self._proposals.done()]
            if dataset.attrs["status"] == "finished" and dataset.trial.values.tolist() == numbers:
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
            raise SearchInterrupted(result, exit_code, self._output)
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
            Run(seed, Setting(_replace(self._config, trial.params), trial.params))
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
        dataset = record.to_dataset(design, members, records)
        steps = dataset.step.values.tolist()
        scores = [[t.intermediate_values.get(s, math.nan) for s in steps] for t in trials]
        settings = {
            name: ("trial", [trial.params[name] for trial in trials]) for name in trials[0].params
        }
        self._facts["peak_bytes"] = peak_bytes()
        return (
            dataset.assign(
                state=("trial", [self._state(trial) for trial in trials]),
                score=(("trial", "step"), np.array(scores)),
            )
            .assign_coords(settings)
            .assign_attrs(
                results.provenance(self._config, self._experiment), status=status, **self._facts
            )
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
    return ", ".join(f"{name}={value:.3g}" for name, value in settings.items())
