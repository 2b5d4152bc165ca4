"""A circular replay buffer with uniform sampling.

Lin, "Self-improving reactive agents based on reinforcement learning, planning and teaching"
(1992); uniform sampling as in Mnih et al., "Human-level control through deep reinforcement
learning" (2015), Methods.

Every observation is kept once. The ring holds rows of `E` entries, one row a time step; the
observation that follows a row is the one in the next row, with two exceptions that have rows of
their own behind the ring: what follows the newest row, and the last observation of an episode that
the time limit cut off (the next row then holds the first one of a new episode). An environment is
truncated at most once in `time_limit` steps. So time is cut into blocks of `time_limit` rows, and
each block has one place per environment for such a last observation: it is addressed by time alone,
written in place, and costs `1 / time_limit` of the ring.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn.types import Array, Replay, Sample, Step, Transition, shared_counter


@flax.struct.dataclass
class UniformReplayState:
    """A ring of `T` rows of `E` entries each, one per environment; entry `row * E + env` of all.

    Attributes:
      obs: `[T + 1 + K, E, *obs]` in the observations' own dtype: those of the ring, then a row for
        what followed the newest one, then `K` rows, one a block, for the last observations of
        truncated episodes.
      action: `[T, E]` int32.
      reward: `[T, E]`.
      terminated: `[T, E]` bool.
      truncated: `[T, E]` bool.
      insert_row: `[]` int32, the row that is written next.
      num_rows: `[]` int32, rows written, at most `T`.
      block: `[]` int32, the block of the newest row, modulo `K`.
      row_in_block: `[]` int32, where in its block the newest row lies.
    """

    obs: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    insert_row: Array = shared_counter()
    num_rows: Array = shared_counter()
    block: Array = shared_counter()
    row_in_block: Array = shared_counter()

    @property
    def max_rows(self) -> int:
        """`T`."""
        return self.action.shape[0]

    @property
    def num_envs(self) -> int:
        """`E`."""
        return self.action.shape[1]

    @property
    def max_blocks(self) -> int:
        """`K`."""
        return self.obs.shape[0] - self.max_rows - 1


def _entries(rows: Array) -> Array:
    """The rows of a buffer `[R, E, ...]` one after another, `[R * E, ...]`."""
    return rows.reshape(-1, *rows.shape[2:])


def _uniform_indices(key: Array, num: int, bound: Array) -> Array:
    """`num` indices below `bound` (`[]` or `[num]`), all as likely up to `bound / 2**32`.

    The high half of the product of 32 random bits and `bound`, summed from 16-bit halves;
    `jax.random.randint` takes four calls of the generator and a division for the same.
    """
    bits = jax.random.bits(key, (num,), jnp.uint32)
    bound = bound.astype(jnp.uint32)
    bits_high, bits_low = bits >> 16, bits & 0xFFFF
    bound_high, bound_low = bound >> 16, bound & 0xFFFF
    # No sum here can reach 2**32.
    middle = bits_high * bound_low + (bits_low * bound_low >> 16)
    carry = (middle & 0xFFFF) + bits_low * bound_high >> 16
    return (bits_high * bound_high + (middle >> 16) + carry).astype(jnp.int32)


def _different_indices(key: Array, num: int, bound: Array) -> Array:
    """`num` indices below `bound`, no two the same, every sequence of them as likely as any other.

    The first `num` swaps of a shuffle of the numbers below `bound` (Durstenfeld, "Algorithm 235:
    random permutation" (1964)), of which only what was swapped is kept: this costs `num` squared,
    whatever `bound` is.
    """
    positions = jnp.arange(num, dtype=jnp.int32)
    partners = positions + _uniform_indices(key, num, bound - positions)  # from itself on

    def swap(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        moved, drawn = state

        def held(position: Array) -> Array:
            """What the last swap with this position put there; without one it holds itself."""
            last = jnp.max(jnp.where((positions < i) & (partners == position), positions, -1))
            return jnp.where(last < 0, position, moved[last])

        return moved.at[i].set(held(i)), drawn.at[i].set(held(partners[i]))

    return jax.lax.fori_loop(0, num, swap, (positions, positions))[1]


def read_transition(
    state: UniformReplayState,
    index: Array,
    num_steps: int,
    discount: Array | float,
    time_limit: int,
) -> Transition:
    """`Replay.transition_at` of a ring; the last two are those of `uniform_replay`."""
    row, env = index // state.num_envs, index % state.num_envs
    age = (state.insert_row - 1 - row) % state.max_rows
    offsets = jnp.arange(num_steps)
    entries = (row + offsets) % state.max_rows * state.num_envs + env
    terminated = _entries(state.terminated)[entries]
    truncated = _entries(state.truncated)[entries]
    ends = terminated | truncated
    ended_before = jnp.cumsum(ends) - ends > 0
    spanned = ~ended_before & (offsets <= age)
    num_spanned = spanned.sum()

    last = num_spanned - 1
    last_age = age - last
    # Floor division: rows before the newest one's block lie in blocks before it.
    block = (state.block + (state.row_in_block - last_age) // time_limit) % state.max_blocks
    next_row = jnp.where(last_age == 0, state.max_rows, (row + num_spanned) % state.max_rows)
    next_row = jnp.where(truncated[last], state.max_rows + 1 + block, next_row)
    # One gather, and of whole observations: where they lie is cheaper to choose than they are.
    obs = _entries(state.obs)
    return Transition(
        obs_tm1=obs[index],
        a_tm1=_entries(state.action)[index],
        r_t=jnp.sum(discount**offsets * _entries(state.reward)[entries], where=spanned),
        discount_t=jnp.where(terminated[last], 0.0, discount**num_spanned),
        obs_t=obs[next_row * state.num_envs + env],
    )


def uniform_replay(
    capacity: int,
    batch_size: int,
    discount: Array | float,
    time_limit: int = 1,
    with_replacement: bool = True,
) -> Replay:
    """Makes a circular replay buffer that samples uniformly.

    What sampling costs depends on the batch alone, and not on the capacity: without replacement it
    grows with the square of the batch. Each transition is one step; `n_step_replay` makes them
    longer.

    Args:
      capacity: transitions held, over all environments; a multiple of the number of environments.
      batch_size: `B`, transitions per sample.
      discount: gamma, per step.
      time_limit: the least number of steps between two truncations of the same environment,
        usually `Environment.max_steps`. The default of 1 is right for every environment and
        doubles the memory.
      with_replacement: whether a batch may hold an entry twice.

    Returns:
      A `Replay` over `UniformReplayState`. Its `update` changes nothing.

    Raises:
      ValueError: if a count is not positive, or a batch could never be held; from `init`, if
        `capacity` is no multiple of the number of environments; from `sample`, if the state holds
        less than a batch (where that can be seen: in compiled code the numbers are not known).
    """
    for name, count in (
        ("capacity", capacity),
        ("batch_size", batch_size),
        ("time_limit", time_limit),
    ):
        if count < 1:
            raise ValueError(f"{name} ({count}) must be at least 1")
    if batch_size > capacity and not with_replacement:
        raise ValueError(
            f"batch_size ({batch_size}) must be at most capacity ({capacity}): without replacement "
            "a batch holds no entry twice"
        )
    draw_indices = _uniform_indices if with_replacement else _different_indices

    def init(step: Step) -> UniformReplayState:
        num_envs = step.action.shape[0]
        if capacity % num_envs:
            raise ValueError(
                f"capacity ({capacity}) must be a multiple of the number of environments "
                f"({num_envs}), such as {max(capacity // num_envs, 1) * num_envs}"
            )
        max_rows = capacity // num_envs
        # Any max_rows rows one after another touch at most so many.
        max_blocks = (max_rows - 1) // time_limit + 2

        def empty(example: Array, num_rows: int) -> Array:
            return jnp.zeros((num_rows, *example.shape), example.dtype)

        return UniformReplayState(
            obs=empty(step.obs, max_rows + 1 + max_blocks),
            action=empty(step.action, max_rows),
            reward=empty(step.reward, max_rows),
            terminated=empty(step.terminated, max_rows),
            truncated=empty(step.truncated, max_rows),
            insert_row=jnp.zeros((), jnp.int32),
            num_rows=jnp.zeros((), jnp.int32),
            block=jnp.zeros((), jnp.int32),
            row_in_block=jnp.full((), -1, jnp.int32),
        )

    def add(state: UniformReplayState, step: Step) -> UniformReplayState:
        enters_block = state.row_in_block + 1 == time_limit
        block = jnp.where(enters_block, (state.block + 1) % state.max_blocks, state.block)

        def write(buffer: Array, row: Array, at: Array | int) -> Array:
            # An index that is the same in every run of a batch: written in place, also under vmap.
            return jax.lax.dynamic_update_index_in_dim(buffer, row, at, axis=0)

        newest_row, block_row = state.max_rows, state.max_rows + 1 + block
        last_obs = jax.lax.dynamic_index_in_dim(state.obs, block_row, keepdims=False)
        truncated = step.truncated.reshape(-1, *(1,) * (step.obs.ndim - 1))
        obs = write(state.obs, jnp.where(truncated, step.next_obs, last_obs), block_row)
        obs = write(write(obs, step.next_obs, newest_row), step.obs, state.insert_row)
        return UniformReplayState(
            obs=obs,
            action=write(state.action, step.action, state.insert_row),
            reward=write(state.reward, step.reward, state.insert_row),
            terminated=write(state.terminated, step.terminated, state.insert_row),
            truncated=write(state.truncated, step.truncated, state.insert_row),
            insert_row=(state.insert_row + 1) % state.max_rows,
            num_rows=jnp.minimum(state.num_rows + 1, state.max_rows),
            block=block,
            row_in_block=jnp.where(enters_block, 0, state.row_in_block + 1),
        )

    def sample(state: UniformReplayState, key: Array) -> Sample:
        num_entries = state.num_rows * state.num_envs
        least = 1 if with_replacement else batch_size
        if not isinstance(num_entries, jax.core.Tracer) and num_entries < least:
            raise ValueError(
                f"the replay holds {num_entries} transitions and a sample needs at least {least}: "
                "add more first"
            )
        indices = draw_indices(key, batch_size, num_entries)
        transitions = jax.vmap(lambda index: transition_at(state, index, 1))(indices)
        probabilities = jnp.full((batch_size,), 1.0) / num_entries
        return Sample(transitions, indices, probabilities)

    def update(state: UniformReplayState, indices: Array, priorities: Array) -> UniformReplayState:
        del indices, priorities
        return state

    def transition_at(state: UniformReplayState, index: Array, num_steps: int) -> Transition:
        return read_transition(state, index, num_steps, discount, time_limit)

    return Replay(init, add, sample, update, transition_at)
