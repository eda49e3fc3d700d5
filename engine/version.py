"""The one version of plugin and engine, which stands in ``metadata.txt``."""

from __future__ import annotations

from configparser import ConfigParser
from configparser import Error as ConfigError
from functools import cache
from pathlib import Path

METADATA_FILE = Path(__file__).resolve().parent.parent / "metadata.txt"


@cache
def engine_version() -> str:
    """Read the version of the plugin that this engine belongs to.

    Returns:
        the version, or "unknown" where the file is missing or has none.
    """
    metadata = ConfigParser(interpolation=None)
    try:
        metadata.read(METADATA_FILE, encoding="utf-8")
        return metadata.get("general", "version")
    except (OSError, ConfigError):
        return "unknown"
