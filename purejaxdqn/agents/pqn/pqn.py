"""PQN from top to bottom: Q-learning on what many environments have just played.

`train.chunk(state, n, m)` repeats: play k steps in every environment, work out their Q(lambda)
returns, learn these over some epochs of shuffled minibatches, and forget them. There is no replay
and no target network; LayerNorm keeps the values from running away. The other parts are those of
`purejaxdqn.agents.dqn.dqn`.

Gallici et al., "Simplifying deep temporal difference learning" (2025), the algorithm PQN with
lambda-returns; the differences are in `docs/deviations.md`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import environments, losses, networks
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.agents.torso import make_torso
from purejaxdqn.behaviours import epsilon_greedy_behaviour
from purejaxdqn.environments import Environment
from purejaxdqn.training.diagnostics import NUM_STATES, Probe, gradient_norm
from purejaxdqn.training.evaluation import greedy_policy
from purejaxdqn.training.learner import (
    MakeOptimizer,
    make_clipped_optimizer,
    make_learner,
    wrap,
)
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
from purejaxdqn.training.schedules import follow, linear_epsilon, part_of
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
    Step,
    TrainState,
    Transition,
)


def pqn(
    config: PQNConfig,
    *,
    env: Environment | None = None,
    network: Network[Any] | None = None,
    initial_params: Params | None = None,
    behaviour: Behaviour | None = None,
    loss_fn: LossFn[Any] | None = None,
    wrap_loss: Callable[[LossFn[Any]], LossFn[Any]] | None = None,
    batch_loss: BatchLossFn[Any] | None = None,
    optimizer: MakeOptimizer | None = None,
    learner: Learner | None = None,
    after_update: AfterUpdate | None = None,
    measure: Measure | None = None,
) -> Train:
    """Makes a training run of PQN from settings: an `Experiment`.

    Its parts can be changed, and it is called, as those of `dqn`. This function is long, so that
    the whole run can be read in one place.

    Args:
      config: the settings.
      env: instead of that of `config.env`.
      network: instead of that of `config.torso`, `config.hidden_sizes` and `config.layer_norm`.
      loss_fn: instead of half the square of the TD error. It sees transitions whose `r_t` is the
        Q(lambda) return and whose `discount_t` is 0; `target_params` are the weights themselves.
      optimizer: as of `dqn`, instead of `optax.radam`.
      initial_params: as of `dqn`, and so the following.
      behaviour: instead of epsilon-greedy actions.
      wrap_loss: makes another loss of that one.
      batch_loss: instead of both; it sees a whole minibatch.
      learner: instead of all that the losses and the optimiser make.
      after_update: what a gradient step is followed by.
      measure: diagnostics of one's own; they change nothing.

    Raises:
      ConfigError: for settings of another kind, or a part that is of none or not used.
    """
    ensure_kind(config, PQNConfig)
    given: dict[str, Any] = {"loss_fn": loss_fn, "wrap_loss": wrap_loss, "batch_loss": batch_loss}
    given |= {"optimizer": optimizer}
    refuse_unused(learner, initial_params=initial_params, **given)
    own = {"network": network, "behaviour": behaviour, "learner": learner}
    ensure_parts(config, **own, **given, after_update=after_update, measure=measure)
    env = environments.make(config.env) if env is None else environments.ensure(env)
    if network is None:
        network = networks.value_network(
            env.num_actions,
            config.hidden_sizes,
            torso=make_torso(config, env.observation_space.shape),
            layer_norm=config.layer_norm,
            spectral_norm=config.spectral_norm,
        )
    if initial_params is not None:
        network = networks.begin_with(network, initial_params)
    network = networks.mask_illegal(network, env.legal_actions)
    if behaviour is None:
        behaviour = epsilon_greedy_behaviour(linear_epsilon(config))

    def make_actor(now: PQNConfig) -> Actor:
        return Actor(env, network, part_of(behaviour, now), config.num_envs)

    def make_own_learner(now: PQNConfig) -> Learner:
        """Makes the learner of the settings as they are at a gradient step."""
        own = functools.partial(part_of, now=now)
        if learner is not None:
            made: Learner = own(learner)
            return made
        loss: Any = losses.bellman_loss(losses.return_error) if loss_fn is None else own(loss_fn)
        loss = wrap(loss, own(wrap_loss))
        transformation = make_clipped_optimizer(now, own(optimizer), make_radam)
        return make_learner(network, loss, transformation, batch_loss=own(batch_loss))

    actor_at = follow(config, make_actor)  # num_updates -> what acts
    learner_at = follow(config, make_own_learner)

    def play(state: TrainState, _: None) -> tuple[TrainState, tuple[Step, Array]]:
        state, step, episode_return = act(actor_at(state.learner.num_updates), state)[:3]
        return state, (step, episode_return)

    def make_transitions(state: TrainState, steps: Step) -> Transition:
        """Makes transitions `[T * E, ...]` of the steps `[T, E, ...]` that were played."""
        now = config.at(state.learner.num_updates)

        def highest_value(obs: Array) -> Array:
            return jnp.max(network.action_values(network.apply(state.learner.params, obs)))

        def compute_returns(steps: Step, v_t: Array) -> Array:
            """Computes the Q(lambda) returns `[T]` of the steps `[T, ...]` of ONE environment."""
            discount_t = jnp.where(steps.terminated, 0.0, now.discount)
            return losses.q_lambda_returns(
                steps.reward, discount_t, steps.truncated, v_t, now.q_lambda
            )

        # At a time limit, of the true last observation. `[T, E]`, as the steps lie in memory.
        v_t = jax.vmap(jax.vmap(highest_value))(steps.next_obs)
        returns = jax.vmap(compute_returns, in_axes=1, out_axes=1)(steps, v_t)
        # The return stands for all rewards: a discount of 0 leaves nothing to bootstrap.
        nothing = jnp.zeros_like(returns)
        played = Transition(
            steps.obs, steps.action, returns, nothing, steps.next_obs, steps.truncated, steps.extras
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played)

    def learn(state: TrainState, steps: Step) -> tuple[TrainState, Metrics]:
        """Takes all gradient steps on the steps `[T, E, ...]`; the returns stay the same."""
        transitions = make_transitions(state, steps)

        def update(before: TrainState, batch: tuple[Any, ...]) -> tuple[TrainState, Metrics]:
            minibatch, loss_key, last_key = batch
            update_once = learner_at(before.learner.num_updates).update
            updated, _, metrics = update_once(before.learner, minibatch, loss_key)
            state = dataclasses.replace(before, learner=updated)
            ends = (after_update, measure)
            return end_update(last_key, before, state, minibatch, metrics, *ends)

        def epoch(state: TrainState, key: Array) -> tuple[TrainState, Metrics]:
            shuffle_key, loss_key, last_key = jax.random.split(key, 3)
            minibatches = deal_minibatches(shuffle_key, transitions, config.num_minibatches)
            keys = (jax.random.split(x, config.num_minibatches) for x in (loss_key, last_key))
            return jax.lax.scan(update, state, (minibatches, *keys))

        key, epochs_key = jax.random.split(state.key)
        state = dataclasses.replace(state, key=key)
        return jax.lax.scan(epoch, state, jax.random.split(epochs_key, config.num_epochs))

    def iteration(state: TrainState) -> tuple[TrainState, ChunkOutputs]:
        state, (steps, episode_return) = jax.lax.scan(play, state, length=config.num_steps)
        state, (metrics, measured) = learn(state, steps)
        means, measured = jax.tree.map(jnp.mean, metrics), jax.tree.map(jnp.ravel, measured)
        return state, ChunkOutputs(episode_return, means, measured)

    def init(key: Array) -> TrainState:
        return begin_measuring(measure, make_first_state(key, actor_at(0), learner_at(0)))

    def observe(state: TrainState, key: Array) -> tuple[Array, Array]:
        """Plays steps that might be learned from next; gives their states and gradients."""
        play_key, shuffle_key, loss_key = jax.random.split(key, 3)
        state = dataclasses.replace(state, key=play_key)
        if env.is_host:  # training goes on with those where the state is
            state = begin_anew(actor_at(state.learner.num_updates), state)
        state, (steps, _) = jax.lax.scan(play, state, length=config.num_steps)
        transitions = make_transitions(state, steps)
        minibatches = deal_minibatches(shuffle_key, transitions, config.num_minibatches)
        last_learner = learner_at(state.learner.num_updates)
        norms = jax.vmap(functools.partial(gradient_norm, last_learner, state.learner))(
            minibatches, jax.random.split(loss_key, config.num_minibatches)
        )
        obs = minibatches.obs_tm1
        return obs.reshape(-1, *obs.shape[2:])[:NUM_STATES], jnp.mean(norms)

    chunk = functools.partial(run_chunk, iteration)
    probe = Probe(network, config.discount, observe)
    anew = functools.partial(begin_anew, actor_at(0))
    return Train(init, chunk, functools.partial(greedy_policy, network), env, probe, anew)


def make_radam(config: PQNConfig) -> MakeOptimizer:
    """Makes the optimiser that is used where none is passed."""
    return functools.partial(optax.radam, eps=config.adam_epsilon)


def deal_minibatches(key: Array, transitions: Transition, num_minibatches: int) -> Transition:
    """Deals shuffled transitions `[N, ...]` out to minibatches `[M, N / M, ...]`."""
    order = jax.random.permutation(key, len(transitions.r_t))
    return jax.tree.map(lambda x: x[order].reshape(num_minibatches, -1, *x.shape[1:]), transitions)
