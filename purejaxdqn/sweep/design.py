"""Says which runs a sweep trains: every seed at every point, on a grid or drawn at random."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from purejaxdqn.checks import ConfigError, ensure, ensure_whole, suggest_names
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.training.schedules import Changing
from purejaxdqn.training.settings import RunConfig, config_to_dict

if TYPE_CHECKING:
    from purejaxdqn.engine.programs import Label, Run

Configure = Callable[..., RunConfig]  # swept settings by name -> all settings

MOST_RUNS = 10**5  # in one sweep
_MAPPING = "settings by name with their values, such as {'discount': [0.9, 0.99]}"


class Point(NamedTuple):
    """The settings of runs that differ in their seeds alone; `labels` are as those of `Run`."""

    config: RunConfig
    labels: Mapping[str, Label]


class Design(NamedTuple):
    """All runs of a sweep."""

    points: tuple[Point, ...]  # of a grid in the order of `itertools.product`
    seeds: tuple[int, ...]  # those at each point
    # The swept settings by name, with the labels along each; empty for one point. Those of a random
    # search have a label for each point.
    axes: dict[str, list[Label]]
    is_grid: bool = True  # whether the points are all combinations of the axes, or drawn at random

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that are the same in all runs, by name."""
        return find_common([config_to_dict(point.config) for point in self.points])

    @property
    def runs(self) -> list[Run]:
        """All runs, one point after another."""
        from purejaxdqn.engine.programs import Run  # which needs JAX: designs are checked without

        pairs = itertools.product(self.points, self.seeds)
        return [Run(seed, one.config, {**one.labels, "seed": seed}) for one, seed in pairs]


def group_by_program(configs: Iterable[RunConfig]) -> list[list[int]]:
    """Groups runs, given by their settings, by the compiled program that they share.

    Such settings are of one class, and have the same values where they are not traced.
    """
    import jax

    members: dict[Any, list[int]] = {}
    for index, config in enumerate(configs):
        members.setdefault(jax.tree.structure(config), []).append(index)
    return list(members.values())


def find_common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Finds the settings that are in all of some mappings, with the same value."""
    first, *rest = settings
    return {n: x for n, x in first.items() if all(n in other and other[n] == x for other in rest)}


def ensure_design(design: Any) -> None:
    """Refuses what is no design."""
    if not isinstance(design, Design):
        raise ConfigError(
            f"design ({design!r:.60}) must be a Design: make one with grid_design, or train "
            "settings with run_sweep"
        )


def grid_design(
    config: RunConfig | Configure, seeds: Sequence[int], grid: Mapping[str, Sequence[Any]]
) -> Design:
    """Designs a sweep with every seed at every combination of values.

    `grid` has values by the name of any setting. The `config` has all other settings, or makes all
    of them from the swept ones, such as `purejaxdqn.agents.configure`. The `seeds` are whole
    numbers from 0 to 2**32 - 1, no two the same.

    Raises:
      ConfigError: if a seed, a name or a value is not allowed, or the runs are too many.
    """
    _check_axes(config, grid)
    swept = (dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values()))
    points = _make_points(config, seeds, math.prod(map(len, grid.values())), swept)
    axes = {name: to_labels(values) for name, values in grid.items()}
    return Design(points, tuple(map(int, seeds)), axes)


def random_design(
    config: RunConfig | Configure,
    seeds: Sequence[int],
    space: Mapping[str, Any],
    num_samples: int,
    rng: np.random.Generator,
) -> Design:
    """Designs a sweep with every seed at `num_samples` points that are drawn with `rng`.

    The `space` has, by the name of a setting, a frozen distribution of `scipy.stats`, such as
    `loguniform(1e-5, 1e-2)`, or a list of values that are equally likely. Everything else is as in
    `grid_design`.
    """
    ensure_whole("num_samples", num_samples, 1)
    if not isinstance(rng, np.random.Generator):
        raise ConfigError(f"rng ({rng!r:.60}) must be a generator: give np.random.default_rng(0)")
    _check_axes(config, space, is_drawn=True)
    swept = ({n: _draw(n, source, rng) for n, source in space.items()} for _ in range(num_samples))
    points = _make_points(config, seeds, num_samples, swept)
    axes = {name: to_labels([point.labels[name] for point in points]) for name in space}
    return Design(points, tuple(map(int, seeds)), axes, is_grid=False)


def _draw(name: str, source: Any, rng: np.random.Generator) -> Any:
    if not hasattr(source, "rvs"):
        return source[int(rng.integers(len(source)))]
    value = np.asarray(source.rvs(random_state=rng))
    if value.size != 1:
        raise ConfigError(
            f"the distribution of {name} gives {value.size} numbers at a time: give one of a "
            "single number, such as scipy.stats.loguniform(1e-5, 1e-2)"
        )
    return value.item()  # whole numbers stay whole


def _make_points(
    config: RunConfig | Configure,
    seeds: Sequence[int],
    num_points: int,
    swept: Iterable[Mapping[str, Any]],
) -> tuple[Point, ...]:
    """Makes the points from their swept settings, after a check of all arguments before these."""
    make: Any = config
    if isinstance(config, RunConfig):
        config.validate()
        make = functools.partial(dataclasses.replace, config)
    if isinstance(config, type):
        raise ConfigError(
            f"config ({config.__name__}) must be settings, and not their class: give "
            f"{config.__name__}()"
        )
    if not callable(make):
        raise ConfigError(
            f"config ({config!r:.60}) must be settings, such as DQNConfig(), or a function that "
            "makes them of the swept ones"
        )
    _check_seeds(seeds, num_points)
    points = []
    for given in swept:
        values = {n: x.item() if isinstance(x, np.generic) else x for n, x in given.items()}
        try:
            inspect.signature(make).bind(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"config ({config!r:.60}) must take the swept settings by name: {error}"
            ) from None
        made = make(**values)
        if not isinstance(made, RunConfig):
            raise ConfigError(
                f"config ({config!r:.60}) must make settings, such as DQNConfig(), and made "
                f"{made!r:.60}"
            )
        made.validate()
        points.append(Point(made, {name: to_label(value) for name, value in values.items()}))
    return tuple(points)


def _check_seeds(seeds: Sequence[int], num_points: int) -> None:
    _check_sequence("seeds", seeds, f"range({seeds!r})")
    if (num_runs := num_points * len(seeds)) > MOST_RUNS:
        raise ConfigError(
            f"{num_runs:,} runs are too many for one sweep: at most {MOST_RUNS:,}, so make several "
            "of it, into a folder each"
        )
    for seed in seeds:
        is_whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        if not (is_whole and 0 <= seed < 2**32):
            raise ConfigError(f"seed ({seed!r}) must be a whole number from 0 to {2**32 - 1}")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {list(seeds)} must differ from each other")


def _check_sequence(name: str, values: Any, example: str) -> None:
    is_array = isinstance(values, np.ndarray) and values.ndim > 0
    if not (is_array or isinstance(values, Sequence)) or isinstance(values, str | bytes):
        raise ConfigError(f"{name} ({values!r}) must be a sequence, such as {example}")
    try:
        if not len(values):
            raise ConfigError(f"{name} is empty: give at least one value")
    except OverflowError:  # of a range
        raise ConfigError(f"{name} ({values!r}) are too many: at most {MOST_RUNS:,}") from None


def _check_axes(
    config: RunConfig | Configure, axes: Mapping[str, Any], is_drawn: bool = False
) -> None:
    ensure(isinstance(axes, Mapping), "space" if is_drawn else "grid", axes, _MAPPING)
    ensure(bool(axes) or not is_drawn, "space", axes, _MAPPING)
    for name, values in axes.items():
        if isinstance(config, RunConfig):  # else the function that makes them refuses unknown names
            _check_name(name, config)
        if is_drawn and hasattr(values, "rvs"):
            continue
        _check_sequence(name, values, f"[{values!r}]")
        labels = to_labels(values)
        for label in labels:
            if not isinstance(label, (bool, int, float, str)):
                raise ConfigError(
                    f"the values of {name} must be numbers, names or sizes such as (64, 64), and "
                    f"not {label!r:.60}"
                )
        if len(set(labels)) < len(labels):
            raise ConfigError(f"the values of {name} {list(values)} must differ from each other")


def _check_name(name: str, config: RunConfig) -> None:
    if name == "agent":
        raise ConfigError(
            "agent cannot be swept over one agent's settings, which would only be renamed: give "
            "agents.configure in the place of config, and agents.train as the experiment"
        )
    names = [field.name for field in dataclasses.fields(config)]
    if name not in names:
        raise ConfigError(
            f"{name!r} is no setting of {type(config).__name__}, so that it cannot be swept: "
            f"{suggest_names(name, [*names, *(f.name for f in dataclasses.fields(SweepOptions))])}"
        )


def to_labels(values: Sequence[Any]) -> list[Label]:
    """Turns the values along an axis into labels: all of them texts, if one of them is."""
    labels = [to_label(value) for value in values]
    return [*map(str, labels)] if any(isinstance(label, str) for label in labels) else labels


def to_label(value: Any) -> Label:
    """Turns a setting's value into one that results can show: sizes (64, 64) into "64x64"."""
    if isinstance(value, Changing):
        return str(value)
    is_array = isinstance(value, np.generic | np.ndarray) or hasattr(value, "dims")
    if is_array and np.ndim(value) == 0:  # such as a coordinate of the results, of xarray
        return value.item()  # type: ignore[no-any-return]
    return "x".join(map(str, value)) if isinstance(value, (tuple, list, np.ndarray)) else value
