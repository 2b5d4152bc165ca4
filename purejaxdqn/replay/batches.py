"""Several batches for one gradient step, from any replay."""

import jax

from purejaxdqn.types import Array, ArrayTree, Replay, Sample, ensure, ensure_whole


def independent_batches(replay: Replay, num_batches: int) -> Replay:
    """Makes a replay that draws `K = num_batches` batches of `B` at once, each for itself.

    The new batch is `[K * B, ...]`, one after another: `x.reshape(K, -1, *x.shape[1:])` takes it
    apart, as in a loss that teaches each member of an ensemble on a batch of its own. Only batches
    that a replay draws without replacement differ from one of `K * B`: here two may share steps.

    Raises:
      ConfigError: if `num_batches` is not positive, or the replay is none.
    """
    ensure_whole("num_batches", num_batches)
    ensure(isinstance(replay, Replay), "replay", replay, "a Replay, such as of uniform_replay")

    def sample(state: ArrayTree, key: Array) -> Sample:
        batches = jax.vmap(replay.sample, in_axes=(None, 0))(
            state, jax.random.split(key, num_batches)
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)

    return replay._replace(sample=sample)
