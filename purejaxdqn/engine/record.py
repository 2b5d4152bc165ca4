"""Collects the numbers of some runs while they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from purejaxdqn.engine.rounds import Event, evaluation_steps
from purejaxdqn.training.settings import RunConfig


class Record:
    """The numbers so far of `n` runs, which share all static settings.

    Attributes:
      steps: the `S` steps at which the runs are evaluated.
      evaluation_return: `[n, S, N]` float32, NaN from the step that a run has not reached.
      curves: `[n, S]` float64 by name: `training_return`, the learner's metrics, diagnostics.
      diverged: `[n]` whether weights or greedy returns were ever not finite.
      params: the last weights, as a list of `[n, ...]`; empty before the last evaluation.
    """

    def __init__(self, config: RunConfig, num_runs: int) -> None:
        self.steps = evaluation_steps(config)
        shape = (num_runs, len(self.steps))
        self.evaluation_return = np.full((*shape, config.eval_episodes), np.nan, np.float32)
        self.curves = {"training_return": np.full(shape, np.nan)}
        self.diverged = np.zeros(num_runs, bool)
        self.params: list[np.ndarray] = []

    @property
    def has_begun(self) -> bool:
        """Tells whether there is any evaluation."""
        return not np.isnan(self.evaluation_return).all()

    def add(self, event: Event, rows: slice) -> np.ndarray:
        """Adds one evaluation, of which these runs are the given rows.

        Returns:
          `[n]` whether a run diverged since the one before.
        """
        before = self.diverged.copy()
        at = self.steps.index(event.step)
        assert event.episode_return is not None
        self.evaluation_return[:, at] = event.episode_return[rows]
        for name, values in {"training_return": event.training_return, **event.metrics}.items():
            curve = self.curves.setdefault(name, np.full(self.evaluation_return.shape[:2], np.nan))
            curve[:, at] = values[rows]
        params = [leaf[rows] for leaf in jax.tree.leaves(event.params)]
        for leaf in [self.evaluation_return[:, at], *params]:
            if np.issubdtype(leaf.dtype, np.floating):
                self.diverged |= ~np.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
        if event.step == self.steps[-1]:
            self.params = params
        return self.diverged & ~before

    def to_arrays(self) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Converts the numbers to arrays, and the facts that `from_arrays` needs beside them."""
        arrays = [self.evaluation_return, self.diverged, *self.curves.values(), *self.params]
        return arrays, {"curves": list(self.curves)}

    @classmethod
    def from_arrays(
        cls, config: RunConfig, arrays: Sequence[np.ndarray], facts: Mapping[str, Any]
    ) -> Record:
        """Makes a record of the arrays and facts that `to_arrays` returned."""
        record, end = cls(config, len(arrays[0])), 2 + len(facts["curves"])
        record.evaluation_return, record.diverged, *curves = map(np.array, arrays[:end])
        record.curves = dict(zip(facts["curves"], curves, strict=True))
        record.params = [*arrays[end:]]
        return record
