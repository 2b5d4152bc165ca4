"""Agents by name: each is settings, and the experiment that trains with them.

A new agent is a few lines in `presets.py`, or a folder beside `dqn/` for another algorithm;
`registry.py` stays as it is. Nothing in the rooms below may know an agent.
"""

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

__all__ = ["DEFAULT", "Agent", "configure", "experiment_of", "get", "names", "register", "train"]
