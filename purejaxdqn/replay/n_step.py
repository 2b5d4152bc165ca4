"""Transitions of several steps, from any replay.

n-step returns: Watkins, "Learning from delayed rewards" (1989), chapter 7; Sutton and Barto,
"Reinforcement learning" (2018), section 7.1.
"""

from __future__ import annotations

import jax

from purejaxdqn.types import Array, ArrayTree, ConfigError, Replay, Sample


def n_step_replay(replay: Replay, n_step: int) -> Replay:
    """The replay with transitions that span `n_step` steps, or fewer: see `Replay.transition_at`.

    It draws, remembers and updates as the wrapped one does, with the same indices and
    probabilities. The actions in between are those of the behaviour, without any correction. Of
    wrappers around each other, the outermost says how many steps.

    Args:
      replay: any that has `transition_at`.
      n_step: `n`, the most steps that a transition spans; 1 changes nothing.

    Returns:
      A `Replay` over the wrapped one's state.

    Raises:
      ConfigError: if `n_step` is not positive, or the replay has no `transition_at`.
    """
    if n_step < 1:
        raise ConfigError(f"n_step ({n_step}) must be at least 1")
    transition_at = replay.transition_at
    if transition_at is None:
        raise ConfigError(
            f"n_step ({n_step}) needs a replay with transition_at, which this one lacks: give "
            "Replay a fifth function, (state, index, num_steps) -> Transition"
        )

    def sample(state: ArrayTree, key: Array) -> Sample:
        # Compiled, the transitions that these take the place of are never read.
        drawn = replay.sample(state, key)
        transitions = jax.vmap(lambda index: transition_at(state, index, n_step))(drawn.indices)
        return drawn._replace(transition=transitions)

    return replay._replace(sample=sample)
