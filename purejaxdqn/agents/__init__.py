"""Agents by name: each is settings, and the experiment that trains with them."""

from purejaxdqn.agents.presets import (
    AGENTS,
    TUTORIAL,
    agent,
    configure,
    experiment,
    train_by_kind,
)

__all__ = ["AGENTS", "TUTORIAL", "agent", "configure", "experiment", "train_by_kind"]
