"""A loss that `module:name` or `file.py:name` names, checked from the command line."""

import subprocess
import sys

import pytest

from purejaxdqn.cli.named_loss import LossOptions, load_loss, report_on_named_loss
from purejaxdqn.types import ConfigError

SOURCE = """
import jax

number = 3


def good(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return jax.lax.stop_gradient(r_t + discount_t * q_t.max()) - q_tm1[a_tm1]


def bad(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return jax.lax.stop_gradient(r_t + q_t.max()) - q_tm1[a_tm1]


def factory():
    raise ValueError("not today")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("raise ValueError('two\\nlines')")
    return tmp_path


@pytest.fixture
def command(folder, fresh_environment):
    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "purejaxdqn", "check", *args],
            capture_output=True,
            text=True,
            cwd=folder,
            env=fresh_environment,
        )

    return run


def test_a_loss_that_passes_and_one_that_fails(command):
    good = command("mine:good")
    assert (good.returncode, good.stderr) == (0, "")
    assert "fixed point, stochastic" in good.stdout
    bad = command("mine.py:bad")
    assert (bad.returncode, bad.stderr) == (1, "")
    assert "the discount is lost" in " ".join(bad.stdout.split())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine", "must be module:name"),
        ("nothing:x", "there is no module 'nothing'"),
        ("nothing.py:x", "there is no file nothing.py"),
        ("mine:nothing", "has no 'nothing'"),
        ("mine:number", "is a int and not a function"),
        ("mine:factory", "raises ValueError: not today"),
        ("broken:x", "importing broken raises ValueError: two lines"),
    ],
)
def test_what_is_no_loss_is_said_in_a_line(name, words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for module in ("mine", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigError) as refused:
        load_loss(name)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LossOptions(discount=1.0), r"discount \(1.0\) must be at least 0 and below 1"),
        (LossOptions(temperature=0.0), r"temperature \(0.0\) must be positive"),
    ],
)
def test_an_option_out_of_range_is_refused(options, words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=words):
        report_on_named_loss("mine.py:good", options)
