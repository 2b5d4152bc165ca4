"""Takes up any single run of a results file: trains it again bit for bit, or loads its weights."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from purejaxdqn import agents, environments
from purejaxdqn.engine.programs import make_traced
from purejaxdqn.storage import provenance, results
from purejaxdqn.sweep.dataset import check_dataset, check_has_weights, select_run
from purejaxdqn.sweep.design import group_by_program
from purejaxdqn.sweep.folder import SweepFolder, find_differences
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.plan import cut_into_batches, defaults_of
from purejaxdqn.sweep.resume import compare_code, describe_code
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.training.declaration import DIAGNOSTICS
from purejaxdqn.training.loop import Experiment, Train
from purejaxdqn.training.settings import RunConfig, config_from_json, config_to_json
from purejaxdqn.types import ConfigError, Params

# What files of older versions call the package's experiments.
_OLD_NAMES = ("purejaxdqn.dqn.dqn", "purejaxdqn.pqn.pqn", "purejaxdqn.agents.train_by_kind")


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
      The dataset `(step, episode)` of that run.

    Raises:
      ConfigError: if the labels name no run or several, if the file does not say what was trained,
        or if other code did.
    """
    if not isinstance(dataset, xr.Dataset):
        dataset = results.load(dataset)
    check_dataset(dataset)
    run = select_run(dataset, labels)
    config = config_from_json(str(run.settings.item()), config_class)
    _refuse_import(config)
    experiment = experiment or _find_experiment(dataset, config)
    if not environments.is_known(config.env):
        make_traced(experiment, config)  # refuses the name where the experiment reads it
        config = dataclasses.replace(config, env=defaults_of(config).env)
    _check_code(dataset, experiment, config)
    now = provenance.collect_versions()
    then = {name: dataset.attrs.get(name) for name in now}
    then["versions"] = json.loads(dataset.attrs["versions"])
    for line in find_differences(then, now):
        warnings.warn(f"the run may get other bits than it had: {line}", stacklevel=2)
    width, measured = int(dataset.attrs["width"]), any(name in dataset for name in DIAGNOSTICS)
    options = SweepOptions(width=width, devices=devices, progress=progress, diagnostics=measured)
    return run_sweep(experiment, config, [int(run.seed)], options=options).dataset.isel(seed=0)


def _refuse_import(config: RunConfig) -> None:
    """Refuses a package that a file names, as in "gymnasium:my_package:My-v0": none imports one."""
    package = config.env.partition("?")[0].rpartition(":")[0].partition(":")[2]
    if package and package not in sys.modules:
        raise ConfigError(
            f"env ({config.env!r}) in the results must name a package that is imported already, as "
            f"no file may import one: trust {package}, and import it first (--import {package})"
        )


def _find_experiment(dataset: xr.Dataset, config: RunConfig) -> Experiment:
    """Finds the registered agent's experiment; refuses others, as a file may not name imports."""
    experiment = agents.experiment_of(config)
    known = [provenance.name_experiment(one) for one in (experiment, agents.train)]
    known += [{"experiment": name, "experiment_arguments": "{}"} for name in _OLD_NAMES]
    missing = {"experiment": "an unknown function", "experiment_arguments": "{}"}
    names = {name: dataset.attrs.get(name, text) for name, text in missing.items()}
    if names in known:
        return agents.train if names == known[1] else experiment
    passed = json.loads(names["experiment_arguments"])
    shown = ", ".join(f"{name}={value}" for name, value in passed.items())
    raise ConfigError(
        f"the file was made by {names['experiment']}{' with ' if shown else ''}{shown}, which is "
        f"not the experiment of agent {config.agent!r}: give it to rerun again, as experiment"
    )


def _check_code(dataset: xr.Dataset, experiment: Experiment, config: RunConfig) -> None:
    """Refuses to go on with other code than made the results; older files say nothing of theirs."""
    then = json.loads(dataset.attrs.get("code", "{}"))
    now = describe_code(experiment, [config]) if then else {}
    then = {name: then.get(name) for name in now}
    if lines := find_differences(*compare_code(then, now), "code"):
        raise ConfigError(
            f"the results were made by other code ({'; '.join(lines[:4])}): go back to that code, "
            "give what was trained as experiment, or train anew with run_sweep"
        )


def load_params(
    folder: Path | str,
    *,
    experiment: Experiment | None = None,
    config_class: type[RunConfig] | None = None,
    **labels: Any,
) -> Params:
    """Loads the last weights of one finished run, from the output folder of its sweep.

    They are what `initial_params` takes, so that other runs go on from there, with the network of
    the same settings: `partial(dqn, initial_params=load_params("results/rates", seed=3))`.

    Args:
      folder: that of the sweep, or the results file in it.
      experiment: what was trained, as in `rerun`; it may have changed, but for its network.
      config_class: as in `rerun`.
      **labels: which run, as in `rerun`.

    Returns:
      The weights of one run, as NumPy arrays.

    Raises:
      ConfigError: if the labels name no run or several, if the folder does not have the weights, or
        if the network of the experiment is another one.
    """
    dataset = results.load(folder)
    return load_run(Path(folder), dataset, labels, experiment, config_class, True)[1]


def load_run(
    folder: Path,
    dataset: xr.Dataset,
    labels: Mapping[str, Any],
    experiment: Experiment | None = None,
    config_class: type[RunConfig] | None = None,
    may_have_changed: bool = False,
) -> tuple[Train, Params]:
    """Loads the last weights of one run, and its `Train`, from the folder of its sweep.

    `dataset` has the results of that sweep; the other arguments are as in `load_params`. Unless it
    `may_have_changed`, other code than made the results is refused too.
    """
    folder = folder.parent if folder.is_file() else folder
    check_has_weights(dataset)
    runs = dataset.final_return.isel(episode=0, drop=True)
    settings = xr.broadcast(dataset.settings, runs)[0].transpose(*runs.dims)
    numbered = dataset.assign(number=(runs.dims, np.arange(runs.size).reshape(runs.shape)))
    run = select_run(numbered, labels)
    config = config_from_json(str(run.settings.item()), config_class)
    _refuse_import(config)
    experiment = experiment or _find_experiment(dataset, config)
    if environments.is_known(config.env):  # else the experiment brings its own
        config.validate()
    if not may_have_changed:
        _check_code(dataset, experiment, config)
    train = experiment(config)
    configs = [config_from_json(str(text), config_class) for text in settings.values.ravel()]
    groups, width = group_by_program(configs), int(dataset.attrs["width"])
    batches = [batch for group in groups for batch in cut_into_batches(group, width)]
    number = int(run.number)
    (batch,) = (i for i, members in enumerate(batches) if number in members)
    kept = SweepFolder(folder)
    kept.read_asked()  # refuses a folder of another version
    record = kept.load_finished(batch, config)
    if record is None or not record.params:
        raise ConfigError(
            f"{folder} does not have the weights of batch {batch}: train it to its end with "
            "--resume"
        )
    row = batches[batch].index(number)
    shapes = jax.eval_shape(train.init, jax.random.key(0)).learner.params
    found = [leaf.shape[1:] for leaf in record.params]
    if [leaf.shape for leaf in jax.tree.leaves(shapes)] != found:
        raise ConfigError(f"{folder} has weights of other settings than {config_to_json(config)}")
    return train, jax.tree.unflatten(
        jax.tree.structure(shapes), [leaf[row] for leaf in record.params]
    )
