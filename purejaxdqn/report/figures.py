"""Figures drawn from results alone: each one can be drawn again from `results.nc`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import plotly.colors
import plotly.graph_objects
import xarray as xr
from matplotlib.figure import Figure

from purejaxdqn.report.statistics import Interval, bootstrap_curve, interquartile_mean
from purejaxdqn.storage.files import replace_file

_COLOUR = "#1f5fa8"


def learning_curve(
    dataset: xr.Dataset, title: str, threshold: float | None = None, random_seed: int = 0
) -> Figure:
    """Greedy return over environment steps: seeds thin, interquartile mean thick, interval shaded.

    Args:
      dataset: with `evaluation_return (seed, step, episode)`, as `run_sweep` gives it
        for one setting.
      title: stands above the axes.
      threshold: the return at which the task counts as solved, drawn as a dotted line.
      random_seed: of the bootstrap.

    Returns:
      The figure; `save_figure` writes it.
    """
    curves = dataset.evaluation_return.mean("episode").transpose("seed", "step").values
    steps = dataset.step.values
    iqm, low, high = bootstrap_curve(curves, np.random.default_rng(random_seed))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, curves.T, color="#8a8a8a", linewidth=0.7, alpha=0.7)
    axes.plot([], [], color="#8a8a8a", linewidth=0.7, label=f"each of {len(curves)} seeds")
    axes.plot(steps, iqm, color=_COLOUR, linewidth=2.5, label="interquartile mean")
    if np.isfinite(low).any():
        axes.fill_between(
            steps,
            low,
            high,
            color=_COLOUR,
            alpha=0.25,
            linewidth=0,
            label="95 % bootstrap interval",
        )
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle=":", linewidth=1, label="solved")
    episodes = dataset.sizes["episode"]
    axes.set(
        title=title,
        xlabel="environment steps per seed",
        ylabel=f"greedy return (mean of {episodes} episodes)",
    )
    axes.set_xlim(0, steps[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def game_curves(
    curves: Mapping[str, xr.DataArray], title: str, threshold: float | None = None
) -> Figure:
    """One panel per setting, one line per seed, side by side on the same axes.

    Args:
      curves: per setting, `(seed, x)` with coordinates; NaN is not drawn.
      title: stands above the panels.
      threshold: drawn as a dotted line.

    Returns:
      The figure; `save_figure` writes it.
    """
    figure = Figure(figsize=(3.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        x = curve.dims[1]
        axes.plot(curve[x].values, curve.values.T, color=_COLOUR, linewidth=0.9, alpha=0.7)
        if threshold is not None:
            axes.axhline(threshold, color="black", linestyle=":", linewidth=1)
        axes.set(title=name, xlabel=str(x))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(str(next(iter(curves.values())).name))
    figure.suptitle(title)
    return figure


def interactive_curves(
    curves: Mapping[str, xr.DataArray], title: str, threshold: float | None = None
) -> plotly.graph_objects.Figure:
    """Curves to look into: hovering names the seed, a click on the legend hides a setting.

    Args:
      curves: per setting, `(seed, x)` with coordinates, such as evaluation returns over steps;
        NaN is not drawn. The array's name and that of its second dimension label the axes. Where
        nothing is missing, the interquartile mean over the seeds is drawn too.
      title: stands above the axes.
      threshold: drawn as a dotted line.

    Returns:
      The figure; `save_html` writes it.
    """
    figure = plotly.graph_objects.Figure()
    colours = itertools.cycle(plotly.colors.qualitative.D3)
    for (name, curve), colour in zip(curves.items(), colours, strict=False):
        x = curve.dims[1]
        lines = [
            (f"seed {seed}", row, 1)
            for seed, row in zip(curve.seed.values, curve.values, strict=True)
        ]
        if not np.isnan(curve.values).any():
            lines.append(("interquartile mean", interquartile_mean(curve.values, axis=0), 4))
        for i, (label, values, width) in enumerate(lines):
            figure.add_scatter(
                x=curve[x].values,
                y=values,
                mode="lines",
                line={"color": colour, "width": width},
                opacity=0.7,
                name=name,
                legendgroup=name,
                showlegend=i == len(lines) - 1,
                hovertemplate=f"{label}<br>{x} %{{x:,}}<br>%{{y:.1f}}<extra>{name}</extra>",
            )
    if threshold is not None:
        figure.add_hline(threshold, line_dash="dot", line_width=1)
    first = next(iter(curves.values()))
    figure.update_layout(
        title=title,
        xaxis_title=str(first.dims[1]),
        yaxis_title=str(first.name),
        yaxis_rangemode="tozero",
        template="simple_white",
        legend_title_text="click to hide",
        hovermode="closest",
        showlegend=True,
    )
    return figure


def comparison(
    panels: Mapping[str, Mapping[str, xr.DataArray]], title: str, random_seed: int = 0
) -> Figure:
    """One panel per quantity, in each a line per setting: interquartile mean and its interval.

    Args:
      panels: per quantity and setting, `(seed, x)` with coordinates; what is not finite is not
        drawn.
      title: stands above the panels.
      random_seed: of the bootstrap.

    Returns:
      The figure; `save_figure` writes it.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.6, 3.0 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (quantity, curves) in zip(grid, panels.items(), strict=False):
        colours = itertools.cycle(plotly.colors.qualitative.D3)
        for (name, curve), colour in zip(curves.items(), colours, strict=False):
            x = curve.dims[1]
            values = np.where(np.isfinite(curve.values), curve.values, np.nan)
            iqm, low, high = bootstrap_curve(values, np.random.default_rng(random_seed))
            axes.plot(curve[x].values, iqm, color=colour, linewidth=2, label=name)
            axes.fill_between(curve[x].values, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set(xlabel=str(x), title=quantity)
            axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(title)
    return figure


def effects(intervals: Mapping[str, Mapping[str, Interval]], title: str) -> Figure:
    """One panel per outcome, in each a row per change: its effect as a dot, its interval as a bar.

    Args:
      intervals: per outcome and change, the effect; without its ends, the dot alone is drawn. Every
        outcome has the same changes in the same order.
      title: stands above the panels.

    Returns:
      The figure; `save_figure` writes it.
    """
    names = list(next(iter(intervals.values())))
    size = (4.2 * len(intervals) + 1, 0.45 * len(names) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(intervals), sharey=True, squeeze=False)[0]
    for axes, (outcome, rows) in zip(panels, intervals.items(), strict=True):
        axes.axvline(0, color="black", linestyle=":", linewidth=1)
        for y, interval in enumerate(rows.values()):
            if interval.low is not None:
                axes.plot([interval.low, interval.high], [y, y], color=_COLOUR, linewidth=2.5)
            axes.plot(interval.estimate, y, "o", color=_COLOUR)
        axes.set(xlabel=f"effect on the {outcome}")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_ylim(len(names) - 0.5, -0.5)  # the first one on top
    figure.suptitle(title)
    return figure


def interactive_effects(
    intervals: Mapping[str, Mapping[str, Interval]], title: str
) -> plotly.graph_objects.Figure:
    """`effects` to look into: hovering says the numbers, a click on the legend hides an outcome.

    Args:
      intervals: per outcome and change, the effect.
      title: stands above the axes.

    Returns:
      The figure; `save_html` writes it.
    """
    figure = plotly.graph_objects.Figure()
    for outcome, rows in intervals.items():
        known = list(rows.values())
        figure.add_scatter(
            x=[interval.estimate for interval in known],
            y=list(rows),
            mode="markers",
            orientation="h",
            name=outcome,
            marker_size=10,
            error_x={
                "array": [0 if i.high is None else max(0, i.high - i.estimate) for i in known],
                "arrayminus": [0 if i.low is None else max(0, i.estimate - i.low) for i in known],
            },
            customdata=[str(interval) for interval in known],
            hovertemplate="%{y}<br>%{customdata}<extra>" + outcome + "</extra>",
        )
    figure.add_vline(0, line_dash="dot", line_width=1)
    figure.update_layout(
        title=title,
        xaxis_title="effect",
        yaxis_autorange="reversed",
        template="simple_white",
        legend_title_text="click to hide",
        scattermode="group",  # outcomes beside each other, not on top of each other
        showlegend=True,
    )
    return figure


def save_html(figure: plotly.graph_objects.Figure, path: Path) -> Path:
    """Writes a page that needs no network: everything that draws it is inside (some 5 MB)."""
    with replace_file(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True, config={"displaylogo": False})
    return path


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem.png` and `stem.svg`, and says where."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        with replace_file(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return paths
