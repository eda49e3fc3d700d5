"""What the plugin starts: ``<engine python> -E -s run_engine.py serve``.

QGIS hands its environment on to the programs that it starts. Its Python, GDAL and PROJ are not
the engine's: one variable that leads there is enough to break every CRS, or the start itself.
They are cleared here, before the first import that would read them.
"""

import os
import sys

FOREIGN_PREFIXES = (
    "CPL_",
    "DYLD_",
    "GDAL_",
    "GEOTIFF_",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "OGR_",
    "PIP_",
    "PROJ_",
    "PYTHON",
    "QGIS",
    "QT_",
)


def clear_foreign_variables() -> None:
    """Remove QGIS's variables from this process and from those that it will start."""
    for name in list(os.environ):
        if name.upper().startswith(FOREIGN_PREFIXES):
            del os.environ[name]


def main() -> int:
    """Clean up, put the plugin's own folder first, and start the engine."""
    clear_foreign_variables()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from engine.__main__ import main as engine_main

    return engine_main()


if __name__ == "__main__":
    sys.exit(main())
