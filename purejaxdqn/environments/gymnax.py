"""Makes any environment of gymnax one of ours: "gymnax:Breakout-MinAtar?max_steps_in_episode=500".

It is a pattern for other libraries in JAX. What an adapter must get right is in `_reset` and
`_step`: no reset within a step, the time limit apart from the end of the task, and states and
observations of fixed types. Of these, other lines are needed, and `register` for their names:

- pgx: `env.init(key)` and `env.step(state, action, key)` answer with a state, in which are
  `observation`, `rewards` of each player, and `terminated`; there is no time limit. As what is
  legal is read in observations, `legal_action_mask` must be joined to them.
- navix: a `timestep` is the state; `env.reset(key)` and `env.step(timestep, action)` answer with
  one, of which `is_termination()` and `is_truncation()` tell the ends. In the step behind an end
  `env.step` resets: take what it calls elsewhere.
- craftax: `env.step_env` and `env.reset_env` as here, but `done` mixes both ends, as in gymnax
  before 1.0: `state.timestep >= params.max_timesteps` is the time limit. What ends the task is
  `env.is_terminal(state, params)` with `max_timesteps` raised beyond reach.
- octax: `env.step(state, action)` answers with `(state, obs, reward, terminated, truncated, info)`,
  and its time limit is `env.max_num_steps_per_episodes`. The frames of an image are its first axis,
  and must become the last one.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box

from purejaxdqn.environments import naming
from purejaxdqn.environments.base import Environment, EnvState
from purejaxdqn.types import Array, ConfigError, TimeStep, nearest_names

_LIMIT = "max_steps_in_episode"  # the time limit, among the parameters of each environment


class Source(NamedTuple):
    """An environment of gymnax."""

    env: Any
    params: Any
    space: Box  # ours, of an observation
    num_values: int | None  # of an observation that is one whole number; None for arrays


def make_from_gymnax(name: str, id: str, settings: Mapping[str, str]) -> Environment:
    """Makes an environment of gymnax, such as `id` "CartPole-v1".

    Settings are arguments of its class, such as the size of DeepSea, and its parameters, as far as
    they are numbers, flags or texts.

    Raises:
      ConfigError: where gymnax cannot be imported or is too old; for an unknown id or setting, a
        value that is not allowed, and spaces that are not ours.
    """
    env, params = _make(name, id, settings)
    actions = env.action_space(params)
    if not hasattr(actions, "n"):
        raise ConfigError(f"environment ({name!r}): its actions ({actions}) must be discrete")
    observations = env.observation_space(params)
    num_values: int | None
    space: Box
    if hasattr(observations, "n"):
        num_values, space = int(observations.n), Box(0, 1, (int(observations.n),), np.float32)
    elif hasattr(observations, "low"):
        num_values, space = None, _to_box(observations)
    else:
        raise ConfigError(
            f"environment ({name!r}): its observations ({observations}) must be one array, or one "
            "whole number"
        )
    source = Source(env, params, space, num_values)
    reset, step = functools.partial(_reset, source), functools.partial(_step, source)
    max_steps = int(getattr(params, _LIMIT))
    return Environment(name, reset, step, int(actions.n), space, None, max_steps)


def _make(name: str, id: str, settings: Mapping[str, str]) -> tuple[Any, Any]:
    """Makes an environment of gymnax, with its parameters."""
    try:
        import gymnax
    except ImportError as error:
        raise ConfigError(
            f"environment ({name!r}): gymnax cannot be imported ({error}): install it in an "
            "environment of its own by pip install 'purejaxdqn[gymnax]', as gymnax 1.0.1 asks for "
            "gymnasium below 1.4, for jax below 0.12, and, without saying so, for six"
        ) from error
    if id not in gymnax.registered_envs:
        known = nearest_names(id, gymnax.registered_envs)
        raise ConfigError(f"environment ({name!r}): {id!r} must be one of {known}")
    env, params = _call_make(name, id)
    if not hasattr(env, "is_truncated"):
        raise ConfigError(
            f"environment ({name!r}): gymnax must be of version 1.0 or later, which tells a time "
            "limit apart from an end: pip install --upgrade 'purejaxdqn[gymnax]'"
        )
    of_params = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    own = {**naming.options_of(type(env)), **naming.options_for(of_params), _LIMIT: naming.whole(1)}
    values, _ = naming.read_settings(name, settings.items(), own)
    changed = {key: value for key, value in values.items() if key in of_params}
    arguments = {key: value for key, value in values.items() if key not in of_params}
    env, params = _call_make(name, id, **arguments)
    return env, params.replace(**changed)


def _call_make(name: str, id: str, **arguments: Any) -> tuple[Any, Any]:
    import gymnax

    try:
        return gymnax.make(id, **arguments)
    except (AssertionError, OSError, TypeError, ValueError) as error:  # rules of its own, and files
        raise ConfigError(
            f"environment ({name!r}): gymnax cannot make it with {arguments or 'its defaults'}: "
            f"change these, or choose another one ({type(error).__name__}: {error})"
        ) from error


def _to_box(space: Any) -> Box:
    """Makes a space of ours: of bool and bytes as they are, and of float32 for other numbers."""
    dtype = np.dtype(space.dtype)
    dtype = dtype if dtype in (np.bool_, np.uint8) else np.dtype(np.float32)
    low, high = (
        np.broadcast_to(np.asarray(x, dtype), space.shape) for x in (space.low, space.high)
    )
    return Box(low, high, dtype=dtype.type)


def _observe(source: Source, obs: Array) -> Array:
    """Reads an observation as one of ours: a whole number is one-hot."""
    if source.num_values is not None:
        return jax.nn.one_hot(obs, source.num_values, dtype=jnp.float32)
    return jnp.asarray(obs, source.space.dtype)


def _reset(source: Source, key: Array) -> tuple[EnvState, Array]:
    """Begins an episode."""
    env, params = source.env, source.params
    obs, state = env.reset_env(key, params)
    # A new state may have numbers of Python, and must have the types of all later ones.
    types = jax.eval_shape(lambda s: env.step_env(key, s, jnp.int32(0), params)[1], state)
    state = jax.tree.map(lambda x, later: jnp.asarray(x, later.dtype), state, types)
    return state, _observe(source, obs)


def _step(source: Source, key: Array, state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
    """Takes a step, and never begins a new episode, as `env.step` would.

    Since gymnax 1.0, `terminated` knows the task's own rules alone.
    """
    env, params = source.env, source.params
    obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
    truncated = env.is_truncated(state, params)
    flags = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
    return state, TimeStep(_observe(source, obs), jnp.asarray(reward, float), *flags)
