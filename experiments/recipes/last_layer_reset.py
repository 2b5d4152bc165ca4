"""Resets of the last layer: what was learned too early is unlearned.

Nikishin et al., "The primacy bias in deep reinforcement learning" (2022): every `reset_period`
gradient steps the last layer begins anew, with its copy in the target network and its moments in
the optimiser, while the replay stays. New is the hook `after_update`. The `optimizer` is Adam as it
comes: the package's own keeps many layers' moments in one vector, where no layer can be told.

    cd experiments
    purejaxdqn train --import recipes.last_layer_reset --agent last_layer_reset --num-seeds 10
    purejaxdqn sweep --import recipes.last_layer_reset --agent last_layer_reset --reset-period 5000
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, ArrayTree, TrainState


@dataclasses.dataclass(frozen=True)
class LastLayerResetConfig(DQNConfig):
    """DQN's settings, and how often the last layer is reset."""

    reset_period: int = setting(10_000, "Gradient steps between two resets.")


def last_layer_reset(config: LastLayerResetConfig) -> Train:
    """Makes the training run of the settings."""
    num_actions = environments.make(config.env).num_actions
    network = networks.value_network(num_actions, config.hidden_sizes)
    last = f"Dense_{len(config.hidden_sizes)}"

    def reset(key: Array, state: TrainState) -> TrainState:
        is_due = state.learner.num_updates % config.reset_period == 0
        new = network.init(key, state.obs[0])
        zeros = jax.tree.map(jnp.zeros_like, state.learner.opt_state)
        fresh = dataclasses.replace(state.learner, params=new, target_params=new, opt_state=zeros)

        def begin_anew(path: ArrayTree, old: Array, new: Array) -> Array:
            is_last = any(getattr(part, "key", None) == last for part in path)
            return jnp.where(is_due, new, old) if is_last else old

        learner = jax.tree.map_with_path(begin_anew, state.learner, fresh)
        return dataclasses.replace(state, learner=learner)

    adam = functools.partial(optax.adam, eps=config.adam_epsilon)
    return dqn(config, network=network, optimizer=adam, after_update=reset)


agents.register(
    "last_layer_reset", LastLayerResetConfig(), last_layer_reset, "the last layer begins anew"
)
