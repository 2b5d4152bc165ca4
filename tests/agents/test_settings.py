"""The settings' rules: what cannot be kept is refused with its value and the remedy."""

import dataclasses
from typing import Any

import pytest

from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.types import ConfigError
from tiny import TINY, TINY_PQN

DQN = dataclasses.replace(TINY, total_steps=400, eval_interval=100)
PQN = dataclasses.replace(TINY_PQN, eval_interval=120)

REFUSED_BY_DQN: list[tuple[dict[str, Any], list[str]]] = [
    ({"num_envs": 0}, ["num_envs", "0", "at least 1"]),
    ({"batch_size": -3}, ["batch_size", "-3", "at least 1"]),
    ({"total_steps": 2**31}, ["total_steps", "at most"]),
    ({"total_steps": True}, ["total_steps", "True"]),
    ({"hidden_sizes": (8, 0)}, ["hidden_sizes", "0"]),
    ({"hidden_sizes": 8}, ["hidden_sizes (8)", "tuple"]),
    ({"head_sizes": (8, -1)}, ["head_sizes ((8, -1))", "tuple"]),
    ({"learning_rate": "fast"}, ["learning_rate ('fast')", "number"]),
    ({"learning_rate": 1e-60}, ["learning_rate (1e-60)", "single precision"]),
    ({"adam_epsilon": 1e39}, ["adam_epsilon (1e+39)", "single precision"]),
    ({"total_steps": 2_000_000_000, "updates_per_iteration": 8}, ["gradient steps", "lower"]),
    ({"batch_size": 128}, ["batch_size (128)", "replay_capacity (120)"]),
    ({"batch_size": 100}, ["batch_size (100)", "prefill_steps (80)"]),
    ({"steps_per_update": 6}, ["steps_per_update (6)", "num_envs (4)", "4 or 8"]),
    ({"prefill_steps": 82}, ["prefill_steps (82)", "80 or 84"]),
    ({"replay_capacity": 121}, ["replay_capacity (121)", "120 or 124"]),
    ({"total_steps": 402}, ["total_steps (402)", "400 or 404"]),
    ({"eval_interval": 2}, ["eval_interval (2)", "try 4"]),
    ({"prefill_steps": 400}, ["prefill_steps (400)", "below total_steps (400)"]),
    ({"target_period": 81}, ["target_period (81", "80 gradient"]),
    ({"learning_rate": 0.0}, ["learning_rate (0.0)", "positive and finite"]),
    ({"learning_rate": float("nan")}, ["learning_rate (nan)"]),
    ({"learning_rate": float("inf")}, ["learning_rate (inf)"]),
    ({"discount": 1.01}, ["discount (1.01)", "between 0 and 1"]),
    ({"discount": float("nan")}, ["discount (nan)"]),
    ({"epsilon_start": -0.1}, ["epsilon_start (-0.1)"]),
    ({"epsilon_end": 2.0}, ["epsilon_end (2.0)"]),
    ({"epsilon_fraction": 1.5}, ["epsilon_fraction (1.5)"]),
    ({"target_step_size": 0.0}, ["target_step_size (0.0)"]),
    ({"max_grad_norm": 0.0}, ["max_grad_norm (0.0)", "inf"]),
    ({"adam_epsilon": 0.0}, ["adam_epsilon (0.0)", "positive"]),
    ({"n_step": 0}, ["n_step (0)", "at least 1"]),
    ({"n_step": 31}, ["n_step (31)", "replay_capacity / num_envs (30)"]),
    ({"huber_threshold": -1.0}, ["huber_threshold (-1.0)"]),
    ({"td_error": "sarsa"}, ["td_error ('sarsa')", "double_q_learning"]),
    ({"penalty": "cubic"}, ["penalty ('cubic')", "huber"]),
    ({"sample_with_replacement": "no"}, ["sample_with_replacement ('no')", "True or False"]),
    ({"optimizer": "sgd"}, ["optimizer ('sgd')", "rmsprop"]),
    ({"epsilon_schedule": "stairs"}, ["epsilon_schedule ('stairs')", "multiplicative"]),
    ({"value_min": 5.0, "value_max": 5.0}, ["value_min (5.0)", "below value_max (5.0)"]),
    ({"num_atoms": 1}, ["num_atoms (1)", "at least 2"]),
    ({"temperature": 0.0}, ["temperature (0.0)", "positive"]),
    ({"priority_exponent": 1.5}, ["priority_exponent (1.5)", "between 0 and 1"]),
    ({"munchausen": True, "representation": "categorical"}, ["munchausen", "quantiles"]),
    (
        {"td_error": "expected_sarsa", "representation": "quantile"},
        ["td_error ('expected_sarsa')", "double_q_learning"],
    ),
    (
        {"td_error": "minto", "representation": "categorical"},
        ["td_error ('minto')", "double_q_learning"],
    ),
    (
        {
            "td_error": "persistent_advantage_learning",
            "representation": "categorical",
            "label": "gaussian",
        },
        ["td_error ('persistent_advantage_learning')", "double_q_learning"],
    ),
    ({"ensemble": "min", "representation": "quantile"}, ["ensemble ('min')", "'none'"]),
    (
        {"ensemble": "mean", "td_error": "persistent_advantage_learning"},
        ["ensemble ('mean')", "'none'", "gap"],
    ),
    ({"ensemble": "max"}, ["ensemble ('max')", "none, min, mean"]),
    ({"num_members": 0}, ["num_members (0)", "at least 1"]),
    ({"label": "two-hot"}, ["label ('two-hot')", "projection, gaussian"]),
    ({"label_width": 0.0}, ["label_width (0.0)", "positive"]),
    ({"prioritised": True, "sample_with_replacement": False}, ["with replacement"]),
    ({"epsilon_decay": 1.5}, ["epsilon_decay (1.5)", "between 0 and 1"]),
    ({"env": "CartPole-v2"}, ["CartPole-v2", "CartPole-v1"]),
]
REFUSED_BY_PQN: list[tuple[dict[str, Any], list[str]]] = [
    ({"num_envs": 0}, ["num_envs (0)", "at least 1"]),
    ({"num_steps": 0}, ["num_steps (0)", "at least 1"]),
    ({"num_epochs": -1}, ["num_epochs (-1)", "at least 1"]),
    ({"num_minibatches": 7}, ["num_minibatches (7)", "num_envs * num_steps (40)", "try 5"]),
    ({"num_minibatches": 80}, ["num_minibatches (80)", "(40)", "try 40"]),
    ({"total_steps": 490}, ["total_steps (490)", "num_envs * num_steps (40)", "480 or 520"]),
    ({"total_steps": 20}, ["total_steps (20)", "try 40"]),
    ({"eval_interval": 100}, ["eval_interval (100)", "num_envs * num_steps (40)", "80 or 120"]),
    ({"total_steps": 2**31}, ["total_steps", "at most"]),
    (
        {"total_steps": 2**31 - 8, "eval_interval": 40, "num_epochs": 2**20},
        ["gradient steps of the run", "lower"],
    ),
    ({"q_lambda": 1.1}, ["q_lambda (1.1)", "between 0 and 1"]),
    ({"q_lambda": float("nan")}, ["q_lambda (nan)"]),
    ({"q_lambda": "most"}, ["q_lambda ('most')", "number"]),
    ({"discount": -0.1}, ["discount (-0.1)"]),
    ({"learning_rate": 0.0}, ["learning_rate (0.0)", "positive and finite"]),
    ({"max_grad_norm": 0.0}, ["max_grad_norm (0.0)", "inf"]),
    ({"layer_norm": 1}, ["layer_norm (1)", "True or False"]),
    ({"hidden_sizes": (0,)}, ["hidden_sizes"]),
    ({"env": "CartPole-v2"}, ["CartPole-v2", "CartPole-v1"]),
]


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [(DQN, *case) for case in REFUSED_BY_DQN] + [(PQN, *case) for case in REFUSED_BY_PQN],
)
def test_settings_that_cannot_be_kept_are_refused_with_value_and_remedy(config, change, words):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(config, **change).validate()
    for word in words:
        assert word in str(error.value)


def test_the_defaults_and_the_limits_of_what_is_allowed_are_accepted():
    DQNConfig().validate()
    dataclasses.replace(DQN, discount=1.0, epsilon_end=0.0, max_grad_norm=float("inf")).validate()
    dataclasses.replace(DQN, discount=0.0, epsilon_fraction=0.0, batch_size=80).validate()
    gaussian = {"representation": "categorical", "label": "gaussian", "td_error": "minto"}
    dataclasses.replace(DQN, **gaussian).validate()
    dataclasses.replace(DQN, ensemble="min", num_members=1, td_error="minto").validate()
    PQNConfig().validate()
    for q_lambda in (0.0, 1.0):
        dataclasses.replace(PQN, q_lambda=q_lambda, num_minibatches=40).validate()
