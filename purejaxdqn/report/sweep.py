"""Reports a sweep over settings: the table with the best ones first, and their learning curves."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.table import Table

from purejaxdqn.report import files, pages
from purejaxdqn.report.statistics import mean_return
from purejaxdqn.report.training import show, summarise_final_return
from purejaxdqn.runtime.console import make_console

_MOST_ROWS = 20
_MOST_CURVES = 12


def report_sweep(dataset: xr.Dataset, output: Path) -> dict[str, Any]:
    """Prints the table of a sweep, finished or not; writes its summary and the learning curves.

    Returns:
      `status`, `width`, and `settings`: per setting, the best first, its name as `setting`, what
      `summarise_final_return` returns, and `num_diverged`, the seeds whose numbers became NaN.
    """
    settings = group_by_setting(dataset)
    rows: list[dict[str, Any]] = []
    for name, part in settings.items():
        # One generator each: the interval of a setting does not depend on the others.
        finals = summarise_final_return(part, np.random.default_rng(0))
        rows.append({"setting": name, **finals, "num_diverged": int(part.diverged.sum())})
    rows.sort(key=lambda row: -np.inf if row["iqm"] is None else row["iqm"], reverse=True)
    make_console().print(_make_table(rows[:_MOST_ROWS]))
    facts = {"status": dataset.attrs["status"], "width": int(dataset.attrs["width"])}
    facts["settings"] = rows
    best = [row["setting"] for row in rows[:_MOST_CURVES]]
    curves = {name: mean_return(settings[name], "evaluation_return") for name in best}
    shown = f"the best {len(best)} of {len(rows)} settings" if rows[len(best) :] else "by setting"
    page = pages.plot_interactive_curves(curves, f"Greedy return, {shown}")
    files.save_report(output, facts, {}, {"learning_curves": page})
    return facts


def _make_table(rows: list[dict[str, Any]]) -> Table:
    """Makes the table; where it is too wide, only names of settings are broken into lines."""
    table = Table()
    table.add_column("setting", overflow="fold")
    for column in ("interquartile\nmean", "95 % interval", "finished", "diverged"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        low, high = row["iqm_low"], row["iqm_high"]
        interval = "-" if low is None else f"{low:.1f} to {high:.1f}"
        finished = f"{row['num_finished']} of {len(row['final_return'])}"
        numbers = show(row["iqm"]), interval, finished, str(row["num_diverged"])
        table.add_row(row["setting"], *numbers)
    return table


def group_by_setting(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """Splits a sweep's results by setting: each part has the dimension `seed`, and a name."""
    if "run" in dataset.dims:
        names = [name for name in dataset.coords if dataset[name].dims == ("run",)]
        names = [name for name in names if name not in ("run", "sample", "seed")]
        parts = [part.swap_dims(run="seed") for _, part in dataset.groupby("sample")]
        points = [{name: part[name].values[0] for name in names} for part in parts]
        return dict(zip(_name_points(points), parts, strict=True))
    axes = [dim for dim in dataset.final_return.dims if dim not in ("seed", "episode")]
    if not axes:
        return {"all": dataset}
    stacked = dataset.stack(setting=axes)
    points = [dict(zip(axes, point, strict=True)) for point in stacked.setting.values]
    return dict(zip(_name_points(points), map(dataset.sel, points), strict=True))


def _name_points(points: list[dict[Any, Any]]) -> list[str]:
    """Names settings with as few digits as tell them apart, and numbers those that are equal."""
    names: list[str] = []

    def write(value: Any, digits: str) -> str:
        return format(value, digits if isinstance(value, float) else "")

    for digits in (".3g", ".6g", ""):
        names = [", ".join(f"{key}={write(x, digits)}" for key, x in p.items()) for p in points]
        if len({*names}) == len(names):
            return names
    numbered = [f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]
    return [new if names.count(old) > 1 else old for old, new in zip(names, numbered, strict=True)]
