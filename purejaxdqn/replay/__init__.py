"""Replay buffers as pure functions: `(init, add, sample, update, window_at)`.

A replay stores what happened. Nothing here may know a discount but `n_step_transition`, or a loss.
"""

from purejaxdqn.replay.n_step import n_step_replay, n_step_transition
from purejaxdqn.replay.prioritised import PrioritisedReplayState, prioritised_replay
from purejaxdqn.replay.uniform import UniformReplayState, uniform_replay

__all__ = [
    "PrioritisedReplayState",
    "UniformReplayState",
    "n_step_replay",
    "n_step_transition",
    "prioritised_replay",
    "uniform_replay",
]
