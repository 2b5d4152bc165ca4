"""The training loop that all agents share: acting, and iterations that are run in chunks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxdqn.environments import Environment, step_and_reset
from purejaxdqn.training.diagnostics import Probe
from purejaxdqn.training.evaluation import Policy
from purejaxdqn.training.exploration import epsilon_greedy
from purejaxdqn.types import Array, Learner, Network, Params, Replay, Step, TrainState


class ChunkOutputs(NamedTuple):
    """The outputs of a chunk of at most `M` iterations; rows that were not run are NaN.

    Attributes:
      episode_return: `[M, k, E]` the return of the episode that ended at this step, NaN where none
        did.
      metrics: `[M]` each of the learner's metrics, averaged over the iteration's updates.
    """

    episode_return: Array
    metrics: dict[str, Array]


class Train(NamedTuple):
    """A training run as pure functions of arrays.

    Attributes:
      init: `key -> TrainState`, before anything is learned. It must be compiled apart from `chunk`.
      chunk: `(TrainState, num_iterations [], max_iterations) -> (TrainState, ChunkOutputs)`. The
        number of iterations is an argument of the compiled program, so that any chunking runs the
        same program and gives the same bits. Only `max_iterations`, the room in the outputs, is
        static.
      policy: `params -> greedy policy`, for evaluation.
      env: the environment.
      probe: what diagnostics look at; None for a run without diagnostics.
    """

    init: Callable[[Array], TrainState]
    chunk: Callable[[TrainState, Array, int], tuple[TrainState, ChunkOutputs]]
    policy: Callable[[Params], Policy]
    env: Environment
    probe: Probe | None = None


Experiment = Callable[[Any], Train]  # of a `RunConfig`, or of one of its kinds
Iteration = Callable[[TrainState], tuple[TrainState, ChunkOutputs]]


def make_first_state(
    key: Array, env: Environment, num_envs: int, learner: Learner, replay: Replay | None = None
) -> TrainState:
    """Makes the state of a run before its first step.

    Args:
      key: `[]` PRNG key.
      env: the environment.
      num_envs: `E`, environments stepped side by side.
      learner: makes the weights.
      replay: remembers steps; None for an agent without one.

    Returns:
      `TrainState`, its replay empty.
    """
    key, env_key, network_key = jax.random.split(key, 3)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(env_key, num_envs))
    first_step = Step(
        obs=obs,
        action=jnp.zeros(num_envs, jnp.int32),
        reward=jnp.zeros(num_envs),
        terminated=jnp.zeros(num_envs, bool),
        truncated=jnp.zeros(num_envs, bool),
        next_obs=obs,
    )
    return TrainState(
        learner=learner.init(network_key, obs[0]),
        replay=None if replay is None else replay.init(first_step),
        env_state=env_state,
        obs=obs,
        episode_return=jnp.zeros(num_envs),
        key=key,
        num_steps=jnp.zeros((), jnp.int32),
    )


def act(
    env: Environment, network: Network[Any], state: TrainState, epsilon: Array | float
) -> tuple[TrainState, Step, Array]:
    """Takes one epsilon-greedy step in every environment.

    Args:
      env: the environment.
      network: the value network.
      state: the run's.
      epsilon: `[]` probability of a random action.

    Returns:
      `(state, step [E, ...], episode_return [E])`: the returns are those of the episodes that ended
      at this step, NaN where none did.
    """
    num_envs = len(state.episode_return)
    # All keys in one call of the generator: a call costs more than a key.
    keys = jax.random.split(state.key, 1 + 3 * num_envs)
    next_key, (explore_keys, network_keys, env_keys) = keys[0], keys[1:].reshape(3, num_envs)
    outputs = jax.vmap(network.apply, in_axes=(None, 0, 0))(
        state.learner.params, state.obs, network_keys
    )
    q_values = jax.vmap(network.action_values)(outputs)
    action = jax.vmap(epsilon_greedy, in_axes=(0, 0, None))(explore_keys, q_values, epsilon)
    env_state, obs, timestep = jax.vmap(functools.partial(step_and_reset, env))(
        env_keys, state.env_state, action
    )
    step = Step(
        obs=state.obs,
        action=action,
        reward=timestep.reward,
        terminated=timestep.terminated,
        truncated=timestep.truncated,
        next_obs=timestep.obs,
    )
    episode_return = state.episode_return + timestep.reward
    ended = timestep.terminated | timestep.truncated
    state = dataclasses.replace(
        state,
        env_state=env_state,
        obs=obs,
        episode_return=jnp.where(ended, 0.0, episode_return),
        key=next_key,
        num_steps=state.num_steps + num_envs,
    )
    return state, step, jnp.where(ended, episode_return, jnp.nan)


def run_chunk(
    iteration: Iteration, state: TrainState, num_iterations: Array, max_iterations: int
) -> tuple[TrainState, ChunkOutputs]:
    """Runs some iterations; with the first argument filled in, this is `Train.chunk`.

    Args:
      iteration: `state -> (state, outputs)`, whose outputs have no axis of iterations.
      state: the run's.
      num_iterations: `[]` int32, at most `max_iterations`.
      max_iterations: room in the outputs.

    Returns:
      `(state, outputs [max_iterations, ...])`, NaN in the rows that were not run.
    """
    run_iteration = jax.jit(iteration)  # traced once, for its shapes and for the loop

    def body(i: Array, carry: tuple[TrainState, ChunkOutputs]) -> tuple[TrainState, ChunkOutputs]:
        state, outputs = carry
        state, output = run_iteration(state)
        write = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return state, jax.tree.map(write, outputs, output)

    shapes = jax.eval_shape(run_iteration, state)[1]
    empty = jax.tree.map(
        lambda leaf: jnp.full((max_iterations, *leaf.shape), jnp.nan, leaf.dtype), shapes
    )
    return jax.lax.fori_loop(0, num_iterations, body, (state, empty))
