"""Deep Q-learning from top to bottom: the learner, the training run, and how settings make them.

`train.init(key)` fills the replay with random play; `train.chunk(state, n, m)` then repeats: act k
times, learn n times. Both are pure, so `jax.jit` compiles them, `jax.vmap` runs them for many seeds
and settings, and `purejaxdqn.sweep` drives them over every device.

Mnih et al., "Human-level control through deep reinforcement learning" (2015), algorithm 1; the
differences are in `docs/deviations.md`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import environments, losses, networks
from purejaxdqn.config import DQNConfig
from purejaxdqn.environments import Environment, step_and_reset
from purejaxdqn.evaluation import Policy, greedy_policy
from purejaxdqn.exploration import (
    Schedule,
    epsilon_greedy,
    linear_schedule,
    multiplicative_schedule,
)
from purejaxdqn.losses.bellman import Penalty
from purejaxdqn.replay import n_step_replay, prioritised_replay, uniform_replay
from purejaxdqn.types import (
    Array,
    ConfigError,
    Learner,
    LearnerState,
    LossFn,
    LossOutput,
    Network,
    Params,
    Replay,
    Step,
    TrainState,
    Transition,
)

# ------------------------------------------------------------------------------------------ learner

# Names that a results file has for something else: no metric of a loss may have one of them.
RESERVED_METRICS = frozenset(
    {"loss", "evaluation_return", "final_return", "training_return", "num_updates"}
    | {"gymnasium_return", "step", "seed", "episode"}
    | {field.name for field in dataclasses.fields(DQNConfig)}
)

TargetUpdate = Callable[[Params, Params, Array], Params]  # (params, target_params, num_updates)


def periodic_target_update(period: int, step_size: Array | float = 1.0) -> TargetUpdate:
    """Every `period` gradient steps, moves the target network towards the online one.

    A step size of 1 is the hard copy of Mnih et al. (2015); a period of 1 with a small step size is
    Polyak averaging, Lillicrap et al., "Continuous control with deep reinforcement learning"
    (2016), algorithm 1.

    Args:
      period: gradient steps between two moves.
      step_size: `[]` above 0, at most 1.

    Returns:
      `(params, target_params, num_updates []) -> target_params`, with `num_updates` counting the
      step just taken.
    """

    def target_update(params: Params, target_params: Params, num_updates: Array) -> Params:
        # A select and no branch: a branch on a batched predicate would run both sides anyway.
        rate = jnp.where(num_updates % period == 0, step_size, 0.0)
        moved = optax.incremental_update(params, target_params, step_size)
        return jax.tree.map(lambda new, old: jnp.where(rate > 0, new, old), moved, target_params)

    return target_update


def make_learner(
    network: Network,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    target_update: TargetUpdate,
) -> Learner:
    """Makes the learner: the mean loss of a batch, one optimiser step, the target's update.

    Args:
      network: the value network.
      loss_fn: loss of ONE transition.
      optimizer: any optax optimiser.
      target_update: such as `periodic_target_update(50)`.

    Returns:
      The `Learner`. Its metrics are the loss function's own, averaged over the batch, and `loss`.

    Raises:
      ConfigError: from `update`, if a metric has one of the `RESERVED_METRICS` for its name.
    """

    def init(key: Array, obs: Array) -> LearnerState:
        params = network.init(key, obs)
        return LearnerState(
            params=params,
            # Two buffers, so that both can be donated.
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            num_updates=jnp.zeros((), jnp.int32),
        )

    def update(
        state: LearnerState, transition: Transition, key: Array, weights: Array | None = None
    ) -> tuple[LearnerState, Array, dict[str, Array]]:
        keys = jax.random.split(key, transition.r_t.shape[0])

        def mean_loss(params: Params) -> tuple[Array, LossOutput]:
            batched = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
            output = batched(network, params, state.target_params, transition, keys)
            weighted = output.loss if weights is None else weights * output.loss
            return jnp.mean(weighted), output

        (loss, output), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        if reserved := RESERVED_METRICS & set(output.metrics):
            raise ConfigError(
                f"the loss has a metric named {', '.join(sorted(reserved))}, which names something "
                "else in results: rename it"
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        num_updates = state.num_updates + 1
        target_params = target_update(params, state.target_params, num_updates)
        metrics = {"loss": loss, **jax.tree.map(jnp.mean, output.metrics)}
        state = LearnerState(params, target_params, opt_state, num_updates)
        return state, output.priority, metrics

    return Learner(init, update)


def importance_weights(probabilities: Array, exponent: Array | float) -> Array:
    """What each transition of a batch counts, so that its sampling is corrected for.

    Schaul et al., "Prioritized experience replay" (2016), section 3.4: `(N P)^-exponent` over the
    largest of the batch, in which the number of transitions `N` cancels.

    Args:
      probabilities: `[B]` with which they were drawn, above 0.
      exponent: `[]` 0 corrects nothing, 1 wholly.

    Returns:
      `[B]` above 0, at most 1.
    """
    return (probabilities / jnp.min(probabilities)) ** -exponent


# ------------------------------------------------------------------------------------- training run


class ChunkOutputs(NamedTuple):
    """What happened in a chunk of at most `M` iterations; rows that were not run are NaN.

    Attributes:
      episode_return: `[M, k, E]` the return of the episode that ended at this step, NaN
        where none did.
      metrics: `[M]` each of the learner's metrics, averaged over the iteration's updates.
    """

    episode_return: Array
    metrics: dict[str, Array]


class Train(NamedTuple):
    """A training run as pure functions of arrays.

    Attributes:
      init: `key -> TrainState`, with the replay prefilled. To be compiled apart from `chunk`.
      chunk: `(TrainState, num_iterations [], max_iterations) -> (TrainState, ChunkOutputs)`. The
        number of iterations is an argument of the compiled program, so any chunking runs the same
        program and gives the same bits; only `max_iterations`, the room in the outputs, is static.
      policy: `params -> greedy policy`, for evaluation.
      env: the environment.
    """

    init: Callable[[Array], TrainState]
    chunk: Callable[[TrainState, Array, int], tuple[TrainState, ChunkOutputs]]
    policy: Callable[[Params], Policy]
    env: Environment


def make_train(
    config: DQNConfig,
    env: Environment,
    network: Network,
    learner: Learner,
    replay: Replay,
    epsilon: Schedule,
    importance_exponent: Schedule | None = None,
) -> Train:
    """Makes the training run out of its parts.

    Args:
      config: for the counts only: num_envs, prefill_steps, steps_per_update, updates_per_iteration.
      env: the environment.
      network: the value network.
      learner: what a gradient step does.
      replay: what is remembered.
      epsilon: `num_steps -> probability of a random action`, in environment steps.
      importance_exponent: `num_updates -> exponent` of `importance_weights`, in gradient steps;
        without it each transition counts the same.

    Returns:
      The `Train`.
    """
    num_envs = config.num_envs
    acts_per_iteration = config.steps_per_update // num_envs

    def act(state: TrainState, epsilon: Array | float) -> tuple[TrainState, Array]:
        """One step of every environment; also says which returns `[E]` became final."""
        # All keys in one call of the generator: a call costs more than a key.
        keys = jax.random.split(state.key, 1 + 3 * num_envs)
        explore_keys, network_keys, env_keys = keys[1:].reshape(3, num_envs)
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
            replay=replay.add(state.replay, step),
            env_state=env_state,
            obs=obs,
            episode_return=jnp.where(ended, 0.0, episode_return),
            key=keys[0],
            num_steps=state.num_steps + num_envs,
        )
        return state, jnp.where(ended, episode_return, jnp.nan)

    def learn(state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """One gradient step."""
        key, sample_key, loss_key = jax.random.split(state.key, 3)
        sample = replay.sample(state.replay, sample_key)
        weights = None
        if importance_exponent is not None:
            exponent = importance_exponent(state.learner.num_updates)
            weights = importance_weights(sample.probabilities, exponent)
        learner_state, priorities, metrics = learner.update(
            state.learner, sample.transition, loss_key, weights
        )
        replay_state = replay.update(state.replay, sample.indices, priorities)
        state = dataclasses.replace(state, learner=learner_state, replay=replay_state, key=key)
        return state, metrics

    def iteration(state: TrainState) -> tuple[TrainState, ChunkOutputs]:
        def act_once(state: TrainState, _: None) -> tuple[TrainState, Array]:
            return act(state, epsilon(state.num_steps))

        state, episode_return = jax.lax.scan(act_once, state, length=acts_per_iteration)
        state, metrics = jax.lax.scan(
            lambda state, _: learn(state), state, length=config.updates_per_iteration
        )
        return state, ChunkOutputs(episode_return, jax.tree.map(jnp.mean, metrics))

    def init(key: Array) -> TrainState:
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
        state = TrainState(
            learner=learner.init(network_key, obs[0]),
            replay=replay.init(first_step),
            env_state=env_state,
            obs=obs,
            episode_return=jnp.zeros(num_envs),
            key=key,
            num_steps=jnp.zeros((), jnp.int32),
        )
        return jax.lax.fori_loop(
            0,
            config.prefill_steps // num_envs,
            lambda _, state: act(state, 1.0)[0],  # uniformly random
            state,
        )

    def chunk(
        state: TrainState, num_iterations: Array, max_iterations: int
    ) -> tuple[TrainState, ChunkOutputs]:
        run_iteration = jax.jit(iteration)  # traced once, for its shapes and for the loop

        def body(
            i: Array, carry: tuple[TrainState, ChunkOutputs]
        ) -> tuple[TrainState, ChunkOutputs]:
            state, outputs = carry
            state, output = run_iteration(state)
            write = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
            return state, jax.tree.map(write, outputs, output)

        shapes = jax.eval_shape(run_iteration, state)[1]
        empty = jax.tree.map(
            lambda leaf: jnp.full((max_iterations, *leaf.shape), jnp.nan, leaf.dtype), shapes
        )
        return jax.lax.fori_loop(0, num_iterations, body, (state, empty))

    return Train(init, chunk, functools.partial(greedy_policy, network), env)


# ------------------------------------------------------------------------------------- put together

LOSSES: dict[str, Callable[[DQNConfig, Penalty], LossFn]] = {
    "q_learning": lambda config, penalty: losses.bellman_loss(losses.q_learning, penalty),
    "double_q_learning": lambda config, penalty: losses.bellman_loss(
        losses.double_q_learning, penalty
    ),
    "expected_sarsa": lambda config, penalty: losses.bellman_loss(
        functools.partial(losses.expected_sarsa, epsilon=config.epsilon_end), penalty
    ),
    "soft_q_learning": lambda config, penalty: losses.bellman_loss(
        functools.partial(losses.soft_q_learning, temperature=config.temperature), penalty
    ),
    "persistent_advantage_learning": lambda config, penalty: (
        losses.persistent_advantage_learning_loss(config.advantage_coefficient, penalty)
    ),
}
PENALTIES = {
    "squared": lambda config, env: optax.l2_loss,
    "huber": lambda config, env: functools.partial(optax.huber_loss, delta=config.huber_threshold),
    "masked_squared": lambda config, env: losses.masked_squared_error(env.num_actions),
}
OPTIMIZERS = {
    "adam": lambda config, step_size: optax.adam(step_size, eps=config.adam_epsilon),
    "rmsprop": lambda config, step_size: optax.rmsprop(step_size, decay=0.9, eps=1e-7),
}


def _linear_epsilon(config: DQNConfig) -> Schedule:
    duration = config.epsilon_fraction * config.total_steps
    return linear_schedule(config.epsilon_start, config.epsilon_end, duration)


def _multiplicative_epsilon(config: DQNConfig) -> Schedule:
    schedule = multiplicative_schedule(
        config.epsilon_start, config.epsilon_decay, config.epsilon_end
    )
    return lambda num_steps: schedule(num_steps - config.prefill_steps)


EPSILON_SCHEDULES = {"linear": _linear_epsilon, "multiplicative": _multiplicative_epsilon}


def _make_loss(config: DQNConfig, env: Environment) -> LossFn:
    double = config.td_error == "double_q_learning"
    if config.representation == "categorical":
        return losses.categorical_loss(double)
    soft = config.temperature if config.munchausen else None
    if config.representation == "values":
        make_loss = LOSSES["soft_q_learning" if config.munchausen else config.td_error]
        loss_fn = make_loss(config, PENALTIES[config.penalty](config, env))
    else:
        # A soft target has no next action to pick.
        loss_fn = losses.quantile_loss(
            double and not config.munchausen, config.huber_threshold, soft
        )
    if config.munchausen:
        loss_fn = losses.munchausen(loss_fn, config.temperature, config.munchausen_coefficient)
    return loss_fn


def dqn(
    config: DQNConfig,
    *,
    env: Environment | None = None,
    network: Network | None = None,
    loss_fn: LossFn | None = None,
    optimizer: Callable[[Schedule], optax.GradientTransformation] | None = None,
) -> Train:
    """DQN as an `Experiment`: settings in, training run out.

    To change a part, pass it: `partial(dqn, loss_fn=mine)`. Called inside the traced function, so
    that every float of the config may be a tracer.

    Args:
      config: the settings.
      env: instead of the one that `config.env` names.
      network: instead of the MLP of `config.hidden_sizes` with the head of `config.representation`.
      loss_fn: instead of that of `config.representation`, `config.td_error` and `config.penalty`.
      optimizer: `learning-rate schedule -> optax optimiser`, such as `optax.rmsprop`, instead of
        the one that `config.optimizer` names; behind the clipping of the gradients' global norm.
        FQF's proposal of fractions keeps its own.

    Returns:
      The `Train`.
    """
    env = env or environments.make(config.env)
    network = network or networks.value_network(
        env.num_actions,
        config.hidden_sizes,
        dueling=config.dueling,
        noisy=config.noisy,
        layer_norm=config.layer_norm,
        representation=config.representation,
        num_atoms=config.num_atoms,
        v_min=config.value_min,
        v_max=config.value_max,
        num_quantiles=config.num_quantiles,
    )
    loss_fn = loss_fn or _make_loss(config, env)

    def decaying(step_size: Array | float) -> Schedule:
        end = step_size * config.learning_rate_end_fraction
        return linear_schedule(step_size, end, config.num_updates)

    learning_rate = decaying(config.learning_rate)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    if optimizer is None:
        named = OPTIMIZERS[config.optimizer](config, learning_rate)
        # All weights as one vector: a few long operations where each layer would have its own.
        transformation = optax.flatten(optax.chain(clip, named))
    else:
        transformation = optax.chain(clip, optimizer(learning_rate))
    if config.representation == "proposed_quantile":
        proposal = optax.rmsprop(decaying(config.fraction_learning_rate), decay=0.95, eps=1e-5)
        transformation = optax.multi_transform(
            {"value": transformation, "fraction_proposal": proposal},
            networks.label_fraction_proposal,
        )
    learner = make_learner(
        network,
        loss_fn,
        transformation,
        periodic_target_update(config.target_period, config.target_step_size),
    )
    ring = (config.replay_capacity, config.batch_size, config.discount, env.max_steps)
    importance_exponent = None
    if config.prioritised:
        replay = prioritised_replay(*ring, config.priority_exponent)
        importance_exponent = linear_schedule(config.importance_exponent, 1.0, config.num_updates)
    else:
        replay = uniform_replay(*ring, config.sample_with_replacement)
    replay = n_step_replay(replay, config.n_step)
    epsilon = EPSILON_SCHEDULES[config.epsilon_schedule](config)
    if config.noisy:  # the weights explore by themselves
        epsilon = linear_schedule(0.0, 0.0, 0)
    return make_train(config, env, network, learner, replay, epsilon, importance_exponent)
