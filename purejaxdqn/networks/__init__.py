"""Value networks as flax.linen modules of ONE observation; `value_network` makes them.

A network has a torso (observation to features), outputs for each action (plain or dueling), and a
head, which makes values, logits of atoms or quantiles of the outputs.
"""

from purejaxdqn.networks.ensembles import ensemble as ensemble
from purejaxdqn.networks.heads import C51 as C51
from purejaxdqn.networks.heads import FQF as FQF
from purejaxdqn.networks.heads import IQN as IQN
from purejaxdqn.networks.heads import QRDQN as QRDQN
from purejaxdqn.networks.heads import ActionOutputs as ActionOutputs
from purejaxdqn.networks.heads import Dueling as Dueling
from purejaxdqn.networks.heads import FractionEmbedding as FractionEmbedding
from purejaxdqn.networks.heads import Values as Values
from purejaxdqn.networks.heads import cosines as cosines
from purejaxdqn.networks.heads import expected_value as expected_value
from purejaxdqn.networks.heads import mean_of_quantiles as mean_of_quantiles
from purejaxdqn.networks.heads import midpoints as midpoints
from purejaxdqn.networks.heads import value_plus_advantages as value_plus_advantages
from purejaxdqn.networks.layer_norm import LayerNorm as LayerNorm
from purejaxdqn.networks.layers import CNNTorso as CNNTorso
from purejaxdqn.networks.layers import DenseLayer as DenseLayer
from purejaxdqn.networks.layers import MLPTorso as MLPTorso
from purejaxdqn.networks.layers import Noise as Noise
from purejaxdqn.networks.layers import NoisyDense as NoisyDense
from purejaxdqn.networks.legal import mask_illegal as mask_illegal
from purejaxdqn.networks.value_network import MLP as MLP
from purejaxdqn.networks.value_network import Representation as Representation
from purejaxdqn.networks.value_network import begin_with as begin_with
from purejaxdqn.networks.value_network import label_fraction_proposal as label_fraction_proposal
from purejaxdqn.networks.value_network import make_network as make_network
from purejaxdqn.networks.value_network import value_network as value_network
