"""Deep Q-learning from top to bottom: the training run, and how settings make it.

`train.init(key)` fills the replay with random play; `train.chunk(state, n, m)` then repeats: act k
times, learn n times. Both are pure, so `jax.jit` compiles them, `jax.vmap` runs them for many seeds
and settings, and `purejaxdqn.sweep.run` drives them over every device.

Mnih et al., "Human-level control through deep reinforcement learning" (2015), algorithm 1; the
differences are in `docs/deviations.md`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import environments, losses, networks
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.environments import Environment
from purejaxdqn.losses.bellman import Penalty
from purejaxdqn.replay import (
    n_step_replay,
    n_step_transition,
    prioritised_replay,
    uniform_replay,
)
from purejaxdqn.training.diagnostics import NUM_STATES, Probe, gradient_norm
from purejaxdqn.training.evaluation import greedy_policy
from purejaxdqn.training.exploration import Schedule, linear_schedule, multiplicative_schedule
from purejaxdqn.training.learner import MakeOptimizer, clipped, make_learner, periodic_target_update
from purejaxdqn.training.loop import (
    ChunkOutputs,
    Train,
    act,
    linear_epsilon,
    linear_learning_rate,
    run_chunk,
    start,
)
from purejaxdqn.training.settings import ensure_kind
from purejaxdqn.types import Array, Learner, LossFn, Network, Replay, TrainState, Transition

# ------------------------------------------------------------------------------------- training run


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
      config: for the counts (num_envs, prefill_steps, steps_per_update, updates_per_iteration,
        batch_size), and the discount.
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

    def act_once(state: TrainState, epsilon: Array | float) -> tuple[TrainState, Array]:
        """One step of every environment; also says which returns `[E]` became final."""
        state, step, episode_return = act(env, network, state, epsilon)
        state = dataclasses.replace(state, replay=replay.add(state.replay, step))
        return state, episode_return

    to_transition = functools.partial(n_step_transition, discount=config.discount)

    def draw(state: TrainState, key: Array) -> tuple[Transition, Array | None, Array]:
        """Draws a batch; also says what each transition counts, and its index in the replay."""
        sample = replay.sample(state.replay, key)
        transitions = jax.vmap(to_transition)(sample.window)
        if importance_exponent is None:
            return transitions, None, sample.indices
        exponent = importance_exponent(state.learner.num_updates)
        return transitions, importance_weights(sample.probabilities, exponent), sample.indices

    def learn(state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """Takes one gradient step."""
        key, sample_key, loss_key = jax.random.split(state.key, 3)
        transitions, weights, indices = draw(state, sample_key)
        learner_state, priorities, metrics = learner.update(
            state.learner, transitions, loss_key, weights
        )
        replay_state = replay.update(state.replay, indices, priorities)
        state = dataclasses.replace(state, learner=learner_state, replay=replay_state, key=key)
        return state, metrics

    def iteration(state: TrainState) -> tuple[TrainState, ChunkOutputs]:
        state, episode_return = jax.lax.scan(
            lambda state, _: act_once(state, epsilon(state.num_steps)),
            state,
            length=acts_per_iteration,
        )
        state, metrics = jax.lax.scan(
            lambda state, _: learn(state), state, length=config.updates_per_iteration
        )
        return state, ChunkOutputs(episode_return, jax.tree.map(jnp.mean, metrics))

    def init(key: Array) -> TrainState:
        return jax.lax.fori_loop(
            0,
            config.prefill_steps // num_envs,
            lambda _, state: act_once(state, 1.0)[0],  # uniformly random
            start(key, env, num_envs, learner, replay),
        )

    def observe(state: TrainState, key: Array) -> tuple[Array, Array]:
        """States and gradients of batches that might be learned from next."""

        def batch(key: Array) -> tuple[Array, Array]:
            sample_key, loss_key = jax.random.split(key)
            transitions, weights, _ = draw(state, sample_key)
            norm = gradient_norm(learner, state.learner, transitions, loss_key, weights)
            return transitions.obs_tm1, norm

        num_batches = math.ceil(NUM_STATES / config.batch_size)
        obs, norms = jax.vmap(batch)(jax.random.split(key, num_batches))
        return obs.reshape(-1, *obs.shape[2:])[:NUM_STATES], jnp.mean(norms)

    chunk = functools.partial(run_chunk, iteration)
    probe = Probe(network, config.discount, observe)
    return Train(init, chunk, functools.partial(greedy_policy, network), env, probe)


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


def _multiplicative_epsilon(config: DQNConfig) -> Schedule:
    schedule = multiplicative_schedule(
        config.epsilon_start, config.epsilon_decay, config.epsilon_end
    )
    return lambda num_steps: schedule(num_steps - config.prefill_steps)


EPSILON_SCHEDULES = {"linear": linear_epsilon, "multiplicative": _multiplicative_epsilon}


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
    optimizer: MakeOptimizer | None = None,
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

    Raises:
      ConfigError: for settings of another kind.
    """
    ensure_kind(config, DQNConfig)
    env = env or environments.make(config.env)
    network = network or networks.value_network(
        env.num_actions,
        config.hidden_sizes,
        head_sizes=config.head_sizes,
        dueling=config.dueling,
        noisy=config.noisy,
        layer_norm=config.layer_norm,
        representation=config.representation,
        num_atoms=config.num_atoms,
        v_min=config.value_min,
        v_max=config.value_max,
        num_quantiles=config.num_quantiles,
        num_cosines=config.num_cosines,
    )
    loss_fn = loss_fn or _make_loss(config, env)
    learning_rate = linear_learning_rate(config, config.learning_rate)
    named = functools.partial(OPTIMIZERS[config.optimizer], config)
    transformation = clipped(optimizer, named, learning_rate, config.max_grad_norm)
    if config.representation == "proposed_quantile":
        proposal = optax.rmsprop(
            linear_learning_rate(config, config.fraction_learning_rate), decay=0.95, eps=1e-5
        )
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
    ring = (config.replay_capacity, config.batch_size, env.max_steps)
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
