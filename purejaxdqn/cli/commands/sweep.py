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

import dataclasses
import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from purejaxdqn import agents
from purejaxdqn.checks import ConfigError
from purejaxdqn.cli import sweeps
from purejaxdqn.cli.flags import read_command_line
from purejaxdqn.runtime.console import show_waiting
from purejaxdqn.sweep.dataset import SweepResult
from purejaxdqn.sweep.design import MOST_RUNS, Design, grid_design, random_design
from purejaxdqn.training.declaration import Drawn, Setting

_SAMPLES = "Settings to draw, where some are drawn from distributions."
_SAMPLE_FLAGS = [
    Setting("num_samples", int, None, _SAMPLES, "sweep", at_most=MOST_RUNS),
    Setting("sample_seed", int, 0, "Seed of that draw.", "sweep", at_least=0),
]


def run(argv: Sequence[str]) -> int:
    """Trains every seed at every swept setting, and prints the table of the settings."""
    design, flags = read_sweep(argv, "purejaxdqn sweep")

    def report(result: SweepResult) -> None:
        from purejaxdqn.report.sweep import report_sweep

        if result.dataset.evaluation_return.notnull().any():
            sweeps.print_json(flags, report_sweep(result.dataset, flags.output))

    sweeps.train_design(lambda: agents.train, design, flags, report)
    return 0


def run_plan(argv: Sequence[str]) -> int:
    """Prints how a sweep would be trained, and how long that would take; keeps nothing."""
    design, flags = read_sweep(argv, "purejaxdqn plan")
    if (address := flags.cluster) is not None:
        raise ConfigError(f"cluster ({address!r}) has no plan before it is reached: leave it out")
    options = sweeps.make_options(flags)
    with show_waiting("importing JAX"):
        from purejaxdqn.runtime.processes import join_processes
        from purejaxdqn.sweep.run import print_plan

        join_processes(flags.coordinator, flags.num_processes, flags.process_id)
        options = dataclasses.replace(options, devices=sweeps.choose_devices(flags))
    print_plan(agents.train, design, options=options)
    return 0


def read_sweep(argv: Sequence[str], prog: str) -> tuple[Design, SimpleNamespace]:
    """Reads the runs of a sweep, and the other flags."""
    own = [*sweeps.sweep_flags("results/sweep"), *_SAMPLE_FLAGS]
    flags, fixed, swept = read_swept_settings(argv, prog, __doc__, own)
    drawn = sorted(n for n, values in swept.items() if any(isinstance(x, Drawn) for x in values))
    for name in drawn:
        if len(swept[name]) > 1:
            raise ConfigError(
                f"{name} has {len(swept[name])} values, a distribution among them: it must be one "
                "distribution, or values"
            )
    if drawn and flags.num_samples is None:
        names = ", ".join(drawn)
        raise ConfigError(f"{names} is drawn at random: say how often with --num-samples")
    if flags.num_samples is not None and not drawn:
        raise ConfigError(
            f"num_samples ({flags.num_samples}) needs a setting that is drawn at random, such as "
            "--learning-rate loguniform:1e-5:1e-2"
        )
    configure = functools.partial(agents.configure, **fixed)
    if drawn:
        space = {n: values[0].freeze() if n in drawn else values for n, values in swept.items()}
        rng = np.random.default_rng(flags.sample_seed)
        design = random_design(configure, sweeps.list_seeds(flags), space, flags.num_samples, rng)
    else:
        design = grid_design(configure, sweeps.list_seeds(flags), swept)
    sweeps.refuse_unread([*fixed, *swept], [point.config for point in design.points])
    return design, flags


def read_swept_settings(
    argv: Sequence[str], prog: str, description: str | None, own: Sequence[Setting]
) -> tuple[SimpleNamespace, dict[str, Any], dict[str, list[Any]]]:
    """Reads a command's own flags, and the settings of agents: of one value, and all others.

    Those others have several values, or a distribution, a `Drawn`.
    """
    flags, given, _ = read_command_line(
        argv, prog, description, own, default_agent=agents.DEFAULT, have_several_values=True
    )
    fixed = {n: v[0] for n, v in given.items() if len(v) == 1 and not isinstance(v[0], Drawn)}
    return flags, fixed, {n: v for n, v in given.items() if n not in fixed}
