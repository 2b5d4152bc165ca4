"""Devices: one per core, said plainly when it comes too late; and how runs are laid out."""

import ctypes
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purejaxdqn.runtime import devices
from purejaxdqn.runtime.devices import (
    available_cores,
    choose_width,
    compiler_options,
    make_plan,
    use_every_core,
)
from purejaxdqn.types import ConfigError


def python(code, **environment):
    """Runs code in a fresh interpreter, where JAX has not started."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )


def test_every_core_becomes_a_single_threaded_device(tmp_path):
    answer = python(
        "import os, jax; from purejaxdqn.runtime.devices import use_every_core;"
        "d = use_every_core();"
        "assert use_every_core() == d == jax.devices();"
        "print(len(d), os.environ['XLA_FLAGS'], jax.config.jax_compilation_cache_dir)",
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert answer.returncode == 0, answer.stderr
    count, *flags, cache = answer.stdout.split()
    assert int(count) == max(available_cores(), 2)
    assert [flag.split("=")[0] for flag in flags] == [
        "--xla_cpu_multi_thread_eigen",
        "--xla_backend_extra_options",
    ]
    assert cache.startswith(str(tmp_path))


def test_any_number_of_devices_and_the_users_own_flags_and_cache_are_kept(tmp_path):
    answer = python(
        "import os, jax; from purejaxdqn.runtime.devices import use_every_core;"
        "print(len(use_every_core(3)), os.environ['XLA_FLAGS'],"
        "jax.config.jax_compilation_cache_dir)",
        XLA_FLAGS="--xla_cpu_multi_thread_eigen=true --xla_backend_extra_options=mine=1",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == [
        "3",
        "--xla_cpu_multi_thread_eigen=true",
        "--xla_backend_extra_options=mine=1",
        str(tmp_path / "mine"),
    ]


@pytest.mark.skipif(available_cores() == 1, reason="XLA splits nothing on one core")
def test_programs_do_not_split_an_operation_between_threads():
    lowered = jax.jit(jnp.tanh).lower(jnp.zeros(1_000_000))
    by_default, ours = lowered.compile(), lowered.compile(compiler_options=compiler_options())
    assert 'partitions":["' in str(by_default.as_text())
    assert 'partitions":["' not in str(ours.as_text())


def test_what_is_not_training_is_compiled_sooner_unless_a_user_has_chosen(monkeypatch):
    level = "xla_backend_optimization_level"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    assert compiler_options(trains=False) == {**compiler_options(), level: 1}
    monkeypatch.setenv("XLA_FLAGS", f"--{level}=2")
    assert compiler_options(trains=False) == compiler_options()
    assert level not in compiler_options()


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    known = compiler_options()
    assert known["xla_cpu_scheduler_type"] == "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    monkeypatch.setattr(devices, "_QUICK_ON_CPU", {"xla_cpu_of_tomorrow": "1"})
    assert {*compiler_options()} < {*known}


def test_coming_too_late_is_said_plainly():
    answer = python(
        "import jax; jax.devices();"
        "from purejaxdqn.runtime.devices import use_every_core; use_every_core(5)"
    )
    assert answer.returncode == 1
    assert "came too late: JAX has already started with 1 CPU device(s) where 5" in answer.stderr
    assert "at the top of the script" in answer.stderr


def test_a_sweep_that_comes_too_late_warns_and_goes_on():
    answer = python(
        "import os; os.sched_getaffinity = lambda _: {0, 1, 2};"
        "import jax; jax.devices(); from purejaxdqn.runtime.devices import ensure_devices;"
        "print(len(ensure_devices()))"
    )
    assert answer.stdout.split() == ["1"]
    assert "RuntimeWarning: only one core will work" in answer.stderr


FREED_TWICE = """
import ctypes, psutil
from purejaxdqn.runtime.devices import use_every_core
use_every_core()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = psutil.Process().memory_info().rss
for _ in range(2):  # glibc would keep the second one
    block = ctypes.c_void_p(libc.malloc(30_000_000))
    ctypes.memset(block, 1, 30_000_000)
    libc.free(block)
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc keeps so much")
def test_large_blocks_go_back_to_the_system_unless_the_environment_says_otherwise():
    chosen = {"MALLOC_MMAP_THRESHOLD_": "100000000", "MALLOC_TRIM_THRESHOLD_": "200000000"}
    ours, theirs = python(FREED_TWICE), python(FREED_TWICE, **chosen)
    assert int(ours.stdout) < 15_000_000, ours.stderr
    assert int(theirs.stdout) > 25_000_000, theirs.stderr


def test_a_number_of_devices_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"num_cpu_devices \(0\)"):
        use_every_core(0)


@pytest.mark.parametrize(
    ("num_runs", "num_devices", "expected"),
    [
        (10, 2, (5, 2, 1)),
        (7, 2, (4, 2, 1)),
        (1, 2, (1, 2, 1)),
        (1, 1, (1, 1, 1)),
        (64, 2, (8, 2, 4)),
        (17, 2, (5, 2, 2)),
        (3, 8, (1, 3, 1)),
    ],
)
def test_plans(num_runs, num_devices, expected):
    assert make_plan(num_runs, num_devices, max_width=8) == expected


def test_a_recorded_width_is_kept_on_any_number_of_devices():
    assert make_plan(10, 1, width=5) == (5, 1, 2)
    assert make_plan(10, 4, width=5) == (5, 2, 1)


@given(st.integers(1, 500), st.integers(1, 64), st.none() | st.integers(1, 20))
def test_plans_hold_every_run_and_waste_less_than_a_run_per_device_and_round(runs, devices, width):
    plan = make_plan(runs, devices, width, max_width=8)
    slots = plan.slots_per_round * plan.num_rounds
    assert slots >= runs
    assert plan.num_devices <= devices
    assert width in (None, plan.width)
    rounds = plan.rounds(runs)
    assert len(rounds) == plan.num_rounds
    assert [run for members in rounds for run in members] == list(range(runs))
    assert all(1 <= len(members) <= plan.slots_per_round for members in rounds)
    if width is None:
        assert plan.width <= 8
        assert slots - runs < plan.num_devices * plan.num_rounds


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 8), st.integers(1, 16))
def test_no_other_width_is_done_sooner(sizes, num_devices, widest):
    def cost(width):
        rounds = sum(math.ceil(math.ceil(n / width) / num_devices) for n in sizes)
        return rounds * (min(widest / 8, 1) + width)

    chosen = choose_width(sizes, num_devices, widest)
    assert 1 <= chosen <= widest
    assert cost(chosen) == min(cost(width) for width in range(1, widest + 1))


@pytest.mark.parametrize(("num_runs", "width"), [(10, 5), (16, 8), (1, 1), (30, 8), (256, 8)])
def test_widths_on_two_devices(num_runs, width):
    assert choose_width([num_runs], 2, 8) == width


@pytest.mark.parametrize(("num_runs", "width"), [(8, 2), (10, 1), (30, 2)])
def test_widths_of_large_runs(num_runs, width):
    assert choose_width([num_runs], 2, 2) == width


@pytest.mark.parametrize("change", [{"num_runs": 0}, {"num_devices": 0}, {"width": 0}])
def test_plans_of_nothing_are_refused(change):
    with pytest.raises(ConfigError, match=r"\(0\) must be at least 1"):
        make_plan(**({"num_runs": 3, "num_devices": 2} | change))
