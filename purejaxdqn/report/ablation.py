"""Reports an ablation: how well each combination of components did, and what each one adds."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from rich.table import Table

from purejaxdqn.report import figures, files, pages
from purejaxdqn.report import statistics as stats
from purejaxdqn.report.statistics import Interval
from purejaxdqn.report.training import find_environment
from purejaxdqn.runtime.console import make_console

Metric = Literal["iqm", "mean"]
STATISTICS: dict[Metric, Callable[..., Any]] = {"iqm": stats.interquartile_mean, "mean": np.mean}
_OUTCOMES = {
    "final_return": "final greedy return",
    "area": "greedy return over the whole run",  # the area under the learning curve, per step
}


class Row(NamedTuple):
    """Holds one combination: its name, which components are in, and an interval per outcome."""

    name: str
    point: dict[str, bool]
    intervals: dict[str, Interval]


def report_ablation(
    dataset: xr.Dataset, output: Path, components: Sequence[str], base: str, metric: Metric = "iqm"
) -> dict[str, Any] | None:
    """Prints the tables of an ablation, and writes its summary, figures and pages.

    The dataset has a dimension for each component, of the coordinates False and True. The tables
    list `components` in their order. `base` is the name of the agent that has them or not. `metric`
    says how seeds are put together.

    Returns:
      `base`, `env`, `components`, `seeds`, `seeds_counted` (with numbers in every combination),
      `metric`, `interval_note`; `combinations`, the best first, and `effects` by component, each
      with `estimate`, `low` and `high` of both outcomes. None, and no file, if no seed counts.
    """
    greedy = stats.mean_return(dataset, "evaluation_return")
    finals = stats.mean_return(dataset, "final_return")
    # A seed counts if every combination has its numbers: else each would be of other seeds.
    whole = xr.Dataset({"final_return": finals, "area": measure_area(dataset)}).dropna("seed")
    of = stats.count_seeds(greedy.seed.where(greedy.seed.isin(whole.seed)))
    if not whole.sizes["seed"]:
        make_console(stderr=True).print(f"numbers in every combination: {of}: nothing is written")
        return None
    scores = {key: whole[key] for key in _OUTCOMES}
    statistic = STATISTICS[metric]
    rows = rank_combinations(components, scores, statistic)
    effects = {key: estimate_effects(components, x, statistic) for key, x in scores.items()}
    of_each = {name: {key: row[name] for key, row in effects.items()} for name in components}
    note = rows[0].intervals["final_return"].note
    console = make_console()
    words = f"{statistic.__name__.replace('_', ' ')} of {of}, 95 % interval"
    combined = {row.name: row.intervals for row in rows}
    console.print(_make_table(f"All combinations, {words}", "components", combined))
    console.print(_make_table(f"Effect of each component, {words}", "component", of_each, "+"))
    if note:
        console.print(note)
    env = find_environment(dataset)[0]
    title = f"What each component adds to {base} on {env}"
    named = {_OUTCOMES[outcome]: intervals for outcome, intervals in effects.items()}
    curves = {row.name: greedy.sel(row.point) for row in rows}
    facts = {
        "base": base,
        "env": env,
        "components": list(components),
        "seeds": dataset.seed.values.tolist(),
        "seeds_counted": whole.seed.values.tolist(),
        "metric": metric,
        "interval_note": note,
        "combinations": [
            {"name": row.name, "components": [name for name in components if row.point[name]]}
            | _to_json(row.intervals)
            for row in rows
        ],
        "effects": {name: _to_json(intervals) for name, intervals in of_each.items()},
    }
    drawn = {
        "effects": pages.plot_interactive_effects(named, title),
        "learning_curves": pages.plot_interactive_curves(curves, f"All combinations on {env}"),
    }
    files.save_report(output, facts, {"effects": figures.plot_effects(named, title)}, drawn)
    return facts


def measure_area(dataset: xr.Dataset) -> xr.DataArray:
    """Returns the area under each seed's learning curve over its length, which is a mean return."""
    curve = stats.mean_return(dataset, "evaluation_return")
    return curve.integrate("step") / float(dataset.step[-1] - dataset.step[0])


def rank_combinations(
    components: Sequence[str], scores: Mapping[str, xr.DataArray], statistic: Callable[..., Any]
) -> list[Row]:
    """Returns a row for each combination, the best by the first outcome first.

    Components are dimensions of the scores `(*components, seed)`, with the coordinates False and
    True. `statistic` is over the seeds, such as `np.mean`.
    """
    first = next(iter(scores))
    rows = []
    for values in itertools.product((False, True), repeat=len(components)):
        point = dict(zip(components, values, strict=True))
        intervals = {}
        for outcome, score in scores.items():
            rng, seeds = np.random.default_rng(0), score.sel(point).values
            intervals[outcome] = stats.bootstrap_interval(seeds, rng, statistic)
        name = "+".join(str(name) for name in scores[first].dims if point.get(str(name)))
        rows.append(Row(name or "none", point, intervals))
    return sorted(rows, key=lambda row: -row.intervals[first].estimate)


def estimate_effects(
    components: Sequence[str], score: xr.DataArray, statistic: Callable[..., Any]
) -> dict[str, Interval]:
    """Returns each component's mean difference over all pairs that differ in it alone."""
    effects = {}
    for name in components:
        treated, control = (score.sel({name: is_in}, drop=True) for is_in in (True, False))
        effects[name] = stats.paired_effect(treated, control, np.random.default_rng(0), statistic)
    return effects


def _make_table(
    title: str, column: str, rows: Mapping[str, Mapping[str, Interval]], sign: str = ""
) -> Table:
    """Makes a table of intervals by name and outcome, such as "+12.3 (-4.5 to 30.1)"."""

    def write(interval: Interval) -> str:
        estimate, low, high, *_ = interval
        ends = "" if low is None else f" ({low:{sign}.1f} to {high:{sign}.1f})"
        return f"{estimate:{sign}.1f}{ends}"

    table = Table(title=title)
    table.add_column(column, overflow="fold")
    for outcome in _OUTCOMES.values():
        table.add_column(outcome, justify="right")
    for name, intervals in rows.items():
        table.add_row(name, *map(write, intervals.values()))
    return table


def _to_json(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    names = Interval._fields[:3]
    return {key: dict(zip(names, interval[:3], strict=True)) for key, interval in intervals.items()}
