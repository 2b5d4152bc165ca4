"""Figures drawn from results alone: each one can be drawn again from `results.nc`."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from purejaxdqn.statistics import bootstrap_curve

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


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem.png` and `stem.svg`, and says where."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
