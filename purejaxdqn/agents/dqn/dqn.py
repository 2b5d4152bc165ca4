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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import environments, losses, networks
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.torso import make_torso
from purejaxdqn.behaviours import epsilon_greedy_behaviour
from purejaxdqn.environments import Environment
from purejaxdqn.replay import (
    first_steps,
    n_step_replay,
    n_step_transition,
    prioritised_replay,
    uniform_replay,
)
from purejaxdqn.training import learner as learning
from purejaxdqn.training import schedules
from purejaxdqn.training.diagnostics import NUM_STATES, Probe, gradient_norm
from purejaxdqn.training.evaluation import greedy_policy
from purejaxdqn.training.loop import (
    Actor,
    ChunkOutputs,
    Metrics,
    Train,
    act,
    begin_anew,
    begin_measuring,
    end_update,
    make_first_state,
    run_chunk,
)
from purejaxdqn.training.parts import ensure_parts, refuse_unused
from purejaxdqn.training.settings import ensure_kind
from purejaxdqn.types import (
    AfterUpdate,
    Array,
    BatchLossFn,
    Behaviour,
    Learner,
    LossFn,
    Measure,
    Network,
    Params,
    Replay,
    Schedule,
    TrainState,
    Transition,
    Window,
)


def dqn(
    config: DQNConfig,
    *,
    env: Environment | None = None,
    network: Network[Any] | None = None,
    initial_params: Params | None = None,
    behaviour: Behaviour | None = None,
    replay: Replay | None = None,
    loss_fn: LossFn[Any] | None = None,
    wrap_loss: Callable[[LossFn[Any]], LossFn[Any]] | None = None,
    batch_loss: BatchLossFn[Any] | None = None,
    optimizer: learning.MakeOptimizer | None = None,
    target_update: learning.TargetUpdate | None = None,
    learner: Learner | None = None,
    after_update: AfterUpdate | None = None,
    measure: Measure | None = None,
) -> Train:
    """Makes a training run of DQN from settings: an `Experiment`.

    To change a part, pass it: `partial(dqn, loss_fn=mine)`. This is called inside the traced
    function, so that every float of the config may be a tracer. This function is long, so that the
    whole run can be read in one place.

    Args:
      config: the settings.
      env: instead of the one that `config.env` names.
      network: instead of that of `config.torso` and `config.hidden_sizes` with the head of
        `config.representation`.
      initial_params: instead of the network's own, such as those of `load_params`; every seed
        begins with the same ones then, or with those of a function `key -> params`.
      behaviour: instead of epsilon-greedy actions.
      replay: instead of that of `config.replay_capacity`, `config.batch_size` and
        `config.prioritised`; transitions count what its probabilities say.
      loss_fn: instead of that of `config.representation`, `config.td_error` and `config.penalty`.
      wrap_loss: makes another loss of that one.
      batch_loss: instead of both; it sees the whole batch.
      optimizer: `learning-rate schedule -> optax optimiser`, such as `optax.rmsprop`, instead of
        the one that `config.optimizer` names; behind the clipping of the gradients' global norm.
        FQF's proposal of fractions keeps its own.
      target_update: instead of that of `config.target_period` and `config.target_step_size`;
        `no_target` for no target network.
      learner: instead of all that the losses, the optimiser and the target's update make.
      after_update: what a gradient step is followed by.
      measure: diagnostics of one's own; they change nothing.

    Raises:
      ConfigError: for settings of another kind, or a part that is of none or not used.
    """
    ensure_kind(config, DQNConfig)
    given: dict[str, Any] = {"loss_fn": loss_fn, "wrap_loss": wrap_loss, "batch_loss": batch_loss}
    given |= {"optimizer": optimizer, "target_update": target_update}
    refuse_unused(learner, initial_params=initial_params, **given)
    own = {"network": network, "behaviour": behaviour, "replay": replay, "learner": learner}
    ensure_parts(config, **own, **given, after_update=after_update, measure=measure)
    env = environments.make(config.env) if env is None else environments.ensure(env)
    network = _make_network(config, env) if network is None else network
    if initial_params is not None:
        network = networks.begin_with(network, initial_params)
    network = networks.mask_illegal(network, env.legal_actions)
    if behaviour is None:
        behaviour = epsilon_greedy_behaviour(choose_epsilon(config))
    is_weighted = replay is not None or config.prioritised
    longest = schedules.largest(config.n_step)
    exponent_at = schedules.linear_schedule(config.importance_exponent, 1.0, config.num_updates)

    def make_actor(now: DQNConfig) -> Actor:
        return Actor(env, network, schedules.part_of(behaviour, now), config.num_envs)

    def make_parts(now: DQNConfig) -> tuple[Learner, Replay, Callable[[Window], Any]]:
        """Makes what a gradient step is taken with, of the settings as they are then."""
        own = functools.partial(schedules.part_of, now=now)
        ring = _make_replay(now, env) if replay is None else own(replay)
        ring = n_step_replay(ring, longest) if longest > 1 else ring
        to_transition = ring.to_transition or n_step_transition

        def transition_of(window: Window) -> Any:
            cut = first_steps(window, now.n_step) if callable(config.n_step) else window
            return to_transition(cut, now.discount)

        if learner is not None:
            return own(learner), ring, transition_of
        loss = own(loss_fn)
        if loss_fn is None and batch_loss is None:
            loss = losses.from_config(now, env.num_actions)
        loss = learning.wrap(loss, own(wrap_loss))
        move_target = _make_target_update(now) if target_update is None else own(target_update)
        transformation = _make_transformation(now, own(optimizer))
        made = learning.make_learner(network, loss, transformation, move_target, own(batch_loss))
        return made, ring, transition_of

    actor_at = schedules.follow(config, make_actor)  # num_updates -> what acts
    parts_at = schedules.follow(config, make_parts)  # num_updates -> parts
    first_learner, first_replay, _ = parts_at(0)

    def act_once(state: TrainState, is_prefill: bool = False) -> tuple[TrainState, Array]:
        """Steps every environment once; also gives the returns `[E]` of episodes that ended."""
        actor = actor_at(state.learner.num_updates)
        state, step, episode_return, key = act(actor, state, is_prefill)
        remembered = first_replay.add(state.replay, step, key)
        return dataclasses.replace(state, replay=remembered), episode_return

    def draw(state: TrainState, key: Array) -> tuple[Transition, Array | None, Array]:
        """Draws a batch; also says what each transition counts, and its index in the replay."""
        _, replay, transition_of = parts_at(state.learner.num_updates)
        sample = replay.sample(state.replay, key)
        transitions = jax.vmap(transition_of)(sample.window)
        if not is_weighted:
            return transitions, None, sample.indices
        exponent = exponent_at(state.learner.num_updates)
        return transitions, importance_weights(sample.probabilities, exponent), sample.indices

    def learn(before: TrainState, _: None) -> tuple[TrainState, Metrics]:
        """Takes one gradient step."""
        learner, replay = parts_at(before.learner.num_updates)[:2]
        key, sample_key, loss_key, last_key = jax.random.split(before.key, 4)
        batch, weights, indices = draw(before, sample_key)
        updated, priorities, metrics = learner.update(before.learner, batch, loss_key, weights)
        remembered = replay.update(before.replay, indices, priorities)
        state = dataclasses.replace(before, learner=updated, replay=remembered, key=key)
        return end_update(last_key, before, state, batch, metrics, after_update, measure)

    def iteration(state: TrainState) -> tuple[TrainState, ChunkOutputs]:
        state, episode_return = jax.lax.scan(
            lambda state, _: act_once(state),
            state,
            length=config.steps_per_update // config.num_envs,
        )
        updates = jax.lax.scan(learn, state, length=config.updates_per_iteration)
        state, (metrics, measured) = updates
        return state, ChunkOutputs(episode_return, jax.tree.map(jnp.mean, metrics), measured)

    def init(key: Array) -> TrainState:
        state = jax.lax.fori_loop(
            0,
            config.prefill_steps // config.num_envs,
            lambda _, state: act_once(state, is_prefill=True)[0],
            make_first_state(key, actor_at(0), first_learner, first_replay),
        )
        return begin_measuring(measure, state)

    def observe(state: TrainState, key: Array) -> tuple[Array, Array]:
        """Draws batches that might be learned from next; gives their states and gradients."""

        def observe_batch(key: Array) -> tuple[Array, Array]:
            sample_key, loss_key = jax.random.split(key)
            transitions, weights, _ = draw(state, sample_key)
            learner = parts_at(state.learner.num_updates)[0]
            norm = gradient_norm(learner, state.learner, transitions, loss_key, weights)
            return transitions.obs_tm1, norm

        batch_size = len(jax.eval_shape(first_replay.sample, state.replay, key).indices)
        num_batches = math.ceil(NUM_STATES / batch_size)
        obs, norms = jax.vmap(observe_batch)(jax.random.split(key, num_batches))
        return obs.reshape(-1, *obs.shape[2:])[:NUM_STATES], jnp.mean(norms)

    chunk = functools.partial(run_chunk, iteration)
    probe = Probe(network, config.discount, observe)
    anew = functools.partial(begin_anew, actor_at(0), replay=first_replay)
    can_cut = first_replay.cut is not None
    policy = functools.partial(greedy_policy, network)
    return Train(init, chunk, policy, env, probe, anew if can_cut else None)


def importance_weights(probabilities: Array, exponent: Array | float) -> Array:
    """Computes what transitions count `[B]` that were drawn with some probabilities `[B]`.

    Schaul et al., "Prioritized experience replay" (2016), section 3.4: `(N P)^-exponent` over the
    largest of the batch, in which the number of transitions `N` cancels. An exponent of 0 corrects
    nothing, 1 wholly.
    """
    return (probabilities / jnp.min(probabilities)) ** -exponent


def _make_network(config: DQNConfig, env: Environment) -> Network[Any]:
    network = networks.value_network(
        env.num_actions,
        config.hidden_sizes,
        torso=make_torso(config, env.observation_space.shape),
        head_sizes=config.head_sizes,
        dueling=config.dueling,
        noisy=config.noisy,
        noise=config.noise,
        layer_norm=config.layer_norm,
        spectral_norm=config.spectral_norm,
        representation=config.representation,
        num_atoms=config.num_atoms,
        v_min=config.value_min,
        v_max=config.value_max,
        num_quantiles=config.num_quantiles,
        num_cosines=config.num_cosines,
    )
    if config.ensemble == "none":
        return network
    read = jnp.min if config.ensemble == "min" else jnp.mean
    return networks.ensemble(network, config.num_members, functools.partial(read, axis=0))


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


def _make_target_update(config: DQNConfig) -> learning.TargetUpdate:
    return learning.periodic_target_update(config.target_period, config.target_step_size)


def _make_replay(config: DQNConfig, env: Environment) -> Replay:
    sizes = (config.replay_capacity, config.batch_size, env.truncation_interval)
    if config.prioritised:
        return prioritised_replay(*sizes, config.priority_exponent, frames=env.frames)
    return uniform_replay(*sizes, config.sample_with_replacement, env.frames)


def choose_epsilon(config: DQNConfig) -> Schedule:
    """Chooses the schedule of epsilon, in environment steps, that the settings name."""
    if config.noisy:  # noisy weights explore by themselves
        return schedules.linear_schedule(0.0, 0.0, 0)
    if config.epsilon_schedule == "linear":
        return schedules.linear_epsilon(config)
    schedule = schedules.multiplicative_schedule(
        config.epsilon_start, config.epsilon_decay, config.epsilon_end
    )
    return lambda num_steps: schedule(num_steps - config.prefill_steps)
