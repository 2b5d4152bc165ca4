"""Bootstrapped DQN: each episode is played by one head of several, for deep exploration.

Osband et al., "Deep exploration via bootstrapped DQN" (2016), algorithm 1. A head is drawn where an
episode begins, and acts until it ends. Each transition keeps a mask of the heads that learn from
it, each with a target of its own: `r_t + discount_t * q_t^k[argmax_a q_t_online^k[a]]`. The policy
that is evaluated takes the heads' mean. New are the `network` (here the heads share no layer), the
`behaviour` with what it writes down, and the `loss_fn`. With a `prior_scale`, a random network that
stays as it is, is added to each head: Osband et al., "Randomized prior functions for deep
reinforcement learning" (2018), algorithm 1.

    cd experiments
    purejaxdqn train --import recipes.bootstrapped --agent bootstrapped --num-seeds 10
    purejaxdqn sweep --import recipes.bootstrapped --agent bootstrapped --mask-probability 0.5 1

Random play reaches the end of a deep sea of 20 once in a million episodes, and this agent within
60,000 steps:

    purejaxdqn train --import recipes.bootstrapped --agent bootstrapped \
        --env "DeepSea-bsuite?size=20" --prior-scale 5 --num-heads 10 --hidden-sizes 32x32 \
        --batch-size 32 --n-step 1 --learning-rate 1e-3 --adam-epsilon 1e-5 --epsilon-start 0 \
        --epsilon-end 0 --replay-capacity 120000 --total-steps 120000 --eval-episodes 1
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
    prior_scale: float = setting(0.0, "What a head's prior counts.", at_least=0, static=True)


def add_prior(network: Network[Array], scale: float) -> Network[Array]:
    """Adds to a network the values of another one of its kind, which no gradient moves."""

    def init(key: Array, obs: Array) -> Params:
        key, prior_key = jax.random.split(key)
        return {**network.init(key, obs), "prior": network.init(prior_key, obs)}

    def apply(params: Params, obs: Array, key: Array | None = None) -> Array:
        prior = jax.lax.stop_gradient(network.apply(params["prior"], obs))
        return network.apply({"params": params["params"]}, obs, key) + scale * prior

    return Network(init, apply, network.action_values)


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
    num_actions = environments.make(config.env).num_actions
    member = networks.value_network(num_actions, config.hidden_sizes)
    member = add_prior(member, config.prior_scale) if config.prior_scale else member
    network = networks.ensemble(member, config.num_heads, functools.partial(jnp.mean, axis=0))
    shape = (config.num_heads,)
    acts = head_behaviour(linear_epsilon(config), config.num_heads)

    def behaviour(now: BootstrappedConfig) -> Behaviour:
        def draw_mask(key: Array, *_: Any) -> Extras:
            return {"mask": jax.random.bernoulli(key, now.mask_probability, shape)}

        return write_extras(acts, draw_mask)

    return dqn(config, network=network, behaviour=following(behaviour), loss_fn=bootstrapped_loss)


agents.register("bootstrapped", BootstrappedConfig(), bootstrapped, "an episode follows one head")
