"""The QGIS side of HyperKD: parameters in, a request out; a result in, a styled layer out."""
