"""Checks that a behaviour keeps its contract."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.plays import (
    EPISODE,
    NUM_LANES,
    NUM_STEPS,
    ONE_ENVIRONMENT,
    Options,
    Play,
    draw_situations,
    make_situation,
    play_all,
)
from purejaxdqn.testing.programs import find_types
from purejaxdqn.testing.report import Check, Report, attempt, expect, print_and_raise, unprinted
from purejaxdqn.testing.require import describe_type
from purejaxdqn.types import Array, ArrayTree, Behaviour, Schedule

MakeBehaviour = Callable[[Schedule], Behaviour]

_ALMOST_NO, _SOME, _ALL = 1e-7, 0.5, 1.0  # a temperature of 0 itself would divide by 0
_SIGMAS = 6.0
_DRAW = "draw from the key of act, or from a state that init draws from its own key"


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
    keeps_head: bool = True,
) -> Report:
    """Checks a behaviour, prints a table with a row a check, and raises if one failed.

    - It works under `jit`, `scan` and `vmap`; its state and its extras keep shapes and dtypes, in
      the prefill too; the action is an int32 scalar. No key is used twice.
    - Environments and seeds have streams of their own: other keys, other actions.
    - In the prefill it is uniformly random, among the legal actions. No illegal one is ever taken.
    - With an epsilon of 0 it is greedy, with one of 1 it explores each action, at the situation's
      `num_steps`. It is 1e-7 and not 0, so that a temperature can be judged too.
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
      keeps_head: False for one that may follow another head at each step, as a vote of all does.
    """
    key = jax.random.key(0) if key is None else key
    name = getattr(make_behaviour, "__qualname__", None) or type(make_behaviour).__name__
    shape = (num_actions, num_heads, make_output, jnp.zeros(4) if obs is None else obs, num_steps)
    options = Options(*shape, knows_legal, outlives_episodes, keeps_head)
    return Report(name, tuple(_check_all(make_behaviour, key, options)))


behaviour_report = unprinted(check_behaviour)


def _check_all(
    make_behaviour: MakeBehaviour | Behaviour, key: Array, options: Options
) -> list[Check]:
    plays: dict[str, Play] = {}

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
        plays.update(play_all(make, epsilons, key, options))
        return f"{NUM_LANES} environments"

    checks = [attempt("shapes and dtypes", lambda: _check_types(make(_SOME), key, options))]
    if checks[0].passed:
        checks.append(attempt("same keys, same actions", play))
    if not plays:
        return checks
    look = functools.partial(_check_streams, draws=_draws_actions(make(_SOME), key, options))
    why = "it is not made of a schedule: pass what makes it, such as epsilon_greedy_behaviour"
    unmade = "as told" if options.outlives_episodes else "its state holds nothing but keys"
    return [
        *checks,
        attempt(
            "other keys, other actions", look, plays, why_not="it is greedy here, or draws nothing"
        ),
        attempt("the prefill is uniform", _check_prefill, plays),
        attempt("legal actions alone", _check_legal, plays, why_not="as told (knows_legal)"),
        attempt("greedy where epsilon is 0", _check_epsilon, plays, options, why_not=why),
        attempt("the probability", _check_probability, plays, options, why_not="none is written"),
        attempt("an episode begins afresh", _check_starts, plays, why_not=unmade),
    ]


def _check_types(behaviour: Behaviour, key: Array, options: Options) -> str:
    values, is_legal, is_first = (jnp.asarray(x[0]) for x in draw_situations(options))
    state = find_types("Behaviour.init", ONE_ENVIRONMENT, behaviour.init, key)
    written: Any = None
    for is_prefill in (False, True):
        for legal in (None, is_legal) if options.knows_legal else (None,):
            where = f"Behaviour.act {'in the prefill' if is_prefill else 'after the prefill'}"

            def act(
                state: ArrayTree, key: Array, legal: Any = legal, flag: Any = is_prefill
            ) -> Any:
                return behaviour.act(
                    state, key, make_situation(options, values, is_first, flag, legal)
                )

            answer = find_types(where, ONE_ENVIRONMENT, act, state, key)
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


def _is_shared(play: Play) -> bool:
    """Tells whether all lanes always take the same action."""
    return bool((play.actions == play.actions[:1]).all())


def _draws_actions(behaviour: Behaviour, key: Array, options: Options) -> bool:
    """Tells whether a behaviour draws random numbers after the prefill."""
    values, _, is_first = (jnp.asarray(x[0]) for x in draw_situations(options))

    def act(state: ArrayTree, key: Array) -> Any:
        here = make_situation(options, values, is_first, False, None)
        return behaviour.act(state, key, here)

    state = jax.eval_shape(behaviour.init, key)
    return "random_bits" in str(jax.make_jaxpr(act)(state, key))


def _check_streams(plays: dict[str, Play], draws: bool) -> str | None:
    wrong = "all environments, and all seeds, take the same actions {}: they share a stream; {}"
    expect(not _is_shared(plays["prefill"]), "1 stream", wrong.format("in the prefill", _DRAW))
    moves = np.diff(plays["prefill"].actions, axis=1).any()
    again = "in the prefill each environment takes one action over and over: the key is the same"
    expect(moves, "no change", f"{again} at each step; {_DRAW}, which it renews")
    most = plays.get("all", plays["some"])
    if not draws or ("all" not in plays and most.is_greedy.all()):
        return None
    expect(not _is_shared(most), "1 stream", wrong.format("after the prefill", _DRAW))
    return f"{len(np.unique(most.actions, axis=0))} different"


def _check_prefill(plays: dict[str, Play]) -> str:
    largest = 0.0
    for name in sorted(plays.keys() & {"prefill", "prefill, legal"}):
        actions, is_legal = plays[name].actions, plays[name].is_legal
        expected = is_legal / is_legal.sum(1, keepdims=True)  # [T, A]
        counts = (actions[:, :, np.newaxis] == np.arange(is_legal.shape[1])).sum(0)
        spread = np.sqrt(NUM_LANES * expected * (1 - expected))
        off = np.abs(counts - NUM_LANES * expected) / np.maximum(spread, 1e-3)
        t, a = np.unravel_index(off.argmax(), off.shape)
        among = f"{is_legal[t].sum()} legal of " if "legal" in name else ""
        wrong = (
            f"in the prefill action {a} is taken in {counts[t, a] / NUM_LANES:.1%} of "
            f"environments, and uniformly at random among {among}{len(counts[t])} actions it is "
            f"{expected[t, a]:.1%}: where Situation.is_prefill, draw from all legal ones alike"
        )
        expect(off[t, a] < _SIGMAS, f"{off[t, a]:.2g} sigma", wrong)
        largest = max(largest, float(off[t, a]))
    return f"{largest:.2g} sigma"


def _check_legal(plays: dict[str, Play]) -> str | None:
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


def _check_epsilon(plays: dict[str, Play], options: Options) -> str | None:
    if "none" not in plays:
        return None
    for name in plays.keys() & {"none", "none, legal"}:
        share = float(plays[name].is_greedy.mean())
        wrong = (
            f"with an epsilon of 0 only {share:.1%} of actions are the best{name[4:]} ones (of a "
            "head that is kept through the episode, with num_heads and keeps_head): read epsilon "
            "at Situation.num_steps, and take the action of the highest value"
        )
        expect(share > 0.999, f"{share:.1%}", wrong)
    is_one = options.keeps_head and (options.num_heads or 1) > 1 and _is_shared(plays["none"])
    wrong = "all environments, and all seeds, follow the same head through each episode"
    expect(not is_one, "1 head", f"{wrong}: draw it from the key")
    share = float(plays["all"].is_greedy.mean())
    wrong = (
        f"with an epsilon of 1 {share:.1%} of actions are greedy: epsilon does not count, or is "
        "not that of Situation.num_steps"
    )
    expect(share < 0.99, f"{share:.1%} where it is 1", wrong)
    explored = plays["all"].actions[~plays["all"].is_greedy]
    missed = np.setdiff1d(np.arange(options.num_actions), explored)
    wrong = (
        f"with an epsilon of 1 actions {missed.tolist()} are never taken but where they are best"
    )
    return expect(not len(missed), f"{share:.1%} where it is 1", f"{wrong}: explore all of them")


def _check_probability(plays: dict[str, Play], options: Options) -> str | None:
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
        for t, a in np.ndindex(NUM_STEPS, options.num_actions):
            taken = actions[:, t] == a
            if taken.sum() < 50:
                continue
            counted = np.where(taken, 1 / given[:, t], 0.0)
            off = counted.mean() - 1
            # What a state holds on to may leave an action without any chance.
            is_fresh = t == 0 or (t % EPISODE == 0 and not options.outlives_episodes)
            off = abs(off) if is_fresh else max(off, 0.0)
            sigmas = max(off - 1e-4, 0) / max(counted.std() / np.sqrt(NUM_LANES), 1e-9)
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


def _check_starts(plays: dict[str, Play]) -> str | None:
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
