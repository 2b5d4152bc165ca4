"""What MinAtar's five games share: actions, sticky actions, the time limit, planes and films.

The games are those of Young and Tian, "MinAtar: An Atari-inspired testbed for more efficient
reinforcement learning experiments" (2019, arXiv:1903.03176), written from the rules in the paper
and in its README, and from watching the package `minatar` 1.0.15 play. Each follows it step by
step if it is given the same random numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.base import Environment
from purejaxdqn.types import Array, TimeStep, ensure, ensure_number, ensure_whole

SIZE = 10  # cells along each side of the screen
NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
CELL = 16  # pixels of a film along each side of a cell
# Of an empty cell, and then of each channel.
PALETTE = np.array(
    [
        [18, 18, 28],
        [86, 180, 233],
        [240, 228, 66],
        [110, 110, 130],
        [213, 94, 0],
        [0, 158, 115],
        [204, 121, 167],
        [230, 159, 0],
        [0, 114, 178],
        [150, 220, 180],
        [250, 250, 250],
    ],
    np.uint8,
)


class Game(NamedTuple):
    """One game as pure functions of ONE game; its draws are apart from its rules."""

    reset: Callable[[Array], Any]  # key -> the game's state
    draw: Callable[[Array], Any]  # key -> the random numbers of one step, a pytree
    # (state, action [] of all six, draws) -> (state, reward [] float32, terminated [] bool); if it
    # ramps, also with difficulty_ramping=False, for a game that stays as hard as it begins
    advance: Callable[..., tuple[Any, Array, Array]]
    observe: Callable[[Any], Array]  # state -> [10, 10, num_channels] bool
    num_channels: int
    actions: tuple[int, ...]  # the minimal ones, in the original's order
    ramps: bool = False  # whether it gets harder
    # Where an episode begins, whether the state that was chosen is observed again, which is faster
    # than to choose one of two observations, but where observing takes long
    observes_again: bool = True


@flax.struct.dataclass
class MinAtarState:
    """One game under way."""

    game: Any  # the game's own state
    last_action: Array  # [] int32, of all six; what a sticky action repeats
    num_steps: Array  # [] int32, steps taken in this episode


def light(screen: Array, rows: Array, columns: Array, channels: Array | int) -> Array:
    """Lights cells of a screen `[10, 10, channels]`; none for a column outside of it.

    A few writes cost a fifth of what comparing each cell with each thing costs on a CPU.
    """
    num_channels = screen.shape[-1]
    is_inside = (columns >= 0) & (columns < SIZE)
    index = (rows * SIZE + columns) * num_channels + channels  # of one axis: three cost more
    index = jnp.where(is_inside, index, screen.size)
    return screen.reshape(-1).at[index].set(True, mode="drop").reshape(screen.shape)


def unpack(*channels: Array) -> Array:
    """Makes an observation of channels whose rows, `[10]` int32, have their columns as bits."""
    rows = jnp.stack(channels)
    # A reduction, which does nothing: XLA else works the rows out anew for each cell, on a CPU.
    twice = jnp.where(np.array([[[True]], [[False]]]), rows[jnp.newaxis], 0)
    rows = jnp.bitwise_or.reduce(twice, axis=0).T
    cells = np.arange(SIZE, dtype=np.int32)[np.newaxis, :, np.newaxis]
    return (rows[:, jnp.newaxis] >> cells) & 1 == 1


def minatar(
    name: str,
    sticky_actions: float = 0.1,
    time_limit: int | None = None,
    difficulty_ramping: bool = True,
    *,
    game: Game,
) -> Environment:
    """Makes a game's environment; a name that ends in "-v0" has all six actions.

    Those of "-v1" are the game's minimal ones. With probability `sticky_actions` a step repeats the
    action that was taken before it; an episode begins as if that had been no action. (The original
    takes over the last action of the episode before.) Without a `time_limit` nothing is cut off.
    Without `difficulty_ramping` a game stays as hard as it begins; Breakout and Freeway do anyhow.

    Raises:
      ConfigError: for a setting out of range.
    """
    import gymnasium  # only where an environment is made

    ensure_number("sticky_actions", sticky_actions, 0, 1)
    if time_limit is not None:
        ensure_whole("time_limit", time_limit)
    if game.ramps:
        rules = functools.partial(game.advance, difficulty_ramping=difficulty_ramping)
        game = game._replace(advance=rules)
    version = name.partition("?")[0][-3:]
    ensure(version in ("-v0", "-v1"), "environment", name, "a name that ends in -v0 or -v1")
    actions = tuple(range(6)) if version == "-v0" else game.actions
    space = gymnasium.spaces.Box(0, 1, (SIZE, SIZE, game.num_channels), np.bool_)  # type: ignore[arg-type]
    step = functools.partial(
        _step, game=game, actions=actions, sticky_actions=sticky_actions, time_limit=time_limit
    )
    both = functools.partial(_step_and_reset, game=game, step=step)
    return Environment(
        name,
        functools.partial(_reset, game=game),
        step,
        len(actions),
        space,
        None,
        time_limit,
        render=functools.partial(_render, game=game),
        step_and_reset=both if game.observes_again else None,
    )


def _reset(key: Array, *, game: Game) -> tuple[MinAtarState, Array]:
    zero = jnp.zeros((), jnp.int32)
    state = MinAtarState(game.reset(key), zero, zero)
    return state, game.observe(state.game)


def _step(
    key: Array,
    state: MinAtarState,
    action: Array,
    *,
    game: Game,
    actions: tuple[int, ...],
    sticky_actions: float,
    time_limit: int | None,
) -> tuple[MinAtarState, TimeStep]:
    sticky_key, game_key = jax.random.split(key)
    action = jnp.asarray(actions, jnp.int32)[action]
    if sticky_actions:
        is_stuck = jax.random.uniform(sticky_key, dtype=jnp.float32) < sticky_actions
        action = jnp.where(is_stuck, state.last_action, action)
    game_state, reward, terminated = game.advance(state.game, action, game.draw(game_key))
    state = MinAtarState(game_state, action, state.num_steps + 1)
    limit = jnp.iinfo(jnp.int32).max if time_limit is None else time_limit
    truncated = state.num_steps >= limit
    return state, TimeStep(game.observe(game_state), reward, terminated, truncated)


def _step_and_reset(
    key: Array,
    state: MinAtarState,
    action: Array,
    cut: Array | None = None,
    *,
    game: Game,
    step: Callable[..., Any],
) -> tuple[MinAtarState, Array, TimeStep]:
    """Does what `base.step_and_reset` does, and observes the state that it chose."""
    step_key, reset_key = jax.random.split(key)
    next_state, timestep = step(step_key, state, action)
    if cut is not None:
        timestep = timestep._replace(truncated=timestep.truncated | cut)
    reset_state, _ = _reset(reset_key, game=game)
    ended = timestep.terminated | timestep.truncated
    state = jax.tree.map(lambda new, old: jnp.where(ended, new, old), reset_state, next_state)
    return state, game.observe(state.game), timestep


def _render(state: MinAtarState, *, game: Game) -> Array:
    """Draws the screen `[160, 160, 3]` uint8; of several things in a cell the last channel's."""
    number = np.arange(1, game.num_channels + 1)[np.newaxis, np.newaxis]
    colour = jnp.max(game.observe(state.game) * number, axis=-1)
    pixels = jnp.asarray(PALETTE)[colour]
    return pixels.repeat(CELL, axis=0).repeat(CELL, axis=1)
