"""Value networks as flax.linen modules of ONE observation; `value_network` makes them.

A network has a torso (observation to features), outputs for each action (plain or dueling), and a
head, which makes values, logits of atoms or quantiles of the outputs.
"""

from purejaxdqn.networks.heads import (
    C51,
    FQF,
    IQN,
    QRDQN,
    ActionOutputs,
    Dueling,
    FractionEmbedding,
    Values,
    cosines,
    expected_value,
    mean_of_quantiles,
    midpoints,
    value_plus_advantages,
)
from purejaxdqn.networks.layers import DenseLayer, NoisyDense
from purejaxdqn.networks.torsos import CNNTorso, MLPTorso
from purejaxdqn.networks.value_network import (
    MLP,
    Representation,
    label_fraction_proposal,
    make_network,
    value_network,
)

__all__ = [
    "C51",
    "FQF",
    "IQN",
    "MLP",
    "QRDQN",
    "ActionOutputs",
    "CNNTorso",
    "DenseLayer",
    "Dueling",
    "FractionEmbedding",
    "MLPTorso",
    "NoisyDense",
    "Representation",
    "Values",
    "cosines",
    "expected_value",
    "label_fraction_proposal",
    "make_network",
    "mean_of_quantiles",
    "midpoints",
    "value_network",
    "value_plus_advantages",
]
