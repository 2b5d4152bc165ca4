"""The contracts as checks that a researcher can run on a component of their own.

    from purejaxdqn import testing

    testing.check_environment(my_env, jax.random.key(0))
    testing.check_td_error(my_td_error, jax.random.key(0))
    testing.check_loss(my_loss, jax.random.key(0))
    testing.check_network(my_network, jax.random.key(0), obs=jnp.zeros(4), num_actions=2)
    testing.check_replay(my_make_replay, jax.random.key(0))

A check that finds nothing returns None. One that finds something raises an AssertionError that says
what is wrong, the value that was found, and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import Environment
from purejaxdqn.losses.bellman import TDError
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.types import (
    Array,
    ArrayTree,
    LossFn,
    LossOutput,
    Network,
    Params,
    Replay,
    Sample,
    Step,
    TimeStep,
    Transition,
    run_axes,
)

__all__ = [
    "check_environment",
    "check_loss",
    "check_network",
    "check_replay",
    "check_td_error",
    "check_terminal_ignores_next_obs",
]

MakeReplay = Callable[[int, int, float, int], Replay]  # capacity, batch_size, discount, time_limit

_NUM_LANES = 16  # environments or transitions that are looked at side by side

_COMPILABLE = (
    "It must compile: jnp in the place of numpy, jnp.where or jax.lax.cond in the place of `if`, "
    "fixed shapes, no broadcasting of arrays of different rank"
)
_ONE_ENVIRONMENT = f"It is a function of ONE environment, batched with vmap. {_COMPILABLE}"
_ONE_TRANSITION = (
    "It is a function of ONE transition: scalars without a batch axis, mapped over a batch with "
    f"vmap. {_COMPILABLE}"
)
_ONE_OBSERVATION = (
    "It is a function of ONE observation without a batch axis, mapped over a batch with vmap. "
    f"{_COMPILABLE}"
)
_OWN_KEY = "draw every random number with jax.random from the key: none from numpy, none counted"


# -------------------------------------------------------------------------------- environments


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
            _check_environment_types(env, key, "in 64-bit mode" if x64 else "in 32-bit mode")
    _check_episodes(env, key, random_reset)


def _check_description(env: Environment) -> None:
    _require(isinstance(env, Environment), f"{env!r} is not an Environment: build one")
    _require(
        isinstance(env.name, str) and bool(env.name),
        f"Environment.name is {env.name!r}: it must be a string that is not empty",
    )
    for name in ("num_actions", "max_steps"):
        value = getattr(env, name)
        _require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            f"Environment.{name} is {value!r}: it must be a whole number of at least 1",
        )
    _require(
        isinstance(env.observation_space, gymnasium.spaces.Box),
        f"Environment.observation_space is {env.observation_space!r}: it must be a "
        "gymnasium.spaces.Box",
    )
    _require(
        env.threshold is None or isinstance(env.threshold, (int, float)),
        f"Environment.threshold is {env.threshold!r}: it must be a number, or None where none is "
        "agreed on",
    )


def _check_environment_types(env: Environment, key: Array, mode: str) -> None:
    action = jax.ShapeDtypeStruct((), jnp.int32)
    answer = _types(f"env.reset {mode}", _ONE_ENVIRONMENT, env.reset, key)
    _require(
        isinstance(answer, tuple) and len(answer) == 2,
        f"env.reset answers with {answer!r}: it must return (state, obs)",
    )
    state, obs = answer
    answer = _types(f"env.step {mode}", _ONE_ENVIRONMENT, env.step, key, state, action)
    _require(
        isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], TimeStep),
        f"env.step answers with {answer!r}: it must return (state, TimeStep)",
    )
    next_state, timestep = answer
    _require_same_types(
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
        _require(
            found.shape == space.shape and found.dtype in dtypes,
            f"the observation of {name} is {_type(found)} {mode}, but observation_space says "
            f"{np.dtype(space.dtype).name}{list(space.shape)}: correct the one or the other",
        )
    _require_same_types(
        obs,
        timestep.obs,
        f"the observation has another type after env.step than after env.reset {mode}",
        "cast both to one dtype",
    )
    _require_float_scalar(timestep.reward, f"the reward {mode}")
    for name in ("terminated", "truncated"):
        flag = getattr(timestep, name)
        _require(
            getattr(flag, "shape", None) == () and flag.dtype == bool,
            f"{name} is {_type(flag)} {mode}: it must be a bool scalar",
        )


class _Played(NamedTuple):
    """What is kept of one step; with a leading axis of lanes, or of time and lanes."""

    terminated: Array
    truncated: Array
    in_space: Array
    finite_reward: Array
    needs_key: Array  # the answer depends on the step's key


def _check_episodes(env: Environment, key: Array, random_reset: bool) -> None:
    space = env.observation_space
    # Rounding may carry an observation that sits on a bound beyond it.
    slack = 1e-5 if np.issubdtype(space.dtype, np.floating) else 0
    low = space.low - slack * np.maximum(1, np.abs(space.low))
    high = space.high + slack * np.maximum(1, np.abs(space.high))
    num_steps = env.max_steps + 2
    start_key, play_key = jax.random.split(key)
    start_keys = jax.random.split(start_key, (_NUM_LANES, 2))
    # As numbers, so that a loop may take them out one by one.
    play_keys = jax.random.key_data(jax.random.split(play_key, (num_steps, _NUM_LANES, 2)))
    actions = _host_rng(key).integers(0, env.num_actions, (num_steps, _NUM_LANES), np.int32)

    def lies_in_space(obs: Array) -> Array:
        return ((obs >= low.astype(obs.dtype)) & (obs <= high.astype(obs.dtype))).all()

    def first_step(keys: Array, action: Array) -> Any:
        state, obs = env.reset(keys[0])
        return (state, obs), env.step(keys[1], state, action)

    def start(keys: Array, actions: Array) -> dict[str, Any]:
        alone = first_step(jax.random.clone(keys)[0], actions[0])
        resets, firsts = jax.vmap(first_step)(keys, actions)
        return {
            "states": resets[0],
            "resets": _without_keys(resets),
            "in_space": jax.vmap(lies_in_space)(resets[1]),
            "alone": _without_keys(alone),
            "together": _without_keys((resets, firsts)),
        }

    program = _Program("env.reset and the first env.step", _ONE_ENVIRONMENT, start)
    started = program(start_keys, actions[0])
    fresh = started["states"]
    started = _on_host(started)
    _require_close(
        started["alone"],
        jax.tree.map(lambda x: x[0], started["together"]),
        "an environment alone and the same one in a batch answer differently",
        "write reset and step for ONE environment: no sum, mean or draw over a batch axis",
    )
    if random_reset:
        _require(
            any((leaf != leaf[:1]).any() for leaf in started["resets"]),
            f"{_NUM_LANES} different keys give {_NUM_LANES} times the same reset: draw it from the "
            "key, or pass random_reset=False if episodes are meant to start alike",
        )
    _require(
        started["in_space"].all(),
        f"an observation of env.reset lies outside of observation_space ({space}): correct the one "
        "or the other",
    )

    def play_one(keys: Array, action: Array, state: ArrayTree) -> tuple[ArrayTree, _Played]:
        step_key, other_key = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(key))
        other_state, other = env.step(other_key, _clone_keys(state), action)
        next_state, timestep = env.step(step_key, state, action)
        return next_state, _Played(
            timestep.terminated,
            timestep.truncated,
            lies_in_space(timestep.obs),
            jnp.isfinite(timestep.reward),
            _differ((next_state, timestep.obs), (other_state, other.obs)),
        )

    def play_lanes(
        states: ArrayTree, keys: Array, actions: Array, first: Array, num: Array
    ) -> tuple[ArrayTree, _Played]:
        """Steps `first` to `first + num` of all lanes, also after the end of an episode."""

        def body(t: Array, carry: tuple[ArrayTree, _Played]) -> tuple[ArrayTree, _Played]:
            states, played = carry
            states, row = jax.vmap(play_one)(keys[first + t], actions[first + t], states)
            return states, jax.tree.map(lambda rows, row: rows.at[t].set(row), played, row)

        nothing = _Played(*[jnp.zeros((num_steps, _NUM_LANES), bool) for _ in _Played._fields])
        return jax.lax.fori_loop(0, num, body, (states, nothing))

    program = _Program("playing whole episodes", _ONE_ENVIRONMENT, play_lanes)

    def play(states: ArrayTree, first: int, num: int) -> tuple[ArrayTree, _Played]:
        states, played = program(states, play_keys, actions, first, num)
        return states, jax.tree.map(lambda rows: rows[:num], _on_host(played))

    first = max(env.max_steps - 2, 0)
    states, early = play(fresh, 0, first)
    next_states, middle = play(states, first, 1)
    _, late = play(next_states, first + 1, num_steps - first - 1)
    _check_played(env, jax.tree.map(lambda *x: np.concatenate(x), early, middle, late))
    if env.max_steps == 1:
        return  # no step comes before the last one, to compare it with
    # Fresh episodes whose clocks, and nothing else, say that the time is almost up.
    before, after = (
        play(_with_clock(fresh, clock, [states, next_states]), 0, 1)[1].terminated[0]
        for clock in (states, next_states)
    )
    _require(
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
        """The first step, counted from 1, at which something is wrong; 0 if it nowhere is."""
        return int(np.argmax(wrong.any(axis=1))) + 1 if wrong.any() else 0

    wrong = (is_before | is_last) & ~played.in_space
    _require(
        not wrong.any(),
        f"the observation after step {find(wrong)} of an episode lies outside of "
        f"observation_space ({env.observation_space}): correct the one or the other",
    )
    wrong = (is_before | is_last) & ~played.finite_reward
    _require(
        not wrong.any(),
        f"the reward of step {find(wrong)} of an episode is NaN or infinite: it must be finite",
    )
    hint = (
        "Return the state and the observation that the action led to, also at the end of an "
        "episode; step_and_reset is what starts the next one"
    )
    # Dynamics without noise, but noise in the last answer: a new start was drawn.
    _require(
        bool((played.needs_key & is_before).any()) or not (played.needs_key & is_last).any(),
        "the last step of an episode depends on the step's key, and no other step does: env.step "
        f"starts a new episode by itself. {hint}",
    )
    early = find(played.truncated & (steps < env.max_steps))
    _require(
        early == 0,
        f"truncated is True at step {early} of an episode, but max_steps is {env.max_steps}: it "
        "means the time limit and nothing else; return truncated=num_steps >= max_steps",
    )
    wrong = ~played.truncated & (steps >= env.max_steps)
    late = find(wrong)
    if not late:
        return
    lane = int(np.argmax(wrong[late - 1]))
    ended = find(over[: late - 1, lane : lane + 1])
    _require(
        ended == 0,
        f"truncated is False at step {late} of an episode, but max_steps is {env.max_steps}. As "
        f"the episode was over at step {ended}, env.step seems to start a new one by itself. "
        f"{hint}, and truncated stays True from max_steps on",
    )
    raise AssertionError(
        f"truncated is False at step {late} of an episode, but max_steps is {env.max_steps}: count "
        "the steps in the state and return truncated=num_steps >= max_steps, apart from terminated"
    )


def _with_clock(fresh: ArrayTree, clock: ArrayTree, two_times: list[ArrayTree]) -> ArrayTree:
    """States `[lanes, ...]` with the clocks of other states, told by states of two times.

    A clock is a number that is the same in all lanes, whatever their keys and actions, and another
    at another time.
    """

    def leaf(fresh: Array, clock: Array, one: Array, two: Array) -> Array:
        if _is_key(fresh):
            return fresh
        is_clock = (one == one[:1]).all(0) & (two == two[:1]).all(0) & (one[0] != two[0])
        return jnp.where(is_clock[jnp.newaxis], clock, fresh)

    return jax.tree.map(leaf, fresh, clock, *two_times)


def _differ(a: ArrayTree, b: ArrayTree) -> Array:
    """`[]` whether two trees differ anywhere but in their PRNG keys."""
    differ = jnp.zeros((), bool)
    for x, y in zip(_without_keys(a), _without_keys(b), strict=True):
        both_nan = (x != x) & (y != y)
        differ |= ((x != y) & ~both_nan).any()
    return differ


# -------------------------------------------------------------------------------------- losses


def check_td_error(td_error: TDError, key: Array, *, num_actions: int = 3) -> None:
    """Checks a TD error that is meant for `bellman_loss`, such as `q_learning`.

    - It works on ONE transition, under `jit`, `vmap` and `grad`, and gives one finite float.
    - It is a semi-gradient: the gradient reaches `q_tm1[a_tm1]` and nothing else, so that none
      flows through the target.
    - With a `discount_t` of 0, what comes from time t does not count.

    Args:
      td_error: `(q_tm1 [A], a_tm1 [], r_t [], discount_t [], q_t [A], q_t_online [A]) -> []`.
      key: `[]` PRNG key of the values that it is tried on.
      num_actions: `A`.

    Raises:
      AssertionError: if something is wrong.
    """
    names = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "q_t_online")
    floats = tuple(i for i, name in enumerate(names) if name != "a_tm1")
    a_tm1 = np.arange(_NUM_LANES, dtype=np.int32) % num_actions

    rng = _host_rng(key)
    q_tm1, q_t, q_t_online = rng.normal(size=(3, _NUM_LANES, num_actions)).astype(np.float32)
    r_t, discount_t = rng.uniform(0.5, 1, (2, _NUM_LANES)).astype(np.float32)
    r_t -= 0.75

    def examine(*batch: Array) -> Any:
        q_tm1, a_tm1, r_t, _, q_t, q_t_online = batch
        ended = (q_tm1, a_tm1, r_t, jnp.zeros_like(r_t))
        batched = jax.vmap(td_error)
        return (
            td_error(*jax.tree.map(lambda x: x[0], batch)),
            batched(*batch),
            jax.vmap(jax.grad(td_error, argnums=floats))(*batch),
            (batched(*ended, q_t, q_t_online), batched(*ended, q_t + 1.0, 1.0 - q_t_online)),
        )

    values = jax.ShapeDtypeStruct((num_actions,), jnp.float32)
    scalar, action = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.int32))
    found = _types(
        "the TD error of one transition",
        _ONE_TRANSITION,
        td_error,
        *(values, action, scalar, scalar, values, values),
    )
    _require_float_scalar(found, "the TD error of one transition")
    batch = (q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online)
    alone, errors, grads, ended = _run("the TD error", _ONE_TRANSITION, examine, *batch)
    _require_finite(errors, "the TD error")
    _require_close(
        alone, errors[0], "one transition alone and in a batch differ", "write it for ONE of them"
    )
    for i, grad in zip(floats, grads, strict=True):
        _require_finite(grad, f"the gradient of the TD error with respect to {names[i]}")
        _require(
            names[i] == "q_tm1" or _largest(grad) == 0,
            f"a gradient of up to {_largest(grad):.3g} flows through the target to {names[i]}: "
            "wrap the target in jax.lax.stop_gradient",
        )
    is_taken = np.arange(num_actions) == a_tm1[:, np.newaxis]
    _require(
        (grads[0][is_taken] != 0).all(),
        "no gradient reaches q_tm1[a_tm1]: stop that of the target alone, not of the prediction",
    )
    _require(
        not grads[0][~is_taken].any(),
        f"a gradient of up to {_largest(grads[0][~is_taken]):.3g} reaches q_tm1 of actions that "
        "were not taken: index it with a_tm1, and wrap what belongs to the target in "
        "jax.lax.stop_gradient",
    )
    _require_close(
        ended[0],
        ended[1],
        "with discount_t = 0 (a terminated episode) the TD error depends on q_t or q_t_online",
        "multiply everything that comes from time t by discount_t",
    )


def check_loss(
    loss_fn: LossFn,
    key: Array,
    *,
    network: Network | None = None,
    transitions: Transition | None = None,
    terminal_ignores_next_obs: bool = True,
) -> None:
    """Checks a loss of ONE transition: see `LossFn` and `LossOutput`.

    - It works under `jit`, `vmap` and `grad`; loss, priority and metrics are finite scalars.
    - The gradient reaches the online network's weights, and not the target network's.
    - The same key gives the same bits.
    - What follows a terminated episode does not count.

    Args:
      loss_fn: the loss.
      key: `[]` PRNG key of everything that is drawn.
      network: the one that the loss is meant for; by default a small MLP of action values.
      transitions: `[B, ...]`, such as `replay.sample(state, key).transition`; by default random
        ones with 4 numbers in an observation.
      terminal_ignores_next_obs: False for a loss that learns from `obs_t` whatever the discount.

    Raises:
      AssertionError: if something is wrong.
    """
    network, transitions, params, target_params = _loss_inputs(key, network, transitions)
    one = jax.tree.map(lambda x: x[0], transitions)

    def losses(params: Params, target_params: Params, keys: Array) -> LossOutput:
        batched = jax.vmap(loss_fn, in_axes=(None, None, None, 0, 0))
        return batched(network, params, target_params, transitions, keys)

    def one_loss(params: Params, target_params: Params, key: Array) -> LossOutput:
        return loss_fn(network, params, target_params, jax.tree.map(jnp.asarray, one), key)

    def examine(params: Params, target_params: Params, keys: Array) -> Any:
        output = losses(params, target_params, keys)
        alone = one_loss(params, target_params, jax.random.clone(keys)[0])

        def mean_loss(params: Params, target_params: Params) -> Array:
            return jnp.mean(losses(params, target_params, jax.random.clone(keys)).loss)

        return alone, output, jax.grad(mean_loss, argnums=(0, 1))(params, target_params)

    weights, keys = (params, target_params), jax.random.split(key, len(transitions.r_t))
    output = _types("the loss of one transition", _ONE_TRANSITION, one_loss, *weights, key)
    _require(
        isinstance(output, LossOutput),
        f"the loss returns {output!r}: it must return a LossOutput(loss, priority, metrics)",
    )
    _require_float_scalar(output.loss, "LossOutput.loss")
    _require_float_scalar(output.priority, "LossOutput.priority")
    _require(
        isinstance(output.metrics, dict),
        f"LossOutput.metrics is {output.metrics!r}: it must be a dict of scalars, if only {{}}",
    )
    for name, metric in output.metrics.items():
        _require_float_scalar(metric, f"LossOutput.metrics[{name!r}]")

    alone, output, (grads, target_grads) = _run(
        "the loss", _ONE_TRANSITION, examine, *weights, keys
    )
    _require_finite(output, "LossOutput")
    _require(
        (output.priority >= 0).all(),
        f"a priority is {output.priority.min():.3g}: it must not be negative; take jnp.abs of it",
    )
    _require_close(
        alone,
        jax.tree.map(lambda x: x[0], output),
        "one transition alone and in a batch have different losses",
        "write the loss for ONE transition",
    )
    _require_finite(grads, "the gradient of the loss")
    _require(
        _largest(grads) > 0,
        "no gradient reaches the online weights, so that nothing would be learned: take the "
        "prediction from params, and stop the gradient of the target alone",
    )
    _require(
        _largest(target_grads) == 0,
        f"a gradient of up to {_largest(target_grads):.3g} reaches target_params: wrap the target "
        "in jax.lax.stop_gradient",
    )
    if terminal_ignores_next_obs:
        check_terminal_ignores_next_obs(loss_fn, key, network=network, transitions=transitions)


def check_terminal_ignores_next_obs(
    loss_fn: LossFn,
    key: Array,
    *,
    network: Network | None = None,
    transitions: Transition | None = None,
) -> None:
    """Checks that `obs_t` does not count where `discount_t` is 0: nothing follows a terminal state.

    Args:
      loss_fn: the loss of ONE transition.
      key: `[]` PRNG key of everything that is drawn.
      network: as for `check_loss`.
      transitions: as for `check_loss`, at least two whose `obs_t` differ.

    Raises:
      AssertionError: if the loss, the priority or the gradient depend on `obs_t`.
    """
    network, transitions, *weights = _loss_inputs(key, network, transitions)
    no_discount: Any = np.zeros_like(transitions.discount_t)
    other_obs: Any = np.roll(transitions.obs_t, 1, axis=0)
    ended = transitions._replace(discount_t=no_discount)
    elsewhere = ended._replace(obs_t=other_obs)

    keys = jax.random.split(key, len(transitions.r_t))

    def examine(params: Params, target_params: Params, keys: Array) -> Any:
        def one(transition: Transition, key: Array) -> Any:
            def loss(params: Params) -> tuple[Array, Array]:
                output = loss_fn(network, params, target_params, transition, key)
                return output.loss, output.priority

            return jax.value_and_grad(loss, has_aux=True)(params)

        return jax.vmap(one)(ended, keys), jax.vmap(one)(elsewhere, jax.random.clone(keys))

    nothing, other = _run("the gradient of the loss", _ONE_TRANSITION, examine, *weights, keys)
    _require_close(
        nothing,
        other,
        "with discount_t = 0 (a terminated episode) the loss, the priority or the gradient depends "
        "on obs_t",
        "multiply everything that comes from obs_t by discount_t. For a loss that is meant to "
        "learn from it all the same: check_loss(..., terminal_ignores_next_obs=False)",
    )


_SMALL_NETWORK = make_network(MLP((16,), 3))


def _loss_inputs(
    key: Array, network: Network | None, transitions: Transition | None
) -> tuple[Network, Transition, Params, Params]:
    """A network, transitions `[B, ...]` as NumPy arrays, and online and target weights."""
    rng = _host_rng(key)
    obs: Any = rng.normal(size=(2, _NUM_LANES, 4)).astype(np.float32)
    if transitions is not None:
        obs = np.asarray(transitions.obs_tm1)[np.newaxis]
    network = network or _SMALL_NETWORK

    def values(key: Array, obs: Array) -> Array:
        return network.action_values(network.apply(network.init(key, obs), obs))

    q_values = _types(
        "the network that goes with the loss", _ONE_OBSERVATION, values, key, obs[0, 0]
    )
    num_actions = q_values.shape[0]
    if transitions is None:
        a_tm1: Any = rng.integers(0, num_actions, _NUM_LANES, np.int32)
        r_t: Any = rng.normal(size=_NUM_LANES).astype(np.float32)
        discount_t: Any = np.where(np.arange(_NUM_LANES) % 4 == 3, 0.0, 0.99).astype(np.float32)
        transitions = Transition(obs[0], a_tm1, r_t, discount_t, obs[1])
    transitions = jax.tree.map(np.asarray, transitions)
    # An index that is out of range would be clamped without a word.
    _require(
        transitions.a_tm1.max() < num_actions,
        f"a_tm1 reaches {transitions.a_tm1.max()}, but the network has {num_actions} actions: pass "
        "the network and the transitions that belong together",
    )
    init = jax.jit(network.init)
    online, target = (init(init_key, obs[0, 0]) for init_key in jax.random.split(key))
    return network, transitions, online, target


# ------------------------------------------------------------------------------------ networks


def check_network(network: Network, key: Array, obs: Array, num_actions: int) -> None:
    """Checks a value network of ONE observation: see `Network`.

    - It works under `jit`, `vmap` (over observations and over weights) and `grad`.
    - `action_values` gives one finite float for each action.
    - Its noise is the key's; without a key there is none.
    - What it makes of an observation does not depend on the others in a batch.
    - Different keys give different weights.

    Args:
      network: the network.
      key: `[]` PRNG key of everything that is drawn.
      obs: `[*obs]` one observation.
      num_actions: `A`.

    Raises:
      AssertionError: if something is wrong.
    """
    obs = jnp.asarray(obs)

    def values(params: Params, obs: Array, key: Array | None = None) -> Array:
        return network.action_values(network.apply(params, obs, key))

    params = _types("network.init", _ONE_OBSERVATION, network.init, key, obs)
    for name, noise in (("without a key", None), ("with a key", key)):
        found = _types(f"network.apply {name}", _ONE_OBSERVATION, values, params, obs, noise)
        _require(
            getattr(found, "shape", None) == (num_actions,)
            and jnp.issubdtype(found.dtype, jnp.floating),
            f"action_values gives {_type(found)} for one observation {name}: it must give "
            f"float32[{num_actions}], one number for each action",
        )

    def examine(init_keys: Array, noise_key: Array) -> Any:
        weights = jax.vmap(network.init, in_axes=(0, None))(init_keys, obs)
        params = jax.tree.map(lambda x: x[0], weights)
        batch = jnp.stack([obs, jnp.zeros_like(obs), jnp.ones_like(obs)])
        return {
            "weights": weights,
            "alone": values(params, obs),
            "noisy": values(params, obs, noise_key),
            "among observations": jax.vmap(values, in_axes=(None, 0))(params, batch)[0],
            "among weights": jax.vmap(values, in_axes=(0, None))(weights, obs)[0],
            "gradient": jax.grad(lambda params: values(params, batch[2]).sum())(params),
        }

    keys = jax.random.split(key, 3)
    found = _run("the network", _ONE_OBSERVATION, examine, keys[:2], keys[2])
    _require_finite(found["weights"], "the network's weights after network.init")
    _require_finite(found["alone"], "action_values without a key")
    _require_finite(found["noisy"], "action_values with a key")
    _require(
        any((leaf[0] != leaf[1]).any() for leaf in jax.tree.leaves(found["weights"])),
        "two different keys give the same weights: draw them from the key",
    )
    for place in ("among observations", "among weights"):
        _require_close(
            found["alone"],
            found[place],
            f"the values of an observation differ alone and {place} in a batch",
            "normalise within ONE observation, not over a batch",
        )
    _require_finite(found["gradient"], "the gradient of the action values")
    _require(
        _largest(found["gradient"]) > 0,
        "no gradient reaches the weights, so that nothing would be learned",
    )


# -------------------------------------------------------------------------------------- replay


_OBS_SHAPE = (2, 3, 5)  # so peculiar that what ends in it holds observations
_BATCH_SIZE = 16
_DISCOUNT = 0.9


def check_replay(make_replay: MakeReplay, key: Array, *, num_envs: int = 3) -> None:
    """Checks a replay of single steps: see `Replay`, `Step` and `Sample`.

    - Every transition in a sample is one that was added, and among the newest `capacity` ones.
      What was never written is never sampled.
    - Action, reward and both observations belong together; `obs_t` is the true one, also where the
      time limit cut an episode off.
    - `discount_t` is 0 where the episode terminated, and nowhere else.
    - It works under `jit`, `scan` and `vmap`; it writes in place, also for several runs at once;
      it keeps the dtype of observations.

    Args:
      make_replay: `(capacity, batch_size, discount, time_limit) -> Replay`, such as
        `uniform_replay`.
      key: `[]` PRNG key of everything that is drawn.
      num_envs: `E`.

    Raises:
      AssertionError: if something is wrong.
    """
    _check_replay_types(make_replay(8 * num_envs, _BATCH_SIZE, _DISCOUNT, 5), num_envs, key)
    keys = jax.random.split(key, 64)
    for max_rows, time_limit in ((8, 3), (4, 1)):
        replay = make_replay(max_rows * num_envs, _BATCH_SIZE, _DISCOUNT, time_limit)
        _check_replay_content(replay, _stream(29, num_envs, time_limit), keys, max_rows)
    _check_in_place(make_replay, num_envs)


def _stream(num_steps: int, num_envs: int, time_limit: int) -> Step:
    """Random steps `[T, E, ...]`; each observation holds a number above 0 that no other one does.

    Episodes follow each other; both flags also come together; each environment is truncated at
    most once in `time_limit` steps.
    """
    rng = np.random.default_rng(0)
    terminated = rng.random((num_steps, num_envs)) < 0.25
    truncated = np.zeros_like(terminated)
    since = np.full(num_envs, time_limit)
    for t in range(num_steps):
        truncated[t] = (rng.random(num_envs) < 0.5) & (since >= time_limit)
        since = np.where(truncated[t], 1, since + 1)
    obs, last_obs = rng.permutation(2 * num_steps * num_envs).reshape(2, num_steps, num_envs) + 1
    following = np.concatenate([obs[1:], last_obs[-1:]])
    next_obs = np.where(terminated | truncated, last_obs, following)

    def image(numbers: np.ndarray) -> Any:
        numbers = numbers.astype(np.float32)
        return numbers.reshape(*numbers.shape, 1, 1, 1) * np.ones(_OBS_SHAPE, np.float32)

    action, reward = rng.integers(0, 100, obs.shape, np.int32), rng.normal(size=obs.shape)
    fields = (image(obs), action, reward.astype(np.float32), terminated, truncated, image(next_obs))
    return Step._make(fields)


def _check_replay_types(replay: Replay, num_envs: int, key: Array) -> None:
    def array(*shape: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    obs, flag = array(num_envs, *_OBS_SHAPE, dtype=jnp.uint8), array(num_envs, dtype=bool)
    action = array(num_envs, dtype=jnp.int32)
    step = Step(obs, action, array(num_envs, dtype=jnp.float32), flag, flag, obs)
    state = _types("Replay.init", _COMPILABLE, replay.init, step)
    added = _types("Replay.add", _COMPILABLE, replay.add, state, step)
    sample = _types("Replay.sample", _COMPILABLE, replay.sample, added, key)
    _require(
        isinstance(sample, Sample) and isinstance(sample.transition, Transition),
        f"Replay.sample gives {sample!r}: it must give a Sample of a Transition",
    )
    some_obs = array(_BATCH_SIZE, *_OBS_SHAPE, dtype=jnp.uint8)
    action, number = (array(_BATCH_SIZE, dtype=dtype) for dtype in (jnp.int32, jnp.float32))
    _require_same_types(
        Sample(Transition(some_obs, action, number, number, some_obs), action, number),
        sample,
        f"a batch of {_BATCH_SIZE} steps with uint8 observations has the wrong types",
        "give out observations, actions and rewards in the dtypes in which they were added",
    )
    updated = _types("Replay.update", _COMPILABLE, replay.update, added, action, number)
    for name, new in (("add", added), ("update", updated)):
        _require_same_types(
            state,
            new,
            f"Replay.{name} changes the types of the state, so that scan cannot carry it",
            "keep every shape and dtype",
        )


def _check_replay_content(replay: Replay, steps: Step, keys: Array, max_rows: int) -> None:
    def examine(keys: Array, steps: Step, num_steps: Array) -> Sample:
        def unwritten(x: Array) -> Array:
            holds_obs = x.shape[-len(_OBS_SHAPE) :] == _OBS_SHAPE
            return jnp.full_like(x, jnp.nan) if holds_obs else x

        def at(t: Array) -> Step:
            return jax.tree.map(lambda x: x[t], steps)

        state = jax.tree.map(unwritten, replay.init(at(jnp.int32(0))))
        state = jax.lax.fori_loop(0, num_steps, lambda t, state: replay.add(state, at(t)), state)
        return jax.vmap(replay.sample, in_axes=(None, 0))(state, keys)

    program = _Program("init, add and sample of a replay", _COMPILABLE, examine)
    for num_steps in (max_rows - 2, len(steps.action)):
        added = Step._make(x[:num_steps] for x in steps)
        samples = _on_host(program(keys, steps, num_steps))
        _check_samples(samples, added, max_rows)


def _check_samples(samples: Sample, steps: Step, max_rows: int) -> None:
    """Samples `[n, B, ...]` against the steps `[T, E, ...]` that were added."""
    num_steps, num_envs = steps.action.shape
    transition, _, probabilities = jax.tree.map(np.concatenate, samples)
    _require(
        ((probabilities > 0) & (probabilities <= 1)).all(),
        f"probabilities reach from {probabilities.min():.3g} to {probabilities.max():.3g}: each "
        "must be above 0 and at most 1",
    )

    def numbers(obs: np.ndarray) -> np.ndarray:
        """The number in each observation, NaN where the pixels do not agree."""
        obs = obs.reshape(len(obs), -1)
        return np.where((obs == obs[:, :1]).all(axis=1), obs[:, 0], np.nan)

    added = {float(steps.obs[at][0, 0, 0]): at for at in np.ndindex(num_steps, num_envs)}
    seen = set()
    fields = (transition.a_tm1, transition.r_t, transition.discount_t)
    obs_tm1, obs_t = numbers(transition.obs_tm1), numbers(transition.obs_t)
    for number, a_tm1, r_t, discount_t, next_number in zip(obs_tm1, *fields, obs_t, strict=True):
        where = f"after {num_steps} steps of {num_envs} environments with room for {max_rows}, "
        _require(
            number in added and not np.isnan(next_number),
            f"{where}a sampled transition holds observations that were never added (obs_tm1 "
            f"{number}, obs_t {next_number}): sample only entries that were written",
        )
        at = added[number]
        seen.add(at)
        where = f"in the transition of step {at[0]} of environment {at[1]}, {where}"
        _require(
            at[0] >= num_steps - max_rows,
            f"{where}which is not among the newest {max_rows}: write over the oldest",
        )
        for name, found, true in (("a_tm1", a_tm1, steps.action), ("r_t", r_t, steps.reward)):
            _require(found == true[at], f"{where}{name} is {found} and not {true[at]}")
        flags = f"terminated {steps.terminated[at]}, truncated {steps.truncated[at]}"
        true_discount = 0.0 if steps.terminated[at] else _DISCOUNT
        _require(
            bool(np.isclose(discount_t, true_discount)),
            f"{where}discount_t is {discount_t:.3g} and not {true_discount} ({flags}): it is 0 "
            "where the episode terminated, and gamma everywhere else, also at the time limit",
        )
        true_next = steps.next_obs[at][0, 0, 0]
        _require(
            bool(steps.terminated[at]) or next_number == true_next,
            f"{where}obs_t is observation {next_number} and not {true_next} ({flags}): it is "
            "Step.next_obs, at the time limit too, where the next row holds another episode's",
        )
    num_held = min(num_steps, max_rows) * num_envs
    _require(
        2 * len(seen) >= num_held,
        f"{len(obs_tm1)} draws reached only {len(seen)} of {num_held} transitions held: sample "
        "all of them",
    )


def _check_in_place(make_replay: MakeReplay, num_envs: int) -> None:
    """Compiles, but does not run, `add` for several runs at once, as a sweep trains them."""
    num_runs, max_rows = 2, 4096
    replay = make_replay(max_rows * num_envs, _BATCH_SIZE, _DISCOUNT, 5)
    steps = _stream(6, num_envs, 5)
    state = jax.eval_shape(replay.init, jax.tree.map(lambda x: jnp.asarray(x[0]), steps))
    axes = run_axes(state)

    def batched(axis: int | None, part: ArrayTree) -> ArrayTree:
        if axis is None:
            return part
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_runs, *x.shape), x.dtype), part)

    states = jax.tree.map(batched, axes, state, is_leaf=lambda axis: axis is None)
    runs = jax.tree.map(lambda x: np.stack([x] * num_runs), steps)

    def add_all(state: ArrayTree, steps: Step) -> ArrayTree:
        return jax.lax.scan(lambda state, step: (replay.add(state, step), None), state, steps)[0]

    over_runs = jax.vmap(add_all, in_axes=(axes, 0), out_axes=axes)
    try:
        program = jax.jit(over_runs, donate_argnums=0).lower(states, runs).compile()
    except Exception as error:
        raise AssertionError(
            f"Replay.add of several runs under vmap raises {type(error).__name__}: {error}\nA "
            "field that purejaxdqn.types.shared_counter() declares must not depend on what is added"
        ) from error
    obs_type = ",".join(map(str, _OBS_SHAPE))
    _require(
        not re.search(rf"{obs_type}\]\S* scatter\(", program.as_text() or ""),
        "Replay.add writes with a scatter when several runs are vmapped: declare the index with "
        "purejaxdqn.types.shared_counter(), and write with jax.lax.dynamic_update_slice",
    )
    memory = program.memory_analysis()
    ring = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(states))
    _require(
        memory is None or memory.temp_size_in_bytes < ring / 2,
        f"Replay.add copies: it needs {getattr(memory, 'temp_size_in_bytes', 0)} bytes beside a "
        f"ring of {ring}. Write with jax.lax.dynamic_update_slice, and read what the write "
        "replaces before it, not after",
    )


# ------------------------------------------------------------------------------------ in common


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _types(name: str, remedy: str, function: Callable[..., Any], *args: Any) -> Any:
    """Shapes and dtypes of a function's answer; whatever it raises is a finding."""
    try:
        with jax.numpy_rank_promotion("raise"):
            return jax.eval_shape(lambda *args: function(*args), *args)
    except Exception as error:
        raise AssertionError(f"{name} raises {type(error).__name__}: {error}\n{remedy}.") from error


class _Program:
    """A function of a component, compiled; its first call shows whether it is pure."""

    def __init__(self, name: str, remedy: str, function: Callable[..., Any]) -> None:
        self._name, self._remedy, self._function = name, remedy, function
        self._compiled: Any = None

    def _trace(self) -> Any:
        # A function of its own each time, so that it is traced anew; compiled soon, not fast.
        return jax.jit(
            lambda *args: self._function(*_clone_keys(args)),
            compiler_options={"xla_backend_optimization_level": 0},
        )

    def __call__(self, *args: Any) -> Any:
        args = jax.tree.map(jnp.asarray, args)
        answers = []
        try:
            with jax.numpy_rank_promotion("raise"), jax.debug_key_reuse(True):
                if self._compiled is None:
                    self._compiled, again = self._trace(), self._trace()
                    answers.append(self._compiled(*args))
                    # What is hidden outside of the arguments shows when it is traced again.
                    if again.lower(*args).as_text() != self._compiled.lower(*args).as_text():
                        answers.append(again(*args))
                answers.append(self._compiled(*args))
                jax.block_until_ready(answers)
        except jax.errors.KeyReuseError as error:
            raise AssertionError(
                f"{self._name} uses a PRNG key twice, so that draws are not independent: {error}\n"
                "Give each use its own: key, use_key = jax.random.split(key)."
            ) from error
        except Exception as error:
            raise AssertionError(
                f"{self._name} raises {type(error).__name__}: {error}\n{self._remedy}."
            ) from error
        for other in answers[1:]:
            for path, x, y in _pairs(_on_host(answers[0]), _on_host(other)):
                _require(
                    x.tobytes() == y.tobytes(),
                    f"{self._name} gives different answers to the same arguments: {path} is "
                    f"{_some(x)} and then {_some(y)}; {_OWN_KEY}",
                )
        return answers[0]


def _run(name: str, remedy: str, function: Callable[..., Any], *args: Any) -> Any:
    """A function's answer, compiled and seen to be pure, on the host."""
    return _on_host(_Program(name, remedy, function)(*args))


def _on_host(tree: ArrayTree) -> Any:
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)


def _clone_keys(tree: ArrayTree) -> ArrayTree:
    """Lets the keys of a tree be used again, on purpose."""
    return jax.tree.map(lambda x: jax.random.clone(x) if _is_key(x) else x, tree)


def _host_rng(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(tree: ArrayTree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]


def _type(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)


def _some(values: np.ndarray) -> str:
    return np.array2string(values.ravel()[:4]) + (" ..." if values.size > 4 else "")


def _pairs(a: ArrayTree, b: ArrayTree) -> list[tuple[str, Any, Any]]:
    """`(path, leaf of a, leaf of b)` of two trees of one structure."""
    paths = jax.tree_util.tree_leaves_with_path(a)
    leaves = jax.tree.leaves(b)
    return [
        (f"the part {jax.tree_util.keystr(path)}" if path else "it", x, y)
        for (path, x), y in zip(paths, leaves, strict=True)
    ]


def _require_same_types(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    one, other = str(jax.tree.structure(a)), str(jax.tree.structure(b))
    _require(one == other, f"{message}: {one} and then {other}; {remedy}")
    for path, x, y in _pairs(a, b):
        _require(
            x.shape == y.shape and x.dtype == y.dtype,
            f"{message}: {path} is {_type(x)} and then {_type(y)}; {remedy}",
        )


def _require_close(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Equal up to what another order of sums rounds."""
    for path, x, y in _pairs(a, b):
        _require(
            np.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True),
            f"{message}: {path} is {_some(x)} and then {_some(y)}; {remedy}",
        )


def _require_finite(tree: ArrayTree, name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_finite = np.isfinite(leaf) if leaf.dtype != jax.dtypes.float0 else np.array(True)
        _require(
            is_finite.all(),
            f"{name}{jax.tree_util.keystr(path)} holds {_some(leaf[~is_finite])}: it must be "
            "finite; look for a division by 0, a logarithm of 0 or the gradient of a root at 0",
        )


def _require_float_scalar(x: Any, name: str) -> None:
    _require(
        getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.floating),
        f"{name} is {_type(x)}: it must be a float scalar, float32[]",
    )


def _largest(tree: ArrayTree) -> float:
    """The largest magnitude in a tree of gradients."""
    leaves = [np.abs(x).max() for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]
    return max(map(float, leaves), default=0.0)
