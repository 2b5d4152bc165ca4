"""Draws pictures with matplotlib, each from results alone, so that it can be drawn again.

Curves are arrays `(seed, x)` with coordinates, by the name of their setting; NaN is not drawn.
`title` stands above the axes, and a `threshold`, such as the return at which the task counts as
solved, is a dotted line. `files.save_figure` writes a figure.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text
from plotly.colors import qualitative

from purejaxdqn.report.statistics import Curve, Interval, bootstrap_curve, count_seeds, mean_return
from purejaxdqn.runtime.console import show_controls

Curves = Mapping[str, xr.DataArray]
Effects = Mapping[str, Mapping[str, Interval]]
# Twenty that can be told apart.
STYLES = [*itertools.product(("solid", "dashed"), qualitative.D3)]
_COLOUR = "#1f5fa8"
_INTERVAL = "its 95 % bootstrap interval"


def plot_learning_curve(dataset: xr.Dataset, title: str, threshold: float | None = None) -> Figure:
    """Draws greedy returns over environment steps, of `evaluation_return (seed, step, episode)`.

    Seeds are thin lines, the interquartile mean is a thick one, and its interval is shaded.
    """
    curve = keep_known(mean_return(dataset, "evaluation_return"))
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _plot_seeds(axes, curve, "#8a8a8a", "each seed")
    _plot_mean(axes, curve, _COLOUR, f"interquartile mean of {count_present(curve)}", _INTERVAL)
    axes.set(title=title, xlabel=name_axis(curve), ylabel=curve.name)
    steps = dataset.step.values  # also those that no seed has reached yet
    if len(steps) > 1:
        axes.set_xlim(min(0, steps[0]), steps[-1])
    else:
        axes.set_xticks(steps)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _finish([axes], threshold)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return _show_texts_as_they_are(figure)


def plot_panels(curves: Curves, title: str, threshold: float | None = None) -> Figure:
    """Draws a panel per setting with a line per seed, all panels on the same scale."""
    figure = Figure(figsize=(max(3.2 * len(curves), 5), 4.0), layout="constrained")
    panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        _plot_seeds(axes, keep_known(curve), _COLOUR, "each seed")
        axes.set(title=textwrap.fill(name, 30), xlabel=name_axis(curve))
        axes.locator_params(axis="x", nbins=5)
    panels[0].set_ylabel(str(next(iter(curves.values())).name))
    _finish(panels, threshold)
    figure.suptitle(title)
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return _show_texts_as_they_are(figure)


def keep_known(curve: xr.DataArray) -> xr.DataArray:
    """Returns a curve `(seed, x)` at the points where a seed has a number; infinite ones are NaN.

    Points that it lacks are those of settings that were evaluated at other steps.
    """
    curve = curve.transpose("seed", ...).where(np.isfinite(curve))
    is_known = curve.notnull().any("seed").values
    return curve[:, is_known] if is_known.any() else curve


def name_axis(curve: xr.DataArray) -> str:
    """Says what the second dimension of a curve counts."""
    return "environment steps per seed" if curve.dims[1] == "step" else str(curve.dims[1])


def count_present(curve: xr.DataArray) -> str:
    """Says how many seeds the interquartile mean of a curve is of, and if it has no interval."""
    few = "" if (curve.count("seed") >= 3).any() else ", too few for an interval"
    return count_seeds(curve) + few


def fade(num_seeds: int) -> float:
    """Returns the opacity of seeds' lines: what lies below many must still be seen."""
    return min(0.7, max(0.12, 12 / num_seeds))


def bootstrap(curve: xr.DataArray) -> Curve:
    """Returns the interquartile mean of a curve and its interval, as figures and pages draw it."""
    return bootstrap_curve(curve, np.random.default_rng(0), num_resamples=2_000)


def has_lone_points(values: np.ndarray) -> bool:
    """Tells whether a curve `[..., n]` has a point without neighbours, which no line shows."""
    known = np.pad(np.isfinite(np.atleast_2d(values)), ((0, 0), (1, 1)))
    return bool((known[:, 1:-1] & ~known[:, :-2] & ~known[:, 2:]).any())


def _plot_seeds(axes: Any, curve: xr.DataArray, colour: str, label: str) -> None:
    x, marker = curve[curve.dims[1]].values, "." if has_lone_points(curve.values) else None
    alpha = fade(len(curve))
    axes.plot(x, curve.values.T, color=colour, linewidth=0.8, alpha=alpha, marker=marker)
    axes.plot([], color=colour, linewidth=0.8, marker=marker, label=label)  # as seen in the legend


def _plot_mean(axes: Any, curve: xr.DataArray, colour: str, label: str, band: str = "") -> None:
    """Draws the interquartile mean and its interval, which has a label if it can be drawn."""
    x = curve[curve.dims[1]].values
    iqm, low, high = bootstrap(curve)
    marker = "o" if has_lone_points(iqm) else None
    style: dict[str, Any] = {"color": colour, "zorder": 3, "clip_on": False}  # above the axis
    axes.plot(x, iqm, linewidth=2.5, label=label, marker=marker, **style)
    if np.isfinite(low).any():
        width = 6 if has_lone_points(low) else 0  # else a point has no area
        style = {"color": colour, "alpha": 0.3, "linewidth": width}
        axes.fill_between(x, low, high, label=band, **style)


def _finish(panels: Sequence[Any], threshold: float | None) -> None:
    """Draws the threshold, and lets returns begin at 0 where all are above it."""
    for axes in panels:
        if threshold is not None:
            label = f"solved at {threshold:g}"
            axes.axhline(threshold, color="black", linestyle=":", linewidth=1, label=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.ticklabel_format(axis="y", useOffset=False)
    if min(axes.dataLim.y0 for axes in panels) >= 0:
        panels[0].set_ylim(bottom=0)


def plot_comparison(panels: Mapping[str, Curves], title: str) -> Figure:
    """Draws a panel per quantity of curves: each setting's interquartile mean and its interval."""
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.6, 3.0 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (quantity, curves) in zip(grid, panels.items(), strict=False):
        for (name, curve), (dash, colour) in zip(curves.items(), itertools.cycle(STYLES)):
            curve = keep_known(curve)
            of = count_seeds(curve)
            _plot_mean(axes, curve, colour, f"{name}: {of}" if " of " in of else name)
            axes.lines[-1].set_linestyle(dash)
            axes.set(xlabel=name_axis(curve), title=quantity)
            axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    lines = figure.axes[0].get_legend_handles_labels()
    words = f"interquartile mean over seeds; shaded: {_INTERVAL}"
    figure.legend(
        *lines, loc="outside lower center", ncols=2, fontsize="small", frameon=False, title=words
    )
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
                label = "95 % bootstrap interval"
                axes.plot([low, high], [y, y], color=_COLOUR, linewidth=2.5, label=label)
            axes.plot(estimate, y, "o", color=_COLOUR, label="estimate")
        axes.set(xlabel=f"effect on the {outcome}", yticks=range(len(names)), yticklabels=names)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_ylim(len(names) - 0.5, -0.5)  # the first one on top
    lines = {line.get_label(): line for axes in panels for line in axes.lines[1:]}
    figure.legend(
        lines.values(), lines, loc="outside lower center", ncols=2, fontsize="small", frameon=False
    )
    figure.suptitle(title)
    return _show_texts_as_they_are(figure)


def _show_texts_as_they_are(figure: Figure) -> Figure:
    """Reads no formulas in the texts of a figure, which may be of a file."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(show_controls(text.get_text(), keep="\n"))
    return figure
