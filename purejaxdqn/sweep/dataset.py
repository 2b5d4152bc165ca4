"""The numbers of a sweep, put together as one labelled dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from purejaxdqn.engine.record import Record
from purejaxdqn.engine.rounds import evaluation_steps
from purejaxdqn.sweep.design import Design
from purejaxdqn.training.diagnostics import DIAGNOSTICS
from purejaxdqn.training.settings_text import config_to_json


def to_dataset(
    design: Design, batches: Sequence[Sequence[int]], records: Mapping[int, Record]
) -> xr.Dataset:
    """Everything so far, labelled: see `purejaxdqn.sweep.run.run_sweep`.

    Args:
      design: the runs.
      batches: which runs each batch has.
      records: of those batches that have begun, by number.

    Returns:
      The dataset, NaN where a run did not get to.
    """
    configs = [run.config for run in design.runs]
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
