from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    error_relative_global_dimensionless_synthesis,
    peak_signal_noise_ratio,
    spectral_angle_mapper,
)
from torchmetrics.functional.regression import mean_squared_error

from engine.training.fusion_metrics import FusionMeter, published_rmse, score_fusion
from tests.engine.models.spectralx.official import Fixture

BANDS, HEIGHT, WIDTH, RATIO = 6, 40, 56, 4


@pytest.fixture
def images():
    """(result, reference), both (L, H, W) float64, and a mask of a third of the pixels."""
    random = np.random.default_rng(0)
    reference = random.uniform(0.05, 0.6, (BANDS, HEIGHT, WIDTH))
    result = reference + random.normal(0, 0.02, reference.shape)
    return result, reference, random.random((HEIGHT, WIDTH)) < 0.33


def as_line(image, valid) -> torch.Tensor:
    """The valid pixels as an image of one column, which libraries without masks can score."""
    return torch.from_numpy(np.ascontiguousarray(image[:, valid]))[None, :, :, None]


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_published_numbers(fixtures_folder, dtype):
    fixture = Fixture(fixtures_folder, "csakd_metrics")
    low, high = fixture.constructor["vmin"], fixture.constructor["vmax"]
    ratio = int(fixture.constructor["ergas"].split("Resize_fact=")[1].rstrip(")"))
    scores = score_fusion(fixture.input("pred"), fixture.input("gt"), None, ratio)
    found = {
        "psnr": scores.psnr_db,
        "sam_degrees": scores.sam_deg,
        "ergas": scores.ergas,
        "rmse_unit": scores.rmse,
        "rmse_training_script": published_rmse(scores.rmse, low, high),
        "rmse_test_script": published_rmse(scores.rmse, low, high, test_script=True),
    }
    assert set(found) == set(fixture.output_names)
    for name, value in found.items():
        fixture.check(name, torch.tensor([value], dtype=dtype))


def test_masked_scores_agree_with_torchmetrics_on_the_valid_pixels(images):
    result, reference, valid = images
    scores = score_fusion(result, reference, valid, RATIO)
    line, truth = as_line(result, valid), as_line(reference, valid)
    psnr = [
        float(peak_signal_noise_ratio(line[:, b], truth[:, b], data_range=float(truth[:, b].max())))
        for b in range(BANDS)
    ]
    np.testing.assert_allclose(scores.psnr_band, psnr, atol=1e-4)
    angle = spectral_angle_mapper(line, truth)
    assert scores.sam_deg == pytest.approx(float(torch.rad2deg(angle)), abs=1e-6)
    ergas = error_relative_global_dimensionless_synthesis(line, truth, ratio=RATIO)
    assert scores.ergas == pytest.approx(float(ergas), rel=1e-6)
    assert scores.rmse**2 == pytest.approx(float(mean_squared_error(line, truth)), rel=1e-6)
    assert scores.pixels == valid.sum()


def test_pixels_outside_the_mask_change_nothing(images):
    result, reference, valid = images
    spoilt = np.where(valid, result, np.nan)
    scores, expected = (
        score_fusion(image, reference, valid, RATIO).summary() for image in (spoilt, result)
    )
    assert scores == expected


def test_windows_give_the_scores_of_the_whole(images):
    result, reference, valid = images
    meter = FusionMeter(BANDS, RATIO, block_px=16)
    for row in range(0, HEIGHT, 16):
        for col in range(0, WIDTH, 32):
            part = np.s_[..., row : row + 16, col : col + 32]
            meter.update(result[part], reference[part], valid[part])
    whole = score_fusion(result, reference, valid, RATIO, block_px=16)
    assert meter.scores().summary() == pytest.approx(whole.summary(), rel=1e-12)


def test_equal_images_are_perfect(images):
    _result, reference, _valid = images
    scores = score_fusion(reference, reference, None, RATIO)
    assert scores.psnr_db == np.inf
    assert scores.sam_deg == pytest.approx(0.0, abs=1e-5)
    assert scores.ergas == scores.rmse == 0.0
    assert scores.uiqi == pytest.approx(1.0)
    assert scores.q2n == pytest.approx(1.0)


def test_uiqi_of_one_block_is_the_formula_of_its_paper(images):
    result, reference, _valid = (image[..., :32, :32] for image in images)
    x, y = result[0].ravel(), reference[0].ravel()
    covariance = np.cov(x, y, bias=True)
    expected = (
        4 * covariance[0, 1] * x.mean() * y.mean()
        / ((covariance[0, 0] + covariance[1, 1]) * (x.mean() ** 2 + y.mean() ** 2))
    )  # fmt: skip
    scores = score_fusion(result, reference, None, RATIO)
    assert scores.uiqi_band[0] == pytest.approx(expected)


def test_q2n_of_one_band_is_its_uiqi(images):
    result, reference, _valid = (image[..., :32, :32] for image in images)
    scores = score_fusion(result[:1], reference[:1], None, RATIO)
    assert scores.q2n == pytest.approx(abs(scores.uiqi))


def test_q2n_of_four_bands_is_the_formula_with_quaternions(images):
    result, reference, _valid = (image[..., :32, :32] for image in images)
    z1, z2 = (image[:4].reshape(4, -1).T for image in (result, reference))
    mean1, mean2 = z1.mean(axis=0), z2.mean(axis=0)
    products = hamilton(z1, z2 * [1, -1, -1, -1]).mean(axis=0)
    covariance = products - hamilton(mean1[None], mean2[None] * [1, -1, -1, -1])[0]
    power = [
        np.square(np.linalg.norm(z, axis=1)).mean() - np.square(mean).sum()
        for z, mean in ((z1, mean1), (z2, mean2))
    ]
    norm1, norm2 = np.linalg.norm(mean1), np.linalg.norm(mean2)
    expected = (
        2 * np.linalg.norm(covariance) / sum(power) * 2 * norm1 * norm2 / (norm1**2 + norm2**2)
    )
    scores = score_fusion(result[:4], reference[:4], None, RATIO)
    assert scores.q2n == pytest.approx(expected, rel=1e-9)


def hamilton(a, b):
    """Products of (N, 4) quaternions, in Hamilton's own way."""
    a0, a1, a2, a3 = a.T
    b0, b1, b2, b3 = b.T
    return np.stack(
        [
            a0 * b0 - a1 * b1 - a2 * b2 - a3 * b3,
            a0 * b1 + a1 * b0 + a2 * b3 - a3 * b2,
            a0 * b2 - a1 * b3 + a2 * b0 + a3 * b1,
            a0 * b3 + a1 * b2 - a2 * b1 + a3 * b0,
        ],
        axis=1,
    )


def test_a_band_without_light_is_left_out_of_psnr_and_ergas(images):
    result, reference, _valid = images
    dark_result, dark = result.copy(), reference.copy()
    dark_result[2], dark[2] = 0.01, 0.0
    scores = score_fusion(dark_result, dark, None, RATIO)
    others = [band for band in range(BANDS) if band != 2]
    rest = score_fusion(result[others], reference[others], None, RATIO)
    assert np.isnan(scores.psnr_band[2])
    assert scores.psnr_db == pytest.approx(rest.psnr_db)
    assert scores.ergas == pytest.approx(rest.ergas)


def test_a_result_without_a_number_has_no_score(images):
    result, reference, _valid = images
    result[1, 3, 3] = np.nan
    scores = score_fusion(result, reference, None, RATIO)
    assert all(np.isnan(value) for value in scores.summary().values())


def test_pixels_without_a_spectrum_have_no_angle(images):
    result, reference, _valid = images
    expected = score_fusion(result[:, 1:], reference[:, 1:], None, RATIO).sam_deg
    result[:, 0] = 0.0
    assert score_fusion(result, reference, None, RATIO).sam_deg == pytest.approx(expected)


def test_indices_need_a_block(images):
    result, reference, _valid = (image[..., :7, :9] for image in images)
    scores = score_fusion(result, reference, None, RATIO)
    assert np.isnan(scores.uiqi)
    assert np.isnan(scores.q2n)
    assert np.isfinite(scores.psnr_db)


def test_nothing_to_compare_is_refused(images):
    result, reference, valid = images
    with pytest.raises(ValueError, match="no pixel to score"):
        score_fusion(result, reference, np.zeros_like(valid), RATIO)


def test_other_shapes_are_refused(images):
    result, reference, _valid = images
    with pytest.raises(ValueError, match=r"shape \(6, 40, 55\) cannot be compared"):
        score_fusion(result[..., :-1], reference, None, RATIO)
