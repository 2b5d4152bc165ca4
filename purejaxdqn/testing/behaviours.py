"""Checks that a behaviour keeps its contract."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, clone_keys, find_types, pure_jit, to_numpy
from purejaxdqn.testing.report import Check, Report, attempt, expect, print_and_raise, unprinted
from purejaxdqn.testing.require import describe_type, is_key
from purejaxdqn.types import Array, ArrayTree, Behaviour, Schedule, Situation

MakeBehaviour = Callable[[Schedule], Behaviour]

_NUM_LANES = 2048  # environments side by side, which all see the same
_NUM_STEPS, _EPISODE = 12, 4  # steps of each, and of an episode
_ALMOST_NO, _SOME, _ALL = 1e-7, 0.5, 1.0  # a temperature of 0 itself would divide by 0
_SIGMAS = 6.0
_ONE_ENVIRONMENT = f"It is a function of ONE environment, mapped over all with vmap. {COMPILABLE}"
_DRAW = "draw from the key of act, or from a state that init draws from its own key"


class _Options(NamedTuple):
    """What `check_behaviour` was told."""

    num_actions: int
    num_heads: int | None
    make_output: Callable[[Array], Any]
    obs: Array
    num_steps: int
    knows_legal: bool
    outlives_episodes: bool


class _Play(NamedTuple):
    """How all lanes were played, one after another in the same situations."""

    actions: np.ndarray  # [lanes, T]
    extras: dict[str, np.ndarray]  # [lanes, T, ...]
    is_greedy: np.ndarray  # [lanes, T], with several heads of one that fits the whole episode
    is_legal: np.ndarray  # [T, A]


@print_and_raise
def check_behaviour(
    make_behaviour: MakeBehaviour | Behaviour,
    key: Array | None = None,
    *,
    num_actions: int = 4,
    num_heads: int | None = None,
    make_output: Callable[[Array], Any] = lambda values: values,
    obs: Array | None = None,
    num_steps: int = 10_000,
    knows_legal: bool = True,
    outlives_episodes: bool = False,
) -> Report:
    """Checks a behaviour, prints a table with a row a check, and raises if one failed.

    - It works under `jit`, `scan` and `vmap`; its state and its extras keep shapes and dtypes, in
      the prefill too; the action is an int32 scalar. No key is used twice.
    - Environments and seeds have streams of their own: other keys, other actions.
    - In the prefill it is uniformly random, among the legal actions. No illegal one is ever taken.
    - With an epsilon of 0 it is greedy, with one of 1 it is not, at the situation's `num_steps`.
      It is 1e-7 and not 0, so that a temperature can be judged too.
    - The `probability` in its extras, where it writes one, is how often the action is taken.
    - An episode begins without what the state held on to; one head of an ensemble is followed
      through each episode.

    It returns and raises as `check_loss`. See `Behaviour` and `Situation`.

    Args:
      make_behaviour: what makes the behaviour of a schedule, such as `epsilon_greedy_behaviour` or
        `lambda epsilon: head_behaviour(epsilon, 3)`; or a behaviour, whose epsilon is then not
        judged.
      key: `[]` PRNG key of everything that is drawn; always the same one by default.
      num_actions: `A`.
      num_heads: `K`, for a behaviour that follows one of several heads.
      make_output: makes the network's output of action values `[A]`, or of all heads' `[K, A]`, for
        a behaviour that reads the output itself.
      obs: `[*obs]`, for a behaviour that looks at it; 4 numbers by default.
      num_steps: the environment steps taken so far, for a behaviour with a schedule of its own.
      knows_legal: False for one that is meant for environments where all actions are legal.
      outlives_episodes: True for one whose state is meant to count in the next episode too.
    """
    key = jax.random.key(0) if key is None else key
    name = getattr(make_behaviour, "__qualname__", None) or type(make_behaviour).__name__
    shape = (num_actions, num_heads, make_output, jnp.zeros(4) if obs is None else obs, num_steps)
    options = _Options(*shape, knows_legal, outlives_episodes)
    return Report(name, tuple(_check_all(make_behaviour, key, options)))


behaviour_report = unprinted(check_behaviour)


def _check_all(
    make_behaviour: MakeBehaviour | Behaviour, key: Array, options: _Options
) -> list[Check]:
    plays: dict[str, _Play] = {}

    def make(epsilon: Array | float) -> Behaviour:
        """Makes the behaviour whose epsilon is its value at `num_steps` alone."""
        if isinstance(make_behaviour, Behaviour):
            return make_behaviour
        num_steps = options.num_steps
        made = make_behaviour(lambda n: jnp.where(n == num_steps, epsilon, 1.0 - epsilon))
        wrong = f"it makes a {type(made).__name__}: it must make a Behaviour of a schedule"
        require.that(isinstance(made, Behaviour), wrong)
        return made

    def play() -> str:
        epsilons = {"some": _SOME, "none": _ALMOST_NO, "all": _ALL}
        if isinstance(make_behaviour, Behaviour):
            epsilons = {"some": _SOME}
        plays.update(_play_all(make, epsilons, key, options))
        return f"{_NUM_LANES} environments"

    checks = [attempt("shapes and dtypes", lambda: _check_types(make(_SOME), key, options))]
    if checks[0].passed:
        checks.append(attempt("same keys, same actions", play))
    if not plays:
        return checks
    why = "it is not made of a schedule: pass what makes it, such as epsilon_greedy_behaviour"
    unmade = "as told" if options.outlives_episodes else "its state holds nothing but keys"
    return [
        *checks,
        attempt("other keys, other actions", _check_streams, plays, why_not="it is greedy here"),
        attempt("the prefill is uniform", _check_prefill, plays),
        attempt("legal actions alone", _check_legal, plays, why_not="as told (knows_legal)"),
        attempt("greedy where epsilon is 0", _check_epsilon, plays, options, why_not=why),
        attempt("the probability", _check_probability, plays, options, why_not="none is written"),
        attempt("an episode begins afresh", _check_starts, plays, why_not=unmade),
    ]


def _situations(options: _Options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws values `[T, K, A]` (one head by default), legal actions `[T, A]`, and firsts `[T]`."""
    rng = np.random.default_rng(0)
    num_heads, num_actions = options.num_heads or 1, options.num_actions
    order = np.broadcast_to(np.arange(num_actions), (_NUM_STEPS, num_heads, num_actions))
    values = 0.25 * rng.permuted(order, axis=2) + rng.uniform(0, 0.1, order.shape)
    is_legal = rng.random((_NUM_STEPS, num_actions)) < 0.6
    is_legal[np.arange(_NUM_STEPS), rng.integers(0, num_actions, _NUM_STEPS)] = True
    return values.astype(np.float32), is_legal, np.arange(_NUM_STEPS) % _EPISODE == 0


def _situation(
    options: _Options, values: Array, is_first: Array, is_prefill: bool, is_legal: Array | None
) -> Situation:
    """Makes ONE situation of the values `[K, A]`."""
    values = values if options.num_heads else values[0]
    q_values = values.mean(0) if options.num_heads else values
    counted = (is_first, jnp.int32(options.num_steps), is_prefill, is_legal)
    return Situation(options.obs, options.make_output(values), q_values, *counted)


def _check_types(behaviour: Behaviour, key: Array, options: _Options) -> str:
    values, is_legal, is_first = (jnp.asarray(x[0]) for x in _situations(options))
    state = find_types("Behaviour.init", _ONE_ENVIRONMENT, behaviour.init, key)
    written: Any = None
    for is_prefill in (False, True):
        for legal in (None, is_legal) if options.knows_legal else (None,):
            where = f"Behaviour.act {'in the prefill' if is_prefill else 'after the prefill'}"

            def act(
                state: ArrayTree, key: Array, legal: Any = legal, flag: Any = is_prefill
            ) -> Any:
                return behaviour.act(state, key, _situation(options, values, is_first, flag, legal))

            answer = find_types(where, _ONE_ENVIRONMENT, act, state, key)
            is_right = isinstance(answer, tuple) and len(answer) == 3
            require.that(
                is_right, f"{where} gives {answer!r}: it must give (state, action, extras)"
            )
            new, action, extras = answer
            is_right = getattr(action, "shape", None) == () and action.dtype == jnp.int32
            wrong = f"the action of {where} is {describe_type(action)}: it must be int32[]"
            require.that(is_right, wrong)
            wrong = f"{where} changes the types of the state, so that scan cannot carry it"
            require.same_types(state, new, wrong, "keep every shape and dtype")
            is_right = isinstance(extras, dict) and all(isinstance(x, str) for x in extras)
            wrong = (
                f"the extras of {where} are {extras!r}: they must be a dict by name, if only {{}}"
            )
            require.that(is_right, wrong)
            wrong = "what Behaviour.act writes down differs from the prefill to afterwards"
            written = extras if written is None else written
            require.same_types(written, extras, wrong, "always write the same, of one dtype")
    return describe_type(action)


def _play_all(
    make: Callable[[Array | float], Behaviour],
    epsilons: dict[str, float],
    key: Array,
    options: _Options,
) -> dict[str, _Play]:
    """Plays each way; "afresh" and "mixed" begin an episode in states of their own, and of others.

    In the latter a lane has its own keys, and its neighbour's state.
    """

    def play(epsilons: Array, init_keys: Array, keys: Array, late_keys: Array) -> dict[str, Any]:
        def begin(epsilon: Array, *way: bool) -> Any:
            init_copies, copies = clone_keys((init_keys, keys))
            states = jax.vmap(make(epsilon).init)(init_copies)
            return _roll(make(epsilon), options, states, copies, *way)

        def go_on(states: ArrayTree) -> Any:
            behaviour, keys = make(epsilons[0]), jax.random.clone(late_keys)
            return _roll(behaviour, options, states, keys, False, False)[1]

        played = {}
        for suffix in ("", ", legal") if options.knows_legal else ("",):
            played[f"prefill{suffix}"] = begin(epsilons[0], True, bool(suffix))[1]
            over = jax.vmap(lambda epsilon, legal=bool(suffix): begin(epsilon, False, legal))
            states, played[suffix] = over(epsilons)
            if not suffix:
                late = jax.tree.map(lambda x: x[0], states)
        if require.drop_keys(late) and not options.outlives_episodes:
            others = jax.tree.map(lambda x: x if is_key(x) else jnp.roll(x, 1, 0), late)
            played |= {"afresh": go_on(clone_keys(late)), "mixed": go_on(clone_keys(others))}
        return played

    program = pure_jit("Behaviour.init and Behaviour.act", _ONE_ENVIRONMENT, play)
    keys = jax.random.split(key, (1 + _NUM_STEPS + _EPISODE, _NUM_LANES))
    given = keys[0], keys[1 : 1 + _NUM_STEPS], keys[1 + _NUM_STEPS :]
    found = to_numpy(program(jnp.asarray([*epsilons.values()]), *given))
    for suffix in ("", ", legal") if options.knows_legal else ("",):
        stacked = found.pop(suffix)
        for i, name in enumerate(epsilons):
            found[name + suffix] = jax.tree.map(lambda x, i=i: x[i], stacked)
    return {name: _make_play(name, played, options) for name, played in found.items()}


def _roll(
    behaviour: Behaviour,
    options: _Options,
    states: ArrayTree,
    keys: Array,
    is_prefill: bool,
    has_legal: bool,
) -> Any:
    """Plays all lanes with keys `[T, lanes]`: `(states, (actions, extras))`, by time first."""

    def act(state: ArrayTree, key: Array, here: Any) -> Any:
        value, is_legal, is_first = here
        facts = (value, is_first, is_prefill, is_legal if has_legal else None)
        return behaviour.act(state, key, _situation(options, *facts))

    def step(states: ArrayTree, xs: Any) -> Any:
        states, *rest = jax.vmap(act, in_axes=(0, 0, None))(states, *xs)
        return states, rest

    here = tuple(jnp.asarray(x[: len(keys)]) for x in _situations(options))
    return jax.lax.scan(step, states, (keys, here))


def _make_play(name: str, played: Any, options: _Options) -> _Play:
    actions, extras = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), played)
    values, is_legal, is_first = (x[: actions.shape[1]] for x in _situations(options))
    is_legal = is_legal | ("legal" not in name)
    return _Play(actions, extras, _find_greedy(actions, values, is_legal, is_first), is_legal)


def _find_greedy(
    actions: np.ndarray, values: np.ndarray, is_legal: np.ndarray, is_first: np.ndarray
) -> np.ndarray:
    """Finds `[lanes, T]` where some head is followed greedily through the whole episode."""
    best = np.where(is_legal[:, np.newaxis], values, -np.inf).argmax(2)  # [T, K]
    fits = actions[:, :, np.newaxis] == best
    if best.shape[1] == 1:
        return fits[:, :, 0]
    begins = np.flatnonzero(is_first)
    each = np.logical_and.reduceat(fits, begins, axis=1).any(2)
    return np.repeat(each, np.diff([*begins, len(is_first)]), axis=1)


def _is_shared(play: _Play) -> bool:
    """Tells whether all lanes always take the same action."""
    return bool((play.actions == play.actions[:1]).all())


def _check_streams(plays: dict[str, _Play]) -> str | None:
    wrong = "all environments, and all seeds, take the same actions {}: they share a stream; {}"
    expect(not _is_shared(plays["prefill"]), "1 stream", wrong.format("in the prefill", _DRAW))
    moves = np.diff(plays["prefill"].actions, axis=1).any()
    again = "in the prefill each environment takes one action over and over: the key is the same"
    expect(moves, "no change", f"{again} at each step; {_DRAW}, which it renews")
    most = plays.get("all", plays["some"])
    if "all" not in plays and most.is_greedy.all():
        return None
    expect(not _is_shared(most), "1 stream", wrong.format("after the prefill", _DRAW))
    return f"{len(np.unique(most.actions, axis=0))} different"


def _check_prefill(plays: dict[str, _Play]) -> str:
    largest = 0.0
    for name in sorted(plays.keys() & {"prefill", "prefill, legal"}):
        actions, is_legal = plays[name].actions, plays[name].is_legal
        expected = is_legal / is_legal.sum(1, keepdims=True)  # [T, A]
        counts = (actions[:, :, np.newaxis] == np.arange(is_legal.shape[1])).sum(0)
        spread = np.sqrt(_NUM_LANES * expected * (1 - expected))
        off = np.abs(counts - _NUM_LANES * expected) / np.maximum(spread, 1e-3)
        t, a = np.unravel_index(off.argmax(), off.shape)
        among = f"{is_legal[t].sum()} legal of " if "legal" in name else ""
        wrong = (
            f"in the prefill action {a} is taken in {counts[t, a] / _NUM_LANES:.1%} of "
            f"environments, and uniformly at random among {among}{len(counts[t])} actions it is "
            f"{expected[t, a]:.1%}: where Situation.is_prefill, draw from all legal ones alike"
        )
        expect(off[t, a] < _SIGMAS, f"{off[t, a]:.2g} sigma", wrong)
        largest = max(largest, float(off[t, a]))
    return f"{largest:.2g} sigma"


def _check_legal(plays: dict[str, _Play]) -> str | None:
    for name, play in plays.items():
        allowed = np.take_along_axis(play.is_legal[np.newaxis], play.actions[:, :, np.newaxis], 2)
        share = 1 - float(allowed.mean())
        when = "in the prefill" if "prefill" in name else "after the prefill"
        wrong = (
            f"{when} {share:.1%} of actions are not legal: choose among Situation.is_legal alone, "
            "at random and greedily, and let go of one that is not legal any more. Where all "
            "always are: knows_legal=False"
        )
        expect(share == 0, f"{share:.1%}", wrong)
    return "0.0%" if "some, legal" in plays else None


def _check_epsilon(plays: dict[str, _Play], options: _Options) -> str | None:
    if "none" not in plays:
        return None
    for name in plays.keys() & {"none", "none, legal"}:
        share = float(plays[name].is_greedy.mean())
        wrong = (
            f"with an epsilon of 0 only {share:.1%} of actions are the best{name[4:]} ones (of a "
            "head that is kept through the episode, with num_heads): read epsilon at "
            "Situation.num_steps, and take the action of the highest value"
        )
        expect(share > 0.999, f"{share:.1%}", wrong)
    is_one = (options.num_heads or 1) > 1 and _is_shared(plays["none"])
    wrong = "all environments, and all seeds, follow the same head through each episode"
    expect(not is_one, "1 head", f"{wrong}: draw it from the key")
    share = float(plays["all"].is_greedy.mean())
    wrong = (
        f"with an epsilon of 1 {share:.1%} of actions are greedy: epsilon does not count, or is "
        "not that of Situation.num_steps"
    )
    return expect(share < 0.99, f"{share:.1%} where it is 1", wrong)


def _check_probability(plays: dict[str, _Play], options: _Options) -> str | None:
    """Checks that actions over their probabilities count 1, as corrections of returns need it."""
    largest, num_judged = 0.0, 0
    for name in ("prefill", "prefill, legal", "some", "some, legal"):
        if name not in plays or "probability" not in plays[name].extras:
            continue
        actions, extras, *_ = plays[name]
        given = extras["probability"].astype(np.float64)
        is_right = given.shape == actions.shape and (given > 0).all() and (given < 1 + 1e-5).all()
        wrong = (
            f"a probability is {given.min():.3g} to {given.max():.3g}: one number in (0, 1] each"
        )
        expect(is_right, f"{given.max():.3g}", wrong)
        for t, a in np.ndindex(_NUM_STEPS, options.num_actions):
            taken = actions[:, t] == a
            if taken.sum() < 50:
                continue
            counted = np.where(taken, 1 / given[:, t], 0.0)
            off = counted.mean() - 1
            # What a state holds on to may leave an action without any chance.
            is_fresh = t == 0 or (t % _EPISODE == 0 and not options.outlives_episodes)
            off = abs(off) if is_fresh else max(off, 0.0)
            sigmas = max(off - 1e-4, 0) / max(counted.std() / np.sqrt(_NUM_LANES), 1e-9)
            largest, num_judged = max(largest, sigmas), num_judged + 1
            when = "in the prefill" if "prefill" in name else "after the prefill"
            among = ", where not all are legal," if "legal" in name else ""
            wrong = (
                f"{when} action {a}{among} is taken in {taken.mean():.1%} of environments, and the "
                f"probability that is written down says {given[taken, t].mean():.1%}: write how "
                "likely the action was that is taken, epsilon's share of it included"
            )
            expect(sigmas < _SIGMAS, f"{sigmas:.2g} sigma", wrong)
    return f"{largest:.2g} sigma" if num_judged else None


def _check_starts(plays: dict[str, _Play]) -> str | None:
    if "afresh" not in plays:
        return None
    same = plays["afresh"].actions == plays["mixed"].actions
    share = 1 - float(same.mean())
    wrong = (
        f"the state of the episode before changes {share:.1%} of actions of the next one: where "
        "Situation.is_first, let go of what it holds on to, or draw it anew. Where that is meant: "
        "outlives_episodes=True"
    )
    return expect(share == 0, f"{share:.1%}", wrong)
