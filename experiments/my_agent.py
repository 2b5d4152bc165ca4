"""An agent of one's own in one file: double DQN that trusts the lower of two judgements more."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, losses, setting


@dataclasses.dataclass(frozen=True)
class MyConfig(DQNConfig):
    caution: float = setting(0.5, "How much the lower value counts.", at_least=0, at_most=1)
    picked_by: Literal["online", "target"] = setting("online", "Which network picks the action.")


def my_agent(config: MyConfig):
    def td_error(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
        best = jnp.argmax(q_t_selector if config.picked_by == "online" else q_t)
        lower = jnp.minimum(q_t[best], q_t_selector[best])
        value_t = (1 - config.caution) * q_t[best] + config.caution * lower
        return jax.lax.stop_gradient(r_t + discount_t * value_t) - q_tm1[a_tm1]

    return dqn(config, loss_fn=losses.bellman_loss(td_error))


agents.register("my_agent", MyConfig(), my_agent, "double DQN with a cautious target")
