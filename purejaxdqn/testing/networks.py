"""Checks that a network keeps its contract."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.programs import (
    COMPILABLE,
    explain_errors,
    find_types,
    pure_jit,
    to_numpy,
)
from purejaxdqn.testing.require import describe_type, find_size, pair_leaves
from purejaxdqn.types import Activations, Array, Network, Params

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
    unread: Sequence[int] = (),
) -> None:
    """Checks a value network of ONE observation: see `Network`.

    - It works under `jit`, `vmap` (over observations and over weights) and `grad`.
    - `action_values` gives one finite float for each action, also for observations of 0 and of 1.
    - Its noise is the key's; without a key there is none.
    - The values of an observation do not depend on the others in a batch.
    - Different keys give different weights, layer by layer; members of an ensemble have their own.
    - The values of each action depend on the observation, on each entry of it (on each channel of
      an image), and so do the differences between actions.
    - `features` and `head`, where there are both, are the two halves of `apply`; `activations` are
      those of the weights and the observation that they are given.
    - A gradient reaches the weights that the values depend on. What is only added to the rest, as a
      fixed prior is, needs none; of flax's variables the `params` count.

    Args:
      network: the network.
      key: `[]` PRNG key of everything that is drawn.
      obs: `[*obs]` one observation.
      num_actions: `A`.
      noisy: True for a network that is meant to differ with the key.
      frozen: parts of the names of weights that are meant to stay as they are, or to be the same
        with each key.
      unread: entries of the observation, or channels, that are meant not to count.

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
            is_right and found.dtype == jnp.float32,
            f"action_values gives {describe_type(found)} for one observation {name}: it must give "
            f"float32[{num_actions}], one number for each action",
        )
    _check_values(network.init, values, key, obs, frozen)
    network = network._replace(init=jax.jit(network.init))
    _check_noise(values, network.init(key, obs), obs, key, noisy)
    _check_dependence(network, key, obs, frozen, unread)


def _check_values(
    init: Any, values: Callable[..., Array], key: Array, obs: Array, frozen: Sequence[str]
) -> None:
    def examine(init_keys: Array, noise_key: Array) -> Any:
        weights = jax.vmap(init, in_axes=(0, None))(init_keys, obs)
        params = jax.tree.map(lambda x: x[0], weights)
        batch = jnp.stack([obs, jnp.zeros_like(obs), jnp.ones_like(obs)])
        gradients = [
            jax.grad(lambda params: values(params, batch[1]).sum())(params),
            jax.jacrev(lambda params: values(params, batch[2]))(params),
        ]
        all_values = jax.vmap(values, in_axes=(None, 0))(params, batch)
        among = {
            "observations": all_values[0],
            "weights": jax.vmap(values, in_axes=(0, None))(weights, obs)[0],
        }
        alone = values(params, obs), values(params, obs, noise_key)
        return weights, *alone, all_values[1:], among, gradients

    *init_keys, noise_key = jax.random.split(key, 3)
    program = pure_jit("the network", _ONE_OBSERVATION, examine)
    found = to_numpy(program(jnp.stack(init_keys), noise_key))
    weights, alone, noisy, others, among, gradients = found
    require.finite(weights, "the network's weights after network.init")
    require.finite(alone, "action_values without a key")
    require.finite(noisy, "action_values with a key")
    require.finite(others, "action_values of observations that are all 0, or all 1,")
    require.that(
        any((leaf[0] != leaf[1]).any() for leaf in jax.tree.leaves(weights)),
        "two different keys give the same weights: draw them from the key",
    )
    _check_drawn(weights, frozen)
    for place, value in among.items():
        wrong = f"the values of an observation differ alone and among {place} in a batch"
        require.close(alone, value, wrong, "normalise within ONE observation, not over a batch")
    require.finite(gradients, "the gradient of the action values")
    wrong = "no gradient reaches the weights, so that nothing would be learned"
    require.that(find_size(gradients[1]) > 0, wrong)
    each = [find_size(jax.tree.map(lambda x, a=a: x[a], gradients[1])) for a in range(len(alone))]
    still = [a for a, size in enumerate(each) if not size > 0]
    wrong = f"no gradient reaches the weights from the values of actions {still}"
    require.that(not still, f"{wrong}: are they behind a stop_gradient?")


def _check_drawn(weights: Params, frozen: Sequence[str]) -> None:
    """Checks weights `[keys, ...]` layer by layer: those that look random must be drawn anew."""
    for path, (one, other) in jax.tree_util.tree_leaves_with_path(weights):
        name = jax.tree_util.keystr(path)
        if any(part in name for part in frozen) or not jnp.issubdtype(one.dtype, jnp.floating):
            continue
        rows = one.reshape(len(one), -1) if one.ndim > 1 else one[np.newaxis]
        looks_random = rows[0].size > 2 and len(np.unique(rows[0])) > rows[0].size / 2
        meant = f"Where that is meant: frozen=({name!r},)"
        wrong = f"the weights {name} are the same with another key: draw them from init's. {meant}"
        require.that(not (looks_random and np.array_equal(one, other)), wrong)
        wrong = f"all {len(rows)} members of the weights {name} begin alike: give each its own key"
        require.that(not (looks_random and len(rows) > 1 and (rows == rows[0]).all()), wrong)


def _check_noise(
    values: Callable[..., Array], params: Params, obs: Array, key: Array, noisy: bool
) -> None:
    """Checks that noise is the key's alone."""
    over = jax.vmap(values, in_axes=(None, None, 0))
    find = jax.jit(lambda *x: (values(*x[:2]), over(*x)))
    plain, with_keys = map(np.asarray, find(params, obs, jax.random.split(key, 16)))
    varies = not np.array_equal(with_keys, np.broadcast_to(with_keys[0], with_keys.shape))
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


def _change_entries(obs: Array, unread: Sequence[int]) -> dict[int, Array]:
    """Changes one entry along the shortest axis (of an image a channel) after another."""
    if not obs.ndim:
        return {}
    axis = obs.ndim - 1 - int(np.argmin(obs.shape[::-1]))
    num, is_float = obs.shape[axis], jnp.issubdtype(obs.dtype, jnp.floating)
    changes = [obs + 1, obs - 1] if is_float else [jnp.where(obs == 0, 1, 0).astype(obs.dtype)]
    places = jnp.arange(num).reshape(-1, *(1,) * (obs.ndim - 1 - axis))
    entries = [i for i in range(num) if i not in {x % num for x in unread}][:256]
    return {i: jnp.stack([jnp.where(places == i, x, obs) for x in changes]) for i in entries}


def _draw_weights(init: Any, keys: list[Array], obs: Array) -> tuple[Any, list[str], list[Any]]:
    """Draws two sets of weights near the first ones, which may be 0, by name.

    Also gives what makes params of them, and the names of those that are learned.
    """
    rng = np.random.default_rng(1)

    def draw(init_key: Array) -> Any:
        paths, tree = jax.tree.flatten_with_path(init(init_key, obs))
        return tree, {jax.tree_util.keystr(path): leaf for path, leaf in paths}

    (tree, one), (_, other) = map(draw, keys)
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
    return lambda x: jax.tree.unflatten(tree, [x[name] for name in names]), learned, [one, other]


def _check_dependence(
    network: Network[Any], key: Array, obs: Array, frozen: Sequence[str], unread: Sequence[int]
) -> None:
    """Checks what the values depend on."""
    *init_keys, noise_key = jax.random.split(key, 3)
    params_of, learned, (one, other) = _draw_weights(network.init, init_keys, obs)
    batch = _draw_observations(obs)
    changed = _change_entries(batch[3], unread)
    every = jnp.concatenate([batch, *changed.values()])

    @jax.jit
    def all_values(weights: dict[str, Array]) -> Array:
        output = jax.vmap(network.apply, in_axes=(None, 0))(params_of(weights), every)
        return jax.vmap(network.action_values)(output)

    def values(weights: dict[str, Array]) -> Array:
        return all_values(weights)[: len(batch)]

    @jax.jit
    def find_gradient(weights: dict[str, Array]) -> dict[str, Array]:
        def project(weights: dict[str, Array], obs: Array, key: Array | None) -> Array:
            output = network.apply(params_of(weights), obs, key)
            leaves = [x for x in jax.tree.leaves(output) if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum((jnp.vdot(_draw_like(x), x) for x in leaves), start=jnp.zeros(()))

        over = jax.vmap(jax.grad(project, allow_int=True), in_axes=(None, 0, None))
        plain, noisy = (over(weights, batch, x) for x in (None, noise_key))
        return {x: jnp.abs(plain[x]).sum() + jnp.abs(noisy[x]).sum() for x in learned}

    found = np.stack([np.asarray(all_values(weights)) for weights in (one, other)])
    _check_outputs(found[:, : len(batch)])
    _check_entries(found[:, 3 : len(batch)], found[:, len(batch) :], [*changed])
    _check_parts(network, [params_of(weights) for weights in (one, other)], batch)
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


def _check_outputs(q_values: np.ndarray) -> None:
    """Checks values `[weights, observations, A]`."""

    def varies(x: np.ndarray) -> np.ndarray:
        """Tells whether `[weights, observations, ...]` depend on the observation."""
        return ~np.isclose(x, x[:, :1], rtol=1e-6, atol=1e-6 * np.abs(q_values).max()).all((0, 1))

    def is_scaled(one: np.ndarray, other: np.ndarray) -> bool:
        factor = np.vdot(one, other) / np.vdot(one, one)
        return np.allclose(factor * one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())

    wrong = "the values are the same for all observations: the network ignores its observation"
    require.that(bool(varies(q_values).any()), wrong)
    num_actions = q_values.shape[-1]
    pairs = [(b, a) for a in range(num_actions) for b in range(a)]
    same = [(a, b) for a, b in pairs if np.allclose(q_values[..., a], q_values[..., b], 1e-6, 0)]
    wrong = f"actions {' and '.join(map(str, same[0])) if same else ''} share an output"
    if same and len(same) == len(pairs):
        wrong = "the values are the same for all actions"
    require.that(not same, f"{wrong}, whatever the weights are: give each one its own")
    still = [a for a, x in enumerate(varies(q_values)) if not x]
    wrong = f"the value of action {still[:1]} is the same for all observations: is it ever set?"
    require.that(not still, wrong)
    scaled = [(a, b) for a, b in pairs if is_scaled(*(q_values[..., x] for x in (a, b)))]
    wrong = f"the values of actions {scaled[:1]} are the same but for a factor: give each its own"
    require.that(not scaled, wrong)
    apart = [(a, b) for a, b in pairs if not varies(q_values[..., a] - q_values[..., b])]
    wrong = (
        f"actions {apart[:1]} differ by the same for all observations, so that the better of them "
        "is always the same: give each one values of its own"
    )
    require.that(not apart, wrong)


def _check_entries(before: np.ndarray, after: np.ndarray, entries: list[int]) -> None:
    """Compares values `[weights, 1, A]` with those where one entry after another is changed."""
    if not entries:
        return
    after = after.reshape(len(after), len(entries), -1, after.shape[-1])
    is_still = np.isclose(after, before[:, np.newaxis], rtol=1e-6, atol=1e-7).all((0, 2, 3))
    unread = [i for i, x in zip(entries, is_still, strict=True) if x]
    wrong = (
        f"the values do not depend on the entries (or channels) {unread[:8]} of the observation: "
        f"is it cut or cast? Where they are meant not to count: unread={tuple(unread[:8])}"
    )
    require.that(not unread, wrong)


def _check_parts(network: Network[Any], params: list[Params], batch: Array) -> None:
    """Checks the halves of `apply`, and the activations, with two sets of weights."""
    features, head, activations = network.features, network.head, network.activations

    def over(function: Any, params: Params) -> Any:
        with explain_errors("a part of the network", _ONE_OBSERVATION):
            return to_numpy(jax.jit(jax.vmap(lambda obs: function(params, obs)))(batch))

    if features is not None and head is not None:
        both = over(lambda params, obs: head(params, features(params, obs)), params[0])
        wrong = "head(params, features(params, obs)) is not apply(params, obs)"
        whole = over(network.apply, params[0])
        is_alike = str(jax.tree.structure(both)) == str(jax.tree.structure(whole))
        require.that(is_alike, wrong)
        require.close(whole, both, wrong, "make them the two halves of one network")
    if activations is not None:
        found = [over(activations, x) for x in params]
        is_right = all(isinstance(x, Activations) for x in found)
        require.that(is_right, f"network.activations gives {found[0]!r:.60}: give Activations")
        require.finite(found, "network.activations")
        for path, one, other in pair_leaves(*found):
            wrong = f"in network.activations {path} is the same for all "
            # Hidden units may be of something else, such as of IQN's fractions.
            is_judged = one is found[0].features and one.size > 0
            is_still = is_judged and (one == one[:1]).all() and (other == other[:1]).all()
            require.that(not is_still, f"{wrong}observations: take them of the one that is given")
            is_same = one.size > 0 and np.array_equal(one, other)
            require.that(not is_same, f"{wrong}weights: take them of those that are given")
