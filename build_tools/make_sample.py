"""Makes resources/sample from the Berlin-Urban-Gradient dataset as its authors publish it.

    python build_tools/make_sample.py <folder of the dataset>

The EnMAP scene is taken as it is. The 3.6 m image becomes a GeoTIFF with overviews, so that it
draws fast; the polygons become a GeoPackage, one feature a polygon, with the authors' colours as
its default style. Run with the engine's interpreter.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pyogrio
import rasterio.shutil
import shapely

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "resources" / "sample"
SCENE = "EnMAP_BerlinUrbanGradient"
IMAGE = "HighResolution_BerlinUrbanGradient"
LABELS = "LandCov_BerlinUrbanGradient"
LAYER = "land_cover"
# Class value, name, and colour in the authors' own QGIS style.
CLASSES = (
    (1, "Roof", "#e60000"),
    (2, "Pavement", "#9c9c9c"),
    (3, "Low vegetation", "#98e600"),
    (4, "Tree", "#267300"),
    (5, "Soil", "#a87000"),
    (6, "Other", "#f5f57a"),
)


def copy_scene(source: Path) -> None:
    """Copy the EnMAP scene: header, pixels and the sizes that its compression needs."""
    for suffix in (".bsq", ".bsq.properties", ".hdr"):
        shutil.copyfile(source / f"{SCENE}{suffix}", SAMPLE / f"{SCENE}{suffix}")


def convert_image(source: Path) -> None:
    """Write the 3.6 m image as a Cloud Optimized GeoTIFF with the same numbers."""
    target = SAMPLE / f"{IMAGE}.tif"
    with rasterio.open(source / f"{IMAGE}.bsq") as image:
        names = ("blue 484 nm", "green 558 nm", "red 647 nm", "near infrared 805 nm")
        with rasterio.MemoryFile() as memory:
            profile = {**image.profile, "driver": "GTiff"}
            for option in ("interleave", "tiled", "blockxsize", "blockysize"):
                profile.pop(option, None)
            with memory.open(**profile) as plain:
                plain.write(image.read())
                plain.descriptions = names
                plain.scales = (1e-4,) * 4
            rasterio.shutil.copy(
                memory.name, target, driver="COG", compress="DEFLATE", predictor=2, level=9
            )


def convert_labels(source: Path) -> None:
    """Write the polygons one by one, with the classes' names and a default style."""
    target = SAMPLE / f"{LABELS}.gpkg"
    target.unlink(missing_ok=True)
    meta, _fids, wkb, values = pyogrio.raw.read(
        source / f"{LABELS}.shp", columns=["Level_1", "Level_2"]
    )
    level_1, level_2 = values
    geometries, owner = shapely.get_parts(shapely.from_wkb(wkb), return_index=True)
    value_of = {name: value for value, name, _color in CLASSES}
    order = np.argsort([value_of[level_2[i]] for i in owner], kind="stable")
    owner = owner[order]
    pyogrio.raw.write(
        target,
        shapely.to_wkb(geometries[order]),
        [
            np.asarray([value_of[level_2[i]] for i in owner], np.int32),
            level_2[owner],
            level_1[owner],
        ],
        fields=["class_value", "class_name", "level_1"],
        layer=LAYER,
        geometry_type="Polygon",
        crs=meta["crs"],
        driver="GPKG",
        dataset_options={"VERSION": "1.2"},  # GDAL 3.6, of QGIS 3.22, warns of newer ones
    )
    style = qgis_style()
    (SAMPLE / f"{LABELS}.qml").write_text(style, encoding="utf-8")
    add_default_style(target, style)


def qgis_style() -> str:
    """The categories as a QGIS style."""
    categories = "".join(
        f'<category render="true" value="{name}" type="string" symbol="{index}" label="{name}"/>'
        for index, (_value, name, _color) in enumerate(CLASSES)
    )
    symbols = "".join(_symbol(index, color) for index, (_v, _n, color) in enumerate(CLASSES))
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22.0" styleCategories="Symbology">\n'
        '<renderer-v2 type="categorizedSymbol" attr="class_name" symbollevels="0" '
        'enableorderby="0" forceraster="0">\n'
        f"<categories>{categories}</categories>\n<symbols>{symbols}</symbols>\n"
        "</renderer-v2>\n<layerGeometryType>2</layerGeometryType>\n</qgis>\n"
    )


def _symbol(index: int, color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    options = {
        "color": f"{red},{green},{blue},255",
        "style": "solid",
        "outline_style": "no",
        "outline_color": f"{red},{green},{blue},255",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
    }
    # Both spellings: <Option> for QGIS 3.22 and later, <prop> for older readers.
    listed = "".join(f'<Option type="QString" name="{k}" value="{v}"/>' for k, v in options.items())
    props = "".join(f'<prop k="{k}" v="{v}"/>' for k, v in options.items())
    return (
        f'<symbol type="fill" name="{index}" alpha="1" clip_to_extent="1" force_rhr="0">'
        f'<layer class="SimpleFill" enabled="1" locked="0" pass="0">'
        f'<Option type="Map">{listed}</Option>{props}</layer></symbol>\n'
    )


def add_default_style(package: Path, style: str) -> None:
    """Put the style where QGIS looks when it loads the layer."""
    with sqlite3.connect(package) as connection:
        connection.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
            "f_table_catalog TEXT, f_table_schema TEXT, f_table_name TEXT, "
            "f_geometry_column TEXT, styleName TEXT, styleQML TEXT, styleSLD TEXT, "
            "useAsDefault BOOLEAN, description TEXT, owner TEXT, ui TEXT, "
            "update_time DATETIME DEFAULT '2016-03-01T00:00:00.000Z')"
        )
        connection.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, "
            "f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner) "
            "VALUES ('', '', ?, 'geom', 'classes', ?, '', 1, 'Land cover classes', '')",
            (LAYER, style),
        )
        connection.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles')"
        )
    with sqlite3.connect(package) as connection:
        connection.execute("VACUUM")


def main() -> None:
    """Make all files."""
    source = Path(sys.argv[1])
    SAMPLE.mkdir(parents=True, exist_ok=True)
    copy_scene(source)
    convert_image(source)
    convert_labels(source)


if __name__ == "__main__":
    main()
