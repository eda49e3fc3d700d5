"""CSAKD's losses: masks, scales and what a setting leaves out."""

from __future__ import annotations

import pytest
import torch

from engine.training.fusion_loss import (
    FusionLossSettings,
    band_energy,
    feature_distance,
    published_band_energy,
    published_spectral_angle,
    smooth_l1,
    spectral_angle,
    student_loss,
    teacher_loss,
    with_noise,
)

B, L, H, W = 2, 5, 4, 3


@pytest.fixture
def images():
    torch.manual_seed(0)
    target = torch.rand(B, L, H, W, dtype=torch.double) * 2 - 1
    return target + 0.1 * torch.randn_like(target), target


@pytest.fixture
def valid():
    mask = torch.ones(B, H, W, dtype=torch.bool)
    mask[0, :2] = False
    return mask


MASKED = [
    smooth_l1,
    spectral_angle,
    published_band_energy,
    feature_distance,
    lambda found, target, valid: band_energy(found, target, target, valid),
]


@pytest.mark.parametrize("loss", [*MASKED, published_spectral_angle])
def test_a_mask_of_all_changes_nothing(loss, images):
    everything = torch.ones(B, H, W, dtype=torch.bool)
    torch.testing.assert_close(loss(*images, everything), loss(*images, None))


@pytest.mark.parametrize("loss", MASKED)
def test_what_is_masked_does_not_count(loss, images, valid):
    found, target = images
    other = torch.where(valid[:, None], found, 7.0)
    assert torch.equal(loss(other, target, valid), loss(found, target, valid))


@pytest.mark.parametrize("loss", MASKED)
def test_an_image_without_a_valid_pixel_does_not_count(loss, images):
    found, target = images
    only = torch.ones(B, H, W, dtype=torch.bool)
    only[1] = False
    alone = loss(found[:1], target[:1], None)
    torch.testing.assert_close(loss(found, target, only), alone)


@pytest.mark.parametrize("loss", MASKED)
def test_nothing_valid_gives_nothing(loss, images):
    assert loss(*images, torch.zeros(B, H, W, dtype=torch.bool)) == pytest.approx(0, abs=1e-12)


def test_rows_of_the_published_angle_count_where_all_of_them_is_valid(images, valid):
    found, target = images
    rows = valid[:, None].expand(B, L, H, W).reshape(-1, L).all(dim=1)
    assert 0 < rows.sum() < len(rows)
    flat = 1 - torch.cosine_similarity(found.reshape(-1, L)[rows], target.reshape(-1, L)[rows])
    torch.testing.assert_close(published_spectral_angle(found, target, valid), flat.mean())


def test_unknown_targets_reach_no_gradient(images, valid):
    found, target = images
    found.requires_grad_()
    target = torch.where(valid[:, None], target, torch.nan)
    teacher_loss(found, target, valid=valid).total.backward()
    assert found.grad.isfinite().all()
    assert found.grad[0, :, :2].abs().max() == 0


def test_the_angle_is_one_of_spectra():
    found = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 3, 2)
    turned = torch.tensor([1.0, 1.0])[None, :, None, None].expand(1, 2, 3, 2)
    assert spectral_angle(found, 5 * turned).item() == pytest.approx(1 - 0.5**0.5)


def test_the_angle_of_no_signal_is_finite():
    nothing = torch.zeros(1, 3, 2, 2, requires_grad=True)
    spectral_angle(nothing, torch.ones(1, 3, 2, 2)).backward()
    assert nothing.grad.isfinite().all()


def test_brightness_alone_has_no_angle_where_zero_is_known(images):
    target = images[1]
    brighter = (target + 1) * 1.3 - 1
    loss = teacher_loss(brighter, target, FusionLossSettings(zero=-1.0))
    assert loss.terms["spectral_angle"].item() == pytest.approx(0, abs=1e-7)


def test_dark_bands_count_more_than_bright_ones():
    unit = torch.cat([torch.full((1, 1, 4, 4), 0.05), torch.full((1, 1, 4, 4), 0.9)], dim=1)
    target = unit * 2 - 1

    def loss_of_error_in(band):
        found = target.clone()
        found[:, band] += 0.1
        return band_energy(found, target, unit, None).item()

    assert loss_of_error_in(0) > 5 * loss_of_error_in(1)


def test_the_teacher_gets_no_gradient_from_its_student(images):
    image, target = images
    features = torch.randn(B, 3, H, W, dtype=torch.double)
    taught = [image.clone().requires_grad_(), features.clone().requires_grad_()]
    student = [target.clone().requires_grad_(), features.clone().requires_grad_()]
    student_loss(*student, target, *taught).total.backward()
    assert all(tensor.grad is None for tensor in taught)
    assert all(tensor.grad is not None for tensor in student)


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        ("none", set()),
        ("response", {"response"}),
        ("feature", {"feature"}),
        ("both", {"response", "feature"}),
    ],
)
def test_distillation_is_what_was_asked_for(images, kind, terms):
    image, target = images
    features = torch.randn(B, 3, H, W, dtype=torch.double)
    settings = FusionLossSettings().distilling(kind)
    loss = student_loss(image, features, target, image + 1, features, settings)
    assert set(loss.terms) == {"smooth_l1", "spectral_angle", "band_energy"} | terms


def test_a_weight_of_zero_leaves_a_term_out(images):
    loss = teacher_loss(*images, FusionLossSettings(spectral_angle=0, band_energy=0))
    assert set(loss.terms) == {"smooth_l1"}
    assert loss.total.item() == pytest.approx(loss.terms["smooth_l1"].item())


def test_the_total_is_the_weighted_sum(images):
    loss = teacher_loss(*images, FusionLossSettings(spectral_angle=0.3, band_energy=0.2))
    parts = loss.terms
    expected = parts["smooth_l1"] + 0.3 * parts["spectral_angle"] + 0.2 * parts["band_energy"]
    torch.testing.assert_close(loss.total, expected)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="weight feature is at least 0, not -1"):
        FusionLossSettings(feature=-1)


def test_noise_is_as_far_below_the_signal_as_asked():
    torch.manual_seed(0)
    signal = torch.rand(1, 4, 200, 100, dtype=torch.double) - 1
    noisy = with_noise(signal, torch.randn_like(signal), 20.0, zero=-1.0)
    ratio = (signal + 1).square().mean() / (noisy - signal).square().mean()
    assert 10 * ratio.log10().item() == pytest.approx(20.0, abs=0.1)
