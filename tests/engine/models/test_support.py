"""Support: how near a spectrum is to the training data, whatever surrounds it."""

import pytest
import torch

from engine.models.support import Support

BANDS = 6


def plain_support(distance_95=2.0):
    """Two Gaussians, around 0 and 10 of the first view, spread 1; nothing usual outside but 1."""
    support = Support(BANDS, 2, 1)
    for name in ("band_mean", "unit_mean"):
        getattr(support, name).zero_()
    support.basis.zero_()
    support.basis[0, 0] = 1
    support.centre.copy_(torch.tensor([[0.0], [10.0]]))
    support.distance_95.fill_(distance_95)
    support.unit_std.fill_(1e6)  # the second view hardly counts here
    return support


def read(support, *first_band):
    spectra = torch.zeros(len(first_band), BANDS)
    spectra[:, 0] = torch.tensor(first_band)
    valid = torch.ones(1, len(spectra), 1, dtype=torch.bool)
    return support(spectra.T[None, :, :, None], valid)[0, 0, :, 0]


def test_a_spectrum_at_the_middle_of_a_class_is_familiar():
    torch.testing.assert_close(read(plain_support(), 0.0, 10.0), torch.ones(2))


def test_half_is_read_at_the_distance_of_the_scale():
    torch.testing.assert_close(read(plain_support(distance_95=2.0), -2.0), torch.tensor([0.5]))


def test_the_nearest_class_counts():
    support = read(plain_support(), 4.0, 6.0)
    torch.testing.assert_close(support[0], support[1])


def test_what_lies_outside_the_subspace_counts_too():
    spectra = torch.zeros(1, BANDS, 1, 1)
    spectra[0, 3] = 2.0  # a band that the only component leaves out
    support = plain_support(distance_95=2.0)(spectra, torch.ones(1, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(support.flatten(), torch.tensor([0.5]))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_a_spectrum_that_is_absurd_has_no_support(value):
    assert read(plain_support(), value).tolist() == [0.0]


def test_pixels_that_are_not_valid_have_none():
    valid = torch.tensor([[[True, False]]])
    assert plain_support()(torch.zeros(1, BANDS, 1, 2), valid)[0, 0, 0].tolist() == [1.0, 0.0]


def test_a_pixel_reads_the_same_wherever_it_lies():
    support, generator = plain_support(), torch.Generator().manual_seed(0)
    reflectance = torch.rand(2, BANDS, 7, 9, generator=generator)
    valid = torch.ones(2, 7, 9, dtype=torch.bool)
    whole = support(reflectance, valid)
    part = support(reflectance[1:, :, 2:5, 3:4], valid[1:, 2:5, 3:4])
    torch.testing.assert_close(part, whole[1:, :, 2:5, 3:4])


def test_bfloat16_changes_nothing():
    support, generator = plain_support(), torch.Generator().manual_seed(0)
    reflectance, valid = torch.rand(1, BANDS, 5, 5, generator=generator), torch.ones(1, 5, 5).bool()
    with torch.autocast("cpu", torch.bfloat16):
        rough = support(reflectance, valid)
    assert torch.equal(rough, support(reflectance, valid))


def test_a_support_is_made_of_its_tensors():
    support = plain_support()
    again = Support.of_state(support.state_dict())
    assert torch.equal(read(again, 3.0), read(support, 3.0))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"centre": None}, "missing or unknown: centre"),
        ({"tail": torch.ones(1)}, "missing or unknown: tail"),
        ({"band_std": torch.ones(4)}, r"band_std is \(4,\) instead of \(6,\)"),
        ({"whitening": torch.ones(2, 2, 2)}, r"whitening is \(2, 2, 2\) instead of \(2, 1, 1\)"),
        ({"centre": torch.ones(2)}, "another number of axes"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, match):
    state = {k: v for k, v in (plain_support().state_dict() | changes).items() if v is not None}
    with pytest.raises(ValueError, match=match):
        Support.of_state(state)
