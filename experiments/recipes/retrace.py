"""Retrace: returns of several steps, corrected for what the behaviour would not do any more.

Munos et al., "Safe and efficient off-policy reinforcement learning" (2016), equation 3: TD errors
of later steps count by the traces `lambda * min(1, pi(a) / mu(a))`. The `behaviour` writes down how
likely each action was (`mu`), the `replay` gives sequences, and the `loss_fn` learns the returns of
the greedy policy (`pi`). New is nothing: three parts of the package are put together.

    cd experiments
    purejaxdqn train --import recipes.retrace --agent retrace --num-seeds 10
    purejaxdqn sweep --import recipes.retrace --agent retrace --trace-decay 0 0.5 1
"""

import dataclasses

from purejaxdqn import DQNConfig, agents, dqn, environments, losses, setting
from purejaxdqn.behaviours import epsilon_greedy_behaviour
from purejaxdqn.replay import sequence_replay, uniform_replay
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following, linear_epsilon


@dataclasses.dataclass(frozen=True)
class RetraceConfig(DQNConfig):
    """DQN's settings, and those of the returns."""

    sequence_length: int = setting(8, "Steps of one episode that a return may span.")
    trace_decay: float = setting(1.0, "Lambda: how far returns look.", at_least=0, at_most=1)


def retrace(config: RetraceConfig) -> Train:
    """Makes the training run of the settings."""
    env = environments.make(config.env)
    sizes = (config.replay_capacity, config.batch_size, env.truncation_interval)
    replay = uniform_replay(*sizes, frames=env.frames)
    return dqn(
        config,
        behaviour=epsilon_greedy_behaviour(linear_epsilon(config), write_probability=True),
        replay=sequence_replay(replay, config.sequence_length),
        loss_fn=following(lambda now: losses.trajectory_loss(losses.retrace(now.trace_decay))),
    )


agents.register("retrace", RetraceConfig(n_step=1, batch_size=32), retrace, "corrected returns")
