"""Refuses what cannot be searched; Optuna and JAX are not needed for that."""

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.checks import ConfigError
from purejaxdqn.sweep.design import MOST_RUNS, grid_design
from purejaxdqn.training.declaration import Drawn, settings_of
from purejaxdqn.training.settings import RunConfig


class Source(NamedTuple):
    """What a setting is searched in."""

    kind: str  # "uniform" or "loguniform", between two numbers; "choice" of all numbers
    numbers: Sequence[float]


def read_space(
    config: RunConfig, space: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Source]:
    """Reads what is searched by name; see `purejaxdqn.search.search.search`.

    Raises:
      ConfigError: for a space that is empty, a setting that is no float, and values that are
        neither a uniform or loguniform distribution nor a list of numbers; for bad seeds; and for
        values that the settings cannot have, alone or two together.
    """
    if not isinstance(space, Mapping):
        raise ConfigError(f"space ({space!r:.60}) must be settings by name with what is searched")
    if not space:
        raise ConfigError(
            "space is empty: give at least one setting to search, such as "
            "learning_rate=scipy.stats.loguniform(1e-5, 1e-2), on a command line "
            "--learning-rate loguniform:1e-5:1e-2"
        )
    declared = settings_of(type(config))
    for name in space:
        if name in declared and not declared[name].is_traced:
            raise ConfigError(
                f"{name} cannot be searched: all trials share one compiled program, in which only "
                "floats vary, such as learning_rate; fix it, or sweep over it with "
                "purejaxdqn.sweep.run.run_sweep"
            )
    sources = {name: _read_source(name, source) for name, source in space.items()}
    # If the ends of a distribution are valid, and all values of a list, then all are.
    for some in itertools.combinations(sources.items(), min(2, len(sources))):
        grid_design(config, seeds, {name: source.numbers for name, source in some})
    return sources


def check_batch(trials_per_batch: int, num_seeds: int) -> None:
    """Refuses more runs than one sweep may have."""
    if trials_per_batch * num_seeds > MOST_RUNS:
        shown = f"trials_per_batch ({trials_per_batch}) of {num_seeds} seeds"
        raise ConfigError(f"{shown} are too many runs: at most {MOST_RUNS:,}")


def _read_source(name: str, source: Any) -> Source:
    kind = getattr(getattr(source, "dist", None), "name", None)
    if isinstance(source, Drawn):
        return Source(source.kind, (source.low, source.high))
    if kind in ("uniform", "loguniform", "reciprocal"):
        low, high = map(float, source.support())
        if -math.inf < low < high < math.inf:
            return Source("uniform" if kind == "uniform" else "loguniform", (low, high))
    shown = source if kind is None else f"a {kind} distribution of {source.args or source.kwds}"
    if isinstance(source, (Sequence, np.ndarray)) and len(source) > 0:
        with contextlib.suppress(TypeError, ValueError):
            values = [float(value) for value in source if not isinstance(value, (str, bool))]
            if len(values) == len(source):
                return Source("choice", values)
        if any(isinstance(value, Drawn) or hasattr(value, "dist") for value in source):
            shown = "a distribution among other values"
    raise ConfigError(
        f"{name} ({shown}) must be searched in a uniform or a loguniform distribution, such as "
        "loguniform:1e-5:1e-2 on a command line, or in a list of numbers"
    )
