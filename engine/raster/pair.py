"""A pair: a hyperspectral and a multispectral image of one place, on grids that nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rasterio.enums import ColorInterp

from engine.errors import SceneError
from engine.raster.dataset import open_dataset
from engine.raster.extent import Bounds, window_of_extent
from engine.raster.pair_bands import choose_bands, take_bands
from engine.raster.pair_dates import date_note
from engine.raster.pair_grid import (
    NO_SHIFT,
    Shift,
    find_ratio,
    fine_grid,
    fine_window,
    intersection,
    nested_offset,
    overlap,
    overlap_note,
    pixel_ratio,
    place_together,
)
from engine.raster.scene import Scene, open_scene
from engine.raster.spectra import BandTable
from engine.raster.tiles import Window
from engine.raster.writer import Grid

__all__ = ["Pair", "fine_window", "open_pair"]

# Sources so much finer than the fine grid are averaged; others are interpolated.
_AVERAGED_FROM = 1.5


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images of one place, and how the multispectral one is brought onto the fine grid.

    The coarse grid is the hyperspectral image's own; the fine grid is each of its pixels split
    into ``ratio`` x ``ratio``.

    Args:
        hsi: the hyperspectral image, as stored.
        msi: the multispectral image, as stored.
        ratio: fine pixels along a coarse one, 2 or more.
        window: the coarse pixels that are used: where the images overlap, and the extent.
        hsi_index: all hyperspectral bands, 0-based.
        usable_hsi_index: those of them that are good and measure something. Only these say
            whether a pixel is valid.
        msi_index: the multispectral bands inside the hyperspectral range.
        notes: what was assumed, resampled or left out, for the user.
        shift_px: where the multispectral content was found to lie, in coarse pixels to the right
            and down of where it belongs; reading corrects it.
        extent: the coarse pixels that the user wants; None: all.
        msi_alpha_index: the multispectral band that says which pixels are opaque; None: there is
            none, and all that is not nodata is a measurement.
    """

    hsi: Scene
    msi: Scene
    ratio: int
    window: Window
    hsi_index: tuple[int, ...]
    usable_hsi_index: tuple[int, ...]
    msi_index: tuple[int, ...]
    notes: tuple[str, ...] = ()
    shift_px: Shift = NO_SHIFT
    extent: Window | None = None
    msi_alpha_index: int | None = None

    @property
    def grid(self) -> Grid:
        """The fine grid of the result, written in fine windows of the whole image."""
        return fine_grid(self.hsi, self.ratio).crop(fine_window(self.window, self.ratio))

    @property
    def overlap(self) -> Window:
        """The coarse pixels that both images cover, whatever the extent."""
        return overlap(self.hsi, self.msi, self.ratio, self.shift_px)

    @property
    def hsi_table(self) -> BandTable | None:
        """The hyperspectral bands of ``hsi_index``; None without wavelengths."""
        return None if self.hsi.bands is None else take_bands(self.hsi.bands, self.hsi_index)

    @property
    def msi_table(self) -> BandTable | None:
        """The multispectral bands of ``msi_index``; None without wavelengths."""
        return None if self.msi.bands is None else take_bands(self.msi.bands, self.msi_index)

    @property
    def nested_offset(self) -> tuple[int, int] | None:
        """The fine (row, column) on which the multispectral image begins.

        None when its pixels have to be resampled.
        """
        return nested_offset(self.hsi, self.msi, self.ratio, self.shift_px)

    @property
    def averages(self) -> bool:
        """True when resampling takes the mean of finer pixels, False when it interpolates."""
        return pixel_ratio(self.hsi, self.msi) / self.ratio >= _AVERAGED_FROM

    @property
    def resampled(self) -> str:
        """How the multispectral image comes onto the fine grid, in words; empty: as stored."""
        if self.nested_offset is not None:
            return ""
        finer = pixel_ratio(self.hsi, self.msi) / self.ratio
        if self.averages:
            return f"averaged over {finer:.2g} x {finer:.2g} of its pixels"
        return "interpolated (cubic convolution)"

    def shifted(self, x_px: float, y_px: float) -> Pair:
        """The pair with a further shift corrected.

        Args:
            x_px: coarse pixels by which the multispectral content, as this pair reads it, lies
                too far to the right.
            y_px: likewise downwards.

        Raises:
            SceneError: so moved, the images do not overlap.
        """
        shift_px = self.shift_px[0] + x_px, self.shift_px[1] + y_px
        window = _used_window(self.hsi, self.msi, self.ratio, shift_px, self.extent)
        return replace(self, shift_px=shift_px, window=window)


def open_pair(
    hyperspectral: str | Sequence[str],
    multispectral: str | Sequence[str],
    *,
    ratio: int | None = None,
    shift_px: Shift = NO_SHIFT,
    extent: Bounds | None = None,
    hsi_table: str | None = None,
    msi_table: str | None = None,
) -> Pair:
    """Open two images of one place and find out how they lie on each other.

    Args:
        hyperspectral: what `open_scene` takes.
        multispectral: likewise; any CRS and pixels, finer than the first one's.
        ratio: fine pixels along a coarse one; None: found from the pixels' sizes.
        shift_px: where the multispectral content lies, in coarse pixels to the right and down of
            where it belongs.
        extent: xmin, ymin, xmax, ymax in the hyperspectral image's CRS; None: all.
        hsi_table: a band table of the user for the first.
        msi_table: a band table of the user for the second.

    Raises:
        SceneError: an image cannot be opened, holds classes or one band in place of spectra; they
            do not overlap, the fine one is not finer, or it has no band where the other one
            measures.
        BandTableError: a user's table does not fit.
        RequestError: the ratio is below 2, or the extent lies outside.
    """
    hsi, msi = open_scene(hyperspectral, hsi_table), open_scene(multispectral, msi_table)
    _check_measured(hsi)
    _check_measured(msi)
    if len(hsi.band_sources) == 1:
        raise SceneError(
            f"{hsi.name} has one band, and no spectra that could be given at finer pixels.",
            "Choose the hyperspectral image.",
        )
    hsi, msi, place_notes = place_together(hsi, msi, ratio)
    # Before the ratio, which would be the least of the troubles of images of two places.
    shared = overlap(hsi, msi, ratio or 1, shift_px)
    found_ratio, ratio_notes = find_ratio(hsi, msi, ratio)
    wanted = (
        None if extent is None else window_of_extent(extent, hsi.transform, hsi.height, hsi.width)
    )
    shared = overlap(hsi, msi, found_ratio, shift_px)
    bands = choose_bands(hsi, msi)
    notes = (*hsi.notes, *msi.notes, *place_notes, *ratio_notes, *overlap_note(hsi, shared))
    notes = (*notes, *bands.notes, *date_note(hsi, msi))
    return Pair(
        hsi=hsi,
        msi=msi,
        ratio=found_ratio,
        window=_used_window(hsi, msi, found_ratio, shift_px, wanted),
        hsi_index=bands.hsi_index,
        usable_hsi_index=bands.usable_hsi_index,
        msi_index=bands.msi_index,
        notes=tuple(dict.fromkeys(notes)),
        shift_px=shift_px,
        extent=wanted,
        msi_alpha_index=bands.alpha_index,
    )


def _check_measured(scene: Scene) -> None:
    """Refuse a map of classes, which may look like a panchromatic image.

    Raises:
        SceneError: a band has a colour table.
    """
    for file in scene.files:
        with open_dataset(file) as dataset:
            if ColorInterp.palette in dataset.colorinterp:
                raise SceneError(
                    f"{scene.name} has a colour table: its numbers are those of classes or of "
                    "colours, and measure no light.",
                    "Choose an image of reflectance.",
                )


def _used_window(
    hsi: Scene, msi: Scene, ratio: int, shift_px: Shift, extent: Window | None
) -> Window:
    """What the images share of the extent.

    Raises:
        SceneError: nothing.
    """
    shared = overlap(hsi, msi, ratio, shift_px)
    if extent is None:
        return shared
    used = intersection(shared, extent)
    if used is None:
        raise SceneError(
            f"The extent lies where {hsi.name} and {msi.name} do not overlap.",
            "Choose an extent that both images cover.",
        )
    return used
