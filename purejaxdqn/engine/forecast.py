"""Estimates how long a group of runs will train, from a short start."""

from __future__ import annotations

from collections.abc import Sequence

from purejaxdqn.engine.programs import Programs
from purejaxdqn.engine.rounds import evaluation_steps, train_round
from purejaxdqn.engine.run import Run
from purejaxdqn.training.settings import RunConfig

_MEASURED_SECONDS = 1.0  # of training


def estimate_round_seconds(programs: Programs, config: RunConfig, runs: Sequence[Run]) -> float:
    """Estimates how many seconds one round of runs takes, by training it for a second.

    All evaluations are taken to be as long as the first one.
    """
    evaluation_seconds, train_seconds, per_step = 0.0, 0.0, 0.0
    step = config.prefill_steps
    for event in train_round(programs, config, runs):
        if event.kept is None:
            if train_seconds:
                break
            evaluation_seconds = event.evaluation_seconds
            continue
        train_seconds += event.train_seconds
        per_step = event.train_seconds / (event.step - step)  # of the longest chunk yet
        step = event.step
        if train_seconds > _MEASURED_SECONDS:
            break
    seconds = per_step * (config.total_steps - config.prefill_steps)
    return seconds + len(evaluation_steps(config)) * evaluation_seconds


def format_duration(seconds: float) -> str:
    """Formats a time, such as "about 3 min"."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
