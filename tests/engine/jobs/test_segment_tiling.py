"""Scenes larger than a chip: tiles where they belong, no seams, no pixel computed often."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from engine.errors import BandTableError, PackageError, RequestError
from engine.feedback import SilentFeedback
from engine.jobs.classify import Request as ClassifyRequest
from engine.jobs.classify import classify
from engine.jobs.segment import Request, segment
from engine.models.spectralx.presets import PRESETS
from engine.models.spectralx.segmenter import SpectralXSegmenter
from engine.packages.foundations import fitted_vit, load_foundation
from engine.packages.package import save_package
from engine.raster.blend import ramp
from engine.raster.tiles import Tiling, Window, plan_strips, redundancy
from tests.engine.conftest import TRANSFORM, write_raster
from tests.engine.jobs.brightest import read
from tests.engine.jobs.chip_models import (
    CHIP_PX,
    HALO_PX,
    WAVELENGTH_NM,
    ChipMean,
    ChipMeanConfig,
    chip_mean_info,
    know_chip_mean,
    save_chip_mean,
)

STRIDE_PX = CHIP_PX - 2 * HALO_PX
BANDS = len(WAVELENGTH_NM)


@pytest.fixture(autouse=True)
def architecture(monkeypatch):
    know_chip_mean(monkeypatch)


def probability(folder, values, model, **parameters):
    """(H, W) probability of the second class for (C, H, W) reflectance x 10,000."""
    scene = write_raster(
        folder / "scene.tif", array=values, scale=1e-4, wavelength_nm=WAVELENGTH_NM,
        fwhm_nm=[10.0] * BANDS, tiled=True, blockxsize=256, blockysize=256,
    )  # fmt: skip
    shares = str(folder / "shares.tif")
    request = {
        "input": scene.path, "model": model, "output": str(folder / "map.tif"),
        "probabilities": shares, "device": "cpu",
    }  # fmt: skip
    segment(Request.parse(request | parameters), SilentFeedback())
    return read(shares)[1]


def untiled(values, window, settings):
    """What the model says of one chip by itself."""
    chip = torch.from_numpy(values[(slice(None), *window.slices_in(Window(0, 0, 1, 1)))].copy())
    model = ChipMean(ChipMeanConfig(BANDS, 2, **settings))
    valid = torch.ones(1, *chip.shape[1:], dtype=torch.bool)
    with torch.inference_mode():
        return model(chip[None] * 1e-4, valid).softmax(1)[0, 1].numpy()


def blended(values, window, settings):
    """The blend of the chips that cover a window, computed in the simplest way."""
    sums, weights = np.zeros((2, window.height, window.width))
    weight = np.outer(ramp(CHIP_PX, 2 * HALO_PX), ramp(CHIP_PX, 2 * HALO_PX))
    first = [(at - CHIP_PX) // STRIDE_PX + 1 for at in (window.row_off, window.col_off)]
    for row in range(max(first[0], 0) * STRIDE_PX, window.row_stop, STRIDE_PX):
        for col in range(max(first[1], 0) * STRIDE_PX, window.col_stop, STRIDE_PX):
            share = untiled(values, Window(row, col, CHIP_PX, CHIP_PX), settings)
            for r, c in np.ndindex(CHIP_PX, CHIP_PX):
                at = row + r - window.row_off, col + c - window.col_off
                if 0 <= at[0] < window.height and 0 <= at[1] < window.width:
                    sums[at] += weight[r, c] * share[r, c]
                    weights[at] += weight[r, c]
    return sums / weights


def seams(image):
    """How much larger steps between columns are where tiles meet than elsewhere."""
    step = np.abs(np.diff(image, axis=1)).mean(axis=0)
    column = np.arange(1, image.shape[1])
    meets = column % STRIDE_PX <= 2 * HALO_PX  # the columns that two tiles share, and their ends
    return step[meets].mean() / step[~meets].mean()


@pytest.mark.slow  # 11,664 chips, and maps of 9 Mpx
def test_a_scene_of_3000_px_equals_its_chips_wherever_one_looks(tmp_path):
    rng = np.random.default_rng(0)
    side = 3000
    coarse = rng.integers(500, 4500, (BANDS, side // 20, side // 20), dtype=np.int16)
    values = coarse.repeat(20, axis=1).repeat(20, axis=2)
    model, settings = save_chip_mean(tmp_path / "model"), {}
    found = probability(tmp_path, values, model)

    # Chips away from the scene's border, where no other reaches them.
    inner = slice(2 * HALO_PX, CHIP_PX - 2 * HALO_PX)
    for row, col in rng.integers(1, side // STRIDE_PX - 1, (60, 2)) * STRIDE_PX:
        chip = untiled(values, Window(row, col, CHIP_PX, CHIP_PX), settings)
        where = np.s_[row : row + CHIP_PX, col : col + CHIP_PX]
        np.testing.assert_allclose(found[where][inner, inner], chip[inner, inner], rtol=1e-5)
    # Crops of any place, where several chips meet; 1024 is a border of blocks and pieces.
    for row, col in [(1010, 1010), (0, 1500), *rng.integers(40, side - 80, (2, 2))]:
        window = Window(int(row), int(col), 40, 40)
        where = window.slices_in(Window(0, 0, side, side))
        np.testing.assert_allclose(found[where], blended(values, window, settings), rtol=1e-5)
    assert np.isfinite(found).all()


@pytest.fixture
def gradient():
    """(C, H, W) reflectance that rises from left to right, without any structure."""
    return np.broadcast_to(np.linspace(500, 4500, 300), (BANDS, 120, 300)).astype(np.int16)


def test_a_gradient_shows_no_seam(tmp_path, gradient):
    model = save_chip_mean(tmp_path / "model", chip_weight=1.0)
    image = probability(tmp_path, gradient, model)
    # A chip's mean jumps by 28 px of gradient from tile to tile; blended over 4 px, it adds to each
    # step what the gradient makes of 7 px, of which the model takes one part in six.
    assert seams(image) < 2.2
    assert np.diff(image.mean(axis=0)).min() > 0  # and it never falls back


def test_without_overlap_it_would(tmp_path, gradient):
    model = save_chip_mean(tmp_path / "model", chip_weight=1.0)
    image = probability(tmp_path, gradient, model, overlap=0)
    step = np.diff(image.mean(axis=0))
    border = np.arange(CHIP_PX - 1, len(step) - CHIP_PX, CHIP_PX)
    assert (step[border] > 5 * step[border + 1]).all()


def test_what_a_chip_does_not_change_is_the_same_with_any_overlap(tmp_path, gradient):
    model = save_chip_mean(tmp_path / "model", chip_weight=0.0)
    first, other = (probability(tmp_path, gradient, model, overlap=o) for o in (0, 10))
    np.testing.assert_allclose(first, other, rtol=1e-5)


def test_an_extent_is_seen_as_in_the_whole(tmp_path):
    values = np.random.default_rng(1).integers(500, 4500, (BANDS, 150, 170)).astype(np.int16)
    model = save_chip_mean(tmp_path / "model", chip_weight=60.0)
    whole = probability(tmp_path, values, model)
    left, top = TRANSFORM @ (37, 41)
    right, bottom = TRANSFORM @ (131, 122)
    part = probability(tmp_path, values, model, extent=(left, bottom, right, top))
    border = 2 * HALO_PX
    np.testing.assert_allclose(
        part[border:, border:], whole[41 + border : 122, 37 + border : 131], rtol=1e-5
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_pixel_is_computed_one_and_a_half_times_at_most(name):
    chip_px, side = PRESETS[name].chip_px, 3000
    tiling = Tiling(chip_px, int(0.09 * chip_px), blend=True)
    strips = plan_strips(Window(0, 0, side, side), tiling, side, side, (256, 256))
    assert redundancy(strips) <= 1.5


@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    """A segmenter of the laptop preset on the packaged backbone, with made weights."""
    foundation = load_foundation("galileo-nano")
    config = PRESETS["laptop"].segmenter(
        num_classes=2,
        wavelength_nm=WAVELENGTH_NM,
        vit=foundation.vit.config,
        foundation=foundation.identity,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SpectralXSegmenter(config, fitted_vit(foundation, config.vit)).eval()
        torch.nn.init.normal_(model.head.classes.weight, std=0.03)
    model.adapted.band_mean.fill_(0.25)
    model.adapted.band_std.fill_(0.12)
    info = replace(
        chip_mean_info(),
        name="real-segmenter",
        architecture="spectralx-segmenter",
        config=asdict(config),
        tiling=Tiling(model.tile_size_px, model.halo_px, model.blend),
    )
    path = tmp_path_factory.mktemp("models") / "real"
    return model, str(save_package(str(path), info, model.own_state()))


def test_a_real_segmenter_says_of_a_scene_what_it_says_of_its_chips(tmp_path, real_model):
    model, package = real_model
    values = np.random.default_rng(0).integers(500, 4500, (BANDS, 90, 100)).astype(np.int16)
    found = probability(tmp_path, values, package)
    chip = torch.from_numpy(values[:, 28:60, 28:60]).float()[None] * 1e-4
    with torch.inference_mode():
        alone = model(chip, torch.ones(1, CHIP_PX, CHIP_PX, dtype=torch.bool)).softmax(1)[0, 1]
    inner = slice(2 * HALO_PX, CHIP_PX - 2 * HALO_PX)
    np.testing.assert_allclose(
        found[28:60, 28:60][inner, inner], alone[inner, inner], rtol=1e-3, atol=1e-5
    )


def test_a_real_segmenter_shows_less_of_its_chips_with_overlap(tmp_path, real_model, gradient):
    _model, package = real_model
    blended_image, cut = (probability(tmp_path, gradient, package, overlap=o) for o in (4, 0))
    largest_step = [np.abs(np.diff(image, axis=1)).max() for image in (blended_image, cut)]
    assert largest_step[0] < 0.7 * largest_step[1]


def test_a_real_segmenter_takes_no_other_tiles_in_classify_either(tmp_path, real_model):
    scene = write_raster(
        tmp_path / "scene.tif", array=np.full((BANDS, 40, 40), 2000, np.int16), scale=1e-4,
        wavelength_nm=WAVELENGTH_NM, fwhm_nm=[10.0] * BANDS,
    )  # fmt: skip
    request = {
        "input": scene.path, "model": real_model[1], "output": str(tmp_path / "map.tif"),
        "tile_size": 64,
    }  # fmt: skip
    with pytest.raises(RequestError, match="reads tiles of 32 px, not of 64 px"):
        classify(ClassifyRequest.parse(request), SilentFeedback())


def test_a_scene_without_wavelengths_is_refused(tmp_path, real_model):
    scene = write_raster(
        tmp_path / "plain.tif", array=np.full((BANDS, 40, 40), 2000, np.int16), scale=1e-4,
        wavelength_nm=None, fwhm_nm=None,
    )  # fmt: skip
    request = {"input": scene.path, "model": real_model[1], "output": str(tmp_path / "map.tif")}
    with pytest.raises(BandTableError, match="has no wavelengths for its 3 bands"):
        segment(Request.parse(request), SilentFeedback())


def test_a_missing_backbone_ends_the_run_before_there_is_any_output(
    tmp_path, real_model, monkeypatch
):
    other = tmp_path / "other"
    shutil.copytree(real_model[1], other)
    text = (other / "model.json").read_text()
    sha256 = load_foundation("galileo-nano").identity.sha256
    assert sha256 in text
    (other / "model.json").write_text(text.replace(sha256, "0" * 64))
    monkeypatch.setenv("HYPERKD_MODELS", str(tmp_path / "models"))
    scene = write_raster(
        tmp_path / "scene.tif", array=np.full((BANDS, 40, 40), 2000, np.int16), scale=1e-4,
        wavelength_nm=WAVELENGTH_NM, fwhm_nm=[10.0] * BANDS,
    )  # fmt: skip
    request = {"input": scene.path, "model": str(other), "output": str(tmp_path / "map.tif")}
    with pytest.raises(PackageError, match=r"is not the backbone .galileo-nano. of") as e:
        segment(Request.parse(request), SilentFeedback())
    assert "licence MIT" in e.value.remedy
    assert not list(tmp_path.glob("map.tif*"))
