"""Result files to styled layers: named, in a group, in the order in which one looks at them.

The engine writes the style into the file and beside it, so that any way to open the file looks
right. What is done here is for the layer that arrives in the project after a run.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Callable

from osgeo import gdal
from qgis.core import (
    QgsBasicNumericFormat,
    QgsCategorizedSymbolRenderer,
    QgsColorRampLegendNodeSettings,
    QgsColorRampShader,
    QgsFillSymbol,
    QgsGradientColorRamp,
    QgsGradientStop,
    QgsLayerTree,
    QgsLayerTreeGroup,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProject,
    QgsRasterLayer,
    QgsRasterShader,
    QgsRendererCategory,
    QgsSingleBandPseudoColorRenderer,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor

CLASSES = "classes"
SHARE = "share"
VALUES = "values"
CLASS_POLYGONS = "class polygons"

CLASS_FIELD = "class_value"  # of polygons, as the engine writes them
OUTLINE_PERCENT = 140  # of the fill's darkness
OUTLINE_MM = "0.1"

SAMPLE_PX = 250_000  # of a raster whose range is looked for, as QGIS itself takes
LEGEND_DIGITS = 4  # of a range: it shows 100 steps and more

# the engine's: readable without colour vision and in grey, dark means sure
_RAMP = ("#fde725", "#5ec962", "#21918c", "#3b528b", "#440154")

_alive: list[LayerFinisher] = []
"""QGIS keeps no reference of the Python half of a post-processor: without one it does nothing."""


@dataclass(frozen=True)
class ResultLook:
    """How one output becomes a layer.

    Args:
        kind: `CLASSES` for a class map, `SHARE` for values from 0 to 1, `VALUES` for a quantity,
            `CLASS_POLYGONS` for the polygons of a class map.
        title: what the layer shows; the scene's name is added. A quantity has its own name, which
            stands in the file.
        rank: 0 lies on top.
        legend: output that is the class map of polygons, and has their names and colours.
    """

    kind: str
    title: str
    rank: int = 0
    legend: str = ""


class LayerFinisher(QgsProcessingLayerPostProcessorInterface):
    """Styles one layer and puts it into its group, when QGIS has loaded it.

    Args:
        look: how the layer is to look.
        group_name: of the layer tree.
        legend_path: of the class map that polygons were made of.
    """

    def __init__(self, look: ResultLook, group_name: str, legend_path: str = "") -> None:
        super().__init__()
        self._look = look
        self._group_name = group_name
        self._legend_path = legend_path
        _alive.append(self)

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Style the layer; called by QGIS in the main thread."""
        if layer.isValid():
            self._style(layer)
            layer.triggerRepaint()
        if not _tells_group_by_itself():
            move_to_group(layer, self._group_name, self._look.rank)
        if self in _alive:
            _alive.remove(self)

    def _style(self, layer: QgsMapLayer) -> None:
        if isinstance(layer, QgsRasterLayer):
            _STYLES[self._look.kind](layer)
        elif isinstance(layer, QgsVectorLayer) and self._look.kind == CLASS_POLYGONS:
            style_class_polygons(layer, self._legend_path)


def finish_when_loaded(
    context: QgsProcessingContext,
    path: str,
    look: ResultLook,
    default_name: str,
    scene_name: str,
    legend_path: str = "",
) -> None:
    """Arrange that an output which QGIS will load arrives named, styled and in a group.

    Args:
        context: of the run.
        path: of the output.
        look: how it is to look.
        default_name: QGIS's name for it; another one was chosen by the user and stays.
        scene_name: of the input layer.
        legend_path: of the class map that polygons were made of.
    """
    if not path or not context.willLoadLayerOnCompletion(path):
        return
    details = context.layerToLoadOnCompletionDetails(path)
    group_name = f"HyperKD: {scene_name}" if scene_name else "HyperKD"
    if details.name in ("", default_name):
        title = (read_quantity(path).title if look.kind == VALUES else "") or look.title
        details.name = f"{title} of {scene_name}" if scene_name else title
    if _tells_group_by_itself():
        details.groupName = group_name
        if hasattr(details, "layerSortKey"):
            details.layerSortKey = look.rank
    details.setPostProcessor(LayerFinisher(look, group_name, legend_path))
    context.addLayerToLoadOnCompletion(path, details)


def forget_finishers() -> None:
    """Let go of what waits for layers that never came; for the end of the plugin."""
    _alive.clear()


def style_classes(layer: QgsRasterLayer) -> None:
    """Show the named classes of a class map alone.

    Without a style file, QGIS shows all 256 colours of the file's table; those that are classes
    have a name, the others their number.
    """
    renderer = layer.renderer()
    if not isinstance(renderer, QgsPalettedRasterRenderer):
        return
    entries = renderer.classes()
    named = [
        entry
        for entry in entries
        if entry.value and entry.label and entry.label != f"{entry.value:g}"
    ]
    if named and len(named) < len(entries):
        layer.setRenderer(QgsPalettedRasterRenderer(layer.dataProvider(), 1, named))


def style_class_polygons(layer: QgsVectorLayer, map_path: str) -> None:
    """Give polygons the names and colours of the class map that they were made of.

    A style of their own, which QGIS reads from the GeoPackage, stays.

    Args:
        layer: of polygons with the field `CLASS_FIELD`.
        map_path: of the class map.
    """
    if isinstance(layer.renderer(), QgsCategorizedSymbolRenderer):
        return
    class_map = QgsRasterLayer(map_path, "classes")
    if not class_map.isValid():
        return
    style_classes(class_map)
    renderer = class_map.renderer()
    if not isinstance(renderer, QgsPalettedRasterRenderer):
        return
    categories = [
        QgsRendererCategory(int(entry.value), polygon_symbol(entry.color), entry.label)
        for entry in renderer.classes()
    ]
    layer.setRenderer(QgsCategorizedSymbolRenderer(CLASS_FIELD, categories))


def polygon_symbol(color: QColor) -> QgsFillSymbol:
    """Fill a polygon, with a thin outline that is a little darker."""
    return QgsFillSymbol.createSimple(
        {
            "color": color.name(),
            "outline_color": color.darker(OUTLINE_PERCENT).name(),
            "outline_width": OUTLINE_MM,
        }
    )


def style_share(layer: QgsRasterLayer) -> None:
    """Give values from 0 to 1 a sequential ramp, unless the style file did so."""
    if not isinstance(layer.renderer(), QgsSingleBandPseudoColorRenderer):
        layer.setRenderer(ramp_renderer(layer, 0.0, 1.0))


def style_values(layer: QgsRasterLayer) -> None:
    """Give numbers a ramp whose legend is continuous and tells the unit.

    The range is that of the style file; without one, that of the layer.
    """
    least, most = _range_of(layer)
    if not 0 < most - least < math.inf:  # one value everywhere, or none at all
        return
    renderer = ramp_renderer(layer, least, most)
    unit = read_quantity(layer.source().split("|")[0]).unit
    settings = _legend_settings(most - least, unit)
    renderer.shader().rasterShaderFunction().setLegendSettings(settings)
    layer.setRenderer(renderer)


def _legend_settings(span: float, unit: str) -> QgsColorRampLegendNodeSettings:
    """Show as many digits as the range is worth, and the unit."""
    numbers = QgsBasicNumericFormat()
    numbers.setNumberDecimalPlaces(max(0, LEGEND_DIGITS - 1 - math.floor(math.log10(span))))
    settings = QgsColorRampLegendNodeSettings()
    settings.setNumericFormat(numbers)
    settings.setSuffix(f" {unit}" if unit else "")
    return settings


def ramp_renderer(
    layer: QgsRasterLayer, least: float, most: float
) -> QgsSingleBandPseudoColorRenderer:
    """Make a renderer of the first band: straight between the colours of the ramp."""
    stops = [
        QgsGradientStop(number / (len(_RAMP) - 1), QColor(color))
        for number, color in enumerate(_RAMP)
    ]
    ramp = QgsGradientColorRamp(QColor(_RAMP[0]), QColor(_RAMP[-1]), False, stops[1:-1])
    function = QgsColorRampShader(least, most, ramp)
    values = [least + stop.offset * (most - least) for stop in stops]
    function.setColorRampItemList(
        [
            QgsColorRampShader.ColorRampItem(value, stop.color, f"{value:.4g}")
            for value, stop in zip(values, stops)
        ]
    )
    shader = QgsRasterShader()
    shader.setRasterShaderFunction(function)
    renderer = QgsSingleBandPseudoColorRenderer(layer.dataProvider(), 1, shader)
    renderer.setClassificationMin(least)
    renderer.setClassificationMax(most)
    return renderer


def _range_of(layer: QgsRasterLayer) -> tuple[float, float]:
    renderer = layer.renderer()
    if isinstance(renderer, QgsSingleBandPseudoColorRenderer):
        return renderer.classificationMin(), renderer.classificationMax()
    statistics = layer.dataProvider().bandStatistics(1, extent=layer.extent(), sampleSize=SAMPLE_PX)
    return statistics.minimumValue, statistics.maximumValue


@dataclass(frozen=True)
class Quantity:
    """What the first band of a raster holds, as its file says.

    Args:
        title: for people, such as "Soil organic carbon"; empty when the file does not say.
        unit: such as "g/kg"; empty when the file does not say.
    """

    title: str = ""
    unit: str = ""


def read_quantity(path: str) -> Quantity:
    """Read the name and the unit of a raster's first band."""
    try:
        with warnings.catch_warnings():
            # GDAL wants exceptions switched on or off, for all of QGIS: not for us to say
            warnings.simplefilter("ignore", FutureWarning)
            dataset = gdal.Open(path)
    except RuntimeError:  # raised where some plugin has switched GDAL's exceptions on
        return Quantity()
    if dataset is None:
        return Quantity()
    band = dataset.GetRasterBand(1)
    name = band.GetDescription().strip()
    return Quantity(name[:1].upper() + name[1:], band.GetUnitType().strip())


_STYLES: dict[str, Callable[[QgsRasterLayer], None]] = {
    CLASSES: style_classes,
    SHARE: style_share,
    VALUES: style_values,
}


def move_to_group(layer: QgsMapLayer, group_name: str, rank: int) -> None:
    """Move a layer of the project into a group beside it; nothing happens outside a project."""
    project = layer.project() or QgsProject.instance()
    node = project.layerTreeRoot().findLayer(layer.id())
    if node is None:
        return
    parent = node.parent()
    # QGIS puts a new layer beside the one that is chosen, which may be in the group already
    is_inside = QgsLayerTree.isGroup(parent) and parent.name() == group_name
    group = parent if is_inside else _child_group(parent, group_name)
    if group is None:
        group = parent.insertGroup(0, group_name)
    copy = node.clone()
    copy.setCustomProperty("hyperkd/rank", rank)
    # in this order: a layer that the tree has nowhere is dropped from the project
    group.insertChildNode(_position(group, rank), copy)
    parent.removeChildNode(node)


def _position(group: QgsLayerTreeGroup, rank: int) -> int:
    """Find the place of a rank; of two runs into one group, the newer lies on top."""
    for position, child in enumerate(group.children()):
        its_rank = child.customProperty("hyperkd/rank")
        if its_rank is not None and int(its_rank) >= rank:
            return position
    return len(group.children())


def _child_group(parent: QgsLayerTreeGroup, name: str) -> QgsLayerTreeGroup | None:
    for child in parent.children():
        if QgsLayerTree.isGroup(child) and child.name() == name:
            return child
    return None


def _tells_group_by_itself() -> bool:
    # since 3.32 QGIS makes the group
    return hasattr(QgsProcessingContext.LayerDetails, "groupName")
