"""Agents by name: each is settings, and the experiment that trains with them."""

import purejaxdqn.agents.presets  # noqa: F401 - registers the package's own
from purejaxdqn.agents.registry import (
    DEFAULT,
    Agent,
    configure,
    experiment_of,
    get,
    names,
    register,
    train,
)

__all__ = [
    "DEFAULT",
    "Agent",
    "configure",
    "experiment_of",
    "get",
    "names",
    "register",
    "train",
]
