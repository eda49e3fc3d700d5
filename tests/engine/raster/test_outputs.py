"""Bad outputs get a sentence before work begins."""

import os
import tempfile

import pytest

from engine.errors import OutputError
from engine.raster.writer import check_outputs
from tests.engine.raster.made_scenes import make_values, write_scene


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_good_outputs_pass(tmp_path):
    source = write_scene(tmp_path / "scene", make_values(5, 4, "int16", bands=2))
    check_outputs([str(tmp_path / "map.tif"), None, str(tmp_path / "p.TIFF")], [source])
    assert names_in(tmp_path) == ["scene.tif"]


@pytest.mark.parametrize("name", ["map", "map.vrt", "map.img", "map.tif.gz"])
def test_only_geotiff_is_written(tmp_path, name):
    with pytest.raises(OutputError, match=r"only GeoTIFF is written. Let its name end with .tif"):
        check_outputs([str(tmp_path / name)], [])


def test_other_kinds_of_outputs_state_their_suffixes(tmp_path):
    check_outputs([str(tmp_path / "report.html")], [], suffixes=[".html"])
    with pytest.raises(OutputError, match=r"only .html is written"):
        check_outputs([str(tmp_path / "report.tif")], [], suffixes=[".html"])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"folder .*nowhere of the output map.tif does not exist"):
        check_outputs([str(tmp_path / "nowhere" / "map.tif")], [])


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "map.tif").mkdir()
    with pytest.raises(OutputError, match=r"map.tif is a folder"):
        check_outputs([str(tmp_path / "map.tif")], [])


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"Nothing can be written into .*: Permission denied"):
        check_outputs([str(tmp_path / "map.tif")], [])


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Nothing can be written into"):
        check_outputs([str(tmp_path / "map.tif")], [])


def test_a_full_folder_is_named(tmp_path):
    with pytest.raises(
        OutputError, match=r"MB left, the output map.tif needs about 1000000000000 MB"
    ):
        check_outputs([str(tmp_path / "map.tif")], [], needed_bytes=10**18)


def test_an_output_that_is_the_input_is_refused(tmp_path):
    source = write_scene(tmp_path / "scene", make_values(5, 4, "int16", bands=2))
    with pytest.raises(OutputError, match="is also an input"):
        check_outputs([source], [source])


def test_an_output_that_links_to_the_input_is_refused(tmp_path):
    source = write_scene(tmp_path / "scene", make_values(5, 4, "int16", bands=2))
    link = tmp_path / "map.tif"
    link.symlink_to(source)
    with pytest.raises(OutputError, match="is also an input"):
        check_outputs([str(link)], [source])


def test_an_output_behind_a_linked_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    source = write_scene(tmp_path / "data" / "scene", make_values(5, 4, "int16", bands=2))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(OutputError, match="is also an input"):
        check_outputs([str(tmp_path / "link" / "scene.tif")], [source])


def test_an_output_that_a_virtual_input_refers_to_is_refused(tmp_path):
    source = write_scene(tmp_path / "scene", make_values(5, 4, "int16", bands=2), layout="vrt")
    with pytest.raises(OutputError, match="is also an input, or a part of one"):
        check_outputs([str(tmp_path / "scene.tif")], [source])


def test_two_outputs_with_one_path_are_refused(tmp_path):
    path = str(tmp_path / "map.tif")
    with pytest.raises(OutputError, match="Two outputs have the same path"):
        check_outputs([path, str(tmp_path / "." / "map.tif")], [])


def test_vector_inputs_and_layers_in_them_are_no_problem(tmp_path):
    (tmp_path / "labels.gpkg").write_bytes(b"no raster")
    check_outputs([str(tmp_path / "map.tif")], [f"{tmp_path / 'labels.gpkg'}|layername=x"])
