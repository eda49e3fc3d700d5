"""Tiles dealt by place: no training tile ever touches held-out ground."""

import numpy as np
import pytest
from affine import Affine

from engine.errors import SceneError
from engine.raster.scene import open_scene
from engine.training.tile_plan import Anchor, plan_tiles
from tests.engine.conftest import TRANSFORM, ramp

P = 6


@pytest.fixture
def scene(make_raster):
    def make(name="a.tif", height=32, width=27, **options):
        return open_scene(
            make_raster(name, array=ramp(3, height, width), scale=1e-4, **options).path
        )

    return make


def ground(plan, scene_index, windows, shape):
    """(H, W) bool, the pixels under windows of a scene."""
    covered = np.zeros(shape, bool)
    for window in windows:
        covered[window.row_off : window.row_stop, window.col_off : window.col_stop] = True
    return covered


def test_blocks_and_edges_cover_the_scene(scene):
    plan = plan_tiles([scene()], P, validation=0.0, seed=0)
    covered = ground(plan, 0, map(plan.window, plan.training), (32, 27))
    assert covered.all()
    assert plan.held_out == ()


def test_the_wanted_share_of_blocks_is_held_out_and_never_trained_on(scene):
    plan = plan_tiles([scene()], P, validation=0.25, seed=0)
    assert len(plan.held_out) == 5  # of 5 x 4
    held = ground(plan, 0, map(plan.window, plan.held_out), (32, 27))
    rng = np.random.default_rng(0)
    drawn = [w for anchor in plan.training for _i in range(50) for w in plan.jittered(anchor, rng)]
    assert not (held & ground(plan, 0, drawn, (32, 27))).any()


def test_tiles_move_within_the_scene(scene):
    plan = plan_tiles([scene()], P, validation=0.0, seed=0)
    rng = np.random.default_rng(0)
    windows = [next(plan.jittered(Anchor(0, 0, 0), rng)) for _i in range(200)]
    assert {window.row_off for window in windows} == set(range(4))
    assert {window.col_off for window in windows} == set(range(4))


def test_the_same_seed_deals_the_same(scene):
    held = [plan_tiles([scene()], P, validation=0.25, seed=seed).held_out for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


def test_two_scenes_of_one_place_hold_out_the_same_ground(scene):
    shifted = TRANSFORM @ Affine.translation(3, 2)
    first, second = scene(), scene("b.tif", transform=shifted)
    plan = plan_tiles([first, second], P, validation=0.3, seed=0)
    held = ground(plan, 0, [plan.window(a) for a in plan.held_out if a.scene_index == 0], (32, 27))
    rng = np.random.default_rng(0)
    trained = [
        window
        for anchor in plan.training
        if anchor.scene_index == 1
        for _i in range(50)
        for window in plan.jittered(anchor, rng)
    ]
    assert trained
    assert held.any()
    # The second scene begins 2 rows and 3 columns later.
    assert not (held[2:, 3:] & ground(plan, 1, trained, (32, 27))[:30, :24]).any()


def test_every_scene_holds_out_its_share(scene):
    far = TRANSFORM @ Affine.translation(1000, 0)
    plan = plan_tiles([scene(), scene("b.tif", transform=far)], P, validation=0.25, seed=3)
    by_scene = [sum(a.scene_index == index for a in plan.held_out) for index in (0, 1)]
    assert by_scene == [5, 5]


def test_only_the_scored_scenes_hold_out_and_their_ground_stays_out_of_all(scene):
    shifted = TRANSFORM @ Affine.translation(3, 2)
    far = TRANSFORM @ Affine.translation(1000, 0)
    scenes = [scene(), scene("b.tif", transform=shifted), scene("c.tif", transform=far)]
    plan = plan_tiles(scenes, P, validation=0.25, seed=0, scored=1)
    assert {anchor.scene_index for anchor in plan.held_out} == {0}
    assert [len(boxes) > 0 for boxes in plan.keep_out] == [True, True, False]
    of_third = [plan.window(anchor) for anchor in plan.training if anchor.scene_index == 2]
    assert ground(plan, 2, of_third, (32, 27)).all()


def test_a_scene_without_crs_shares_no_ground_with_one_that_has_one(scene):
    plan = plan_tiles([scene(), scene("b.tif", crs=None, transform=None)], P, 0.25, seed=0)
    by_scene = [sum(a.scene_index == index for a in plan.held_out) for index in (0, 1)]
    assert by_scene == [5, 5]
    assert [len(boxes) for boxes in plan.keep_out] == [5, 5]


def test_a_scene_smaller_than_a_tile_is_named_with_both_sizes(scene):
    with pytest.raises(SceneError, match="b is 27 x 5 px, smaller than a tile of 6 x 6 px"):
        plan_tiles([scene(), scene("b.tif", height=5)], P, validation=0.2, seed=0)
