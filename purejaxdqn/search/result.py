"""Holds what a search returns: the numbers of all trials, and the best one."""

from __future__ import annotations

from typing import Any, NamedTuple

import xarray as xr
from rich.console import Console
from rich.table import Table

from purejaxdqn.runtime.interrupts import Interrupted
from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.training.settings import RunConfig


class Best(NamedTuple):
    """The trial with the highest score, of those that were trained to their end.

    Attributes:
      trial: its number in the study.
      settings: the searched settings, by name.
      score: the statistic over its seeds. It is too good an estimate, because it chose this trial
        out of many: other seeds say how good the settings are.
      config: all settings.
    """

    trial: int
    settings: dict[str, float]
    score: float
    config: RunConfig


class SearchResult(NamedTuple):
    """The numbers of a search.

    The dataset has the dimensions `(trial, seed, step, episode)` and the variables of a
    `SweepResult`, NaN from where a trial ended, and beside these
      - the coordinates `trial`, the study's numbers, and for each of them the searched settings;
      - `state (trial)`: "complete", "pruned" or "diverged";
      - `score (trial, step)`: the scores that were reported to the study, NaN where none was.

    Attributes:
      dataset: the numbers, labelled.
      best: the best trial; None where none was trained to its end.
    """

    dataset: xr.Dataset
    best: Best | None

    def print(self, console: Console, at_most: int = 10) -> None:
        """Prints a table of the best trials that were trained to their end, and the best flags."""
        coords = self.dataset.coords.items()
        names = [str(n) for n, values in coords if values.dims == ("trial",) and n != "trial"]
        scores = self.dataset.score.isel(step=-1, trial=self.dataset.state.values == "complete")
        table = Table("trial", "score", *names)
        for one in scores.sortby(-scores)[:at_most]:
            settings = [f"{float(one[name]):.4g}" for name in names]
            table.add_row(str(int(one.trial)), f"{float(one):.1f}", *settings)
        console.print(table)
        if self.best is None:
            console.print("no trial was trained to its end")
            return
        flags = " ".join(f"--{n.replace('_', '-')} {v}" for n, v in self.best.settings.items())
        console.print(f"best: {flags}", soft_wrap=True)
        console.print("It was chosen by its score: only other seeds say how good it is.")

    def summary(self) -> dict[str, Any]:
        """Returns the counts and the best trial, ready for JSON."""
        states = self.dataset.state.values.tolist()
        facts = {"status": self.dataset.attrs["status"], "num_trials": len(states), "best": None}
        facts |= {state: states.count(state) for state in ("complete", "pruned", "diverged")}
        if self.best is not None:
            trial, settings, score, _ = self.best
            facts["best"] = {"trial": trial, "score": score, "settings": to_jsonable(settings)}
        return facts


class SearchInterrupted(Interrupted):
    """Ctrl-C or SIGTERM during a search.

    Its `result` is the `SearchResult` of the batches that were finished, None without any.
    """
