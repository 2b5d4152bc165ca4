"""Worker: trains rejax's DQN under ``jit(vmap(train))`` and prints what it took as one JSON line.

Runs inside the peers' virtual environment that ``peers.py`` makes, so it imports nothing of this
package. Its one argument is the JSON object that ``peers.rejax_arguments`` makes::

    {"create": {...}, "replace_agent": {...}, "num_seeds": 8, "seed": 0}

``create`` goes to ``rejax.DQN.create`` as it stands, ``replace_agent`` to its network's ``clone``.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Compile, train all seeds at once, and count what was done from the training states.

    Returns steps_per_second (environment steps of all seeds), seconds, compile_seconds,
    environment_steps and gradient_updates (both of one seed), num_seeds and versions.
    """
    import jax
    from rejax import DQN

    num_seeds = arguments["num_seeds"]
    algorithm = DQN.create(**arguments["create"])
    algorithm = algorithm.replace(
        # create() fixes the hidden layers at (64, 64) and refuses to be given others.
        agent=algorithm.agent.clone(**arguments["replace_agent"]),
        # rejax calls this at the end of training too: no evaluation here.
        eval_callback=lambda algorithm, train_state, key: (),
    )
    keys = jax.random.split(jax.random.key(arguments["seed"]), num_seeds)
    start = time.perf_counter()
    train = jax.jit(jax.vmap(algorithm.train)).lower(keys).compile()
    compile_seconds = time.perf_counter() - start

    start = time.perf_counter()
    train_state, _ = jax.block_until_ready(train(keys))
    seconds = time.perf_counter() - start

    environment_steps = {int(n) for n in train_state.global_step}
    gradient_updates = {int(n) for n in train_state.q_ts.step}
    (steps_of_each_seed,), (updates_of_each_seed,) = environment_steps, gradient_updates
    return {
        "steps_per_second": num_seeds * steps_of_each_seed / seconds,
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "num_seeds": num_seeds,
        "environment_steps": steps_of_each_seed,
        "gradient_updates": updates_of_each_seed,
        "versions": {name: version(name) for name in ("rejax", "gymnax", "jax", "flax")},
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
