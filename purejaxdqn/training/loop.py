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
from purejaxdqn.training.parts import check_acted, check_metrics, ensure_alike
from purejaxdqn.types import (
    BATCH,
    NOTHING,
    AfterUpdate,
    Array,
    ArrayTree,
    Behaviour,
    ConfigError,
    Extras,
    Learner,
    Measure,
    Network,
    Params,
    Replay,
    Situation,
    Step,
    TrainState,
    ensure,
)


class ChunkOutputs(NamedTuple):
    """The outputs of a chunk of at most `M` iterations; rows that were not run are NaN."""

    episode_return: Array  # [M, k, E] of the episode that ended at this step, NaN where none did
    metrics: dict[str, Array]  # [M] each, averaged over the iteration's updates
    measured: dict[str, Array] = NOTHING  # [M, U] each, of each update; NaN where it was not due


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
    # TrainState -> TrainState that begins new episodes, where environments step on the host and are
    # gone in another process; None where a run cannot be resumed there
    begin_anew: Callable[[TrainState], TrainState] | None = None


Experiment = Callable[[Any], Train]  # of a `RunConfig`, or of one of its kinds
Iteration = Callable[[TrainState], Trained]
Metrics = tuple[dict[str, Array], dict[str, Array]]  # the learner's, and what was measured


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


def begin_anew(actor: Actor, state: TrainState, replay: Replay | None = None) -> TrainState:
    """Begins a new episode in every environment on the host; the replay cuts those under way."""
    from purejaxdqn.environments.host.bridge import begin_unseen  # needs gymnasium

    key, env_key = jax.random.split(state.key)
    keys, action = jax.random.split(env_key, actor.num_envs), jnp.zeros((), jnp.int32)
    # What wrappers know of other episodes stays.
    env_state = begin_unseen(state.env_state, jax.vmap(actor.env.reset)(keys)[0])
    step_all = jax.vmap(functools.partial(step_and_reset, actor.env), (0, 0, None), axis_name=BATCH)
    env_state, obs, _ = step_all(keys, env_state, action)
    return dataclasses.replace(
        state,
        replay=state.replay if replay is None or replay.cut is None else replay.cut(state.replay),
        env_state=env_state,
        obs=obs,
        is_first=jnp.ones_like(state.is_first),
        episode_return=jnp.zeros_like(state.episode_return),
        key=key,
    )


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
    apply = jax.vmap(network.apply, in_axes=(None, 0, 0), axis_name=BATCH)
    outputs = apply(state.learner.params, state.obs, network_keys)

    def choose(
        behaviour_state: ArrayTree, key: Array, obs: Array, output: Any, is_first: Array
    ) -> tuple[ArrayTree, Array, Extras]:
        q_values = network.action_values(output)
        is_legal = None if env.legal_actions is None else env.legal_actions(obs)
        facts = (obs, output, q_values, is_first, state.num_steps, is_prefill, is_legal)
        acted = behaviour.act(behaviour_state, key, Situation(*facts))
        check_acted(acted, behaviour_state)
        if is_prefill:  # the replay was made for the extras of later steps
            later = Situation(*facts)._replace(is_prefill=False)
            shapes = jax.eval_shape(lambda: behaviour.act(behaviour_state, key, later))
            ensure_alike("extras in the prefill", acted[2], shapes[2])
        return acted

    arguments = (state.behaviour, explore_keys, state.obs, outputs, state.is_first)
    behaviour_state, action, extras = jax.vmap(choose)(*arguments)
    step_all = jax.vmap(functools.partial(step_and_reset, env), axis_name=BATCH)
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


def begin_measuring(measure: Measure | None, state: TrainState) -> TrainState:
    """Makes the accumulator of a measure in a state that is about to learn."""
    if measure is None:
        return state
    # Copied: one buffer cannot be donated twice.
    return dataclasses.replace(state, measured=jax.tree.map(jnp.copy, measure.init(state)))


@jax.custom_batching.custom_vmap
def _same_in_all_runs(count: Array) -> Array:
    """Returns a count as it is, and refuses one that the runs of a batch would not share."""
    return count


@_same_in_all_runs.def_vmap
def _ensure_shared(_: int, is_batched: list[bool], count: Array) -> tuple[Array, bool]:
    if is_batched[0]:
        raise ConfigError(
            "after_update sets num_updates by what differs between runs, such as weights or "
            "returns, but runs that train side by side share it: let it depend on num_updates and "
            "num_steps alone"
        )
    return count, False


def end_update(
    key: Array,
    before: TrainState,
    state: TrainState,
    batch: Any,
    metrics: dict[str, Array],
    after_update: AfterUpdate | None = None,
    measure: Measure | None = None,
) -> tuple[TrainState, Metrics]:
    """Ends a gradient step on a batch: with what follows it, and with a look inside.

    Returns:
      The state; the learner's metrics; and `[]` float32 by name, what was measured, NaN where that
      was not due.
    """
    check_metrics({n: x for n, x in metrics.items() if n != "loss"}, of="the learner")
    ensure_alike("the state after Learner.update and Replay.update", state, before)
    if after_update is not None:
        changed: Any = after_update(key, state)
        ensure(isinstance(changed, TrainState), "what after_update returns", changed, "the state")
        ensure_alike("what after_update returns", changed, state)
        count = _same_in_all_runs(changed.learner.num_updates)
        learner = dataclasses.replace(changed.learner, num_updates=count)
        state = dataclasses.replace(changed, learner=learner)
    if measure is None:
        return state, (metrics, {})
    measure_key = jax.random.fold_in(key, 1)

    def take() -> tuple[ArrayTree, dict[str, Array]]:
        taken = measure.update(state.measured, before, state, batch, measure_key)
        is_pair = isinstance(taken, tuple) and len(taken) == 2
        ensure(is_pair, "what Measure.update returns", taken, "(accumulator, metrics)")
        accumulator, numbers = taken
        ensure_alike("the accumulator of measure", accumulator, state.measured)
        check_metrics(numbers, of="measure")
        if twice := metrics.keys() & numbers.keys():
            raise ConfigError(f"measure has metrics {sorted(twice)}, as the loss has: rename them")
        return accumulator, {name: jnp.float32(x) for name, x in numbers.items()}

    nothing = dict.fromkeys(jax.eval_shape(take)[1], jnp.full((), jnp.nan))
    is_due = state.learner.num_updates % measure.every == 0
    # All runs of a batch have taken as many steps: under vmap, too, only one side of it runs.
    accumulator, measured = jax.lax.cond(is_due, take, lambda: (state.measured, nothing))
    return dataclasses.replace(state, measured=accumulator), (metrics, measured)


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
