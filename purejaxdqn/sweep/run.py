"""Runs a sweep: seeds times settings to one labelled dataset, over every device, in chunks."""

from collections.abc import Sequence
from typing import Any

import jax

from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.runtime.devices import ensure_devices
from purejaxdqn.runtime.interrupts import catch_signals
from purejaxdqn.sweep.batches import BatchTrainer
from purejaxdqn.sweep.dataset import SweepInterrupted, SweepResult
from purejaxdqn.sweep.design import Configure, Design, ensure_design, grid_design
from purejaxdqn.sweep.options import SweepOptions, split_keywords, take_options
from purejaxdqn.sweep.plan import SweepPlan, plan_sweep
from purejaxdqn.sweep.resume import OpenSweep, open_sweep
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import RunConfig

__all__ = ["SweepInterrupted", "SweepResult", "print_plan", "run_design", "run_sweep"]


def run_sweep(
    experiment: Experiment,
    config: RunConfig | Configure,
    seeds: Sequence[int],
    *,
    options: SweepOptions | None = None,
    **options_and_grid: Any,
) -> SweepResult:
    """Trains every seed at every combination of the swept settings, on every device.

    Args:
      experiment: `config -> Train`, such as `dqn` or `pqn`.
      config: the settings that all runs share; or a function that makes all settings of the swept
        ones.
      seeds: whole numbers from 0 to 2**32 - 1, no two the same.
      options: several fields of `SweepOptions` at once.
      **options_and_grid: the fields of `SweepOptions`, such as `output="results/rates"` or
        `resume=True`. All other names are settings to sweep with their values, such as
        `learning_rate=[1e-4, 1e-3]`. All values of floats share one compiled program; other
        settings take one for each value.

    Raises:
      ConfigError: for runs and options that cannot be, before anything is compiled.
      SweepInterrupted: on Ctrl-C and SIGTERM, with everything that was finished.
    """
    options, grid = split_keywords(options, options_and_grid)
    return run_design(experiment, grid_design(config, seeds, grid), options=options)


def run_design(
    experiment: Experiment, design: Design, *, options: SweepOptions | None = None, **fields: Any
) -> SweepResult:
    """Trains every run of a design, of `grid_design` or `random_design`, on every device.

    With several processes (`jax.distributed`) each trains its share, and each returns all of it.
    The other arguments, and the errors, are those of `run_sweep`. Attributes of the dataset say how
    it was made, and how long that took.
    """
    ensure_design(design)
    options = take_options(options, fields, "run_design")
    devices = options.devices or ensure_devices()
    num_devices = len(devices) * jax.process_count()
    with open_sweep(experiment, design, options, devices, num_devices) as sweep:
        return BatchTrainer(sweep, devices).run()


def print_plan(
    experiment: Experiment, design: Design, *, options: SweepOptions | None = None, **fields: Any
) -> SweepPlan:
    """Prints on standard error how `run_design` would train a design, and how long it would take.

    It takes the arguments of `run_design`, and raises `ConfigError` as that does. It compiles the
    programs, and runs each for a second. It writes nothing.
    """
    ensure_design(design)
    options = take_options(options, fields, "print_plan")
    devices, width = options.devices or ensure_devices(), options.runs_per_batch
    num_devices = len(devices) * jax.process_count()
    plan = plan_sweep(experiment, design, devices, options.memory_budget, num_devices, width)
    with SweepProgress(0) as bar, catch_signals():
        sweep = OpenSweep(experiment, plan, options, {}, None, bar, {})
        BatchTrainer(sweep, devices).compile_and_forecast()
    return plan
