"""Point spread and response of a pair, from the pair itself; and the pair from further."""

import numpy as np
import pytest
import torch

from engine.errors import BandMatchError, SceneError
from engine.raster.responses import nominal_response
from engine.raster.spectra import BandTable
from engine.training.pair_physics import degrade_pair, estimate_physics
from engine.training.pair_response import allowed_bands, estimate_response
from engine.training.pair_spread import estimate_spread
from tests.engine.training.made_ground import BANDS, ground, response, take_pair

HSI_NM = 420 + 20.0 * np.arange(BANDS)


def table(wavelength_nm, fwhm_nm, good=None) -> BandTable:
    count = len(wavelength_nm)
    return BandTable(
        tuple(f"B{i + 1}" for i in range(count)),
        np.asarray(wavelength_nm, float),
        np.full(count, float(fwhm_nm)),
        np.ones(count, bool) if good is None else good,
    )


HSI = table(HSI_NM, 20.0)
# The boxes of five bands of `response`, and a band that nobody sees.
MSI_NM = HSI_NM[[3, 9, 15]]
MSI = table(MSI_NM, 100.0)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("width", [0.8, 1.0, 1.4])
def test_the_width_of_the_spread_is_found(ratio, width):
    pair = take_pair(ground(40 * ratio, 40 * ratio), ratio, fwhm_px=width * ratio)
    fit = estimate_spread([pair], ratio)
    assert fit.estimated
    assert fit.fwhm_px == pytest.approx(width * ratio, rel=0.04)
    assert fit.agreement > 0.95


def test_a_pair_that_does_not_tell_gets_the_usual_spread():
    pair = take_pair(torch.full((1, BANDS, 96, 96), 0.3), 3)
    fit = estimate_spread([pair], 3)
    assert not fit.estimated
    assert fit.fwhm_px == 3


def spectra(count=400, bands=BANDS):
    return ground(count // 20, 20, bands=bands)[0].flatten(1).T.double().numpy()


def test_a_response_is_found_without_knowing_anything():
    all_spectra, true = spectra(800), response().weights.double().numpy()
    hsi, other = all_spectra[:400], all_spectra[400:]
    fit = estimate_response(hsi, hsi @ true.T)
    np.testing.assert_allclose(other @ fit.weights.T + fit.offset, other @ true.T, atol=2e-3)


def test_weights_are_never_negative():
    hsi = spectra()
    fit = estimate_response(hsi, hsi[:, :1] - 0.3 * hsi[:, 8:9])
    assert fit.weights.min() >= 0


def test_gain_and_offset_between_the_sensors_are_found():
    hsi, true = spectra(), response().weights.double().numpy()
    fit = estimate_response(hsi, 0.9 * hsi @ true.T + 0.02, true)
    np.testing.assert_allclose(fit.weights.sum(axis=1), 0.9, atol=0.01)
    np.testing.assert_allclose(fit.offset, 0.02, atol=0.003)


def test_noise_leaves_the_response_near_the_nominal_one():
    rng = np.random.default_rng(0)
    hsi, true = spectra(), response().weights.double().numpy()
    noisy = hsi @ true.T + rng.normal(0, 0.02, (len(hsi), 3))
    weights = estimate_response(hsi, noisy, true).weights
    # The gain is another matter: noise may lie in it.
    np.testing.assert_allclose(weights / weights.sum(axis=1, keepdims=True), true, atol=0.01)


def test_pixels_that_changed_between_the_images_do_not_count():
    hsi, true = spectra(), response().weights.double().numpy()
    msi = hsi @ true.T
    msi[50:75] += 0.5
    fit = estimate_response(hsi, msi, true)
    np.testing.assert_allclose((hsi @ fit.weights.T + fit.offset)[100:], msi[100:], atol=2e-3)


def test_the_error_is_what_is_left_relative_to_the_band():
    hsi = spectra()
    noise = np.random.default_rng(0).normal(0, 0.05, len(hsi))
    msi = (hsi[:, 3] + noise)[:, None]
    fit = estimate_response(hsi, msi)
    assert fit.error[0] == pytest.approx(0.05 / np.sqrt(np.square(msi).mean()), rel=0.1)


def test_no_weight_lies_where_none_may_be():
    hsi, true = spectra(), response().weights.double().numpy()
    allowed = np.tile(np.arange(BANDS) < 9, (3, 1))
    fit = estimate_response(hsi, hsi @ true.T, allowed=allowed)
    assert not fit.weights[:, 9:].any()


def test_weights_may_be_near_the_nominal_response_in_any_order_of_bands():
    order = np.random.default_rng(0).permutation(BANDS)
    nominal = response().weights.double().numpy()[:, order]
    allowed = allowed_bands(nominal, HSI_NM[order])
    # Five bands of 20 nm, and one more to each side.
    assert sorted(HSI_NM[order][allowed[1]]) == list(HSI_NM[7:12])
    assert allowed_bands(np.zeros((1, BANDS)), HSI_NM).all()


@pytest.fixture(scope="module")
def pair():
    return take_pair(ground(120, 132), 3)


def test_physics_of_a_pair_with_wavelengths(pair):
    physics = estimate_physics([pair], hsi_bands=HSI, msi_bands=MSI)
    assert physics.ratio == 3
    assert physics.inside.all()
    assert physics.spread.fwhm_px == pytest.approx(3, rel=0.04)
    assert physics.response_error.max() < 0.01
    weights = physics.response.weights.double().numpy()
    np.testing.assert_allclose(weights @ HSI_NM / weights.sum(1), MSI_NM, atol=5)


def test_physics_of_a_pair_without_wavelengths(pair):
    physics = estimate_physics([pair])
    assert physics.response_error.max() < 0.01
    assert "estimated freely" in physics.notes[0]


def test_a_given_response_is_taken_as_it_is(pair):
    nominal = nominal_response(HSI, MSI)
    physics = estimate_physics([pair], nominal=nominal, response="nominal")
    torch.testing.assert_close(physics.response.weights, torch.from_numpy(nominal).float())
    assert not physics.response.offset.any()


def test_a_band_outside_of_the_range_is_told(pair):
    nominal = response().weights.double().numpy()
    nominal[2] = 0
    assert estimate_physics([pair], nominal=nominal).inside.tolist() == [True, True, False]


def test_a_response_that_nobody_knows_cannot_be_taken(pair):
    with pytest.raises(BandMatchError, match="no wavelengths"):
        estimate_physics([pair], response="nominal")


def test_bad_bands_get_no_weight(pair):
    good = np.arange(BANDS) != 3
    physics = estimate_physics([pair], hsi_bands=table(HSI_NM, 20.0, good), msi_bands=MSI)
    assert not physics.response.weights[:, 3].any()


def test_several_pairs_tell_together(pair):
    other = take_pair(ground(120, 132, seed=1), 3)
    physics = estimate_physics([pair, other], hsi_bands=HSI, msi_bands=MSI)
    assert physics.response_error.max() < 0.01


def test_too_few_valid_pixels_are_refused(pair):
    few = pair.crop(slice(0, 5), slice(0, 5))
    with pytest.raises(SceneError, match="Only 25 coarse pixels"):
        estimate_physics([few])


def test_a_wider_view_has_the_hyperspectral_image_as_its_target(pair):
    physics = estimate_physics([pair])
    lower, target, target_valid = degrade_pair(pair, physics)
    # 32 x 36 coarse pixels: rows and columns beyond a multiple of the ratio are left out.
    assert target.shape == (1, BANDS, 30, 36)
    torch.testing.assert_close(target, pair.hsi[..., :30, :])
    assert target_valid.all()
    assert lower.hsi.shape == (1, BANDS, 10, 12)
    assert lower.msi.shape == (1, 3, 30, 36)


def test_the_wider_view_obeys_the_same_physics(pair):
    physics = estimate_physics([pair])
    lower, target, _ = degrade_pair(pair, physics)
    torch.testing.assert_close(physics.spread.degrade(target), lower.hsi)
    inner = physics.response(target)[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, lower.msi[..., 2:-2, 2:-2], atol=5e-3, rtol=0)


def test_what_is_not_valid_stays_so_in_the_wider_view(pair):
    physics = estimate_physics([pair])
    cloudy = pair.crop(slice(0, 30), slice(0, 36))
    cloudy.hsi_valid[0, 0, 0] = False
    cloudy.msi_valid[0, 5, 10] = False
    lower, _, target_valid = degrade_pair(cloudy, physics)
    assert not target_valid[0, 0, 0]
    assert not lower.hsi_valid[0, 0, 0]
    assert not lower.msi_valid[0, 1, 3]
    assert lower.msi_valid.sum() == lower.msi_valid.numel() - 1


def test_a_pair_smaller_than_the_ratio_cannot_be_degraded(pair):
    physics = estimate_physics([pair])
    with pytest.raises(SceneError, match="2 x 8 hyperspectral pixels"):
        degrade_pair(pair.crop(slice(0, 8), slice(0, 2)), physics)


def test_a_copy_on_a_device_leaves_the_original(pair):
    physics = estimate_physics([pair])
    copy = physics.to("cpu")
    copy.spread.kernel.zero_()
    assert physics.spread.kernel.any()
