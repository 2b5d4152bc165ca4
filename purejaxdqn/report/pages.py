"""Draws pages to look into with plotly: hovering shows numbers, a click hides a curve.

`files.save_page` writes a page. Arguments are those of `figures`.
"""

import html
import itertools
from typing import Any

import numpy as np
import xarray as xr
from plotly.graph_objects import Figure as Page

from purejaxdqn.report import figures
from purejaxdqn.report.figures import Curves, Effects, has_lone_points
from purejaxdqn.report.statistics import count_seeds
from purejaxdqn.runtime.console import show_controls

_MOST_POINTS = 15_000  # of all seeds' lines: a page of more would weigh more than 1.5 MB
_MEAN, _INTERVAL = "interquartile mean", "95 % bootstrap interval"
_NAME = "<extra>%{fullData.name}</extra>"


def plot_interactive_curves(curves: Curves, title: str, threshold: float | None = None) -> Page:
    """Draws a line per seed, and the interquartile mean over the seeds with its interval, shaded.

    The array's name and that of its second dimension label the axes. Without the lines of seeds
    where these have more than 15,000 points; the legend says what is drawn.
    """
    # Single precision all over: what is equal must not look different.
    curves = {_escape(n): figures.keep_known(x).astype(np.float32) for n, x in curves.items()}
    # A line of its own weighs as much as 35 points.
    has_seeds = sum(one.size + 35 * len(one) for one in curves.values()) <= _MOST_POINTS
    thin = "thin: each seed" if has_seeds else "single seeds: too many to draw"
    figure = _make_page(title, f"thick: {_MEAN} over seeds; shaded: its {_INTERVAL}; {thin}")
    for (name, curve), (dash, colour) in zip(curves.items(), itertools.cycle(figures.STYLES)):
        line = {"color": colour, "dash": dash.removesuffix("ed")}
        traces = [*(_draw_seeds(curve) if has_seeds else []), *_draw_mean(curve)]
        for trace in traces:
            trace["line"] = {**line, **trace["line"]}
            figure.add_scatter(legendgroup=name, name=name, showlegend=False, **trace)
        named = f"{name}: {figures.count_present(curve)}"
        figure.data[-1].update(name=named, showlegend=True)
    if threshold is not None:
        words, threshold = f"solved at {threshold:g}", float(np.float32(threshold))
        told = {"text": words, "bgcolor": "rgba(255, 255, 255, 0.7)"}
        style = {"line_dash": "dot", "line_width": 1, "annotation_position": "top left"}
        figure.add_hline(threshold, annotation=told, **style)
    is_below = (threshold or 0) < 0 or any(bool((one < 0).any()) for one in curves.values())
    mode = "normal" if is_below else "tozero"
    first = next(iter(curves.values()))
    axes = {
        "xaxis_title": _escape(figures.name_axis(first)),
        "yaxis_title": _escape(str(first.name)),
    }
    return figure.update_layout(yaxis_rangemode=mode, hovermode="closest", **axes)


def _draw_seeds(curve: xr.DataArray) -> list[dict[str, Any]]:
    """Makes a thin line of each seed of a curve `(seed, x)`."""
    x, y = curve[curve.dims[1]].values, curve.values
    mode = "lines+markers" if has_lone_points(y) else "lines"
    style = {"line": {"width": 1}, "marker_size": 4, "opacity": figures.fade(len(curve))}
    shared = {"x": x, "mode": mode, **style}
    hover = f"{_escape(str(curve.dims[1]))} %{{x:,}}<br>%{{y:.1f}}{_NAME}"
    seeds = zip(curve.seed.values, y, strict=True)
    return [
        {**shared, "y": row, "hovertemplate": f"{_escape(f'seed {n}')}<br>{hover}"}
        for n, row in seeds
    ]


def _draw_mean(curve: xr.DataArray) -> list[dict[str, Any]]:
    """Makes the interquartile mean, above the outline of its interval where there is one."""
    x = curve[curve.dims[1]].values
    points = figures.bootstrap(curve)
    iqm, low, high = (np.asarray(values, curve.dtype) for values in points)
    drawn: list[dict[str, Any]] = []
    for part in np.ma.clump_unmasked(np.ma.masked_invalid(low)):
        outline = {
            "x": np.append(x[part], x[part][::-1]),
            "y": np.append(high[part], low[part][::-1]),
        }
        width = 6 if part.stop - part.start == 1 else 0  # else a point has no area
        style = {"fill": "toself", "line": {"width": width}, "opacity": 0.5}
        drawn.append({**outline, **style, "mode": "lines", "hoverinfo": "skip"})
    ends = [
        f"{a:.1f} to {b:.1f}" if np.isfinite(a) else "none" for a, b in zip(low, high, strict=True)
    ]
    told = [
        f"{count_seeds(n)}<br>{_INTERVAL} {end}"
        for n, end in zip(curve.values.T, ends, strict=True)
    ]
    hover = f"{_escape(str(curve.dims[1]))} %{{x:,}}<br>{_MEAN} %{{y:.1f}}<br>of %{{customdata}}"
    mode = "lines+markers" if has_lone_points(iqm) else "lines"
    mean = {"x": x, "y": iqm, "mode": mode, "line": {"width": 4}, "customdata": told}
    return [*drawn, {**mean, "hovertemplate": hover + _NAME}]


def plot_interactive_effects(intervals: Effects, title: str) -> Page:
    """Draws what `figures.plot_effects` draws, all outcomes on the same axes."""
    figure = _make_page(title, "dot: estimate; bar: 95 % bootstrap interval")
    for outcome, rows in intervals.items():
        known = list(rows.values())
        above = [0 if i.high is None else max(0, i.high - i.estimate) for i in known]
        below = [0 if i.low is None else max(0, i.estimate - i.low) for i in known]
        figure.add_scatter(
            x=[interval.estimate for interval in known],
            y=list(map(_escape, rows)),
            mode="markers",
            orientation="h",
            name=_escape(outcome),
            marker_size=10,
            error_x={"array": above, "arrayminus": below},
            customdata=[_escape(str(interval)) for interval in known],
            hovertemplate="%{y}<br>%{customdata}<extra>" + _escape(outcome) + "</extra>",
        )
    figure.add_vline(0, line_dash="dot", line_width=1)
    # Grouped, outcomes stand beside each other, not on top of each other.
    axes = {
        "xaxis_title": "effect: return with it less return without it",
        "yaxis_autorange": "reversed",
    }
    return figure.update_layout(scattermode="group", **axes)


def _make_page(title: str, says: str) -> Page:
    """Makes an empty page, whose legend below the axes says what is drawn."""
    words = {"text": f"{says}; click to hide", "side": "top"}
    legend = {"orientation": "h", "y": -0.14, "title": words}
    layout = {"template": "simple_white", "legend": legend, "showlegend": True}
    return Page().update_layout(title=_escape(title), **layout)


def _escape(text: str) -> str:
    """Escapes a text that may be of a file: plotly reads tags, and "%{" in what hovering shows."""
    return html.escape(show_controls(text), quote=False).replace("%{", "%&#123;")
