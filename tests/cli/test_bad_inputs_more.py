"""What a command line cannot mean: doubles, blanks, foreign digits, paths, modules, components.

Each is one line with value, rule and remedy, and exit code 2. Nothing is compiled or left behind.
"""

import sys

import jax
import pytest

from purejaxdqn.engine import programs
from purejaxdqn.sweep import batches

PATH = "must be a path, such as results/a"
WHOLE = "must be a whole number"
FILES = {  # in the folder where the command is called
    "raises.py": "raise RuntimeError('two\\nlines')",
    "syntax.py": "def f(:",
    "exits.py": "raise SystemExit(3)",
    "numpy.py": "",
    "plain.py": "value = 3\ndef makes():\n    return 3\n",
    "file": "text",
}

CASES: list[tuple[list[str], str]] = [
    # The same flag twice, in any of its forms, and flags that are cut short.
    (["train", "--resume", "--no-resume"], "--resume is given twice"),
    (["train", "--no-prioritised", "--prioritised"], "--prioritised is given twice"),
    (["train", "--no-prioritised", "--no_prioritised"], "--prioritised is given twice"),
    (["train", "--num_seeds=2", "--num-seeds", "2"], "--num-seeds is given twice"),
    (["train", "--import", "plain.py", "plain.py"], "must differ from each other: name each once"),
    (["train", "--tracker", "mlflow", "mlflow"], "must differ from each other"),
    (["train", "--"], "-- is no flag"),
    (["train", "--json=--"], "--json=-- is no flag"),
    (["train", ""], "'' is empty: give a name"),
    (["agents", ""], "'' is empty: give a name"),
    (["check", ""], "'' is empty: give a name"),
    (["train", "--num-seed", "2"], "did you mean --num-seeds"),
    (["train", "--resum"], "did you mean --resume"),
    (["train", "--json=true"], "--json takes no value ('true'): give --json or --no-json"),
    (["train", "--no-resume", "yes"], "--resume takes no value ('yes')"),
    (["train", "--prioritised", "false"], "give --prioritised or --no-prioritised"),
    (["train", "--num-seeds=", "2"], "num_seeds takes one value, and not '' 2"),
    # Numbers that Python reads, and that are none here.
    *((["train", f"--num-seeds={x}"], WHOLE) for x in (" 5", "5 ", "5\n", "1_", "_1", "1__0")),
    *((["train", f"--num-seeds={x}"], WHOLE) for x in ("\uff13", "\u00b2", "0x10", "1e3", "5.0")),
    *((["train", f"--first-seed={x}"], WHOLE) for x in ("inf", "nan", "None", "1,000", "5x6")),
    *((["train", f"--discount={x}"], "must be a number") for x in (" 0.9", "1e400", "\x00")),
    *((["train", f"--max-grad-norm={x}"], "must be a number") for x in ("1e400", "\u0661")),
    (["train", "--memory-budget=\u0663GB"], "such as 4GB or 500MiB"),
    (["train", "--memory-budget= 4GB"], "such as 4GB or 500MiB"),
    (["train", f"--first-seed={10**30}"], "must be at most 4294967295"),
    (["sweep", "--learning-rate", "uniform:0:1e400", "--num-samples", "2"], "finite limits"),
    (["search", "--learning-rate", "uniform:\u0660:1"], "finite limits"),
    (["search", "--learning-rate", "1e-3"], "space is empty"),
    # Schedules that are none, and settings that follow none.
    *((["train", "--discount", x], "or a schedule such as") for x in ("linear:0.9:1", "lin:0:1:9")),
    *((["train", "--discount", f"linear:0.9:1:{x}"], "whole gradient") for x in ("1.5", "", "x")),
    (["train", "--discount", "linear:0.9:1.5:10"], "discount (1.5) must lie between 0 and 1"),
    *((["train", "--discount", x], "whole gr") for x in ("linear:0.1:0.2: 5", "linear: 0.1:0.2:5")),
    (["train", "--discount", f"linear:0.1:0.2:{10**30}"], "last at most 2147483647 gradient steps"),
    (["train", "--discount", "9" * 5000], "'99"),
    (["sweep", "--discount", "uniform: 0.1:0.2", "--num-samples", "2"], "finite limits"),
    (["train", "--discount", "linear:0.9:nan:10"], "start and end at finite numbers"),
    (["train", "--n-step", "linear:10:0:100"], "n_step (0) must be a whole number of at least 1"),
    (["train", "--n-step", "linear:9999:1:100"], "must be at most replay_capacity / num_envs"),
    (["train", "--epsilon-start", "linear:1:0:10"], "epsilon_start ('linear:1:0:10') must be"),
    (["train", "--learning-rate", "linear:1e-3:1e-4:10"], "learning_rate_end_fraction (0.05)"),
    (["train", "--temperature", "linear:1:2:10"], "temperature changes nothing"),
    (["sweep", "--discount", "0.9", "lin:0.9:1:10"], "or a schedule, such as linear:0.97"),
    (["search", "--discount", "0.9", "linear:0.9:1:10"], "or in a list of numbers"),
    # Folders that are none, and addresses.
    *((["train", f"--output={x}"], PATH) for x in ("", " ", "x ", "/", "//", "/tmp/..", "~")),
    *((["train", f"--output={x}"], PATH) for x in ("a\0b", "a\nb", "\x1b[31m", "\ud800")),
    *((["train", f"--output={x}"], PATH) for x in ("s3://bucket/x", "http://x/y", "file:///x")),
    *((["sweep", "--output", x], "cannot be written") for x in ("file", "file/x", "a" * 300)),
    *((["train", f"--cluster={x}"], "such as 10.0.0.1:8476, or auto") for x in (":", "a:b", "a:0")),
    *((["train", f"--cluster={x}"], "a host and a port") for x in ("a:99999", "a:\u0663", "x y:1")),
    (["train", "--cluster="], "cluster ('') must be a name"),
    (["train", "--coordinator="], "coordinator ('') must be a name"),
    (["train", "--coordinator=a:\u00b2"], "a host and a port"),
    (["train", "--coordinator=a:65536"], "a host and a port"),
    # Modules that cannot be imported.
    *((["train", f"--import={x}"], "must be a module such as") for x in ("", ".", ".x", "x.")),
    *((["train", f"--import={x}"], "must be a module such as") for x in ("a..b", "./plain", "a-b")),
    *((["train", f"--import={x}"], "must be a module such as") for x in ("5", "a,b", "plain.py/")),
    (["train", "--import", "raises.py"], "importing raises.py raises RuntimeError: two lines"),
    (["train", "--import", "syntax.py"], "importing syntax.py raises SyntaxError"),
    (["train", "--import", "exits.py"], "importing exits.py raises SystemExit: 3"),
    (["train", "--import", "numpy.py"], "numpy.py has the name of a module"),
    (["train", "--import", "folder"], "is a folder without __init__.py"),
    (["train", "--import", "folder.py"], "there is no file folder.py"),
    (["check", "raises.py:x"], "importing raises.py raises RuntimeError"),
    (["check", "plain.py:value"], "is a int and not a function"),
    (["check", "plain.py:makes"], "gives int and not a loss"),
    (["check", "plain.py"], "must be module:name"),
    (["check", "purejaxdqn.losses:q_lerning"], "has no 'q_lerning'"),
    (["check", "purejaxdqn.losses:q_learning", "--coefficient", "nan"], "coefficient (nan)"),
    (["check", "purejaxdqn.losses:q_learning", "--epsilon", "2"], "epsilon (2.0) must lie between"),
    (["check", "purejaxdqn.losses:q_learning", "--discount", "1"], "discount (1.0)"),
    # Names of environments, and what stands behind them.
    *(
        (["train", "--env", f"CartPole-v1?{behind}"], expected)
        for behind, expected in (
            ("", "'' behind the ? must be setting=value"),
            ("time_limit", "'time_limit' behind the ? must be setting=value"),
            ("time_limit=", "'time_limit=' behind the ? must be setting=value"),
            ("time_limit=9&", "'' behind the ? must be setting=value"),
            ("time_limt=9", "'time_limt' must be one of time_limit"),
            ("time_limit=9&time_limit=8", "time_limit stands there twice"),
            ("time_limit=0", "time_limit ('0') must be a whole number of at least 1"),
            ("time_limit=1e3", "time_limit ('1e3') must be a whole number"),
            ("time_limit=3000000000", "time_limit ('3000000000') must be a whole number"),
            ("sticky_actions=1.5", "sticky_actions ('1.5') must be at least 0 and at most 1"),
            ("sticky_actions=nan", "sticky_actions ('nan') must be at least 0 and at most 1"),
            ("scale_reward=0", "scale_reward ('0') must be at least 1e-09"),
            ("scale_reward=inf", "scale_reward ('inf') must be at least 1e-09"),
            ("clip_reward=-1", "clip_reward ('-1') must be at least 1e-09"),
            ("mask_observation=x", "mask_observation ('x') must be different whole numbers"),
            ("mask_observation=1,1", "mask_observation ('1,1') must be different whole numbers"),
            ("mask_observation=1,", "mask_observation ('1,') must be different whole numbers"),
            ("mask_observation=-1", "mask_observation ('-1') must be different whole numbers"),
            ("mask_observation=4", "mask_observation ((4,)) must be positions from 0 to 3"),
            ("stack_frames=1001", "stack_frames ('1001') must be a whole number of at least 1 and"),
            ("stack_frames=2&mask_observation=8", "must be positions from 0 to 7"),
            ("normalize_observations=yes", "normalize_observations ('yes') must be 1 or 0"),
        )
    ),
    (["sweep", "--env", "CartPole-v1", "CartPole-v1?time_limit=0"], "time_limit ('0') must be"),
    (["train", "--env", "CartPol-v1?time_limit=9"], "environment ('CartPol-v1') must be one of"),
    (["train", "--env", "gymnx:CartPole-v1"], "must be one of gymnax:CartPole-v1"),
    (["train", "--env", "gymnax:CartPole-v1"], "gymnax cannot be imported"),
    (["train", "--env", "gymnax:Pong?time_limit=x"], "time_limit ('x') must be a whole number"),
    # Components.
    (["ablate", "--coefficient", "nan"], "did you mean --advantage-coefficient"),
    (["ablate", "--epsilon", "2"], "did you mean --epsilon-end"),
    (["ablate", "--components"], "--components needs at least one value"),
    (["ablate", "--components="], "component '' must be one of"),
    (["ablate", "--components", "double", "double"], "must differ"),
    (["ablate", "--components", "discount=nan"], "discount (nan)"),
    (["ablate", "--components", "discount="], "discount ('') must be a number"),
    (["ablate", "--components", "=0.9"], "must name a setting"),
    (["ablate", "--components", "agent=rainbow"], "component 'agent=rainbow' must name a setting"),
    (["ablate", "--components", "total_steps=5"], "the base has total_steps 50000 already"),
    (["ablate", "--agent", "iqn", "--components", "learning_rate=1e-4"], "has learning_rate"),
    (["ablate", "--components", "discount=0.9", "--discount", "0.8"], "the base has discount 0.8"),
]


@pytest.mark.parametrize(("words", "expected"), CASES, ids=[ascii(words) for words, _ in CASES])
def test_it_is_refused_in_one_line(words, expected, call_command, tmp_path, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(programs, "compile_programs", compiled)
    monkeypatch.setattr(batches, "compile_programs", compiled)
    monkeypatch.setattr("purejaxdqn.runtime.devices.use_every_core", lambda *_: jax.devices())
    monkeypatch.setattr("purejaxdqn.testing.loss_report", compiled)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, "gymnax", None)  # as where it is not installed
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    for name in ("folder", "folder.py"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call_command(*words)
    assert code == 2, err
    assert out == ""
    assert expected in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert len(err) < 1000
    assert sorted(tmp_path.rglob("*")) == before
