"""Reads settings from a command line, and writes them as JSON and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
from scipy import stats

from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.training.declaration import Setting, settings_of
from purejaxdqn.training.settings import KINDS, RunConfig, name_of_kind
from purejaxdqn.types import ConfigError

_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    int: (lambda text: int(text.replace("_", "")), "a whole number"),
    float: (float, "a number"),
    str: (str, "a name"),
    Path: (Path, "a path"),
    tuple[int, ...]: (
        lambda text: () if text == "none" else tuple(int(part) for part in text.split("x")),
        "whole numbers with x between them, such as 64x64",
    ),
}


def parse(setting: Setting, text: str, may_be_drawn: bool = False) -> Any:
    """Reads a value of a setting, or a distribution over its values, as a command line has it.

    Args:
      setting: the declaration of the setting.
      text: such as "1e-3", "64x64", "true", or "loguniform:1e-5:1e-2".
      may_be_drawn: whether a float may be a distribution.

    Returns:
      The value, or a frozen distribution of `scipy.stats`.

    Raises:
      ConfigError: if the text is neither.
    """
    if get_origin(setting.type) is Literal:
        choices = get_args(setting.type)
        read, wanted = {name: name for name in choices}.__getitem__, f"one of {', '.join(choices)}"
    else:
        read, wanted = _READERS[setting.type]
    if setting.type is float and may_be_drawn:
        wanted += ", or a distribution such as loguniform:1e-5:1e-2"
        if ":" in text:
            read = _read_distribution
            wanted = (
                "one of uniform, loguniform with two limits, such as uniform:0.9:1 or "
                "loguniform:1e-5:1e-2: finite limits, the lower one first, of loguniform above 0"
            )
    try:
        return read(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{setting} ({text!r}) must be {wanted}") from None


def _read_distribution(text: str) -> Any:
    word, *limits = text.split(":")
    low, high = map(float, limits)
    least = {"uniform": -np.inf, "loguniform": 0.0}[word]
    if not least < low < high < np.inf:
        raise ValueError
    return stats.uniform(low, high - low) if word == "uniform" else stats.loguniform(low, high)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Lists all settings by name."""
    return {name: getattr(config, name) for name in settings_of(type(config))}


def config_to_json(config: RunConfig) -> str:
    """Writes all settings as JSON, for `config_from_json`."""
    facts = {**config_to_dict(config), "kind": name_of_kind(type(config))}
    return json.dumps(to_jsonable(facts), allow_nan=False)


def config_from_json(text: str, kind: type[RunConfig] | None = None) -> RunConfig:
    """Reads what `config_to_json` wrote.

    Args:
      text: JSON.
      kind: the class of the settings; by default the one that the text names, which this process
        must have used: a file that names a class causes no import.

    Raises:
      ConfigError: for a class that this process has not used, or a setting that the class lacks.
    """
    facts = json.loads(text)
    name = facts.pop("kind")
    kind = kind or KINDS.get(name)
    if kind is None:
        raise ConfigError(
            f"the settings' class {name} is not known here: import the module that registers its "
            "agent (--import), or give the class, to rerun as config_class"
        )
    declared = settings_of(kind)
    if unknown := [name for name in facts if name not in declared]:
        raise ConfigError(
            f"{kind.__name__} has no {', '.join(unknown)}: it is another class than the one that "
            "was trained with"
        )
    for name, value in facts.items():
        if isinstance(value, list):
            facts[name] = tuple(value)
        elif declared[name].type is float:
            facts[name] = float(value)  # also "inf"
    return kind(**facts)
