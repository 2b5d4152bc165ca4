"""Decides when the target network moves, and how far; the learner calls it after each update."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from purejaxdqn.types import Array, Params

TargetUpdate = Callable[[Params, Params, Array], Params]  # (params, target_params, num_updates)


def periodic_target_update(period: int, step_size: Array | float = 1.0) -> TargetUpdate:
    """Makes the rule that moves the target network every `period` gradient steps.

    A step size of 1 is the hard copy of Mnih et al. (2015); a period of 1 with a small step size is
    Polyak averaging, Lillicrap et al., "Continuous control with deep reinforcement learning"
    (2016), algorithm 1.

    Args:
      period: gradient steps between two moves.
      step_size: `[]` above 0, at most 1.

    Returns:
      `(params, target_params, num_updates []) -> target_params`, with `num_updates` counting the
      step just taken.
    """

    def target_update(params: Params, target_params: Params, num_updates: Array) -> Params:
        # A select and no branch: under vmap both sides of a branch would run anyway.
        is_due = num_updates % period == 0
        moved = optax.incremental_update(params, target_params, step_size)
        return jax.tree.map(lambda new, old: jnp.where(is_due, new, old), moved, target_params)

    return target_update
