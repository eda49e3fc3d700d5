"""Which windows to read and which to keep: integers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels, rows before columns.

    Raises:
        ValueError: an offset is negative or a side is shorter than one pixel.
    """

    row_off: int
    col_off: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.row_off < 0 or self.col_off < 0 or self.height < 1 or self.width < 1:
            raise ValueError(f"{self} is not a rectangle inside an image.")

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row_off + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col_off + self.width
