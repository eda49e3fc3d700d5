import numpy as np
import pytest
import torch

from engine.errors import LabelError
from engine.feedback import SilentFeedback
from engine.raster.labels import open_labels
from engine.raster.scene import open_scene
from engine.raster.spectra import match_bands
from engine.training.samples import SampleSizes, ScenePixels, collect_samples, draw_cells
from engine.training.targets import ClassTargets
from tests.engine.conftest import HEIGHT, WIDTH, ramp
from tests.engine.raster.test_labels import write_labels

VALUES = (1, 2)


@pytest.fixture
def labels_array():
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[:, :6], array[:, 10:] = 1, 2
    return array


@pytest.fixture
def collect(tmp_path, make_raster, labels_array):
    def make(scenes=({},), array=labels_array, core_px=5, chip_px=9, block_px=5, seed=0):
        source = write_labels(tmp_path / "labels.tif", array)
        opened = [
            open_scene(make_raster(f"{number}.tif", scale=1e-4, **options).path)
            for number, options in enumerate(scenes)
        ]
        bands = opened[0].require_bands()
        items = [
            ScenePixels(
                scene,
                match_bands(bands, scene.require_bands()),
                ClassTargets(open_labels(source, None, scene.crs).on(scene), VALUES),
            )
            for scene in opened
        ]
        sizes = SampleSizes(chip_px, core_px, block_px)
        return collect_samples(items, sizes=sizes, seed=seed, feedback=SilentFeedback())

    return make


def test_every_labelled_pixel_is_one_sample_with_its_spectrum(collect, labels_array):
    samples = collect()
    rows, cols = samples.position[:, 1].numpy(), samples.position[:, 2].numpy()
    assert sorted(zip(rows, cols, strict=True)) == sorted(
        map(tuple, np.argwhere(labels_array).tolist())
    )
    np.testing.assert_allclose(samples.spectra.numpy(), ramp()[:, rows, cols].T * 1e-4, rtol=1e-5)
    assert (samples.class_index.numpy() + 1 == labels_array[rows, cols]).all()
    assert bool(samples.pure.all())


def test_chips_show_what_lies_around_and_nothing_beyond_the_scene(collect):
    samples = collect()
    corner = int(np.flatnonzero((samples.position[:, 1:] == 0).all(dim=1).numpy())[0])
    chip = samples.chip[corner]
    assert samples.valid[chip, samples.row[corner], samples.col[corner]]
    assert not samples.valid[chip, : samples.row[corner]].any()
    assert not samples.reflectance[chip][:, ~samples.valid[chip]].any()
    inside = samples.valid[chip].sum()
    assert inside == (9 - samples.row[corner]) * (9 - samples.col[corner])


def test_pixels_without_data_are_no_samples(collect):
    samples = collect([{"nodata": -99, "nodata_corner": True}])
    in_corner = (samples.position[:, 1] < 4) & (samples.position[:, 2] < 5)
    assert not in_corner.any()


def test_labels_where_the_scene_has_no_data_are_refused(collect):
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[:4, :5] = 1
    with pytest.raises(LabelError, match="None of the labelled pixels is valid"):
        collect([{"nodata": -99, "nodata_corner": True}], array=array)


def test_labels_that_meet_no_pixel_are_refused(collect, tmp_path, make_raster):
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[0, 0] = 9
    with pytest.raises(LabelError, match="do not overlap"):
        collect(array=array)


def test_a_place_is_a_block_of_ground_in_every_scene(collect):
    samples = collect([{}, {}])
    first, second = (samples.subset(samples.position[:, 0] == scene) for scene in (0, 1))
    assert torch.equal(first.place.sort().values, second.place.sort().values)
    one = samples.place[(samples.position[:, 1:] == torch.tensor([7, 3])).all(dim=1)]
    same = samples.place[(samples.position[:, 1:] == torch.tensor([9, 4])).all(dim=1)]
    assert len(one.unique()) == 1 and torch.equal(one, same)
    assert samples.num_places == 5 * 4


def test_places_are_blocks_of_their_own_size(collect):
    small, large = collect(core_px=9, block_px=2), collect(core_px=5, block_px=40)
    assert large.num_places == 1
    assert small.num_places > len(small.reflectance)
    assert len(small.chip) == len(large.chip)


def test_the_order_of_pixels_does_not_depend_on_how_chips_are_cut(collect):
    small, large = (collect(core_px=core_px, chip_px=14, block_px=6) for core_px in (5, 11))
    assert torch.equal(small.position, large.position)
    assert torch.equal(small.spectra, large.spectra)


def test_a_subset_keeps_its_pixels_and_chips_together(collect):
    samples = collect()
    keep = samples.place == samples.place[0]
    part = samples.subset(keep)
    assert len(part.reflectance) == 1
    torch.testing.assert_close(part.spectra, samples.spectra[keep])


def test_cells_of_a_rare_class_are_all_drawn():
    counts = np.zeros((500, 2), np.int64)
    counts[:, 0] = 100
    counts[[3, 77, 490], 1] = 5
    chosen = draw_cells(counts, 60, np.random.default_rng(0))
    assert {3, 77, 490} <= set(chosen.tolist())
    assert len(chosen) <= 60


def test_a_common_class_is_drawn_no_more_than_it_needs():
    counts = np.full((500, 1), 100)
    chosen = draw_cells(counts, 500, np.random.default_rng(0))
    assert counts[chosen].sum() == 4000


def test_the_draw_repeats_with_its_seed():
    counts = np.full((500, 1), 100)
    first, again, other = (
        draw_cells(counts, 500, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other
