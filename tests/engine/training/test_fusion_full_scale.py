"""Crops at full resolution: which ground they may look at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.models.fusion.method import ImagePair
from engine.training.fusion_data import make_triplets, to_fine
from engine.training.fusion_full_scale import FullScale, full_ground
from engine.training.fusion_models import fit_start, make_fusers
from engine.training.pair_physics import estimate_physics
from tests.engine.models.fusion.made_pairs import known
from tests.engine.training.made_triplets import settings


@pytest.fixture(scope="module")
def scene():
    """A pair, its physics and its triplet."""
    pair = known(24, 26).pair
    physics = estimate_physics([pair])
    return pair, physics, make_triplets([pair], physics)[0]


def left_half(triplet):
    ground = torch.zeros(triplet.pair.hsi.shape[-2:], dtype=torch.bool)
    ground[:, : ground.shape[1] // 2] = True
    return ground


def test_ground_of_a_triplet_is_the_same_ground_at_full_resolution(scene):
    pair, physics, triplet = scene
    ground = left_half(triplet)
    (found,), (mask,) = full_ground([pair], [triplet], [ground])
    assert torch.equal(found.hsi, triplet.target)
    assert torch.equal(mask, to_fine(ground, physics.ratio))


def test_a_part_without_a_triplet_is_left_out(scene):
    pair, _physics, triplet = scene
    nothing = replace(pair, hsi=torch.zeros_like(pair.hsi))
    pairs, _masks = full_ground([nothing, pair], [triplet], [left_half(triplet)])
    assert len(pairs) == 1
    assert torch.equal(pairs[0].hsi, triplet.target)


def test_what_held_out_ground_looks_like_does_not_count(scene):
    pair, physics, triplet = scene
    asked = settings(start="bicubic")
    student, _teacher = make_fusers(
        [triplet], fit_start([triplet], asked, physics), asked, asked.sizes()
    )
    pairs, masks = full_ground([pair], [triplet], [left_half(triplet)])
    full = FullScale(student, pairs, masks, physics, 12, 0)
    crops = full.batch(0, 8)
    assert crops.use.any() and not crops.use.all()
    image = student.to_scale(torch.rand(8, *pair.hsi.shape[1:2], 12 * pair.ratio, 12 * pair.ratio))
    held_out = ~crops.use
    fine = torch.stack([to_fine(mask, pair.ratio) for mask in held_out])
    truth = crops.truth
    other = ImagePair(
        torch.where(held_out[:, None], truth.hsi + 1, truth.hsi),
        torch.where(fine[:, None], truth.msi + 1, truth.msi),
        truth.hsi_valid,
        truth.msi_valid,
    )
    assert float(full.loss(image, crops)) > 0
    assert torch.equal(full.loss(image, crops), full.loss(image, replace(crops, truth=other)))


def test_every_crop_shows_ground_that_may_be_learned_from(scene):
    pair, physics, triplet = scene
    asked = settings(start="bicubic")
    student, _teacher = make_fusers(
        [triplet], fit_start([triplet], asked, physics), asked, asked.sizes()
    )
    few = torch.zeros_like(left_half(triplet))
    few[0, 0] = True
    pairs, masks = full_ground([pair], [triplet], [few])
    crops = FullScale(student, pairs, masks, physics, 6, 0).batch(0, 16)
    assert crops.use.flatten(1).any(1).all()
