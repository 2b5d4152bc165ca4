"""TD errors and losses of ONE transition, and returns of ONE trajectory; callers map them.

A new TD error goes into `bellman_targets.py` and the list below. Nothing here may know an agent,
or what a loss converges to: `testing/losses/check_loss.py` knows that.
"""

from purejaxdqn.losses.bellman_loss import bellman_loss as bellman_loss
from purejaxdqn.losses.bellman_loss import ensemble_loss as ensemble_loss
from purejaxdqn.losses.bellman_loss import masked_squared_error as masked_squared_error
from purejaxdqn.losses.bellman_targets import double_q_learning as double_q_learning
from purejaxdqn.losses.bellman_targets import expected_sarsa as expected_sarsa
from purejaxdqn.losses.bellman_targets import minto as minto
from purejaxdqn.losses.bellman_targets import q_lambda_returns as q_lambda_returns
from purejaxdqn.losses.bellman_targets import q_learning as q_learning
from purejaxdqn.losses.bellman_targets import return_error as return_error
from purejaxdqn.losses.bellman_targets import soft_q_learning as soft_q_learning
from purejaxdqn.losses.distributional import categorical_loss as categorical_loss
from purejaxdqn.losses.distributional import fraction_loss as fraction_loss
from purejaxdqn.losses.distributional import gaussian_label as gaussian_label
from purejaxdqn.losses.distributional import hl_gauss_loss as hl_gauss_loss
from purejaxdqn.losses.distributional import project as project
from purejaxdqn.losses.distributional import quantile_huber as quantile_huber
from purejaxdqn.losses.distributional import quantile_loss as quantile_loss
from purejaxdqn.losses.distributional import quantile_regression as quantile_regression
from purejaxdqn.losses.from_config import from_config as from_config
from purejaxdqn.losses.munchausen import munchausen as munchausen
from purejaxdqn.losses.munchausen import (
    persistent_advantage_learning_loss as persistent_advantage_learning_loss,
)
from purejaxdqn.losses.trajectories import n_step_returns as n_step_returns
from purejaxdqn.losses.trajectories import peng_q_lambda as peng_q_lambda
from purejaxdqn.losses.trajectories import retrace as retrace
from purejaxdqn.losses.trajectories import trace_returns as trace_returns
from purejaxdqn.losses.trajectories import trajectory_loss as trajectory_loss
from purejaxdqn.losses.trajectories import watkins_q_lambda as watkins_q_lambda
