"""The memory that a traced function takes on its way, beside what XLA makes of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import agents
from purejaxdqn.config import PQNConfig, float_fields
from purejaxdqn.footprint import working_bytes
from purejaxdqn.planning import abstract_run
from purejaxdqn.programs import max_iterations_of

SQUARE = jax.ShapeDtypeStruct((100, 100), np.float32)


def test_what_is_alive_at_the_same_time_counts():
    assert working_bytes(lambda x: x @ x @ x @ x, SQUARE)[0] == 2 * 40_000
    assert working_bytes(lambda x: jnp.sum(jnp.tanh(x) + 1), SQUARE)[0] < 100


def test_what_takes_the_place_of_an_argument_does_not_count():
    def write(x):
        body = lambda i, x: x.at[i].set(jnp.sum(x.reshape(-1)))  # noqa: E731
        return jax.lax.fori_loop(0, 3, body, x)

    most, result = working_bytes(write, SQUARE)
    assert most < 2_000
    assert result.shape == SQUARE.shape


@pytest.mark.parametrize(
    "config",
    [
        PQNConfig(num_envs=400, total_steps=40_000, num_epochs=1),
        agents.configure(agent="iqn", batch_size=1024, prefill_steps=1024, total_steps=1424),
    ],
)
def test_a_chunk_takes_about_what_the_compiler_says(config):
    def chunk(floats, state, count):
        train = agents.train_by_kind(dataclasses.replace(config, **floats))
        return train.chunk(state, count, max_iterations_of(config))

    state, _, working = abstract_run(agents.train_by_kind, config)
    shapes = {name: jax.ShapeDtypeStruct((), np.float32) for name in float_fields(config)}
    lowered = jax.jit(chunk, donate_argnums=1).lower(
        shapes, state, jax.ShapeDtypeStruct((), np.int32)
    )
    options: Any = {"xla_backend_optimization_level": 1}  # fused, as a user's programs are
    analysis: Any = lowered.compile(options).memory_analysis()
    real = analysis.temp_size_in_bytes
    assert 0.6 * real < working < 1.6 * real
