"""A style inside a GeoPackage, where QGIS finds it whatever way the layer is opened.

QGIS keeps the styles of layers in a table ``layer_styles`` of the same file; the one marked as
default is used when the layer is opened. The table is QGIS's own and not of the GeoPackage
standard, so it is listed there as attributes without a geometry, as QGIS lists it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_CREATE = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256),
    f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""
_LIST = """
INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id)
VALUES ('layer_styles', 'attributes', 'layer_styles', 0)
"""
_INSERT = """
INSERT INTO layer_styles (
    f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML,
    styleSLD, useAsDefault, description, owner
)
VALUES ('', '', ?, ?, ?, ?, '', 1, '', '')
"""


def add_default_style(path: Path, layer: str, geometry_column: str, qml: str) -> None:
    """Add the style that QGIS opens a layer with; the file has no styles yet.

    Args:
        path: of the GeoPackage.
        layer: name of the layer.
        geometry_column: of the layer.
        qml: the style.

    Raises:
        OSError: the file is no GeoPackage, has styles already, or cannot be written.
    """
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(_CREATE)
            connection.execute(_LIST)
            connection.execute(_INSERT, (layer, geometry_column, "classes", qml))
    except sqlite3.Error as error:
        raise OSError(f"no style could be added to {path.name}: {error}") from error
