"""PQN that learns the distribution of its returns, on C51's atoms.

Bellemare, Dabney and Munos, "A distributional perspective on reinforcement learning" (2017),
equation 7, in the loop of Gallici et al., "Simplifying deep temporal difference learning" (2025).
The Q(lambda) return is one number, whose mass goes to the two atoms beside it. New is nothing:
`network` and `loss_fn` of the package are passed.

    cd experiments
    purejaxdqn train --import recipes.pqn_categorical --agent pqn_categorical --num-seeds 10
    purejaxdqn sweep --import recipes.pqn_categorical --agent pqn_categorical --num-atoms 21 51
"""

import dataclasses

from purejaxdqn import PQNConfig, agents, environments, losses, networks, pqn, setting
from purejaxdqn.training.loop import Train


@dataclasses.dataclass(frozen=True)
class CategoricalPQNConfig(PQNConfig):
    """PQN's settings, and those of the atoms."""

    num_atoms: int = setting(51, "Atoms of the distribution.", at_least=2)
    value_max: float = setting(
        100.0, "The highest atom; the lowest is 0.", above=0, may_change=False
    )


def pqn_categorical(config: CategoricalPQNConfig) -> Train:
    """Makes the training run of the settings."""
    network = networks.value_network(
        environments.make(config.env).num_actions,
        config.hidden_sizes,
        layer_norm=config.layer_norm,
        representation="categorical",
        num_atoms=config.num_atoms,
        v_max=config.value_max,
    )
    return pqn(config, network=network, loss_fn=losses.categorical_loss())


agents.register("pqn_categorical", CategoricalPQNConfig(), pqn_categorical, "PQN on atoms")
