"""Worker: steps gymnax's environments at random, and prints how fast as one JSON line.

Runs inside the peers' virtual environment that ``peers.py`` makes, so it imports nothing of this
package. Its one argument is the JSON object ``{"env": name, "num_envs": 1024, "seconds": 1.0}``.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any

NUM_STEPS = 64  # in each call


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Compile, step for a while, and return steps_per_second and versions."""
    import gymnax
    import jax
    import jax.numpy as jnp

    env, params = gymnax.make(arguments["env"])
    num_envs = arguments["num_envs"]

    def step(carry: Any, key: Any) -> Any:
        state, seen = carry
        act_key, step_key = jax.random.split(key)
        actions = jax.vmap(lambda key: env.action_space(params).sample(key))(
            jax.random.split(act_key, num_envs)
        )
        step_keys = jax.random.split(step_key, num_envs)
        obs, state, reward, _, _ = jax.vmap(env.step, (0, 0, 0, None))(
            step_keys, state, actions, params
        )
        return (state, seen + reward.sum() + jnp.float32(obs.sum())), None

    @jax.jit
    def play(key: Any, state: Any) -> Any:
        start = (state, jnp.zeros(()))
        return jax.lax.scan(step, start, jax.random.split(key, NUM_STEPS))[0]

    keys = jax.random.split(jax.random.key(0), num_envs)
    _, state = jax.jit(jax.vmap(env.reset, (0, None)))(keys, params)
    state, _ = jax.block_until_ready(play(jax.random.key(1), state))
    start, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < arguments["seconds"]:
        state, _ = jax.block_until_ready(play(jax.random.key(count), state))
        count += NUM_STEPS * num_envs
    return {
        "steps_per_second": count / taken,
        "versions": {name: version(name) for name in ("gymnax", "jax")},
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
