"""Declares settings and flags once: type, default, help, range, and whether traced or static."""

import dataclasses
import functools
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from purejaxdqn.checks import ConfigError, ensure
from purejaxdqn.training.schedules import Changing

Group = Literal[  # the headings of `--help`, in their order
    "run", "agent", "exploration", "replay", "network", "evaluation", "sweep", "machines"
]
Condition = Mapping[str, Any]  # settings by name, with the value, or values, that each has to have

LARGEST_INT = 2**31 - 1
_SINGLE = np.finfo(np.float32)  # the precision in which floats enter a program
_WIDEST = 10**6  # units of a layer
PATH = "a path, such as results/a, without ~, :// or blanks at its ends, and not the root"

# The diagnostics of a learner by name, with the attributes that they have in a results file.
NUM_STATES = 256  # on which networks are measured; no effective rank can be larger
TABULAR_DIAGNOSTICS = ("value_error", "optimal_actions", "true_action_gap")  # of small tasks alone
_RETURNS = ("value_bias", "value_error", "true_action_gap")
DIAGNOSTICS: dict[str, dict[str, str]] = {
    name: {"long_name": text, "units": "discounted return" if name in _RETURNS else "1"}
    for name, text in {
        "value_bias": "value minus discounted Monte-Carlo return, over greedy episodes",
        "dormant_units": "share of hidden units at most 0.025 times as active as their layer's "
        "mean",
        "effective_rank": f"effective rank of the features of {NUM_STATES} states (delta 0.01)",
        "gradient_norm": "global norm of a batch's gradient before clipping, mean over batches",
        "policy_churn": "share of states with another greedy action than at the step before",
        "value_error": "mean absolute difference to the optimal values, over states and actions",
        "optimal_actions": "share of all states whose greedy action is optimal",
        "true_action_gap": "best optimal value minus the next lower one, mean over all states",
    }.items()
}


def is_path(value: Any) -> bool:
    """Tells whether a value can name a file or folder to write; no address, `~`, or blank end."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else b""
    if not isinstance(text, str) or not text.isprintable() or text != text.strip():
        return False  # such as NUL, which no path may have, or a line's end
    is_local = bool(text) and not text.startswith("~") and "://" not in text
    return is_local and os.path.abspath(text).strip(os.path.sep) != ""


class Drawn(NamedTuple):
    """A distribution that a text names."""

    kind: str  # "uniform" or "loguniform"
    low: float
    high: float

    def freeze(self) -> Any:
        """Makes the frozen distribution of `scipy.stats`, which takes half a second to import."""
        from scipy import stats

        if self.kind == "uniform":
            return stats.uniform(self.low, self.high - self.low)
        return stats.loguniform(self.low, self.high)


def read_distribution(text: str) -> Drawn:
    """Reads a text such as "uniform:0.9:1"; else raises a `ValueError` or a `KeyError`."""
    word, *limits = text.split(":")
    low, high = map(float, limits)
    least = {"uniform": -np.inf, "loguniform": 0.0}[word]
    if not least < low < high < np.inf:
        raise ValueError
    return Drawn(word, low, high)


# By type: what a value, or each part of a tuple, has to be, and how a message calls it.
_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda x: isinstance(x, bool), "True or False"),
    str: (lambda x: isinstance(x, str), "a name"),
    Path: (is_path, PATH),
    tuple[str, ...]: (lambda part: isinstance(part, str), "a tuple of names"),
    tuple[int, ...]: (lambda n: type(n) is int and n > 0, "a tuple of whole numbers of at least 1"),
}
_TYPES = (int, float, *_CHECKS)


class Setting(NamedTuple):
    """What is declared of a setting: see `setting`."""

    name: str
    type: Any  # one of `_TYPES`, or a Literal of texts
    default: Any
    help: str = ""
    group: Group = "agent"
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    remedy: str = ""  # how a message ends
    is_traced: bool = False  # an argument of the compiled program; static otherwise
    may_change: bool = False  # whether it may be a schedule, over gradient steps
    read_if: tuple[Condition, ...] = ()  # read where one of them holds; always without any

    def __str__(self) -> str:
        return self.name

    def problem(self, value: Any) -> str | None:
        """Says what is wrong with a value and what is allowed; None where nothing is wrong."""
        if value is None and self.default is None:
            return None
        if isinstance(value, Changing):
            return self._problem_of_schedule(value)
        if self.type is int:
            return self._problem_of_int(value)
        if self.type is float:
            return self._problem_of_float(value)
        choices = get_args(self.type)
        by_default = (choices.__contains__, f"one of {', '.join(map(str, choices))}")
        is_allowed, wanted = _CHECKS.get(self.type, by_default)
        is_one = is_allowed(value)
        if typing.get_origin(self.type) is tuple:
            is_one = isinstance(value, tuple) and all(map(is_allowed, value))
            if is_one and int in choices and max(value, default=0) > _WIDEST:
                is_one, wanted = False, f"at most {_WIDEST:,} each"
        return None if is_one else f"{self} ({value!r:.60}) must be {wanted}"

    def read_only_where(self) -> str:
        """Says in words where the setting is read, such as "prioritised"; empty for everywhere."""

        def words(name: str, wanted: Any) -> str:
            return name if wanted is True else f"{name} {' or '.join(map(str, _values(wanted)))}"

        return ", or ".join(
            " and ".join(words(*item) for item in condition.items()) for condition in self.read_if
        )

    def is_read(self, config: Any) -> bool:
        """Tells whether the other settings leave this one any effect."""
        return not self.read_if or any(
            all(getattr(config, n, _values(v)[0]) in _values(v) for n, v in condition.items())
            for condition in self.read_if
        )

    def _problem_of_schedule(self, value: Changing) -> str | None:
        if not self.may_change:
            return (
                f"{self} ({value}) must be one value, and no schedule: it is read once, or is an "
                "end of a schedule itself"
            )
        if problem := value.problem():
            return f"{self} ({value}) must {problem}"
        if value.duration > LARGEST_INT:
            return f"{self} ({value}) must last at most {LARGEST_INT} gradient steps"
        return self.problem(value.start) or self.problem(value.end)

    def _problem_of_int(self, value: Any) -> str | None:
        least = 1 if self.at_least is None else self.at_least
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{self} ({value!r}) must be a whole number of at least {least}"
        if value < least:
            whole = "a whole number of " if least == 1 else ""
            return f"{self} ({value}) must be {whole}at least {least}{self.remedy}"
        most, why = self.at_most, self.remedy
        if most is None:
            most, why = LARGEST_INT, ": counters are 32 bits wide"
        return f"{self} ({value}) must be at most {most}{why}" if value > most else None

    def _problem_of_float(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            return f"{self} ({value!r}) must be a number"
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            return f"{self} must be at most {sys.float_info.max:.1e}"
        low = -float(_SINGLE.max) if self.at_least is None else self.at_least
        high = float(_SINGLE.max) if self.at_most is None else self.at_most
        limits = [] if self.at_least is None else [f"at least {low:g}"]
        if self.above is not None:
            limits = ["positive" if self.above == 0 else f"above {self.above:g}"]
            next_one = np.nextafter(np.float32(self.above), np.float32(np.inf))
            low = float(_SINGLE.tiny if self.above == 0 else next_one)
        if low <= value <= high:
            return None
        limits += ["finite" if self.at_most is None else f"at most {high:g}"]
        allowed = f"be {' and '.join(limits)}, also in single precision ({low:.1e} to {high:.1e})"
        if self.at_least is not None and self.at_most is not None:
            allowed = f"lie between {low:g} and {high:g}"
        return f"{self} ({value}) must {allowed}{self.remedy}"


def _values(wanted: Any) -> tuple[Any, ...]:
    return wanted if isinstance(wanted, tuple) else (wanted,)


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
    may_change: bool | None = None,
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
      may_change: whether it may be a schedule over gradient steps, as of `schedules.linear`; by
        default floats that are arguments may. An experiment reads them at `config.at(num_updates)`.
      read_if: settings by name with the value, or a tuple of values, that each has to have for this
        one to be read; a tuple of such conditions asks for any of them.
    """
    ensure(isinstance(help, str), "help", help, "a text")
    ensure(group in get_args(Group), "group", group, f"one of {', '.join(get_args(Group))}")
    for name, limit in {"at_least": at_least, "at_most": at_most, "above": above}.items():
        is_number = isinstance(limit, int | float) and limit == limit
        ensure(limit is None or is_number, name, limit, "a number: leave it out for no limit")
    conditions = _values(read_if)
    ensure(all(isinstance(x, Mapping) for x in conditions), "read_if", read_if, "settings by name")
    remedy = f": {remedy}" if remedy else ""
    declared = Setting("", None, default, help, group, at_least, at_most, above, remedy)
    declared = declared._replace(read_if=conditions)
    how = {"declared": declared, "static": static, "may_change": may_change}
    return dataclasses.field(default=default, metadata=how)


@functools.cache
def _settings_of(kind: Any) -> dict[str, Setting]:
    """Returns what is declared of each setting of a class, by name, or refuses its declaration."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        if field.metadata.get("is_no_flag"):
            continue
        name, annotation = f"{kind.__name__}.{field.name}", hints[field.name]
        inner = {*get_args(annotation)} - {types.NoneType}
        if isinstance(annotation, types.UnionType) and len(inner) == 1:
            (annotation,) = inner
        choices = get_args(annotation) if typing.get_origin(annotation) is Literal else ()
        if annotation not in _TYPES and not (choices and all(isinstance(x, str) for x in choices)):
            raise ConfigError(
                f"{name} ({annotation}) must be of type bool, int, float, str, tuple[int, ...] or "
                "a Literal of texts"
            )
        if field.default is dataclasses.MISSING:
            raise ConfigError(f"{name} must have a default: give it one, as every setting has")
        # What the class itself or the nearest parent has declared.
        fields = (vars(x).get("__dataclass_fields__", {}).get(field.name) for x in kind.__mro__)
        metadata: Any = next((f.metadata for f in fields if f and "declared" in f.metadata), {})
        static = metadata.get("static")
        if static is False and annotation is not float:
            raise ConfigError(
                f"{name} (static=False) must be a float to be an argument of the compiled program: "
                "leave static out"
            )
        is_traced, may_change = annotation is float and not static, metadata.get("may_change")
        found[field.name] = metadata.get("declared", Setting("", None, None))._replace(
            name=field.name,
            type=annotation,
            default=field.default,
            is_traced=is_traced,
            may_change=is_traced if may_change is None else may_change,
        )
    return found


# mypy takes no class of frozen dataclasses for hashable.
settings_of: Callable[[Any], dict[str, Setting]] = _settings_of
