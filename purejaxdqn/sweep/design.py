"""Says which runs a sweep trains: every seed at every point, on a grid or drawn at random."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxdqn.engine.programs import Label, Run
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.training.settings_text import config_to_dict
from purejaxdqn.types import ConfigError

Configure = Callable[..., RunConfig]  # swept settings by name -> all settings

MOST_RUNS = 10**5  # in one sweep


class Point(NamedTuple):
    """The settings of the runs that differ in nothing but their seeds.

    Attributes:
      config: all settings.
      labels: the swept settings by name, with values as the results show them.
    """

    config: RunConfig
    labels: Mapping[str, Label]


class Design(NamedTuple):
    """All runs of a sweep.

    Attributes:
      points: of a grid in the order of `itertools.product`.
      seeds: the seeds at each point.
      axes: the swept settings by name, with the labels along each; empty for one point. Those of a
        random search have a label for each point.
      is_grid: whether the points are all combinations of the axes, or drawn at random.
    """

    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    axes: dict[str, list[Label]]
    is_grid: bool = True

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that are the same in all runs, by name."""
        return find_common([config_to_dict(point.config) for point in self.points])

    @property
    def runs(self) -> list[Run]:
        """All runs, one point after another."""
        return [
            Run(seed, point.config, {**point.labels, "seed": seed})
            for point in self.points
            for seed in self.seeds
        ]

    def groups(self) -> list[list[int]]:
        """Groups the numbers of the runs by the compiled program that they share.

        Such runs have settings of one class, and the same values of those that are not traced.
        """
        members: dict[Any, list[int]] = {}
        for index, run in enumerate(self.runs):
            members.setdefault(jax.tree.structure(run.config), []).append(index)
        return list(members.values())


def find_common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Finds the settings that are in all of some mappings, with the same value."""
    return {
        name: value
        for name, value in settings[0].items()
        if all(name in other and other[name] == value for other in settings[1:])
    }


def grid_design(
    config: RunConfig | Configure, seeds: Sequence[int], grid: Mapping[str, Sequence[Any]]
) -> Design:
    """Designs a sweep with every seed at every combination of values.

    Args:
      config: the settings of all runs but the swept ones; or a function that makes all settings
        from the swept ones by name, such as `purejaxdqn.agents.configure`.
      seeds: whole numbers from 0 to 2**32 - 1, no two the same.
      grid: values by the name of any setting.

    Returns:
      The `Design`.

    Raises:
      ConfigError: if a seed, a name or a value is not allowed, or the runs are too many.
    """
    configure = _configure(config)
    _check_seeds(seeds)
    for name, values in grid.items():
        _check_values(name, values, config)
    _check_number(math.prod(map(len, grid.values())) * len(seeds))
    grid = {name: [_to_python(value) for value in values] for name, values in grid.items()}
    swept = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    axes = {name: [to_label(value) for value in values] for name, values in grid.items()}
    return Design(_make_points(configure, swept), tuple(map(int, seeds)), axes)


def random_design(
    config: RunConfig | Configure,
    seeds: Sequence[int],
    space: Mapping[str, Any],
    num_samples: int,
    rng: np.random.Generator,
) -> Design:
    """Designs a sweep with every seed at points that are drawn at random.

    Args:
      config: as in `grid_design`.
      seeds: as in `grid_design`.
      space: by the name of a setting, a frozen distribution of `scipy.stats`, such as
        `loguniform(1e-5, 1e-2)`, or a list of values that are equally likely.
      num_samples: the number of points.
      rng: draws them.

    Returns:
      The `Design`.

    Raises:
      ConfigError: as `grid_design`.
    """
    configure = _configure(config)
    _check_seeds(seeds)
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigError(f"num_samples ({num_samples!r}) must be a whole number of at least 1")
    _check_number(num_samples * len(seeds))
    for name, source in space.items():
        if hasattr(source, "rvs"):
            _check_name(name, config)
        else:
            _check_values(name, source, config)
    swept = [
        {name: _draw(name, source, rng) for name, source in space.items()}
        for _ in range(num_samples)
    ]
    axes = {name: [to_label(drawn[name]) for drawn in swept] for name in space}
    return Design(_make_points(configure, swept), tuple(map(int, seeds)), axes, is_grid=False)


def _draw(name: str, source: Any, rng: np.random.Generator) -> Any:
    if not hasattr(source, "rvs"):
        return _to_python(source[int(rng.integers(len(source)))])
    value = np.asarray(source.rvs(random_state=rng))
    if value.size != 1:
        raise ConfigError(
            f"the distribution of {name} gives {value.size} numbers at a time: give one of a "
            "single number, such as scipy.stats.loguniform(1e-5, 1e-2)"
        )
    return value.item()  # whole numbers stay whole


def _to_python(value: Any) -> Any:
    """Turns a number of NumPy's into one of Python's."""
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


def _make_points(
    configure: Configure, swept_settings: Sequence[Mapping[str, Any]]
) -> tuple[Point, ...]:
    points = []
    for swept in swept_settings:
        config = configure(**swept)
        if not isinstance(config, RunConfig):
            raise ConfigError(
                f"config ({configure!r:.60}) must make settings, such as DQNConfig(), and made "
                f"{config!r:.60}"
            )
        config.validate()
        points.append(Point(config, {name: to_label(value) for name, value in swept.items()}))
    return tuple(points)


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
        return  # the function that makes the settings refuses unknown names
    if name == "agent":
        raise ConfigError(
            "agent cannot be swept over one agent's settings, which would only be renamed: give "
            "agents.configure in the place of config, and agents.train as the experiment"
        )
    names = [field.name for field in dataclasses.fields(config)]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3)
        raise ConfigError(
            f"{name!r} is no setting of {type(config).__name__}, so that it cannot be swept: "
            f"{'did you mean ' if nearest else 'choose one of '}{', '.join(nearest or names)}"
        )


def _check_values(name: str, values: Any, config: RunConfig | Configure) -> None:
    _check_name(name, config)
    _check_sequence(name, values, f"[{values!r}]")
    if not len(values):
        raise ConfigError(f"the values of {name} are empty: give at least one")
    labels = [to_label(value) for value in values]
    for value in labels:
        if not isinstance(value, (bool, int, float, str)):
            raise ConfigError(
                f"the values of {name} must be numbers, names or sizes such as (64, 64), and not "
                f"{value!r:.60}"
            )
    if len(set(labels)) < len(labels):
        raise ConfigError(f"the values of {name} {list(values)} must differ from each other")


def to_label(value: Any) -> Label:
    """Turns a setting's value into one that results can show: sizes (64, 64) into "64x64"."""
    if np.ndim(value) == 0 and hasattr(value, "item"):  # such as a coordinate of the results
        return value.item()  # type: ignore[no-any-return]
    return "x".join(map(str, value)) if isinstance(value, (tuple, list, np.ndarray)) else value
