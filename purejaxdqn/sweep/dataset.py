"""Puts the numbers of a sweep together as one labelled dataset: what a sweep returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from purejaxdqn.engine.rounds import Record, evaluation_steps
from purejaxdqn.runtime.interrupts import Interrupted
from purejaxdqn.sweep.design import Design
from purejaxdqn.training.diagnostics import DIAGNOSTICS
from purejaxdqn.training.settings_text import config_to_json
from purejaxdqn.types import Params


class SweepResult(NamedTuple):
    """The numbers and weights that a sweep returns.

    For a grid the dataset has the dimensions `(*grid, seed, step, episode)`; for settings drawn at
    random `(run, step, episode)`, with the coordinates `run`, `sample`, `seed` and the swept
    settings. With its first dimensions called `runs`, it has these variables, NaN where a run was
    not trained to that step:
      - `evaluation_return (*runs, step, episode)`: greedy returns, undiscounted;
      - `final_return (*runs, episode)`: those of each run's last step;
      - `training_return (*runs, step)`: mean return of the training episodes that ended since the
        step before, NaN if none did;
      - one variable `(*runs, step)` for each metric of the learner, its mean since the step before;
      - `num_updates (step)`: gradient steps taken, `(*runs, step)` where runs differ in it;
      - `diverged (*runs)`: whether weights or returns stopped being finite numbers;
      - `settings (*grid)` or `(run)`: all settings, as JSON;
      - with `diagnostics`, a variable `(*runs, step)` for each of
        `purejaxdqn.training.diagnostics.DIAGNOSTICS`.

    Attributes:
      dataset: the numbers, labelled.
      params: the final weights as NumPy arrays `[*grid, num_seeds, ...]`, or `[run, ...]` of a
        random search; NaN for runs that were not finished. None where no run was finished, or where
        the runs' weights differ in shape.
    """

    dataset: xr.Dataset
    params: Params


class SweepInterrupted(Interrupted):
    """Ctrl-C or SIGTERM during a sweep; `result` is the `SweepResult` of what was finished."""


def to_dataset(
    design: Design, batches: Sequence[Sequence[int]], records: Mapping[int, Record]
) -> xr.Dataset:
    """Labels all numbers so far, as `SweepResult` describes.

    Args:
      design: the runs.
      batches: which runs each batch has.
      records: by number, the numbers of those batches that have begun.
    """
    configs = [run.config for run in design.runs]
    steps_of = [evaluation_steps(config) for config in configs]
    steps = sorted({step for own in steps_of for step in own})
    num_updates = np.full((len(configs), len(steps)), np.nan)
    for run, (config, own) in enumerate(zip(configs, steps_of, strict=True)):
        iterations = (np.array(own) - config.prefill_steps) // config.steps_per_update
        num_updates[run, np.searchsorted(steps, own)] = iterations * config.updates_per_iteration
    num_episodes = max(config.eval_episodes for config in configs)
    shape = (len(configs), len(steps), num_episodes)
    evaluation, final, diverged, curves = _fill_in(shape, steps, batches, records)
    dims, lengths, coords, settings = _label_runs(design)

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
            "settings": settings,
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


def _fill_in(
    shape: tuple[int, int, int],
    steps: Sequence[int],
    batches: Sequence[Sequence[int]],
    records: Mapping[int, Record],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Copies the numbers of all batches to the places of their runs, steps and episodes.

    Returns:
      The evaluations, the final returns, which runs diverged, and the curves by name; NaN where a
      run was not trained to that step.
    """
    evaluation = np.full(shape, np.nan, np.float32)
    final = np.full((shape[0], shape[2]), np.nan, np.float32)
    diverged = np.zeros(shape[0], bool)
    curves: dict[str, np.ndarray] = {"training_return": np.full(shape[:2], np.nan)}
    for number, record in records.items():
        runs = np.array(batches[number])
        at = np.searchsorted(steps, record.steps)
        episodes = record.evaluation_return.shape[2]
        evaluation[runs[:, None], at, :episodes] = record.evaluation_return
        final[runs, :episodes] = record.evaluation_return[:, -1]
        diverged[runs] = record.diverged
        for name, curve in record.curves.items():
            whole = curves.setdefault(name, np.full(shape[:2], np.nan))
            whole[runs[:, None], at] = curve
    return evaluation, final, diverged, curves


def _label_runs(
    design: Design,
) -> tuple[tuple[str, ...], tuple[int, ...], dict[str, Any], tuple[tuple[str, ...], np.ndarray]]:
    """Returns the dimensions of the runs, their lengths and coordinates, and all settings."""
    if design.is_grid:
        dims: tuple[str, ...] = (*design.axes, "seed")
        lengths = (*map(len, design.axes.values()), len(design.seeds))
        coords: dict[str, Any] = {**design.axes, "seed": np.array(design.seeds, np.int64)}
        settings = [config_to_json(point.config) for point in design.points]
        return dims, lengths, coords, (dims[:-1], np.array(settings).reshape(lengths[:-1]))
    runs = design.runs
    coords = {name: ("run", [run.labels[name] for run in runs]) for name in design.axes}
    sample = np.repeat(np.arange(len(design.points)), len(design.seeds))
    coords |= {"seed": ("run", np.array([run.seed for run in runs], np.int64))}
    coords |= {"run": np.arange(len(runs)), "sample": ("run", sample)}
    settings = [config_to_json(run.config) for run in runs]
    return ("run",), (len(runs),), coords, (("run",), np.array(settings))


def stack_params(
    design: Design,
    batches: Sequence[Sequence[int]],
    records: Mapping[int, Record],
    structure: jax.tree_util.PyTreeDef,
) -> Params:
    """Stacks the last weights of all runs, as `SweepResult.params` describes.

    It takes the arguments of `to_dataset`, and the `structure` of one run's weights.
    """
    finished = {number: record.params for number, record in records.items() if record.params}
    shapes = {tuple((x.shape[1:], x.dtype) for x in params) for params in finished.values()}
    if len(shapes) != 1:
        return None
    (leaves,) = shapes
    num_runs = len(design.points) * len(design.seeds)
    stacked = [
        np.full((num_runs, *shape), np.nan if np.issubdtype(dtype, np.inexact) else 0, dtype)
        for shape, dtype in leaves
    ]
    for number, params in finished.items():
        for kept, new in zip(stacked, params, strict=True):
            kept[list(batches[number])] = new
    lengths = _label_runs(design)[1]
    return jax.tree.unflatten(structure, [x.reshape(*lengths, *x.shape[1:]) for x in stacked])
