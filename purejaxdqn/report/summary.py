"""One setting's results in a few numbers, for the table, the summary file and the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from purejaxdqn.report.statistics import bootstrap_interval
from purejaxdqn.storage.files import replace_file

SUMMARY_NAME = "summary.json"


def steps_to_threshold(dataset: xr.Dataset, threshold: float) -> list[int | None]:
    """The first evaluated step at which each seed's mean greedy return reached a threshold.

    Args:
      dataset: with `evaluation_return (seed, step, episode)`.
      threshold: a return.

    Returns:
      Environment steps per seed; None where the threshold was never reached.
    """
    means = dataset.evaluation_return.mean("episode").transpose("seed", "step").values
    steps = dataset.step.values
    return [int(steps[row >= threshold][0]) if (row >= threshold).any() else None for row in means]


def summarise(
    dataset: xr.Dataset, threshold: float | None, rng: np.random.Generator
) -> dict[str, Any]:
    """Everything that the table and `summary.json` say, ready for JSON: what is missing is None.

    Args:
      dataset: what `run_sweep` gives for one setting; with
        `gymnasium_return (seed, gymnasium_episode)` where there is one.
      threshold: the return at which the task counts as solved.
      rng: of the bootstrap.

    Returns:
      `algorithm` and `env` by name, `status`, `seeds`, `final_return` and `gymnasium_return` per
      seed (means over episodes), `iqm` over the seeds' means with its 95 % interval `iqm_low` and
      `iqm_high`, `interval_note`, `threshold`, `steps_to_threshold` per seed, `num_solved` (seeds
      whose final mean reached the threshold), `num_finished`, and the sweep's times.
    """
    finals = dataset.final_return.mean("episode").values.astype(float)
    finished = finals[np.isfinite(finals)]
    interval = bootstrap_interval(finished, rng) if len(finished) else None
    times = ("env_steps_per_second", "compile_seconds", "train_seconds", "evaluation_seconds")
    gymnasium_return: list[float | None] = [None] * len(finals)
    if "gymnasium_return" in dataset:
        gymnasium_return = _numbers(dataset.gymnasium_return.mean("gymnasium_episode").values)
    solved = threshold is not None and int((finished >= threshold).sum())
    return {
        "algorithm": dataset.attrs["experiment"].rpartition(".")[2].upper(),
        "env": _env(dataset),
        "status": dataset.attrs["status"],
        "seeds": dataset.seed.values.tolist(),
        "final_return": _numbers(finals),
        "gymnasium_return": gymnasium_return,
        "iqm": interval and interval.estimate,
        "iqm_low": interval and interval.low,
        "iqm_high": interval and interval.high,
        "interval_note": interval.note if interval else "no seed has finished",
        "threshold": threshold,
        "steps_to_threshold": (
            [None] * len(finals) if threshold is None else steps_to_threshold(dataset, threshold)
        ),
        "num_solved": None if threshold is None else solved,
        "num_finished": len(finished),
        "width": int(dataset.attrs["width"]),
        "num_devices": int(dataset.attrs["num_devices"]),
        **{name: float(dataset.attrs[name]) for name in times},
    }


def _env(dataset: xr.Dataset) -> str:
    """The environment's name, also of what was selected from a sweep over several."""
    shared = json.loads(dataset.attrs["config"])
    return str(shared["env"] if "env" in shared else dataset["env"].item())


def _numbers(values: np.ndarray) -> list[float | None]:
    """NaN has no place in JSON: None instead."""
    return [float(value) if np.isfinite(value) else None for value in values]


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The table, a row per seed, and the summary below it."""
    table = Table(title=f"{summary['algorithm']} on {summary['env']}")
    columns = ("seed", "greedy return", "in gymnasium", "steps to threshold")
    for column in columns:
        table.add_column(column, justify="right")
    rows = zip(
        summary["seeds"],
        summary["final_return"],
        summary["gymnasium_return"],
        summary["steps_to_threshold"],
        strict=True,
    )
    for seed, final, played, steps in rows:
        table.add_row(
            str(seed),
            "not finished" if final is None else f"{final:.1f}",
            "-" if played is None else f"{played:.1f}",
            "-" if steps is None else f"{steps:,}",
        )
    console.print(table)
    if summary["iqm"] is not None:
        line = f"interquartile mean over seeds {summary['iqm']:.1f}"
        if summary["iqm_low"] is not None:
            line += f", 95 % interval {summary['iqm_low']:.1f} to {summary['iqm_high']:.1f}"
        console.print(line)
    if summary["interval_note"]:
        console.print(summary["interval_note"])
    if summary["threshold"] is not None:
        console.print(
            f"solved (at least {summary['threshold']:.0f}): {summary['num_solved']} of "
            f"{len(summary['seeds'])} seeds"
        )
    console.print(
        f"{summary['env_steps_per_second']:,.0f} environment steps per second over all seeds; "
        f"compiled in {summary['compile_seconds']:.1f} s, trained in "
        f"{summary['train_seconds']:.1f} s, evaluated in {summary['evaluation_seconds']:.1f} s"
    )


def save_summary(summary: dict[str, Any], folder: Path) -> Path:
    """Writes `summary.json` into a folder and says where."""
    path = folder / SUMMARY_NAME
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return path
