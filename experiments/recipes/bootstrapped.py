"""Bootstrapped DQN: each episode is played by one head of several, for deep exploration.

Osband et al., "Deep exploration via bootstrapped DQN" (2016), algorithm 1. A head is drawn where an
episode begins, and acts until it ends. Each transition keeps a mask of the heads that learn from
it, each with a target of its own: `r_t + discount_t * q_t^k[argmax_a q_t_online^k[a]]`. The policy
that is evaluated takes the heads' mean. New are the `network` (here the heads share no layer), the
`behaviour` with what it writes down, and the `loss_fn`.

    cd experiments
    purejaxdqn train --import recipes.bootstrapped --agent bootstrapped --num-seeds 10
    purejaxdqn sweep --import recipes.bootstrapped --agent bootstrapped --mask-probability 0.5 1
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.behaviours import head_behaviour, write_extras
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following, linear_epsilon
from purejaxdqn.types import Array, Behaviour, Extras, LossOutput, Network, Params, Transition


@dataclasses.dataclass(frozen=True)
class BootstrappedConfig(DQNConfig):
    """DQN's settings, the number of heads, and how much of the data each of them sees."""

    num_heads: int = setting(5, "Heads, each with weights of its own.")
    mask_probability: float = setting(0.5, "Share of transitions a head sees.", above=0, at_most=1)


def bootstrapped_loss(
    network: Network[Any], params: Params, target_params: Params, transition: Transition, key: Array
) -> LossOutput:
    """Computes half the squared error of one transition, the mean over the heads that see it."""
    q_tm1 = network.apply(params, transition.obs_tm1)[:, transition.a_tm1]
    chosen = network.apply(params, transition.obs_t).argmax(axis=1, keepdims=True)
    q_t = network.apply(target_params, transition.obs_t)
    v_t = jnp.take_along_axis(q_t, chosen, axis=1)[:, 0]  # double Q-learning in each head
    target = jax.lax.stop_gradient(transition.r_t + transition.discount_t * v_t)
    errors = (target - q_tm1) * transition.extras["mask"]
    return LossOutput(jnp.mean(errors**2) / 2, jnp.mean(jnp.abs(errors)), {"spread": q_tm1.std()})


def bootstrapped(config: BootstrappedConfig) -> Train:
    """Makes the training run of the settings."""
    member = networks.value_network(environments.make(config.env).num_actions, config.hidden_sizes)
    network = networks.ensemble(member, config.num_heads, functools.partial(jnp.mean, axis=0))
    shape = (config.num_heads,)
    acts = head_behaviour(linear_epsilon(config), config.num_heads)

    def behaviour(now: BootstrappedConfig) -> Behaviour:
        def draw_mask(key: Array, *_: Any) -> Extras:
            return {"mask": jax.random.bernoulli(key, now.mask_probability, shape)}

        return write_extras(acts, draw_mask)

    return dqn(config, network=network, behaviour=following(behaviour), loss_fn=bootstrapped_loss)


agents.register("bootstrapped", BootstrappedConfig(), bootstrapped, "an episode follows one head")
