"""Draw a class map as QGIS draws it: a page with the maps, a legend, a scale bar, the source.

Run by QGIS's own Python, without a screen:
``render_map.py --classes landcover.tif --output landcover.png [--image photo.tif]
[--confidence confidence.tif] [--title …] [--subtitle …] [--source …]``. Classes, names and
colours are those of the files' own styles: nothing about them is known here.
"""

from __future__ import annotations

import argparse
import math
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsContrastEnhancement,
    QgsLayerTreeLayer,
    QgsLayoutExporter,
    QgsLayoutItem,
    QgsLayoutItemLabel,
    QgsLayoutItemLegend,
    QgsLayoutItemMap,
    QgsLayoutItemScaleBar,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsLegendRenderer,
    QgsLegendStyle,
    QgsMapLayerLegendUtils,
    QgsMultiBandColorRenderer,
    QgsPrintLayout,
    QgsProject,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRectangle,
    QgsSimpleLegendNode,
    QgsTextFormat,
    QgsUnitTypes,
)
from qgis.PyQt.QtGui import QColor, QFont

FONT = "Open Sans"
INK = QColor("#263238")
PAGE_HEIGHT_MM = 210.0  # of a landscape A4; the width is what the maps need
MARGIN_MM = 14.0
TOP_MM = 43.0  # where the maps begin, below the title and the maps' names
GAP_MM = 9.0
NAME_MM = 7.0  # a map's name above it
MAIN_HEIGHT_MM = 146.0
LEGEND_WIDTH_MM = 58.0


def open_layer(path: str, name: str) -> QgsRasterLayer:
    """Open a raster with the style that lies beside it.

    Raises:
        SystemExit: QGIS cannot open it.
    """
    layer = QgsRasterLayer(path, name)
    if not layer.isValid():
        raise SystemExit(f"QGIS cannot open {path}: {layer.error().summary()}")
    return layer


def show_in_natural_colours(layer: QgsRasterLayer) -> None:
    """Show bands 3, 2, 1 (red, green, blue of an image in order of wavelength), stretched."""
    layer.setRenderer(QgsMultiBandColorRenderer(layer.dataProvider(), 3, 2, 1))
    layer.setContrastEnhancement(
        QgsContrastEnhancement.StretchToMinimumMaximum, QgsRasterMinMaxOrigin.CumulativeCut
    )


def place(item: QgsLayoutItem, x_mm: float, y_mm: float, size_mm: tuple[float, float]) -> None:
    """Put an item on the page."""
    unit = QgsUnitTypes.LayoutMillimeters
    item.attemptMove(QgsLayoutPoint(x_mm, y_mm, unit))
    item.attemptResize(QgsLayoutSize(*size_mm, unit))
    item.layout().addLayoutItem(item)


def font(size_pt: float, bold: bool = False) -> QFont:
    """Return the page's font."""
    result = QFont(FONT)
    result.setPointSizeF(size_pt)
    result.setBold(bold)
    return result


def round_length_m(length_m: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(length_m))
    return max(step for step in (power, 2 * power, 5 * power) if step <= length_m)


def leave_out_band_name(legend: QgsLayoutItemLegend, node: QgsLayerTreeLayer) -> None:
    """Leave out the entry "Band 1", which QGIS puts above a raster's classes."""
    entries = legend.model().layerOriginalLegendNodes(node)
    order = [i for i, entry in enumerate(entries) if not isinstance(entry, QgsSimpleLegendNode)]
    QgsMapLayerLegendUtils.setLegendNodeOrder(node, order)
    legend.model().refreshLayerLegend(node)


class Page:
    """A page with the main map at the left, small maps in a column beside it, then the legend.

    Args:
        project: that holds the layers.
        extent: of all maps, in the layers' CRS.
    """

    def __init__(self, project: QgsProject, extent: QgsRectangle) -> None:
        self.layout = QgsPrintLayout(project)
        self.layout.initializeDefaults()
        self._extent = extent
        aspect = extent.width() / extent.height()
        small_height_mm = (MAIN_HEIGHT_MM - GAP_MM - NAME_MM) / 2
        self._main_size_mm = (MAIN_HEIGHT_MM * aspect, MAIN_HEIGHT_MM)
        self._small_size_mm = (small_height_mm * aspect, small_height_mm)
        self._small_x_mm = MARGIN_MM + self._main_size_mm[0] + GAP_MM
        self._small_y_mm = TOP_MM
        self._legend_x_mm = self._small_x_mm + self._small_size_mm[0] + GAP_MM
        self._width_mm = self._legend_x_mm + LEGEND_WIDTH_MM
        page = self.layout.pageCollection().page(0)
        page.setPageSize(
            QgsLayoutSize(self._width_mm, PAGE_HEIGHT_MM, QgsUnitTypes.LayoutMillimeters)
        )

    def add_text(self, text: str, y_mm: float, size_pt: float, bold: bool = False) -> None:
        """Add a line over the whole width."""
        self._label(text, MARGIN_MM, y_mm, self._width_mm - 2 * MARGIN_MM, font(size_pt, bold))

    def add_main_map(self, layer: QgsRasterLayer) -> QgsLayoutItemMap:
        """Add the large map."""
        return self._map(layer, MARGIN_MM, TOP_MM, self._main_size_mm)

    def add_small_map(self, layer: QgsRasterLayer) -> None:
        """Add a map below the last one in the column of small maps."""
        self._map(layer, self._small_x_mm, self._small_y_mm, self._small_size_mm)
        self._small_y_mm += self._small_size_mm[1] + GAP_MM + NAME_MM

    def _map(
        self, layer: QgsRasterLayer, x_mm: float, y_mm: float, size_mm: tuple[float, float]
    ) -> QgsLayoutItemMap:
        item = QgsLayoutItemMap(self.layout)
        place(item, x_mm, y_mm, size_mm)
        item.setCrs(layer.crs())
        item.setLayers([layer])
        item.setKeepLayerSet(True)
        item.setExtent(self._extent)
        item.setFrameEnabled(True)
        item.setFrameStrokeColor(INK)
        self._label(layer.name(), x_mm, y_mm - NAME_MM, size_mm[0], font(10, bold=True))
        return item

    def add_legend(self, layers: list[QgsRasterLayer]) -> None:
        """Add the layers' legends in the column at the right."""
        legend = QgsLayoutItemLegend(self.layout)
        legend.setAutoUpdateModel(False)
        group = legend.model().rootGroup()
        group.clear()
        for layer in layers:
            node = group.addLayer(layer)
            QgsLegendRenderer.setNodeLegendStyle(node, QgsLegendStyle.Subgroup)
            leave_out_band_name(legend, node)
        for style, size_pt in ((QgsLegendStyle.Subgroup, 10), (QgsLegendStyle.SymbolLabel, 9)):
            legend.setStyleFont(style, font(size_pt, bold=style == QgsLegendStyle.Subgroup))
        legend.setFontColor(INK)
        legend.setSymbolHeight(4.5)
        legend.setFrameEnabled(False)
        place(legend, self._legend_x_mm, TOP_MM - 10, (LEGEND_WIDTH_MM, 60.0))
        legend.adjustBoxSize()

    def add_scale_bar(self, linked_map: QgsLayoutItemMap) -> None:
        """Add a scale bar below the legend, level with the maps' lower edge."""
        bar = QgsLayoutItemScaleBar(self.layout)
        bar.setLinkedMap(linked_map)
        bar.applyDefaultSize(QgsUnitTypes.DistanceMeters)
        bar.setNumberOfSegments(2)
        bar.setNumberOfSegmentsLeft(0)
        bar.setUnitsPerSegment(round_length_m(self._extent.width() / 6))
        text = QgsTextFormat()
        text.setFont(font(8))
        text.setSize(8)
        text.setColor(INK)
        bar.setTextFormat(text)
        bar.setHeight(2)
        place(bar, self._legend_x_mm, TOP_MM + MAIN_HEIGHT_MM - 12, (LEGEND_WIDTH_MM, 12.0))

    def add_source(self, text: str) -> None:
        """Add the attribution below the maps."""
        self.add_text(text, TOP_MM + MAIN_HEIGHT_MM + 4, 8)

    def save(self, path: str) -> None:
        """Write the page as PNG.

        Raises:
            SystemExit: QGIS cannot write it.
        """
        settings = QgsLayoutExporter.ImageExportSettings()
        settings.dpi = 150
        settings.exportMetadata = False  # a picture needs no position, and PNG cannot hold one
        result = QgsLayoutExporter(self.layout).exportToImage(path, settings)
        if result != QgsLayoutExporter.Success:
            raise SystemExit(f"QGIS cannot write {path} (code {result})")

    def _label(self, text: str, x_mm: float, y_mm: float, width_mm: float, face: QFont) -> None:
        label = QgsLayoutItemLabel(self.layout)
        label.setText(text)
        label.setFont(face)
        label.setFontColor(INK)
        label.setMarginX(0)
        place(label, x_mm, y_mm, (width_mm, face.pointSizeF() * 0.6 + 1))


def draw(options: argparse.Namespace) -> None:
    """Put everything on a page and write it."""
    project = QgsProject.instance()
    classes = open_layer(options.classes, "Land cover")
    small = []
    if options.image:
        small.append(open_layer(options.image, "Image in natural colours"))
        show_in_natural_colours(small[0])
    if options.confidence:
        small.append(open_layer(options.confidence, "Confidence"))
    project.addMapLayers([classes, *small])
    page = Page(project, classes.extent())
    page.add_text(options.title, MARGIN_MM, 20, bold=True)
    page.add_text(options.subtitle, MARGIN_MM + 11, 10)
    main_map = page.add_main_map(classes)
    for layer in small:
        page.add_small_map(layer)
    page.add_legend([classes, *small[-1:]] if options.confidence else [classes])
    page.add_scale_bar(main_map)
    page.add_source(options.source)
    page.save(options.output)
    project.clear()


def main() -> None:
    """Read the command line, start QGIS, draw, end QGIS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--image")
    parser.add_argument("--confidence")
    parser.add_argument("--title", default="Land cover")
    parser.add_argument("--subtitle", default="")
    parser.add_argument("--source", default="")
    options = parser.parse_args()
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    try:
        draw(options)
    finally:
        application.exitQgis()


if __name__ == "__main__":
    sys.exit(main())
