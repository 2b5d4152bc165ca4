"""Replay buffers as pure functions: `(init, add, sample, update)`."""

from purejaxdqn.replay.uniform import UniformReplayState, uniform_replay

__all__ = ["UniformReplayState", "uniform_replay"]
