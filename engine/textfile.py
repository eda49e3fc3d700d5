"""Text files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from engine.errors import OutputError


def write_text(path: str, text: str) -> Path:
    """Write a text file under a temporary name beside its destination, and rename it.

    Raises:
        OutputError: the file cannot be written.
    """
    destination = Path(path)
    unfinished = destination.with_name(f".{destination.name}.{uuid4().hex[:8]}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, destination)
    except OSError as error:
        raise OutputError(
            f"The file {destination} cannot be written ({error.strerror or error}).",
            "Choose a folder that exists, is writable and has space.",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return destination
