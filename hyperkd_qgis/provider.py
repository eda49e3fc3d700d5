"""The provider ``hyperkd``: its algorithms, icon and options."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms import algorithm_classes
from .algorithms.base import RESOURCES
from .engine_session import EngineSession
from .settings import add_options, remove_options


class HyperKDProvider(QgsProcessingProvider):
    """HyperKD in the toolbox.

    Args:
        session: the engine that all algorithms share.
    """

    def __init__(self, session: EngineSession) -> None:
        super().__init__()
        self._session = session

    def load(self) -> bool:
        """Add the options, then the algorithms."""
        add_options(self.icon())
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Take the options away."""
        remove_options()

    def loadAlgorithms(self) -> None:
        """Add the algorithms."""
        for algorithm_class in algorithm_classes():
            self.addAlgorithm(algorithm_class(self._session))

    def id(self) -> str:
        """Name the provider for scripts; never changed."""
        return "hyperkd"

    def name(self) -> str:
        """Name the provider for people."""
        return "HyperKD"

    def longName(self) -> str:
        """Name the provider in full."""
        return "HyperKD: deep learning for hyperspectral images"

    def icon(self) -> QIcon:
        """Draw the provider."""
        return QIcon(self.svgIconPath())

    def svgIconPath(self) -> str:
        """Name the provider's drawing."""
        return str(RESOURCES / "icons" / "hyperkd.svg")

    def defaultRasterFileExtension(self) -> str:
        """Name what the engine writes."""
        return "tif"

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        """List what the engine writes: Cloud Optimized GeoTIFF."""
        return ["tif", "tiff"]

    def defaultVectorFileExtension(self, hasGeometry: bool = True) -> str:
        """Name what the engine writes."""
        return "gpkg"

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """List what the engine writes: GeoPackage."""
        return ["gpkg"]
