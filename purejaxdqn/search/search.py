"""Searches for good settings: Optuna proposes batches of them, each trained with several seeds.

All batches use the same compiled program: the searched settings are floats, which enter it as
arguments. A trial is one proposal, trained with all seeds. Its score at an evaluation is a
statistic, over seeds, of each seed's mean greedy return. The study receives all scores but those
before learning; where the pruner says so, the trial ends there. That changes no bit of the others.
A trial of which any seed diverges ends at the next evaluation. The study has it as pruned, with a
last report of NaN: from failed trials the sampler would not learn to stay away.

The folder holds what `purejaxdqn.sweep.folder` keeps there, `results.nc`, written after each batch,
and `study.db`: Optuna's own SQLite storage, for its dashboard and its plots. The study learns of a
batch once its numbers are on the disk. A kill fails the trials under way, which are proposed again,
under later numbers. The sampler is seeded anew for each batch, from `sampler_seed` and the number
of trials done before it. So the same arguments give the same bits, killed and resumed or not, on
the same kind of processor and with the same versions. Samplers that remember more than the finished
trials (such as `QMCSampler`) keep that promise only without a kill.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.report.statistics import interquartile_mean
from purejaxdqn.runtime.devices import ensure_devices, max_width
from purejaxdqn.runtime.interrupts import catch_signals
from purejaxdqn.search import study
from purejaxdqn.search.space import check_batch, read_space
from purejaxdqn.search.study import SearchRequest, Statistic
from purejaxdqn.search.trials import Best, SearchInterrupted, SearchResult, TrialTrainer
from purejaxdqn.storage import results
from purejaxdqn.storage.fingerprint import fingerprint
from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.sweep.design import random_design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.options import SweepOptions, take_options
from purejaxdqn.sweep.plan import SweepPlan, plan_sweep
from purejaxdqn.sweep.resume import begin_or_resume, describe_code
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import RunConfig, config_to_json
from purejaxdqn.types import ConfigError, ensure, ensure_function, ensure_whole

if TYPE_CHECKING:
    import optuna

__all__ = ["Best", "SearchInterrupted", "SearchResult", "Statistic", "search"]

_MIN_BATCHES = 4  # by default: proposals of one batch cannot learn from each other
_NOT_TAKEN = {
    "seed_mode": "it trains the seeds of a trial side by side",
    "resume": "a search that was begun in the output folder always goes on",
    "checkpoint_seconds": "it writes finished trials after each batch",
    "on_evaluation": "its study shows the trials",
    "diagnostics": "train the best settings with run_sweep to see them",
}


def search(
    experiment: Experiment,
    config: RunConfig,
    space: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    num_trials: int,
    trials_per_batch: int | None = None,
    statistic: Statistic = interquartile_mean,
    sampler_seed: int = 0,
    sampler: Callable[[int], optuna.samplers.BaseSampler] = study.default_sampler,
    pruner: optuna.pruners.BasePruner | None = None,
    options: SweepOptions | None = None,
    **option_fields: Any,
) -> SearchResult:
    """Searches for the settings with the highest greedy return, as the module describes.

    Args:
      experiment: `config -> Train`, such as `purejaxdqn.agents.dqn.dqn.dqn`.
      config: all settings; the searched ones are replaced.
      space: by the name of a float setting, `scipy.stats.uniform(low, high - low)`,
        `scipy.stats.loguniform(low, high)`, or a list of numbers.
      seeds: the seeds of each trial, whole numbers from 0 to 2**32 - 1.
      num_trials: trials in all, with those that an earlier call has done; pruned ones count.
      trials_per_batch: trials that are proposed together; by default as many as train at the same
        time, but at most a quarter of `num_trials`. A search that goes on keeps it.
      statistic: `scores [num_seeds] -> score`; by default the interquartile mean.
      sampler_seed: seed of the proposals.
      sampler: makes a sampler from a seed; by default Optuna's `TPESampler`.
      pruner: by default Optuna's `MedianPruner`, which spares the first quarter of a run.
      options: several fields of `SweepOptions` at once. `output` is needed; a search that was begun
        there with the same arguments goes on, unless `overwrite` drops it. `width` is by default
        chosen so that the seeds of a trial share a device; a search that goes on keeps it.
        `devices`, `memory_budget` and `progress` are as for a sweep; the others are refused.
      **option_fields: those fields of `SweepOptions`.

    Raises:
      ConfigError: for what cannot be searched, before anything is compiled.
      SearchInterrupted: on Ctrl-C and SIGTERM, with everything that was finished.
    """
    options = take_options(options, option_fields, "search", _NOT_TAKEN)
    ensure(isinstance(config, RunConfig), "config", config, "settings, such as DQNConfig()")
    ensure_function("statistic", statistic, "interquartile_mean")
    ensure(callable(sampler), "sampler", sampler, "a function from a seed to a sampler of Optuna")
    distributions = study.make_distributions(read_space(config, space, seeds))
    study.ensure_pruner(pruner)
    ensure_whole("num_trials", num_trials, 1)
    ensure_whole("sampler_seed", sampler_seed, 0)
    ensure_whole("trials_per_batch", 1 if trials_per_batch is None else trials_per_batch, 1)
    seeds = [int(seed) for seed in seeds]
    given = (experiment, config, space, distributions, seeds, statistic, sampler_seed, sampler)
    request = SearchRequest(*given, pruner or study.default_pruner(config.total_steps))
    return _search(request, num_trials, trials_per_batch, options)


def _search(
    request: SearchRequest, num_trials: int, trials_per_batch: int | None, options: SweepOptions
) -> SearchResult:
    """Opens the folder and the study, and searches."""
    output, overwrite, num_seeds = options.output, options.overwrite, len(request.seeds)
    if output is None:
        raise ConfigError("output (None) must be the folder of the search: give output")
    check = functools.partial(results.check_output, output, overwrite, resume=not overwrite)
    check()
    devices = options.devices or ensure_devices()
    if jax.process_count() > 1:
        raise ConfigError(
            f"a search runs in one process, not in {jax.process_count()}: start it without "
            "jax.distributed"
        )
    total_steps = num_trials * num_seeds * request.config.total_steps
    bar = SweepProgress(total_steps, enabled=options.progress)
    folder = SweepFolder(output, bar.message)
    with contextlib.ExitStack() as stack:
        stack.callback(folder.unlock)
        if folder.is_there():  # else it is made once nothing more is refused
            folder.lock()
        begun = {} if overwrite else folder.read_asked()
        at_once = len(devices) * max(1, max_width() // num_seeds)
        chosen = min(at_once, math.ceil(num_trials / _MIN_BATCHES))
        trials_per_batch = trials_per_batch or begun.get("trials_per_batch", chosen)
        chosen = _choose_width(min(trials_per_batch, at_once), num_seeds, len(devices))
        width = options.width or begun.get("width", chosen)
        how = {"width": width, "memory_budget": options.memory_budget}
        with bar.waiting("tracing the programs"):
            plan = _plan_batch(request, trials_per_batch, devices, **how)
            facts = _describe(request, trials_per_batch, width)
        folder.lock()
        check()  # again: no other process can write there now
        history = _begin(folder, facts, overwrite)
        told = (request.pruner, folder.read_trials(), request.config.total_steps)
        opened = stack.enter_context(study.open_study(output / study.STUDY_FILE, *told))
        for name, value in facts.items():
            opened.set_user_attr(name, value)
        attrs = {"num_trials": num_trials, "trials_per_batch": trials_per_batch, **history}
        attrs |= {"code": json.dumps(facts["code"]), **plan.environment}
        env, layout = plan.recorded.points[0].config.env, plan.groups[0].plan
        trainer = TrialTrainer(request, opened, layout, devices, folder, bar, env, attrs)
        stop = stack.enter_context(catch_signals())
        if (known := trainer.read_earlier(num_trials)) is not None:
            return known
        stack.enter_context(bar)
        return trainer.run(num_trials, trials_per_batch, stop)


def _plan_batch(
    request: SearchRequest, trials_per_batch: int, devices: Sequence[jax.Device], **options: Any
) -> SweepPlan:
    """Lays out a batch of trials, with as many runs as every batch will have."""
    rng, num_seeds = np.random.default_rng(0), len(request.seeds)
    check_batch(trials_per_batch, num_seeds)
    batch = random_design(request.config, request.seeds, request.space, trials_per_batch, rng)
    plan = plan_sweep(request.experiment, batch, devices, **options)
    layout = plan.groups[0].plan
    if layout.slots_per_round < num_seeds:
        raise ConfigError(
            f"the {num_seeds} seeds of a trial must train at the same time, but at width "
            f"({layout.width}) the {layout.num_devices} device(s) have {layout.slots_per_round} "
            "slots: raise the width, take fewer seeds, or train on more devices"
        )
    return plan


def _describe(request: SearchRequest, trials_per_batch: int, width: int) -> dict[str, Any]:
    """Describes everything that the numbers of a search depend on, as JSON holds it."""
    code = describe_code(request.experiment, [request.config])
    settings = json.loads(config_to_json(request.config))
    space = {name: study.to_json(one) for name, one in request.distributions.items()}
    batch = {"seeds": request.seeds, "trials_per_batch": trials_per_batch, "width": width}
    made_of = {name: fingerprint(getattr(request, name)) for name in ("statistic", "sampler")}
    how = {"sampler_seed": request.sampler_seed, "pruner": type(request.pruner).__name__}
    facts = {"code": code, "settings": settings, "space": space, **batch, **made_of, **how}
    return to_jsonable(facts)


def _begin(folder: SweepFolder, facts: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Begins or resumes a search. Refuses a folder whose study is missing or foreign."""
    path = folder.output / study.STUDY_FILE
    if overwrite:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    elif path.exists() and not folder.is_begun():
        raise ConfigError(
            f"{path} is of no search that was begun there: choose another folder with --output, or "
            "start again with --overwrite"
        )
    history = begin_or_resume(folder, facts, not overwrite, "search")
    if not path.exists() and folder.has_finished():
        raise ConfigError(
            f"{path} is missing, which says what was tried there: put it back, choose another "
            "folder with --output, or start again with --overwrite"
        )
    return history


def _choose_width(num_trials: int, num_seeds: int, num_devices: int) -> int:
    """Chooses the runs per device for so many trials at a time: whole trials, if none is idle."""
    devices_each = num_devices // num_trials
    if devices_each < 2:
        return math.ceil(num_trials / num_devices) * num_seeds
    return math.ceil(num_seeds / devices_each)
