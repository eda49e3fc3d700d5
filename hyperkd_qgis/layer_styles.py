"""What a layer of results looks like: classes, shares, quantities, polygons, fused images.

The engine writes the same looks beside its files. What is done here holds where a style file is
missing, and adds what no file can carry.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from osgeo import gdal
from qgis.core import (
    QgsBasicNumericFormat,
    QgsCategorizedSymbolRenderer,
    QgsColorRampLegendNodeSettings,
    QgsColorRampShader,
    QgsContrastEnhancement,
    QgsFillSymbol,
    QgsGradientColorRamp,
    QgsGradientStop,
    QgsMultiBandColorRenderer,
    QgsPalettedRasterRenderer,
    QgsPercentageNumericFormat,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
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
CUBE = "cube"
RESIDUAL = "residual"

CLASS_FIELD = "class_value"  # of polygons, as the engine writes them
OUTLINE_PERCENT = 140  # of the fill's darkness
OUTLINE_MM = "0.1"

SAMPLE_PX = 250_000  # of a raster whose range is looked for, as QGIS itself takes
LEGEND_DIGITS = 4  # of a range: it shows 100 steps and more

# what a cube is shown by, the engine's: red, green and blue light
RGB_NM = (660.0, 560.0, 480.0)
RGB_REACH_NM = 60.0  # a band further off shows another colour
# of a residual that is drawn light: a tenth of the signal is not given back
RESIDUAL_MOST = 0.1

# the engine's: readable without colour vision and in grey, dark means sure
_RAMP = ("#fde725", "#5ec962", "#21918c", "#3b528b", "#440154")


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


def style_cube(layer: QgsRasterLayer) -> None:
    """Show a scene in its own colours, as the style file does; without one, by its wavelengths."""
    if load_style_file(layer):
        return
    bands = [_nearest_band(_wavelengths_nm(layer.source()), wanted) for wanted in RGB_NM]
    if 0 in bands:
        return
    layer.setRenderer(QgsMultiBandColorRenderer(layer.dataProvider(), *bands))
    layer.setContrastEnhancement(
        QgsContrastEnhancement.StretchToMinimumMaximum, QgsRasterMinMaxOrigin.CumulativeCut
    )


def style_residual(layer: QgsRasterLayer) -> None:
    """Show how much of a signal is not given back: dark where all of it is; legend in percent.

    The range is that of the style file; without one, up to `RESIDUAL_MOST`.
    """
    least, most = 0.0, RESIDUAL_MOST
    load_style_file(layer)
    if isinstance(layer.renderer(), QgsSingleBandPseudoColorRenderer):
        least, most = _range_of(layer)
    renderer = ramp_renderer(layer, least, most, _RAMP[::-1])
    percent = QgsPercentageNumericFormat()
    percent.setInputValues(QgsPercentageNumericFormat.ValuesAreFractions)
    percent.setNumberDecimalPlaces(1)
    settings = QgsColorRampLegendNodeSettings()
    settings.setNumericFormat(percent)
    renderer.shader().rasterShaderFunction().setLegendSettings(settings)
    layer.setRenderer(renderer)


def load_style_file(layer: QgsRasterLayer) -> bool:
    """Give a layer the style that lies beside its file: Processing loads results without it.

    Returns:
        whether there is one.
    """
    if not Path(layer.styleURI()).is_file():
        return False
    _, is_loaded = layer.loadDefaultStyle()
    return is_loaded


def _legend_settings(span: float, unit: str) -> QgsColorRampLegendNodeSettings:
    """Show as many digits as the range is worth, and the unit."""
    numbers = QgsBasicNumericFormat()
    numbers.setNumberDecimalPlaces(max(0, LEGEND_DIGITS - 1 - math.floor(math.log10(span))))
    settings = QgsColorRampLegendNodeSettings()
    settings.setNumericFormat(numbers)
    settings.setSuffix(f" {unit}" if unit else "")
    return settings


def ramp_renderer(
    layer: QgsRasterLayer, least: float, most: float, colors: Sequence[str] = _RAMP
) -> QgsSingleBandPseudoColorRenderer:
    """Make a renderer of the first band: straight between the colours of the ramp."""
    stops = [
        QgsGradientStop(number / (len(colors) - 1), QColor(color))
        for number, color in enumerate(colors)
    ]
    ramp = QgsGradientColorRamp(QColor(colors[0]), QColor(colors[-1]), False, stops[1:-1])
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
    dataset = _open_dataset(path)
    if dataset is None:
        return Quantity()
    band = dataset.GetRasterBand(1)
    name = band.GetDescription().strip()
    return Quantity(name[:1].upper() + name[1:], band.GetUnitType().strip())


def _open_dataset(path: str) -> gdal.Dataset | None:
    """Open a raster by GDAL; None where that does not go."""
    try:
        with warnings.catch_warnings():
            # GDAL wants exceptions switched on or off, for all of QGIS: not for us to say
            warnings.simplefilter("ignore", FutureWarning)
            return gdal.Open(path)
    except RuntimeError:  # raised where some plugin has switched GDAL's exceptions on
        return None


def _wavelengths_nm(path: str) -> list[float]:
    """Read the wavelength of each band, as the engine writes it; NaN where a band has none."""
    dataset = _open_dataset(path)
    if dataset is None:
        return []
    items = [
        dataset.GetRasterBand(number).GetMetadataItem("wavelength")
        for number in range(1, dataset.RasterCount + 1)
    ]
    return [float(item) if item else math.nan for item in items]


def _nearest_band(wavelengths_nm: Sequence[float], wanted_nm: float) -> int:
    """Number the band that is nearest to a wavelength, from 1; 0 when none is near."""
    distances = [abs(wavelength - wanted_nm) for wavelength in wavelengths_nm]
    near = [distance for distance in distances if distance <= RGB_REACH_NM]
    return distances.index(min(near)) + 1 if near else 0


RASTER_STYLES: dict[str, Callable[[QgsRasterLayer], None]] = {
    CLASSES: style_classes,
    SHARE: style_share,
    VALUES: style_values,
    CUBE: style_cube,
    RESIDUAL: style_residual,
}
