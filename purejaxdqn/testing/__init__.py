"""The contracts as checks that a researcher can run on a component of their own.

    from purejaxdqn import testing

    testing.check_loss(my_loss)
    testing.check_training(my_experiment)
    testing.check_environment(my_env, jax.random.key(0))
    testing.check_network(my_network, jax.random.key(0), obs=jnp.zeros(4), num_actions=2)
    testing.check_replay(my_make_replay, jax.random.key(0))

A check that finds something raises an AssertionError that says what is wrong, the value that was
found, and the remedy. `check_loss` and `check_training` print a table, also from the command line:

    python -m purejaxdqn.testing my_module:my_loss
"""

from purejaxdqn.testing.environments import check_environment
from purejaxdqn.testing.losses import check_loss, loss_report
from purejaxdqn.testing.networks import check_network
from purejaxdqn.testing.replay import check_replay
from purejaxdqn.testing.report import Check, CheckError, Report

__all__ = [
    "Check",
    "CheckError",
    "Report",
    "check_environment",
    "check_loss",
    "check_network",
    "check_replay",
    "loss_report",
]
