"""The training loop that all agents share: acting, and iterations that are run in chunks."""

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
    """The outputs of a chunk of at most `M` iterations; rows that were not run are NaN."""

    episode_return: Array  # [M, k, E] of the episode that ended at this step, NaN where none did
    metrics: dict[str, Array]  # [M] each, averaged over the iteration's updates


Trained = tuple[TrainState, ChunkOutputs]


class Train(NamedTuple):
    """A training run as pure functions of arrays.

    The number of iterations is an argument of the compiled program, so that any chunking runs the
    same program and gives the same bits. Only `max_iterations`, the room in the outputs, is static.
    """

    # key -> TrainState, before anything is learned; must be compiled apart from chunk
    init: Callable[[Array], TrainState]
    # (TrainState, num_iterations [], max_iterations) -> (TrainState, ChunkOutputs)
    chunk: Callable[[TrainState, Array, int], Trained]
    policy: Callable[[Params], Policy]  # the greedy one, for evaluation
    env: Environment
    probe: Probe | None = None  # what diagnostics look at; None for a run without diagnostics


Experiment = Callable[[Any], Train]  # of a `RunConfig`, or of one of its kinds
Iteration = Callable[[TrainState], Trained]


def make_first_state(
    key: Array, env: Environment, num_envs: int, learner: Learner, replay: Replay | None = None
) -> TrainState:
    """Makes the state of a run of `E = num_envs` environments before its first step."""
    key, env_key, network_key = jax.random.split(key, 3)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(env_key, num_envs))
    zeros, flags = jnp.zeros(num_envs), jnp.zeros(num_envs, bool)
    first_step = Step(obs, jnp.zeros(num_envs, jnp.int32), zeros, flags, flags, next_obs=obs)
    learner_state = learner.init(network_key, obs[0])
    replay_state = None if replay is None else replay.init(first_step)
    num_steps = jnp.zeros((), jnp.int32)
    return TrainState(learner_state, replay_state, env_state, obs, zeros, key, num_steps)


def act(
    env: Environment, network: Network[Any], state: TrainState, epsilon: Array | float
) -> tuple[TrainState, Step, Array]:
    """Takes one epsilon-greedy step in every environment.

    Returns:
      `(state, step [E, ...], episode_return [E])`: the returns are those of the episodes that ended
      at this step, NaN where none did.
    """
    num_envs = len(state.episode_return)
    # All keys in one call of the generator: a call costs more than a key.
    keys = jax.random.split(state.key, 1 + 3 * num_envs)
    next_key, (explore_keys, network_keys, env_keys) = keys[0], keys[1:].reshape(3, num_envs)
    apply = jax.vmap(network.apply, in_axes=(None, 0, 0))
    outputs = apply(state.learner.params, state.obs, network_keys)
    q_values = jax.vmap(network.action_values)(outputs)
    action = jax.vmap(epsilon_greedy, in_axes=(0, 0, None))(explore_keys, q_values, epsilon)
    step_all = jax.vmap(functools.partial(step_and_reset, env))
    env_state, obs, timestep = step_all(env_keys, state.env_state, action)
    next_obs, reward, terminated, truncated = timestep
    step = Step(state.obs, action, reward, terminated, truncated, next_obs)
    episode_return, ended = state.episode_return + reward, terminated | truncated
    now = (env_state, obs, jnp.where(ended, 0.0, episode_return), next_key)
    state = TrainState(state.learner, state.replay, *now, state.num_steps + num_envs)
    return state, step, jnp.where(ended, episode_return, jnp.nan)


def run_chunk(
    iteration: Iteration, state: TrainState, num_iterations: Array, max_iterations: int
) -> Trained:
    """Runs some iterations; with the first argument filled in, this is `Train.chunk`.

    The outputs of `iteration` have no axis of iterations; those of the chunk have one, `[M, ...]`.
    `num_iterations` is `[]` int32, at most `M = max_iterations`.
    """
    run_iteration = jax.jit(iteration)  # traced once, for its shapes and for the loop

    def body(i: Array, carry: Trained) -> Trained:
        state, output = run_iteration(carry[0])
        write = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return state, jax.tree.map(write, carry[1], output)

    shapes = jax.eval_shape(run_iteration, state)[1]
    empty = jax.tree.map(lambda x: jnp.full((max_iterations, *x.shape), jnp.nan, x.dtype), shapes)
    return jax.lax.fori_loop(0, num_iterations, body, (state, empty))
