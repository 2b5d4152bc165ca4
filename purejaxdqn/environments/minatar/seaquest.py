"""Plays MinAtar's Seaquest, see `common.py`.

A submarine shoots at fish and at other submarines, each worth 1, and picks up divers. At the
surface it gets oxygen and lets a diver go, and six at once for a reward of up to 10. Each time
the difficulty's ramping makes enemies come more often, and in the end faster. The game ends when
an enemy or its bullet reaches the submarine's front, without oxygen, and at the surface without a
diver. In the original there are -1 divers after six; and any number but 0 may surface. So here.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.minatar.common import (
    DOWN,
    FIRE,
    LEFT,
    RIGHT,
    SIZE,
    UP,
    Game,
    minatar,
    unpack,
)
from purejaxdqn.types import Array

MAX_OXYGEN = 200  # steps
MAX_DIVERS = 6
SHOT_COOL_DOWN = 5  # steps between two shots of the player
SUBMARINE_SHOT_INTERVAL = 10
ENEMY_INTERVAL, DIVER_INTERVAL = 20, 30  # steps between two that come, at first
DIVER_MOVE_INTERVAL = 5
SLOWEST_ENEMY, FASTEST_ENEMY = 5, 2  # steps that an enemy waits between two moves
P_SUBMARINE = 1 / 3  # else an enemy is a fish
# At most as many can be there: one comes at a step at most, and the fastest ones, which come so
# often, cross the screen in 29 steps. Slower ones come every 15 steps, and cross it in 59.
MAX_ENEMIES = 30
ROWS = np.arange(SIZE, dtype=np.int32)


@flax.struct.dataclass
class Swimmers:
    """What crosses the screen, `[slots]` each."""

    row: Array  # int32, -1 where the slot is empty
    column: Array  # int32
    to_right: Array  # bool
    timer: Array  # int32, steps until it moves; 0 in those of bullets


@flax.struct.dataclass
class SeaquestState:
    """One submarine with all that is around it."""

    row: Array  # [] int32, 0 at the surface
    column: Array  # [] int32, of the front
    to_right: Array  # [] bool, where it looks and shoots
    oxygen: Array  # [] int32
    num_divers: Array  # [] int32, aboard
    is_surfaced: Array  # [] bool, whether it has had its oxygen
    shot_timer: Array  # [] int32, steps until it can shoot
    enemy_timer: Array  # [] int32, steps until an enemy comes
    enemy_interval: Array  # [] int32
    diver_timer: Array  # [] int32, steps until a diver comes
    # The newer one stands behind. When a third comes the first is gone: a bullet flies for 9 steps,
    # a diver swims for 59.
    bullets: Swimmers  # [2]
    divers: Swimmers  # [2]
    enemies: Swimmers  # [30]
    is_submarine: Array  # [30] bool, those enemies that shoot
    submarine_timer: Array  # [30] int32, steps until it does
    next_slot: Array  # [] int32, of the enemy that comes next
    # [10] int32 each: of the enemies' bullets the columns in each row, as bits
    bullets_to_left: Array
    bullets_to_right: Array


class Draws(NamedTuple):
    """The random numbers of one step, `[]` each; used where an enemy or a diver comes."""

    enemy_to_right: Array  # bool, from the left side to the right
    enemy_row: Array  # int32, from 1 to 8
    is_submarine: Array  # bool
    diver_to_right: Array
    diver_row: Array


def draw(key: Array) -> Draws:
    """Draws the random numbers of one step, of 32 random bits."""
    bits = jax.random.bits(key, dtype=jnp.uint32)
    rows = [1 + ((bits >> shift) & 7).astype(jnp.int32) for shift in (0, 3)]
    to_right = [(bits >> shift) & 1 == 1 for shift in (6, 7)]
    is_submarine = (bits >> 8) < int(P_SUBMARINE * 2**24)
    return Draws(to_right[0], rows[0], is_submarine, to_right[1], rows[1])


def reset(key: Array | None = None) -> SeaquestState:
    """Begins an episode at the surface; all begin alike."""
    del key

    def nobody(slots: int) -> Swimmers:
        zeros = jnp.zeros(slots, jnp.int32)
        return Swimmers(zeros - 1, zeros, zeros > 0, zeros)

    (row, column, oxygen, num_divers, shot_timer, enemy_timer, diver_timer, next_slot) = (
        jnp.asarray(x, jnp.int32)
        for x in (0, SIZE // 2, MAX_OXYGEN, 0, 0, ENEMY_INTERVAL, DIVER_INTERVAL, 0)
    )
    enemies = nobody(MAX_ENEMIES)
    no_bullets = jnp.zeros(SIZE, jnp.int32)
    return SeaquestState(
        row=row,
        column=column,
        to_right=jnp.bool(False),
        oxygen=oxygen,
        num_divers=num_divers,
        is_surfaced=jnp.bool(True),
        shot_timer=shot_timer,
        enemy_timer=enemy_timer,
        enemy_interval=enemy_timer,
        diver_timer=diver_timer,
        bullets=nobody(2),
        divers=nobody(2),
        enemies=enemies,
        is_submarine=enemies.to_right,
        submarine_timer=enemies.timer,
        next_slot=next_slot,
        bullets_to_left=no_bullets,
        bullets_to_right=no_bullets,
    )


def _add(swimmers: Swimmers, is_new: Array, new: Swimmers) -> Swimmers:
    """Lets a new swimmer, `[]` each, take the place of the older one of two."""
    return jax.tree.map(
        lambda old, one: jnp.where(is_new, jnp.stack([old[1], one]), old), swimmers, new
    )


def _move(swimmers: Swimmers, moves: Array) -> Swimmers:
    """Moves some swimmers by a cell; those that leave the screen are gone."""
    column = swimmers.column + jnp.where(moves, 2 * swimmers.to_right - 1, 0)
    row = jnp.where((column >= 0) & (column < SIZE), swimmers.row, -1)
    return dataclasses.replace(swimmers, row=row, column=column)


def _is_at(swimmers: Swimmers, row: Array, column: Array) -> Array:
    return (swimmers.row == row) & (swimmers.column == column)


def _spawn(state: SeaquestState, draws: Draws) -> SeaquestState:
    """Lets an enemy come, unless one swims the other way in its row, and a diver."""
    enemies, move_interval = state.enemies, _move_interval(state)
    is_blocked = (enemies.row == draws.enemy_row) & (enemies.to_right != draws.enemy_to_right)
    comes = (state.enemy_timer == 0) & ~is_blocked.any()
    here = comes & (state.next_slot == np.arange(MAX_ENEMIES))
    column = jnp.where(draws.enemy_to_right, 0, SIZE - 1).astype(jnp.int32)
    new = Swimmers(draws.enemy_row, column, draws.enemy_to_right, move_interval)
    side = jnp.where(draws.diver_to_right, 0, SIZE - 1).astype(jnp.int32)
    timer = jnp.int32(DIVER_MOVE_INTERVAL)
    diver = Swimmers(draws.diver_row, side, draws.diver_to_right, timer)
    return dataclasses.replace(
        state,
        enemies=jax.tree.map(lambda old, one: jnp.where(here, one, old), enemies, new),
        is_submarine=jnp.where(here, draws.is_submarine, state.is_submarine),
        submarine_timer=jnp.where(here, SUBMARINE_SHOT_INTERVAL, state.submarine_timer),
        next_slot=(state.next_slot + comes) % MAX_ENEMIES,
        enemy_timer=jnp.where(state.enemy_timer == 0, state.enemy_interval, state.enemy_timer) - 1,
        divers=_add(state.divers, state.diver_timer == 0, diver),
        diver_timer=jnp.where(state.diver_timer == 0, DIVER_INTERVAL, state.diver_timer) - 1,
    )


def _move_interval(state: SeaquestState) -> Array:
    num_ramps = ENEMY_INTERVAL - state.enemy_interval
    return jnp.maximum(SLOWEST_ENEMY - num_ramps // 2, FASTEST_ENEMY)


def _act(state: SeaquestState, action: Array) -> SeaquestState:
    """Moves and turns the submarine, or shoots."""
    shoots = (action == FIRE) & (state.shot_timer == 0)
    turns = (action == LEFT) | (action == RIGHT)
    column = state.column + (action == RIGHT) - (action == LEFT)
    row = state.row + (action == DOWN) - (action == UP)
    new = Swimmers(state.row, state.column, state.to_right, jnp.int32(0))
    return dataclasses.replace(
        state,
        column=jnp.clip(column, 0, SIZE - 1),
        row=jnp.clip(row, 0, SIZE - 2),
        to_right=jnp.where(turns, action == RIGHT, state.to_right),
        bullets=_add(state.bullets, shoots, new),
        shot_timer=jnp.maximum(jnp.where(shoots, SHOT_COOL_DOWN, state.shot_timer) - 1, 0),
    )


def _shoot(state: SeaquestState) -> tuple[SeaquestState, Array]:
    """Moves the player's bullets, `(state, reward)`: each kills one enemy where it gets to.

    In one cell it is a fish before a submarine, and the first that came, which is the next to move:
    two that came in turn never get so near that both are to move in one step.
    """
    bullets, enemies = _move(state.bullets, jnp.bool(True)), state.enemies
    is_hit = jax.vmap(_is_at, (None, 0, 0))(enemies, bullets.row, bullets.column)
    is_hit &= (enemies.row >= 0)[jnp.newaxis]
    order = (enemies.timer + SIZE * state.is_submarine)[jnp.newaxis]
    order = jnp.where(is_hit, order, 2 * SIZE)
    first = order.min(1)
    killed = (is_hit & (order == first[:, jnp.newaxis])).any(0)
    bullets = dataclasses.replace(bullets, row=jnp.where(first < 2 * SIZE, -1, bullets.row))
    enemies = dataclasses.replace(enemies, row=jnp.where(killed, -1, enemies.row))
    return dataclasses.replace(state, bullets=bullets, enemies=enemies), killed.sum(
        dtype=jnp.float32
    )


def _swim(state: SeaquestState) -> SeaquestState:
    """Moves the divers; those that meet the submarine come aboard, as long as there is room."""
    # The newer one is the first to move.
    num_divers, divers = state.num_divers, []
    for slot in (1, 0):
        diver = jax.tree.map(lambda x, slot=slot: x[slot], state.divers)
        moves = diver.timer == 0
        moved = _move(diver, moves)
        meets = _is_at(diver, state.row, state.column) | _is_at(moved, state.row, state.column)
        boards = meets & (num_divers < MAX_DIVERS)
        num_divers += boards
        row = jnp.where(boards, -1, moved.row)
        timer = jnp.where(moves, DIVER_MOVE_INTERVAL, diver.timer - 1)
        divers.append(dataclasses.replace(moved, row=row, timer=timer))
    both = jax.tree.map(lambda *x: jnp.stack(x), *reversed(divers))
    return dataclasses.replace(state, divers=both, num_divers=num_divers)


def _attack(state: SeaquestState) -> tuple[SeaquestState, Array, Array]:
    """Moves enemies, which shoot, and their bullets, `(state, reward, is_hit)`."""
    enemies, move_interval = state.enemies, _move_interval(state)
    moves = enemies.timer == 0
    moved = _move(enemies, moves)
    timer = jnp.where(moves, move_interval, enemies.timer - 1)
    hits = _is_at(moved, state.row, state.column)
    is_hit = (hits | _is_at(enemies, state.row, state.column)).any()
    # Submarines shoot before they are killed, where they swim into a bullet of the player.
    shoots = state.is_submarine & (state.submarine_timer == 0)
    shot = _gather(moved, jnp.where(shoots, (1 << moved.column) << (SIZE * moved.to_right), 0))
    to_left, to_right = _split(shot, 2)
    to_left, to_right = to_left | state.bullets_to_left, to_right | state.bullets_to_right
    meets = jax.vmap(_is_at, (None, 0, 0))(moved, state.bullets.row, state.bullets.column)
    meets &= (moves & (moved.row >= 0) & ~hits)[jnp.newaxis]
    bullets = dataclasses.replace(state.bullets, row=jnp.where(meets.any(1), -1, state.bullets.row))
    killed = meets.any(0)
    enemies = dataclasses.replace(moved, row=jnp.where(killed, -1, moved.row), timer=timer)
    here = jnp.where(state.row == ROWS, 1 << state.column, 0)
    is_hit |= ((to_left | to_right) & here).any()
    to_left, to_right = to_left >> 1, (to_right << 1) & (2**SIZE - 1)
    is_hit |= ((to_left | to_right) & here).any()
    state = dataclasses.replace(
        state,
        bullets=bullets,
        enemies=enemies,
        submarine_timer=jnp.where(shoots, SUBMARINE_SHOT_INTERVAL, state.submarine_timer - 1),
        bullets_to_left=to_left,
        bullets_to_right=to_right,
    )
    return state, killed.sum(dtype=jnp.float32), is_hit


def _gather(swimmers: Swimmers, bits: Array) -> Array:
    """Gathers the bits of swimmers in their rows, `[10]` int32."""
    here = ROWS[:, np.newaxis] == swimmers.row[jnp.newaxis]
    return jnp.bitwise_or.reduce(jnp.where(here, bits[jnp.newaxis], 0), axis=1)


def _split(rows: Array, parts: int) -> list[Array]:
    """Takes rows apart that have several times ten bits."""
    return [(rows >> (SIZE * part)) & (2**SIZE - 1) for part in range(parts)]


def _trail(swimmers: Swimmers, bits: Array) -> Array:
    return jnp.where(swimmers.to_right, bits >> 1, (bits << 1) & (2**SIZE - 1))


def _breathe(state: SeaquestState, difficulty_ramping: bool) -> tuple[SeaquestState, Array, Array]:
    """Uses oxygen, or gets some at the surface, `(state, reward, terminated)`."""
    at_surface = state.row == 0
    arrives = at_surface & ~state.is_surfaced
    terminated = (state.oxygen <= 0) | (arrives & (state.num_divers == 0))
    is_saved = arrives & (state.num_divers != 0)
    is_full = state.num_divers == MAX_DIVERS
    reward = jnp.where(is_saved & is_full, _oxygen_cells(state), 0).astype(jnp.float32)
    ramps = is_saved & (state.enemy_interval > 1) & difficulty_ramping
    state = dataclasses.replace(
        state,
        oxygen=jnp.where(is_saved, MAX_OXYGEN, state.oxygen - ~at_surface),
        num_divers=jnp.where(is_saved & is_full, 0, state.num_divers) - is_saved,
        is_surfaced=at_surface & (state.is_surfaced | is_saved),
        enemy_interval=state.enemy_interval - ramps,
    )
    return state, reward, terminated


def _oxygen_cells(state: SeaquestState) -> Array:
    return jnp.maximum(state.oxygen, 0) * SIZE // MAX_OXYGEN


def advance(
    state: SeaquestState, action: Array, draws: Draws, *, difficulty_ramping: bool
) -> tuple[SeaquestState, Array, Array]:
    """Takes a step of one of all six actions `[]`, `(state, reward, terminated)`."""
    state, shot = _shoot(_act(_spawn(state, draws), action))
    state, met, is_hit = _attack(_swim(state))
    state, saved, terminated = _breathe(state, difficulty_ramping)
    return state, shot + met + saved, terminated | is_hit


def observe(state: SeaquestState) -> Array:
    """Shows what is there, and two gauges in the last row, for oxygen and divers aboard.

    Trails are the cells that fish, the enemy's submarines and divers come from.
    """
    here, last = state.row == ROWS, ROWS == SIZE - 1
    front = 1 << state.column
    back = jnp.where(state.to_right, front >> 1, front << 1)
    # A single pass over the enemies, for three channels.
    bits = 1 << state.enemies.column
    trails = _trail(state.enemies, bits) << (2 * SIZE)
    bits = (bits << (SIZE * state.is_submarine)) | trails
    fish, submarines, trail = _split(_gather(state.enemies, bits), 3)
    bits = 1 << state.divers.column
    bits |= _trail(state.divers, bits) << SIZE
    divers, divers_trail = _split(_gather(state.divers, bits), 2)
    bullets = state.bullets_to_left | state.bullets_to_right
    oxygen = (1 << _oxygen_cells(state)) - 1
    aboard = (1 << (SIZE - 1)) - (1 << (SIZE - 1 - jnp.maximum(state.num_divers, 0)))
    return unpack(
        jnp.where(here, front, 0),
        jnp.where(here, back, 0),
        _gather(state.bullets, 1 << state.bullets.column),
        trail | divers_trail,
        bullets,
        fish,
        submarines,
        jnp.where(last, oxygen, 0),
        jnp.where(last, aboard, 0),
        divers,
    )


GAME = Game(reset, draw, advance, observe, 10, tuple(range(6)), ramps=True, observes_again=False)
seaquest = functools.partial(minatar, game=GAME)
