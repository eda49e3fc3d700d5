"""Masking: how many, which, and by what chance."""

from __future__ import annotations

import pytest
import torch

from engine.errors import TrainingError
from engine.training.masking import MaskingSettings, draw_mask, token_scores
from engine.training.tile_survey import valid_tokens

SIDE, PATCH_PX = 224, 16  # the paper's grid: 14 x 14 tokens
GUIDED = MaskingSettings(guided_share=1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=2, height=SIDE, width=SIDE, seed=0):
    """Noise whose strength grows over the tokens of each row, another way in each sample."""
    noise = torch.randn(batch, height, width, generator=generator(seed))
    return 0.3 + noise * torch.linspace(0.001, 0.1, width)


def all_valid(guide):
    return torch.ones_like(guide, dtype=torch.bool)


def scores_of(guide, settings=GUIDED, patch_px=PATCH_PX, valid=None):
    return token_scores(guide, all_valid(guide) if valid is None else valid, patch_px, settings)


def draw(guide, settings, seed=0, patch_px=PATCH_PX, valid=None):
    valid = all_valid(guide) if valid is None else valid
    scores = token_scores(guide, valid, patch_px, settings)
    return draw_mask(scores, valid_tokens(valid, patch_px), settings, generator(seed))


@pytest.mark.parametrize("guided_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("hide", ["informative", "plain"])
def test_of_196_tokens_49_are_kept_and_147_hidden(guided_share, hide):
    mask = draw(images(3), MaskingSettings(guided_share=guided_share, hide=hide))
    assert mask.ids_keep.shape == (3, 49)
    assert mask.masked.sum(dim=1).tolist() == [147] * 3
    assert (mask.ids_keep.diff(dim=1) > 0).all()
    assert not mask.masked.gather(1, mask.ids_keep).any()


def test_a_share_that_is_no_binary_fraction_keeps_what_it_says():
    assert MaskingSettings(mask_ratio=0.9).num_kept(100) == 10
    assert MaskingSettings(mask_ratio=0.9).num_kept(196) == 19
    assert MaskingSettings(mask_ratio=0.9).num_kept(4) == 1


def test_without_a_guided_share_the_image_decides_nothing():
    chance = MaskingSettings(guided_share=0.0)
    first, second = draw(images(), chance), draw(images(seed=5) * 0 + 0.2, chance)
    assert torch.equal(first.ids_keep, second.ids_keep)


def test_guided_alone_hides_the_tokens_with_the_highest_scores():
    scores = scores_of(images())
    mask = draw(images(), GUIDED)
    lowest_hidden = scores.masked_fill(~mask.masked, 2.0).amin(dim=1)
    highest_shown = scores.masked_fill(mask.masked, -1.0).amax(dim=1)
    assert (lowest_hidden >= highest_shown).all()
    # The noise grows to the right: the left columns are shown.
    assert (mask.ids_keep % 14).max() <= 4


def test_the_other_direction_hides_the_tokens_with_the_lowest_scores():
    mask = draw(images(), MaskingSettings(guided_share=1.0, hide="plain"))
    assert (mask.ids_keep % 14).min() >= 9


def test_half_guided_hides_informative_tokens_more_often():
    masks = [draw(images(8), MaskingSettings(), seed) for seed in range(5)]
    hidden = torch.stack([mask.masked for mask in masks]).float().mean(dim=(0, 1)).view(14, 14)
    assert hidden[:, :7].mean() < 0.68
    assert hidden[:, 7:].mean() > 0.82


def test_below_a_third_of_guidance_the_most_informative_tokens_are_sometimes_shown():
    shown = [
        sum(not draw(images(8), MaskingSettings(guided_share=share), seed).masked[:, 13::14].all()
            for seed in range(3))
        for share in (0.25, 0.5)
    ]  # fmt: skip
    assert shown == [3, 0]


def test_a_seed_gives_the_same_mask_and_another_another():
    settings = MaskingSettings()
    first = draw(images(), settings, seed=1)
    assert torch.equal(first.ids_keep, draw(images(), settings, seed=1).ids_keep)
    assert not torch.equal(first.ids_keep, draw(images(), settings, seed=2).ids_keep)


@pytest.mark.parametrize("hide", ["informative", "plain"])
@pytest.mark.parametrize("guided_share", [0.0, 1.0])
def test_tokens_without_data_are_always_hidden(hide, guided_share):
    guide = images()
    valid = all_valid(guide)
    valid[:, :, :112] = False
    guide = guide.masked_fill(~valid, -32768.0)
    mask = draw(guide, MaskingSettings(guided_share=guided_share, hide=hide), valid=valid)
    assert (mask.ids_keep % 14 >= 7).all()


def test_too_few_tokens_with_data_are_refused():
    guide = images()
    valid = all_valid(guide)
    valid[1, 32:] = False
    with pytest.raises(TrainingError, match="data in 28 of its 196 tokens, and 49 have"):
        draw(guide, MaskingSettings(), valid=valid)


def test_the_border_of_the_data_is_no_edge():
    guide = images(1)
    valid = all_valid(guide)
    valid[:, :, 112:] = False
    far = scores_of(guide.masked_fill(~valid, 5.0), valid=valid)
    near = scores_of(guide.masked_fill(~valid, 0.0), valid=valid)
    assert torch.equal(far, near)
    # Column 6 ends at the border and still has the score of its noise: the highest of all.
    assert far.view(14, 14)[:, :5].amax() < far.view(14, 14)[:, 6].amin()


def test_scores_are_ranks_from_0_to_1():
    scores = scores_of(images())
    assert scores.dtype == torch.float32
    assert scores.min() == 0.0
    assert scores.max() == 1.0
    assert torch.equal(scores.sort(dim=1).values[0], torch.arange(196) / 195)


def test_nothing_to_see_leaves_all_to_chance():
    scores = scores_of(torch.full((2, SIDE, SIDE), 0.25))
    assert (scores == 0.5).all()
    masks = [draw(torch.full((1, SIDE, SIDE), 0.25), GUIDED, seed).ids_keep for seed in (0, 1)]
    assert not torch.equal(*masks)


@pytest.mark.parametrize("feature", ["edge", "texture", "variance"])
def test_each_feature_finds_the_square_with_structure(feature):
    guide = torch.full((1, 64, 64), 0.2)
    guide[0, 16:32, 32:48] += 0.1 * torch.rand(16, 16, generator=generator())
    weights = {"edge": 0.0, "texture": 0.0, "variance": 0.0} | {feature: 1.0}
    scores = scores_of(guide, MaskingSettings(**weights))
    assert scores.argmax() == 1 * 4 + 2
    flat = scores_of(guide, MaskingSettings(edge=0.0, texture=0.0, variance=0.0))
    assert (flat == 0.5).all()


def test_scores_do_not_depend_on_brightness_and_contrast():
    guide = images().double()
    torch.testing.assert_close(scores_of(guide), scores_of(guide * 0.125 - 0.25), atol=0.02, rtol=0)


@pytest.mark.parametrize("patch_px", [1, 2, 3, 24])
@pytest.mark.parametrize("size", [(24, 24), (24, 48)])
def test_small_tokens_are_scored_on_the_full_image(patch_px, size):
    guide = images(2, *size)
    scores = scores_of(guide, patch_px=patch_px)
    assert scores.shape == (2, (size[0] // patch_px) * (size[1] // patch_px))
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_ratio": 1.0}, "hidden share"),
        ({"mask_ratio": 0.0}, "hidden share"),
        ({"guided_share": 1.1}, "guided share"),
        ({"edge": -1.0}, "not negative"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MaskingSettings(**values)
