"""Load and unload; lives with and without a window."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsApplication

from .engine_session import EngineSession
from .layers import forget_finishers
from .provider import HyperKDProvider


class HyperKDPlugin:
    """The plugin, as QGIS's plugin manager and ``qgis_process`` know it.

    Args:
        iface: QGIS's window; None in ``qgis_process``. The toolbox is the whole interface.
    """

    def __init__(self, iface: Any) -> None:
        self.iface = iface
        self._session: EngineSession | None = None
        self._provider: HyperKDProvider | None = None

    def initProcessing(self) -> None:
        """Add the provider; what ``qgis_process`` calls instead of `initGui`."""
        session = EngineSession()
        provider = HyperKDProvider(session)
        # an id that is taken already deletes the provider: then there is nothing to keep
        if QgsApplication.processingRegistry().addProvider(provider):
            self._session, self._provider = session, provider

    def initGui(self) -> None:
        """Add the provider to a QGIS with a window."""
        self.initProcessing()

    def unload(self) -> None:
        """Take everything away again, the engine too."""
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
        if self._session is not None:
            self._session.close()
            self._session = None
        forget_finishers()
