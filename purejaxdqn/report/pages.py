"""Draws pages to look into with plotly: hovering shows numbers, a click hides a curve.

`files.save_page` writes a page. Arguments are those of `figures`.
"""

import html
import itertools

import numpy as np
from plotly.colors import qualitative
from plotly.graph_objects import Figure as Page

from purejaxdqn.report.figures import Curves, Effects
from purejaxdqn.report.statistics import interquartile_mean
from purejaxdqn.runtime.console import show_controls


def plot_interactive_curves(curves: Curves, title: str, threshold: float | None = None) -> Page:
    """Draws a line per seed and, where no seed has gaps, the interquartile mean over the seeds.

    The array's name and that of its second dimension label the axes.
    """
    figure = _make_page(title)
    for (name, curve), colour in zip(curves.items(), itertools.cycle(qualitative.D3)):
        name, x = _escape(name), curve.dims[1]
        across = _escape(str(x))
        seeds = zip(curve.seed.values, curve.values, strict=True)
        lines = [(_escape(f"seed {seed}"), values, 1) for seed, values in seeds]
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
                hovertemplate=f"{label}<br>{across} %{{x:,}}<br>%{{y:.1f}}<extra>{name}</extra>",
            )
    if threshold is not None:
        figure.add_hline(threshold, line_dash="dot", line_width=1)
    first = next(iter(curves.values()))
    axes = {"xaxis_title": _escape(str(first.dims[1])), "yaxis_title": _escape(str(first.name))}
    return figure.update_layout(yaxis_rangemode="tozero", hovermode="closest", **axes)


def plot_interactive_effects(intervals: Effects, title: str) -> Page:
    """Draws what `figures.plot_effects` draws, all outcomes on the same axes."""
    figure = _make_page(title)
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
    axes = {"xaxis_title": "effect", "yaxis_autorange": "reversed"}
    return figure.update_layout(scattermode="group", **axes)


def _make_page(title: str) -> Page:
    layout = {"template": "simple_white", "legend_title_text": "click to hide", "showlegend": True}
    return Page().update_layout(title=_escape(title), **layout)


def _escape(text: str) -> str:
    """Escapes a text that may be of a file: plotly reads tags, and "%{" in what hovering shows."""
    return html.escape(show_controls(text), quote=False).replace("%{", "%&#123;")
