"""The classical methods and the strong start: what each computes, gaps, and tiles."""

import pytest
import torch

from engine.models.fusion.classical import CLASSICAL
from engine.models.fusion.cnmf import unmix, vertices
from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.details import affine_fit, seen_by_both, unseen_details
from engine.models.fusion.injection_fit import fit_injection
from engine.models.fusion.method import ImagePair, upsample
from tests.engine.models.fusion.made_pairs import (
    RATIO,
    error,
    known,
    physics,
    tiled,
    with_gaps,
)
from tests.engine.training.made_ground import BANDS, whole

METHODS = [*CLASSICAL, "injection"]


def fitted(name, at):
    """A method by name, fitted to a pair."""
    if name == "injection":
        return fit_injection([at], spread=physics().spread)
    return CLASSICAL[name]([at.pair], physics())


@pytest.fixture(scope="module")
def at():
    return known(18, 20, noise=1e-3)


@pytest.fixture(scope="module")
def methods(at):
    return {name: fitted(name, at) for name in METHODS}


def test_the_methods_are_those_of_the_request():
    assert set(CLASSICAL) == {"bicubic", "gsa", "glphs", "cnmf"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_its_name_and_ratio(methods, name):
    assert methods[name].name == name
    assert methods[name].ratio == RATIO


@pytest.mark.parametrize("name", METHODS)
def test_tiles_give_what_the_whole_image_gives(methods, at, name):
    method, pair = methods[name], with_gaps(at.pair)
    torch.testing.assert_close(tiled(method, pair, 5), method(pair), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_beyond_the_reach_changes_a_result(methods, name):
    pair = known(24, 24).pair
    method = methods[name]
    before = method(pair)
    pair.hsi[..., 0, 0] += 0.5
    pair.msi[..., :RATIO, :RATIO] += 0.5
    changed = (method(pair) - before).abs().amax((0, 1)) > 1e-6
    beyond = (method.reach_px + 1) * RATIO
    assert changed[:RATIO, :RATIO].any()
    assert not changed[beyond:].any()
    assert not changed[:, beyond:].any()


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_valid_is_filled_with_what_is_likely(methods, at, name):
    method = methods[name]
    result, without = method(with_gaps(at.pair)), method(at.pair)
    # The 9.0 below the clouds would show by more.
    assert (result - without).abs().max() < 0.4


@pytest.mark.parametrize("name", METHODS)
def test_invalid_pixels_are_left_out_of_the_fit(at, name):
    cloudy = with_gaps(at.pair)
    target_valid = cloudy.msi_valid
    target = at.target.masked_fill(~target_valid[:, None], torch.nan)
    method = fitted(name, type(at)(cloudy, target, target_valid))
    assert error(method(at.pair), at.target) < 1.3 * error(fitted(name, at)(at.pair), at.target)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_the_smallest_images_are_fused(methods, at, name, size):
    part = at.pair.crop(slice(size[0]), slice(size[1]))
    result = methods[name](part)
    assert result.shape == (1, BANDS, size[0] * RATIO, size[1] * RATIO)
    assert result.isfinite().all()


@pytest.mark.parametrize("name", ["gsa", "glphs", "cnmf", "injection"])
def test_the_fine_image_helps(methods, at, name):
    with_msi = error(methods[name](at.pair), at.target)
    assert with_msi < 0.75 * error(methods["bicubic"](at.pair), at.target)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_fused_like_its_images(methods, at, name):
    other = known(18, 20, seed=1).pair
    both = ImagePair(
        *(
            torch.cat([getattr(pair, field) for pair in (at.pair, other)])
            for field in ("hsi", "msi", "hsi_valid", "msi_valid")
        )
    )
    torch.testing.assert_close(methods[name](both)[1:], methods[name](other), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_pair_without_common_valid_pixels_is_refused(at, name):
    nothing = ImagePair(
        at.pair.hsi, at.pair.msi, torch.zeros_like(at.pair.hsi_valid), at.pair.msi_valid
    )
    with pytest.raises(ValueError, match="no pixel of the sample is valid in both"):
        fitted(name, type(at)(nothing, at.target, at.target_valid))


def test_bicubic_interpolates(methods, at):
    assert methods["bicubic"](at.pair).equal(upsample(at.pair.hsi, RATIO))


def flat_pair():
    """Two bands of which the multispectral one is the mean; blocks are uniform."""
    blocks = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(0))
    image = torch.cat([blocks, 2 * blocks], 1).repeat_interleave(3, -1).repeat_interleave(3, -2)
    spread = PointSpread.block(3)
    hsi = spread.degrade(image)
    msi = image.mean(1, keepdim=True)
    physics = type(
        "Physics",
        (),
        {"ratio": 3, "spread": spread, "response": SpectralResponse(torch.ones(1, 2))},
    )
    return ImagePair(hsi, msi, whole(hsi), whole(msi)), image, physics


@pytest.mark.parametrize("name", ["gsa", "glphs"])
def test_bands_that_follow_the_fine_one_are_found_exactly(name):
    pair, image, physics = flat_pair()
    result = CLASSICAL[name]([pair], physics)(pair)
    # The ridge takes 1e-4 of the gain.
    assert error(result, image) < 1e-3
    assert error(upsample(pair.hsi, 3), image) > 0.1


def test_gsa_gives_each_band_to_the_one_it_correlates_with(methods):
    gain = methods["gsa"].gain
    assert (gain != 0).sum(1).eq(1).all()
    # The boxes of the response are around bands 3, 9 and 15.
    assert gain[[3, 9, 15]].abs().argmax(1).tolist() == [0, 1, 2]


def test_gsa_leaves_a_fine_image_alone_that_its_component_explains(methods, at):
    gsa = methods["gsa"]
    component = torch.einsum("ml,blhw->bmhw", gsa.component, at.pair.hsi)
    seen = upsample(component + gsa.constant[:, None, None], RATIO)
    pair = ImagePair(at.pair.hsi, seen, at.pair.hsi_valid, at.pair.msi_valid)
    torch.testing.assert_close(gsa(pair), upsample(at.pair.hsi, RATIO), atol=1e-5, rtol=0)


def test_glphs_injects_only_what_the_coarse_sensor_does_not_see(methods, at):
    smooth = torch.full_like(at.pair.msi, 0.3)
    pair = ImagePair(at.pair.hsi, smooth, at.pair.hsi_valid, at.pair.msi_valid)
    torch.testing.assert_close(
        methods["glphs"](pair), upsample(at.pair.hsi, RATIO), atol=1e-5, rtol=0
    )


def test_an_image_without_details_has_none():
    flat = torch.full((1, 2, 12, 12), 0.4)
    assert unseen_details(flat, PointSpread.gaussian(3)).abs().max() < 1e-6


def test_only_pixels_valid_in_both_are_seen_by_both(at):
    cloudy = with_gaps(at.pair)
    hsi, msi = seen_by_both([cloudy], physics().spread)
    clouds = (~cloudy.hsi_valid).sum() + 2 * 6  # 3 x 14 fine pixels touch 2 x 6
    assert len(hsi) == len(msi) == 18 * 20 - clouds
    assert max(hsi.max(), msi.max()) < 1


def test_a_regression_finds_weights_and_constant():
    inputs = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, 0.0, -2.0], [0.5, 3.0, 0.0]], dtype=torch.float64)
    found, constant = affine_fit(inputs, inputs @ weights.T + 0.7, ridge=0.0)
    torch.testing.assert_close(found, weights, atol=1e-9, rtol=0)
    torch.testing.assert_close(constant, torch.full((2,), 0.7, dtype=torch.float64))


def test_an_input_without_variance_gets_no_weight():
    inputs = torch.zeros(10, 2, dtype=torch.float64)
    inputs[:, 1] = torch.arange(10)
    weights, _ = affine_fit(inputs, inputs[:, 1:])
    assert weights[0, 0] == 0
    assert weights[0, 1] == pytest.approx(1, abs=1e-3)


def mixtures(count=300):
    generator = torch.Generator().manual_seed(0)
    endmembers = torch.rand(12, 4, generator=generator)
    shares = torch.rand(count, 4, generator=generator) + 1e-3
    shares = shares / shares.sum(1, keepdim=True)
    shares[:4] = torch.eye(4)
    return endmembers, shares


def test_vertices_of_mixtures_are_the_pure_pixels():
    endmembers, shares = mixtures()
    found = vertices(shares @ endmembers.T, 4)
    distance = torch.cdist(endmembers.T, found.T).amin(1)
    assert distance.max() < 1e-6


def test_unmixing_finds_the_shares():
    endmembers, shares = mixtures()
    found = unmix(shares @ endmembers.T, endmembers, 3000)
    torch.testing.assert_close(found, shares, atol=0.02, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(300), atol=0.01, rtol=0)


def test_cnmf_is_never_negative(methods, at):
    dark = ImagePair(at.pair.hsi - 0.3, at.pair.msi - 0.3, at.pair.hsi_valid, at.pair.msi_valid)
    assert methods["cnmf"](dark).min() >= 0


def test_cnmf_finds_mixtures_of_few_materials(methods, at):
    # Three fine bands and five materials: the coarse spectra have to say the rest.
    assert error(methods["cnmf"](at.pair), at.target) < 0.02


def test_a_fit_does_not_change_the_physics(at):
    how = physics()
    kernel = how.spread.kernel.clone()
    method = CLASSICAL["glphs"]([at.pair], how)
    method.spread.kernel.zero_()
    assert how.spread.kernel.equal(kernel)
