"""Checks that a researcher can run on a loss, a network or another component of their own.

    from purejaxdqn import testing

    testing.check_loss(my_loss)
    testing.check_training(my_experiment)
    testing.check_environment(my_env, jax.random.key(0))
    testing.check_network(my_network, jax.random.key(0), obs=jnp.zeros(4), num_actions=2)
    testing.check_replay(my_make_replay)
    testing.check_behaviour(my_make_behaviour)
    testing.check_learner(my_learner, my_network, my_transitions)

A check that fails raises an AssertionError that says what is wrong, the value that was found, and
the remedy. The checks of a loss, a replay, a behaviour, a learner and a training run print a table
with a row a check; `loss_report`, `replay_report`, `behaviour_report`, `learner_report` and
`training_report` have the same arguments, and neither print nor raise. A loss can be checked from
the command line too:
`purejaxdqn check my_module:my_loss`.
"""

from purejaxdqn.testing.behaviours import behaviour_report as behaviour_report
from purejaxdqn.testing.behaviours import check_behaviour as check_behaviour
from purejaxdqn.testing.environments import check_environment as check_environment
from purejaxdqn.testing.fixed_points import OPTIMAL as OPTIMAL
from purejaxdqn.testing.fixed_points import FixedPoint as FixedPoint
from purejaxdqn.testing.fixed_points import converges_to as converges_to
from purejaxdqn.testing.learners import check_learner as check_learner
from purejaxdqn.testing.learners import learner_report as learner_report
from purejaxdqn.testing.losses.check_loss import check_loss as check_loss
from purejaxdqn.testing.losses.check_loss import loss_report as loss_report
from purejaxdqn.testing.networks import check_network as check_network
from purejaxdqn.testing.replay import check_replay as check_replay
from purejaxdqn.testing.replay import replay_report as replay_report
from purejaxdqn.testing.report import Check as Check
from purejaxdqn.testing.report import CheckError as CheckError
from purejaxdqn.testing.report import Report as Report
from purejaxdqn.testing.tabular.table_networks import OutputTable as OutputTable
from purejaxdqn.testing.training import check_training as check_training
from purejaxdqn.testing.training import training_report as training_report
