"""The contracts as checks that a researcher can run on a component of their own.

    from purejaxdqn import testing

    testing.check_environment(my_env, jax.random.key(0))
    testing.check_td_error(my_td_error, jax.random.key(0))
    testing.check_loss(my_loss, jax.random.key(0))
    testing.check_network(my_network, jax.random.key(0), obs=jnp.zeros(4), num_actions=2)
    testing.check_replay(my_make_replay, jax.random.key(0))

A check that finds nothing returns None. One that finds something raises an AssertionError that says
what is wrong, the value that was found, and the remedy.
"""

from purejaxdqn.testing.environments import check_environment
from purejaxdqn.testing.losses import check_loss, check_td_error, check_terminal_ignores_next_obs
from purejaxdqn.testing.networks import check_network
from purejaxdqn.testing.replay import check_replay

__all__ = [
    "check_environment",
    "check_loss",
    "check_network",
    "check_replay",
    "check_td_error",
    "check_terminal_ignores_next_obs",
]
