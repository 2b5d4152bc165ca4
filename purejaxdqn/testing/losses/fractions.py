"""Checks that a quantile loss takes fractions and weights as the network gives them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.networks import mean_of_quantiles
from purejaxdqn.testing.losses.single_transitions import FAST_COMPILE, Subject, find_size
from purejaxdqn.testing.report import Check, attempt, expect, find_true
from purejaxdqn.testing.tabular.decision_processes import NUM_ACTIONS
from purejaxdqn.types import Array, Network, ProposedQuantiles, Quantiles, Transition

_NUM, _NUM_CASES = 8, 32  # quantiles; transitions
_FAR = 1e4  # so far apart that a Huber penalty is almost linear


def _make_network(kind: Any) -> Network[Any]:
    """Makes a table `[S, A, 3 * N - 2]` of values, boundaries and the quantiles at these."""

    def apply(params: Array, obs: Array, key: Array | None = None) -> Any:
        raw = jnp.tensordot(obs.astype(params.dtype), params, 1)
        values, boundaries, others = jnp.split(raw, (_NUM, 2 * _NUM - 1), axis=1)
        edges = jnp.concatenate([jnp.zeros(1), boundaries[0], jnp.ones(1)]).astype(raw.dtype)
        fractions, weights = (edges[1:] + edges[:-1]) / 2, jnp.diff(edges)
        if kind is Quantiles:
            return Quantiles(values, *jax.lax.stop_gradient((fractions, weights)))
        return ProposedQuantiles(values, fractions, weights, boundaries[0], others)

    return Network(lambda key, obs: None, apply, mean_of_quantiles)


class _Answers:
    """A loss's gradients where the target's quantiles are far from the predicted ones."""

    def __init__(self, subject: Subject, kind: Any) -> None:
        rng, cases = np.random.default_rng(11), subject.cases
        scalars = [x[:_NUM_CASES] for x in cases[4:]]
        self.action, r_t, discount_t = scalars
        parts = rng.uniform(0.3, 1.7, (2, _NUM_CASES, _NUM))
        weights = parts / parts.sum(2, keepdims=True)
        edges = np.cumsum(weights, axis=2)
        self.fractions, self.target_fractions = edges - weights / 2
        self.weights, self.target_weights = weights
        grid = np.broadcast_to(np.linspace(-_FAR, _FAR, _NUM), (_NUM_CASES, _NUM))
        z_t = rng.permuted(grid, axis=1) + rng.uniform(-500, 500, grid.shape)
        self.targets = r_t[:, np.newaxis] + discount_t[:, np.newaxis] * z_t
        ranked = np.sort(self.targets, axis=1)
        gaps = np.concatenate([ranked[:, :1] - 1e3, ranked, ranked[:, -1:] + 1e3], axis=1)
        places = rng.integers(0, _NUM + 1, grid.shape)
        self.values = np.take_along_axis((gaps[:, 1:] + gaps[:, :-1]) / 2, places, axis=1)
        self.beyond = rng.uniform(-_FAR, _FAR, (_NUM_CASES, _NUM - 1))

        def make(*sides: Any) -> np.ndarray:
            tables = np.zeros((_NUM_CASES, 2, NUM_ACTIONS, 3 * _NUM - 2))
            for i, (values, edges) in enumerate(sides):
                tables[:, i, :, :_NUM] = values[:, np.newaxis]
                tables[:, i, :, :_NUM] += 0.5 * np.arange(NUM_ACTIONS)[:, np.newaxis]
                tables[:, i, :, _NUM : 2 * _NUM - 1] = edges[:, np.newaxis, :-1]
                tables[:, i, :, 2 * _NUM - 1 :] = self.beyond[:, np.newaxis]
            return tables

        following = (z_t, edges[1])
        before = make((self.values, edges[0]), following)
        self.values = before[np.arange(_NUM_CASES), 0, self.action, :_NUM]
        network, obs = _make_network(kind), np.eye(2, dtype=np.float32)

        def loss(online: Array, target: Array, key: Array, *scalars: Array) -> Array:
            fields: Any = (jnp.asarray(obs[0]), *scalars, jnp.asarray(obs[1]))
            transition = Transition._make((*fields, jnp.zeros((), bool), {}))
            return subject.loss_fn(network, online, target, transition, key).loss

        gradient = jax.jit(jax.vmap(jax.grad(loss, (0, 1))), compiler_options=FAST_COMPILE)
        with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
            keys = jax.random.split(jax.random.key(0), _NUM_CASES)
            given = (before, make(following, following), keys, self.action, r_t, discount_t)
            self.grad, self.target_grad = map(np.asarray, gradient(*given))

    @property
    def taken(self) -> np.ndarray:
        """`[cases, 3 * N - 2]` the gradient of what the action taken has at `obs_tm1`."""
        return self.grad[np.arange(_NUM_CASES), 0, self.action]

    def pull(self, fractions: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Computes the gradient `[cases, N]` that such fractions and weights would give."""
        is_below = self.targets[:, np.newaxis] < self.values[:, :, np.newaxis]
        return (is_below * weights[:, np.newaxis]).sum(2) - fractions


def check_fractions(subject: Subject) -> list[Check]:
    """Makes the rows on fractions and weights that are unequal, and on those that are proposed."""
    plain = _find_answers(subject, Quantiles)
    proposed = _find_answers(subject, ProposedQuantiles)
    why = "it has no loss of the fractions themselves, for a network that proposes them"
    given = (proposed, plain is None)
    return [
        attempt("fractions and weights as given", _check_given, plain or proposed),
        attempt("the proposal of fractions", _check_proposal, *given, why_not=why),
    ]


def _find_answers(subject: Subject, kind: Any) -> _Answers | None:
    try:
        return _Answers(subject, kind)
    except (AttributeError, AssertionError, TypeError):  # it is for the other kind
        return None


def _differ(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns how far two gradients `[cases, N]` differ but for a factor above 0 in each case."""
    sizes = (np.maximum(np.abs(x).max(1, keepdims=True), 1e-12) for x in (found, expected))
    return find_size(found / next(sizes) - expected / next(sizes))


def _check_given(answers: _Answers) -> str:
    found = answers.taken[:, :_NUM]
    of, weights = answers.fractions, answers.target_weights
    same = np.full_like(weights, 1 / _NUM)
    middle = np.broadcast_to((np.arange(_NUM) + 0.5) / _NUM, of.shape)
    error = _differ(found, answers.pull(of, weights))
    others = {
        "the midpoints (i + 0.5) / N are assumed: take the fractions that the network gives": (
            *(middle, weights),
        ),
        "the weights are ignored: each quantile of the target counts as much as its weight": (
            *(of, same),
        ),
        "midpoints are assumed, and the weights are ignored: take what the network gives": (
            *(middle, same),
        ),
        "it takes the target's fractions for those of the prediction": (
            *(answers.target_fractions, weights),
        ),
        "it weighs the target's quantiles by the weights of the predicted ones": (
            *(of, answers.weights),
        ),
    }
    fits = {text: _differ(found, answers.pull(*x)) < 1e-2 for text, x in others.items()}
    why = {**fits, "a loss of quantiles must not count them all alike": True}
    wrong = (
        "where fractions and weights differ (as where they are drawn or proposed), gradients are "
        f"off by a share of {error:.2g}: {find_true(why)[0]}"
    )
    return expect(error < 1e-2, f"{error:.1e}", wrong)


def _check_proposal(answers: _Answers | None, is_meant: bool) -> str | None:
    if answers is None:
        return None
    found = answers.grad[:, 0, 0, _NUM : 2 * _NUM - 1]
    if not found.any():
        wrong = "no gradient reaches the boundaries, so that the proposal would never be learned"
        expect(not is_meant, "0", wrong)
        return None
    slope = 2 * answers.beyond - answers.values[:, 1:] - answers.values[:, :-1]
    error, other = _differ(found, slope), _differ(found, -slope)
    why = {
        "it has the wrong sign, and leads away from the best fractions": other < 1e-2,
        "the quantile loss reaches the fractions or weights too: stop its gradient there, and that "
        "of the quantiles in the fractions' own loss": True,
    }
    wrong = (
        "the gradient of a boundary must be 2 F(boundary) - F(midpoint before) - F(midpoint after) "
        f"and is off by a share of {error:.2g}: {find_true(why)[0]}"
    )
    expect(error < 1e-2, f"{error:.1e}", wrong)
    leaks = answers.taken[:, 2 * _NUM - 1 :].any() or answers.target_grad.any()
    wrong = "the fractions' loss reaches the quantiles at the boundaries, or the target network"
    return expect(not leaks, f"{error:.1e}", f"{wrong}: stop its gradient there")
