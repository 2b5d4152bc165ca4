"""Reads names of environments, with their settings: "MinAtar/Breakout-v1?sticky_actions=0".

What stands behind `?` are settings of the environment itself, and wrappers, which are put around it
in their order. Names are read without JAX.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from purejaxdqn.checks import ConfigError, nearest_names


class Option(NamedTuple):
    """A setting in a name: what its text may be, and what it is good for."""

    read: Callable[[str], Any]  # of the text behind "="; a ValueError refuses it
    wanted: str  # what a message says that it must be
    help: str = ""


Options = Mapping[str, Option]  # by name
Given = list[tuple[str, str]]  # settings as they stand in a name


def number(low: float = -math.inf, high: float = math.inf, help: str = "") -> Option:
    """Makes an option for a finite number from `low` to `high`."""

    def read(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError
        return value

    limits = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
    return Option(read, " and ".join([*limits, "a finite number"]), help)


def whole(at_least: int = 1, help: str = "", at_most: int = 2**31 - 1) -> Option:
    """Makes an option for a whole number from `at_least` to `at_most`."""

    def read(text: str) -> int:
        value = int(text)
        if not at_least <= value <= at_most:
            raise ValueError
        return value

    end = f" and at most {at_most:,}" if at_most < 2**31 - 1 else ""
    return Option(read, f"a whole number of at least {at_least}{end}", help)


def flag(help: str = "") -> Option:
    """Makes an option that is on or off."""
    words = {"1": True, "true": True, "0": False, "false": False}

    def read(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]

    return Option(read, "1 or 0", help)


def positions(help: str = "") -> Option:
    """Makes an option for whole numbers of at least 0, each at most once, such as "1,3"."""

    def read(text: str) -> tuple[int, ...]:
        values = tuple(map(int, text.split(",")))
        if min(values) < 0 or len(set(values)) < len(values):
            raise ValueError
        return values

    return Option(read, "different whole numbers of at least 0, such as 1,3", help)


def text(help: str = "") -> Option:
    """Makes an option for any text that is not empty."""

    def read(value: str) -> str:
        if not value.strip():
            raise ValueError
        return value

    return Option(read, "a text", help)


# Each is the function of this name in `environments.wrappers`, of an environment and this value.
WRAPPERS: Options = {
    "time_limit": whole(1, "steps after which an episode is cut"),
    "sticky_actions": number(0, 1, "probability that the last action is taken again instead"),
    "scale_reward": number(1e-9, 1e9, "factor of rewards in training; evaluations have none"),
    "clip_reward": number(1e-9, 1e9, "bound of rewards in training, also from below, such as 1"),
    "mask_observation": positions("places of an observation that are always 0, such as 1,3"),
    "stack_frames": whole(1, "how many of the last observations are shown as one", 1_000),
    "normalize_observations": flag("observations with a running mean of 0 and variance of 1"),
}


HELP = (
    "The environment, by its name. Behind a ? stand settings of its own, and wrappers: "
    f"{', '.join(WRAPPERS)}; `purejaxdqn environments` lists all."
)


def split(name: str) -> tuple[str, Given]:
    """Splits a name into that of the environment, and the settings behind `?`.

    Raises:
      ConfigError: for settings that are no `setting=value`, or one that stands there twice.
    """
    base, mark, query = name.partition("?")
    if not mark:
        return base, []
    given = []
    for part in query.split("&"):
        setting, equals, value = part.partition("=")
        if not (setting and equals and value):
            raise ConfigError(
                f"environment ({name!r}): {part!r} behind the ? must be setting=value, and several "
                f"of them be joined by &, such as {base}?sticky_actions=0.25&time_limit=1000"
            )
        given.append((setting, value))
    twice = {setting for setting, _ in given if sum(setting == one for one, _ in given) > 1}
    if twice:
        raise ConfigError(
            f"environment ({name!r}): {', '.join(sorted(twice))} stands there twice, and must "
            "stand there once: leave one out"
        )
    return base, given


def read_settings(
    name: str, given: Iterable[tuple[str, str]], own: Options
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Reads the settings in a name: those of the environment itself, and the wrappers in order.

    Raises:
      ConfigError: for one that neither has, with the nearest names, or whose value is not allowed.
    """
    settings, wrappers = {}, []
    known = {**WRAPPERS, **own}
    for setting, value in given:
        if setting not in known:
            raise ConfigError(
                f"environment ({name!r}): {setting!r} must be one of "
                f"{nearest_names(setting, known)}; `purejaxdqn environments` lists them"
            )
        option = known[setting]
        try:
            read = option.read(value)
        except ValueError:
            raise ConfigError(
                f"environment ({name!r}): {setting} ({value!r:.60}) must be {option.wanted}"
            ) from None
        if setting in own:
            settings[setting] = read
        else:
            wrappers.append((setting, read))
    return settings, wrappers


def options_of(make: Callable[..., Any]) -> Options:
    """Finds the settings of a function that makes an environment: its arguments with defaults."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # of a function that does not say what it takes
        return {}
    return options_for({parameter.name: parameter.default for parameter in parameters})


def options_for(defaults: Mapping[str, Any]) -> Options:
    """Makes an option of the same kind for each bool, number and text among some values."""
    kinds = {bool: flag(), int: whole(0), float: number(), str: text()}
    return {name: kinds[type(x)] for name, x in defaults.items() if type(x) in kinds}
