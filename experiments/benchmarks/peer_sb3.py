"""Worker: trains Stable-Baselines3's DQN once, one seed, and prints what it took as one JSON line.

Runs inside the peers' virtual environment that ``peers.py`` makes, so it imports nothing of this
package. Its one argument is the JSON object that ``peers.sb3_arguments`` makes::

    {"dqn": {...}, "env": "CartPole-v1", "num_envs": 10, "total_timesteps": 100000,
     "num_threads": 1}

``dqn`` goes to ``stable_baselines3.DQN`` as it stands, with ReLU between the layers.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train one seed and count what was done from the model and its optimiser.

    Returns steps_per_second (environment steps), seconds, compile_seconds (0: nothing is compiled),
    environment_steps, gradient_updates, num_seeds (1) and versions.
    """
    import gymnasium
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(arguments["num_threads"])

    def make_model(**changes: Any) -> DQN:
        # No Monitor wrapper, no logs: the library at its fastest.
        env = DummyVecEnv([lambda: gymnasium.make(arguments["env"])] * arguments["num_envs"])
        dqn = arguments["dqn"] | changes
        dqn["policy_kwargs"] = dqn["policy_kwargs"] | {"activation_fn": torch.nn.ReLU}
        return DQN("MlpPolicy", env, device="cpu", **dqn)

    # What torch and gymnasium load on first use is not training: a few updates beforehand.
    num_envs = arguments["num_envs"]
    make_model(learning_starts=num_envs).learn(10 * num_envs, log_interval=None)

    model = make_model()
    start = time.perf_counter()
    model.learn(arguments["total_timesteps"], log_interval=None)
    seconds = time.perf_counter() - start

    # Adam counts its own steps for each parameter; they must all agree.
    (gradient_updates,) = {int(s["step"]) for s in model.policy.optimizer.state.values()}
    return {
        "steps_per_second": model.num_timesteps / seconds,
        "seconds": seconds,
        "compile_seconds": 0.0,
        "num_seeds": 1,
        "environment_steps": model.num_timesteps,
        "gradient_updates": gradient_updates,
        "versions": {name: version(name) for name in ("stable-baselines3", "gymnasium", "torch")},
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
