"""The settings of a run, as a class that every kind of settings derives from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxdqn import environments
from purejaxdqn.training.declaration import LARGEST_INT, setting, settings_of
from purejaxdqn.training.diagnostics import DIAGNOSTICS
from purejaxdqn.types import ConfigError

# Settings that not every agent has: where they are missing, what depends on them is read.
_READ_IF_THERE = {"noisy", "optimizer", "epsilon_schedule", "td_error"}
_MOST_EVALUATIONS = 10**5  # of a run; they are kept one by one

# Names that results have for something else.
NAMES_OF_RESULTS = frozenset(
    {"loss", "evaluation_return", "final_return", "training_return", "num_updates"}
    | {"gymnasium_return", "step", "seed", "episode", "run", "sample", "settings", "diverged"}
    | set(DIAGNOSTICS)
)
KINDS: dict[str, type[RunConfig]] = {}  # every class that this process has used, by `name_of_kind`
_FRACTION: dict[str, Any] = {"at_least": 0, "at_most": 1}
_EXPLORATION: dict[str, Any] = {"group": "exploration", **_FRACTION}


@functools.cache
def _register(kind: type[RunConfig]) -> None:
    """Makes a class of settings a pytree whose leaves are its traced settings, or refuses it."""
    own = vars(kind)
    forgotten = own.get("__annotations__") and "__dataclass_fields__" not in own
    if forgotten or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(
            f"{kind.__name__} must be a frozen dataclass: put @dataclasses.dataclass(frozen=True) "
            "above the class"
        )
    declared = settings_of(kind)
    for name, one in declared.items():
        if one.default is None or one.type in (Path, tuple[str, ...]):
            raise ConfigError(
                f"{kind.__name__}.{name} ({one.default!r}) must be a bool, a number, a name or "
                "sizes: results keep no other settings"
            )
        if name in NAMES_OF_RESULTS:
            raise ConfigError(f"{kind.__name__}.{name} has a name of the results: rename it")
        others = {other for condition in one.read_if for other in condition}
        if unknown := sorted(others - {*declared} - _READ_IF_THERE):
            raise ConfigError(
                f"{kind.__name__}.{name} is read only where {', '.join(unknown)} has some value, "
                "but there is no such setting: correct read_if"
            )
    traced = [name for name, one in declared.items() if one.is_traced]
    static = [name for name in declared if name not in traced]
    jax.tree_util.register_dataclass(kind, data_fields=traced, meta_fields=static)
    KINDS[name_of_kind(kind)] = kind


def name_of_kind(kind: type[RunConfig]) -> str:
    """Returns the name that files have for a class of settings."""
    is_own = kind.__module__.split(".")[0] == __name__.split(".")[0]
    return kind.__name__ if is_own else f"{kind.__module__}.{kind.__qualname__}"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings that every training run has. Sweeps and reports read no others.

    A class of one's own is a frozen dataclass that derives from this one, or from `DQNConfig` or
    `PQNConfig`, and declares its settings with `setting`. Writing `x = 3` in it changes the
    parent's default. For a new name it declares a setting without help or range.

    Settings are a pytree. Floats are its leaves: they enter a compiled program as arguments, so
    that `jax.vmap` sweeps them. A program is compiled for each value of all other settings.
    """

    agent: str = setting("", "The named agent that the settings belong to.", group="run")
    env: str = setting("CartPole-v1", "The environment, by its name.", group="run")
    total_steps: int = setting(
        100_000,
        "Environment steps per seed, over all its environments, from the first one on.",
        group="run",
    )
    num_envs: int = setting(4, "Environments stepped side by side within one seed.", group="run")
    hidden_sizes: tuple[int, ...] = setting(
        (128, 128), "Widths of the network's hidden layers.", group="network"
    )
    layer_norm: bool = setting(
        False, "Whether hidden layers are normalised before their ReLU.", group="network"
    )
    discount: float = setting(0.99, "Gamma, per step of one environment.", **_FRACTION)
    learning_rate: float = setting(
        3e-4, "The optimiser's step size at the first gradient step.", above=0
    )
    learning_rate_end_fraction: float = setting(
        0.05,
        "Fraction of learning_rate left at the last gradient step, falling linearly; 1: constant.",
        **_FRACTION,
    )
    adam_epsilon: float = setting(
        1e-3,
        "What Adam, or RAdam, adds to its denominator; larger ones keep small gradients small.",
        above=0,
        read_if={"optimizer": "adam"},
    )
    max_grad_norm: float = setting(
        10.0,
        "Gradients are scaled down to this global norm; inf never does.",
        above=0,
        at_most=np.inf,
        remedy="inf turns clipping off",
    )
    epsilon_start: float = setting(
        1.0, "Probability of a random action at first.", read_if={"noisy": False}, **_EXPLORATION
    )
    epsilon_end: float = setting(
        0.04,
        "Probability of a random action once exploration has decayed.",
        read_if=({"noisy": False}, {"td_error": "expected_sarsa"}),
        **_EXPLORATION,
    )
    epsilon_fraction: float = setting(
        0.2,
        "Fraction of total_steps over which epsilon falls in a straight line.",
        read_if={"noisy": False, "epsilon_schedule": "linear"},
        **_EXPLORATION,
    )
    eval_interval: int = setting(
        5_000,
        "Environment steps between evaluations; one before learning and one at the end come on "
        "top, and are the only ones if this is longer than the run.",
        group="evaluation",
    )
    eval_episodes: int = setting(
        100,
        "Greedy episodes per evaluation and seed; their steps do not count as training.",
        group="evaluation",
    )

    def __post_init__(self) -> None:
        kind: Any = type(self)
        _register(kind)
        if "agent" not in vars(kind) and self.agent == kind.agent:
            # A class of one's own has its parent's default, and not its parent's name.
            object.__setattr__(self, "agent", "")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Registers the class where a pickle brings the first settings of it into a process."""
        vars(self).update(state)
        self.__post_init__()

    @property
    def prefill_steps(self) -> int:
        """Environment steps before anything is learned."""
        return 0

    @property
    def steps_per_update(self) -> int:
        """Environment steps (of all environments) between rounds of updates."""
        return self.num_envs

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps in each round of updates."""
        return 1

    @property
    def num_iterations(self) -> int:
        """Rounds of acting and learning in a run."""
        return (self.total_steps - self.prefill_steps) // self.steps_per_update

    @property
    def num_updates(self) -> int:
        """Gradient steps in a run."""
        return self.num_iterations * self.updates_per_iteration

    def validate(self) -> None:
        """Refuses settings that cannot be kept, on concrete values, before anything is traced.

        Raises:
          ConfigError: with every setting at fault, its value, what is allowed, and the remedy.
        """
        declared = settings_of(type(self)).values()
        problems = [p for one in declared if (p := one.problem(getattr(self, one.name)))]
        # The relations divide by these numbers.
        if problems := problems or [*self.problems_together()]:
            raise ConfigError("\n".join(problems))
        environments.make(self.env)

    def problems_together(self) -> Iterator[str]:
        """Yields what settings that are allowed each by itself make wrong together."""
        if self.total_steps // self.eval_interval > _MOST_EVALUATIONS:
            yield (
                f"eval_interval ({self.eval_interval}) makes more than {_MOST_EVALUATIONS:,} "
                f"evaluations of total_steps ({self.total_steps}): raise it"
            )

    def multiple_problems(self, name: str, of: str, base: int) -> Iterator[str]:
        """Yields what is wrong with a setting that is no multiple of a number, called `of`."""
        value = getattr(self, name)
        if value % base:
            below = value // base * base
            near = f"{below} or {below + base}" if below else below + base
            yield f"{name} ({value}) must be a multiple of {of} ({base}): try {near}"

    def whole_iteration_problems(self, of: str) -> Iterator[str]:
        """Yields what keeps a run from being whole iterations, whose length is called `of`."""
        # Evaluations and the last step then fall on the end of an iteration.
        for name in ("eval_interval", "prefill_steps", "total_steps"):
            yield from self.multiple_problems(name, of, self.steps_per_update)
        if self.num_updates > LARGEST_INT:
            yield (
                f"the gradient steps of the run ({self.num_updates}) must be at most "
                f"{LARGEST_INT}: lower total_steps or the gradient steps of each iteration"
            )


def ensure_kind(config: Any, kind: type[RunConfig]) -> None:
    """Refuses settings of another kind than an experiment takes, with a `ConfigError`."""
    if not isinstance(config, kind):
        raise ConfigError(
            f"the experiment takes settings of {kind.__name__}, and not of "
            f"{type(config).__name__}: give the one, or train with another experiment"
        )


def reserved_names() -> frozenset[str]:
    """Returns the names that no metric of a loss may have: those of results and of all settings."""
    return NAMES_OF_RESULTS.union(*map(settings_of, KINDS.values()))
