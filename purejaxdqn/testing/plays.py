"""Plays a behaviour in many environments side by side, for the checks of behaviours."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, clone_keys, pure_jit, to_numpy
from purejaxdqn.testing.require import is_key
from purejaxdqn.types import Array, ArrayTree, Behaviour, Situation

NUM_LANES = 2048  # environments side by side, which all see the same
NUM_STEPS, EPISODE = 12, 4  # steps of each, and of an episode
ONE_ENVIRONMENT = f"It is a function of ONE environment, mapped over all with vmap. {COMPILABLE}"


class Options(NamedTuple):
    """What `check_behaviour` was told."""

    num_actions: int
    num_heads: int | None
    make_output: Callable[[Array], Any]
    obs: Array
    num_steps: int
    knows_legal: bool
    outlives_episodes: bool
    keeps_head: bool


class Play(NamedTuple):
    """How all lanes were played, one after another in the same situations."""

    actions: np.ndarray  # [lanes, T]
    extras: dict[str, np.ndarray]  # [lanes, T, ...]
    is_greedy: np.ndarray  # [lanes, T], with several heads of one that fits the whole episode
    is_legal: np.ndarray  # [T, A]


def draw_situations(options: Options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws values `[T, K, A]` (one head by default), legal actions `[T, A]`, and firsts `[T]`."""
    rng = np.random.default_rng(0)
    num_heads, num_actions = options.num_heads or 1, options.num_actions
    order = np.broadcast_to(np.arange(num_actions), (NUM_STEPS, num_heads, num_actions))
    values = 0.25 * rng.permuted(order, axis=2) + rng.uniform(0, 0.1, order.shape)
    is_legal = rng.random((NUM_STEPS, num_actions)) < 0.6
    is_legal[np.arange(NUM_STEPS), rng.integers(0, num_actions, NUM_STEPS)] = True
    return values.astype(np.float32), is_legal, np.arange(NUM_STEPS) % EPISODE == 0


def make_situation(
    options: Options, values: Array, is_first: Array, is_prefill: bool, is_legal: Array | None
) -> Situation:
    """Makes ONE situation of the values `[K, A]`."""
    values = values if options.num_heads else values[0]
    q_values = values.mean(0) if options.num_heads else values
    counted = (is_first, jnp.int32(options.num_steps), is_prefill, is_legal)
    return Situation(options.obs, options.make_output(values), q_values, *counted)


def play_all(
    make: Callable[[Array | float], Behaviour],
    epsilons: dict[str, float],
    key: Array,
    options: Options,
) -> dict[str, Play]:
    """Plays each way; "afresh" and "mixed" begin an episode in states of their own, and of others.

    In the latter a lane has its own keys, and its neighbour's state.
    """

    def play(epsilons: Array, init_keys: Array, keys: Array, late_keys: Array) -> dict[str, Any]:
        def begin(epsilon: Array, *way: bool) -> Any:
            init_copies, copies = clone_keys((init_keys, keys))
            states = jax.vmap(make(epsilon).init)(init_copies)
            return _roll(make(epsilon), options, states, copies, *way)

        def go_on(states: ArrayTree) -> Any:
            behaviour, keys = make(epsilons[0]), jax.random.clone(late_keys)
            return _roll(behaviour, options, states, keys, False, False)[1]

        played = {}
        for suffix in ("", ", legal") if options.knows_legal else ("",):
            played[f"prefill{suffix}"] = begin(epsilons[0], True, bool(suffix))[1]
            over = jax.vmap(lambda epsilon, legal=bool(suffix): begin(epsilon, False, legal))
            states, played[suffix] = over(epsilons)
            if not suffix:
                late = jax.tree.map(lambda x: x[0], states)
        if require.drop_keys(late) and not options.outlives_episodes:
            others = jax.tree.map(lambda x: x if is_key(x) else jnp.roll(x, 1, 0), late)
            played |= {"afresh": go_on(clone_keys(late)), "mixed": go_on(clone_keys(others))}
        return played

    program = pure_jit("Behaviour.init and Behaviour.act", ONE_ENVIRONMENT, play)
    keys = jax.random.split(key, (1 + NUM_STEPS + EPISODE, NUM_LANES))
    given = keys[0], keys[1 : 1 + NUM_STEPS], keys[1 + NUM_STEPS :]
    found = to_numpy(program(jnp.asarray([*epsilons.values()]), *given))
    for suffix in ("", ", legal") if options.knows_legal else ("",):
        stacked = found.pop(suffix)
        for i, name in enumerate(epsilons):
            found[name + suffix] = jax.tree.map(lambda x, i=i: x[i], stacked)
    return {name: _make_play(name, played, options) for name, played in found.items()}


def _roll(
    behaviour: Behaviour,
    options: Options,
    states: ArrayTree,
    keys: Array,
    is_prefill: bool,
    has_legal: bool,
) -> Any:
    """Plays all lanes with keys `[T, lanes]`: `(states, (actions, extras))`, by time first."""

    def act(state: ArrayTree, key: Array, here: Any) -> Any:
        value, is_legal, is_first = here
        facts = (value, is_first, is_prefill, is_legal if has_legal else None)
        return behaviour.act(state, key, make_situation(options, *facts))

    def step(states: ArrayTree, xs: Any) -> Any:
        states, *rest = jax.vmap(act, in_axes=(0, 0, None))(states, *xs)
        return states, rest

    here = tuple(jnp.asarray(x[: len(keys)]) for x in draw_situations(options))
    return jax.lax.scan(step, states, (keys, here))


def _make_play(name: str, played: Any, options: Options) -> Play:
    actions, extras = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), played)
    values, is_legal, is_first = (x[: actions.shape[1]] for x in draw_situations(options))
    is_legal = is_legal | ("legal" not in name)
    is_start = is_first if options.keeps_head else np.ones_like(is_first)
    return Play(actions, extras, _find_greedy(actions, values, is_legal, is_start), is_legal)


def _find_greedy(
    actions: np.ndarray, values: np.ndarray, is_legal: np.ndarray, is_first: np.ndarray
) -> np.ndarray:
    """Finds `[lanes, T]` where some head is followed greedily through the whole episode."""
    best = np.where(is_legal[:, np.newaxis], values, -np.inf).argmax(2)  # [T, K]
    fits = actions[:, :, np.newaxis] == best
    if best.shape[1] == 1:
        return fits[:, :, 0]
    begins = np.flatnonzero(is_first)
    each = np.logical_and.reduceat(fits, begins, axis=1).any(2)
    return np.repeat(each, np.diff([*begins, len(is_first)]), axis=1)
