"""Atari games on the host: each frame, reward and end is that of ale_py's vector environment."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.environments.host import bridge
from purejaxdqn.testing.stacks import check_stacks
from purejaxdqn.types import ConfigError

ale_py = pytest.importorskip("ale_py")


def test_atari_is_played_as_by_its_vector_environment():
    settings = {"max_num_frames_per_episode": "120", "render_mode": "rgb_array"}
    env: Any = bridge.make_from_gymnasium("gymnasium:ALE/Breakout-v5", "ALE/Breakout-v5", settings)
    keys, step = jax.random.split(jax.random.key(0)), jax.vmap(env.step_and_reset, (None, 0, 0))
    state, obs = jax.vmap(env.reset)(keys)
    how: dict[str, Any] = {"repeat_action_probability": 0.25, "max_num_frames_per_episode": 120}
    how |= {"autoreset_mode": "SameStep", "reward_clipping": False}
    theirs = ale_py.AtariVectorEnv("breakout", num_envs=2, **how)
    seeds = [int(jax.random.bits(key, (), np.uint32)) >> 1 for key in keys]
    wanted = theirs.reset(seed=np.array(seeds))[0]
    rng, step = np.random.default_rng(0), jax.jit(step)
    for t in range(40):
        np.testing.assert_array_equal(obs, np.moveaxis(wanted, 1, -1))
        actions = rng.integers(0, env.num_actions, 2)
        state, obs, timestep = step(keys[0], state, jnp.int32(actions))
        wanted, reward, terminated, truncated, info = theirs.step(actions)
        for one, other in zip((reward, terminated, truncated), timestep[1:], strict=True):
            np.testing.assert_array_equal(one, other)
        if t + 1 == env.max_steps:
            last = np.moveaxis(info["final_obs"], 1, -1)
            np.testing.assert_array_equal(timestep.obs, last)
            assert (timestep.obs != obs).any()
    assert (env.max_steps, env.frames) == (30, 4)
    assert env.render is not None
    assert jax.vmap(env.render)(state).shape == (2, 210, 160, 3)


def test_frames_are_what_a_replay_makes_of_them():
    name = "ALE/Breakout-v5"
    how = {"max_num_frames_per_episode": "120", "life_loss": "1", "stack_num": "3"}
    env = bridge.make_from_gymnasium(name, name, how)
    assert env.frames == env.in_evaluation(None).frames == 3
    check_stacks(env, jax.random.key(0), np.random.default_rng(0).integers(0, 4, (150, 2)))


def test_a_lost_life_ends_an_episode_of_training_alone():
    name = "ALE/Breakout-v5"
    env = bridge.make_from_gymnasium(name, name, {"life_loss": "1", "noop_max": "1"})
    for one, ends in ((env, True), (env.in_evaluation(None), False)):

        def play(key, one=one):
            state, _ = one.reset(key)
            step = lambda state, _: one.step(key, state, jnp.int32(1))  # noqa: E731
            return jax.lax.scan(step, state, length=60)[1].terminated.any()

        assert jax.jit(play)(jax.random.key(0)) == ends
    with pytest.raises(ConfigError, match="'lifeloss' must be one of life_loss"):
        bridge.make_from_gymnasium(name, name, {"lifeloss": "1"})
