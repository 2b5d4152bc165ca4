"""Draws pictures with matplotlib, each from results alone, so that it can be drawn again.

Curves are arrays `(seed, x)` with coordinates, by the name of their setting; NaN is not drawn.
`title` stands above the axes, and a `threshold`, such as the return at which the task counts as
solved, is a dotted line. `files.save_figure` writes a figure.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text
from plotly.colors import qualitative

from purejaxdqn.report.statistics import Interval, bootstrap_curve
from purejaxdqn.runtime.console import show_controls

Curves = Mapping[str, xr.DataArray]
Effects = Mapping[str, Mapping[str, Interval]]
_COLOUR = "#1f5fa8"


def plot_learning_curve(dataset: xr.Dataset, title: str, threshold: float | None = None) -> Figure:
    """Draws greedy returns over environment steps, of `evaluation_return (seed, step, episode)`.

    Seeds are thin lines, the interquartile mean is a thick one, and its interval is shaded.
    """
    curves = dataset.evaluation_return.mean("episode").transpose("seed", "step").values
    steps = dataset.step.values
    iqm, low, high = bootstrap_curve(curves, np.random.default_rng(0))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    seeds = axes.plot(steps, curves.T, color="#8a8a8a", linewidth=0.7, alpha=0.7)
    seeds[0].set_label(f"each of {len(curves)} seeds")
    axes.plot(steps, iqm, color=_COLOUR, linewidth=2.5, label="interquartile mean")
    if np.isfinite(low).any():
        label = "95 % bootstrap interval"
        axes.fill_between(steps, low, high, color=_COLOUR, alpha=0.25, linewidth=0, label=label)
    greedy = f"greedy return (mean of {dataset.sizes['episode']} episodes)"
    axes.set(title=title, xlabel="environment steps per seed", ylabel=greedy, xlim=(0, steps[-1]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _finish(axes, threshold)
    axes.legend(loc="lower right", frameon=False)
    return _show_texts_as_they_are(figure)


def plot_panels(curves: Curves, title: str, threshold: float | None = None) -> Figure:
    """Draws a panel per setting with a line per seed, all panels on the same scale."""
    figure = Figure(figsize=(3.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        x = curve.dims[1]
        axes.plot(curve[x].values, curve.values.T, color=_COLOUR, linewidth=0.9, alpha=0.7)
        axes.set(title=name, xlabel=str(x))
        _finish(axes, threshold)
    panels[0].set_ylabel(str(next(iter(curves.values())).name))
    figure.suptitle(title)
    return _show_texts_as_they_are(figure)


def _finish(axes: Any, threshold: float | None) -> None:
    """Draws the threshold, and lets returns begin at 0."""
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle=":", linewidth=1, label="solved")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def plot_comparison(panels: Mapping[str, Curves], title: str) -> Figure:
    """Draws a panel per quantity of curves: each setting's interquartile mean and its interval."""
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.6, 3.0 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (quantity, curves) in zip(grid, panels.items(), strict=False):
        for (name, curve), colour in zip(curves.items(), itertools.cycle(qualitative.D3)):
            x = curve.dims[1]
            values = np.where(np.isfinite(curve.values), curve.values, np.nan)
            iqm, low, high = bootstrap_curve(values, np.random.default_rng(0))
            axes.plot(curve[x].values, iqm, color=colour, linewidth=2, label=name)
            axes.fill_between(curve[x].values, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set(xlabel=str(x), title=quantity)
            axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(title)
    return _show_texts_as_they_are(figure)


def plot_effects(intervals: Effects, title: str) -> Figure:
    """Draws a panel per outcome; in it, each change's effect as a dot and its interval as a bar.

    `intervals` are by outcome and change; one that has no ends is a dot alone. Every outcome has
    the same changes in the same order.
    """
    names = list(map(show_controls, next(iter(intervals.values()))))  # drawn anew for each axis
    size = (4.2 * len(intervals) + 1, 0.45 * len(names) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(intervals), sharey=True, squeeze=False)[0]
    for axes, (outcome, rows) in zip(panels, intervals.items(), strict=True):
        axes.axvline(0, color="black", linestyle=":", linewidth=1)
        for y, (estimate, low, high, *_) in enumerate(rows.values()):
            if low is not None:
                axes.plot([low, high], [y, y], color=_COLOUR, linewidth=2.5)
            axes.plot(estimate, y, "o", color=_COLOUR)
        axes.set(xlabel=f"effect on the {outcome}", yticks=range(len(names)), yticklabels=names)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_ylim(len(names) - 0.5, -0.5)  # the first one on top
    figure.suptitle(title)
    return _show_texts_as_they_are(figure)


def _show_texts_as_they_are(figure: Figure) -> Figure:
    """Reads no formulas in the texts of a figure, which may be of a file."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(show_controls(text.get_text(), keep="\n"))
    return figure
