"""TD errors and losses of ONE transition, and returns of ONE trajectory; callers map them.

A new TD error goes into `bellman_targets.py` and the list below. Nothing here may know an agent,
its settings, or what a loss converges to: `testing/declared_fixed_points.py` knows that.
"""

from purejaxdqn.losses.bellman_loss import bellman_loss, masked_squared_error
from purejaxdqn.losses.bellman_targets import (
    double_q_learning,
    expected_sarsa,
    q_learning,
    soft_q_learning,
)
from purejaxdqn.losses.distributional import (
    categorical_loss,
    fraction_loss,
    project,
    quantile_huber,
    quantile_loss,
)
from purejaxdqn.losses.munchausen import munchausen, persistent_advantage_learning_loss
from purejaxdqn.losses.q_lambda import q_lambda_returns, return_error

__all__ = [
    "bellman_loss",
    "categorical_loss",
    "double_q_learning",
    "expected_sarsa",
    "fraction_loss",
    "masked_squared_error",
    "munchausen",
    "persistent_advantage_learning_loss",
    "project",
    "q_lambda_returns",
    "q_learning",
    "quantile_huber",
    "quantile_loss",
    "return_error",
    "soft_q_learning",
]
