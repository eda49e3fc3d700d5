"""Triplets, places and crops of a fusion's training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.errors import TrainingError
from engine.models.fusion.method import ImagePair
from engine.training.fusion_data import Crops, Triplet, deal_places, make_triplets, to_fine
from engine.training.fusion_models import fit_start, make_fusers
from engine.training.pair_physics import estimate_physics
from tests.engine.models.fusion.made_pairs import RATIO, known
from tests.engine.training.made_triplets import TINY, settings, triplet


def deal(triplets, **changes):
    values = {"validation": 0.25, "inner": 0.2, "seed": 0, **changes}
    return deal_places(triplets, **values)


def fuser_of(item, start="bicubic"):
    asked = settings(start=start)
    return make_fusers([item], fit_start([item], asked, None), asked, TINY)[0]


def test_the_target_of_wald_s_protocol_is_the_coarse_image():
    at = known()
    physics = estimate_physics([at.pair])
    (found,) = make_triplets([at.pair], physics)
    assert torch.equal(found.target, at.pair.hsi[..., :18, :18])
    assert found.pair.ratio == RATIO
    torch.testing.assert_close(found.pair.hsi, physics.spread.degrade(found.target))


def test_each_image_of_a_batch_is_a_triplet_and_those_without_data_are_none():
    at = known()
    both = ImagePair(*(torch.cat([part, part]) for part in (
        at.pair.hsi, at.pair.msi, at.pair.hsi_valid, at.pair.msi_valid)))  # fmt: skip
    both.hsi_valid[1] = False
    assert len(make_triplets([both], estimate_physics([at.pair]))) == 1


def test_a_target_of_other_sizes_is_refused():
    item = triplet()
    with pytest.raises(ValueError, match="does not fit a hyperspectral image"):
        Triplet(item.pair, item.target[..., 1:], item.target_valid)


def test_no_place_is_for_two_things():
    places = deal([triplet(40, 36)])
    for fit, inner, held in zip(places.fit, places.inner, places.held_out, strict=True):
        assert int(fit.sum()) > 0 and int(inner.sum()) > 0 and int(held.sum()) > 0
        assert not (fit & inner).any() and not (fit & held).any() and not (inner & held).any()


def test_a_margin_lies_between_what_is_learned_and_what_is_not():
    places = deal([triplet(40, 36)])
    fit, held = places.fit[0], places.held_out[0]
    for down, right in [(0, 1), (1, 0), (1, 1), (0, -1), (-1, 0)]:
        moved = torch.roll(held, (down, right), (0, 1))
        edge = moved & fit
        # Rolled over the image's border a pixel comes back at the other side.
        assert int(edge[1:-1, 1:-1].sum()) == 0


def test_places_for_the_gate_are_learned_in_the_end():
    places = deal([triplet(40, 36)])
    learned, inner = places.learned[0], places.inner[0]
    assert (learned & inner).sum() == inner.sum()
    assert (places.fit[0] & ~learned).sum() == 0


def test_about_a_quarter_is_held_out_and_another_one_for_another_seed():
    item = triplet(40, 36)
    one, other = deal([item]), deal([item], seed=5)
    assert 0.15 < float(one.held_out[0].float().mean()) < 0.35
    assert not torch.equal(one.held_out[0], other.held_out[0])
    assert one.describe(RATIO).startswith("5 of 20 places of 27 x 27 coarse pixels")


def test_nothing_is_held_out_when_nothing_is_asked_for():
    places = deal([triplet()], validation=0.0, inner=0.0)
    assert places.fit[0].all()
    assert places.describe(RATIO) == "Nothing was held out."


def test_ground_that_is_not_valid_belongs_to_no_place():
    item = triplet()
    item.target_valid[:, : 5 * RATIO] = False
    places = deal([item], inner=0.0)
    for mask in (places.fit[0], places.held_out[0], places.learned[0]):
        assert not mask[:5].any()


def test_images_too_small_for_places_are_refused():
    item = triplet(4, 4)
    with pytest.raises(TrainingError, match="nothing is left to train on"):
        deal([item], validation=0.9)


@pytest.mark.parametrize("start", ["none", "bicubic"])
def test_a_batch_is_a_function_of_seed_and_step(start):
    item = triplet()
    fuser = fuser_of(item, start)
    ground = [item.learnable]
    one, same = (Crops(fuser, [item], ground, 4, 1).batch(7, 3) for _ in range(2))
    other = Crops(fuser, [item], ground, 4, 1).batch(8, 3)
    assert torch.equal(one.target, same.target) and torch.equal(one.valid, same.valid)
    assert torch.equal(one.inputs.fine, same.inputs.fine)
    assert not torch.equal(one.target, other.target)


def test_crops_of_inputs_and_target_show_the_same_place():
    item = triplet()
    # A target that the coarse image holds already, pixel by pixel.
    shown = item.pair.hsi.repeat_interleave(RATIO, -1).repeat_interleave(RATIO, -2)
    item = replace(item, target=shown)
    fuser = fuser_of(item)
    batch = Crops(fuser, [item], [item.learnable], 5, 0).batch(0, 6)
    seen = fuser.coefficients(batch.target)[..., ::RATIO, ::RATIO]
    torch.testing.assert_close(seen, batch.inputs.coarse, atol=1e-4, rtol=1e-4)


def test_only_targets_on_the_ground_are_learned_from():
    item = triplet()
    ground = torch.zeros(16, 18, dtype=torch.bool)
    ground[3:5, 6:9] = True
    crops = Crops(fuser_of(item), [item], [ground], 6, 0)
    batch = crops.batch(0, 8)
    assert crops.ground_px == 6
    assert 0 < int(batch.valid.sum()) <= 8 * 6 * RATIO**2
    assert batch.valid.flatten(1).any(1).all()


def test_a_mask_reaches_the_fine_grid_block_by_block():
    fine = to_fine(torch.tensor([[True, False]]), 2)
    assert torch.equal(fine, torch.tensor([[True, True, False, False]] * 2))
