"""Replay buffers as pure functions: `(init, add, sample, update, window_at)`."""

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
