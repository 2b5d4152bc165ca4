"""Puts the numbers of a sweep together as one labelled dataset, and finds one run in it.

The command line chooses runs before it imports JAX, so that nothing here needs that but what makes
a dataset.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from purejaxdqn.checks import ConfigError
from purejaxdqn.runtime.interrupts import Interrupted
from purejaxdqn.sweep.design import Design, to_label
from purejaxdqn.training.declaration import DIAGNOSTICS
from purejaxdqn.training.settings import config_to_json

if TYPE_CHECKING:
    import jax
    import xarray as xr

    from purejaxdqn.engine.rounds import Record
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
        `purejaxdqn.training.declaration.DIAGNOSTICS`, of which `TABULAR_DIAGNOSTICS` are there for
        environments with `tabular` alone.

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

    `batches` says which runs each batch has; `records` has, by number, those that have begun.
    """
    import xarray as xr

    from purejaxdqn.engine.rounds import evaluation_steps

    configs = [run.config for run in design.runs]
    steps_of = [evaluation_steps(config) for config in configs]
    steps = np.unique(np.concatenate(steps_of))
    shape = (len(configs), len(steps), max(config.eval_episodes for config in configs))
    num_updates = np.full(shape[:2], np.nan)
    for run, (config, own) in enumerate(zip(configs, steps_of, strict=True)):
        iterations = (np.array(own) - config.prefill_steps) // config.steps_per_update
        num_updates[run, np.searchsorted(steps, own)] = iterations * config.updates_per_iteration
    evaluation = np.full(shape, np.nan, np.float32)
    final = np.full((shape[0], shape[2]), np.nan, np.float32)
    diverged = np.zeros(shape[0], bool)
    curves = {"training_return": np.full(shape[:2], np.nan)}
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
    dims, lengths, coords, settings = _label_runs(design)

    def over_runs(values: np.ndarray, *own: str) -> tuple[Any, ...]:
        return (*dims, *own), values.reshape(*lengths, *values.shape[1:])

    updates = over_runs(num_updates, "step")
    if (num_updates == num_updates[0]).all():
        updates = ("step", num_updates[0].astype(np.int64))
    variables = {
        "evaluation_return": over_runs(evaluation, "step", "episode"),
        "final_return": over_runs(final, "episode"),
        "num_updates": updates,
        "diverged": over_runs(diverged),
        "settings": settings,
    }
    for name, curve in curves.items():
        variables[name] = (*over_runs(curve, "step"), DIAGNOSTICS.get(name, {}))
    coords |= {"step": ("step", steps, {"units": "environment steps"})}
    return xr.Dataset(variables, coords | {"episode": np.arange(shape[2])})


def _label_runs(design: Design) -> tuple[Any, ...]:
    """Returns the dimensions of the runs, their lengths and coordinates, and all settings."""
    runs, points, seeds = design.runs, design.points, design.seeds
    if design.is_grid:
        dims = tuple(design.axes)
        lengths = tuple(map(len, design.axes.values()))
        settings = np.array([config_to_json(point.config) for point in points]).reshape(lengths)
        coords = {**design.axes, "seed": [*seeds]}
        return (*dims, "seed"), (*lengths, len(seeds)), coords, (dims, settings)
    labels = {n: ("run", [run.labels[n] for run in runs]) for n in (*design.axes, "seed")}
    sample = np.repeat(np.arange(len(points)), len(seeds))
    coords = {**labels, "run": np.arange(len(runs)), "sample": ("run", sample)}
    return ("run",), (len(runs),), coords, ("run", [config_to_json(run.config) for run in runs])


def stack_params(
    lengths: Sequence[int],
    batches: Sequence[Sequence[int]],
    records: Mapping[int, Record],
    structure: jax.tree_util.PyTreeDef,
) -> Params:
    """Stacks the last weights of all runs, as `SweepResult.params` describes.

    `lengths` are those of the runs' dimensions, `structure` is that of one run's weights; the rest
    is as in `to_dataset`.
    """
    import jax

    finished = {number: record.params for number, record in records.items() if record.params}
    shapes = {tuple((x.shape[1:], x.dtype) for x in params) for params in finished.values()}
    if len(shapes) != 1:
        return None
    leaves = []
    for i, (shape, dtype) in enumerate(shapes.pop()):
        missing = np.nan if np.issubdtype(dtype, np.inexact) else 0
        stacked = np.full((math.prod(lengths), *shape), missing, dtype)
        for number, params in finished.items():
            stacked[list(batches[number])] = params[i]
        leaves.append(stacked.reshape(*lengths, *shape))
    return jax.tree.unflatten(structure, leaves)


def check_has_weights(dataset: xr.Dataset) -> None:
    """Refuses what is no dataset of a sweep, which alone keeps weights."""
    if "trial" in dataset.dims:
        raise ConfigError("a search keeps no weights: train its best settings first")
    check_dataset(dataset)


def check_dataset(dataset: xr.Dataset) -> None:
    """Refuses what is no dataset of a sweep, in as far as runs are taken up from it."""
    attrs = {"code": "{}", "experiment_arguments": "{}", **dataset.attrs}
    wrong = [name for name in ("settings", "final_return") if name not in dataset]
    width = attrs.get("width")
    if not isinstance(width, (int, np.integer)) or width < 1:
        wrong.append("width")
    for name in ("experiment", "git_commit", "python", "processor"):
        if not isinstance(attrs.get(name, ""), str):
            wrong.append(name)
    for name in ("experiment_arguments", "versions", "code"):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            if isinstance(json.loads(attrs.get(name, "")), dict):
                continue
        wrong.append(name)
    if wrong:
        raise ConfigError(
            f"the dataset is not one of a sweep: its {', '.join(wrong)} cannot be read; give what "
            "purejaxdqn.load returned"
        )


def select_run(dataset: xr.Dataset, labels: Mapping[str, Any]) -> xr.Dataset:
    """Selects the one run that has these labels; refuses labels of none, and of several."""
    # A label that the caller has chosen already, such as with `sel`, has no dimension any more.
    chosen = {n for n in dataset.coords if dataset[n].ndim == 0} - {"step", "episode"}
    dataset = dataset.expand_dims([name for name in labels if name in chosen])
    dims = [dim for dim in dataset.final_return.dims if dim != "episode"]
    names = [str(name) for name in dataset.coords if dataset[name].dims in [(d,) for d in dims]]
    for name, value in labels.items():
        if name not in names:
            raise ConfigError(f"{name!r} is no label of these runs: they have {', '.join(names)}")
        value = to_label(value)
        if dataset[name].dtype.kind in "OU":  # such as "0.9" beside a schedule
            value = str(value)
        (matches,) = np.nonzero(dataset[name].values == value)
        if not len(matches):
            values = ", ".join(str(x) for x in np.unique(dataset[name].values)[:20])
            raise ConfigError(f"no run has {name} {value!r}: there are {values}")
        dataset = dataset.isel({dataset[name].dims[0]: matches})
    if several := [name for name in names if len(np.unique(dataset[name].values)) > 1]:
        raise ConfigError(
            f"{dataset.final_return.isel(episode=0).size} runs have these labels: say which one "
            f"with {', '.join(several)}"
        )
    return dataset.isel(dict.fromkeys(dims, 0))
