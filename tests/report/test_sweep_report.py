"""Tests the report of a sweep: names of settings, the table's width, what stands first."""

import json

import numpy as np
import xarray as xr

from purejaxdqn.report import sweep


def sweep_results(discounts):
    shape = (len(discounts), 2, 2, 3)
    return xr.Dataset(
        {
            "evaluation_return": (("discount", "seed", "step", "episode"), np.full(shape, 312.5)),
            "final_return": (("discount", "seed", "episode"), np.full((shape[0], 2, 3), 312.5)),
            "diverged": (("discount", "seed"), np.zeros((shape[0], 2), bool)),
        },
        {"discount": discounts, "seed": [0, 1], "step": [100, 200]},
        {"status": "finished", "width": 2},
    )


def test_settings_that_look_alike_are_told_apart():
    assert [*sweep.group_by_setting(sweep_results([0.99, 0.9995, 0.9999]))] == [
        *("discount=0.99", "discount=0.9995", "discount=0.9999")
    ]
    assert [*sweep.group_by_setting(sweep_results([1e-3, 0.1 + 0.2]))] == [
        *("discount=0.001", "discount=0.3")
    ]
    drawn = xr.Dataset(
        {"final_return": (("run", "episode"), np.zeros((3, 1)))},
        {name: ("run", x) for name, x in {"sample": [0, 1, 2], "seed": [0, 0, 0]}.items()}
        | {"run": [0, 1, 2], "agent": ("run", ["dqn", "rainbow", "dqn"])},
    )
    assert [*sweep.group_by_setting(drawn)] == ["agent=dqn (1)", "agent=rainbow", "agent=dqn (2)"]


def test_the_table_of_a_sweep_fits_eighty_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = sweep_results([0.9, 0.99]).expand_dims(
        {"learning_rate": [1e-3], "learning_rate_end_fraction": [0.123], "n_step": [5]}
    )
    sweep.report_sweep(long, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("┃", "│"))]
    assert {len(line) for line in table} <= {*range(60, 81)}
    assert all(word in " ".join(table) for word in ("diverged", "finished", "2 of 2"))


def test_a_piped_table_is_as_wide_as_it_needs_to_be(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    names = {f"a_setting_with_a_long_name_{i}": [0.125] for i in range(8)}
    sweep.report_sweep(sweep_results([0.9, 0.99]).expand_dims(names), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    whole = ", ".join(f"{name}=0.125" for name in names)
    for discount in ("0.9", "0.99"):
        assert sum(f"│ {whole}, discount={discount} " in line for line in lines) == 1
    assert sum(line.startswith("written to ") for line in lines) == 1


def test_the_best_setting_is_first_and_one_without_results_last(tmp_path):
    dataset = sweep_results([0.9, 0.99, 0.999])
    dataset.final_return[0] = np.nan
    dataset.final_return[2] += 10
    dataset.diverged[0, 1] = True
    facts = sweep.report_sweep(dataset, tmp_path)
    rows = {row["setting"]: row for row in facts["settings"]}
    assert [*rows] == ["discount=0.999", "discount=0.99", "discount=0.9"]
    assert [row["iqm"] for row in rows.values()] == [322.5, 312.5, None]
    assert [row["num_diverged"] for row in rows.values()] == [0, 0, 1]
    assert rows["discount=0.9"]["final_return"] == [None, None]
    assert json.loads((tmp_path / "summary.json").read_text()) == facts
