"""Pairs whose fine hyperspectral truth is known: what `benchmarks.fusion_quality` uses.

Simulated pairs are made of real airborne cubes at a ratio of 4: the cube seen through a Gaussian
as wide as a coarse pixel, with noise 35 dB below it, and through the boxes of Landsat TM's first
four bands or of all six. Real pairs are of two sensors each and go by Wald's protocol at a ratio
of 3: what is to be found is the hyperspectral image itself.

Two cubes come without wavelengths. Theirs are approximate: read off the absorption of water and
oxygen in the mean spectrum, which the broad boxes of TM forgive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject
from scipy.io import loadmat
from torch import Tensor
from torch.nn.functional import grid_sample

from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.method import ImagePair
from engine.raster.spectra import BandTable
from engine.training.pair_physics import degrade_pair, estimate_physics
from engine.training.pair_shift import estimate_shift

Array = NDArray[np.float64]

SIMULATED_RATIO = 4
REAL_RATIO = 3
SNR_DB = 35.0
BLOCK_PX = 6  # coarse pixels along a block of ground that is held out or not
SHARE = 4  # one block of so many is held out, another one by each seed
# Edges in nm of Landsat TM's bands 1 to 5 and 7.
TM_NM = ((450, 520), (520, 600), (630, 690), (760, 900), (1550, 1750), (2080, 2350))
# EO-1 ALI: MS-1p, MS-1, MS-2, MS-3, MS-4, MS-4p, MS-5p, MS-5, MS-7, and the panchromatic band.
ALI_NM = (
    *((433, 453), (450, 515), (525, 605), (630, 690), (775, 805), (845, 890)),
    *((1200, 1300), (1550, 1750), (2080, 2350)),
)
ALI_PAN_NM = ((480, 690),)
# A pixel that was moved is known where all that it was made of is.
_ALL = 0.999
# A band whose neighbouring pixels differ this much, in its own spread, shows noise and no ground.
_NOISE = 1.2
# (number in the file from 0, nm): ends, the red edge or oxygen at 760, and water at 940, 1130,
# 1380 and 1880; bands between are taken as evenly spaced.
_AVIRIS_URBAN_NM = (
    *((0, 375), (43, 760), (62, 940), (81, 1130), (105, 1360), (111, 1440), (142, 1800)),
    *((153, 1965), (157, 2007), (197, 2405)),
)
# (number of 210 from 1, nm), likewise; the usual 48 bands of water and noise are not in the file.
_HYDICE_NM = (
    *((1, 399), (57, 715), (76, 940), (87, 1130), (101, 1340), (111, 1450), (136, 1800)),
    *((153, 1960), (210, 2499)),
)
_HYDICE_LEFT_OUT = ((1, 4), (76, 76), (87, 87), (101, 111), (136, 153), (198, 210))


@dataclass(frozen=True, eq=False)
class Cube:
    """A hyperspectral image that stands for the truth.

    Args:
        values: (L, H, W) float64, about 0 to 1.
        valid: (H, W) bool.
        wavelength_nm: (L,).
    """

    values: Array
    valid: NDArray[np.bool_]
    wavelength_nm: Array


@dataclass(frozen=True, eq=False)
class Case:
    """A pair and what is to be found.

    Args:
        name: of the table's row.
        pair: both images, of a batch of one.
        target: (1, L, H, W) float32 on the fine grid.
        target_valid: (1, H, W) bool.
        hsi_bands: of the hyperspectral image.
        msi_bands: of the multispectral one.
    """

    name: str
    pair: ImagePair
    target: Tensor
    target_valid: Tensor
    hsi_bands: BandTable
    msi_bands: BandTable

    @property
    def ratio(self) -> int:
        """Fine pixels along a coarse one."""
        return self.pair.ratio

    @property
    def known(self) -> Tensor:
        """(1, H, W) bool, where both images and the truth are valid: what is asked about."""
        coarse = self.pair.hsi_valid.repeat_interleave(self.ratio, 1)
        coarse = coarse.repeat_interleave(self.ratio, 2)
        return self.target_valid & self.pair.msi_valid & coarse


def hold_out_quarter(case: Case, seed: int) -> Tensor:
    """(1, H, W) bool, True on the blocks of fine pixels which this seed's trainings do not see.

    Four seeds in a row hold out four different quarters, which are all of the ground.
    """
    rows, cols = (_blocks(size) for size in case.pair.hsi.shape[-2:])
    count = int(rows[-1] + 1) * int(cols[-1] + 1)
    order = np.random.default_rng(seed // SHARE).permutation(count)
    held = order % SHARE == seed % SHARE
    coarse = held[rows[:, None] * (cols[-1] + 1) + cols]
    fine = coarse.repeat(case.ratio, axis=0).repeat(case.ratio, axis=1)
    return torch.from_numpy(fine)[None]


def _blocks(size_px: int) -> NDArray[np.int64]:
    """(size,) number of the block that each coarse pixel of a side is in."""
    count = max(round(size_px / BLOCK_PX), 1)
    return np.asarray(np.arange(size_px) * count // size_px)


def load_case(name: str, data: Path, seed: int) -> Case:
    """Make one of `CASES`.

    Args:
        name: its key.
        data: the folder of real data.
        seed: of the noise.
    """
    return CASES[name](data, seed)


def simulate(name: str, cube: Cube, edges_nm: tuple[tuple[int, int], ...], seed: int) -> Case:
    """A pair at a ratio of 4 of a cube, seen by two sensors.

    Args:
        name: of the case.
        cube: the truth; rows and columns beyond a multiple of the ratio are left out.
        edges_nm: of the multispectral bands.
        seed: of the noise.
    """
    height, width = (side // SIMULATED_RATIO * SIMULATED_RATIO for side in cube.valid.shape)
    truth = torch.from_numpy(cube.values[:, :height, :width]).float()[None]
    valid = torch.from_numpy(cube.valid[:height, :width])[None]
    truth = truth * valid[:, None]
    response = SpectralResponse(torch.from_numpy(_boxes(cube.wavelength_nm, edges_nm)))
    hsi, hsi_valid = PointSpread.gaussian(SIMULATED_RATIO).degrade(truth, valid)
    # The published rule of noise, of the signal itself: one spread for all bands.
    signal = hsi.square().mean() * hsi_valid.numel() / hsi_valid.sum()
    sigma = (signal / 10 ** (SNR_DB / 10)).sqrt()
    noise = torch.randn(hsi.shape, generator=torch.Generator().manual_seed(seed))
    hsi = (hsi + sigma * noise) * hsi_valid[:, None]
    pair = ImagePair(hsi, response(truth) * valid[:, None], hsi_valid, valid)
    return Case(name, pair, truth, valid, _table(cube.wavelength_nm), _table_of(edges_nm))


def _boxes(wavelength_nm: Array, edges_nm: tuple[tuple[int, int], ...]) -> Array:
    """Responses that are 1 within their edges and 0 elsewhere; rows sum to 1.

    Raises:
        ValueError: a box has no band in it.
    """
    rows = np.stack(
        [(wavelength_nm >= low) & (wavelength_nm <= high) for low, high in edges_nm]
    ).astype(float)
    if not rows.any(axis=1).all():
        raise ValueError("A multispectral band has no hyperspectral band in it.")
    return rows / rows.sum(axis=1, keepdims=True)


def _wald(name: str, full: ImagePair, hsi_bands: BandTable, msi_bands: BandTable) -> Case:
    """A real pair as both sensors would see it from three times as far."""
    full = _aligned(full)
    physics = estimate_physics([full], hsi_bands=hsi_bands, msi_bands=msi_bands)
    pair, target, valid = degrade_pair(full, physics)
    return Case(name, pair, target, valid, hsi_bands, msi_bands)


def _aligned(pair: ImagePair) -> ImagePair:
    """Move the multispectral image to where the hyperspectral one shows the same ground."""
    shift = estimate_shift([pair], pair.ratio)
    height, width = pair.msi.shape[-2:]
    rows = torch.arange(height) + 0.5 + shift.y_px * pair.ratio
    cols = torch.arange(width) + 0.5 + shift.x_px * pair.ratio
    y, x = torch.meshgrid(rows * 2 / height - 1, cols * 2 / width - 1, indexing="ij")
    place = torch.stack([x, y], dim=-1)[None].float()
    moved = grid_sample(pair.msi, place, mode="bicubic", padding_mode="border", align_corners=False)
    known = grid_sample(pair.msi_valid[:, None].float(), place, align_corners=False)
    valid = known[:, 0] > _ALL
    return replace(pair, msi=moved * valid[:, None], msi_valid=valid)


def _paris_ali(data: Path, seed: int) -> Case:
    """Hyperion made coarser by 3 with ALI, which has Hyperion's own grid of 30 m."""
    file = loadmat(data / "paris" / "paris_data_hs_ms.mat")
    truth, msi = _image(file["HSim"]), _image(file["MSim"])
    valid = torch.ones(1, *truth.shape[-2:], dtype=torch.bool)
    hsi, hsi_valid = PointSpread.gaussian(REAL_RATIO).degrade(truth, valid)
    pair = _aligned(ImagePair(hsi, msi, hsi_valid, valid))
    return Case("Paris, Hyperion and ALI", pair, truth, valid, _hyperion(file), _table_of(ALI_NM))


def _paris_pan(data: Path, seed: int) -> Case:
    """Hyperion of 30 m with ALI's panchromatic band of 10 m, both made coarser."""
    file = loadmat(data / "paris" / "paris_data_hs_pan.mat")
    hsi, pan = _image(file["HSim"]), _image(file["PCim"][..., None])
    full = ImagePair(hsi, pan, _all_valid(hsi), _all_valid(pan))
    return _wald("Paris, Hyperion and pan", full, _hyperion(file), _table_of(ALI_PAN_NM))


def _berlin(data: Path, seed: int) -> Case:
    """EnMAP of 30 m with an image of 3.6 m brought to 10 m, both made coarser."""
    folder = data / "berlin"
    with rasterio.open(folder / "EnMAP_BerlinUrbanGradient.bsq") as coarse:
        hsi, hsi_valid = _stored(coarse, coarse.read())
        bands, crs = _stored_table(coarse), coarse.crs
        transform = coarse.transform * Affine.scale(1 / REAL_RATIO)
        shape = (coarse.height * REAL_RATIO, coarse.width * REAL_RATIO)
    with rasterio.open(folder / "HighResolution_BerlinUrbanGradient.bsq") as fine:
        averaged = np.full((fine.count, *shape), fine.nodata, np.float32)
        reproject(
            fine.read().astype(np.float32),
            averaged,
            src_transform=fine.transform,
            src_crs=fine.crs,
            src_nodata=fine.nodata,
            dst_transform=transform,
            dst_crs=crs,
            dst_nodata=fine.nodata,
            resampling=Resampling.average,
        )
        msi, msi_valid = _stored(fine, averaged)
        msi_bands = _stored_table(fine)
    return _wald(
        "Berlin, EnMAP and HyMap", ImagePair(hsi, msi, hsi_valid, msi_valid), bands, msi_bands
    )


def _stored(dataset: Any, values: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Stored integers x 10,000 to (1, C, H, W) reflectance and (1, H, W) valid."""
    valid = (values != dataset.nodata).all(axis=0)
    reflectance = np.where(valid, values / 1e4, 0.0).astype(np.float32)
    return torch.from_numpy(reflectance)[None], torch.from_numpy(valid)[None]


def _stored_table(dataset: Any) -> BandTable:
    micrometres = [float(dataset.tags(i)["wavelength"]) for i in dataset.indexes]
    return _table(np.asarray(micrometres) * 1e3)


def _jasper(data: Path) -> Cube:
    file = loadmat(data / "jasper_ridge" / "JasperRidge2_R198.mat")
    values = file["Y"].reshape(198, 100, 100).transpose(0, 2, 1) / 1e4
    with rasterio.open(data / "jasper_ridge" / "derived" / "jasper_hsi.tif") as tagged:
        wavelength_nm = [float(tagged.tags(i)["wavelength"]) for i in tagged.indexes]
    return _cube(values, np.asarray(wavelength_nm))


def _aviris_urban(data: Path) -> Cube:
    cube = loadmat(data / "anomaly_scenes" / "abu-urban-2.mat")["data"]
    number, nm = np.asarray(_AVIRIS_URBAN_NM, float).T
    return _cube(np.moveaxis(cube, 2, 0) / 1e4, np.interp(np.arange(cube.shape[2]), number, nm))


def _hydice(data: Path) -> Cube:
    cube = loadmat(data / "anomaly_scenes" / "HYDICE_data.mat")["data"]
    number, nm = np.asarray(_HYDICE_NM, float).T
    kept = [
        band
        for band in range(1, 211)
        if not any(first <= band <= last for first, last in _HYDICE_LEFT_OUT)
    ]
    return _cube(np.moveaxis(cube, 2, 0) / 1e3, np.interp(kept, number, nm))


def _gatorsense(data: Path) -> Cube:
    file = loadmat(data / "gatorsense" / "a_hsi_img_for_VI_demo.mat")
    return _cube(np.moveaxis(file["hsi_img"], 2, 0) / 1e4, file["wavelengths"].ravel())


def _gatorsense_sub(data: Path) -> Cube:
    file = loadmat(data / "gatorsense" / "an_hsi_image_sub_for_demo.mat")
    valid = file["mask_sub"].astype(bool)
    return _cube(np.moveaxis(file["hsi_img_sub"], 2, 0), file["wavelengths"].ravel(), valid)


def _cube(
    values: NDArray[Any], wavelength_nm: Array, valid: NDArray[np.bool_] | None = None
) -> Cube:
    """Leave out bands that are empty or noise alone."""
    values = np.asarray(values, np.float64)
    spread = values.std(axis=(1, 2))
    step = np.diff(values, axis=1).std(axis=(1, 2))
    good = (spread > 0) & (step < _NOISE * spread)
    everywhere = np.ones(values.shape[1:], bool)
    return Cube(values[good], everywhere if valid is None else valid, wavelength_nm[good])


def _hyperion(file: Mapping[str, Any]) -> BandTable:
    """Centres of Hyperion's bands by number: 10.18 nm apart to band 70, 10.09 nm from 71 on."""
    number = file["non_del_bands"].ravel().astype(float)
    centre_nm = np.where(
        number <= 70, 355.59 + 10.1751 * (number - 1), 851.92 + 10.0894 * (number - 71)
    )
    return _table(centre_nm)


def _image(array: NDArray[Any]) -> Tensor:
    """(H, W, C) to (1, C, H, W) float32."""
    return torch.from_numpy(np.moveaxis(array, 2, 0).astype(np.float32))[None]


def _all_valid(image: Tensor) -> Tensor:
    return torch.ones(1, *image.shape[-2:], dtype=torch.bool)


def _table(wavelength_nm: Array) -> BandTable:
    """Bands of 10 nm, which is about what all these sensors have."""
    names = tuple(f"{nm:.0f} nm" for nm in wavelength_nm)
    count = len(names)
    return BandTable(names, wavelength_nm, np.full(count, 10.0), np.ones(count, bool))


def _table_of(edges_nm: tuple[tuple[int, int], ...]) -> BandTable:
    low, high = np.asarray(edges_nm, float).T
    names = tuple(f"{first}-{last} nm" for first, last in edges_nm)
    return BandTable(names, (low + high) / 2, high - low, np.ones(len(names), bool))


def _simulated(
    title: str, load: Callable[[Path], Cube], bands: int
) -> tuple[str, Callable[[Path, int], Case]]:
    name = f"{title}, {bands} bands"
    return name, lambda data, seed: simulate(name, load(data), TM_NM[:bands], seed)


CASES: Mapping[str, Callable[[Path, int], Case]] = MappingProxyType(
    dict(
        [
            _simulated("AVIRIS urban", _aviris_urban, 4),
            _simulated("AVIRIS urban", _aviris_urban, 6),
            _simulated("HYDICE urban", _hydice, 4),
            _simulated("HYDICE urban", _hydice, 6),
            _simulated("Jasper Ridge", _jasper, 4),
            _simulated("Jasper Ridge", _jasper, 6),
            _simulated("Gatorsense", _gatorsense, 4),
            _simulated("Gatorsense", _gatorsense, 6),
            # It ends at 1,043 nm, so that there is nothing of TM's last two bands.
            _simulated("Gatorsense VNIR", _gatorsense_sub, 4),
        ]
    )
    | {
        "Paris, Hyperion and ALI": _paris_ali,
        "Paris, Hyperion and pan": _paris_pan,
        "Berlin, EnMAP and HyMap": _berlin,
    }
)
"""Name → what makes the case of the folder of real data and a seed."""
