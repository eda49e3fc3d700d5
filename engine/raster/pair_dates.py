"""When two images were taken, as far as their files say."""

from __future__ import annotations

from engine.raster.scene import Scene


def date_note(hsi: Scene, msi: Scene) -> tuple[str, ...]:
    """Say so when the images are of different days."""
    return ()
