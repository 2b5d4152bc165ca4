"""Stream Q(lambda): each step is learned from once, as it is played, and nothing is kept.

Elsayed, Vasan and Mahmood, "Streaming deep reinforcement learning finally works" (2024), algorithms
1 (the optimiser ObGD) and 3. Traces of past gradients pass each TD error on to the steps before.
They end where an episode does, and at an action that was not greedy. ObGD makes a step smaller that
would overshoot. New are the learner, and a replay that holds the newest step alone. Left out are
the sparse initial weights and the normalisation of observations and rewards.

    cd experiments
    purejaxdqn train --import recipes.stream_q --agent stream_q --num-seeds 10
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.behaviours import epsilon_greedy_behaviour, write_extras
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following, linear_epsilon
from purejaxdqn.types import Learner, LearnerState, Network, Replay, Sample, Step, Window, ensure


@dataclasses.dataclass(frozen=True)
class StreamQConfig(DQNConfig):
    """DQN's settings for one environment and an update a step, and those of the traces."""

    num_envs: int = 1
    steps_per_update: int = 1
    prefill_steps: int = 1
    batch_size: int = 1
    n_step: int = 1
    layer_norm: bool = True
    learning_rate: float = 1.0
    trace_decay: float = setting(0.8, "Lambda: how fast traces fade.", at_least=0, at_most=1)
    caution: float = setting(2.0, "Kappa: how far a step stays from overshooting.", above=0)


def newest_step() -> Replay:
    """Makes the replay of one step of one environment."""

    def sample(step: Step, key: jax.Array) -> Sample:
        columns: Any = [x[:, jnp.newaxis] for x in (*step[1:5], jnp.ones(1, bool))]
        extras = jax.tree.map(lambda x: x[:, jnp.newaxis], step.extras)
        window = Window._make((step.obs, *columns, step.next_obs, extras, None))
        return Sample(window, jnp.zeros(1, jnp.int32), jnp.ones(1))

    return Replay(lambda step, key: step, lambda state, step, key: step, sample, lambda s, *_: s)


def stream_learner(network: Network[Any], config: StreamQConfig) -> Learner:
    """Makes the learner; its traces stand where an optimiser's state does."""

    def init(key: jax.Array, obs: jax.Array) -> LearnerState:
        params = network.init(key, obs)
        return LearnerState(params, None, optax.tree.zeros_like(params), jnp.zeros((), jnp.int32))

    def update(state: LearnerState, batch: Any, key: jax.Array, weights: Any = None) -> Any:
        step = jax.tree.map(lambda x: x[0], batch)
        value = lambda params: network.apply(params, step.obs_tm1)[step.a_tm1]  # noqa: E731
        q_tm1, gradient = jax.value_and_grad(value)(state.params)
        q_t = network.apply(state.params, step.obs_t)
        td_error = step.r_t + step.discount_t * q_t.max() - q_tm1
        fade = jnp.where(step.extras["is_greedy"], config.discount * config.trace_decay, 0.0)
        traces = jax.tree.map(lambda z, g: fade * z + g, state.opt_state, gradient)
        bound = config.caution * jnp.maximum(jnp.abs(td_error), 1) * optax.tree.norm(traces, ord=1)
        step_size = jnp.minimum(config.learning_rate, 1 / bound)
        params = jax.tree.map(lambda w, z: w + step_size * td_error * z, state.params, traces)
        ends = (step.discount_t == 0) | step.truncated_t
        traces = jax.tree.map(lambda z: jnp.where(ends, 0.0, z), traces)
        metrics = {"loss": td_error**2 / 2, "q_value": q_tm1, "step_size": step_size}
        state = LearnerState(params, None, traces, state.num_updates + 1)
        return state, jnp.abs(td_error)[jnp.newaxis], metrics

    return Learner(init, update)


def stream_q(config: StreamQConfig) -> Train:
    """Makes the training run of the settings."""
    ensure(config.num_envs == 1, "num_envs", config.num_envs, "1: traces are of one episode")
    actions = environments.make(config.env).num_actions
    network = networks.value_network(actions, config.hidden_sizes, layer_norm=config.layer_norm)
    behaviour = write_extras(
        epsilon_greedy_behaviour(linear_epsilon(config)),
        lambda key, here, action: {"is_greedy": action == jnp.argmax(here.q_values)},
    )
    learner = following(lambda now: stream_learner(network, now))
    return dqn(config, network=network, behaviour=behaviour, replay=newest_step(), learner=learner)


agents.register("stream_q", StreamQConfig(), stream_q, "traces in place of a replay")
