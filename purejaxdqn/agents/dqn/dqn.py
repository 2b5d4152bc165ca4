"""Deep Q-learning from top to bottom: the training run, and how settings make its parts.

`train.init(key)` fills the replay with random play. `train.chunk(state, n, m)` then repeats: act k
times, learn n times. Both are pure: `jax.jit` compiles them, `jax.vmap` runs them for many seeds
and settings, and a sweep drives them over every device.

Mnih et al., "Human-level control through deep reinforcement learning" (2015), algorithm 1; the
differences are in `docs/deviations.md`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import environments, losses, networks
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.environments import Environment
from purejaxdqn.losses.bellman_loss import Penalty
from purejaxdqn.replay import n_step_replay, n_step_transition, prioritised_replay, uniform_replay
from purejaxdqn.training import exploration
from purejaxdqn.training import learner as learning
from purejaxdqn.training.diagnostics import NUM_STATES, Probe, gradient_norm
from purejaxdqn.training.evaluation import greedy_policy
from purejaxdqn.training.loop import ChunkOutputs, Train, act, make_first_state, run_chunk
from purejaxdqn.training.settings import ensure_kind
from purejaxdqn.types import Array, LossFn, Network, Replay, TrainState, Transition


def dqn(
    config: DQNConfig,
    *,
    env: Environment | None = None,
    network: Network[Any] | None = None,
    loss_fn: LossFn[Any] | None = None,
    optimizer: learning.MakeOptimizer | None = None,
) -> Train:
    """Makes a training run of DQN from settings: an `Experiment`.

    To change a part, pass it: `partial(dqn, loss_fn=mine)`. This is called inside the traced
    function, so that every float of the config may be a tracer. This function is long, so that the
    whole run can be read in one place.

    Args:
      config: the settings.
      env: instead of the one that `config.env` names.
      network: instead of the MLP of `config.hidden_sizes` with the head of `config.representation`.
      loss_fn: instead of that of `config.representation`, `config.td_error` and `config.penalty`.
      optimizer: `learning-rate schedule -> optax optimiser`, such as `optax.rmsprop`, instead of
        the one that `config.optimizer` names; behind the clipping of the gradients' global norm.
        FQF's proposal of fractions keeps its own.

    Raises:
      ConfigError: for settings of another kind.
    """
    ensure_kind(config, DQNConfig)
    env = environments.make(config.env) if env is None else environments.ensure(env)
    network = _make_network(config, env) if network is None else network
    learner = learning.make_learner(
        network,
        _make_loss(config, env) if loss_fn is None else loss_fn,
        _make_transformation(config, optimizer),
        learning.periodic_target_update(config.target_period, config.target_step_size),
    )
    replay = _make_replay(config, env)
    epsilon = choose_epsilon(config)
    exponent_at = exploration.linear_schedule(config.importance_exponent, 1.0, config.num_updates)
    to_transition = functools.partial(n_step_transition, discount=config.discount)

    def act_once(state: TrainState, epsilon: Array | float) -> tuple[TrainState, Array]:
        """Steps every environment once; also gives the returns `[E]` of episodes that ended."""
        state, step, episode_return = act(env, network, state, epsilon)
        state = dataclasses.replace(state, replay=replay.add(state.replay, step))
        return state, episode_return

    def draw(state: TrainState, key: Array) -> tuple[Transition, Array | None, Array]:
        """Draws a batch; also says what each transition counts, and its index in the replay."""
        sample = replay.sample(state.replay, key)
        transitions = jax.vmap(to_transition)(sample.window)
        if not config.prioritised:
            return transitions, None, sample.indices
        exponent = exponent_at(state.learner.num_updates)
        return transitions, importance_weights(sample.probabilities, exponent), sample.indices

    def learn(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        """Takes one gradient step."""
        key, sample_key, loss_key = jax.random.split(state.key, 3)
        transitions, weights, indices = draw(state, sample_key)
        updated, priorities, metrics = learner.update(state.learner, transitions, loss_key, weights)
        remembered = replay.update(state.replay, indices, priorities)
        return dataclasses.replace(state, learner=updated, replay=remembered, key=key), metrics

    def iteration(state: TrainState) -> tuple[TrainState, ChunkOutputs]:
        state, episode_return = jax.lax.scan(
            lambda state, _: act_once(state, epsilon(state.num_steps)),
            state,
            length=config.steps_per_update // config.num_envs,
        )
        state, metrics = jax.lax.scan(learn, state, length=config.updates_per_iteration)
        return state, ChunkOutputs(episode_return, jax.tree.map(jnp.mean, metrics))

    def init(key: Array) -> TrainState:
        return jax.lax.fori_loop(
            0,
            config.prefill_steps // config.num_envs,
            lambda _, state: act_once(state, 1.0)[0],  # uniformly random
            make_first_state(key, env, config.num_envs, learner, replay),
        )

    def observe(state: TrainState, key: Array) -> tuple[Array, Array]:
        """Draws batches that might be learned from next; gives their states and gradients."""

        def observe_batch(key: Array) -> tuple[Array, Array]:
            sample_key, loss_key = jax.random.split(key)
            transitions, weights, _ = draw(state, sample_key)
            norm = gradient_norm(learner, state.learner, transitions, loss_key, weights)
            return transitions.obs_tm1, norm

        num_batches = math.ceil(NUM_STATES / config.batch_size)
        obs, norms = jax.vmap(observe_batch)(jax.random.split(key, num_batches))
        return obs.reshape(-1, *obs.shape[2:])[:NUM_STATES], jnp.mean(norms)

    chunk = functools.partial(run_chunk, iteration)
    probe = Probe(network, config.discount, observe)
    return Train(init, chunk, functools.partial(greedy_policy, network), env, probe)


def importance_weights(probabilities: Array, exponent: Array | float) -> Array:
    """Computes what transitions count `[B]` that were drawn with some probabilities `[B]`.

    Schaul et al., "Prioritized experience replay" (2016), section 3.4: `(N P)^-exponent` over the
    largest of the batch, in which the number of transitions `N` cancels. An exponent of 0 corrects
    nothing, 1 wholly.
    """
    return (probabilities / jnp.min(probabilities)) ** -exponent


def _make_network(config: DQNConfig, env: Environment) -> Network[Any]:
    return networks.value_network(
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


def _make_loss(config: DQNConfig, env: Environment) -> LossFn[Any]:
    """Chooses the loss that the settings name."""
    temperature, threshold = config.temperature, config.huber_threshold
    is_double = config.td_error == "double_q_learning"
    penalties: dict[str, Penalty] = {
        "squared": optax.l2_loss,
        "huber": functools.partial(optax.huber_loss, delta=threshold),
        "masked_squared": losses.masked_squared_error(env.num_actions),
    }
    loss_of = functools.partial(losses.bellman_loss, penalty=penalties[config.penalty])
    soft_q_learning = functools.partial(losses.soft_q_learning, temperature=temperature)
    munchausen = functools.partial(
        losses.munchausen, temperature=temperature, coefficient=config.munchausen_coefficient
    )
    match config.representation, config.munchausen, config.td_error:
        case "categorical", _, _:
            return losses.categorical_loss(double=is_double)
        case "quantile" | "implicit_quantile" | "proposed_quantile", True, _:
            # A soft target has no next action to pick.
            return munchausen(losses.quantile_loss(False, threshold, temperature))
        case "quantile" | "implicit_quantile" | "proposed_quantile", False, _:
            return losses.quantile_loss(is_double, threshold)
        case "values", True, _:
            return munchausen(loss_of(soft_q_learning))
        case "values", False, "q_learning":
            return loss_of(losses.q_learning)
        case "values", False, "double_q_learning":
            return loss_of(losses.double_q_learning)
        case "values", False, "expected_sarsa":
            return loss_of(functools.partial(losses.expected_sarsa, epsilon=config.epsilon_end))
        case "values", False, "soft_q_learning":
            return loss_of(soft_q_learning)
        case "values", False, "persistent_advantage_learning":
            penalty = penalties[config.penalty]
            return losses.persistent_advantage_learning_loss(config.advantage_coefficient, penalty)
        case unknown:
            raise ValueError(f"no loss for {unknown}: config.validate() says what is allowed")


def choose_optimizer(config: DQNConfig) -> learning.MakeOptimizer:
    """Chooses the optimiser that `config.optimizer` names."""
    if config.optimizer == "adam":
        return functools.partial(optax.adam, eps=config.adam_epsilon)
    return functools.partial(optax.rmsprop, decay=0.9, eps=1e-7)


def _make_transformation(
    config: DQNConfig, optimizer: learning.MakeOptimizer | None
) -> optax.GradientTransformation:
    """Makes the optimiser of all weights; FQF's proposal of fractions has its own."""
    transformation = learning.make_clipped_optimizer(config, optimizer, choose_optimizer)
    if config.representation != "proposed_quantile":
        return transformation
    rate = learning.linear_learning_rate(config, config.fraction_learning_rate)
    proposal = optax.rmsprop(rate, decay=0.95, eps=1e-5)
    return optax.multi_transform(
        {"value": transformation, "fraction_proposal": proposal}, networks.label_fraction_proposal
    )


def _make_replay(config: DQNConfig, env: Environment) -> Replay:
    sizes = (config.replay_capacity, config.batch_size, env.max_steps)
    if config.prioritised:
        replay = prioritised_replay(*sizes, config.priority_exponent)
    else:
        replay = uniform_replay(*sizes, config.sample_with_replacement)
    return n_step_replay(replay, config.n_step)


def choose_epsilon(config: DQNConfig) -> exploration.Schedule:
    """Chooses the schedule of epsilon, in environment steps, that the settings name."""
    if config.noisy:  # noisy weights explore by themselves
        return exploration.linear_schedule(0.0, 0.0, 0)
    if config.epsilon_schedule == "linear":
        return exploration.linear_epsilon(config)
    schedule = exploration.multiplicative_schedule(
        config.epsilon_start, config.epsilon_decay, config.epsilon_end
    )
    return lambda num_steps: schedule(num_steps - config.prefill_steps)
