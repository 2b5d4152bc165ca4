"""The settings of PQN, and the rules that they keep together."""

import dataclasses
from collections.abc import Iterator

from purejaxdqn.agents.torso import TorsoConfig
from purejaxdqn.training.declaration import setting


@dataclasses.dataclass(frozen=True)
class PQNConfig(TorsoConfig):
    """Every setting of PQN; the defaults are the agent `pqn`."""

    agent: str = "pqn"
    total_steps: int = 500_000
    num_envs: int = 10
    hidden_sizes: tuple[int, ...] = (64, 64)
    layer_norm: bool = True
    adam_epsilon: float = 1e-5
    learning_rate: float = 2.5e-3
    eval_interval: int = 25_000
    num_steps: int = setting(50, "Steps of each environment between rounds of updates.")
    num_epochs: int = setting(
        4, "Times that a round of updates goes through all that was played since the one before."
    )
    num_minibatches: int = setting(
        2, "Gradient steps in each epoch; num_envs * num_steps transitions are dealt out to them."
    )
    q_lambda: float = setting(
        0.9,
        "Lambda of the Q(lambda) returns: 0 bootstraps after one step, 1 where the episode or the "
        "rollout ends.",
        at_least=0,
        at_most=1,
    )

    @property
    def steps_per_update(self) -> int:
        """Environment steps (of all environments) between rounds of updates."""
        return self.num_envs * self.num_steps

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps in each round of updates."""
        return self.num_epochs * self.num_minibatches

    def problems_together(self) -> Iterator[str]:
        """Yields what settings that are allowed each by itself make wrong together."""
        yield from super().problems_together()
        yield from self.whole_iteration_problems("num_envs * num_steps")
        per_iteration = self.steps_per_update
        if per_iteration % self.num_minibatches:
            largest = min(self.num_minibatches, per_iteration)
            nearest = next(n for n in range(largest, 0, -1) if per_iteration % n == 0)
            yield (
                f"num_minibatches ({self.num_minibatches}) must divide num_envs * num_steps "
                f"({per_iteration}) without rest: try {nearest}"
            )
