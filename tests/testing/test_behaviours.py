"""`check_behaviour`: sound behaviours pass, and each kind of broken one is found."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from purejaxdqn import behaviours
from purejaxdqn.behaviours import epsilon_greedy, epsilon_greedy_behaviour
from purejaxdqn.testing import behaviour_report, check_behaviour
from purejaxdqn.types import Behaviour


def of_act(act, init=lambda key: None):
    """`make_behaviour` of `act(epsilon, state, key, situation)`."""
    return lambda epsilon: Behaviour(functools.partial(act, epsilon), init)


def current(epsilon, here):
    return 1.0 if here.is_prefill else epsilon(here.num_steps)


def changed(change):
    """Epsilon-greedy with what `change(key, situation)` makes of its arguments."""

    def act(epsilon, state, key, here):
        return epsilon_greedy_behaviour(epsilon).act(state, *change(key, here))

    return of_act(act)


def answering(change):
    """Epsilon-greedy with its answer changed by `change(state, action, extras, situation)`."""

    def act(epsilon, state, key, here):
        answer = epsilon_greedy_behaviour(epsilon, write_probability=True).act(None, key, here)
        return change(state, *answer[1:], here)

    return of_act(act, lambda key: jnp.zeros(2))


def with_probability(probability):
    return answering(lambda s, a, x, here: (s, a, {"probability": probability(x["probability"])}))


def fixed(epsilon):
    return of_act(
        lambda _, s, key, here: (
            s,
            epsilon_greedy(key, here.q_values, 1.0 if here.is_prefill else epsilon, here.is_legal),
            {},
        )
    )


def key_twice(epsilon, state, key, here):
    action = epsilon_greedy(key, here.q_values, current(epsilon, here), here.is_legal)
    return state, action, {"mask": jax.random.bernoulli(key, 0.5, (3,))}


def late_epsilon(epsilon, state, key, here):
    value = 1.0 if here.is_prefill else epsilon(here.num_steps + 1)
    return state, epsilon_greedy(key, here.q_values, value, here.is_legal), {}


def draws_a_head_each_step(epsilon, state, key, here):
    head_key, key = jax.random.split(key)
    head = jax.random.randint(head_key, (), 0, 3)
    values = here.output[head]
    return head, epsilon_greedy(key, values, current(epsilon, here), here.is_legal), {}


def keeps_a_head_for_good(epsilon, state, key, here):
    values = here.output[state]
    return state, epsilon_greedy(key, values, current(epsilon, here), here.is_legal), {}


def holds_on(epsilon, state, key, here):
    """Actions are repeated with probability a half, over episodes' ends too."""
    repeat_key, key = jax.random.split(key)
    action = epsilon_greedy(key, here.q_values, current(epsilon, here), here.is_legal)
    if here.is_prefill:
        return action, action, {}
    can = True if here.is_legal is None else here.is_legal[state]
    repeats = jax.random.bernoulli(repeat_key, 0.5 * current(epsilon, here)) & can
    action = jnp.where(repeats, state, action)
    return action, action, {}


def of_its_own_stream(epsilon, state, key, here):
    """Draws from a key in its state, which `init` was given."""
    state, key = jax.random.split(state)
    return state, epsilon_greedy(key, here.q_values, current(epsilon, here), here.is_legal), {}


def of_a_stream_that_stands_still(epsilon, state, key, here):
    use = jax.random.clone(state)
    return state, epsilon_greedy(use, here.q_values, current(epsilon, here), here.is_legal), {}


def by_counts(epsilon, state, key, here):
    """Prefers actions that were seldom taken, in all episodes so far."""
    values = here.q_values + current(epsilon, here) / jnp.sqrt(1.0 + state)
    action = epsilon_greedy(key, values, current(epsilon, here), here.is_legal)
    return state.at[action].add(1.0), action, {}


def constant(seed):
    return lambda key: jax.random.key(seed)


BEHAVIOURS = {
    "constant key": (changed(lambda key, here: (jax.random.key(0), here)), "they share a stream"),
    "key of the clock": (
        changed(lambda key, here: (jax.random.key(here.num_steps), here)),
        "they share a stream",
    ),
    "a constant key in the state": (
        of_act(of_its_own_stream, constant(3)),
        "they share a stream",
    ),
    "a key that stands still": (
        of_act(of_a_stream_that_stands_still, lambda key: key),
        "one action over and over",
    ),
    "key used twice": (of_act(key_twice), "uses a PRNG key twice"),
    "prefill ignored": (
        changed(lambda key, here: (key, here._replace(is_prefill=False))),
        r"the prefill is uniform: .* draw from all legal ones alike",
    ),
    "an action that is never drawn": (
        answering(lambda s, a, x, here: (s, jnp.minimum(a, 2), {})),
        "the prefill is uniform: .* among 4 actions it is 25.0%",
    ),
    "illegal actions": (
        changed(lambda key, here: (key, here._replace(is_legal=None))),
        "of actions are not legal",
    ),
    "wrong probability": (with_probability(lambda p: p * 0.9), "the probability that is written"),
    "probability without epsilon's share": (
        with_probability(lambda p: jnp.where(p > 0.5, p - 0.125, p)),
        "the probability that is written down says 50.0%",
    ),
    "logarithm of the probability": (with_probability(jnp.log), r"one number in \(0, 1\]"),
    "probability of the prefill": (
        with_probability(lambda p: jnp.full_like(p, 0.25)),
        "the prefill action .* the probability that is written down says 25.0%",
    ),
    "epsilon ignored": (fixed(0.1), "with an epsilon of 0 only"),
    "epsilon ignored, and greedy": (fixed(0.0), "with an epsilon of 1 100.0% of actions"),
    "epsilon of another time": (of_act(late_epsilon), "with an epsilon of 0 only"),
    "the lowest value": (
        changed(lambda key, here: (key, here._replace(q_values=-here.q_values))),
        "with an epsilon of 0 only 0.0%",
    ),
    "a float": (
        answering(lambda s, a, x, here: (s, a.astype(jnp.float32), {})),
        r"is float32\[\]: it must be int32",
    ),
    "a batch": (answering(lambda s, a, x, here: (s, a[None], {})), r"is int32\[1\]"),
    "a state that grows": (
        answering(lambda s, a, x, here: (jnp.append(s, 0.0), a, {})),
        "changes the types of the state",
    ),
    "extras after the prefill": (
        answering(lambda s, a, x, here: (s, a, {} if here.is_prefill else x)),
        "differs from the prefill to afterwards",
    ),
    "no extras": (answering(lambda s, a, x, here: (s, a)), r"it must give \(state, action, extras"),
    "an action held for another episode": (
        of_act(holds_on, lambda key: jnp.int32(0)),
        "the state of the episode before changes",
    ),
    "no Behaviour": (lambda epsilon: epsilon_greedy, "it must make a Behaviour of a schedule"),
}
HEADS = {
    "a head each step": (of_act(draws_a_head_each_step, lambda key: jnp.int32(0)), "a head that"),
    "a head for good": (
        of_act(keeps_a_head_for_good, lambda key: jax.random.randint(key, (), 0, 3)),
        "the state of the episode before",
    ),
    "one head for all": (
        of_act(keeps_a_head_for_good, lambda key: jnp.int32(1)),
        "follow the same head",
    ),
}


# The others are much like them.
FAST = {
    *("constant key", "a constant key in the state", "key used twice", "prefill ignored"),
    *("illegal actions", "probability without epsilon's share", "epsilon ignored", "a float"),
    *("a state that grows", "an action held for another episode", "a head each step"),
    *("epsilon_greedy", "boltzmann", "epsilon_z", "no schedule"),
}


def marked(names):
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in names]


@pytest.mark.parametrize("name", marked([*BEHAVIOURS, *HEADS]))
def test_broken(name):
    options: Any = {"num_heads": 3} if name in HEADS else {}
    make_behaviour, message = (BEHAVIOURS | HEADS)[name]
    with pytest.raises(AssertionError, match=message):
        check_behaviour(make_behaviour, **options)


def mask(key, here, action):
    return {"mask": jax.random.bernoulli(key, 0.5, (3,))}


def noisy_greedy(state, key, here):
    """No noise of its own: the network's is enough."""
    epsilon = 1.0 if here.is_prefill else 0.0
    return state, epsilon_greedy(key, here.q_values, epsilon, here.is_legal), {}


SOUND: dict[str, tuple[Any, dict[str, Any]]] = {
    "epsilon_greedy": (epsilon_greedy_behaviour, {}),
    "with its probability": (
        functools.partial(epsilon_greedy_behaviour, write_probability=True),
        {"num_actions": 2},
    ),
    "boltzmann": (functools.partial(behaviours.boltzmann_behaviour, write_probability=True), {}),
    "epsilon_z": (functools.partial(behaviours.epsilon_z_behaviour, longest=8), {}),
    "head": (lambda epsilon: behaviours.head_behaviour(epsilon, 3), {"num_heads": 3}),
    "with a mask": (
        lambda epsilon: behaviours.write_extras(epsilon_greedy_behaviour(epsilon), mask),
        {"num_actions": 3},
    ),
    "no schedule": (epsilon_greedy_behaviour(lambda count: 0.1, write_probability=True), {}),
    "greedy": (Behaviour(noisy_greedy), {}),
    "a stream of its own": (of_act(of_its_own_stream, lambda key: key), {}),
    "counts": (
        of_act(by_counts, lambda key: jnp.zeros(4)),
        {"outlives_episodes": True},
    ),
    "all are legal": (BEHAVIOURS["illegal actions"][0], {"knows_legal": False}),
    "another output": (
        lambda epsilon: behaviours.head_behaviour(epsilon, 2, lambda output: output["heads"]),
        {"num_heads": 2, "make_output": lambda values: {"heads": values}},
    ),
}


@pytest.mark.parametrize("name", marked(SOUND))
def test_sound(name):
    make_behaviour, options = SOUND[name]
    report = behaviour_report(make_behaviour, jax.random.key(len(name)), **options)
    assert report.failures == ()


def test_what_is_not_judged_says_why():
    report = behaviour_report(Behaviour(noisy_greedy))
    rows = {check.name: check.message for check in report.checks if check.passed is None}
    assert "it is not made of a schedule" in rows["greedy where epsilon is 0"]
    assert rows["other keys, other actions"] == "it is greedy here, or draws nothing"
    assert rows["the probability"] == "none is written"
