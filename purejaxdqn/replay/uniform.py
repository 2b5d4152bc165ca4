"""A circular replay buffer with uniform sampling, which keeps every observation once.

The buffer is a ring of rows of `E` entries, one row a time step. The observation that follows a row
is the one in the next row, with two exceptions in rows of their own behind the ring: the one that
follows the newest row, and the last one of an episode that the time limit cut off, because the next
row then begins a new episode. An environment is truncated at most once in `time_limit` steps. So
time is cut into blocks of `time_limit` rows, and each has one place per environment for such a last
observation, addressed by time alone and written in place. They cost `1 / time_limit` of the ring,
and nothing where episodes are never cut.

Where an observation is a stack of the last K frames, the newest one alone is kept of each, and what
came before it is read from the rows before. So the frames of the K - 1 rows that were overwritten
last are kept too.
"""

import functools
from typing import Any

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

    # [T + 1 + B + K - 1, E, *frame], of their own dtype: those of the ring, what followed the
    # newest row, a row for each of B blocks, and what was overwritten last; where K is 1, a frame
    # is the observation
    obs: Array
    action: Array  # [T, E] int32
    reward: Array  # [T, E]
    terminated: Array  # [T, E] bool
    truncated: Array  # [T, E] bool
    extras: Extras  # [T, E, ...] each, of their own dtype
    insert_row: Array = shared_counter()  # [] int32, the row that is written next
    num_rows: Array = shared_counter()  # [] int32, rows written, at most T
    block: Array = shared_counter()  # [] int32, the block of the newest row, modulo B
    row_in_block: Array = shared_counter()  # [] int32, where in its block the newest row lies
    # [T, E] int16, None where K is 1: how many frames of its episode an observation has before the
    # newest one; -1 minus that where 0 stands for those before the first, and not the first again
    num_before: Array | None = None
    begins: Array | None = None  # [E] bool, None where K is 1: whether an episode begins next

    @property
    def max_rows(self) -> int:
        """The number of rows, `T`."""
        return self.action.shape[0]

    @property
    def num_envs(self) -> int:
        """The number of environments, `E`."""
        return self.action.shape[1]


def _count_blocks(max_rows: int, time_limit: int | None) -> int:
    """Counts the blocks that any `max_rows` rows one after another can touch."""
    return 0 if time_limit is None else (max_rows - 1) // time_limit + 2


def _make_empty_state(
    step: Step, key: Array | None = None, *, capacity: int, time_limit: int | None, frames: int
) -> UniformReplayState:
    """Makes a ring of `capacity` entries that holds nothing; `step` gives shapes and dtypes."""
    num_envs = step.action.shape[0]
    if capacity % num_envs:
        raise ValueError(
            f"capacity ({capacity}) must be a multiple of the number of environments "
            f"({num_envs}), such as {max(capacity // num_envs, 1) * num_envs}"
        )
    if frames > 1 and (step.obs.ndim == 1 or step.obs.shape[-1] % frames):
        raise ValueError(
            f"frames ({frames}) must divide the last axis of observations, which have shape "
            f"{step.obs.shape[1:]}: give as many as an observation stacks, or 1"
        )
    max_rows = capacity // num_envs
    num_obs = max_rows + 1 + _count_blocks(max_rows, time_limit) + frames - 1
    return UniformReplayState(
        obs=jnp.zeros((num_obs, *_newest_frame(step.obs, frames).shape), step.obs.dtype),
        **{x: jnp.zeros((max_rows, num_envs), getattr(step, x).dtype) for x in _COLUMNS},
        extras=jax.tree.map(lambda x: jnp.zeros((max_rows, *x.shape), x.dtype), step.extras),
        **{x: jnp.zeros((), jnp.int32) for x in ("insert_row", "num_rows", "block")},
        row_in_block=jnp.full((), -1, jnp.int32),
        num_before=None if frames == 1 else jnp.zeros((max_rows, num_envs), jnp.int16),
        begins=None if frames == 1 else jnp.ones(num_envs, bool),
    )


def _newest_frame(obs: Array, frames: int) -> Array:
    """Takes the newest frame of observations `[E, *obs]`."""
    return obs if frames == 1 else obs[..., -(obs.shape[-1] // frames) :]


def _count_before(state: UniformReplayState, obs: Array, frames: int) -> Array:
    """Finds `num_before` `[E]` of observations that are acted on next."""
    newest = (state.insert_row - 1) % state.max_rows
    last = jax.lax.dynamic_index_in_dim(state.num_before, newest, keepdims=False)
    older, frame = jnp.split(obs, [obs.shape[-1] - obs.shape[-1] // frames], axis=-1)
    axes = tuple(range(1, obs.ndim))
    is_blank = (older == 0).all(axes) & (frame != 0).any(axes)
    goes_on = jnp.where(last < 0, jnp.maximum(last - 1, -frames), jnp.minimum(last + 1, frames - 1))
    assert state.begins is not None
    return jnp.where(state.begins, -is_blank.astype(last.dtype), goes_on)


def _add_step(
    state: UniformReplayState,
    step: Step,
    key: Array | None = None,
    *,
    time_limit: int | None,
    frames: int,
) -> UniformReplayState:
    """Writes a step `[E, ...]` over the oldest row."""
    # An index that is the same in every run of a batch: written in place, also under vmap.
    write = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    obs, block, row_in_block = state.obs, state.block, state.row_in_block
    num_before, begins = state.num_before, state.begins
    if num_before is not None:
        num_before = write(num_before, _count_before(state, step.obs, frames), state.insert_row)
        begins = step.terminated | step.truncated
        newest, following = (_newest_frame(x, frames) for x in (step.obs, step.next_obs))
        step = step._replace(obs=newest, next_obs=following)
        overwritten = jax.lax.dynamic_index_in_dim(obs, state.insert_row)
        lost = jnp.concatenate([obs[len(obs) - frames + 2 :], overwritten])
        obs = jax.lax.dynamic_update_slice_in_dim(obs, lost, len(obs) - frames + 1, axis=0)
    if time_limit is not None:
        enters_block = row_in_block + 1 == time_limit
        max_blocks = _count_blocks(state.max_rows, time_limit)
        block = jnp.where(enters_block, (block + 1) % max_blocks, block)
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
        num_before=num_before,
        begins=begins,
    )


def _read_frames(state: UniformReplayState, index: Array, age: Array, num: int) -> Array:
    """Reads the last `num` frames `[num, *frame]` of ONE entry, which is so many rows old."""
    assert state.num_before is not None
    row, env = index // state.num_envs, index % state.num_envs
    before = state.num_before.reshape(-1)[index].astype(jnp.int32)
    num_before = jnp.where(before < 0, -1 - before, before)
    wanted = jnp.arange(num)[::-1]  # so many rows before
    back = jnp.minimum(wanted, num_before)
    too_old = age + back - state.max_rows  # where not negative: rows that were overwritten
    rows = jnp.where(too_old < 0, (row - back) % state.max_rows, len(state.obs) - 1 - too_old)
    found = state.obs.reshape(-1, *state.obs.shape[2:])[rows * state.num_envs + env]
    is_blank = ((before < 0) & (wanted > num_before)).reshape(-1, *(1,) * (found.ndim - 1))
    return jnp.where(is_blank, jnp.zeros_like(found), found)


def _stack(frames: Array) -> Array:
    """Makes ONE observation of frames `[K, *frame]`."""
    return jnp.moveaxis(frames, 0, -2).reshape(*frames.shape[1:-1], -1)


def read_window(
    state: UniformReplayState,
    index: Array,
    num_steps: int,
    time_limit: int | None,
    frames: int = 1,
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
        block = state.block + (state.row_in_block - last_age) // time_limit
        block %= _count_blocks(state.max_rows, time_limit)
        next_row = jnp.where(truncated[last], state.max_rows + 1 + block, next_row)
    # A transition needs the first action alone: the other gather is dropped when compiled.
    action, extras = jax.tree.map(
        lambda x: jnp.concatenate([x[index][jnp.newaxis], x[entries[1:]]]), (actions, extras)
    )
    # Choosing between two row numbers is cheaper than choosing between two observations.
    next_obs = obs[next_row * state.num_envs + env]
    reward = rewards[entries]
    steps = (action, reward, terminated, truncated, is_inside)
    if frames == 1:
        return Window(obs[index], *steps, next_obs, extras, observations=obs[entries])
    read = functools.partial(_read_frames, state)
    before = read(entries[last], last_age, frames - 1)
    next_obs = _stack(jnp.concatenate([before, next_obs[jnp.newaxis]]))
    observations = jax.vmap(lambda i, age: _stack(read(i, age, frames)))(entries, age - offsets)
    return Window(_stack(read(index, age, frames)), *steps, next_obs, extras, observations)


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
    begins = None if state.begins is None else jnp.ones_like(state.begins)
    return state.replace(obs=obs, truncated=truncated, begins=begins)  # type: ignore[attr-defined]


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


def _check_sizes(
    capacity: int, batch_size: int, time_limit: int | None, with_replacement: bool, frames: int
) -> None:
    """Refuses arguments of `uniform_replay`."""
    counts = {"capacity": capacity, "batch_size": batch_size, "frames": frames}
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


def uniform_replay(
    capacity: int,
    batch_size: int,
    time_limit: int | None = 1,
    with_replacement: bool = True,
    frames: int = 1,
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
      frames: how many frames an observation stacks, usually `Environment.frames`, of which the
        newest alone is kept. The first step that is added begins an episode then.

    Returns:
      A `Replay` over `UniformReplayState`. Its `update` changes nothing.

    Raises:
      ValueError: if a count is not positive, or a batch could never be held; from `init`, if
        `capacity` is no multiple of the number of environments, or the last axis of observations
        none of `frames`; from `sample`, if the state holds less than a batch (where that can be
        seen: in compiled code the numbers are not known).
    """
    _check_sizes(capacity, batch_size, time_limit, with_replacement, frames)
    draw_indices = _draw_indices if with_replacement else _draw_different_indices
    how: dict[str, Any] = {"time_limit": time_limit, "frames": frames}
    window_at = functools.partial(read_window, time_limit=time_limit, frames=frames)

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

    init = functools.partial(_make_empty_state, capacity=capacity, **how)
    add = functools.partial(_add_step, **how)
    cut = _cut_newest if time_limit == 1 else None
    return Replay(init, add, sample, lambda state, indices, priorities: state, window_at, cut=cut)
