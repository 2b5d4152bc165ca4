"""Replay buffers as pure functions: `(init, add, sample, update, window_at)`.

A replay stores what happened. Nothing here may know a discount but `n_step_transition`, or a loss.
"""

from purejaxdqn.replay.batches import independent_batches as independent_batches
from purejaxdqn.replay.n_step import first_steps as first_steps
from purejaxdqn.replay.n_step import n_step_replay as n_step_replay
from purejaxdqn.replay.n_step import n_step_transition as n_step_transition
from purejaxdqn.replay.prioritised import PrioritisedReplayState as PrioritisedReplayState
from purejaxdqn.replay.prioritised import prioritised_replay as prioritised_replay
from purejaxdqn.replay.sequences import make_trajectory as make_trajectory
from purejaxdqn.replay.sequences import sequence_replay as sequence_replay
from purejaxdqn.replay.uniform import UniformReplayState as UniformReplayState
from purejaxdqn.replay.uniform import uniform_replay as uniform_replay
