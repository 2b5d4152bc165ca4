"""Search for good settings: Optuna proposes batches of them, each trained with several seeds.

Every batch is one round, or a few, of the same compiled program: the settings that are searched are
floats, which enter it as arguments. Bad trials are pruned between chunks. The folder of a search
holds, beside what `purejaxdqn.sweep.folder` keeps there,

    study.db     Optuna's own SQLite storage, for its dashboard and its plots
    results.nc   every number of every trial, written after each batch

A batch is told to the study as a whole, once its numbers are on the disk: after a kill, the search
goes on with the batch that was under way, from its start.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from purejaxdqn.engine.programs import Experiment
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.report.statistics import interquartile_mean
from purejaxdqn.runtime.devices import chosen_devices, max_width
from purejaxdqn.runtime.interrupts import listen
from purejaxdqn.search import study
from purejaxdqn.search.searcher import (
    Best,
    Searcher,
    SearchInterrupted,
    SearchResult,
    Statistic,
    show,
)
from purejaxdqn.search.study import STUDY_FILE, Proposals
from purejaxdqn.storage import results
from purejaxdqn.sweep.design import MOST_RUNS, grid_design, random_design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.opening import open_folder, width_of
from purejaxdqn.sweep.plan import SweepPlan, plan_sweep
from purejaxdqn.training.settings import RunConfig, settings_of
from purejaxdqn.training.settings_text import config_to_json
from purejaxdqn.types import ConfigError

if TYPE_CHECKING:
    import optuna

__all__ = ["Best", "SearchInterrupted", "SearchResult", "Statistic", "search", "show"]

_MIN_BATCHES = 4  # by default: proposals of one batch cannot learn from each other


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
    same versions; what a kill failed keeps its number in the study, though, and later trials count
    on from there. For samplers that remember more than the finished trials (such as
    `QMCSampler`), not after a kill.

    Args:
      experiment: `config -> Train`, such as `purejaxdqn.agents.dqn.dqn.dqn`.
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
      width: runs per device program, see `run_design`; by default chosen so that
        the seeds of a trial share a device. It stays for as long as the search goes on.
      devices: what to train on; by default every core, or the accelerators there are.
      memory_budget: bytes that runs may take on the devices at a time.
      progress: whether to show progress on standard error.

    Returns:
      A `SearchResult` whose dataset has the dimensions `(trial, seed, step, episode)`: those
      variables of `purejaxdqn.sweep.run.run_design`, NaN from where a trial ended, and
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
    if trials_per_batch is not None and trials_per_batch * len(seeds) > MOST_RUNS:
        raise ConfigError(
            f"trials_per_batch ({trials_per_batch}) of {len(seeds)} seeds are too many runs: at "
            f"most {MOST_RUNS:,}"
        )

    output = Path(output)
    results.prepare_output(output, overwrite, resume=not overwrite)
    devices = chosen_devices(devices)
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
        asked = results.jsonable(
            {
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
        )
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
        searcher = Searcher(
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
    declared = settings_of(type(config))
    found = {}
    for name, source in space.items():
        if name in declared and not declared[name].is_traced:
            raise ConfigError(
                f"{name} cannot be searched: all trials share one compiled program, in which only "
                "floats vary, such as learning_rate; fix it, or sweep over it with "
                "purejaxdqn.sweep.run.run_sweep"
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
