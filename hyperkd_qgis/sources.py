"""Layers to data sources that the engine's GDAL opens; what it cannot open is exported first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qgis.core import QgsCoordinateTransformContext as TransformContext
from qgis.core import (
    QgsFeature,
    QgsFeatureRequest,
    QgsFields,
    QgsProcessingFeatureSource,
    QgsProcessingUtils,
    QgsRasterDataProvider,
    QgsRasterFileWriter,
    QgsRasterLayer,
    QgsRasterPipe,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

EXPORT_LIMIT_PX = 2**31
"""A layer without pixels of its own is not exported at a size that somebody else thought up."""


VECTOR_SUFFIXES = (".gpkg", ".shp", ".geojson", ".json", ".fgb")
"""Vector files that the engine reads by themselves."""


class SourceError(Exception):
    """A layer cannot be handed to the engine; the message says which, why, and what to do."""


class Exports:
    """The temporary files of one run: layers that the engine could not open by itself.

    Args:
        transforms: of the project; nothing is reprojected here, the writers only want it.
    """

    def __init__(self, transforms: TransformContext) -> None:
        self._transforms = transforms
        self._folder: Path | None = None

    def raster_source(self, layer: QgsRasterLayer) -> str:
        """Name a raster as GDAL does; export it when it is no GDAL layer.

        Raises:
            SourceError: the layer has no pixels of its own, or cannot be written.
        """
        if layer.providerType() == "gdal":
            # after a bar, QGIS keeps options of its own; GDAL's name ends there
            return layer.source().split("|option:")[0].split("|credential:")[0]
        return self._export_raster(layer)

    def vector_source(
        self, source: QgsProcessingFeatureSource, name: str, keep_fields: Sequence[str]
    ) -> str:
        """Write features to a GeoPackage in their own CRS: as selected, filtered and edited now.

        Args:
            source: of the features.
            name: for messages.
            keep_fields: names of the attributes that the engine needs.

        Raises:
            SourceError: there are no features, or they cannot be written.
        """
        fields = QgsFields()
        indexes = [source.fields().lookupField(field) for field in keep_fields]
        for index in indexes:
            fields.append(source.fields().at(index))
        path = self._new_path(name, ".gpkg")
        options = QgsVectorFileWriter.SaveVectorOptions()
        options.driverName = "GPKG"
        options.layerName = "features"
        # a class field may well be called "fid", with values that are not unique
        options.layerOptions = ["FID=hyperkd_fid"]
        writer = QgsVectorFileWriter.create(
            str(path), fields, source.wkbType(), source.sourceCrs(), self._transforms, options
        )
        _check_writer(writer, name)
        count = 0
        # labels drawn by hand cross themselves now and then; the engine takes them as they are
        unchecked = QgsProcessingFeatureSource.FlagSkipGeometryValidityChecks
        for feature in source.getFeatures(QgsFeatureRequest(), unchecked):
            row = QgsFeature(fields)
            row.setGeometry(feature.geometry())
            row.setAttributes([feature.attribute(index) for index in indexes])
            if not writer.addFeature(row):
                _check_writer(writer, name)
            count += 1
        del writer  # closes the file
        if not count:
            raise SourceError(
                f"The layer {name} has no features. If only selected features are used, "
                "select some."
            )
        return str(path)

    def remove(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _export_raster(self, layer: QgsRasterLayer) -> str:
        provider = layer.dataProvider()
        has_size = bool(provider.capabilities() & QgsRasterDataProvider.Size)
        width, height = layer.width(), layer.height()
        if not has_size or width < 1 or height < 1 or width * height > EXPORT_LIMIT_PX:
            raise SourceError(
                f"The layer {layer.name()} ({layer.providerType()}) has no pixels of its own that "
                "could be read. Save it as a GeoTIFF at the resolution that you want, and use that."
            )
        path = self._new_path(layer.name(), ".tif")
        pipe = QgsRasterPipe()
        pipe.set(provider.clone())
        writer = QgsRasterFileWriter(str(path))
        writer.setOutputFormat("GTiff")
        error = writer.writeRaster(
            pipe, width, height, layer.extent(), layer.crs(), self._transforms
        )
        if error != QgsRasterFileWriter.NoError:
            raise SourceError(
                f"The layer {layer.name()} could not be saved as a file for the engine (error "
                f"{int(error)}). Save it as a GeoTIFF yourself, then use that."
            )
        return str(path)

    def _new_path(self, name: str, suffix: str) -> Path:
        if self._folder is None:
            self._folder = Path(
                tempfile.mkdtemp(prefix="hyperkd_", dir=QgsProcessingUtils.tempFolder())
            )
        stem = "".join(letter if letter.isalnum() else "_" for letter in name)[:40] or "layer"
        number = len(list(self._folder.iterdir()))
        return self._folder / f"{stem}_{number}{suffix}"


def whole_file(layer: QgsVectorLayer, keep_fields: Sequence[str]) -> str:
    """Name the file of a vector layer, when it holds just what the layer shows.

    The log's request then repeats the run for as long as the file is there. A filter, unsaved
    edits, joined or computed fields, and a CRS that the user has put right, are not in the file;
    feature numbers ("fid") are, but only QGIS shows them as a field.

    Returns:
        the layer's source, or an empty text when its features must be exported.
    """
    path, *options = layer.source().split("|")
    plain_options = all(option.startswith(("layername=", "layerid=")) for option in options)
    in_file = (
        layer.providerType() == "ogr"
        and plain_options
        and Path(path).suffix.lower() in VECTOR_SUFFIXES
        and Path(path).is_file()
    )
    if not in_file or layer.subsetString() or layer.isModified():
        return ""
    provider = layer.dataProvider()
    wanted = {layer.fields().lookupField(field) for field in keep_fields}
    if wanted & set(layer.primaryKeyAttributes()):
        return ""
    same_fields = layer.fields().names() == provider.fields().names()
    return layer.source() if same_fields and layer.crs() == provider.crs() else ""


def _check_writer(writer: Any, name: str) -> None:
    if writer.hasError() != QgsVectorFileWriter.NoError:
        raise SourceError(
            f"The layer {name} could not be saved as a file for the engine: {writer.errorMessage()}"
        )
