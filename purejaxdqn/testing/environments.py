"""Checks that an environment keeps its contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import Environment
from purejaxdqn.testing.compiled_functions import (
    COMPILABLE,
    Program,
    clone_keys,
    find_types,
    make_rng,
    to_numpy,
)
from purejaxdqn.testing.requirements import (
    NUM_LANES,
    describe_type,
    drop_keys,
    is_key,
    require,
    require_close,
    require_float_scalar,
    require_same_types,
)
from purejaxdqn.types import Array, ArrayTree, TimeStep

_ONE_ENVIRONMENT = f"It is a function of ONE environment, batched with vmap. {COMPILABLE}"


def check_environment(env: Environment, key: Array, *, random_reset: bool = True) -> None:
    """Checks the environment contract: see `Environment` and `TimeStep`.

    - It works under `jit` and `vmap`, in 32-bit and in 64-bit mode.
    - The same key, state and action give the same bits, and different keys different resets.
    - Shapes and dtypes are fixed, so that `scan` can carry the state; those of an observation are
      the observation space's, and observations lie in it. Rewards are finite float scalars.
    - `terminated` and `truncated` are separate bool scalars; `truncated` is True from the
      `max_steps`-th step on and not before.
    - `step` never starts a new episode by itself.

    Args:
      env: the environment; some `max_steps` steps of it are played at random.
      key: `[]` PRNG key of everything that is drawn.
      random_reset: False for an environment whose episodes all start alike.

    Raises:
      AssertionError: if something is wrong.
    """
    _check_description(env)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            _check_types(env, key, "in 64-bit mode" if x64 else "in 32-bit mode")
    start_key, play_key = jax.random.split(key)
    # Two steps longer than an episode.
    actions = make_rng(key).integers(0, env.num_actions, (env.max_steps + 2, NUM_LANES), np.int32)
    lies_in_space = _make_space_test(env.observation_space)
    fresh = _check_starts(env, start_key, actions[0], lies_in_space, random_reset)
    play = _make_player(env, play_key, actions, lies_in_space)
    _check_episodes(env, fresh, play)


def _check_description(env: Environment) -> None:
    require(isinstance(env, Environment), f"{env!r} is not an Environment: build one")

    def is_count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    is_box = isinstance(env.observation_space, gymnasium.spaces.Box)
    is_number = env.threshold is None or isinstance(env.threshold, (int, float))
    for name, is_right, rule in (
        ("name", isinstance(env.name, str) and bool(env.name), "a string that is not empty"),
        ("num_actions", is_count(env.num_actions), "a whole number of at least 1"),
        ("max_steps", is_count(env.max_steps), "a whole number of at least 1"),
        ("observation_space", is_box, "a gymnasium.spaces.Box"),
        ("threshold", is_number, "a number, or None where none is agreed on"),
    ):
        require(is_right, f"Environment.{name} is {getattr(env, name)!r}: it must be {rule}")


def _check_types(env: Environment, key: Array, mode: str) -> None:
    action = jax.ShapeDtypeStruct((), jnp.int32)
    answer = find_types(f"env.reset {mode}", _ONE_ENVIRONMENT, env.reset, key)
    require(
        isinstance(answer, tuple) and len(answer) == 2,
        f"env.reset answers with {answer!r}: it must return (state, obs)",
    )
    state, obs = answer
    answer = find_types(f"env.step {mode}", _ONE_ENVIRONMENT, env.step, key, state, action)
    require(
        isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], TimeStep),
        f"env.step answers with {answer!r}: it must return (state, TimeStep)",
    )
    next_state, timestep = answer
    require_same_types(
        state,
        next_state,
        f"the state has other types after env.step than after env.reset {mode}, so that scan "
        "cannot carry it",
        "give every array one dtype and shape, such as jnp.zeros((), jnp.int32), x.astype(y.dtype)",
    )
    space = env.observation_space
    dtypes = {jax.dtypes.canonicalize_dtype(space.dtype)}
    if jnp.issubdtype(space.dtype, jnp.floating):
        dtypes.add(jax.dtypes.canonicalize_dtype(np.float64))  # JAX's default float of the mode
    for name, found in (("env.reset", obs), ("env.step", timestep.obs)):
        require(
            found.shape == space.shape and found.dtype in dtypes,
            f"the observation of {name} is {describe_type(found)} {mode}, but observation_space "
            f"says {np.dtype(space.dtype).name}{list(space.shape)}: correct the one or the other",
        )
    require_same_types(
        obs,
        timestep.obs,
        f"the observation has another type after env.step than after env.reset {mode}",
        "cast both to one dtype",
    )
    require_float_scalar(timestep.reward, f"the reward {mode}")
    for name in ("terminated", "truncated"):
        flag = getattr(timestep, name)
        require(
            getattr(flag, "shape", None) == () and flag.dtype == bool,
            f"{name} is {describe_type(flag)} {mode}: it must be a bool scalar",
        )


def _make_space_test(space: gymnasium.spaces.Box) -> Callable[[Array], Array]:
    """Makes the test whether an observation lies in a space."""
    # Rounding may carry an observation that sits on a bound beyond it.
    slack = 1e-5 if np.issubdtype(space.dtype, np.floating) else 0
    low = space.low - slack * np.maximum(1, np.abs(space.low))
    high = space.high + slack * np.maximum(1, np.abs(space.high))

    def lies_in_space(obs: Array) -> Array:
        return ((obs >= low.astype(obs.dtype)) & (obs <= high.astype(obs.dtype))).all()

    return lies_in_space


def _check_starts(
    env: Environment,
    key: Array,
    action: np.ndarray,
    lies_in_space: Callable[[Array], Array],
    random_reset: bool,
) -> ArrayTree:
    """Checks the first step of episodes side by side, and returns their first states."""

    def first_step(keys: Array, action: Array) -> Any:
        reset_key, step_key = keys
        state, obs = env.reset(reset_key)
        return (state, obs), env.step(step_key, state, action)

    def start(keys: Array, actions: Array) -> dict[str, Any]:
        alone = first_step(jax.random.clone(keys)[0], actions[0])
        resets, firsts = jax.vmap(first_step)(keys, actions)
        return {
            "states": resets[0],
            "resets": drop_keys(resets),
            "in_space": jax.vmap(lies_in_space)(resets[1]),
            "alone": drop_keys(alone),
            "together": drop_keys((resets, firsts)),
        }

    program = Program("env.reset and the first env.step", _ONE_ENVIRONMENT, start)
    started = program(jax.random.split(key, (NUM_LANES, 2)), action)
    fresh = started["states"]
    started = to_numpy(started)
    require_close(
        started["alone"],
        jax.tree.map(lambda x: x[0], started["together"]),
        "an environment alone and the same one in a batch answer differently",
        "write reset and step for ONE environment: no sum, mean or draw over a batch axis",
    )
    if random_reset:
        require(
            any((leaf != leaf[:1]).any() for leaf in started["resets"]),
            f"{NUM_LANES} different keys give {NUM_LANES} times the same reset: draw it from the "
            "key, or pass random_reset=False if episodes are meant to start alike",
        )
    require(
        started["in_space"].all(),
        f"an observation of env.reset lies outside of observation_space ({env.observation_space}): "
        "correct the one or the other",
    )
    return fresh


class _Played(NamedTuple):
    """The record of one step; with a leading axis of lanes, or of time and lanes."""

    terminated: Array
    truncated: Array
    in_space: Array
    finite_reward: Array
    depends_on_key: Array  # the answer depends on the step's key


_Player = Callable[[ArrayTree, int, int], tuple[ArrayTree, _Played]]


def _make_player(
    env: Environment,
    key: Array,
    actions: np.ndarray,
    lies_in_space: Callable[[Array], Array],
) -> _Player:
    """Makes `(states, first, num) -> (states, _Played)`: plays `num` steps from step `first` on.

    It goes on after the end of an episode.
    """
    num_steps = len(actions)
    # As numbers, so that a loop may take them out one by one.
    play_keys = jax.random.key_data(jax.random.split(key, (num_steps, NUM_LANES, 2)))

    def play_one(keys: Array, action: Array, state: ArrayTree) -> tuple[ArrayTree, _Played]:
        step_key, other_key = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(key))
        other_state, other = env.step(other_key, clone_keys(state), action)
        next_state, timestep = env.step(step_key, state, action)
        return next_state, _Played(
            timestep.terminated,
            timestep.truncated,
            lies_in_space(timestep.obs),
            jnp.isfinite(timestep.reward),
            _tell_apart((next_state, timestep.obs), (other_state, other.obs)),
        )

    def play_lanes(
        states: ArrayTree, keys: Array, actions: Array, first: Array, num: Array
    ) -> tuple[ArrayTree, _Played]:
        def body(t: Array, carry: tuple[ArrayTree, _Played]) -> tuple[ArrayTree, _Played]:
            states, played = carry
            states, row = jax.vmap(play_one)(keys[first + t], actions[first + t], states)
            return states, jax.tree.map(lambda rows, row: rows.at[t].set(row), played, row)

        nothing = _Played(*[jnp.zeros((num_steps, NUM_LANES), bool) for _ in _Played._fields])
        return jax.lax.fori_loop(0, num, body, (states, nothing))

    program = Program("playing whole episodes", _ONE_ENVIRONMENT, play_lanes)

    def play(states: ArrayTree, first: int, num: int) -> tuple[ArrayTree, _Played]:
        states, played = program(states, play_keys, actions, first, num)
        return states, jax.tree.map(lambda rows: rows[:num], to_numpy(played))

    return play


def _check_episodes(env: Environment, fresh: ArrayTree, play: _Player) -> None:
    first = max(env.max_steps - 2, 0)
    states, early = play(fresh, 0, first)
    next_states, middle = play(states, first, 1)
    _, late = play(next_states, first + 1, env.max_steps + 1 - first)
    _check_played(env, jax.tree.map(lambda *x: np.concatenate(x), early, middle, late))
    if env.max_steps == 1:
        return  # no step comes before the last one, to compare it with
    # Fresh states with only the step counter set to the end.
    before, after = (
        play(_set_clock(fresh, clock, [states, next_states]), 0, 1)[1].terminated[0]
        for clock in (states, next_states)
    )
    require(
        bool(before.all()) or not after[~before].all(),
        f"terminated becomes True at step {env.max_steps} because the time limit (max_steps) is "
        "reached: report it as truncated alone, so that the value is bootstrapped. If the task's "
        "own rules end it there, raise max_steps",
    )


def _check_played(env: Environment, played: _Played) -> None:
    steps = np.arange(1, len(played.terminated) + 1)[:, np.newaxis]
    over = played.terminated | (steps >= env.max_steps)
    num_over = np.cumsum(over, axis=0)
    is_last = over & (num_over == 1)
    is_before = num_over == 0

    def find(wrong: Any) -> int:
        """Finds the first step, counted from 1, at which something is wrong; 0 if none is."""
        return int(np.argmax(wrong.any(axis=1))) + 1 if wrong.any() else 0

    wrong = (is_before | is_last) & ~played.in_space
    require(
        not wrong.any(),
        f"the observation after step {find(wrong)} of an episode lies outside of "
        f"observation_space ({env.observation_space}): correct the one or the other",
    )
    wrong = (is_before | is_last) & ~played.finite_reward
    require(
        not wrong.any(),
        f"the reward of step {find(wrong)} of an episode is NaN or infinite: it must be finite",
    )
    hint = (
        "Return the state and the observation that the action led to, also at the end of an "
        "episode; step_and_reset is what starts the next one"
    )
    # Dynamics without noise, but noise in the last answer: a new start was drawn.
    require(
        bool((played.depends_on_key & is_before).any())
        or not (played.depends_on_key & is_last).any(),
        "the last step of an episode depends on the step's key, and no other step does: env.step "
        f"starts a new episode by itself. {hint}",
    )
    early = find(played.truncated & (steps < env.max_steps))
    require(
        early == 0,
        f"truncated is True at step {early} of an episode, but max_steps is {env.max_steps}: it "
        "means the time limit and nothing else; return truncated=num_steps >= max_steps",
    )
    wrong = ~played.truncated & (steps >= env.max_steps)
    if not wrong.any():
        return
    late = find(wrong)
    lane = int(np.argmax(wrong[late - 1]))
    ended = find(over[: late - 1, lane : lane + 1])
    too_late = f"truncated is False at step {late} of an episode, but max_steps is {env.max_steps}"
    require(
        ended == 0,
        f"{too_late}. As the episode was over at step {ended}, env.step seems to start a new one "
        f"by itself. {hint}, and truncated stays True from max_steps on",
    )
    raise AssertionError(
        f"{too_late}: count the steps in the state and return truncated=num_steps >= max_steps, "
        "apart from terminated"
    )


def _set_clock(fresh: ArrayTree, clock: ArrayTree, two_times: list[ArrayTree]) -> ArrayTree:
    """Puts the clocks of other states into fresh states `[lanes, ...]`.

    A clock is a number that is the same in all lanes, whatever their keys and actions, and differs
    between the states of two times.
    """

    def leaf(fresh: Array, clock: Array, one: Array, two: Array) -> Array:
        if is_key(fresh):
            return fresh
        is_clock = (one == one[:1]).all(0) & (two == two[:1]).all(0) & (one[0] != two[0])
        return jnp.where(is_clock[jnp.newaxis], clock, fresh)

    return jax.tree.map(leaf, fresh, clock, *two_times)


def _tell_apart(a: ArrayTree, b: ArrayTree) -> Array:
    """Tells `[]` whether two trees differ anywhere but in their PRNG keys."""
    differ = jnp.zeros((), bool)
    for x, y in zip(drop_keys(a), drop_keys(b), strict=True):
        both_nan = (x != x) & (y != y)
        differ |= ((x != y) & ~both_nan).any()
    return differ
