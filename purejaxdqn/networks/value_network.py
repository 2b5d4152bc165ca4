"""Makes value networks of torsos, outputs and heads, with one argument for each difference."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.networks import heads, layers
from purejaxdqn.types import (
    Activations,
    Array,
    ConfigError,
    Network,
    Output,
    Params,
    ensure,
    ensure_function,
    ensure_number,
    ensure_whole,
)

Representation = Literal[
    "values", "categorical", "quantile", "implicit_quantile", "proposed_quantile"
]


class MLP(nn.Module):
    """A multilayer perceptron with ReLU between the layers and a linear output."""

    hidden_sizes: Sequence[int]
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array, part: Literal["all", "features", "head"] = "all") -> Array:
        """Maps one observation `[*obs]` to `[num_outputs]`; or one half of that."""
        if part != "head":
            x = layers.as_floats(jnp.ravel(x))
            x = layers.hidden_layers(self, x, self.hidden_sizes, False, layers.Dense)
            self.sow("intermediates", "features", x)
        if part == "features":
            return x
        return layers.Dense(self.num_outputs, name=f"Dense_{len(self.hidden_sizes)}")(x)

    def features(self, obs: Array) -> Array:
        """Maps one observation `[*obs]` to features `[F]`."""
        return self(obs, "features")

    def head(self, features: Array) -> Array:
        """Maps features `[F]` to `[num_outputs]`."""
        return self(features, "head")


@overload
def make_network(module: nn.Module, *, noise: layers.Noise = ...) -> Network[Array]: ...
@overload
def make_network(
    module: nn.Module, action_values: Callable[[Output], Array], noise: layers.Noise = ...
) -> Network[Output]: ...
def make_network(
    module: nn.Module,
    action_values: Callable[[Any], Array] = lambda output: output,
    noise: layers.Noise = "transition",
) -> Network[Any]:
    """Turns a linen module of one observation into the package's functions, a `Network`.

    Args:
      module: maps one observation `[*obs]` to an output, and draws its noise from the stream
        "noise". Diagnostics read what it or a submodule shows them with flax's
        `self.sow("intermediates", name, x)`: the features under "features", and the layers' units
        behind their nonlinearity under names that begin with "hidden". Methods of it that are
        called `features` and `head` are the two halves of a call, `Network.features` and `.head`.
      action_values: `output -> q [A]`, whose argument says what the module puts out; by default
        it puts out action values.
      noise: whether each transition of a learner's batch, and each environment that acts, draws
        noise of its own, or all of them the same, "batch". Each call of the network draws anew.
    """
    layers.ensure_noise(noise)
    ensure(isinstance(module, nn.Module), "module", module, "a module of flax.linen")
    ensure_function("action_values", action_values, "networks.expected_value")

    def init(key: Array, obs: Array) -> Params:
        return module.init(key, obs)

    def apply(params: Params, x: Array, key: Array | None = None, method: Any = None) -> Any:
        if noise == "batch" and key is not None:
            key = layers.key_of_batch(key)
        return module.apply(params, x, rngs=None if key is None else {"noise": key}, method=method)

    def activations(params: Params, obs: Array) -> Activations:
        _, sown = module.apply(params, obs, mutable=["intermediates"])
        # A tuple under each name, with an entry for each call.
        calls = jax.tree_util.tree_leaves_with_path(sown, is_leaf=lambda x: isinstance(x, tuple))
        hidden: list[Array] = []
        features: dict[int, Array] = {}
        for path, outputs in calls:
            name = str(path[-1].key)
            if name == "features":
                features.setdefault(len(path), outputs[-1])
            elif name.startswith("hidden"):
                rows = [x.reshape(-1, x.shape[-1]) for x in outputs]  # the same units, called again
                hidden.append(jnp.concatenate(rows))
        # Where a module and its submodules show features, the outermost one counts.
        return Activations(tuple(hidden), features[min(features)] if features else jnp.zeros(0))

    halves = (getattr(type(module), name, None) for name in ("features", "head"))
    features, head = (functools.partial(apply, method=x) if callable(x) else None for x in halves)
    return Network(init, apply, action_values, activations, features, head)


def begin_with(network: Network[Output], initial_params: Params) -> Network[Output]:
    """Makes the same network whose weights begin as given, such as those of a run before.

    A function `key -> params` gives each seed its own; the key is the network's.

    Raises:
      ConfigError: for what are no weights; from `init`, for weights of other shapes or of another
        structure than its own.
    """
    kinds = (jax.Array, np.ndarray, np.generic, int, float)
    is_right = all(isinstance(x, kinds) for x in jax.tree.leaves(initial_params))
    is_right |= callable(initial_params)
    ensure(is_right, "initial_params", initial_params, "weights, as the network's init makes them")

    def init(key: Array, obs: Array) -> Params:
        own = jax.eval_shape(network.init, key, obs)
        first = initial_params(key) if callable(initial_params) else initial_params
        shapes, given = (
            {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}
            for tree in (own, jax.tree.map(jnp.asarray, first))
        )
        for name in {**shapes, **given}:
            if shapes.get(name) != given.get(name):
                raise ConfigError(
                    f"initial_params{name} has shape {given.get(name, 'none at all')}, and the "
                    f"network's own {shapes.get(name, 'none at all')}: give the weights of a "
                    "network of the same settings"
                )
        leaves = jax.tree.leaves(first)
        return jax.tree.unflatten(jax.tree.structure(own), map(jnp.asarray, leaves))

    return network._replace(init=init)


def value_network(
    num_actions: int,
    hidden_sizes: Sequence[int],
    *,
    torso: nn.Module | None = None,
    head_sizes: Sequence[int] = (),
    dueling: bool = False,
    noisy: bool = False,
    noisy_sigma: float = 0.5,
    noise: layers.Noise = "transition",
    layer_norm: bool = False,
    spectral_norm: bool = False,
    representation: Representation = "values",
    num_atoms: int = 51,
    v_min: float = 0.0,
    v_max: float = 100.0,
    num_quantiles: int = 32,
    num_cosines: int = 64,
) -> Network[Any]:
    """Makes a `Network` of a torso, outputs for each action, and a head.

    By default it is that of `MLP(hidden_sizes, num_actions)`, to the bit. This function is longer
    than other functions because each difference between networks is an argument.

    Args:
      num_actions: `A`.
      hidden_sizes: width of each layer of an `MLPTorso`.
      torso: `obs [*obs] -> features [F]`, such as `CNNTorso(hidden_size=None)`, before that, or
        alone where `hidden_sizes` is (). No other argument changes its layers.
      head_sizes: width of each hidden layer between features and outputs, in each stream with
        `dueling`; behind the embedding of the fractions with "implicit_quantile" and
        "proposed_quantile".
      dueling: whether outputs are a value plus advantages: see `Dueling`.
      noisy: whether the linear layers made here are `NoisyDense`, except the embedding of fractions
        and FQF's proposal.
      noisy_sigma: scale of their noise at first.
      noise: of `make_network`: of `noisy` layers, and of the fractions of "implicit_quantile".
      layer_norm: whether LayerNorm comes before the ReLU of the layers made here.
      spectral_norm: whether the weights of the last hidden layer made here, before the outputs, are
        divided by their largest singular value: Gogianu et al., "Spectral normalisation for deep
        reinforcement learning" (2021). In a dueling network with `head_sizes`, each stream's.
      representation: the output: "values" `[A]`, "categorical" (C51), "quantile" (QR-DQN),
        "implicit_quantile" (IQN) or "proposed_quantile" (FQF).
      num_atoms: of "categorical".
      v_min: first atom of "categorical", a discounted return.
      v_max: last atom of "categorical".
      num_quantiles: of the three representations by quantiles.
      num_cosines: size of the basis of "implicit_quantile" and "proposed_quantile".

    Raises:
      ConfigError: for an argument that is not allowed. Traced floats are not checked.
    """
    counts = {"num_actions": num_actions, "num_quantiles": num_quantiles}
    for name, sizes in (("hidden_sizes", hidden_sizes), ("head_sizes", head_sizes)):
        ensure(
            isinstance(sizes, list | tuple), name, sizes, "a sequence of sizes, such as (64, 64)"
        )
        counts |= {f"{name}[{i}]": size for i, size in enumerate(sizes)}
    for name, count in {**counts, "num_cosines": num_cosines}.items():
        ensure_whole(name, count)
    ensure_whole("num_atoms", num_atoms, 2)
    flags = {"dueling": dueling, "noisy": noisy, "layer_norm": layer_norm}
    flags |= {"spectral_norm": spectral_norm}
    for name, flag in flags.items():
        ensure(isinstance(flag, bool), name, flag, "True or False")
    for name, number in {"v_min": v_min, "v_max": v_max}.items():
        ensure_number(name, number)
    ensure_number("noisy_sigma", noisy_sigma, 0)
    layers.ensure_noise(noise)
    ensure(torso is None or isinstance(torso, nn.Module), "torso", torso, "a module of flax.linen")
    if _is_known(v_min, v_max) and not v_min < v_max:
        raise ConfigError(
            f"v_min ({v_min}) must be below v_max ({v_max}), both finite: give the least and the "
            "largest discounted return"
        )
    if spectral_norm and (noisy or not (hidden_sizes or head_sizes)):
        raise ConfigError(
            "spectral_norm (True) needs a hidden layer without noise: give hidden_sizes or "
            "head_sizes, and leave noisy out"
        )
    is_mlp = torso is None and not (dueling or noisy or layer_norm or head_sizes or spectral_norm)

    noisy_dense = functools.partial(layers.NoisyDense, sigma=noisy_sigma, noise=noise)
    dense: layers.DenseLayer = noisy_dense if noisy else layers.Dense
    last = layers.SpectralDense if spectral_norm else None
    mlp = layers.MLPTorso(hidden_sizes, layer_norm, dense, None if head_sizes else last)
    if torso is None:
        torso = mlp
    elif hidden_sizes:
        torso = nn.Sequential([torso, mlp])

    def outputs(num_outputs: int) -> nn.Module:
        def stream(num_actions: int) -> nn.Module:
            rest = (head_sizes, layer_norm, dense, last)
            return heads.ActionOutputs(num_actions, num_outputs, *rest)

        return heads.Dueling(stream(1), stream(num_actions)) if dueling else stream(num_actions)

    module: nn.Module
    match representation:
        case "values" if is_mlp:
            # Initial weights depend on the layers' names: those of the MLP stay what they were.
            return make_network(MLP(hidden_sizes, num_actions))
        case "values":
            return make_network(heads.Values(torso, outputs(1)), noise=noise)
        case "categorical":
            module = heads.C51(torso, outputs(num_atoms), v_min, v_max)
            return make_network(module, heads.expected_value, noise)
        case "quantile":
            module = heads.QRDQN(torso, outputs(num_quantiles))
        case "implicit_quantile":
            module = heads.IQN(torso, outputs(1), num_quantiles, num_cosines)
        case "proposed_quantile":
            module = heads.FQF(torso, outputs(1), num_quantiles, num_cosines)
        case unknown:
            names = ", ".join(get_args(Representation))
            raise ConfigError(f"representation ({unknown!r}) must be one of {names}")
    return make_network(module, heads.mean_of_quantiles, noise)


def label_fraction_proposal(params: Params) -> Params:
    """Labels the weights of any network for `optax.multi_transform`, in the same structure.

    Those of `FQF`'s proposal are "fraction_proposal", and all others "value".
    """

    def label(path: tuple[Any, ...], _: Array) -> str:
        names = [getattr(key, "key", None) for key in path]
        return "fraction_proposal" if "fraction_proposal" in names else "value"

    return jax.tree_util.tree_map_with_path(label, params)


def _is_known(*numbers: Any) -> bool:
    """Tells whether numbers have values: in a sweep they are traced."""
    return not any(isinstance(number, jax.core.Tracer) for number in numbers)
