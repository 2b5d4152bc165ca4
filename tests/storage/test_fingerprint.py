"""A fingerprint names each change that may change numbers, and no other."""

# mypy: disable-error-code="arg-type, call-arg"

import dataclasses
import functools
import subprocess
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from purejaxdqn import DQNConfig, dqn, environments, losses, networks
from purejaxdqn.storage.fingerprint import find_unseen, fingerprint
from purejaxdqn.sweep.resume import find_differences


def scaled(c):
    def td_error(q_tm1, a_tm1, r_t, discount_t, q_t):
        return c * (r_t + discount_t * jnp.max(q_t) - q_tm1[a_tm1])

    return td_error


def module(source, name="mine"):
    """Makes a module of the user's from its source."""
    made = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), made.__dict__)
    return made


def made_with(source):
    return fingerprint(module(source).f)


SAME = {
    "comments": ("def f(x):\n    return x + 1", "def f(x):  # adds\n    # one\n    return x + 1"),
    "a docstring": ("def f(x):\n    return x + 1", "def f(x):\n    'Adds one.'\n    return x + 1"),
    "line numbers": ("def f(x):\n    return x + 1", "\n\n\ndef f(x):\n\n    return x + 1"),
    "layout": (
        "def f(x):\n    if x and x > 1: return g(x, 2)\n    return [i for i in x]",
        "def f(\n    x,\n):\n    if (\n        x\n        and x > 1\n    ):\n"
        "        return g(\n            x,\n            2,\n        )\n"
        "    return [\n        i for i in x\n    ]",
    ),
    "layout around jumps": (
        "def f(x):\n    with x as y: return y\n",
        "def f(x):\n    with x as y:\n        return (\n            y\n        )\n",
    ),
    "what it does not read": ("k = 1\ndef f(x):\n    return x", "k = 2\ndef f(x):\n    return x"),
    "annotations": ("def f(x):\n    return x", "def f(x: int) -> int:\n    return x"),
}


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_number_does_not_count(change):
    one, other = SAME[change]
    assert made_with(one) == made_with(other)


PRIMAL = "import jax\n@jax.custom_jvp\ndef f(x): return x\n"
DATA = "import dataclasses as d\n@d.dataclass\nclass f:\n"
TUPLE = "import typing\nclass A(typing.NamedTuple):\n    c: int\n    def g(self):\n"
ENUM = "import enum\nclass E(enum.Enum):\n    A = 1\n    B = 2\n"
OTHER = {
    "a constant": ("def f(x):\n    return x + 1", "def f(x):\n    return x + 2"),
    "an operation": ("def f(x):\n    return x + 1", "def f(x):\n    return x - 1"),
    "another order": ("def f(x, y):\n    return x - y", "def f(y, x):\n    return x - y"),
    "a default": ("def f(x, c=1.0):\n    return c * x", "def f(x, c=7.0):\n    return c * x"),
    "a keyword's default": ("def f(x, *, c=1):\n    return c", "def f(x, *, c=2):\n    return c"),
    "a number of the module": ("k = 1\ndef f(x):\n    return k", "k = 2\ndef f(x):\n    return k"),
    "a helper": (
        "def g(x):\n    return x\ndef f(x):\n    return g(x)",
        "def g(x):\n    return -x\ndef f(x):\n    return g(x)",
    ),
    "a helper of a helper": (
        "k = 1\ndef h(x):\n    return k\ndef g(x):\n    return h(x)\ndef f(x):\n    return g(x)",
        "k = 2\ndef h(x):\n    return k\ndef g(x):\n    return h(x)\ndef f(x):\n    return g(x)",
    ),
    "a helper that only an inner function calls": (
        "k = 1\ndef f(x):\n    return [k for _ in x]",
        "k = 2\ndef f(x):\n    return [k for _ in x]",
    ),
    "a lambda": ("f = lambda x: x + 1", "f = lambda x: x + 2"),
    "a method": (
        "class A:\n    def g(self):\n        return 1\nf = A()",
        "class A:\n    def g(self):\n        return 2\nf = A()",
    ),
    "a method of a base": (
        "class B:\n    def g(self):\n        return 1\nclass A(B): pass\nf = A()",
        "class B:\n    def g(self):\n        return 2\nclass A(B): pass\nf = A()",
    ),
    "a property": (
        "class A:\n    @property\n    def g(self):\n        return 1\nf = A()",
        "class A:\n    @property\n    def g(self):\n        return 2\nf = A()",
    ),
    "an attribute": (
        "class A: pass\nf = A()\nf.c = 1",
        "class A: pass\nf = A()\nf.c = 2",
    ),
    "a branch": (
        "def f(x):\n    return 1 if x else 2",
        "def f(x):\n    return 1 if not x else 2",
    ),
    "the name of a keyword": (
        "def f(x):\n    return dict(a=x)",
        "def f(x):\n    return dict(b=x)",
    ),
    "what a try is around": (
        "def f(x):\n    a()\n    try:\n        b()\n    except OSError:\n        pass",
        "def f(x):\n    try:\n        a()\n        b()\n    except OSError:\n        pass",
    ),
    "a rule of derivatives": (
        f"{PRIMAL}@f.defjvp\ndef rule(x, t):\n    return x[0], t[0]",
        f"{PRIMAL}@f.defjvp\ndef rule(x, t):\n    return x[0], 2 * t[0]",
    ),
    "an attribute of a function": ("def f(x): return x\nf.c = 1", "def f(x): return x\nf.c = 2"),
    "an attribute in a slot": (
        "class A:\n    __slots__ = ('c',)\nf = A()\nf.c = 1",
        "class A:\n    __slots__ = ('c',)\nf = A()\nf.c = 2",
    ),
    "a method of a named tuple": (
        f"{TUPLE}        return 1\nf = A(3)",
        f"{TUPLE}        return 2\nf = A(3)",
    ),
    "how a default is made": (
        f"{DATA}    c: int = d.field(default_factory=int)",
        f"{DATA}    c: int = d.field(default_factory=str)",
    ),
    "the order of fields": (
        f"{DATA}    a: int\n    b: int",
        f"{DATA}    b: int\n    a: int",
    ),
    "the order of a dictionary": ("f = {'a': 1, 'b': 2}", "f = {'b': 2, 'a': 1}"),
    "a list in place of a tuple": ("f = [1]", "f = (1,)"),
    "a text in place of a number": ("f = {1: 2}", "f = {'1': 2}"),
    "the sign of nothing": ("f = 0.0", "f = -0.0"),
    "a member": (f"{ENUM}f = E.A", f"{ENUM}f = E.B"),
    "what a bound method of Python's is bound to": ("f = {'a': 1}.get", "f = {'a': 2}.get"),
    "a function of no module": (
        "d = {}\nexec('def f(x): return 1', d)\nf = d['f']",
        "d = {}\nexec('def f(x): return 2', d)\nf = d['f']",
    ),
    "where a loop ends": (
        "def f(x):\n    for i in x:\n        g(i)\n    h(x)",
        "def f(x):\n    for i in x:\n        g(i)\n        h(x)",
    ),
}


@pytest.mark.parametrize("change", OTHER)
def test_what_changes_numbers_does(change):
    one, other = OTHER[change]
    assert made_with(one) == made_with(one)
    assert made_with(one) != made_with(other)


def test_a_closure_within_the_package_is_named_down_to_the_number():
    one, other = (fingerprint(losses.bellman_loss(scaled(c))) for c in (1.0, 7.0))
    (line,) = find_differences(one, other, "loss_fn")
    assert line.startswith("loss_fn.")
    assert line.endswith('.td_error.c: "1.0" there, "7.0" now')


def test_a_module_of_the_users_is_followed_to_what_is_taken_from_it():
    def with_helper(k):
        helper = module(f"k = {k}\nother = {k}", "helper")
        user = module("def f(x):\n    return helper.k * x")
        user.helper = helper
        return fingerprint(user.f)

    assert with_helper(1)["helper.k"] == "1"
    assert with_helper(2)["helper.k"] == "2"
    assert "helper.other" not in with_helper(1)


def test_a_module_that_a_function_imports_itself_is_followed_too(monkeypatch):
    def with_helper(k):
        monkeypatch.setitem(sys.modules, "helper", module(f"k = {k}", "helper"))
        return fingerprint(module("def f(x):\n    from helper import k\n    return k * x").f)

    assert with_helper(1)["helper.k"] == "1"
    assert with_helper(2)["helper.k"] == "2"


def test_functions_that_all_call_each_other_are_described_once():
    names = [f"f{i}" for i in range(12)]
    calls = " + ".join(f"{name}(x)" for name in names)
    tree = fingerprint(module("\n".join(f"def {n}(x): return {calls}" for n in names)).f0)
    assert len(str(tree)) < 20_000
    row = "\n".join(f"def f{i}(x): return f{i + 1}(x)" for i in range(300))
    assert len(find_unseen(fingerprint(module(row).f0))) == 1


def test_what_many_functions_hold_does_not_hide_them():
    source = "import logging, threading\na = logging.getLogger('a')\nb = threading.Lock()\n"
    tree = made_with(f"{source}def f(x):\n    return a, b")
    assert (tree["a"], tree["b"]) == ("logging.Logger", "_thread.lock")
    # The environment of a process is nobody's to keep.
    (line,) = find_unseen(made_with("from os import environ\ndef f(x): return environ['A']"))
    assert line == "experiment.environ: a os._Environ"
    assert find_unseen(made_with("def f(x): return eval('x')")) == [
        "experiment.eval: what eval() reads"
    ]


PARTS = {
    "partial": lambda c: functools.partial(dqn, loss_fn=scaled(c)),
    "partial of a partial": lambda c: functools.partial(functools.partial(dqn, loss_fn=c), env=0),
    "positional argument": lambda c: functools.partial(scaled, c),
    "array": lambda c: functools.partial(dqn, initial=np.array([0.0, c])),
    "array on a device": lambda c: functools.partial(dqn, initial=jnp.array([0.0, c])),
    "dtype": lambda c: functools.partial(dqn, initial=np.zeros(3, [np.int32, np.int64][c > 1])),
    "mask": lambda c: np.ma.array([1, 2], mask=[c > 1, True]),
    "weak type": lambda c: jnp.asarray(1.0 if c > 1 else np.float32(1.0)),
    "long text": lambda c: "x" * 10_000 + str(c),
    "loss of an object": lambda c: losses.bellman_loss(Loss(c)),
    "key": lambda c: functools.partial(dqn, key=jax.random.key(int(c))),
    "optimiser": lambda c: functools.partial(optax.adam, b1=c / 10),
    "made optimiser": lambda c: optax.sgd(c),
    "network": lambda c: networks.value_network(2, (int(c),)),
    "environment": lambda c: environments.make("CartPole-v1")._replace(threshold=c),
    "jitted": lambda c: jax.jit(scaled(c)),
    "mapped": lambda c: jax.vmap(scaled(c)),
    "cached": lambda c: functools.cache(scaled(c)),
    "wrapped": lambda c: functools.wraps(scaled(0.0))(scaled(c)),
    "list": lambda c: [1, c],
    "dictionary": lambda c: {"a": {"b": c}},
    "set": lambda c: {1.0, 2.0 + c},
    "bound method": lambda c: Learner(c).update,
    "callable object": lambda c: Learner(c),
    "module": lambda c: Torso(features=int(c)),
}


class Learner:
    def __init__(self, rate):
        self.rate = rate

    def update(self):
        return self.rate

    __call__ = update


class Loss:
    def __init__(self, c):
        self.c = c

    def __call__(self, q_tm1, a_tm1, r_t, discount_t, q_t):
        return self.c * r_t


class Torso(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x)


@pytest.mark.parametrize("kind", PARTS)
def test_what_a_part_was_made_with_counts(kind):
    make = PARTS[kind]
    assert fingerprint(make(1.0)) == fingerprint(make(1.0))
    assert fingerprint(make(1.0)) != fingerprint(make(7.0))
    assert find_unseen(fingerprint(make(1.0))) == []


def test_the_code_of_a_flax_module_counts():
    def torso(activation):
        class Own(nn.Module):
            @nn.compact
            def __call__(self, x):
                return activation(nn.Dense(8)(x))

        return Own()

    assert fingerprint(torso(nn.relu)) == fingerprint(torso(nn.relu))
    assert fingerprint(torso(nn.relu)) != fingerprint(torso(nn.tanh))


def test_a_users_settings_class_counts_with_its_rules():
    def config_class(largest):
        @dataclasses.dataclass(frozen=True)
        class Mine(DQNConfig):
            def limit(self):
                return largest

        return Mine

    assert fingerprint(config_class(1)) == fingerprint(config_class(1))
    assert fingerprint(config_class(1)) != fingerprint(config_class(2))


def test_a_function_that_calls_itself_ends():
    assert fingerprint(module("def f(x):\n    return f(x - 1)").f)["f"] == "itself: mine.f"


def test_a_part_that_cannot_be_seen_is_said():
    mine = functools.partial(dqn, env=(i for i in range(3)), rng=np.array([object()]))
    assert find_unseen(fingerprint(mine)) == [
        "experiment.env: a builtins.generator",
        "experiment.rng: an array of Python objects",
    ]


def test_libraries_are_known_by_their_version():
    assert fingerprint(len) == "builtins.len"
    assert fingerprint(scipy.special.expit) == "<ufunc 'expit'>"
    assert fingerprint(scipy.special.logsumexp).endswith(f" of scipy {scipy.__version__}")
    # That of these is kept with every result, and another one is a warning.
    assert fingerprint(optax.l2_loss).endswith(".l2_loss of optax")


def test_another_process_finds_the_same(tmp_path):
    """Neither addresses nor the order of sets, which change from process to process."""
    code = (
        "import functools, json, optax\n"
        "from purejaxdqn import dqn\n"
        "from purejaxdqn.storage.fingerprint import fingerprint\n"
        "def loss(x):\n    return x in {'a', 'b', 'c', 'd'} and optax.l2_loss(x)\n"
        "def other(x): return x\n"
        "names = {'p', 'q', loss, other}\n"
        "print(json.dumps(fingerprint(functools.partial(dqn, loss_fn=loss, names=names))))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(answers) == 1
