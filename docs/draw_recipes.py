"""Trains every recipe on ten seeds, draws docs/recipes.svg, and fills in docs/extending.md.

python docs/draw_recipes.py --output results/recipes

Each recipe has a folder there: what is finished is drawn as it is, what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from purejaxdqn import agents, run_sweep
from purejaxdqn.cli.exits import run_script
from purejaxdqn.report.figures import bootstrap
from purejaxdqn.report.statistics import mean_return
from purejaxdqn.report.training import summarise_final_return

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "recipes.svg"
GALLERY = ROOT / "docs" / "extending.md"
SEEDS = range(10, 20)  # nothing was tuned on them
PLAIN = "dqn"  # stands behind every recipe


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains every recipe on ten seeds, and draws their learning curves into docs/recipes.svg."""

    output: Path = Path("results/recipes")
    """Folder of the results."""


def find_recipes() -> dict[str, str]:
    """Imports the recipes, and returns the name of each one's agent by that of its file."""
    sys.path.insert(0, str(ROOT / "experiments"))
    found = {}
    for path in sorted((ROOT / "experiments" / "recipes").glob("[!_]*.py")):
        known = agents.names()
        importlib.import_module(f"recipes.{path.stem}")
        (found[path.stem],) = set(agents.names()) - set(known)
    return found


def draw(results: Mapping[str, xr.Dataset]) -> Figure:
    """Draws a panel for each recipe, with plain DQN in grey behind it."""
    names = [name for name in results if name != PLAIN]
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(9.6, 1.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, sharey=True, squeeze=False)
    for axes in panels.ravel()[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels.ravel(), names, strict=False):
        for of, colour in ((PLAIN, "0.6"), (name, "#1f5fa8")):
            curve = mean_return(results[of], "evaluation_return").transpose("seed", "step")
            iqm, low, high = bootstrap(curve)
            axes.plot(curve.step.values, iqm, color=colour, linewidth=1.8)
            axes.fill_between(curve.step.values, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.set_title(name, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
    panels[0, 0].set_ylim(0, 510)
    figure.supxlabel("environment steps per seed", fontsize="medium")
    figure.supylabel("greedy return", fontsize="medium")
    return figure


def write_ends(finals: Mapping[str, str], page: str) -> str:
    """Writes how recipes ended into the gallery, whose rows end with the recipe and this."""
    for name, end in finals.items():
        row = re.compile(rf"^(\|.*\[`{name}`\]\(\S+\) \| )[^|]*( \|)$", re.MULTILINE)
        page = row.sub(rf"\g<1>{end}\g<2>", page)
    return re.sub(r"(that of plain `dqn` is )[^.]*\.", rf"\g<1>{finals[PLAIN]}.", page)


def main(args: Args) -> None:
    """Trains all, and draws the picture, whose description says what the gallery does."""
    results = {}
    for name, agent in {PLAIN: PLAIN, **find_recipes()}.items():
        config, experiment, *_ = agents.get(agent)
        output = args.output / name
        results[name] = run_sweep(experiment, config, SEEDS, output=output, resume=True).dataset
    finals = {}
    for name, dataset in results.items():
        facts = summarise_final_return(dataset, np.random.default_rng(0))
        finals[name] = "{iqm:.0f} ({iqm_low:.0f} to {iqm_high:.0f})".format(**facts)
        print(f"{name}: {finals[name]}")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "recipes", "font.family": "sans-serif"}
    draw(results).savefig(PICTURE, metadata={"Date": None, "Description": json.dumps(finals)})
    GALLERY.write_text(write_ends(finals, GALLERY.read_text()))
    print(f"written: {PICTURE.relative_to(ROOT)} and {GALLERY.relative_to(ROOT)}")


if __name__ == "__main__":
    run_script(main, Args)
