"""Seeds times hyper-parameters to one labelled dataset: many runs over every device, in chunks.

A run is a function of its config, its seed and the width (runs per device program). Neither the
runs beside it, nor its slot, nor the number of devices, nor the chunking, nor a kill and a resume
changes a bit of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from purejaxdqn.engine.programs import Experiment
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.runtime import processes as distributed
from purejaxdqn.runtime.devices import chosen_devices
from purejaxdqn.runtime.interrupts import listen
from purejaxdqn.sweep import design
from purejaxdqn.sweep.design import Design, grid_design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.opening import SeedMode, opened, width_of
from purejaxdqn.sweep.plan import SweepPlan, plan_sweep
from purejaxdqn.sweep.trainer import SweepInterrupted, SweepResult, Trainer
from purejaxdqn.tracking import Tracker
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError

__all__ = ["SeedMode", "SweepInterrupted", "SweepResult", "print_plan", "run_design", "run_sweep"]


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
    overwrite: bool = False,
    checkpoint_seconds: float | None = None,
    memory_budget: int | None = None,
    on_evaluation: Tracker | None = None,
    progress: bool = True,
    diagnostics: bool = False,
    **grid: Sequence[Any],
) -> SweepResult:
    """Trains every seed at every combination of the swept settings, on every device.

    Args:
      experiment: `config -> Train`, such as `dqn` or `pqn`.
      config: the settings that all runs share; or a function that makes all settings of the swept
        ones.
      seeds: whole numbers from 0 to 2**32 - 1, no two the same.
      width: see `run_design`, as for all that follow.
      seed_mode: "vmap" or "map".
      devices: what to train on.
      output: a folder.
      resume: whether to go on.
      overwrite: whether to start again.
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
        overwrite=overwrite,
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
    overwrite: bool = False,
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
      overwrite: whether to start again, and drop what the folder holds. Without either, a folder
        that holds results or a sweep is refused.
      checkpoint_seconds: between two checkpoints of what is under way; by default 20 times as long
        as the last one took, and at least 10. 0 makes one after each chunk.
      memory_budget: bytes that runs may take on the devices at a time; by default most of what is
        free.
      on_evaluation: called with each `Evaluated` as it comes; see `purejaxdqn.tracking.trackers`.
      progress: whether to show progress on standard error.
      diagnostics: whether to look inside the learner at each evaluation: see
        `purejaxdqn.training.diagnostics`. It changes no bit of anything else, and takes one more
        program.

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
          `purejaxdqn.training.diagnostics.DIAGNOSTICS`.
      Runs that were not finished have NaN where they did not get to. Its attributes say how it was
      made, and how long that took. With several processes (`jax.distributed`) each trains its
      share, and each returns all of it.

    Raises:
      ConfigError: for settings that cannot be kept, before anything is compiled.
      SweepInterrupted: on Ctrl-C and SIGTERM, with everything that was finished.
    """
    devices = chosen_devices(devices)

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
        overwrite=overwrite,
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

    That is with an output folder, though nothing is kept. The programs are compiled, and run for a
    second each.

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
    devices = chosen_devices(devices)
    plan = plan_sweep(experiment, design, devices, width=width, memory_budget=memory_budget)
    with SweepProgress(0) as bar, listen(), tempfile.TemporaryDirectory() as stays_empty:
        folder = SweepFolder(Path(stays_empty), bar.message)
        Trainer(experiment, plan, devices, folder, bar=bar, diagnostics=diagnostics).announce()
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
