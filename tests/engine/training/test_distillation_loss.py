"""The loss: zero at identity, finite, blind where there is no data, and with the right gradient."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from engine.models.hyperkd import EncoderConfig
from engine.models.mae import DecoderConfig, HyperKDStudent, StudentOutput, other_ids
from engine.models.patches import patchify, take_tokens
from engine.training.distillation_loss import (
    DistillationLoss,
    LossSettings,
    softened_divergence,
    spectral_divergence,
    ssim_map,
)

B, C, SIDE, PATCH_PX = 2, 9, 24, 2
MEAN, STD = torch.linspace(0.1, 0.3, C), torch.linspace(0.02, 0.08, C)
EVERY_TERM = LossSettings(spectral=0.1)
TERMS = {"mse", "ssim", "features", "spectral"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed=0):
    """Normalised tiles with spatial structure, all valid, and 36 of 144 tokens to show."""
    x = torch.randn(B, C, SIDE, SIDE, generator=generator(seed)).cumsum(dim=2) / 4
    valid = torch.ones(B, SIDE, SIDE, dtype=torch.bool)
    present = torch.ones(B, C, dtype=torch.bool)
    ids = torch.rand(B, 144, generator=generator(seed)).argsort(dim=1)[:, :36].sort(dim=1).values
    return x, valid, present, ids


def output_for(x, ids, prediction=None, features=None):
    hidden = other_ids(ids, 144)
    if prediction is None:
        prediction = take_tokens(patchify(x, PATCH_PX), hidden)
    features = torch.randn(B, 36, 16, generator=generator(1)) if features is None else features
    return StudentOutput(prediction, hidden, (features,))


def loss_of(output, x, valid, present, teacher=None, settings=EVERY_TERM, seed=0):
    teacher = output.features if teacher is None else (teacher,)
    loss = DistillationLoss(settings)
    return loss(output, x, valid, present, teacher, MEAN, STD, generator(seed))


@pytest.mark.parametrize("feature_loss", ["kl", "mse"])
def test_every_term_is_zero_at_identity(feature_loss):
    x, valid, present, ids = batch()
    settings = LossSettings(spectral=0.1, feature_loss=feature_loss)
    terms = loss_of(output_for(x, ids), x, valid, present, settings=settings)
    assert set(terms) == TERMS | {"loss"}
    for name, term in terms.items():
        assert abs(term) < 1e-6, name


@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
def test_every_term_and_its_gradient_are_finite_for_constants(value):
    x, valid, present, ids = batch()
    x = torch.full_like(x, value)
    prediction = torch.zeros(B, 108, PATCH_PX**2 * C, requires_grad=True)
    features = torch.zeros(B, 36, 16, requires_grad=True)
    terms = loss_of(
        output_for(x, ids, prediction, features), x, valid, present, torch.zeros(B, 36, 16)
    )
    terms["loss"].backward()
    assert all(term.isfinite() for term in terms.values())
    assert prediction.grad.isfinite().all()
    assert features.grad.isfinite().all()


def test_the_loss_is_the_weighted_sum_of_its_terms():
    x, valid, present, ids = batch()
    output = output_for(x, ids, torch.zeros(B, 108, PATCH_PX**2 * C))
    settings = LossSettings(mse=2.0, ssim=0.3, features=0.5, spectral=0.7)
    terms = loss_of(output, x, valid, present, torch.zeros(B, 36, 16), settings)
    weighted = sum(getattr(settings, name) * terms[name] for name in TERMS)
    torch.testing.assert_close(terms["loss"], weighted)
    assert min(terms.values()) > 0


@pytest.mark.parametrize("name", sorted(TERMS))
def test_terms_without_weight_are_not_computed(name):
    x, valid, present, ids = batch()
    only = LossSettings(**dict.fromkeys(TERMS, 0.0) | {name: 1.0})
    terms = loss_of(output_for(x, ids), x, valid, present, settings=only)
    assert set(terms) == {"loss", name}


def test_the_error_is_the_mean_over_hidden_values():
    x, valid, present, ids = batch()
    output = output_for(x, ids, torch.zeros(B, 108, PATCH_PX**2 * C))
    expected = take_tokens(patchify(x, PATCH_PX), output.ids_masked).square().mean()
    torch.testing.assert_close(loss_of(output, x, valid, present)["mse"], expected)


def test_a_gap_in_a_visible_token_changes_no_error():
    x, valid, present, ids = batch()
    output = output_for(x, ids, torch.zeros(B, 108, PATCH_PX**2 * C))
    complete = loss_of(output, x, valid, present)["mse"]
    row, col = divmod(int(ids[0, 0]), SIDE // PATCH_PX)
    valid[0, row * PATCH_PX, col * PATCH_PX] = False
    torch.testing.assert_close(loss_of(output, x, valid, present)["mse"], complete)


@pytest.mark.parametrize("name", ["mse", "ssim", "spectral"])
def test_pixels_without_data_count_for_nothing(name):
    x, valid, present, ids = batch()
    valid[:, 5:9, :13] = False
    x = x.masked_fill(~valid[:, None], 0.0)
    near = output_for(x, ids)
    gaps = take_tokens(patchify(~valid[:, None].expand(-1, C, -1, -1), PATCH_PX), near.ids_masked)
    assert gaps.any()
    wild = output_for(x, ids, near.prediction + 7.0 * gaps)
    assert loss_of(wild, x, valid, present)[name] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["mse", "ssim", "spectral"])
def test_bands_that_a_scene_has_not_count_for_nothing(name):
    x, valid, present, ids = batch()
    present[0, 3] = False
    near = output_for(x, ids)
    wild = near.prediction.clone()
    wild[0, :, 3::C] += 7.0
    assert loss_of(output_for(x, ids, wild), x, valid, present)[name] == pytest.approx(0, abs=1e-6)
    wild[1, :, 3::C] += 7.0  # the other sample has the band
    assert loss_of(output_for(x, ids, wild), x, valid, present)[name] > 1e-3


@pytest.mark.parametrize("name", sorted(TERMS - {"features"}))
def test_nothing_that_counts_gives_zero_and_no_nan(name):
    x, valid, present, ids = batch()
    terms = loss_of(output_for(x, ids), x, ~valid, present)
    assert terms[name] == 0.0


def test_the_gradient_reaches_encoder_decoder_and_projector_and_no_teacher():
    x, valid, present, ids = batch()
    torch.manual_seed(0)
    encoder = EncoderConfig(C, PATCH_PX, embed_dim=8, depth=2, num_heads=2)
    student = HyperKDStudent(encoder, DecoderConfig(8, 1, 2), teacher_width=16, taps=(1, 2))
    teacher = torch.nn.Linear(4, 16)
    features = tuple(teacher(torch.rand(B, 36, 4)) for _tap in student.taps)
    loss = DistillationLoss(EVERY_TERM)
    terms = loss(student(x, ids), x, valid, present, features, MEAN, STD, generator())
    terms["loss"].backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_divergence_of_features_is_never_negative(temperature):
    teacher = torch.randn(50, 3, 16, generator=generator())
    student = torch.randn(50, 3, 16, generator=generator(1))
    assert softened_divergence(teacher, student, temperature) > 0
    assert softened_divergence(teacher, teacher, temperature) == pytest.approx(0, abs=1e-7)


def test_the_temperature_keeps_the_size_of_the_gradient():
    teacher = torch.randn(50, 16, generator=generator())
    sizes = []
    for temperature in (8.0, 16.0):
        student = torch.zeros(50, 16, requires_grad=True)
        softened_divergence(teacher, student, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_features_are_compared_whatever_their_level_and_scale():
    x, valid, present, ids = batch()
    output = output_for(x, ids)
    terms = loss_of(output, x, valid, present, 5.0 * output.features[0] + 3.0)
    assert terms["features"] < 1e-6


def test_spectra_are_compared_by_shape():
    spectra = torch.rand(2, 5, C, generator=generator()) + 0.1
    pixel, band = torch.ones(2, 5), torch.ones(2, C)
    assert spectral_divergence(spectra, 2 * spectra, pixel, band) == pytest.approx(0, abs=1e-6)
    assert spectral_divergence(spectra, spectra.flip(2), pixel, band) > 0.01
    q, p = (part / part.sum(dim=2, keepdim=True) for part in (spectra, spectra.flip(2)))
    expected = (q * (q / p).log()).sum(dim=2).mean()
    found = spectral_divergence(spectra, spectra.flip(2), pixel, band)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_similarity_is_that_of_the_library_inside():
    a, b = (torch.rand(2, 3, 30, 26, generator=generator(seed)) for seed in (0, 1))
    _mean, expected = structural_similarity_index_measure(
        a, b, data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(ssim_map(a, b), expected[:, :, 5:-5, 5:-5], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "left"), [(24, 14), (11, 1), (10, 2), (8, 2), (3, 1), (1, 1)])
def test_the_window_fits_into_small_tiles(side, left):
    a = torch.rand(1, 2, side, side)
    assert ssim_map(a, a).shape[-2:] == (left, left)
    assert (ssim_map(a, a) - 1).abs().max() < 1e-5


def test_ssim_looks_at_some_bands_drawn_by_the_generator():
    x, valid, present, ids = batch()
    output = output_for(x, ids, torch.zeros(B, 108, PATCH_PX**2 * C))
    few = LossSettings(mse=0, features=0, ssim=1, ssim_bands=2)
    same = [loss_of(output, x, valid, present, settings=few, seed=3)["ssim"] for _i in range(2)]
    other = loss_of(output, x, valid, present, settings=few, seed=4)["ssim"]
    assert same[0] == same[1]
    assert same[0] != other


def test_half_precision_around_changes_nothing():
    x, valid, present, ids = batch()
    output = output_for(x, ids, torch.zeros(B, 108, PATCH_PX**2 * C))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss_of(output, x, valid, present)
    full = loss_of(output, x, valid, present)
    assert mixed["loss"].dtype == torch.float32
    assert mixed["loss"] == full["loss"]


def test_features_without_a_teacher_are_refused():
    x, valid, present, ids = batch()
    with pytest.raises(ValueError, match=r"features of 1 blocks, the teacher of 0"):
        DistillationLoss(LossSettings())(
            output_for(x, ids), x, valid, present, (), MEAN, STD, generator()
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mse": -1.0}, "0 or more"),
        ({"mse": 0.0, "ssim": 0.0, "features": 0.0}, "not all 0"),
        ({"temperature": 0.0}, "temperature is above 0"),
        ({"ssim_window_px": 10}, "odd window"),
        ({"ssim_bands": 0}, "a band or more"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LossSettings(**values)
