"""Which runs a sweep trains: every seed at every setting, on a grid or drawn at random."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxdqn.engine.run import Label, Run
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.training.settings_text import by_name
from purejaxdqn.types import ConfigError

Configure = Callable[..., RunConfig]  # settings by name -> all settings

MOST_RUNS = 10**5  # of one sweep


class Setting(NamedTuple):
    """One point of a sweep.

    Attributes:
      config: all settings.
      labels: those that are swept, by name, as the results call their values.
    """

    config: RunConfig
    labels: Mapping[str, Label]


class Design(NamedTuple):
    """All runs of a sweep.

    Attributes:
      settings: the points; those of a grid in the order of `itertools.product`.
      seeds: of each setting.
      axes: the swept settings by name, with the labels along each; empty for one setting. Those
        of a random search have a label for each sample.
      is_grid: whether the settings are all combinations of the axes, or a sample each.
    """

    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    axes: dict[str, list[Label]]
    is_grid: bool = True

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that all runs have in common, by name."""
        return common([by_name(setting.config) for setting in self.settings])

    @property
    def runs(self) -> list[Run]:
        """Every run, the seeds running fastest."""
        return [
            Run(seed, setting.config, {**setting.labels, "seed": seed})
            for setting in self.settings
            for seed in self.seeds
        ]

    def groups(self) -> list[list[int]]:
        """Which runs share a compiled program: all that differ in floats and seeds alone."""
        members: dict[Any, list[int]] = {}
        for index, run in enumerate(self.runs):
            members.setdefault(structure(run.config), []).append(index)
        return list(members.values())


def common(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is the same in all points, by name."""
    return {
        name: value
        for name, value in points[0].items()
        if all(name in other and other[name] == value for other in points[1:])
    }


def structure(config: RunConfig) -> Any:
    """Gives what a compiled program depends on: the class of settings, and the static ones."""
    return jax.tree.structure(config)


def grid_design(
    config: RunConfig | Configure, seeds: Sequence[int], grid: Mapping[str, Sequence[Any]]
) -> Design:
    """Every seed at every combination of the swept settings.

    Args:
      config: the settings that all runs share; or a function that makes them of the swept ones by
        name, such as `purejaxdqn.agents.presets.configure`.
      seeds: whole numbers from 0 to 2**32 - 1, no two the same.
      grid: values by the name of any setting.

    Returns:
      The `Design`.

    Raises:
      ConfigError: for what cannot be run.
    """
    configure = _configure(config)
    _check_seeds(seeds)
    for name, values in grid.items():
        _check_values(name, values, config)
    _check_number(math.prod(map(len, grid.values())) * len(seeds))
    grid = {name: [_plain(value) for value in values] for name, values in grid.items()}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    axes = {name: [label(value) for value in values] for name, values in grid.items()}
    return Design(_settings(configure, points), tuple(map(int, seeds)), axes)


def random_design(
    config: RunConfig | Configure,
    seeds: Sequence[int],
    space: Mapping[str, Any],
    num_samples: int,
    rng: np.random.Generator,
) -> Design:
    """Every seed at settings that are drawn at random.

    Args:
      config: as in `grid_design`.
      seeds: as in `grid_design`.
      space: by the name of a setting, what it is drawn from: a frozen distribution of
        `scipy.stats`, such as `loguniform(1e-5, 1e-2)`, or a list, each value as likely.
      num_samples: settings to draw.
      rng: draws them.

    Returns:
      The `Design`.

    Raises:
      ConfigError: for what cannot be run.
    """
    configure = _configure(config)
    _check_seeds(seeds)
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigError(f"num_samples ({num_samples!r}) must be a whole number of at least 1")
    _check_number(num_samples * len(seeds))
    draw: dict[str, Callable[[], Any]] = {}
    for name, source in space.items():
        if hasattr(source, "rvs"):
            _check_name(name, config)
            draw[name] = functools.partial(_draw, name, source, rng)
        else:
            _check_values(name, source, config)
            draw[name] = functools.partial(_choose, source, rng)
    points = [{name: one() for name, one in draw.items()} for _ in range(num_samples)]
    axes = {name: [label(point[name]) for point in points] for name in space}
    return Design(_settings(configure, points), tuple(map(int, seeds)), axes, is_grid=False)


def _draw(name: str, distribution: Any, rng: np.random.Generator) -> Any:
    value = np.asarray(distribution.rvs(random_state=rng))
    if value.size != 1:
        raise ConfigError(
            f"the distribution of {name} gives {value.size} numbers at a time: give one of a "
            "single number, such as scipy.stats.loguniform(1e-5, 1e-2)"
        )
    return value.item()  # whole numbers stay whole


def _choose(values: Sequence[Any], rng: np.random.Generator) -> Any:
    return _plain(values[int(rng.integers(len(values)))])


def _plain(value: Any) -> Any:
    """A setting as Python has it; those of NumPy's arrays are numbers of its own."""
    return value.item() if isinstance(value, np.generic) else value


def _configure(config: RunConfig | Configure) -> Configure:
    if not isinstance(config, RunConfig):
        if not callable(config):
            raise ConfigError(
                f"config ({config!r:.60}) must be settings, such as DQNConfig(), or a function "
                "that makes them of the swept ones"
            )
        return config
    config.validate()
    return lambda **swept: dataclasses.replace(config, **swept)


def _settings(configure: Configure, points: Sequence[Mapping[str, Any]]) -> tuple[Setting, ...]:
    settings = []
    for point in points:
        config = configure(**point)
        if not isinstance(config, RunConfig):
            raise ConfigError(
                f"config ({configure!r:.60}) must make settings, such as DQNConfig(), and made "
                f"{config!r:.60}"
            )
        config.validate()
        settings.append(Setting(config, {name: label(value) for name, value in point.items()}))
    return tuple(settings)


def _check_seeds(seeds: Sequence[int]) -> None:
    _check_sequence("seeds", seeds, f"range({seeds!r})")
    if not len(seeds):
        raise ConfigError("seeds is empty: give at least one, such as range(10)")
    _check_number(len(seeds))
    for seed in seeds:
        if isinstance(seed, bool) or not (
            isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32
        ):
            raise ConfigError(f"seed ({seed!r}) must be a whole number from 0 to {2**32 - 1}")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {list(seeds)} must differ from each other")


def _check_number(num_runs: int) -> None:
    if num_runs > MOST_RUNS:
        raise ConfigError(
            f"{num_runs:,} runs are too many for one sweep: at most {MOST_RUNS:,}, so make several "
            "of it, into a folder each"
        )


def _check_sequence(what: str, values: Any, example: str) -> None:
    is_array = isinstance(values, np.ndarray) and values.ndim > 0
    if not (is_array or isinstance(values, Sequence)) or isinstance(values, str):
        raise ConfigError(f"{what} ({values!r}) must be a sequence, such as {example}")
    try:
        len(values)
    except OverflowError:  # of a range
        raise ConfigError(f"{what} ({values!r}) are too many: at most {MOST_RUNS:,}") from None


def _check_name(name: str, config: RunConfig | Configure) -> None:
    if not isinstance(config, RunConfig):
        return  # a function that makes settings knows its names
    names = [field.name for field in dataclasses.fields(config)]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3)
        raise ConfigError(
            f"{name!r} is no setting of {type(config).__name__}, so that it cannot be swept: "
            f"{'did you mean ' if nearest else 'choose of '}{', '.join(nearest or names)}"
        )


def _check_values(name: str, values: Any, config: RunConfig | Configure) -> None:
    _check_name(name, config)
    _check_sequence(name, values, f"[{values!r}]")
    if not len(values):
        raise ConfigError(f"the values of {name} are empty: give at least one")
    labels = [label(value) for value in values]
    for value in labels:
        if not isinstance(value, (bool, int, float, str)):
            raise ConfigError(
                f"the values of {name} must be numbers, names or sizes such as (64, 64), and not "
                f"{value!r:.60}"
            )
    if len(set(labels)) < len(labels):
        raise ConfigError(f"the values of {name} {list(values)} must differ from each other")


def label(value: Any) -> Label:
    """A setting's value as the results call it: sizes such as (64, 64) are "64x64"."""
    if np.ndim(value) == 0 and hasattr(value, "item"):  # also a coordinate of the results
        return value.item()  # type: ignore[no-any-return]
    return "x".join(map(str, value)) if isinstance(value, (tuple, list, np.ndarray)) else value
