"""An agent of one's own, with two settings of its own, that every command knows.

    cd experiments
    purejaxdqn train --import my_agent --agent cautious --num-seeds 10
    purejaxdqn sweep --import my_agent --agent cautious --caution 0 0.05 0.1
    purejaxdqn ablate --import my_agent --agent cautious --components caution=0 n_step

It is DQN whose target counts the worst action a little, as if the best one were missed sometimes,
and with weight decay. `purejaxdqn check my_agent:cautious_error --fixed-point none` judges it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from purejaxdqn import DQNConfig, agents, dqn, losses, setting
from purejaxdqn.losses.bellman_loss import TDError
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array


@dataclasses.dataclass(frozen=True)
class CautiousConfig(DQNConfig):
    """DQN's settings, and two more."""

    caution: float = setting(
        0.05, "How much the worst action counts in the target.", at_least=0, at_most=1
    )
    weight_decay: float = setting(
        1e-4, "Share of the weights that an update takes off, times the step size.", at_least=0
    )


def make_td_error(caution: Array | float) -> TDError:
    """Makes the TD error of one transition."""

    def td_error(
        q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, q_t_selector: Array
    ) -> Array:
        best = jnp.argmax(q_t_selector)
        target_tm1 = r_t + discount_t * ((1 - caution) * q_t[best] + caution * jnp.min(q_t))
        return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]

    return td_error


cautious_error = make_td_error(0.05)


def cautious(config: CautiousConfig) -> Train:
    """Makes the training run of the settings."""
    loss_fn = losses.bellman_loss(make_td_error(config.caution))
    adamw = functools.partial(optax.adamw, weight_decay=config.weight_decay)
    return dqn(config, loss_fn=loss_fn, optimizer=adamw)


agents.register("cautious", CautiousConfig(), cautious, "the worst action counts in the target")
