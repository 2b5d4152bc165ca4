"""Takes up any single run of a results file: trains it again bit for bit, or loads its weights."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from purejaxdqn import agents
from purejaxdqn.storage import provenance, results
from purejaxdqn.sweep import design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.resume import find_differences
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.training.diagnostics import DIAGNOSTICS
from purejaxdqn.training.loop import Experiment, Train
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.training.settings_text import config_from_json
from purejaxdqn.types import ConfigError, Params

# What files of older versions call the package's experiments.
_OLD_NAMES = {
    "purejaxdqn.dqn.dqn",
    "purejaxdqn.pqn.pqn",
    "purejaxdqn.agents.train_by_kind",
}


def rerun(
    dataset: xr.Dataset | Path | str,
    *,
    experiment: Experiment | None = None,
    config_class: type[RunConfig] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
    **labels: Any,
) -> xr.Dataset:
    """Trains one run of a results file again, at the width that is recorded there.

    On the same kind of processor, with the same versions, every number is the same to the bit;
    otherwise a warning says what is different.

    Args:
      dataset: a dataset that `purejaxdqn.load` returned, or the path of its file or folder.
      experiment: what was trained; by default that of the registered agent that the settings
        belong to, if nothing was passed to it beside them.
      config_class: the class of the settings; by default the one that the file names.
      devices: what to train on; by default everything there is.
      progress: whether to show progress on standard error.
      **labels: which run: the swept settings and the seed, such as `learning_rate=1e-3, seed=7`;
        of a random search also `run=17`. Labels with only one value may be left out.

    Returns:
      A dataset `(step, episode)` of that run.

    Raises:
      ConfigError: if the labels name no run or several, or the file does not say what was trained.
    """
    if not isinstance(dataset, xr.Dataset):
        dataset = results.load(Path(dataset))
    if "settings" not in dataset or "width" not in dataset.attrs:
        raise ConfigError("the dataset is not one of a sweep: it names no settings and no width")
    run = select_run(dataset, labels)
    config = config_from_json(str(run.settings.item()), config_class)
    if experiment is None:
        experiment = _find_experiment(dataset, config)
    for line in find_differences(_read_versions(dataset), provenance.collect_versions()):
        warnings.warn(f"the run may get other bits than it had: {line}", stacklevel=2)
    result = run_sweep(
        experiment,
        config,
        [int(run.seed)],
        width=int(dataset.attrs["width"]),
        devices=devices,
        progress=progress,
        diagnostics=any(name in dataset for name in DIAGNOSTICS),
    )
    return result.dataset.isel(seed=0)


def select_run(dataset: xr.Dataset, labels: Mapping[str, Any]) -> xr.Dataset:
    """Selects the one run that has these labels.

    Raises:
      ConfigError: if there is none, or several.
    """
    # A label that the caller has chosen already, such as with `sel`, has no dimension any more.
    chosen = [n for n in dataset.coords if dataset[n].ndim == 0 and n not in ("step", "episode")]
    dataset = dataset.expand_dims([name for name in chosen if name in labels])
    dims = [dim for dim in dataset.final_return.dims if dim != "episode"]
    names = [str(name) for name in dataset.coords if dataset[name].dims in [(d,) for d in dims]]
    for name in labels:
        if name not in names:
            raise ConfigError(f"{name!r} is no label of these runs: they have {', '.join(names)}")
    for name, value in labels.items():
        value = design.to_label(value)
        (matches,) = np.nonzero(dataset[name].values == value)
        if not len(matches):
            values = ", ".join(str(x) for x in np.unique(dataset[name].values)[:20])
            raise ConfigError(f"no run has {name} {value!r}: there are {values}")
        dataset = dataset.isel({dataset[name].dims[0]: matches})
    several = [name for name in names if len(np.unique(dataset[name].values)) > 1]
    if several:
        raise ConfigError(
            f"{dataset.final_return.isel(episode=0).size} runs have these labels: say which one "
            f"with {', '.join(several)}"
        )
    return dataset.isel(dict.fromkeys(dims, 0))


def _find_experiment(dataset: xr.Dataset, config: RunConfig) -> Experiment:
    """Finds the registered agent's experiment; nothing is imported because a file names it.

    Raises:
      ConfigError: if the file was made by something else than the registered agent.
    """
    experiment = agents.experiment_of(config)
    names = {name: dataset.attrs[name] for name in provenance.name_experiment(experiment)}
    for known in (experiment, agents.train):
        if names == provenance.name_experiment(known):
            return experiment
    if names["experiment"] in _OLD_NAMES and names["experiment_arguments"] == "{}":
        return experiment
    passed = json.loads(names["experiment_arguments"])
    shown = (
        f" with {', '.join(f'{key}={value}' for key, value in passed.items())}" if passed else ""
    )
    raise ConfigError(
        f"the file was made by {names['experiment']}{shown}, which is not the experiment of agent "
        f"{config.agent!r}: give it to rerun again, as experiment"
    )


def load_params(
    folder: Path, dataset: xr.Dataset, labels: Mapping[str, Any]
) -> tuple[Train, Params]:
    """Loads the last weights of one run from the folder of its sweep.

    Args:
      folder: of the sweep.
      dataset: its results.
      labels: which run; see `rerun`.

    Returns:
      The training run, and its weights.

    Raises:
      ConfigError: if the labels name no run or several, or the folder does not have the weights.
    """
    if "trial" in dataset.dims:
        raise ConfigError("a search keeps no weights: train its best settings first")
    runs = dataset.final_return.isel(episode=0, drop=True)
    settings = xr.broadcast(dataset.settings, runs)[0].transpose(*runs.dims)
    numbered = dataset.assign(number=(runs.dims, np.arange(runs.size).reshape(runs.shape)))
    run = select_run(numbered, labels)
    config = config_from_json(str(run.settings.item()))
    train = _find_experiment(dataset, config)(config)
    configs = [config_from_json(str(text)) for text in settings.values.ravel()]
    batch, row = _find_batch(configs, int(run.number), int(dataset.attrs["width"]))
    kept = SweepFolder(folder)
    if kept.is_begun():
        kept.read_begun()  # refuses a folder of another version
    record = kept.load_finished(batch, config)
    if record is None or not record.params:
        raise ConfigError(
            f"{folder} does not have the weights of batch {batch}: train it to its end with "
            "--resume"
        )
    structure = jax.tree.structure(jax.eval_shape(train.init, jax.random.key(0)).learner.params)
    return train, jax.tree.unflatten(structure, [leaf[row] for leaf in record.params])


def _find_batch(configs: Sequence[RunConfig], run: int, width: int) -> tuple[int, int]:
    """Finds the batch that a run was trained in, as `plan_sweep` numbers it, and its row there."""
    groups: dict[Any, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(jax.tree.structure(config), []).append(index)
    first = 0
    for members in groups.values():
        if run in members:
            batch, row = divmod(members.index(run), width)
            return first + batch, row
        first += math.ceil(len(members) / width)
    raise AssertionError("every run is in a group")


def _read_versions(dataset: xr.Dataset) -> dict[str, Any]:
    known = {name: dataset.attrs.get(name) for name in provenance.collect_versions()}
    return known | {"versions": json.loads(dataset.attrs["versions"])}
