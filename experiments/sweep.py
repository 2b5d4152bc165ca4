"""Trains every seed at every combination of settings, and says which did best.

    python experiments/sweep.py --learning-rate 1e-4 3e-4 1e-3 --num-seeds 10
    python experiments/sweep.py --learning-rate loguniform:1e-5:1e-2 --num-samples 64 --num-seeds 4
    python experiments/sweep.py --agent dqn rainbow --hidden-sizes 64x64 256x256 --plan
    python experiments/sweep.py --learning-rate 1e-4 1e-3 --num-seeds 100 --resume
    python experiments/sweep.py --learning-rate 1e-4 1e-3 --num-seeds 100 --cluster 10.0.0.1:6379

Every setting takes several values. All values of floats and all seeds share one compiled program;
other settings take one for each value. With a distribution (uniform:0.9:1, loguniform:1e-5:1e-2)
the settings are drawn at random: lists are then drawn from, too. What a killed sweep had reached is
kept in the output folder, and --resume goes on from there. Several machines share a sweep through
Ray (--cluster), or as processes that are each started with the same command (--coordinator). Writes
results.nc, learning_curves.html and summary.json. Progress goes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from purejaxdqn import agents
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.cli import flags as cli
from purejaxdqn.report.sweep import report_sweep
from purejaxdqn.runtime import processes as distributed
from purejaxdqn.storage import results
from purejaxdqn.sweep.design import Design, grid_design, random_design
from purejaxdqn.sweep.ray.cluster import run_on_cluster
from purejaxdqn.sweep.run import SweepInterrupted, SweepResult, print_plan, run_design
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError


@dataclasses.dataclass(frozen=True)
class _Args(cli.LongSweepArgs):
    agent: tuple[str, ...] = ()
    """Named agents, whose settings are the defaults of all others: dqn, double, dueling, n_step,
    prioritised, c51, qr_dqn, iqn, fqf, munchausen, m_iqn, noisy, rainbow, pqn. Without one: the
    package's defaults of DQN."""
    num_samples: int | None = None
    """Settings to draw, where some are drawn from distributions."""
    sample_seed: int = 0
    """Seed of that draw."""
    plan: bool = False
    """Say how the sweep would be run and how long it would take, and stop there."""
    diagnostics: bool = False
    """Also look inside the learner at each evaluation: value bias, dormant units, effective rank,
    gradient norm, policy churn."""
    cluster: str | None = None
    """Train on the nodes of the Ray cluster at this address, such as 10.0.0.1:6379 (auto: the one
    that this machine is part of). All of them see the output folder; what a node that dies was
    training goes on elsewhere. --num-devices are then the cores of each task."""
    gpus_per_task: int = 0
    """GPUs of a node that each task trains on, with --cluster."""
    coordinator: str | None = None
    """Share the sweep with other processes: where the first of them can be reached, such as
    10.0.0.1:8476 (auto: as Slurm, Open MPI or a TPU has it). Each is started with the same command
    but for --process-id."""
    num_processes: int | None = None
    """Processes that share the sweep, with --coordinator."""
    process_id: int | None = None
    """Number of this process, from 0, with --coordinator."""

    @property
    def how_to_go_on(self) -> str:
        return "" if self.plan else super().how_to_go_on


Args: Any = dataclasses.make_dataclass(
    "Args", cli.setting_flags(DQNConfig, PQNConfig), bases=(_Args,), frozen=True
)
Args.__doc__ = __doc__


def make_design(args: Any) -> Design:
    """The runs that the flags ask for."""
    values: dict[str, list[Any]] = {"agent": [*args.agent]} if args.agent else {}
    values |= cli.parsed_settings(args, DQNConfig, PQNConfig)
    drawn = {name for name, several in values.items() if any(map(_is_drawn, several))}
    for name in drawn:
        if len(values[name]) > 1:
            raise ConfigError(f"{name} {getattr(args, name)} must be one distribution, or values")
    if drawn and args.num_samples is None:
        raise ConfigError(
            f"{', '.join(sorted(drawn))} is drawn at random: say how often with --num-samples"
        )
    if args.num_samples is not None and not drawn:
        raise ConfigError(
            f"num_samples ({args.num_samples}) needs a setting that is drawn at random, such as "
            "--learning-rate loguniform:1e-5:1e-2"
        )
    if args.sample_seed < 0:
        raise ConfigError(f"sample_seed ({args.sample_seed}) must be at least 0")

    fixed = {n: several[0] for n, several in values.items() if len(several) == 1 and n not in drawn}
    swept = {n: several[0] if n in drawn else several for n, several in values.items()}
    swept = {name: several for name, several in swept.items() if name not in fixed}

    def configure(**point: Any) -> RunConfig:
        return agents.configure(**fixed, **point)

    if not drawn:
        return grid_design(configure, args.seeds, swept)
    rng = np.random.default_rng(args.sample_seed)
    return random_design(configure, args.seeds, swept, args.num_samples, rng)


def _is_drawn(value: Any) -> bool:
    return hasattr(value, "rvs")


def report(args: Any, dataset: xr.Dataset, output: Path) -> None:
    """Prints the table and, if asked for, the same as JSON; writes the summary and the figure."""
    facts = report_sweep(dataset, output)
    if args.json:
        print(json.dumps(facts, allow_nan=False))


def train(args: Any, design: Design, **options: Any) -> SweepResult:
    """The sweep, on the devices of this machine or of a cluster."""
    options |= {"diagnostics": args.diagnostics}
    with args.tracked(design.shared) as tracker:
        if args.cluster is None:
            return run_design(agents.train, design, on_evaluation=tracker, **options)
        return run_on_cluster(
            agents.train,
            design,
            address=args.cluster,
            num_cpus_per_task=args.num_devices,
            num_gpus_per_task=args.gpus_per_task,
            on_evaluation=tracker,
            **options,
        )


def check_machines(args: Any) -> None:
    """Refuses flags of several machines that exclude each other."""
    if args.cluster is None and args.gpus_per_task:
        raise ConfigError(f"gpus_per_task ({args.gpus_per_task}) needs --cluster")
    for name, other in (("plan", args.plan), ("coordinator", args.coordinator)):
        if args.cluster is not None and other:
            raise ConfigError(
                f"cluster ({args.cluster!r}) and {name} ({other!r}) exclude each other: leave one "
                "of them out"
            )


def main(args: Any) -> int:
    design = make_design(args)
    options = args.sweep_options()  # refuse what they cannot be
    check_machines(args)
    distributed.join_processes(args.coordinator, args.num_processes, args.process_id)
    if args.plan:
        plan_options = {k: options[k] for k in ("width", "seed_mode", "memory_budget")}
        plan_options |= {"devices": args.devices(), "diagnostics": args.diagnostics}
        print_plan(agents.train, design, **plan_options)
        return 0

    def prepare() -> Path:
        return results.prepare_output(args.output, args.overwrite, args.resume)

    if args.cluster is None:
        options["devices"] = args.devices()
        output = distributed.run_on_first_process(prepare)
    else:
        output = prepare()  # Ray starts before JAX does
    try:
        result = train(args, design, output=output, **options)
    except SweepInterrupted as interrupt:
        if (
            interrupt.result.dataset.evaluation_return.notnull().any()
            and distributed.is_first_process()
        ):
            report(args, interrupt.result.dataset, output)
        raise
    if distributed.is_first_process():
        report(args, result.dataset, output)
    return 0


if __name__ == "__main__":
    cli.run(main, Args)
