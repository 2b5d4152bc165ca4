"""MINTO: the target takes the smaller of what the online and the target network say.

Hendawy et al., "Use the online network if you can: towards fast and stable reinforcement learning"
(2025): `r_t + discount_t * max_a min(q_t[a], q_t_selector[a])`. New is the TD error alone, from
which `bellman_loss` makes the `loss_fn`. The package's own agent is `minto`.

    cd experiments
    purejaxdqn train --import recipes.minto --agent minto_recipe --num-seeds 10
    purejaxdqn check recipes.minto:minto
"""

import functools

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, losses, testing
from purejaxdqn.types import Array


@testing.converges_to(testing.OPTIMAL, bootstrap="both")
def minto(
    q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, q_t_selector: Array
) -> Array:
    """Computes the TD error `[]` of one transition."""
    target_tm1 = r_t + discount_t * jnp.max(jnp.minimum(q_t, q_t_selector))
    return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]


experiment = functools.partial(dqn, loss_fn=losses.bellman_loss(minto))
agents.register("minto_recipe", DQNConfig(), experiment, "the smaller of both networks' values")
