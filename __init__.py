"""HyperKD for QGIS: the entry that QGIS calls; everything else is in ``hyperkd_qgis``."""


def classFactory(iface):  # noqa: ANN001, ANN201 - QGIS's own signature
    """Make the plugin.

    Args:
        iface: QGIS's window, or None in ``qgis_process``.
    """
    from .hyperkd_qgis.plugin import HyperKDPlugin

    return HyperKDPlugin(iface)
