"""Resets of the last layer: what was learned too early is unlearned.

Nikishin et al., "The primacy bias in deep reinforcement learning" (2022), section 4: now and then
the last layer begins anew, with its target and its optimiser's moments, while the replay stays. New
is a hook between updates.

    cd experiments
    purejaxdqn train --import recipes.last_layer_reset --agent last_layer_reset --num-seeds 10
"""

import dataclasses

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, ArrayTree, TrainState


@dataclasses.dataclass(frozen=True)
class LastLayerResetConfig(DQNConfig):
    """DQN's settings, and how often the last layer is reset."""

    reset_period: int = setting(10_000, "Gradient steps between two resets.")


def last_layer_reset(config: LastLayerResetConfig) -> Train:
    """Makes the training run of the settings."""
    env = environments.make(config.env)
    network = networks.value_network(env.num_actions, config.hidden_sizes)
    last = f"Dense_{len(config.hidden_sizes)}"

    def reset(key: Array, state: TrainState) -> TrainState:
        is_due = state.learner.num_updates % config.reset_period == 0
        fresh = network.init(key, state.obs[0])

        def begin_anew(path: ArrayTree, old: Array, new: Array) -> Array:
            is_last = any(getattr(part, "key", None) == last for part in path)
            return jnp.where(is_due, new, old) if is_last else old

        params, target_params = (
            jax.tree.map_with_path(begin_anew, tree, fresh)
            for tree in (state.learner.params, state.learner.target_params)
        )
        learner = dataclasses.replace(state.learner, params=params, target_params=target_params)
        return dataclasses.replace(state, learner=learner)

    return dqn(config, network=network, after_update=reset)


agents.register(
    "last_layer_reset", LastLayerResetConfig(), last_layer_reset, "the last layer begins anew"
)
