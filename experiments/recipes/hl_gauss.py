"""HL-Gauss: values are learned by classification, with a Gaussian around each target as label.

Farebrother et al., "Stop regressing: training value functions via classification for scalable deep
RL" (2024). The network puts out logits of C51's atoms. Around the target of double Q-learning, one
number, stands a Gaussian. Its mass in the bin of each atom is the label, and the loss is
`-sum_i label_i * log p_i`. New is the `loss_fn` alone; the package's own agent is `hl_gauss`.

    cd experiments
    purejaxdqn train --import recipes.hl_gauss --agent hl_gauss_recipe --num-seeds 10
    purejaxdqn check recipes.hl_gauss:hl_gauss_loss
    purejaxdqn sweep --import recipes.hl_gauss --agent hl_gauss_recipe --gaussian-width 0.5 0.75 1.5
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, setting, testing
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following
from purejaxdqn.types import Array, Categorical, LossOutput, Network, Params, Transition


@dataclasses.dataclass(frozen=True)
class HLGaussConfig(DQNConfig):
    """DQN's settings, and how wide the labels are."""

    gaussian_width: float = setting(0.75, "The label's deviation, in widths of a bin.", above=0)


def label(target: Array, support: Array, width: Array | float) -> Array:
    """Makes the label `[N]`: the Gaussian's mass in the bin around each atom, all of it."""
    bin_width = support[1] - support[0]
    edges = jnp.append(support, support[-1] + bin_width) - bin_width / 2
    centre = jnp.clip(target, support[0], support[-1])
    up_to = jax.scipy.stats.norm.cdf(edges, centre, width * bin_width)
    return jnp.diff(up_to) / (up_to[-1] - up_to[0])


@testing.converges_to(testing.OPTIMAL)
def hl_gauss_loss(
    network: Network[Categorical],
    params: Params,
    target_params: Params,
    transition: Transition,
    key: Array,
    width: Array | float = 0.75,
) -> LossOutput:
    """Computes the cross-entropy of one transition."""
    tm1_key, t_key, selector_key = jax.random.split(key, 3)
    output = network.apply(params, transition.obs_tm1, tm1_key)
    q_t = network.action_values(network.apply(target_params, transition.obs_t, t_key))
    selector = network.action_values(network.apply(params, transition.obs_t, selector_key))
    target = transition.r_t + transition.discount_t * q_t[jnp.argmax(selector)]
    wanted = jax.lax.stop_gradient(label(target, output.support, width))
    loss = -jnp.sum(wanted * jax.nn.log_softmax(output.logits[transition.a_tm1]))
    q_value = network.action_values(output)[transition.a_tm1]
    return LossOutput(loss, jnp.abs(target - q_value), {"q_value": q_value})


def hl_gauss(config: HLGaussConfig) -> Train:
    """Makes the training run of the settings."""
    return dqn(
        config,
        loss_fn=following(lambda now: functools.partial(hl_gauss_loss, width=now.gaussian_width)),
    )


settings = HLGaussConfig(representation="categorical", adam_epsilon=1e-5)
agents.register("hl_gauss_recipe", settings, hl_gauss, "values by classification")
