"""The adapter to gymnax: on a stand-in with its interface, and, slow, on gymnax itself."""

import subprocess
import sys
import types
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import environments
from purejaxdqn.environments import step_and_reset
from purejaxdqn.testing import check_environment
from purejaxdqn.types import ConfigError

KEY = jax.random.key(0)
ROOT = Path(__file__).parents[2]


@flax.struct.dataclass
class Params:
    max_steps_in_episode: int = 7
    size: float = 3.0
    is_slow: bool = False
    table: tuple = (1, 2)  # no setting


@flax.struct.dataclass
class State:
    place: jax.Array
    time: int


class Space:
    """A Box or a Discrete of gymnax, by its attributes."""

    def __init__(self, **facts):
        vars(self).update(facts)

    def __repr__(self):
        return f"Space({vars(self)})"


LARGEST = jnp.finfo(jnp.float32).max


class Walk:
    """A walk that ends beyond its size; as in gymnax, a new state has Python's numbers."""

    observations = Space(
        low=-LARGEST, high=jnp.array([LARGEST, 1e9]), shape=(2,), dtype=jnp.float32
    )
    actions = Space(n=2)

    def __init__(self, bias: float = 0.0, start: int = 0):
        if start > 2:
            raise ValueError("start is too far")
        self.bias, self.start = bias, start

    default_params = Params()

    def observe(self, state):
        return jnp.stack([state.place, jnp.asarray(state.time, state.place.dtype)])

    def reset_env(self, key, params):
        state = State(self.start + jax.random.uniform(key, (), minval=-0.5), 0)
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = State(state.place + 2.0 * action - 1 + self.bias, state.time + 1)
        terminated = jnp.abs(state.place) > params.size
        return self.observe(state), state, jnp.array(1 - terminated), terminated, {}

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def step(self, *_):
        raise AssertionError("it resets by itself")

    reset = step

    def action_space(self, params):
        return self.actions

    def observation_space(self, params):
        return self.observations


class Numbered(Walk):
    """Observed as a whole number."""

    observations = Space(n=9)

    def observe(self, state):
        return jnp.clip(state.place + 4, 0, 8).astype(jnp.int32)


class Image(Walk):
    observations = Space(low=False, high=True, shape=(2, 2, 1), dtype=jnp.bool_)

    def observe(self, state):
        return (state.place > jnp.arange(4.0)).reshape(2, 2, 1)


class Whole(Walk):
    """Whole numbers other than bytes."""

    observations = Space(low=-9, high=9, shape=(1,), dtype=jnp.int32)

    def observe(self, state):
        return jnp.round(state.place).astype(jnp.int32)[np.newaxis]


class Continuous(Walk):
    actions = Space(low=-1, high=1, shape=(2,), dtype=jnp.float32)


class Dictionary(Walk):
    observations = Space(spaces={})


class Missing(Walk):
    def __init__(self):
        raise OSError("no file of digits")


class Old(Walk):
    is_truncated = property()  # type: ignore[assignment]

    def __getattribute__(self, name):
        if name == "is_truncated":
            raise AttributeError(name)
        return super().__getattribute__(name)


CLASSES = [Walk, Numbered, Image, Whole, Continuous, Dictionary, Missing, Old]


@pytest.fixture(autouse=True)
def gymnax(monkeypatch):
    makers = {f"{cls.__name__}-v0": cls for cls in CLASSES}

    def make(env_id, **arguments):
        env = makers[env_id](**arguments)
        return env, env.default_params

    module = types.ModuleType("gymnax")
    module.__dict__.update(make=make, registered_envs=list(makers))
    monkeypatch.setitem(sys.modules, "gymnax", module)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("Walk-v0", (2,), np.float32),
        ("Numbered-v0", (9,), np.float32),
        ("Image-v0", (2, 2, 1), np.bool_),
        ("Whole-v0", (1,), np.float32),
    ],
)
def test_they_keep_the_contract(name, shape, dtype):
    env = environments.make(f"gymnax:{name}")
    assert env.name == f"gymnax:{name}"
    assert (env.num_actions, env.max_steps, env.threshold) == (2, 7, None)
    assert env.observation_space.shape == shape
    assert env.observation_space.dtype == dtype
    check_environment(env, KEY)


def test_a_time_limit_is_no_end_and_what_is_stored_is_the_last_observation():
    env = environments.make("gymnax:Walk-v0?max_steps_in_episode=4&size=1.75&bias=0.25")

    def one_step(carry, xs):
        state, _ = carry
        state, obs, timestep = step_and_reset(env, xs[0], state, xs[1])
        return (state, obs), (obs, timestep, env.step(xs[0], carry[0], xs[1])[1])

    keys = jax.random.split(KEY, 40)
    actions = jnp.asarray(np.random.default_rng(0).integers(0, 2, 40), jnp.int32)
    obs, timestep, plain = jax.lax.scan(one_step, env.reset(KEY), (keys, actions))[1]
    for ours, expected in zip(timestep, plain, strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(timestep.terminated, np.abs(timestep.obs[:, 0]) > 1.75)
    np.testing.assert_array_equal(timestep.truncated, timestep.obs[:, 1] >= 4)
    assert (timestep.terminated & ~timestep.truncated).any()
    assert (timestep.truncated & ~timestep.terminated).any()
    ended = np.asarray(timestep.terminated | timestep.truncated)
    assert (np.asarray(obs)[ended, 1] == 0).all()
    np.testing.assert_array_equal(obs[~ended], timestep.obs[~ended])


def test_numbers_are_one_hot():
    env = environments.make("gymnax:Numbered-v0?start=2")
    assert float(env.reset(KEY)[1].sum()) == 1
    assert int(env.reset(KEY)[1].argmax()) in (5, 6)


def test_settings_are_parameters_arguments_and_wrappers():
    env = environments.make("gymnax:Walk-v0?start=1&max_steps_in_episode=5&stack_frames=2&size=9")
    assert env.max_steps == 5
    obs = env.reset(KEY)[1]
    assert obs.shape == (4,)
    assert 0.5 <= float(obs[0]) <= 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Wlk-v0", "'Wlk-v0' must be one of Walk-v0"),
        ("", "'' must be one of Walk-v0, Numbered-v0"),
        ("Continuous-v0", r"its actions \(Space.* must be discrete"),
        ("Dictionary-v0", r"its observations \(Space.* must be one array, or one whole number"),
        ("Missing-v0", r"cannot make it with its defaults: .* \(OSError: no file of digits\)"),
        ("Old-v0", "must be of version 1.0 or later"),
        ("Walk-v0?sise=2", "'sise' must be one of size"),
        ("Walk-v0?table=2", "'table' must be one of"),
        ("Walk-v0?size=big", r"size \('big'\) must be a finite number"),
        ("Walk-v0?is_slow=2", r"is_slow \('2'\) must be 1 or 0"),
        ("Walk-v0?max_steps_in_episode=0", r"max_steps_in_episode \('0'\) must be a whole number"),
        ("Walk-v0?start=3", r"make it with \{'start': 3\}: .* \(ValueError: start is too far\)"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        environments.make(f"gymnax:{name}")
    assert str(caught.value).startswith(f"environment ('gymnax:{name.partition('?')[0]}")
    assert "\n" not in str(caught.value)


def test_without_gymnax_the_message_says_what_it_asks_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    words = r"cannot be imported .*purejaxdqn\[gymnax\].* gymnasium below 1.4, for jax below 0.12"
    with pytest.raises(ConfigError, match=words):
        environments.make("gymnax:CartPole-v1")
    with pytest.raises(ConfigError, match="cannot be imported"):
        environments.validate("gymnax:CartPole-v1")


REAL = """
import dataclasses, sys
import jax, numpy as np
from purejaxdqn import DQNConfig, environments, run_sweep, dqn
from purejaxdqn.testing import check_environment
for name in sys.argv[1:]:
    name, alike, _ = name.partition("!")
    env = environments.make(f"gymnax:{name}")
    check_environment(env, jax.random.key(0), random_reset=not alike)
    print(name, env.max_steps, env.observation_space.shape)
config = DQNConfig(env="gymnax:Catch-bsuite", total_steps=20_000, eval_interval=10_000)
returns = run_sweep(dqn, config, range(2), progress=False).dataset.evaluation_return
print(returns.mean(("seed", "episode")).values)
assert returns.isel(step=-1).mean() > 0.5 > returns.isel(step=0).mean()
"""
# "!": each episode begins alike.
TASKS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Catch-bsuite?rows=8", "FrozenLake-misc!"]
TASKS += ["Breakout-MinAtar?use_minimal_action_set=0", "DeepSea-bsuite?max_steps_in_episode=99!"]


@pytest.mark.slow
def test_gymnax_itself(tmp_path):
    """Makes a virtual environment, as gymnax's needs are not those of the other tests."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    python = tmp_path / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", f"{ROOT}[gymnax]"]
    subprocess.run(install, check=True)
    subprocess.run([python, "-c", REAL, *TASKS], check=True, cwd=tmp_path)
