"""A circular replay buffer that samples in proportion to priorities.

Schaul et al. (2016) keep priorities in a binary tree of sums, and add differences to the sums. Here
the tree is wide, with three levels of about `capacity ** (1 / 3)` children each: groups of blocks
of leaves. A sum is always made anew from all that it sums, so that rounding never adds up.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn.replay.uniform import UniformReplayState, read_window, uniform_replay
from purejaxdqn.types import Array, Replay, Sample, Step, Window, ensure_number


@flax.struct.dataclass
class SumTree:
    """Numbers of at least 0, to be drawn in proportion, and sums of them.

    `K * K` leaves are a block, and `K * K` blocks a group. The sums of the groups are not kept:
    making them of all blocks takes no longer than finding those that changed.
    """

    leaves: Array  # [G * K^4] the numbers, one block after another; 0 is never drawn
    sums: Array  # [G, K, K] the sum of each block, a group a row

    @property
    def block_size(self) -> int:
        """The number of leaves in a block, `K * K`."""
        return self.sums.shape[1] ** 2

    @property
    def group_sums(self) -> Array:
        """The sum of each group, `[G]`."""
        return _sum_rows(self.sums.reshape(-1, self.block_size))

    @property
    def blocks(self) -> Array:
        """The leaves as `[G * K^2, K, K]`."""
        return self.leaves.reshape(-1, *self.sums.shape[1:])


def _sum_rows(rows: Array) -> Array:
    """Sums `[..., N]` over its last axis: as a product, which a CPU does ten times as fast."""
    return jnp.dot(rows, jnp.ones(rows.shape[-1], rows.dtype), precision="highest")


def make_sum_tree(capacity: int) -> SumTree:
    """Makes a tree of at least `capacity` leaves, all 0."""
    side = 2 ** max(1, round(math.log2(capacity) / 6))
    num_groups = -(-capacity // side**4)
    return SumTree(jnp.zeros(num_groups * side**4), jnp.zeros((num_groups, side, side)))


def set_range(tree: SumTree, start: Array, values: Array) -> SumTree:
    """Writes `values` `[N]` into a tree from leaf `start` `[]` on.

    With a start that is the same in every run of a batch, this writes in place, also under `vmap`.
    """
    leaves = jax.lax.dynamic_update_slice_in_dim(tree.leaves, values, start, axis=0)
    # As many blocks as N leaves can touch; at the end of the tree some of them lie before.
    size, num_blocks = tree.block_size, tree.sums.size
    num_touched = min((values.size + size - 2) // size + 1, num_blocks)
    first = jnp.minimum(start // size, num_blocks - num_touched)
    touched = jax.lax.dynamic_slice_in_dim(leaves, first * size, num_touched * size)
    block_sums = _sum_rows(touched.reshape(num_touched, size))
    sums = jax.lax.dynamic_update_slice_in_dim(tree.sums.ravel(), block_sums, first, axis=0)
    return SumTree(leaves, sums.reshape(tree.sums.shape))


def set_leaves(tree: SumTree, indices: Array, values: Array) -> SumTree:
    """Writes `values` `[B]` into a tree at `indices` `[B]`; where two meet, the larger one."""
    # Two different writes to one leaf would leave it to the device which of them stays.
    leaves = tree.leaves.at[indices].set(0).at[indices].max(values)
    blocks = indices // tree.block_size
    block_sums = _sum_rows(leaves.reshape(-1, tree.block_size)[blocks])
    sums = tree.sums.ravel().at[blocks].set(block_sums)
    return SumTree(leaves, sums.reshape(tree.sums.shape))


def _child_at(children: Array, fraction: Array) -> tuple[Array, Array]:
    """Finds on which of the numbers `[N]` a fraction `[]` of their sum falls; never on a 0.

    Returns its position `[]`, and on which fraction `[]` of that number it falls.
    """
    positions = jnp.arange(children.size)
    # The same as cumsum, in half the time on a CPU.
    up_to = jax.lax.associative_scan(jnp.add, children)
    target = fraction * up_to[-1]
    reached = (children > 0) & (up_to > target)
    # Where rounding carries the fraction to the whole sum, it falls on the last number above 0.
    last = jnp.max(jnp.where(children > 0, positions, 0))
    found = jnp.min(jnp.where(reached, positions, last))
    return found, 1 - (up_to[found] - target) / children[found]


def _cell_at(cells: Array, fractions: Array) -> Array:
    """Finds the cell `[]` of a square `[K, K]`: first its row, then its column."""
    row, _ = _child_at(_sum_rows(cells), fractions[0])
    return row * cells.shape[1] + _child_at(cells[row], fractions[1])[0]


def _group_at(groups: Array, fraction: Array) -> Array:
    """Finds the group `[]` of `[G]`: among rows of 16 first, as there may be hundreds."""
    rows = jnp.pad(groups, (0, -groups.size % 16)).reshape(-1, 16)
    row, leftover = _child_at(_sum_rows(rows), fraction)
    return row * 16 + _child_at(rows[row], leftover)[0]


def leaf_at(tree: SumTree, fractions: Array) -> Array:
    """Finds the ONE leaf to which fractions `[5]` lead: through groups, blocks, and a block.

    Fractions that are uniform and independent draw leaves in proportion to what they hold. A single
    one has too few digits for that: in float32, 2^23 values for a million leaves.
    """
    group = _group_at(tree.group_sums, fractions[0])
    block = group * tree.block_size + _cell_at(tree.sums[group], fractions[1:3])
    return block * tree.block_size + _cell_at(tree.blocks[block], fractions[3:])


def _draw_leaves(tree: SumTree, key: Array, num: int) -> tuple[Array, Array]:
    """Draws leaves `[num]`, a stratum each, and says with which probabilities `[num]`."""
    fractions = jax.random.uniform(key, (5, num))  # a CPU draws long rows twice as fast
    strata = (jnp.arange(num) + fractions[0]) / num
    indices = jax.vmap(leaf_at, (None, 1))(tree, fractions.at[0].set(strata))
    probabilities = tree.leaves[indices] / tree.group_sums.sum()
    # The condition always holds. It makes the indices depend on the tree, so that XLA cannot start
    # `update` early and copy the tree.
    return jnp.where(probabilities > 0, indices, 0), probabilities


@flax.struct.dataclass
class PrioritisedReplayState:
    """A ring of transitions and a priority for each of them."""

    replay: UniformReplayState
    tree: SumTree  # a leaf for each entry of the ring: p^exponent, or 0 if it was never written
    max_priority: Array  # [] the largest p^exponent so far, 1 before any update


def _scale(p: Array, epsilon: Array | float, exponent: Array | float, largest: Array) -> Array:
    """Computes `p^exponent`; a NaN, which would spread to all others, counts as `largest`."""
    scaled = (jnp.abs(p) + epsilon) ** exponent
    return jnp.where(jnp.isfinite(scaled), scaled, largest)


def _make_cut(ring: Replay) -> Callable[[Any], Any] | None:
    if (cut := ring.cut) is None:
        return None
    return lambda state: PrioritisedReplayState(cut(state.replay), state.tree, state.max_priority)


def prioritised_replay(
    capacity: int,
    batch_size: int,
    time_limit: int | None = 1,
    exponent: Array | float = 0.6,
    epsilon: Array | float = 1e-6,
    frames: int = 1,
) -> Replay:
    """Makes a circular replay buffer that samples in proportion to `p^exponent`.

    Schaul et al., "Prioritized experience replay" (2016), section 3.3 and equation 1: an entry's
    priority p is `|priority| + epsilon`, of what `update` was given last for it. A new entry has
    the largest p so far, so that it is soon seen; that of the entry it overwrites is forgotten.

    A batch is stratified (appendix B.2.1) over the groups of the tree, some `capacity ** (1 / 3)`
    parts of the ring, and within each its draws are independent. So an entry is expected
    `batch_size` times its probability in a batch, which may hold it more than once.

    The first three arguments, and `frames`, are those of `uniform_replay`. An `exponent`, alpha, of
    0 samples uniformly. The `epsilon` keeps entries without any error in play.

    Returns:
      A `Replay` over `PrioritisedReplayState`. `Sample.probabilities` are `p^exponent` over the sum
      of all, for importance weights; `update` takes TD errors, of any sign.

    Raises:
      ValueError: as `uniform_replay`; for a bad exponent; from `sample`, if nothing is held.
    """
    ring = uniform_replay(capacity, batch_size, time_limit, frames=frames)
    ensure_number("exponent", exponent, 0)
    ensure_number("epsilon", epsilon, 0)

    def init(step: Step, key: Array | None = None) -> PrioritisedReplayState:
        return PrioritisedReplayState(ring.init(step), make_sum_tree(capacity), jnp.ones(()))

    def add(state: PrioritisedReplayState, step: Step, key: Any = None) -> PrioritisedReplayState:
        priorities = jnp.broadcast_to(state.max_priority, (state.replay.num_envs,))
        tree = set_range(state.tree, state.replay.insert_row * priorities.size, priorities)
        return PrioritisedReplayState(ring.add(state.replay, step), tree, state.max_priority)

    def sample(state: PrioritisedReplayState, key: Array) -> Sample:
        is_empty = state.replay.num_rows == 0
        if not isinstance(is_empty, jax.core.Tracer) and is_empty:
            raise ValueError("the replay holds no transition to sample: add some first")
        indices, probabilities = _draw_leaves(state.tree, key, batch_size)
        windows = jax.vmap(lambda index: window_at(state, index, 1))(indices)
        return Sample(windows, indices, probabilities)

    def update(
        state: PrioritisedReplayState, indices: Array, priorities: Array
    ) -> PrioritisedReplayState:
        scaled = _scale(priorities, epsilon, exponent, state.max_priority)
        tree = set_leaves(state.tree, indices, scaled)
        max_priority = jnp.maximum(state.max_priority, scaled.max())
        return PrioritisedReplayState(state.replay, tree, max_priority)

    def window_at(state: PrioritisedReplayState, index: Array, num_steps: int) -> Window:
        return read_window(state.replay, index, num_steps, time_limit, frames)

    return Replay(init, add, sample, update, window_at, cut=_make_cut(ring))
