"""Reports one setting's results: a table of its seeds, a summary, and its learning curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from purejaxdqn import environments
from purejaxdqn.report import files
from purejaxdqn.report.files import FILM_NAME
from purejaxdqn.report.statistics import Interval, bootstrap_interval, count_seeds, mean_return
from purejaxdqn.runtime.console import make_console

_TIMES = ("env_steps_per_second", "compile_seconds", "train_seconds", "evaluation_seconds")


def report_training(dataset: xr.Dataset, output: Path) -> dict[str, Any] | None:
    """Prints the table of one setting's seeds, and writes the summary and the learning curves.

    Returns:
      What `summarise` returns. None where nothing was evaluated: then nothing is written either.
    """
    greedy = mean_return(dataset, "evaluation_return")
    if greedy.isnull().all():
        words = f"no mean return at any step of {count_seeds(greedy)}: nothing is written"
        make_console(stderr=True).print(words)
        return None
    if "gymnasium_return" not in dataset and "filmed" not in dataset.attrs:
        (output / FILM_NAME).unlink(missing_ok=True)  # an earlier run's
    threshold = find_environment(dataset)[1]
    facts = summarise(dataset, threshold, np.random.default_rng(0))
    print_summary(facts, make_console())
    title = f"{facts['agent'] or facts['algorithm']} on {facts['env']}"
    from purejaxdqn.report import figures, pages  # and what they draw with

    picture = figures.plot_learning_curve(dataset, title, threshold)
    page = pages.plot_interactive_curves({title: greedy}, title, threshold)
    files.save_report(output, facts, {"learning_curve": picture}, {"learning_curve": page})
    return facts


def summarise(
    dataset: xr.Dataset, threshold: float | None, rng: np.random.Generator
) -> dict[str, Any]:
    """Returns what the table and `summary.json` say, ready for JSON, with None for missing numbers.

    The dataset is what `run_sweep` gives for one setting, with
    `gymnasium_return (seed, gymnasium_episode)` where policies were played in gymnasium.

    Returns:
      `algorithm`, `agent` ("" for settings of none) and `env` by name, `status`, `seeds`, what
      `summarise_final_return` returns, `gymnasium_return` per seed (means over episodes),
      `threshold` (the return at which the task counts as solved), `steps_to_threshold` per seed,
      `num_solved` (seeds whose final mean reached the threshold), and the sweep's times.
    """
    finals = summarise_final_return(dataset, rng)
    missing: list[Any] = [None] * dataset.sizes["seed"]
    played, reached, num_solved = missing, missing, None
    if "gymnasium_return" in dataset:
        played = _to_json(dataset.gymnasium_return.mean("gymnasium_episode").values)
    if threshold is not None:
        reached = steps_to_threshold(dataset, threshold)
        num_solved = sum(x is not None and x >= threshold for x in finals["final_return"])
    return {
        "algorithm": dataset.attrs["experiment"].rpartition(".")[2].upper(),
        "agent": find_name(dataset, "agent"),
        "env": find_environment(dataset)[0],
        "status": dataset.attrs["status"],
        "seeds": dataset.seed.values.tolist(),
        **finals,
        "gymnasium_return": played,
        "threshold": threshold,
        "steps_to_threshold": reached,
        "num_solved": num_solved,
        "width": int(dataset.attrs["width"]),
        "num_devices": int(dataset.attrs["num_devices"]),
        **{name: float(dataset.attrs[name]) for name in _TIMES},
    }


def summarise_final_return(dataset: xr.Dataset, rng: np.random.Generator) -> dict[str, Any]:
    """Returns how well one setting's seeds did in the end, ready for JSON.

    Of `final_return (seed, episode)`, NaN for a seed that has not finished, these are
    `final_return` per seed (means over episodes), `num_finished`, the seeds whose mean is a number,
    `num_missing`, the others, `iqm` over the seeds' means with its 95 % interval `iqm_low` and
    `iqm_high`, `iqm_seeds`, which says of how many seeds it is, and `interval_note`.
    """
    finals = mean_return(dataset, "final_return").values
    finished = finals[np.isfinite(finals)]
    interval = bootstrap_interval(finished, rng) if len(finished) else None
    return {
        "final_return": _to_json(finals),
        "num_finished": len(finished),
        "num_missing": len(finals) - len(finished),
        "iqm_seeds": count_seeds(finals),
        "iqm": interval and interval.estimate,
        "iqm_low": interval and interval.low,
        "iqm_high": interval and interval.high,
        "interval_note": interval.note if interval else "no seed has finished with a number",
    }


def steps_to_threshold(dataset: xr.Dataset, threshold: float) -> list[int | None]:
    """Returns the first evaluated step at which each seed's mean greedy return reached a threshold.

    None stands for a seed whose `evaluation_return (seed, step, episode)` never reached it.
    """
    means = mean_return(dataset, "evaluation_return").transpose("seed", "step").values
    steps = dataset.step.values
    return [int(steps[row >= threshold][0]) if (row >= threshold).any() else None for row in means]


def find_name(dataset: xr.Dataset, setting: str) -> str:
    """Returns a setting that is a name, such as "env", also of one point out of a sweep over it."""
    shared = json.loads(dataset.attrs["config"])
    if setting in shared:
        return str(shared[setting])
    return str(dataset[setting].item()) if setting in dataset else ""


def find_environment(dataset: xr.Dataset) -> tuple[str, float | None]:
    """Returns the name of the environment that was trained on, and its threshold if it has one.

    Results of older versions, and of several environments, only have the name of the setting.
    """
    if "env" in dataset.attrs:
        threshold = dataset.attrs.get("threshold")
        return dataset.attrs["env"], None if threshold is None else float(threshold)
    name = find_name(dataset, "env")
    return name, environments.make(name).threshold if name else None


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Prints the table, a row per seed, and what all seeds have in common below it."""
    table = Table(title=f"{summary['agent'] or summary['algorithm']} on {summary['env']}")
    for column in ("seed", "greedy return", "in gymnasium", "steps to threshold"):
        table.add_column(column, justify="right")
    columns = ("seeds", "final_return", "gymnasium_return", "steps_to_threshold")
    for seed, final, played, steps in zip(*map(summary.get, columns), strict=True):
        table.add_row(
            str(seed), show(final, ".1f", "not finished or NaN"), show(played), show(steps, ",")
        )
    console.print(table)
    if summary["iqm"] is not None:
        interval = Interval(summary["iqm"], summary["iqm_low"], summary["iqm_high"], 0.95, "")
        console.print(f"interquartile mean of {summary['iqm_seeds']}: {interval}")
    if summary["interval_note"]:
        console.print(summary["interval_note"])
    if summary["threshold"] is not None:
        solved = f"{summary['num_solved']} of {len(summary['seeds'])} seeds"
        console.print(f"solved (at least {summary['threshold']:g}): {solved}")
    console.print(
        f"{summary['env_steps_per_second']:,.0f} environment steps per second over all seeds; "
        f"compiled in {summary['compile_seconds']:.1f} s, trained in "
        f"{summary['train_seconds']:.1f} s, evaluated in {summary['evaluation_seconds']:.1f} s"
    )


def show(number: float | None, form: str = ".1f", missing: str = "-") -> str:
    """Writes a number as a table has it."""
    return missing if number is None else f"{number:{form}}"


def _to_json(values: np.ndarray) -> list[float | None]:
    """Returns numbers with None for NaN, which JSON does not have."""
    return [float(value) if np.isfinite(value) else None for value in values]
