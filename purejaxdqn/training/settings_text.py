"""Settings as text: what a command line says of one, and all of them as JSON and back."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import numpy as np
from scipy import stats

from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.training.settings import DQNConfig, PQNConfig, RunConfig, field_types
from purejaxdqn.types import ConfigError

CONFIGS: dict[str, type[RunConfig]] = {"DQNConfig": DQNConfig, "PQNConfig": PQNConfig}
_DISTRIBUTIONS: dict[str, Callable[[float, float], Any]] = {
    "uniform": lambda low, high: stats.uniform(low, high - low),
    "loguniform": stats.loguniform,
}


def parse(name: str, text: str, kind: type[RunConfig]) -> Any:
    """A value of a setting, or a distribution over its values, as written on a command line.

    Args:
      name: the setting.
      text: such as "1e-3", "64x64", "true", or "loguniform:1e-5:1e-2".
      kind: the settings' class.

    Returns:
      The value, or a frozen distribution of `scipy.stats`.

    Raises:
      ConfigError: if it is neither.
    """
    annotation = field_types(kind)[name]
    word, *limits = text.split(":")
    if annotation is float and limits:
        return _distribution(name, text, word, limits)
    wanted: dict[Any, str] = {float: "a number, or a distribution such as loguniform:1e-5:1e-2"}
    wanted |= {int: "a whole number", bool: "true or false", str: "a name"}
    wanted |= {tuple[int, ...]: "whole numbers with x between them, such as 64x64"}
    try:
        if annotation is bool:
            return {"true": True, "false": False}[text.lower()]
        if annotation is int:
            return int(text.replace("_", ""))
        if annotation is float:
            return float(text)
        if get_origin(annotation) is tuple:
            return tuple(int(part) for part in text.split("x"))
        if get_origin(annotation) is Literal and text not in get_args(annotation):
            raise ConfigError(f"{name} ({text!r}) must be one of {', '.join(get_args(annotation))}")
        return text
    except (ValueError, KeyError) as error:
        raise (
            error
            if isinstance(error, ConfigError)
            else ConfigError(f"{name} ({text!r}) must be {wanted[annotation]}")
        ) from None


def _kind(name: str) -> type[RunConfig]:
    """A class of settings, by the name that `config_to_json` gives it."""
    module, _, attribute = name.rpartition(".")
    with contextlib.suppress(Exception):  # whatever a user's module may raise
        found = CONFIGS.get(name) or getattr(importlib.import_module(module), attribute)
        if isinstance(found, type) and issubclass(found, RunConfig):
            return found
    raise ConfigError(
        f"the settings' class {name} cannot be imported: give it, to rerun as config_class"
    )


def _distribution(name: str, text: str, word: str, limits: Sequence[str]) -> Any:
    example = "such as loguniform:1e-5:1e-2 or uniform:0.9:1"
    if word not in _DISTRIBUTIONS:
        raise ConfigError(
            f"{name} ({text!r}) must name one of {', '.join(_DISTRIBUTIONS)}, {example}"
        )
    try:
        low, high = map(float, limits)
    except ValueError:
        raise ConfigError(f"{name} ({text!r}) must have two limits, {example}") from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise ConfigError(
            f"{name} ({text!r}) must have finite limits, the lower one first, {example}"
        )
    if word == "loguniform" and low <= 0:
        raise ConfigError(f"{name} ({text!r}) must have limits above 0, {example}")
    return _DISTRIBUTIONS[word](low, high)


def by_name(config: RunConfig) -> dict[str, Any]:
    """All settings by name, as they are."""
    return {name: getattr(config, name) for name in field_types(type(config))}


def config_to_json(config: RunConfig) -> str:
    """All settings as JSON, for `config_from_json`; settings of a class of one's own too."""
    kind = type(config)
    is_own = CONFIGS.get(kind.__name__) is kind
    name = kind.__name__ if is_own else f"{kind.__module__}.{kind.__qualname__}"
    facts = {**by_name(config), "kind": name}
    return json.dumps(to_jsonable(facts), allow_nan=False)


def config_from_json(text: str, kind: type[RunConfig] | None = None) -> RunConfig:
    """What `config_to_json` wrote.

    Args:
      text: JSON.
      kind: the settings' class; by default the one that the text names.

    Raises:
      ConfigError: for settings of a class that cannot be imported, or does not have these.
    """
    facts = json.loads(text)
    name = facts.pop("kind")
    kind = _kind(name) if kind is None else kind
    types = field_types(kind)
    if unknown := [name for name in facts if name not in types]:
        raise ConfigError(
            f"{kind.__name__} has no {', '.join(unknown)}: it is another class than the one that "
            "was trained with"
        )
    floats = {name for name, annotation in types.items() if annotation is float}
    read: dict[str, Any] = {
        name: tuple(value)
        if isinstance(value, list)
        else float(value)  # also "inf"
        if name in floats
        else value
        for name, value in facts.items()
    }
    return kind(**read)
