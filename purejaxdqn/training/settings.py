"""Declares the settings of a run, each once: type, default, help, range, way into programs.

A class of settings is a frozen dataclass derived from `RunConfig`. It is a pytree. Its floats are
the leaves: they enter a compiled program as arguments, so that `jax.vmap` sweeps them. All other
settings are static: a program is compiled for each of their values.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from purejaxdqn import environments
from purejaxdqn.training.diagnostics import DIAGNOSTICS
from purejaxdqn.types import ConfigError

GROUPS = ("run", "agent", "exploration", "replay", "network", "evaluation")  # as help shows them
Group = Literal["run", "agent", "exploration", "replay", "network", "evaluation"]
Condition = Mapping[str, Any]  # settings by name, with the value that each has to have

_SINGLE = np.finfo(np.float32)  # the precision in which floats enter a program
_LARGEST_INT = 2**31 - 1
_WIDEST = 10**6  # units of a layer
_MOST_EVALUATIONS = 10**5  # of a run; they are kept one by one


class Setting(NamedTuple):
    """What is declared of a setting.

    Attributes:
      name: of the field.
      type: bool, int, float, str, `tuple[int, ...]` or a `Literal`.
      default: its value where none is given.
      help: what it is, with its unit.
      group: the heading that `--help` shows it under.
      at_least: the smallest number allowed.
      at_most: the largest number allowed.
      above: a number that the value must exceed, also in single precision.
      remedy: what to do about a value that is not allowed.
      is_traced: whether it is an argument of the compiled program; static otherwise.
      read_if: the setting is read where one of these conditions holds; always without any.
    """

    name: str
    type: Any
    default: Any
    help: str = ""
    group: Group = "agent"
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    remedy: str = ""
    is_traced: bool = False
    read_if: tuple[Condition, ...] = ()

    def problem(self, value: Any) -> str | None:
        """Says what is wrong with a value and what is allowed; None where nothing is wrong."""
        if self.type is bool:
            return None if isinstance(value, bool) else f"{self} ({value!r}) must be True or False"
        if self.type is int:
            return self._problem_of_int(value)
        if self.type is float:
            return self._problem_of_float(value)
        if self.type is str:
            return None if isinstance(value, str) else f"{self} ({value!r}) must be a name"
        if typing.get_origin(self.type) is Literal:
            allowed = typing.get_args(self.type)
            if value not in allowed:
                return f"{self} ({value!r}) must be one of {', '.join(map(str, allowed))}"
            return None
        if not isinstance(value, tuple) or not all(
            type(size) is int and size > 0 for size in value
        ):
            return f"{self} ({value!r}) must be a tuple of whole numbers of at least 1"
        if max(value, default=0) > _WIDEST:
            return f"{self} ({value!r}) must be at most {_WIDEST:,} each"
        return None

    def read_only_where(self) -> str:
        """Says in words where the setting is read, such as "prioritised"; empty for everywhere."""

        def words(condition: Condition) -> str:
            parts = []
            for name, value in condition.items():
                values = value if isinstance(value, tuple) else (value,)
                shown = " or ".join(map(str, values))
                parts.append(name if value is True else f"{name} {shown}")
            return " and ".join(parts)

        return ", or ".join(map(words, self.read_if))

    def is_read(self, config: RunConfig) -> bool:
        """Says whether the other settings leave this one any effect."""

        def holds(condition: Condition) -> bool:
            return all(
                getattr(config, name) in (wanted if isinstance(wanted, tuple) else (wanted,))
                for name, wanted in condition.items()
            )

        return not self.read_if or any(map(holds, self.read_if))

    def __str__(self) -> str:
        return self.name

    def _problem_of_int(self, value: Any) -> str | None:
        least = 1 if self.at_least is None else self.at_least
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{self} ({value!r}) must be a whole number of at least {least}"
        if value < least:
            whole = "a whole number of " if least == 1 else ""
            return f"{self} ({value!r}) must be {whole}at least {least}{self._remedy()}"
        if self.at_most is not None and value > self.at_most:
            return f"{self} ({value}) must be at most {self.at_most}{self._remedy()}"
        if value > _LARGEST_INT:
            return f"{self} ({value}) must be at most {_LARGEST_INT}: counters are 32 bits wide"
        return None

    def _problem_of_float(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            return f"{self} ({value!r}) must be a number"
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            return f"{self} must be at most {sys.float_info.max:.1e}"
        largest = float(_SINGLE.max)
        low, high = self.at_least, self.at_most
        if self.above is not None:
            low = float(np.nextafter(np.float32(self.above), np.float32(np.inf)))
            low = max(low, float(_SINGLE.tiny)) if self.above == 0 else low
        if (-largest if low is None else low) <= value <= (largest if high is None else high):
            return None
        return f"{self} ({value}) must {self._allowed(low, high)}{self._remedy()}"

    def _allowed(self, low: float | None, high: float | None) -> str:
        """Says which floats are allowed; `low` is the least one, also where `above` is declared."""
        single = "also in single precision"
        if self.above is None:
            if low is not None and high is not None:
                return f"lie between {low:g} and {high:g}"
            limits = [] if low is None else [f"at least {low:g}"]
            limits += [] if high is None else [f"at most {high:g}"]
            return f"be {' and '.join(limits or ['finite'])}, {single} (up to {_SINGLE.max:.1e})"
        positive = "positive" if self.above == 0 else f"above {self.above:g}"
        if high == np.inf:
            return f"be {positive}, {single} (from {low:.1e})"
        if high is not None:
            return f"be above {self.above:g} (from {low:.1e}) and at most {high:g}"
        return (
            f"be {positive} and finite, such as {self.default:g}, {single} ({low:.1e} to "
            f"{_SINGLE.max:.1e})"
        )

    def _remedy(self) -> str:
        return f": {self.remedy}" if self.remedy else ""


def setting(
    default: Any,
    help: str,
    *,
    group: Group = "agent",
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    remedy: str = "",
    static: bool | None = None,
    read_if: Condition | tuple[Condition, ...] = (),
) -> Any:
    """Declares a setting, as the default of a dataclass field.

    Args:
      default: its value where none is given.
      help: what it is, with its unit; where it is read follows from `read_if`.
      group: the heading that `--help` shows it under.
      at_least: the smallest number allowed; whole numbers start at 1 without it.
      at_most: the largest number allowed; infinity allows infinity.
      above: a number that the value must exceed, also in single precision.
      remedy: what to do about a value that is not allowed, if the range does not say it.
      static: whether a program is compiled for each value. By default floats are arguments of the
        compiled program, and everything else is static; only floats can be arguments.
      read_if: settings by name with the value, or a tuple of values, that each has to have for this
        one to be read; a tuple of such conditions asks for any of them.

    Returns:
      The field.
    """
    conditions = (read_if,) if isinstance(read_if, Mapping) else read_if
    declared = {
        "help": help,
        "group": group,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "remedy": remedy,
        "read_if": conditions,
    }
    return dataclasses.field(default=default, metadata={"declared": declared, "static": static})


def settings_of(kind: type[RunConfig]) -> dict[str, Setting]:
    """Gives what is declared of each setting of a class, by name.

    Raises:
      ConfigError: for a field without a default, or of a type that a setting cannot have.
    """
    untyped: Any = kind  # mypy takes no class of frozen dataclasses for hashable
    return _settings_of(untyped)


@functools.cache
def _settings_of(kind: Any) -> dict[str, Setting]:
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        annotation = hints[field.name]
        is_simple = annotation in (bool, int, float, str, tuple[int, ...])
        if not is_simple and typing.get_origin(annotation) is not Literal:
            raise ConfigError(
                f"{kind.__name__}.{field.name} ({annotation}) must be of type bool, int, float, "
                "str, tuple[int, ...] or Literal"
            )
        if field.default is dataclasses.MISSING:
            raise ConfigError(
                f"{kind.__name__}.{field.name} must have a default: give it one, as every setting "
                "has"
            )
        metadata = _declaration(kind, field.name)
        static = metadata.get("static")
        if static is False and annotation is not float:
            raise ConfigError(
                f"{kind.__name__}.{field.name} (static=False) must be a float to be an argument of "
                "the compiled program: leave static out"
            )
        found[field.name] = Setting(
            field.name,
            annotation,
            field.default,
            is_traced=annotation is float and not static,
            **metadata.get("declared", {}),
        )
    return found


def _declaration(kind: type[RunConfig], name: str) -> Mapping[str, Any]:
    """Gives what was declared of a field, by the class itself or by the nearest parent."""
    for base in kind.__mro__:
        field = vars(base).get("__dataclass_fields__", {}).get(name)
        if field is not None and "declared" in field.metadata:
            return field.metadata  # type: ignore[no-any-return]
    return {}


_KINDS: dict[str, type[RunConfig]] = {}  # every class of settings that was used, by its whole name


@functools.cache
def _register(kind: type[RunConfig]) -> None:
    """Makes a class of settings a pytree whose leaves are its traced settings.

    Raises:
      ConfigError: if it declares settings but is no frozen dataclass.
    """
    is_dataclass = "__dataclass_fields__" in vars(kind)
    own = vars(kind).get("__annotations__", {})
    if (own and not is_dataclass) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(
            f"{kind.__name__} must be a frozen dataclass: put @dataclasses.dataclass(frozen=True) "
            "above the class"
        )
    declared = settings_of(kind)
    jax.tree_util.register_dataclass(
        kind,
        data_fields=[name for name, one in declared.items() if one.is_traced],
        meta_fields=[name for name, one in declared.items() if not one.is_traced],
    )
    _KINDS[name_of_kind(kind)] = kind


def name_of_kind(kind: type[RunConfig]) -> str:
    """Gives the name that files have for a class of settings."""
    is_own = kind.__module__.split(".")[0] == __name__.split(".")[0]
    return kind.__name__ if is_own else f"{kind.__module__}.{kind.__qualname__}"


def known_kinds() -> Mapping[str, type[RunConfig]]:
    """Gives every class of settings that this process has used, by `name_of_kind`."""
    return types.MappingProxyType(_KINDS)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every training run sets, whatever it learns by; all that sweeps and reports ask for.

    A class of one's own derives from this one, or from `DQNConfig` or `PQNConfig`, and declares its
    settings with `setting`. A plain default changes the parent's default and nothing else. For a
    new name it declares a setting without help or range.
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
    discount: float = setting(0.99, "Gamma, per step of one environment.", at_least=0, at_most=1)
    learning_rate: float = setting(
        3e-4, "The optimiser's step size at the first gradient step.", above=0
    )
    learning_rate_end_fraction: float = setting(
        0.05,
        "Fraction of learning_rate left at the last gradient step, falling linearly; 1: constant.",
        at_least=0,
        at_most=1,
    )
    adam_epsilon: float = setting(
        1e-3,
        "What Adam, or RAdam, adds to its denominator; larger ones keep small gradients small.",
        above=0,
    )
    max_grad_norm: float = setting(
        10.0,
        "Gradients are scaled down to this global norm; inf never does.",
        above=0,
        at_most=np.inf,
        remedy="inf turns clipping off",
    )
    epsilon_start: float = setting(
        1.0, "Probability of a random action at first.", group="exploration", at_least=0, at_most=1
    )
    epsilon_end: float = setting(
        0.04,
        "Probability of a random action once exploration has decayed.",
        group="exploration",
        at_least=0,
        at_most=1,
    )
    epsilon_fraction: float = setting(
        0.2,
        "Fraction of total_steps over which epsilon falls in a straight line.",
        group="exploration",
        at_least=0,
        at_most=1,
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
        if not problems:  # the relations below divide by these numbers
            problems = [*self.problems_together()]
        if problems:
            raise ConfigError("\n".join(problems))
        environments.make(self.env)

    def problems_together(self) -> Iterator[str]:
        """Yields what settings that are allowed each by itself make wrong together."""
        if self.total_steps // self.eval_interval > _MOST_EVALUATIONS:
            yield (
                f"eval_interval ({self.eval_interval}) makes more than {_MOST_EVALUATIONS:,} "
                f"evaluations of total_steps ({self.total_steps}): raise it"
            )

    def not_a_multiple(self, name: str, of: str, base: int) -> Iterator[str]:
        """Yields what is wrong with a setting that is no multiple of a number, called `of`."""
        value = getattr(self, name)
        if value % base:
            below, above = value // base * base, (value // base + 1) * base
            nearest = f"{below} or {above}" if below else f"{above}"
            yield f"{name} ({value}) must be a multiple of {of} ({base}): try {nearest}"

    def iteration_problems(self, of: str) -> Iterator[str]:
        """Yields what keeps a run from being whole iterations, whose length is called `of`."""
        # So that every multiple of eval_interval, and the last step, fall on the end of an
        # iteration.
        for name in ("eval_interval", "prefill_steps", "total_steps"):
            yield from self.not_a_multiple(name, of, self.steps_per_update)
        if self.num_updates > _LARGEST_INT:
            yield (
                f"the gradient steps of the run ({self.num_updates}) must be at most "
                f"{_LARGEST_INT}: lower total_steps or the gradient steps of each iteration"
            )


def ensure_kind(config: Any, kind: type[RunConfig]) -> None:
    """Refuses settings that an experiment cannot take.

    Raises:
      ConfigError: if they are not of this kind.
    """
    if not isinstance(config, kind):
        raise ConfigError(
            f"the experiment takes settings of {kind.__name__}, and not of "
            f"{type(config).__name__}: give the one, or train with another experiment"
        )


# Names that results have for something else.
_NAMES_OF_RESULTS = frozenset(
    {"loss", "evaluation_return", "final_return", "training_return", "num_updates"}
    | {"gymnasium_return", "step", "seed", "episode"}
    | set(DIAGNOSTICS)
)


def reserved_names() -> frozenset[str]:
    """Gives the names that no metric of a loss may have: those of results, and of every setting."""
    return _NAMES_OF_RESULTS.union(*map(settings_of, _KINDS.values()))
