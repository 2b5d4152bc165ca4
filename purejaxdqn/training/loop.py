"""The training loop that all agents share: acting, and iterations that are run in chunks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxdqn.environments import Environment, step_and_reset
from purejaxdqn.training.diagnostics import Probe
from purejaxdqn.training.evaluation import Policy
from purejaxdqn.types import (
    Array,
    ArrayTree,
    Behaviour,
    Extras,
    Learner,
    Network,
    Params,
    Replay,
    Situation,
    Step,
    TrainState,
)


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


class Actor(NamedTuple):
    """Plays: environments, and what chooses actions in them."""

    env: Environment
    network: Network[Any]
    behaviour: Behaviour
    num_envs: int


def make_first_state(
    key: Array, actor: Actor, learner: Learner, replay: Replay | None = None
) -> TrainState:
    """Makes the state of a run before its first step."""
    env, num_envs = actor.env, actor.num_envs
    key, env_key, network_key, replay_key, behaviour_key = jax.random.split(key, 5)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(env_key, num_envs))
    behaviour_state = jax.vmap(actor.behaviour.init)(jax.random.split(behaviour_key, num_envs))
    zeros, true = jnp.zeros(num_envs), jnp.ones(num_envs, bool)
    state = TrainState(
        learner=learner.init(network_key, obs[0]),
        replay=None,
        env_state=env_state,
        obs=obs,
        is_first=true,
        behaviour=behaviour_state,
        episode_return=zeros,
        key=key,
        num_steps=jnp.zeros((), jnp.int32),
    )
    if replay is None:
        return state
    shapes = jax.eval_shape(functools.partial(act, actor), state)[1]
    step = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return dataclasses.replace(state, replay=replay.init(step, replay_key))


def act(
    actor: Actor, state: TrainState, is_prefill: bool = False
) -> tuple[TrainState, Step, Array, Array]:
    """Takes one step in every environment.

    Returns:
      `(state, step [E, ...], episode_return [E], key [])`: the returns are those of the episodes
      that ended at this step, NaN where none did; the key is for `Replay.add`.
    """
    env, network, behaviour, num_envs = actor
    # All keys in one call of the generator: a call costs more than a key.
    keys = jax.random.split(state.key, 2 + 3 * num_envs)
    explore_keys, network_keys, env_keys = keys[1:-1].reshape(3, num_envs)
    apply = jax.vmap(network.apply, in_axes=(None, 0, 0))
    outputs = apply(state.learner.params, state.obs, network_keys)

    def choose(
        behaviour_state: ArrayTree, key: Array, obs: Array, output: Any, is_first: Array
    ) -> tuple[ArrayTree, Array, Extras]:
        q_values = network.action_values(output)
        facts = (obs, output, q_values, is_first, state.num_steps, is_prefill)
        if env.legal_actions is None:
            return behaviour.act(behaviour_state, key, Situation(*facts))
        is_legal = env.legal_actions(obs)
        return behaviour.act(behaviour_state, key, Situation(*facts, is_legal))

    arguments = (state.behaviour, explore_keys, state.obs, outputs, state.is_first)
    behaviour_state, action, extras = jax.vmap(choose)(*arguments)
    step_all = jax.vmap(functools.partial(step_and_reset, env))
    env_state, obs, timestep = step_all(env_keys, state.env_state, action)
    next_obs, reward, terminated, truncated = timestep
    step = Step(state.obs, action, reward, terminated, truncated, next_obs, extras)
    episode_return, ended = state.episode_return + reward, terminated | truncated
    state = dataclasses.replace(
        state,
        env_state=env_state,
        obs=obs,
        is_first=ended,
        behaviour=behaviour_state,
        episode_return=jnp.where(ended, 0.0, episode_return),
        key=keys[0],
        num_steps=state.num_steps + num_envs,
    )
    return state, step, jnp.where(ended, episode_return, jnp.nan), keys[-1]


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
