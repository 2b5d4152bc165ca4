"""Trains every seed at every combination of settings, and says which did best.

    purejaxdqn sweep --learning-rate 1e-4 3e-4 1e-3 --num-seeds 10
    purejaxdqn sweep --learning-rate loguniform:1e-5:1e-2 --num-samples 64 --num-seeds 4
    purejaxdqn sweep --agent dqn rainbow --hidden-sizes 64x64 256x256
    purejaxdqn sweep --learning-rate 1e-4 1e-3 --num-seeds 100 --resume
    purejaxdqn sweep --learning-rate 1e-4 1e-3 --num-seeds 100 --cluster 10.0.0.1:6379

Every setting takes several values. All values of floats and all seeds share one compiled program;
other settings take one for each value. With a distribution (uniform:0.9:1, loguniform:1e-5:1e-2)
the settings are drawn at random: lists are then drawn from, too. What a killed sweep had reached is
kept in the output folder, and --resume goes on from there. Several machines share a sweep through
Ray (--cluster), or as processes that are each started with the same command (--coordinator). Writes
results.nc, learning_curves.html and summary.json. Progress goes to standard error. The
same flags behind `purejaxdqn plan` say first how it would be run, and how long it would take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from purejaxdqn import agents
from purejaxdqn.cli.flags import CommandLine, find_values, import_modules, read_command_line
from purejaxdqn.cli.sweeps import (
    READERS,
    agent_settings,
    choose_devices,
    explain_foreign_flags,
    list_seeds,
    make_options,
    print_json,
    refuse_unread,
    sweep_flags,
    trained_design,
)
from purejaxdqn.report.sweep import report_sweep
from purejaxdqn.runtime import processes
from purejaxdqn.sweep.dataset import SweepInterrupted
from purejaxdqn.sweep.design import MOST_RUNS, Design, grid_design, random_design
from purejaxdqn.sweep.run import print_plan
from purejaxdqn.training.declaration import Setting, setting, settings_of
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError


@dataclasses.dataclass(frozen=True)
class _SampleFlags:
    num_samples: int | None = setting(
        None,
        "Settings to draw, where some are drawn from distributions.",
        group="sweep",
        at_most=MOST_RUNS,
    )
    sample_seed: int = setting(0, "Seed of that draw.", group="sweep", at_least=0)


def run(argv: Sequence[str]) -> int:
    """Trains every seed at every swept setting, and prints the table of the settings."""
    design, flags = read_sweep(argv, "purejaxdqn sweep")
    try:
        with trained_design(agents.train, design, flags) as (dataset, _):
            if processes.is_first_process():
                print_json(flags, report_sweep(dataset, flags.output))
    except SweepInterrupted as interrupt:
        dataset = interrupt.result.dataset
        if dataset.evaluation_return.notnull().any() and processes.is_first_process():
            print_json(flags, report_sweep(dataset, flags.output))
        raise
    return 0


def run_plan(argv: Sequence[str]) -> int:
    """Prints how a sweep would be trained, and how long that would take; keeps nothing."""
    design, flags = read_sweep(argv, "purejaxdqn plan")
    if flags.cluster is not None:
        raise ConfigError(
            f"cluster ({flags.cluster!r}) has no plan before it is reached: leave it out"
        )
    options = make_options(flags)
    processes.join_processes(flags.coordinator, flags.num_processes, flags.process_id)
    print_plan(
        agents.train, design, options=dataclasses.replace(options, devices=choose_devices(flags))
    )
    return 0


def read_sweep(argv: Sequence[str], prog: str) -> tuple[Design, SimpleNamespace]:
    """Reads the runs of a sweep, and the other flags.

    Raises:
      ConfigError: for what cannot be run.
    """
    line = read_swept_settings(
        argv,
        prog,
        __doc__ or "",
        [*sweep_flags("results/sweep"), *settings_of(_SampleFlags).values()],
    )
    flags, values = line
    drawn = {name for name, several in values.items() if any(map(is_drawn, several))}
    for name in drawn:
        if len(values[name]) > 1:
            raise ConfigError(
                f"{name} has {len(values[name])} values, a distribution among them: it must be one "
                "distribution, or values"
            )
    if drawn and flags.num_samples is None:
        raise ConfigError(
            f"{', '.join(sorted(drawn))} is drawn at random: say how often with --num-samples"
        )
    if flags.num_samples is not None and not drawn:
        raise ConfigError(
            f"num_samples ({flags.num_samples}) needs a setting that is drawn at random, such as "
            "--learning-rate loguniform:1e-5:1e-2"
        )
    fixed = {n: several[0] for n, several in values.items() if len(several) == 1 and n not in drawn}
    swept = {n: several[0] if n in drawn else several for n, several in values.items()}
    swept = {name: several for name, several in swept.items() if name not in fixed}

    def configure(**point: Any) -> RunConfig:
        return agents.configure(**fixed, **point)

    if drawn:
        rng = np.random.default_rng(flags.sample_seed)
        design = random_design(configure, list_seeds(flags), swept, flags.num_samples, rng)
    else:
        design = grid_design(configure, list_seeds(flags), swept)
    refuse_unread(values, [point.config for point in design.points])
    return design, flags


def read_swept_settings(
    argv: Sequence[str], prog: str, description: str, own: Sequence[Setting]
) -> CommandLine:
    """Reads the settings of one or several agents, each with all its values.

    Raises:
      ConfigError: for an agent, a setting or a flag that cannot be.
    """
    import_modules(argv)
    names = find_values(argv, "agent") or [agents.DEFAULT]
    return read_command_line(
        argv,
        prog,
        description,
        own,
        agent_settings([agents.get(name).config for name in names], "Agents"),
        have_several_values=True,
        readers=READERS,
        hints_for_foreign_flags=explain_foreign_flags(names),
    )


def is_drawn(value: Any) -> bool:
    """Tells whether a value is a distribution."""
    return hasattr(value, "rvs")
