"""Checks that a network keeps its contract."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, find_types, pure_jit, to_numpy
from purejaxdqn.testing.require import describe_type, find_size
from purejaxdqn.types import Array, Network, Params

_ONE_OBSERVATION = (
    "It is a function of ONE observation without a batch axis, mapped over a batch with vmap. "
    f"{COMPILABLE}"
)


def check_network(
    network: Network[Any],
    key: Array,
    obs: Array,
    num_actions: int,
    *,
    noisy: bool = False,
    frozen: Sequence[str] = (),
) -> None:
    """Checks a value network of ONE observation: see `Network`.

    - It works under `jit`, `vmap` (over observations and over weights) and `grad`.
    - `action_values` gives one finite float for each action.
    - Its noise is the key's; without a key there is none.
    - The values of an observation do not depend on the others in a batch.
    - Different keys give different weights.
    - The values depend on the observation, and no two actions share an output.
    - A gradient reaches the weights that the values depend on. What is only added to the rest, as a
      fixed prior is, needs none; of flax's variables the `params` count.

    Args:
      network: the network.
      key: `[]` PRNG key of everything that is drawn.
      obs: `[*obs]` one observation.
      num_actions: `A`.
      noisy: True for a network that is meant to differ with the key.
      frozen: parts of the names of weights that are meant to stay as they are.

    Raises:
      AssertionError: if something is wrong.
    """

    def values(params: Params, obs: Array, key: Array | None = None) -> Array:
        return network.action_values(network.apply(params, obs, key))

    obs = jnp.asarray(obs)
    params = find_types("network.init", _ONE_OBSERVATION, network.init, key, obs)
    for name, noise in (("without a key", None), ("with a key", key)):
        found = find_types(f"network.apply {name}", _ONE_OBSERVATION, values, params, obs, noise)
        is_right = getattr(found, "shape", None) == (num_actions,)
        require.that(
            is_right and jnp.issubdtype(found.dtype, jnp.floating),
            f"action_values gives {describe_type(found)} for one observation {name}: it must give "
            f"float32[{num_actions}], one number for each action",
        )
    _check_values(network.init, values, key, obs)
    network = network._replace(init=jax.jit(network.init))
    _check_noise(values, network.init(key, obs), obs, key, noisy)
    _check_dependence(network, key, obs, frozen)


def _check_values(init: Any, values: Callable[..., Array], key: Array, obs: Array) -> None:
    def examine(init_keys: Array, noise_key: Array) -> Any:
        weights = jax.vmap(init, in_axes=(0, None))(init_keys, obs)
        params = jax.tree.map(lambda x: x[0], weights)
        batch = jnp.stack([obs, jnp.zeros_like(obs), jnp.ones_like(obs)])
        gradient = jax.grad(lambda params: values(params, batch[2]).sum())(params)
        among = {
            "observations": jax.vmap(values, in_axes=(None, 0))(params, batch)[0],
            "weights": jax.vmap(values, in_axes=(0, None))(weights, obs)[0],
        }
        return weights, values(params, obs), values(params, obs, noise_key), among, gradient

    *init_keys, noise_key = jax.random.split(key, 3)
    program = pure_jit("the network", _ONE_OBSERVATION, examine)
    weights, alone, noisy, among, gradient = to_numpy(program(jnp.stack(init_keys), noise_key))
    require.finite(weights, "the network's weights after network.init")
    require.finite(alone, "action_values without a key")
    require.finite(noisy, "action_values with a key")
    require.that(
        any((leaf[0] != leaf[1]).any() for leaf in jax.tree.leaves(weights)),
        "two different keys give the same weights: draw them from the key",
    )
    for place, value in among.items():
        wrong = f"the values of an observation differ alone and among {place} in a batch"
        require.close(alone, value, wrong, "normalise within ONE observation, not over a batch")
    require.finite(gradient, "the gradient of the action values")
    wrong = "no gradient reaches the weights, so that nothing would be learned"
    require.that(find_size(gradient) > 0, wrong)


def _check_noise(
    values: Callable[..., Array], params: Params, obs: Array, key: Array, noisy: bool
) -> None:
    """Checks that noise is the key's alone."""
    keys = jax.random.split(key)
    find = jax.jit(lambda *x: (values(*x), values(*x, keys[0]), values(*x, keys[1])))
    plain, *with_keys = map(np.asarray, find(params, obs))
    varies = not np.array_equal(with_keys[0], with_keys[1])
    draws = ["random_bits" in str(jax.make_jaxpr(values)(params, obs, x)) for x in (None, key)]
    wrong = "network.apply draws random numbers without a key: where key is None there is no noise"
    require.that(not (draws[0] and (varies or not draws[1])), wrong)
    wrong = (
        "network.apply draws random numbers, and not from its key: other keys give the same "
        "values. Use the key that it is given; features that are drawn once belong to init"
    )
    require.that(varies or not draws[1], wrong)
    wrong = (
        "with a key the values differ from those without one, but not from key to key: the noise "
        "must be drawn from the key"
    )
    require.that(varies or np.allclose(plain, with_keys[0], rtol=1e-5, atol=1e-6), wrong)
    wrong = "noisy=True, but other keys give the same values: network.apply ignores its key"
    require.that(varies or not noisy, wrong)


def _draw_observations(obs: Array) -> Array:
    """Draws four observations that differ in as much as those of one dtype can."""
    noise = np.random.default_rng(0).normal(size=obs.shape)
    zeros, ones = jnp.zeros_like(obs), jnp.ones_like(obs)
    is_float = jnp.issubdtype(obs.dtype, jnp.floating)
    other = obs + noise.astype(obs.dtype) if is_float else jnp.where(noise > 0, obs, ones)
    return jnp.stack([obs, zeros, ones, other])


def _check_dependence(network: Network[Any], key: Array, obs: Array, frozen: Sequence[str]) -> None:
    """Checks what the values depend on, with weights near the first ones: those may be 0."""
    *init_keys, noise_key = jax.random.split(key, 3)
    batch = _draw_observations(obs)
    rng = np.random.default_rng(1)

    def draw(init_key: Array) -> Any:
        paths, tree = jax.tree.flatten_with_path(network.init(init_key, obs))
        return tree, {jax.tree_util.keystr(path): leaf for path, leaf in paths}

    (tree, one), (_, other) = map(draw, init_keys)
    names = [*one]  # in the order of the tree; a program sorts them
    is_flax = any(name.startswith("['params']") for name in names)
    learned = [
        name
        for name, leaf in one.items()
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        and (name.startswith("['params']") or not is_flax)
    ]
    for weights in (one, other):
        for name in learned:
            noise = 0.1 * rng.normal(size=weights[name].shape)
            weights[name] = weights[name] + noise.astype(weights[name].dtype)

    @jax.jit
    def values(weights: dict[str, Array]) -> Array:
        apply = jax.vmap(network.apply, in_axes=(None, 0))
        output = apply(jax.tree.unflatten(tree, [weights[x] for x in names]), batch)
        return jax.vmap(network.action_values)(output)

    @jax.jit
    def find_gradient(weights: dict[str, Array]) -> dict[str, Array]:
        def project(weights: dict[str, Array], obs: Array, key: Array | None) -> Array:
            output = network.apply(jax.tree.unflatten(tree, [weights[x] for x in names]), obs, key)
            leaves = [x for x in jax.tree.leaves(output) if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum((jnp.vdot(_draw_like(x), x) for x in leaves), start=jnp.zeros(()))

        over = jax.vmap(jax.grad(project, allow_int=True), in_axes=(None, 0, None))
        plain, noisy = (over(weights, batch, x) for x in (None, noise_key))
        return {x: jnp.abs(plain[x]).sum() + jnp.abs(noisy[x]).sum() for x in learned}

    _check_outputs([np.asarray(values(weights)) for weights in (one, other)])
    sizes = [find_gradient(weights) for weights in (one, other)]
    is_frozen = {name: any(part in name for part in frozen) for name in learned}
    still = [x for x in learned if not (is_frozen[x] or any(size[x] > 0 for size in sizes))]
    moved = [
        np.asarray(values(a | {x: b[x] for x in still})) - values(a)
        for a, b in ((one, other), (other, one))
    ]
    scale = 1e-3 * max(np.abs(x).max() for x in moved)
    # Added to the rest, their change is the same with the rest of either.
    wrong = (
        f"no gradient reaches the weights {', '.join(still)[:200]}, which the values depend on: "
        "is a layer behind a stop_gradient? Where they are meant to stay: frozen=(a part of their "
        "names,)"
    )
    require.that(not still or np.allclose(moved[0], -moved[1], rtol=1e-3, atol=scale), wrong)


def _draw_like(x: Array) -> Array:
    return jnp.asarray(np.random.default_rng(2).normal(size=x.shape), x.dtype)


def _check_outputs(values: list[np.ndarray]) -> None:
    """Checks values `[observations, A]` of two sets of weights."""
    q_values = np.stack(values)
    wrong = "the values are the same for all observations: the network ignores its observation"
    require.that(not np.allclose(q_values, q_values[:, :1], rtol=1e-6, atol=0), wrong)
    num_actions = q_values.shape[-1]
    pairs = [(a, b) for a in range(num_actions) for b in range(a)]
    same = [(b, a) for a, b in pairs if np.allclose(q_values[..., a], q_values[..., b], 1e-6, 0)]
    wrong = f"actions {' and '.join(map(str, same[0])) if same else ''} share an output"
    if same and len(same) == len(pairs):
        wrong = "the values are the same for all actions"
    require.that(not same, f"{wrong}, whatever the weights are: give each one its own")
