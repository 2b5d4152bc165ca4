"""Checks that a researcher can run on a loss, a network or another component of their own.

    from purejaxdqn import testing

    testing.check_loss(my_loss)
    testing.check_training(my_experiment)
    testing.check_environment(my_env, jax.random.key(0))
    testing.check_network(my_network, jax.random.key(0), obs=jnp.zeros(4), num_actions=2)
    testing.check_replay(my_make_replay)

A check that fails raises an AssertionError that says what is wrong, the value that was found, and
the remedy. The checks of a loss, a replay and a training run print a table with a row a check;
`loss_report`, `replay_report` and `training_report` have the same arguments, and neither print nor
raise. A loss can be checked from the command line too:

    purejaxdqn check my_module:my_loss
"""

from purejaxdqn.testing.environments import check_environment
from purejaxdqn.testing.fixed_points import OPTIMAL, FixedPoint, converges_to
from purejaxdqn.testing.losses.check_loss import check_loss, loss_report
from purejaxdqn.testing.networks import check_network
from purejaxdqn.testing.replay import check_replay, replay_report
from purejaxdqn.testing.report import Check, CheckError, Report
from purejaxdqn.testing.training import check_training, training_report

__all__ = [
    "OPTIMAL",
    "Check",
    "CheckError",
    "FixedPoint",
    "Report",
    "check_environment",
    "check_loss",
    "check_network",
    "check_replay",
    "check_training",
    "converges_to",
    "loss_report",
    "replay_report",
    "training_report",
]
