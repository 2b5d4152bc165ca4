"""What a loss may say of one transition: real numbers by name, in every agent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.types import ConfigError, LossOutput
from tiny import TINY, TINY_PQN


@pytest.mark.parametrize(("agent", "config"), [(dqn, TINY), (pqn, TINY_PQN)])
@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"m": np.zeros(1)}, r"metric m has shape \(1,\).*one real number"),
        ({"m": np.zeros((2, 3))}, r"metric m has shape \(2, 3\)"),
        ({"m": np.complex64(1j)}, "type complex64"),
        ({"m": {"a": 0.0}}, "metric m is of type dict"),
        ({"m": [0.0, 1.0]}, "metric m is of type list"),
        ({"m": "high"}, "metric m is of type str"),
        ({"m": None}, "metric m is of type NoneType"),
        (None, r"metrics of the loss \(None\) must be numbers by name"),
        ((0.0,), "must be numbers by name"),
        ({1: 0.0}, "must be numbers by name"),
        ({"loss": 0.0}, "a metric named loss"),
    ],
)
def test_a_metric_that_results_could_not_show_is_refused_by_name(agent, config, metrics, words):
    train = agent(config, loss_fn=lambda *args: LossOutput(jnp.zeros(()), jnp.zeros(()), metrics))
    state = jax.eval_shape(train.init, jax.random.key(0))
    with pytest.raises(ConfigError, match=words) as caught:
        jax.eval_shape(lambda state: train.chunk(state, jnp.int32(1), 1), state)
    assert "\n" not in str(caught.value)


def test_numbers_of_python_and_truths_are_metrics():
    metrics: Any = {"count": 3, "share": 0.5, "is_won": True, "missing": jnp.nan}
    train = dqn(TINY, loss_fn=lambda *args: LossOutput(jnp.zeros(()), jnp.zeros(()), metrics))
    state = jax.eval_shape(train.init, jax.random.key(0))
    outputs = jax.eval_shape(lambda state: train.chunk(state, jnp.int32(1), 1), state)[1]
    assert {*outputs.metrics} == {*metrics, "loss"}
