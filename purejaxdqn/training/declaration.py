"""Declares settings and flags once: type, default, help, range, and whether traced or static."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from purejaxdqn.types import ConfigError

Group = Literal[  # the headings of `--help`, in their order
    "run", "agent", "exploration", "replay", "network", "evaluation", "sweep", "machines"
]
Condition = Mapping[str, Any]  # settings by name, with the value that each has to have

_SINGLE = np.finfo(np.float32)  # the precision in which floats enter a program
LARGEST_INT = 2**31 - 1
_WIDEST = 10**6  # units of a layer


class Setting(NamedTuple):
    """What is declared of a setting.

    Attributes:
      name: of the field.
      type: bool, int, float, str, Path, `tuple[int, ...]`, `tuple[str, ...]` or a `Literal`.
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
        if value is None and self.default is None:
            return None
        if self.type is bool:
            return None if isinstance(value, bool) else f"{self} ({value!r}) must be True or False"
        if self.type is int:
            return self._problem_of_int(value)
        if self.type is float:
            return self._problem_of_float(value)
        if self.type is str:
            return None if isinstance(value, str) else f"{self} ({value!r:.60}) must be a name"
        if self.type is Path:
            is_path = isinstance(value, (str, os.PathLike)) and str(value)
            return None if is_path else f"{self} ({value!r:.60}) must be a path, such as results/a"
        if self.type == tuple[str, ...]:
            is_names = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
            return None if is_names else f"{self} ({value!r:.60}) must be a tuple of names"
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

    def is_read(self, config: Any) -> bool:
        """Tells whether the other settings leave this one any effect."""

        def holds(condition: Condition) -> bool:
            return all(
                getattr(config, name) in (wanted if isinstance(wanted, tuple) else (wanted,))
                for name, wanted in condition.items()
                if hasattr(config, name)
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
        if self.at_most is None and value > LARGEST_INT:
            return f"{self} ({value}) must be at most {LARGEST_INT}: counters are 32 bits wide"
        if self.at_most is not None and value > self.at_most:
            return f"{self} ({value}) must be at most {self.at_most}{self._remedy()}"
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
        """Says which floats are allowed.

        `low` is the smallest allowed float, already raised above `above`.
        """
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


def settings_of(kind: type) -> dict[str, Setting]:
    """Returns what is declared of each setting of a class, by name.

    Raises:
      ConfigError: for a field without a default, or of a type that a setting cannot have.
    """
    untyped: Any = kind  # mypy takes no class of frozen dataclasses for hashable
    return _settings_of(untyped)


_TYPES = (bool, int, float, str, Path, tuple[int, ...], tuple[str, ...])


@functools.cache
def _settings_of(kind: Any) -> dict[str, Setting]:
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        name = f"{kind.__name__}.{field.name}"
        if field.metadata.get("is_no_flag"):
            continue
        metadata = _declaration(kind, field.name)
        annotation = hints[field.name]
        if isinstance(annotation, types.UnionType) and types.NoneType in typing.get_args(
            annotation
        ):
            (annotation,) = {*typing.get_args(annotation)} - {types.NoneType}
        is_choice = typing.get_origin(annotation) is Literal
        if annotation not in _TYPES and not is_choice:
            raise ConfigError(
                f"{name} ({annotation}) must be of type bool, int, float, str, tuple[int, ...] or "
                "Literal"
            )
        if not all(isinstance(choice, str) for choice in typing.get_args(annotation) if is_choice):
            raise ConfigError(f"{name} ({annotation}) must be a Literal of texts")
        if field.default is dataclasses.MISSING:
            raise ConfigError(f"{name} must have a default: give it one, as every setting has")
        static = metadata.get("static")
        if static is False and annotation is not float:
            raise ConfigError(
                f"{name} (static=False) must be a float to be an argument of the compiled program: "
                "leave static out"
            )
        found[field.name] = Setting(
            field.name,
            annotation,
            field.default,
            is_traced=annotation is float and not static,
            **metadata.get("declared", {}),
        )
    return found


def _declaration(kind: type, name: str) -> Mapping[str, Any]:
    """Returns what was declared of a field, by the class itself or by the nearest parent."""
    for base in kind.__mro__:
        field = vars(base).get("__dataclass_fields__", {}).get(name)
        if field is not None and "declared" in field.metadata:
            return field.metadata  # type: ignore[no-any-return]
    return {}
