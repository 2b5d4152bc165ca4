"""What reads an observation: hidden layers alone, or convolutions, from the settings."""

import dataclasses
import functools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import agents, environments
from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.agents.torso import make_torso, settings_for_images
from purejaxdqn.engine import programs
from purejaxdqn.environments import Environment
from purejaxdqn.sweep import batches
from purejaxdqn.types import ConfigError, TimeStep
from tiny import TINY, TINY_PQN, compiled

SMALL, LARGE = ((16,), (3,), (1,)), ((32, 64, 64), (8, 4, 3), (4, 2, 1))
GIVEN = {"channels": (3, 2), "kernel_sizes": (2, 1), "strides": (1, 2)}


def image_env(shape=(4, 5, 2), dtype=bool, name="Image-v0"):
    """A light that moves along the rows; action 1 is right where it is in the first one."""

    light = dtype(255 if dtype == np.uint8 else 1)

    def obs_of(state):
        dark = jnp.zeros(shape, dtype)
        return dark.at[state % shape[0], 0, 0].set(light)

    def reset(key):
        state = jnp.int32(0)
        return state, obs_of(state)

    def step(key, state, action):
        reward = (action == (state % shape[0] == 0)).astype(jnp.float32)
        after = state + 1
        return after, TimeStep(obs_of(after), reward, jnp.bool(False), after >= 8)

    space = gymnasium.spaces.Box(0, int(light), shape, dtype)
    return Environment(name, reset, step, 2, space, None, 8)


@pytest.mark.parametrize(
    ("settings", "shape", "expected"),
    [
        ({}, (4,), None),
        ({}, (10, 10), None),
        ({}, (10, 10, 4), SMALL),
        ({}, (35, 84, 1), SMALL),
        ({}, (36, 36, 1), LARGE),
        ({}, (84, 84, 4), LARGE),
        ({"torso": "mlp"}, (10, 10, 4), None),
        ({"torso": "cnn"}, (10, 10, 4), SMALL),
        (GIVEN, (84, 84, 4), tuple(GIVEN.values())),
    ],
)
@pytest.mark.parametrize("config", [TINY, TINY_PQN])
def test_the_torso_is_that_of_the_image_or_the_one_asked_for(config, settings, shape, expected):
    config = dataclasses.replace(config, **settings)
    config.validate()
    torso = make_torso(config, shape)
    found = torso and (tuple(torso.channels), tuple(torso.kernel_sizes), tuple(torso.strides))
    assert found == expected


@pytest.mark.parametrize(("experiment", "config"), [(dqn, TINY), (pqn, TINY_PQN)])
@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_agents_learn_from_images(experiment, config, dtype):
    config = dataclasses.replace(config, layer_norm=True, spectral_norm=True, **GIVEN)
    experiment = functools.partial(experiment, env=image_env(dtype=dtype))
    init, chunk = compiled(experiment, config)
    before = init(jax.random.key(0))
    kernels = before.learner.params["params"]["torso"]["layers_0"]
    assert kernels["Conv_0"]["kernel"].shape == (2, 2, 2, 3)
    assert kernels["Conv_1"]["kernel"].shape == (1, 1, 3, 2)
    after = chunk(before, jnp.int32(3), 3)[0].learner.params["params"]["torso"]
    moved = jax.tree.map(
        lambda x, y: np.isfinite(y).all() and np.any(x != y), kernels, after["layers_0"]
    )
    assert all(jax.tree.leaves(moved)), moved


def test_bits_of_a_flat_network_do_not_depend_on_its_torso_s_name():
    """The network of vectors, and of images that are read flat, is the one that it always was."""
    plain = dqn(TINY).init(jax.random.key(0)).learner.params
    assert sorted(plain["params"]) == ["Dense_0", "Dense_1"]
    train = dqn(dataclasses.replace(TINY, torso="mlp"), env=image_env())
    flat = jax.eval_shape(train.init, jax.random.key(0)).learner.params
    assert flat["params"]["Dense_0"]["kernel"].shape == (40, 8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"torso": "cnn"},
            r"torso \('cnn'\) needs observations \[height, width, channels\], .*4,\)",
        ),
        ({"torso": "conv"}, r"torso \('conv'\) must be one of auto, mlp, cnn"),
        ({"channels": (4,)}, r"channels \(\(4,\)\), kernel_sizes \(\(\)\), strides \(\(\)\) must"),
        ({**GIVEN, "strides": (1, 0)}, r"strides \(\(1, 0\)\) must be a tuple of whole numbers"),
        ({**GIVEN, "kernel_sizes": [2, 1]}, r"kernel_sizes \(\[2, 1\]\) must be a tuple"),
        ({"spectral_norm": True, "noisy": True}, "must be False with noisy"),
        ({"spectral_norm": True, "hidden_sizes": ()}, "needs a hidden layer"),
        ({"spectral_norm": 1}, r"spectral_norm \(1\) must be True or False"),
    ],
)
def test_refusals(settings, words):
    config = dataclasses.replace(TINY, **settings)
    with pytest.raises(ConfigError, match=words):
        validate_and_make(config)


def validate_and_make(config):
    config.validate()
    dqn(config)


@pytest.fixture
def images(monkeypatch):
    known = {"Image-v0": image_env, "Large-v0": lambda: image_env((84, 84, 4), name="Large-v0")}
    monkeypatch.setattr(environments, "_ENVIRONMENTS", known)


def test_images_have_a_network_of_their_own_by_default(images):
    small = {"channels": (16,), "kernel_sizes": (3,), "strides": (1,), "hidden_sizes": (128,)}
    assert settings_for_images("Image-v0") == small
    assert settings_for_images("Image-v0?time_limit=3") == small
    assert settings_for_images("Large-v0")["hidden_sizes"] == (512,)
    for name in ("CartPole-v1", "gymnasium:ALE/Pong-v5", "Nothing-v0"):
        assert settings_for_images(name) == {}
    for agent in ("double_n_step", "pqn", "rainbow"):
        found = vars(agents.configure(agent=agent, env="Image-v0"))
        assert {name: found[name] for name in small} == small
    assert agents.configure(env="Image-v0", hidden_sizes=(7,)).hidden_sizes == (7,)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--kernel-sizes 5", "a kernel of 5 must be at most the 4x5 pixels that reach it"),
        ("--channels 2x2 --kernel-sizes 3x3 --strides 1x1", "of 3 must be at most the 2x3 pixels"),
        ("--torso mlp --channels 8", "channels changes nothing: it is read only where torso"),
        ("--channels 8x8", "must be equal in number"),
    ],
)
def test_what_does_not_fit_an_image_is_one_line(
    flags, words, images, call_command, tmp_path, monkeypatch
):
    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(programs, "compile_programs", compiled)
    monkeypatch.setattr(batches, "compile_programs", compiled)
    monkeypatch.setattr("purejaxdqn.runtime.devices.use_every_core", lambda *_: jax.devices())
    argv = [*flags.split(), "--env", "Image-v0", "--output", str(tmp_path / "output")]
    code, _, err = call_command("train", *argv)
    assert code == 2, err
    assert words in " ".join(err.split()), err
    assert len(err.splitlines()) == 1, err
    assert not [*tmp_path.iterdir()]
