"""Defaults for each task: the settings in which an agent differs there from its own defaults.

An agent's own defaults are tuned for CartPole-v1. Each entry was found on seeds 0 to 9, by the
command that stands above it; docs/benchmarks.md has its returns on other seeds.
"""

from collections.abc import Mapping
from typing import Any

ALL = ""  # stands for every agent that has these settings

# By task, without what stands behind `?` in its name, and by agent; its own go before those of ALL.
TUNED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {}


def settings_for(env: str, agent: str) -> dict[str, Any]:
    """Returns the settings by name that were found for an agent on a task; none are empty."""
    of_task = TUNED.get(env.partition("?")[0], {})
    return {**of_task.get(ALL, {}), **of_task.get(agent, {})}
