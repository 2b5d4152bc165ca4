"""Makes any gymnasium environment one of ours, which steps on the host: "gymnasium:LunarLander-v3".

A step is a callback inside of the compiled program, ONE for all environments of all runs that a
device trains side by side. What threads through a program is the number of an environment, and how
often it has changed: `purejaxdqn.environments.host.pool` refuses any other order.
"""

import ast
import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from jax.experimental.buffer_callback import buffer_callback

from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.host.pool import UNSEEN, HostEnvs, Pool
from purejaxdqn.environments.host.singles import (
    SingleEnvs,
    Source,
    load_creator,
    read_observations,
)
from purejaxdqn.types import Array, ConfigError, TimeStep, ensure, nearest_names


class Host:
    """What is on the host for a source: made once in a process, whatever is compiled of it."""

    def __init__(self, make: Callable[[int], HostEnvs], space: Box) -> None:
        # Devices step groups of training, evaluation and diagnostics. They are counted late, as
        # JAX fixes their number when it is asked.
        self._pool = Pool(make, lambda: 4 + 4 * jax.local_device_count())
        self._make, self.space = make, space  # of an observation

    def begin(self, seeds: Any) -> tuple[np.ndarray, ...]:
        """Begins environments from seeds `[...]`: handles `[...]`, observations `[..., *obs]`."""
        seeds = np.asarray(seeds)
        return _unflatten(seeds.shape, self._pool.begin(seeds.reshape(-1)))

    def step(self, calls: Any) -> tuple[np.ndarray, ...]:
        """Steps environments, each by its handle, count and action, `[..., 3]`: see `Answer`."""
        return self._step(calls, False)

    def step_and_reset(self, calls: Any) -> tuple[np.ndarray, ...]:
        """Steps environments likewise, and begins new episodes where some ended."""
        return self._step(calls, True)

    def draw(self, calls: Any) -> tuple[np.ndarray, ...]:
        """Draws environments, each by its handle and count, `[..., 2]`: `[..., H, W, 3]`."""
        calls = np.asarray(calls)
        pictures = np.array([self._pool.draw(*call) for call in calls.reshape(-1, 2).tolist()])
        return _unflatten(calls.shape[:-1], (pictures,))

    @functools.cached_property
    def picture(self) -> jax.ShapeDtypeStruct:
        """The shape of what it draws."""
        env = self._make(1)
        env.reset(np.zeros(1, np.uint32))
        shape = env.draw(0).shape
        env.close()
        return jax.ShapeDtypeStruct(shape, np.uint8)

    def _step(self, calls: Any, resets: bool) -> tuple[np.ndarray, ...]:
        calls = np.asarray(calls)
        handles, counts, actions = calls.reshape(-1, 3).T
        answer = self._pool.step(handles, counts, actions, resets)
        return _unflatten(calls.shape[:-1], answer if resets else answer[:-1])


def _unflatten(axes: tuple[int, ...], arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return tuple(x.reshape((*axes, *x.shape[1:])) for x in arrays)


@functools.cache
def _host_of(source: Source) -> Host:
    reader = read_observations(source.make().observation_space)
    assert reader is not None, "it was checked when the environment was made"
    return Host(functools.partial(SingleEnvs, source, reader), reader.space)


def _call_host(function: Callable[[Any], tuple[np.ndarray, ...]], shapes: Any, x: Array) -> Any:
    """Calls a function on the host: once, with all axes that are vmapped in front."""
    how: Any = {"vmap_method": "broadcast_all"}
    if jax.default_backend() == "cpu":  # the same in a seventh of the time
        return buffer_callback(_writing(function), shapes, has_side_effect=True, **how)(x)
    return jax.pure_callback(function, shapes, x, **how)


@functools.cache
def _writing(function: Callable[[Any], tuple[np.ndarray, ...]]) -> Callable[..., None]:
    """Makes a function write its results into the memory of a compiled program."""

    def call(_: Any, buffers: Any, x: Any) -> None:
        for buffer, result in zip(buffers, function(x), strict=True):
            np.asarray(buffer)[...] = result

    return call


@flax.struct.dataclass
class HostState:
    """One environment on the host."""

    handle: Array  # [] int32, its number in this process
    count: Array  # [] int32, how often it has changed


def begin_unseen(state: Any, fresh: Any) -> Any:
    """Puts fresh host environments into the place of those in a state, wrappers and all.

    With the next `step_and_reset`, whatever the action is, their first episodes begin.
    """

    def is_host(x: Any) -> bool:
        return isinstance(x, HostState)

    def replace(old: Any, new: Any) -> Any:
        return new.replace(count=jnp.full_like(new.count, UNSEEN)) if is_host(new) else old

    return jax.tree.map(replace, state, fresh, is_leaf=is_host)


HostOf = Callable[[Any], Host]


def _reset(host_of: HostOf, source: Any, key: Array) -> tuple[HostState, Array]:
    """Begins an environment of its own, whose random numbers follow from the key alone."""
    host = host_of(source)
    seed = jax.random.bits(key, (), jnp.uint32)
    shapes = (jax.ShapeDtypeStruct((), np.int32), _shape_of(host.space))
    handle, obs = _call_host(host.begin, shapes, seed)
    return HostState(handle, jnp.zeros_like(handle)), obs


def _call(step: Callable[..., Any], shapes: Any, state: HostState, action: Array) -> Any:
    """Calls the host, once for all that is vmapped; the count that it gives is the next call's."""
    whole, flag = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.bool_)
    first, *more = shapes
    shapes = (whole, first, jax.ShapeDtypeStruct((), np.float32), flag, flag, *more)
    call = jnp.stack([state.handle, state.count, jnp.asarray(action, jnp.int32)])
    count, *answer = _call_host(step, shapes, call)
    return state.replace(count=count), TimeStep(*answer[:4]), *answer[4:]  # type: ignore[attr-defined]


def _step(
    host_of: HostOf, source: Any, key: Array, state: HostState, action: Array
) -> tuple[HostState, TimeStep]:
    """Steps an environment; behind the end of its episode it answers as there, and no reward."""
    del key  # its random numbers follow from that of the reset
    host = host_of(source)
    new_state, timestep = _call(host.step, [_shape_of(host.space)], state, action)
    return new_state, timestep


def _step_and_reset(
    host_of: HostOf, source: Any, key: Array, state: HostState, action: Array
) -> tuple[HostState, Array, TimeStep]:
    """Steps an environment, and goes on with its next episode if one ended."""
    del key
    host = host_of(source)
    shapes = 2 * [_shape_of(host.space)]
    new_state, timestep, obs = _call(host.step_and_reset, shapes, state, action)
    return new_state, obs, timestep


def _render(host_of: HostOf, source: Any, state: HostState) -> Array:
    """Draws an environment as it is now."""
    host = host_of(source)
    call = jnp.stack([state.handle, state.count])
    (picture,) = _call_host(host.draw, (host.picture,), call)
    return picture


def _shape_of(space: Box) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(space.shape, space.dtype)


def make_environment(
    name: str, host_of: HostOf, source: Any, *, is_drawn: bool, threshold: Any = None, **facts: Any
) -> Environment:
    """Makes an environment of what is on the host for a source, with these facts.

    Its functions know the source alone: a fingerprint of them is that of the source.
    """
    return Environment(
        name=name,
        reset=functools.partial(_reset, host_of, source),
        step=functools.partial(_step, host_of, source),
        observation_space=host_of(source).space,
        threshold=threshold,
        truncates_early=True,  # by its own code, and where a run is resumed in another process
        render=functools.partial(_render, host_of, source) if is_drawn else None,
        step_and_reset=functools.partial(_step_and_reset, host_of, source),
        is_host=True,
        **facts,
    )


def make_from_gymnasium(name: str, id: str, settings: Mapping[str, Any]) -> Environment:
    """Makes an environment of gymnasium's registry, such as `id` "LunarLander-v3".

    Of "my_package:My-v0" the package is imported first. The settings go to `gymnasium.make`, texts
    as the Python values that they spell.

    It draws itself with the setting `render_mode="rgb_array"`, which may slow it down. Atari games
    are those of `purejaxdqn.environments.host.atari`.

    Raises:
      ConfigError: for an unknown id or setting, an environment that cannot be made, and spaces that
        are not ours.
    """
    spec = _find_spec(name, id)
    read = {key: _read_value(value) for key, value in settings.items()}
    if spec.vector_entry_point == "ale_py.vector_env:AtariVectorEnv":
        from purejaxdqn.environments.host.atari import make_atari  # which needs this file

        with _explaining(name, f"made by ale_py as {spec.id}", ""):
            return make_atari(name, spec.kwargs, read)
    with _explaining(name, f"made by gymnasium as {spec.id}", _find_extra(spec)):
        # What it is made by is told apart from another class that is registered under the same id.
        creator = load_creator(spec)
        _check_settings(name, creator, read)
        registered = f"{spec.kwargs} {spec.max_episode_steps} {spec.additional_wrappers}"
        source = Source(id, tuple(sorted(read.items())), creator, registered)
        env = source.make()
    _check_spaces(name, env)
    facts, num_actions = env.spec, int(env.action_space.n)  # type: ignore[attr-defined]
    env.close()
    assert facts is not None, "gymnasium.make gives one"
    return make_environment(
        name,
        _host_of,
        source,
        num_actions=num_actions,
        max_steps=facts.max_episode_steps,
        threshold=facts.reward_threshold,
        is_drawn="render_mode" in read,
    )


def _read_value(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    return value


@contextlib.contextmanager
def _explaining(name: str, what: str, remedy: str) -> Iterator[None]:
    """Words what others' code raises, of any kind, as one line; what is missing has a remedy."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        is_missing = isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled))
        remedy = remedy if is_missing else "correct that, or choose another environment"
        raise ConfigError(
            f"environment ({name!r}) cannot be {what} ({type(error).__name__}: {error!s:.200}): "
            f"{remedy}"
        ) from error


def _find_extra(spec: EnvSpec) -> str:
    """Says how to install what an environment of the registry needs."""
    if "box2d" in str(spec.entry_point):
        return 'pip install "purejaxdqn[box2d]"'
    return "install what it needs"


def _find_spec(name: str, id: str) -> EnvSpec:
    """Finds what gymnasium's registry says of an id, and imports the package that it may name."""
    package, _, rest = id.rpartition(":")
    package = package or ("ale_py" if rest.startswith("ALE/") else "")
    if package:
        is_atari = package == "ale_py"
        remedy = 'pip install "purejaxdqn[atari]"' if is_atari else "install the package"
        with _explaining(name, f"made without importing {package}", remedy):
            importlib.import_module(package)
    if rest not in gymnasium.registry:
        near = nearest_names(rest, gymnasium.registry)
        known = near if near.count(",") < 3 else "CartPole-v1, LunarLander-v3, ..."
        raise ConfigError(
            f"environment ({name!r}): gymnasium's {rest!r} must be one of {known}; one that a "
            "package registers is named gymnasium:my_package:My-v0"
        )
    return gymnasium.registry[rest]


def _check_settings(name: str, creator: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Refuses settings that the environment is not made with."""
    mode = settings.get("render_mode", "rgb_array")
    ensure(mode == "rgb_array", f"environment ({name!r}): render_mode", mode, "'rgb_array'")
    parameters = inspect.signature(creator).parameters.values()
    if any(one.kind == one.VAR_KEYWORD for one in parameters):
        return
    allowed = {one.name for one in parameters} | {"max_episode_steps"}
    for key in settings:
        if key not in allowed:
            raise ConfigError(
                f"environment ({name!r}): setting {key!r} must be one of "
                f"{nearest_names(key, sorted(allowed))}, which it is made with"
            )


def _check_spaces(name: str, env: gymnasium.Env[Any, Any]) -> None:
    """Refuses spaces that are not ours."""
    remedy = "choose another environment, or register one that wraps it"
    actions, obs = (" ".join(str(x).split()) for x in (env.action_space, env.observation_space))
    if not isinstance(env.action_space, Discrete):
        raise ConfigError(
            f"environment ({name!r}) has actions {actions:.80}, and must have Discrete ones: "
            f"{remedy}"
        )
    if read_observations(env.observation_space) is None:
        raise ConfigError(
            f"environment ({name!r}) has observations {obs:.80}, and must have a Box, Discrete, "
            f"MultiDiscrete or MultiBinary: {remedy}"
        )
