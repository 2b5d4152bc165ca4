"""What the whole suite runs under: two CPU devices, and no silent broadcasting between ranks."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

from purejaxdqn.cli.main import main
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.runtime.modules import IMPORTED
from tiny import assert_same_dataset

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def compiled_programs(config: pytest.Config) -> Path:
    """The folder of compiled programs, of its own for each process that runs tests."""
    return config.cache.mkdir(f"xla{os.environ.get('PYTEST_XDIST_WORKER', '')}")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, as JAX fixes its devices when it first computes."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_optimization_level" not in flags:
        # Compiling takes most of the time. What is to hold for programs as users have them is
        # tested in processes without these flags; all is with
        # XLA_FLAGS=--xla_backend_optimization_level=3 pytest
        flags += " --xla_backend_optimization_level=0"
        if jax.__version_info__ < (0, 11):  # Unknown flags end the process; 0.12 knows it no more.
            flags += " --xla_cpu_use_fusion_emitters=false"  # half of the time that is left
        os.environ["XLA_FLAGS"] = flags.strip()
    os.environ.pop("COLUMNS", None)  # what is printed is as wide as where nobody says how wide
    if config.pluginmanager.hasplugin("cacheprovider"):
        # A second run of the suite compiles nothing; `make clean` removes it.
        jax.config.update("jax_compilation_cache_dir", str(compiled_programs(config)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    use_every_core(2)
    # How long an example takes says something about the machine, not about the package.
    settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("suite")
    # (B, 1) - (B,) would be (B, B) without a word.
    jax.config.update("jax_numpy_rank_promotion", "raise")


# Which take longest, in this order: begun first, so that no process waits long for the other at the
# end. The files of a folder that is not here come last.
SLOW_FILES = (
    "sweep/test_kills.py",
    "sweep/test_resume.py",
    "testing/losses/",
    "runtime/test_processes.py",
    "testing/test_environments.py",
    "replay/test_n_step.py",
    "testing/",
    "experiments/",
    "sweep/",
    "agents/",
    "replay/",
    "training/",
    "environments/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the slowest files, which share one process each (`--dist loadfile`)."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((i for i, x in enumerate(SLOW_FILES) if path.startswith(x)), len(SLOW_FILES))

    items.sort(key=place)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """With `--durations`, says how long each folder took, summed over the processes."""
    if config.getoption("durations") is None:
        return
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0].rpartition("/")[0]] += report.duration
    terminalreporter.section("seconds by folder")
    for folder, total in sorted(seconds.items()):
        terminalreporter.write_line(f"{total:8.0f} {folder}")


@pytest.fixture(autouse=True)
def forget_what_a_command_imported():
    """Else a later test's nodes of a cluster would import it too."""
    before = [*IMPORTED]
    yield
    IMPORTED[:] = before


@pytest.fixture(scope="session")
def assert_same_bits():
    """Compares two `SweepResult`s: every variable and all weights, to the bit."""

    def compare(one, other):
        assert_same_dataset(one.dataset, other.dataset)
        for a, b in zip(*(jax.tree.leaves(x.params) for x in (one, other)), strict=True):
            assert a.tobytes() == b.tobytes(), "weights"

    return compare


@pytest.fixture(scope="session")
def compile_as_user():
    """Compiles what was lowered with a user's emitters; those of the suite make loops of scatters.

    Returns a function of what was lowered, and of further options of the compiler.
    """
    older = "xla_cpu_use_fusion_emitters=false" in os.environ["XLA_FLAGS"]
    options = {"xla_cpu_use_fusion_emitters": True} if older else {}
    return lambda lowered, **more: lowered.compile(options | more)


@pytest.fixture(scope="session")
def fresh_environment(request, tmp_path_factory):
    """For processes of their own: JAX as a user has it, with programs compiled as in the suite."""
    if request.config.pluginmanager.hasplugin("cacheprovider"):
        cache = compiled_programs(request.config)
    else:
        cache = tmp_path_factory.mktemp("xla")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return environment | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="session")
def run_python(fresh_environment):
    """Runs `python` with some words in a process of its own.

    Its programs are compiled as in the suite, or with `as_user` as a user has them: then the
    suite's XLA flags do not reach it.
    """
    users = {k: v for k, v in fresh_environment.items() if not k.startswith("XLA_")}

    def run(*words, as_user=False, **variables):
        environment = (users if as_user else fresh_environment) | variables
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


@pytest.fixture(scope="session")
def run_script(run_python):
    """Runs a script of `experiments` as `run_python` does."""
    return lambda script, *flags, **options: run_python(EXPERIMENTS / script, *flags, **options)


@pytest.fixture(scope="session")
def run_command(run_python):
    """Runs `python -m purejaxdqn` as `run_python` does."""
    return lambda *words, **options: run_python("-m", "purejaxdqn", *words, **options)


@pytest.fixture
def call_command(capsys):
    """Runs a command in this process; gives its exit code, and what it wrote to either stream."""

    def call(*words):
        with pytest.raises(SystemExit) as caught:
            main([*map(str, words)])
        return caught.value.code or 0, *capsys.readouterr()

    return call
