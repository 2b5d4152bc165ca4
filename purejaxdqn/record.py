"""The numbers of a sweep: batch by batch as they come in, and put together as one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from purejaxdqn.config import RunConfig
from purejaxdqn.design import Design
from purejaxdqn.diagnostics import DIAGNOSTICS
from purejaxdqn.rounds import Event, evaluation_steps
from purejaxdqn.settings_text import config_to_json


class Record:
    """The numbers of some runs at the same setting but for floats, as they come in.

    Attributes:
      steps: at which they are evaluated, `S` of them.
      evaluation_return: `[n, S, N]` float32, NaN where a run has not got to.
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
        """Whether any evaluation has come in."""
        return not np.isnan(self.evaluation_return).all()

    def add(self, event: Event, rows: slice) -> np.ndarray:
        """Keeps one evaluation, of which these runs are the given rows.

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
        """For a checkpoint: arrays, and what else `from_arrays` needs."""
        arrays = [self.evaluation_return, self.diverged, *self.curves.values(), *self.params]
        return arrays, {"curves": list(self.curves)}

    @classmethod
    def from_arrays(
        cls, config: RunConfig, arrays: Sequence[np.ndarray], facts: Mapping[str, Any]
    ) -> Record:
        """What `to_arrays` gave."""
        record = cls(config, len(arrays[0]))
        names = facts["curves"]
        record.evaluation_return, record.diverged = (np.array(x) for x in arrays[:2])
        record.curves = {
            name: np.array(x) for name, x in zip(names, arrays[2 : 2 + len(names)], strict=True)
        }
        record.params = [*arrays[2 + len(names) :]]
        return record


def to_dataset(
    design: Design, batches: Sequence[Sequence[int]], records: Mapping[int, Record]
) -> xr.Dataset:
    """Everything so far, labelled: see `purejaxdqn.sweep.run_sweep`.

    Args:
      design: the runs.
      batches: which runs each batch has.
      records: of those batches that have begun, by number.

    Returns:
      The dataset, NaN where a run did not get to.
    """
    configs = [run.setting.config for run in design.runs]
    steps_of = [evaluation_steps(config) for config in configs]
    steps = sorted({step for own in steps_of for step in own})
    num_episodes = max(config.eval_episodes for config in configs)
    shape = (len(configs), len(steps))
    evaluation = np.full((*shape, num_episodes), np.nan, np.float32)
    final = np.full((len(configs), num_episodes), np.nan, np.float32)
    num_updates = np.full(shape, np.nan)
    diverged = np.zeros(len(configs), bool)
    curves: dict[str, np.ndarray] = {"training_return": np.full(shape, np.nan)}
    for run, (config, own) in enumerate(zip(configs, steps_of, strict=True)):
        iterations = (np.array(own) - config.prefill_steps) // config.steps_per_update
        at = np.searchsorted(steps, own)
        num_updates[run, at] = iterations * config.updates_per_iteration
    for number, record in records.items():
        runs = np.array(batches[number])
        at = np.searchsorted(steps, record.steps)
        episodes = record.evaluation_return.shape[2]
        evaluation[runs[:, None], at, :episodes] = record.evaluation_return
        final[runs, :episodes] = record.evaluation_return[:, -1]
        diverged[runs] = record.diverged
        for name, curve in record.curves.items():
            whole = curves.setdefault(name, np.full(shape, np.nan))
            whole[runs[:, None], at] = curve

    if design.is_grid:
        dims: tuple[str, ...] = (*design.axes, "seed")
        lengths = (*map(len, design.axes.values()), len(design.seeds))
        coords: dict[str, Any] = {**design.axes}
        coords["seed"] = np.array(design.seeds, np.int64)
        settings_dims, settings_shape = dims[:-1], lengths[:-1]
        per_setting = [config_to_json(setting.config) for setting in design.settings]
    else:
        dims, lengths = ("run",), (len(configs),)
        labels = {name: [run.labels[name] for run in design.runs] for name in design.axes}
        coords = {name: ("run", values) for name, values in labels.items()}
        coords["seed"] = ("run", np.array([run.seed for run in design.runs], np.int64))
        sample = np.repeat(np.arange(len(design.settings)), len(design.seeds))
        coords |= {"run": np.arange(len(configs)), "sample": ("run", sample)}
        settings_dims, settings_shape = dims, lengths
        per_setting = [config_to_json(config) for config in configs]

    def over_runs(values: np.ndarray) -> np.ndarray:
        return values.reshape(*lengths, *values.shape[1:])

    if (num_updates == num_updates[0]).all():
        updates: Any = ("step", num_updates[0].astype(np.int64))
    else:
        updates = ((*dims, "step"), over_runs(num_updates))
    return xr.Dataset(
        {
            "evaluation_return": ((*dims, "step", "episode"), over_runs(evaluation)),
            "final_return": ((*dims, "episode"), over_runs(final)),
            "num_updates": updates,
            "diverged": (dims, over_runs(diverged)),
            "settings": (settings_dims, np.array(per_setting).reshape(settings_shape)),
            **{
                name: ((*dims, "step"), over_runs(curve), DIAGNOSTICS.get(name, {}))
                for name, curve in curves.items()
            },
        },
        coords={
            **coords,
            "step": ("step", np.array(steps), {"units": "environment steps"}),
            "episode": np.arange(num_episodes),
        },
    )


def stack_params(
    batches: Sequence[Sequence[int]], records: Mapping[int, Record], num_runs: int
) -> list[np.ndarray] | None:
    """The last weights of all runs, `[num_runs, ...]` each, NaN where a run did not finish.

    Returns:
      None where no run has finished, or where the runs' weights differ in shape.
    """
    finished = {number: record.params for number, record in records.items() if record.params}
    shapes = {tuple((x.shape[1:], x.dtype) for x in params) for params in finished.values()}
    if len(shapes) != 1:
        return None
    (leaves,) = shapes
    whole = [
        np.full((num_runs, *shape), np.nan if np.issubdtype(dtype, np.inexact) else 0, dtype)
        for shape, dtype in leaves
    ]
    for number, params in finished.items():
        for kept, new in zip(whole, params, strict=True):
            kept[list(batches[number])] = new
    return whole
