from __future__ import annotations

import pytest
import torch

from engine.models.galileo import JULY, GalileoConfig, GalileoEncoder, native_patch_px
from engine.models.galileo_embedding import place_codes
from engine.models.galileo_inputs import (
    SENTINEL2_GROUP_INDEX,
    SENTINEL2_MEAN_DN,
    SENTINEL2_STD_DN,
    SPACE_GROUPS,
    SPACE_TIME_GROUPS,
    STATIC_GROUPS,
    TIME_GROUPS,
    GalileoInputs,
    PerKind,
)

BANDS = 10
WIDTH = 32


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = GalileoEncoder(GalileoConfig(embed_dim=WIDTH, depth=2, num_heads=4)).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("channel_embed"):
                weight.normal_()
    return encoder


def image(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def features(encoder, reflectance, rows, cols, ids_keep=None, taps=(2,), size_m=10.0, **options):
    return encoder.features(
        reflectance,
        rows=rows,
        cols=cols,
        ids_keep=ids_keep,
        pixel_size_m=torch.full((len(reflectance),), size_m),
        taps=taps,
        **options,
    )


def inputs_of(encoder, reflectance, patch_px, size_m=10.0, seed=3) -> GalileoInputs:
    """The long way in, with noise in all that is hidden."""
    b, _c, h, w = reflectance.shape
    noise = torch.Generator().manual_seed(seed)
    values = PerKind(
        torch.randn(b, h, w, 1, 13, generator=noise),
        torch.randn(b, h, w, 16, generator=noise),
        torch.randn(b, 1, 6, generator=noise),
        torch.randn(b, 18, generator=noise),
    )
    values.space_time[..., 0, 2:12] = encoder.normalise(reflectance).permute(0, 2, 3, 1)
    masks = PerKind(
        torch.ones(b, h, w, 1, len(SPACE_TIME_GROUPS)),
        torch.ones(b, h, w, len(SPACE_GROUPS)),
        torch.ones(b, 1, len(TIME_GROUPS)),
        torch.ones(b, len(STATIC_GROUPS)),
    )
    masks.space_time[..., list(SENTINEL2_GROUP_INDEX)] = 0
    months = torch.full((b, 1), JULY)
    return GalileoInputs(values, masks, months, patch_px, torch.full((b,), size_m))


@pytest.mark.parametrize("patch_px", [1, 2, 3, 8])
def test_features_are_the_means_of_the_whole_encoder(encoder, patch_px):
    reflectance = image(2, BANDS, 3 * patch_px, 3 * patch_px)
    with torch.no_grad():
        expected = encoder(inputs_of(encoder, reflectance, patch_px)).patch_mean()
    [found] = features(encoder, reflectance, 3, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_features_of_kept_tokens_are_those_of_an_image_with_holes(encoder):
    reflectance = image(1, BANDS, 8, 8)
    ids_keep = torch.tensor([[0, 3, 6, 15]])
    inputs = inputs_of(encoder, reflectance, 2)
    hidden = torch.ones(16)
    hidden[ids_keep[0]] = 0
    holes = hidden.reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    inputs.masks.space_time[:] = torch.maximum(
        inputs.masks.space_time, holes[None, :, :, None, None]
    )
    with torch.no_grad():
        expected = encoder(inputs).patch_mean()[:, ids_keep[0]]
    [found] = features(encoder, reflectance, 4, 4, ids_keep)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_is_hidden_does_not_matter(encoder):
    reflectance = image(1, BANDS, 6, 6)
    with torch.no_grad():
        first, second = (
            encoder(inputs_of(encoder, reflectance, 2, seed=seed)).global_mean() for seed in (3, 4)
        )
    assert torch.equal(first, second)


def test_a_hidden_place_returns_the_norms_bias(encoder):
    with torch.no_grad():
        tokens = encoder(inputs_of(encoder, image(1, BANDS, 4, 4), 2)).tokens
    assert torch.equal(tokens.static, encoder.norm.bias.expand_as(tokens.static))


def test_images_with_fewer_visible_tokens_are_as_alone(encoder):
    both = inputs_of(encoder, image(2, BANDS, 4, 4), 2)
    both.masks.space_time[1, :, :2] = 1
    alone = GalileoInputs(
        PerKind(*(part[1:] for part in both.values.parts())),
        PerKind(*(part[1:] for part in both.masks.parts())),
        both.months[1:],
        both.patch_px,
        both.pixel_size_m[1:],
    )
    with torch.no_grad():
        together, single = encoder(both), encoder(alone)
    torch.testing.assert_close(
        together.tokens.space_time[1:], single.tokens.space_time, atol=1e-5, rtol=0
    )


def test_hidden_and_to_be_predicted_is_hidden(encoder):
    inputs = inputs_of(encoder, image(1, BANDS, 4, 4), 2)
    with torch.no_grad():
        ones = encoder(inputs).patch_mean()
        inputs.masks.space_time.mul_(2)
        assert torch.equal(encoder(inputs).patch_mean(), ones)


@pytest.mark.parametrize(
    ("side_px", "count", "expected"),
    [(24, 12, 2), (16, 16, 1), (96, 12, 8), (224, 14, 8), (24, 9, 8), (8, 16, 8)],
)
def test_the_patch_is_the_students_where_it_can_be(side_px, count, expected):
    assert native_patch_px(torch.empty(1, 1, side_px, side_px), count, count, 8) == expected


@pytest.mark.parametrize(("side_px", "count"), [(24, 12), (64, 4), (20, 6)])
def test_features_follow_the_students_grid(encoder, side_px, count):
    [found] = features(encoder, image(2, BANDS, side_px, side_px), count, count)
    assert found.shape == (2, count * count, WIDTH)
    assert bool(found.isfinite().all())


def test_features_of_an_oblong_image(encoder):
    reflectance = image(1, BANDS, 4, 12)
    with torch.no_grad():
        expected = encoder(inputs_of(encoder, reflectance, 2)).patch_mean()
    torch.testing.assert_close(features(encoder, reflectance, 2, 6)[0], expected, atol=1e-5, rtol=0)


def test_resizing_keeps_the_ground_size_of_a_token(encoder, monkeypatch):
    sizes_m = []
    from engine.models import galileo

    def spy(rows, cols, width, patch_size_m):
        sizes_m.append(patch_size_m.tolist())
        return place_codes(rows, cols, width, patch_size_m)

    monkeypatch.setattr(galileo, "place_codes", spy)
    features(encoder, image(1, BANDS, 64, 64), 4, 4, size_m=30.0)  # 16 px a token
    assert sizes_m == [[480.0]]


def test_each_image_of_a_batch_has_its_own_pixel_size(encoder):
    reflectance = image(1, BANDS, 8, 8).expand(2, -1, -1, -1)
    mixed = encoder.features(
        reflectance,
        rows=4,
        cols=4,
        ids_keep=None,
        pixel_size_m=torch.tensor([10.0, 30.0]),
        taps=(2,),
    )[0]
    for index, size_m in enumerate((10.0, 30.0)):
        [alone] = features(encoder, reflectance[:1], 4, 4, size_m=size_m)
        torch.testing.assert_close(mixed[index : index + 1], alone, atol=1e-5, rtol=0)
    assert (mixed[0] - mixed[1]).abs().max() > 1e-3


def test_the_month_changes_the_features_and_july_is_the_default(encoder):
    reflectance = image(1, BANDS, 8, 8)
    default, july, january = (
        features(encoder, reflectance, 4, 4, months=months)[0]
        for months in (None, torch.tensor([6]), torch.tensor([0]))
    )
    assert torch.equal(default, july)
    assert (january - july).abs().max() > 1e-3


def test_taps_are_means_over_the_groups_of_each_block(encoder):
    outputs = []
    hook = encoder.blocks[0].register_forward_hook(lambda _m, _i, y: outputs.append(y))
    first, _last = features(encoder, image(1, BANDS, 4, 4), 2, 2, taps=(1, 2))
    hook.remove()
    expected = outputs[0].reshape(1, 4, 5, WIDTH).mean(dim=2)
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=0)


def test_normalisation_maps_the_mean_to_a_half_and_clips_nothing(encoder):
    mean, std = torch.tensor(SENTINEL2_MEAN_DN), torch.tensor(SENTINEL2_STD_DN)
    for dn, expected in ((mean, 0.5), (mean + 2 * std, 1.0), (mean + 6 * std, 2.0)):
        found = encoder.normalise(dn.reshape(1, BANDS, 1, 1) / 1e4)
        torch.testing.assert_close(found, torch.full_like(found, expected), atol=1e-5, rtol=0)


def test_constants_are_no_weights(encoder):
    assert not {"band_shift", "band_scale"} & set(encoder.state_dict())


def test_other_bands_are_refused(encoder):
    with pytest.raises(ValueError, match="reads 10 bands, not 6"):
        features(encoder, image(1, 6, 8, 8), 4, 4)


def test_a_block_that_is_not_there_is_refused(encoder):
    with pytest.raises(ValueError, match="blocks 1 to 2, not 3"):
        features(encoder, image(1, BANDS, 8, 8), 4, 4, taps=(3,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 40}, "width 40 must be divisible by 16"),
        ({"num_heads": 3}, "by the 3 heads"),
        ({"depth": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GalileoConfig(**changes)
