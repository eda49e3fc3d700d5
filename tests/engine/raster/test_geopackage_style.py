"""A style inside a GeoPackage: where QGIS looks for it, and nothing else in the file changed."""

import sqlite3
from contextlib import closing

import numpy as np
import pyogrio
import pytest
import shapely

from engine.raster.geopackage_style import add_default_style


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a place.gpkg"
    pyogrio.raw.write(
        path,
        shapely.to_wkb([shapely.box(0, 0, 2, 1)]),
        [np.array([3], np.int32)],
        ["class_value"],
        layer="a place",
        driver="GPKG",
        geometry_type="Polygon",
        crs="EPSG:32633",
    )
    return path


def test_the_style_is_the_default_of_its_layer(path):
    add_default_style(path, "a place", "geom", "<qgis>'ä'</qgis>")
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT f_table_name, f_geometry_column, styleQML, useAsDefault FROM layer_styles"
        ).fetchall()
    assert rows == [("a place", "geom", "<qgis>'ä'</qgis>", 1)]


def test_gdal_lists_the_layer_first_and_the_styles_without_geometry(path):
    add_default_style(path, "a place", "geom", "<qgis/>")
    assert pyogrio.list_layers(path).tolist() == [["a place", "Polygon"], ["layer_styles", None]]


def test_the_features_stay(path):
    add_default_style(path, "a place", "geom", "<qgis/>")
    _, _, geometry, (values,) = pyogrio.raw.read(path, layer="a place")
    assert shapely.from_wkb(geometry)[0].equals(shapely.box(0, 0, 2, 1))
    assert values.tolist() == [3]


def test_what_is_no_geopackage_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "text.gpkg"
    path.write_text("no database, but long enough to be taken for one" * 40)
    with pytest.raises(OSError, match=r"no style could be added to text\.gpkg"):
        add_default_style(path, "text", "geom", "<qgis/>")


def test_a_second_default_style_is_refused(path):
    add_default_style(path, "a place", "geom", "<qgis/>")
    with pytest.raises(OSError, match="layer_styles"):
        add_default_style(path, "a place", "geom", "<qgis/>")
