"""A circular replay buffer with uniform sampling, which keeps every observation once.

The buffer is a ring of rows of `E` entries, one row a time step. The observation that follows a row
is the one in the next row, with two exceptions in rows of their own behind the ring: the one that
follows the newest row, and the last one of an episode that the time limit cut off, because the next
row then begins a new episode. An environment is truncated at most once in `time_limit` steps. So
time is cut into blocks of `time_limit` rows, and each has one place per environment for such a last
observation, addressed by time alone and written in place. They cost `1 / time_limit` of the ring,
and nothing where episodes are never cut.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn.types import (
    Array,
    Extras,
    Replay,
    Sample,
    Step,
    Window,
    ensure,
    ensure_whole,
    shared_counter,
)

_COLUMNS = ("action", "reward", "terminated", "truncated")  # of the ring, beside observations


@flax.struct.dataclass
class UniformReplayState:
    """A ring of `T` rows of `E` entries each, one per environment; entry `row * E + env` of all."""

    # [T + 1 + K, E, *obs], of their own dtype: those of the ring, what followed the newest row, and
    # a row for each of K blocks
    obs: Array
    action: Array  # [T, E] int32
    reward: Array  # [T, E]
    terminated: Array  # [T, E] bool
    truncated: Array  # [T, E] bool
    extras: Extras  # [T, E, ...] each, of their own dtype
    insert_row: Array = shared_counter()  # [] int32, the row that is written next
    num_rows: Array = shared_counter()  # [] int32, rows written, at most T
    block: Array = shared_counter()  # [] int32, the block of the newest row, modulo K
    row_in_block: Array = shared_counter()  # [] int32, where in its block the newest row lies

    @property
    def max_rows(self) -> int:
        """The number of rows, `T`."""
        return self.action.shape[0]

    @property
    def num_envs(self) -> int:
        """The number of environments, `E`."""
        return self.action.shape[1]

    @property
    def max_blocks(self) -> int:
        """The number of blocks, `K`."""
        return len(self.obs) - self.max_rows - 1


def _make_empty_state(
    step: Step, key: Array | None = None, *, capacity: int, time_limit: int | None
) -> UniformReplayState:
    """Makes a ring of `capacity` entries that holds nothing; `step` gives shapes and dtypes."""
    num_envs = step.action.shape[0]
    if capacity % num_envs:
        raise ValueError(
            f"capacity ({capacity}) must be a multiple of the number of environments "
            f"({num_envs}), such as {max(capacity // num_envs, 1) * num_envs}"
        )
    max_rows = capacity // num_envs
    # Any max_rows rows one after another touch at most so many.
    max_blocks = 0 if time_limit is None else (max_rows - 1) // time_limit + 2
    return UniformReplayState(
        obs=jnp.zeros((max_rows + 1 + max_blocks, *step.obs.shape), step.obs.dtype),
        **{x: jnp.zeros((max_rows, num_envs), getattr(step, x).dtype) for x in _COLUMNS},
        extras=jax.tree.map(lambda x: jnp.zeros((max_rows, *x.shape), x.dtype), step.extras),
        **{x: jnp.zeros((), jnp.int32) for x in ("insert_row", "num_rows", "block")},
        row_in_block=jnp.full((), -1, jnp.int32),
    )


def _add_step(
    state: UniformReplayState, step: Step, key: Array | None = None, *, time_limit: int | None
) -> UniformReplayState:
    """Writes a step `[E, ...]` over the oldest row."""
    # An index that is the same in every run of a batch: written in place, also under vmap.
    write = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    obs, block, row_in_block = state.obs, state.block, state.row_in_block
    if time_limit is not None:
        enters_block = row_in_block + 1 == time_limit
        block = jnp.where(enters_block, (block + 1) % state.max_blocks, block)
        row_in_block = jnp.where(enters_block, 0, row_in_block + 1)
        block_row = state.max_rows + 1 + block
        last_obs = jax.lax.dynamic_index_in_dim(obs, block_row, keepdims=False)
        truncated = step.truncated.reshape(-1, *(1,) * (step.obs.ndim - 1))
        obs = write(obs, jnp.where(truncated, step.next_obs, last_obs), block_row)
    obs = write(write(obs, step.next_obs, state.max_rows), step.obs, state.insert_row)
    return UniformReplayState(
        obs=obs,
        **{x: write(getattr(state, x), getattr(step, x), state.insert_row) for x in _COLUMNS},
        extras=jax.tree.map(
            lambda rows, row: write(rows, row, state.insert_row), state.extras, step.extras
        ),
        insert_row=(state.insert_row + 1) % state.max_rows,
        num_rows=jnp.minimum(state.num_rows + 1, state.max_rows),
        block=block,
        row_in_block=row_in_block,
    )


def read_window(
    state: UniformReplayState, index: Array, num_steps: int, time_limit: int | None
) -> Window:
    """Reads the window that starts at ONE entry, as `Replay.window_at`, with two observations."""
    # The rows of each buffer [R, E, ...] one after another, [R * E, ...].
    columns = [getattr(state, x) for x in ("obs", *_COLUMNS, "extras")]
    obs, actions, rewards, terminated, truncated, extras = jax.tree.map(
        lambda rows: rows.reshape(-1, *rows.shape[2:]), columns
    )
    row, env = index // state.num_envs, index % state.num_envs
    age = (state.insert_row - 1 - row) % state.max_rows
    offsets = jnp.arange(num_steps)
    entries = (row + offsets) % state.max_rows * state.num_envs + env
    terminated, truncated = terminated[entries], truncated[entries]
    ends = terminated | truncated
    ended_before = jnp.cumsum(ends) - ends > 0
    is_inside = ~ended_before & (offsets <= age)
    num_inside = is_inside.sum()
    last = num_inside - 1
    last_age = age - last
    next_row = jnp.where(last_age == 0, state.max_rows, (row + num_inside) % state.max_rows)
    if time_limit is not None:
        # Floor division: rows before the newest one's block lie in blocks before it.
        block = (state.block + (state.row_in_block - last_age) // time_limit) % state.max_blocks
        next_row = jnp.where(truncated[last], state.max_rows + 1 + block, next_row)
    # A transition needs the first action alone: the other gather is dropped when compiled.
    action, extras = jax.tree.map(
        lambda x: jnp.concatenate([x[index][jnp.newaxis], x[entries[1:]]]), (actions, extras)
    )
    # Choosing between two row numbers is cheaper than choosing between two observations.
    next_obs = obs[next_row * state.num_envs + env]
    reward = rewards[entries]
    steps = (action, reward, terminated, truncated, is_inside)
    return Window(obs[index], *steps, next_obs, extras, observations=obs[entries])


def _cut_newest(state: UniformReplayState) -> UniformReplayState:
    """Cuts the episodes that go on behind the newest row, whose block is its own.

    A block of more rows may have no place for one more last observation.
    """
    newest = (state.insert_row - 1) % state.max_rows
    goes_on = ~(state.terminated[newest] | state.truncated[newest])
    place, last_obs = state.max_rows + 1 + state.block, state.obs[state.max_rows]
    is_cut = goes_on.reshape(-1, *(1,) * (last_obs.ndim - 1))
    obs = state.obs.at[place].set(jnp.where(is_cut, last_obs, state.obs[place]))
    truncated = state.truncated.at[newest].set(state.truncated[newest] | goes_on)
    return state.replace(obs=obs, truncated=truncated)  # type: ignore[attr-defined]


def _draw_indices(key: Array, num: int, bound: Array) -> Array:
    """Draws `num` indices below `bound` (`[]` or `[num]`), all as likely up to `bound / 2**32`."""
    # The high half of the product of 32 random bits and `bound`, summed from 16-bit halves.
    # `jax.random.randint` takes four calls of the generator and a division for the same.
    bits, bound = jax.random.bits(key, (num,), jnp.uint32), bound.astype(jnp.uint32)
    bits_high, bits_low = bits >> 16, bits & 0xFFFF
    bound_high, bound_low = bound >> 16, bound & 0xFFFF
    # No sum here can reach 2**32.
    middle = bits_high * bound_low + (bits_low * bound_low >> 16)
    carry = (middle & 0xFFFF) + bits_low * bound_high >> 16
    return (bits_high * bound_high + (middle >> 16) + carry).astype(jnp.int32)


def _draw_different_indices(key: Array, num: int, bound: Array) -> Array:
    """Draws `num` different indices below `bound`, every sequence of them as likely as any other.

    Makes the first `num` swaps of a shuffle (Durstenfeld, "Algorithm 235: random permutation"
    (1964)), and keeps only the numbers that were swapped. This costs `num` squared.
    """
    positions = jnp.arange(num, dtype=jnp.int32)
    partners = positions + _draw_indices(key, num, bound - positions)  # from itself on

    def swap(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        moved, drawn = state

        def read(position: Array) -> Array:  # what the last swap put there; without one, itself
            last = jnp.max(jnp.where((positions < i) & (partners == position), positions, -1))
            return jnp.where(last < 0, position, moved[last])

        return moved.at[i].set(read(i)), drawn.at[i].set(read(partners[i]))

    return jax.lax.fori_loop(0, num, swap, (positions, positions))[1]


def uniform_replay(
    capacity: int, batch_size: int, time_limit: int | None = 1, with_replacement: bool = True
) -> Replay:
    """Makes a circular replay buffer that samples uniformly.

    Lin, "Self-improving reactive agents based on reinforcement learning, planning and teaching"
    (1992); sampling as in Mnih et al., "Human-level control through deep reinforcement learning"
    (2015), Methods.

    A sample costs as much as its batch is large, whatever the capacity. Without replacement the
    cost grows with the square of the batch. Each window is one step; `n_step_replay` makes them
    longer.

    Args:
      capacity: steps held, over all environments; a multiple of the number of environments.
      batch_size: `B`, windows per sample.
      time_limit: the least number of steps between two truncations of the same environment,
        usually `Environment.truncation_interval`; None where none is ever cut, for which the
        replay then keeps nothing. The default of 1 is right for every environment and doubles the
        memory.
      with_replacement: whether a batch may hold an entry twice.

    Returns:
      A `Replay` over `UniformReplayState`. Its `update` changes nothing.

    Raises:
      ValueError: if a count is not positive, or a batch could never be held; from `init`, if
        `capacity` is no multiple of the number of environments; from `sample`, if the state holds
        less than a batch (where that can be seen: in compiled code the numbers are not known).
    """
    counts = {"capacity": capacity, "batch_size": batch_size}
    counts |= {} if time_limit is None else {"time_limit": time_limit}
    for name, count in counts.items():
        ensure_whole(name, count)
    is_bool = isinstance(with_replacement, bool)
    ensure(is_bool, "with_replacement", with_replacement, "True or False")
    if batch_size > capacity and not with_replacement:
        raise ValueError(
            f"batch_size ({batch_size}) must be at most capacity ({capacity}): without replacement "
            "a batch holds no entry twice"
        )
    draw_indices = _draw_indices if with_replacement else _draw_different_indices
    window_at = functools.partial(read_window, time_limit=time_limit)

    def sample(state: UniformReplayState, key: Array) -> Sample:
        num_entries = state.num_rows * state.num_envs
        least = 1 if with_replacement else batch_size
        if not isinstance(num_entries, jax.core.Tracer) and num_entries < least:
            raise ValueError(
                f"the replay holds {num_entries} transitions and a sample needs at least {least}: "
                "add more first"
            )
        indices = draw_indices(key, batch_size, num_entries)
        windows = jax.vmap(lambda index: window_at(state, index, 1))(indices)
        return Sample(windows, indices, jnp.full((batch_size,), 1.0) / num_entries)

    init = functools.partial(_make_empty_state, capacity=capacity, time_limit=time_limit)
    add = functools.partial(_add_step, time_limit=time_limit)
    cut = _cut_newest if time_limit == 1 else None
    return Replay(init, add, sample, lambda state, indices, priorities: state, window_at, cut=cut)
