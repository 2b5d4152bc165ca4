"""ReDo: units that have fallen silent begin anew.

Sokar, Agarwal, Castro and Evci, "The dormant neuron phenomenon in deep reinforcement learning"
(2023), algorithm 1. A unit is dormant whose mean activity is at most tau times that of its layer.
The weights that lead to it are drawn anew, those that lead away become 0, and both lose their
moments in the optimiser. New is a hook between updates.

    cd experiments
    purejaxdqn train --import recipes.redo --agent redo --num-seeds 10
    purejaxdqn sweep --import recipes.redo --agent redo --dormant-threshold 0 0.025 0.1
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.replay import uniform_replay
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, Params, TrainState


@dataclasses.dataclass(frozen=True)
class ReDoConfig(DQNConfig):
    """DQN's settings, and when and which units begin anew."""

    redo_period: int = setting(1_000, "Gradient steps between two looks at the units.")
    dormant_threshold: float = setting(0.025, "Tau: a unit below it is dormant.", at_least=0)


def find_dormant(hidden: Sequence[Array], threshold: Array | float) -> list[Array]:
    """Finds the dormant units `[units]` of each layer, of which `hidden` is `[N, ..., units]`."""
    activity = [jnp.abs(x).mean(axis=range(x.ndim - 1)) for x in hidden]
    return [layer <= threshold * layer.mean() for layer in activity]


def begin_anew(params: Params, fresh: Params, dormant: Sequence[Array]) -> Params:
    """Takes the `fresh` weights that lead to dormant units, and 0 for those that lead away."""
    layers = dict(params["params"])
    for i, silent in reversed([*enumerate(dormant)]):
        this, following = f"Dense_{i}", f"Dense_{i + 1}"
        new = fresh["params"][this]
        layers[this] = jax.tree.map(functools.partial(jnp.where, silent), new, layers[this])
        kernel = jnp.where(silent[:, jnp.newaxis], 0.0, layers[following]["kernel"])
        layers[following] = {**layers[following], "kernel": kernel}
    return {**params, "params": layers}


def redo(config: ReDoConfig) -> Train:
    """Makes the training run of the settings."""
    env = environments.make(config.env)
    network = networks.value_network(env.num_actions, config.hidden_sizes)
    sizes = (config.replay_capacity, config.batch_size, env.truncation_interval)
    replay = uniform_replay(*sizes, frames=env.frames)

    def recycle(key: Array, state: TrainState) -> TrainState:
        learner, (sample_key, init_key) = state.learner, jax.random.split(key)
        obs = replay.sample(state.replay, sample_key).window.obs
        show: Any = network.activations
        hidden = jax.vmap(show, in_axes=(None, 0))(learner.params, obs).hidden
        dormant = find_dormant(hidden, config.at(learner.num_updates).dormant_threshold)
        params = begin_anew(learner.params, network.init(init_key, obs[0]), dormant)
        moments = {n: optax.tree.get(learner.opt_state, n) for n in ("mu", "nu")}
        anew = {n: begin_anew(x, optax.tree.zeros_like(x), dormant) for n, x in moments.items()}
        opt_state = optax.tree.set(learner.opt_state, **anew)
        learner = dataclasses.replace(learner, params=params, opt_state=opt_state)
        return dataclasses.replace(state, learner=learner)

    def hook(key: Array, state: TrainState) -> TrainState:
        is_due = state.learner.num_updates % config.redo_period == 0
        return jax.lax.cond(is_due, recycle, lambda _, state: state, key, state)

    adam = functools.partial(optax.adam, eps=config.adam_epsilon)
    return dqn(config, network=network, replay=replay, optimizer=adam, after_update=hook)


agents.register("redo", ReDoConfig(), redo, "dormant units begin anew")
