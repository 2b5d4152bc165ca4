"""The memory that a traced function takes on its way, beside what XLA makes of it."""

import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import agents
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.engine.memory import (
    memory_bytes,
    peak_bytes,
    return_free_memory,
    trace_memory,
    trace_run,
)
from purejaxdqn.engine.programs import max_iterations_of
from purejaxdqn.runtime.devices import compiler_options
from purejaxdqn.training.evaluation import evaluate

SQUARE = jax.ShapeDtypeStruct((100, 100), np.float32)


def test_what_is_alive_at_the_same_time_counts():
    assert trace_memory(lambda x: x @ x @ x @ x, SQUARE)[0] == 2 * 40_000
    assert trace_memory(lambda x: jnp.sum(jnp.tanh(x) + 1), SQUARE)[0] == 4
    assert trace_memory(lambda x: jnp.sum((jnp.tanh(x) + 1) @ x), SQUARE)[0] == 2 * 40_000


@pytest.mark.parametrize("how", ["set", "add", "max", "min", "multiply"])
def test_what_takes_the_place_of_an_argument_does_not_count(how):
    def write(x):
        body = lambda i, x: getattr(x.at[i], how)(jnp.sum(x.reshape(-1)))  # noqa: E731
        return jax.lax.fori_loop(0, 3, body, x)

    most, result = trace_memory(write, SQUARE)
    assert most < 2_000
    assert result.shape == SQUARE.shape


@pytest.mark.parametrize("prioritised", [False, True])
def test_no_fewer_runs_train_side_by_side_where_a_replay_is_larger(prioritised):
    settings = {"prioritised": prioritised, "batch_size": 32, "hidden_sizes": (8,)}
    small, large = (
        trace_run(agents.train, agents.configure(**settings, replay_capacity=capacity))
        for capacity in (10_000, 1_000_000)
    )
    assert small.max_width == large.max_width == 8


@pytest.mark.parametrize(
    "config",
    [
        PQNConfig(num_envs=400, total_steps=40_000, num_epochs=1, eval_episodes=400),
        agents.configure(
            agent="iqn",
            batch_size=1024,
            prefill_steps=1024,
            total_steps=1424,
            eval_episodes=1000,
        ),
    ],
)
def test_a_run_takes_about_what_the_compiler_says(config, compile_as_user):
    def chunk(config, state, count):
        return agents.train(config).chunk(state, count, max_iterations_of(config))

    def play(config, params, seed):
        train = agents.train(config)
        return evaluate(train.policy(params), train.env, jax.random.key(seed), config.eval_episodes)

    def by_the_compiler(function, *args, **options):
        lowered = jax.jit(function, **options).lower(*args)
        # Fused and ordered, as a user's programs are.
        options = {**compiler_options(), "xla_backend_optimization_level": 1}
        compiled: Any = compile_as_user(lowered, **options)
        return compiled.memory_analysis().temp_size_in_bytes

    run = trace_run(agents.train, config)
    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), np.float32), config)
    count = jax.ShapeDtypeStruct((), np.int32)
    real = by_the_compiler(chunk, shapes, run.state, count, donate_argnums=1)
    assert 0.6 * real < run.chunk_bytes < 1.7 * real
    real = by_the_compiler(play, shapes, run.state.learner.params, count)
    assert 0.6 * real < run.evaluation_bytes < 1.6 * real


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing")
def test_what_was_freed_goes_back_to_the_system():
    blocks = [b"x" * 20_000 for _ in range(5_000)]
    assert 1.01 * peak_bytes() > memory_bytes() > 100e6
    del blocks[:-1]  # the last one keeps the heap from shrinking by itself
    before = memory_bytes()
    return_free_memory()
    assert before - memory_bytes() > 80e6
