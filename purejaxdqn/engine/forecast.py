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

    Args:
      programs: compiled.
      config: the settings of the runs.
      runs: the runs of the round.

    Returns:
      Seconds.
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
