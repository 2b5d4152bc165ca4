"""Results on disk: all or nothing, and never over somebody's earlier results."""

import numpy as np
import pytest
import xarray as xr

from purejaxdqn.storage import files, results
from purejaxdqn.types import ConfigError

DATASET = xr.Dataset(
    {"final_return": (("seed", "episode"), np.array([[1.0, np.nan]], np.float32))},
    coords={"seed": [3], "episode": [0, 1]},
    attrs={"config": "{}", "status": "finished"},
)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = results.save(DATASET, tmp_path)
    assert path.name == "results.nc"
    for place in (path, tmp_path):
        xr.testing.assert_identical(results.load(place), DATASET)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_results_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.nc"):
        results.load(tmp_path)
    path = results.save(DATASET, tmp_path)
    for content in (b"", b"text", path.read_bytes()[:-2000]):
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"results\.nc cannot be read as results") as caught:
            results.load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("NetCDF: HDF error")]
)
def test_a_write_that_fails_leaves_the_file_before_it_intact(tmp_path, monkeypatch, error):
    """On a full disk: netCDF's own error is a RuntimeError."""
    results.save(DATASET, tmp_path)

    def half_written(self, path, **options):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(xr.Dataset, "to_netcdf", half_written)
    with pytest.raises(OSError, match=r"No space|results.nc cannot be written: NetCDF"):
        results.save(DATASET.assign_attrs(status="other"), tmp_path)
    monkeypatch.undo()
    assert results.load(tmp_path).attrs["status"] == "finished"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    """netCDF calls whatever went wrong a lack of permission."""
    with pytest.raises(OSError, match=r"gone/results.nc cannot be written: No such file"):
        results.save(DATASET, tmp_path / "gone")
    path = tmp_path / "page.html"
    path.write_text("before")

    def half_written():
        with files.replace_file(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk quota exceeded")

    with pytest.raises(OSError, match=r"page.html cannot be written: disk quota"):
        half_written()
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_results_that_a_full_disk_refuses_are_rescued(tmp_path, monkeypatch):
    save = results.save

    def full(dataset, folder):
        if folder == tmp_path:
            raise OSError(28, "No space left on device")
        return save(dataset, folder)

    monkeypatch.setattr(results, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        path = results.save_or_rescue(DATASET, tmp_path)
    assert path.parent != tmp_path
    xr.testing.assert_identical(results.load(path), DATASET)


def test_an_output_folder_is_made_and_earlier_results_are_kept(tmp_path):
    folder = results.prepare_output(tmp_path / "a" / "b")
    assert folder.is_dir()
    results.prepare_output(folder)  # empty: fine
    results.save(DATASET, folder)
    with pytest.raises(ConfigError, match=r"already holds results.*--overwrite"):
        results.prepare_output(folder)
    assert results.prepare_output(folder, overwrite=True) == folder


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*--output"):
        results.prepare_output(tmp_path / "file" / "below")
