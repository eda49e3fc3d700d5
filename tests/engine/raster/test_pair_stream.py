"""A pair as tensors: samples, and a fusion tile by tile that equals the whole."""

import threading
import time

import numpy as np
import pytest
import torch

from engine.errors import CancelledError, DeviceError, RequestError, SceneError
from engine.feedback import SilentFeedback
from engine.raster import pair_stream
from engine.raster.pair import fine_window
from engine.raster.pair_reader import PairReader
from engine.raster.pair_sample import as_tensors
from engine.raster.pair_stream import sample_pair, stream_pair
from engine.raster.tiles import Window
from tests.engine.raster.made_pairs import (
    BANDS,
    FINE_BANDS,
    HEIGHT,
    RATIO,
    WIDTH,
    ConvPair,
    Mosaic,
    NearestPair,
    make_pair,
    numbers,
    whole,
)
from tests.engine.raster.made_scenes import CancelAfter

CPU = torch.device("cpu")


def fuse(pair, model, feedback=None, **options):
    extent = options.get("extent")
    grid = pair.grid if extent is None else pair.grid.crop(fine_window(extent, pair.ratio))
    mosaic = Mosaic(grid, model.out_channels)
    stream_pair(pair, model, mosaic, device=CPU, feedback=feedback or SilentFeedback(), **options)
    return mosaic


def untiled(pair, model):
    with PairReader(pair) as reader, torch.inference_mode():
        return model(as_tensors(reader.read(pair.window)))[0].numpy()


def test_a_small_pair_is_its_own_sample(tmp_path):
    made = make_pair(tmp_path)
    (sample,) = sample_pair(made.open())
    assert sample.hsi.shape == (1, BANDS, HEIGHT, WIDTH)
    assert sample.msi.shape == (1, FINE_BANDS, HEIGHT * RATIO, WIDTH * RATIO)
    np.testing.assert_allclose(sample.hsi[0], made.hsi * 1e-4, rtol=1e-6)
    assert sample.hsi_valid.all() and sample.msi_valid.all()


def test_a_large_pair_is_sampled_in_chips_all_over(tmp_path):
    pair = make_pair(tmp_path, height=60, width=40).open()
    chips = sample_pair(pair, max_px=600, chip_px=10)
    assert 4 <= len(chips) <= 6
    assert {chip.hsi.shape for chip in chips} == {(1, BANDS, 10, 10)}
    assert len({float(chip.hsi.sum()) for chip in chips}) == len(chips)


def test_a_sample_is_bounded_in_fine_pixels_too(tmp_path):
    pair = make_pair(tmp_path, height=60, width=40).open()
    chips = sample_pair(pair, max_fine_px=RATIO**2 * 64)
    assert [chip.hsi.shape for chip in chips] == [(1, BANDS, 8, 8)]


def test_chips_look_for_valid_pixels(tmp_path):
    hsi = numbers(BANDS, 60, 40)
    hsi[:, 10:20, 10:30] = -99
    pair = make_pair(tmp_path, height=60, width=40, hsi=hsi, hsi_options={"nodata": -99}).open()
    chips = sample_pair(pair, max_px=600, chip_px=10)
    assert min(float(chip.hsi_valid.float().mean()) for chip in chips) > 0.4


def test_a_pair_without_a_common_pixel_is_refused(tmp_path):
    hsi = numbers(BANDS, 20, 20)
    hsi[:, :, 10:] = -99
    msi = numbers(FINE_BANDS, 60, 60)
    msi[:, :, :30] = -99
    options = {"hsi_options": {"nodata": -99}, "msi_options": {"nodata": -99}}
    pair = make_pair(tmp_path, height=20, width=20, hsi=hsi, msi=msi, **options).open()
    with pytest.raises(SceneError, match="No pixel of hsi and msi has measurements in both"):
        sample_pair(pair)


@pytest.mark.parametrize("tile_px", [None, 1, 5, 7, 16])
def test_tiled_equals_untiled(tmp_path, tile_px):
    pair = make_pair(tmp_path).open()
    model = ConvPair()
    mosaic = fuse(pair, model, tile_px=tile_px)
    assert (mosaic.times == 1).all() and mosaic.valid.all()
    np.testing.assert_allclose(mosaic.values, untiled(pair, model), atol=1e-5)


def test_too_small_a_reach_would_be_seen(tmp_path):
    """What the test above rests on: without its margin, the tiled result is another one."""
    pair = make_pair(tmp_path).open()
    model = ConvPair()
    model.reach_px = 0
    assert np.abs(fuse(pair, model, tile_px=5).values - untiled(pair, model)).max() > 0.01


def test_an_extent_is_a_part_of_the_whole(tmp_path):
    pair = make_pair(tmp_path).open()
    model = ConvPair()
    part = fuse(pair, model, extent=Window(4, 3, 9, 8), tile_px=4)
    assert (part.times == 1).all()
    np.testing.assert_allclose(part.values, untiled(pair, model)[:, 12:39, 9:33], atol=1e-5)


def test_an_extent_outside_is_refused(tmp_path):
    pair = make_pair(tmp_path).open()
    with pytest.raises(RequestError, match="extent lies outside"):
        fuse(pair, ConvPair(), extent=Window(100, 0, 5, 5))


def test_a_tile_of_nothing_is_refused(tmp_path):
    with pytest.raises(RequestError, match="tile of 0 px has no pixel"):
        fuse(make_pair(tmp_path).open(), ConvPair(), tile_px=0)


def test_results_are_valid_where_both_images_are(tmp_path):
    hsi = numbers(BANDS, HEIGHT, WIDTH)
    hsi[:, 2, 3] = -99
    msi = numbers(FINE_BANDS, HEIGHT * RATIO, WIDTH * RATIO, 1)
    msi[:, 40, 20] = -99
    options = {"hsi_options": {"nodata": -99}, "msi_options": {"nodata": -99}}
    pair = make_pair(tmp_path, hsi=hsi, msi=msi, **options).open()
    mosaic = fuse(pair, ConvPair(), tile_px=6)
    expected = np.ones((HEIGHT * RATIO, WIDTH * RATIO), bool)
    expected[6:9, 9:12] = expected[40, 20] = False
    np.testing.assert_array_equal(mosaic.valid, expected)
    assert (mosaic.values[:, ~expected] == 0).all()


def test_tiles_without_a_valid_pixel_are_not_run(tmp_path):
    hsi = numbers(BANDS, HEIGHT, WIDTH)
    hsi[:, :12] = -99
    pair = make_pair(tmp_path, hsi=hsi, hsi_options={"nodata": -99}).open()
    seen = []

    class Counting(NearestPair):
        def __call__(self, images):
            seen.append(images.hsi.shape)
            return super().__call__(images)

    mosaic = fuse(pair, Counting(), tile_px=12)
    assert len(seen) == 2 and (mosaic.times == 1).all()
    assert not mosaic.valid[:36].any() and mosaic.valid[36:].all()


def test_lanes_give_what_one_thread_gives(tmp_path):
    pair = make_pair(tmp_path).open()
    model = ConvPair()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        lanes = fuse(pair, model, tile_px=4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(lanes.values, untiled(pair, model), atol=1e-5)


def test_too_little_memory_splits_a_tile(tmp_path):
    class Small(ConvPair):
        def forward(self, pair):
            if pair.hsi.shape[-1] * pair.hsi.shape[-2] > 60:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(pair)

    pair = make_pair(tmp_path).open()
    mosaic = fuse(pair, Small(), tile_px=16)
    np.testing.assert_allclose(mosaic.values, untiled(pair, ConvPair()), atol=1e-5)


def test_too_little_memory_for_a_pixel_is_said(tmp_path):
    class Full(ConvPair):
        def forward(self, pair):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(DeviceError, match=r"too small for one pixel with the 2 px around"):
        fuse(make_pair(tmp_path).open(), Full())


def test_a_model_for_another_ratio_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ratio of 4 cannot fuse one of 3"):
        fuse(make_pair(tmp_path).open(), ConvPair(ratio=4))


def test_a_result_of_another_size_is_refused(tmp_path):
    class Wrong(NearestPair):
        def __call__(self, pair):
            return pair.hsi

    with pytest.raises(ValueError, match=r"returned \(1, 6, 24, 17\) instead of \(1, 6, 72, 51\)"):
        fuse(make_pair(tmp_path).open(), Wrong())


def test_progress_rises_to_one(tmp_path):
    class Told(SilentFeedback):
        def __init__(self):
            self.fractions = []

        def progress(self, fraction, message=""):
            assert message == "Fusing"
            self.fractions.append(fraction)

    told = Told()
    fuse(make_pair(tmp_path).open(), NearestPair(), told, tile_px=6)
    assert told.fractions == sorted(told.fractions)
    assert told.fractions[0] < 0.3 and told.fractions[-1] == 1.0


@pytest.mark.parametrize("looks", [1, 3, 7])
def test_a_cancel_ends_all_threads(tmp_path, looks):
    with pytest.raises(CancelledError):
        fuse(make_pair(tmp_path).open(), NearestPair(), CancelAfter(looks), tile_px=3)
    names = {thread.name.partition("_")[0] for thread in threading.enumerate()}
    assert not names & {"reader", "writer", "lane"}


def test_a_cancel_is_answered_between_the_layers_of_a_slow_model(tmp_path):
    class Nap(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.05)
            return x

    class Slow(ConvPair):
        def __init__(self):
            super().__init__()
            self.naps = torch.nn.Sequential(*[Nap() for _ in range(100)])

        def forward(self, pair):
            return self.naps(super().forward(pair))

    class AtTime(SilentFeedback):
        at_s = time.monotonic() + 0.2

        def raise_if_cancelled(self):
            if time.monotonic() > self.at_s:
                raise CancelledError

    start_s = time.monotonic()
    with pytest.raises(CancelledError):
        fuse(make_pair(tmp_path).open(), Slow(), AtTime())
    assert time.monotonic() - start_s < 1


@pytest.mark.parametrize("fault", ["reader", "sink"])
def test_an_error_of_a_thread_ends_the_run(tmp_path, monkeypatch, fault):
    pair = make_pair(tmp_path).open()

    def fail(*_):
        raise OSError("the disk is gone")

    if fault == "reader":
        monkeypatch.setattr(pair_stream.PairReader, "read", fail)
    sink = fail if fault == "sink" else Mosaic(pair.grid, BANDS)
    with pytest.raises(OSError, match="the disk is gone"):
        stream_pair(pair, NearestPair(), sink, device=CPU, feedback=SilentFeedback(), tile_px=4)


def test_few_tiles_are_held_at_a_time(tmp_path):
    """The reader waits for the writer, so that memory does not grow with the pair."""
    pair = make_pair(tmp_path, height=80, width=4).open()
    read, written, apart = [], [], []

    class Watched(PairReader):
        def read(self, window):
            read.append(window)
            apart.append(len(read) - len(written))
            return super().read(window)

    def slow_sink(window, values, valid):
        time.sleep(0.005)
        written.append(window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_stream, "PairReader", Watched)
        stream_pair(
            pair, NearestPair(), slow_sink, device=CPU, feedback=SilentFeedback(), tile_px=2
        )
    assert len(written) == 80
    # Read ahead, one waits; each lane has one and one more; one waits, one is written.
    assert max(apart) <= torch.get_num_threads() + 6


def test_the_whole_pair_is_the_default(tmp_path):
    pair = make_pair(tmp_path).open()
    assert fuse(pair, NearestPair()).values.shape == (BANDS, HEIGHT * RATIO, WIDTH * RATIO)
    assert whole(pair) == pair.window
