"""QRC: Q-learning with regularised corrections, which needs no target network.

Ghiassian et al., "Gradient temporal-difference learning with regularized corrections" (2020). A
second output `h` predicts the TD error `e`, and corrects for the bootstrap: the weights of the
values move by `e * grad q_tm1[a_tm1] - discount_t * h * grad max(q_t)`, those of `h` by
`(e - h) * grad h - beta * weights`. `h` is linear in the features, which it leaves alone. New are
the `network` with its second linear layer, and the `loss_fn`; there is no target network.

    cd experiments
    purejaxdqn train --import recipes.qrc --agent qrc --num-seeds 10
    purejaxdqn sweep --import recipes.qrc --agent qrc --correction-decay 0.1 1 10
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, networks, setting
from purejaxdqn.training.learner import no_target
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following
from purejaxdqn.types import Array, LossOutput, Network, Params, Transition


@dataclasses.dataclass(frozen=True)
class QRCConfig(DQNConfig):
    """DQN's settings, and how strongly the correction is drawn to 0."""

    correction_decay: float = setting(1.0, "Beta, of the correction's weights.", at_least=0)


class TwoOutputs(nn.Module):
    """A multilayer perceptron with action values and corrections, `[2, A]`."""

    hidden_sizes: Sequence[int]
    num_actions: int

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Maps one observation to both."""
        x = networks.MLPTorso(self.hidden_sizes)(obs)
        start = nn.initializers.zeros
        corrections = nn.Dense(self.num_actions, kernel_init=start, name="correction")
        return jnp.stack([nn.Dense(self.num_actions)(x), corrections(jax.lax.stop_gradient(x))])


def qrc_loss(
    network: Network[Any],
    params: Params,
    _: Params,
    transition: Transition,
    key: Array,
    decay: Array | float = 1.0,
) -> LossOutput:
    """Computes a loss of one transition whose gradient is the update of QRC."""
    q_tm1, h_tm1 = network.apply(params, transition.obs_tm1)[:, transition.a_tm1]
    v_t = jnp.max(network.apply(params, transition.obs_t)[0])
    td_error = transition.r_t + transition.discount_t * v_t - q_tm1
    fixed, hint = jax.lax.stop_gradient((td_error, h_tm1))
    corrected = -fixed * q_tm1 + hint * transition.discount_t * v_t
    shrunk = decay / 2 * sum(jnp.sum(x**2) for x in params["params"]["correction"].values())
    return LossOutput(
        corrected + (fixed - h_tm1) ** 2 / 2 + shrunk, jnp.abs(fixed), {"correction": h_tm1}
    )


def qrc(config: QRCConfig) -> Train:
    """Makes the training run of the settings."""
    num_actions = environments.make(config.env).num_actions
    network: Network[Any] = networks.make_network(
        TwoOutputs(config.hidden_sizes, num_actions), lambda output: output[0]
    )
    loss_fn = following(lambda now: functools.partial(qrc_loss, decay=now.correction_decay))
    return dqn(config, network=network, loss_fn=loss_fn, target_update=no_target)


agents.register(
    "qrc", QRCConfig(n_step=1, learning_rate=1e-3), qrc, "corrections in place of a target network"
)
