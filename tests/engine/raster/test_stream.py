"""Streaming: three threads that work together, stop together, and give the same every time."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import rasterio
import torch

from engine.errors import CancelledError, DeviceError, RequestError, SceneError
from engine.feedback import SilentFeedback
from engine.raster import model_threads, plan, stream
from engine.raster.scene import open_scene
from engine.raster.spectra import BandMatch
from engine.raster.stream import stream_scene
from engine.raster.tiles import Tiling, Window
from tests.engine.raster.made_scenes import (
    BANDS,
    CancelAfter,
    Collected,
    ConvModel,
    IdentityModel,
    all_bands,
    make_values,
    run,
    write_scene,
)

SMALL_PIECES = 600 * 12 * 2


@pytest.fixture
def source(tmp_path):
    return write_scene(tmp_path / "scene", make_values(53, 47, "int16"))


def threads_of_runs():
    names = {thread.name.partition("_")[0] for thread in threading.enumerate()}
    return names & {"reader", "writer", "lane"}


@pytest.fixture
def lanes(monkeypatch):
    """Three lanes, and batches of which a small scene has many."""
    monkeypatch.setitem(plan._BATCH_BYTES, "cpu", 4 * BANDS * 200)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(threads)


def stream_into(source, sink, model=None, feedback=None):
    scene = open_scene(source)
    stream_scene(
        scene,
        all_bands(scene),
        model or IdentityModel(Tiling(16, 0)),
        sink,
        device=torch.device("cpu"),
        feedback=feedback or SilentFeedback(),
        piece_bytes=SMALL_PIECES,
    )


def test_blended_rows_arrive_in_order_over_the_full_width(source):
    model = IdentityModel(Tiling(16, 2, blend=True))
    windows = run(source, model, piece_bytes=SMALL_PIECES).windows
    assert len(windows) > 2
    assert windows[0].row_off == 0 and windows[-1].row_stop == 53
    assert all(w.row_off == above.row_stop for above, w in pairwise(windows))
    assert {(w.col_off, w.width) for w in windows} == {(0, 47)}


def test_pieces_arrive_from_top_to_bottom_and_left_to_right(source):
    windows = run(source, IdentityModel(Tiling(16, 2)), piece_bytes=SMALL_PIECES).windows
    corners = [(window.row_off, window.col_off) for window in windows]
    assert len(windows) > 4
    assert corners == sorted(corners)
    assert sum(window.height * window.width for window in windows) == 53 * 47


def test_the_result_does_not_depend_on_the_height_of_strips(source):
    results = [
        run(source, ConvModel(Tiling(20, 4, blend=True)), piece_bytes=size).values
        for size in (1, SMALL_PIECES, 10**8)
    ]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results[0], results[2], rtol=1e-5, atol=1e-6)


def test_two_runs_give_the_same_bits(source):
    model = ConvModel(Tiling(20, 4, blend=True))
    np.testing.assert_array_equal(run(source, model).values, run(source, model).values)


def test_progress_moves_from_0_to_1(source):
    feedback = CancelAfter()
    run(source, IdentityModel(Tiling(16, 2)), feedback=feedback, piece_bytes=SMALL_PIECES)
    assert feedback.fractions[0] == 0 and feedback.fractions[-1] == 1
    assert feedback.fractions == sorted(feedback.fractions) and len(feedback.fractions) > 3


def test_stored_values_become_reflectance_by_scale_and_offset(tmp_path):
    values = make_values(24, 17, "uint16")
    source = write_scene(tmp_path / "scene", values, scale=2e-5, offset=-0.1)
    result = run(source, IdentityModel(Tiling(16, 0)))
    np.testing.assert_allclose(result.values, values * 2e-5 - 0.1, rtol=1e-4, atol=1e-6)


def test_uint16_above_32767_is_not_negative(tmp_path):
    values = make_values(9, 9, "uint16")
    values[:] = 60_000
    result = run(write_scene(tmp_path / "scene", values), IdentityModel(Tiling(16, 0)))
    np.testing.assert_allclose(result.values, 6.0, rtol=1e-6)


def test_bands_are_given_in_the_order_of_the_match(tmp_path):
    values = make_values(24, 17, "int16")
    source = write_scene(tmp_path / "scene", values)
    match = BandMatch((7, 0, 3), None, ())
    result = run(source, IdentityModel(Tiling(16, 0), 3), match=match)
    np.testing.assert_allclose(result.values, values[[7, 0, 3]] * 1e-4, rtol=1e-5)


def test_bands_are_resampled_by_the_weights_of_the_match(tmp_path):
    values = make_values(24, 17, "int16")
    values[4, 5, 6] = -999
    source = write_scene(tmp_path / "scene", values, nodata=-999)
    weights = np.array([[0.5, 0.5, 0], [0, 0.25, 0.75]], np.float32)
    match = BandMatch((2, 4, 9), weights, ())
    result = run(source, IdentityModel(Tiling(16, 0), 2), match=match)
    expected = np.einsum("mc,chw->mhw", weights, values[[2, 4, 9]] * 1e-4)
    expected[:, 5, 6] = 0
    np.testing.assert_allclose(result.values, expected, rtol=1e-5, atol=1e-7)
    assert not result.valid[5, 6] and result.valid.sum() == 24 * 17 - 1


def test_nodata_in_a_band_that_is_not_used_does_not_matter(tmp_path):
    values = make_values(24, 17, "int16")
    values[4] = -999
    source = write_scene(tmp_path / "scene", values, nodata=-999)
    result = run(source, IdentityModel(Tiling(16, 0), 2), match=BandMatch((3, 5), None, ()))
    assert result.valid.all()


def test_every_band_has_its_own_nodata(tmp_path):
    stored = write_scene(tmp_path / "scene", make_values(8, 9, "int16", bands=2))
    with rasterio.open(stored, "r+") as dataset:
        values = dataset.read()
        values[0, 1, 1], values[1, 1, 1] = -1, 5  # band 1 has none: valid
        values[1, 2, 2] = -2
        dataset.write(values)
    vrt = tmp_path / "scene.vrt"
    rasterio.shutil.copy(stored, vrt, driver="VRT")
    text = vrt.read_text()
    head, tail = text.split('band="2"')
    vrt.write_text(head + 'band="2"' + tail.replace(">", "><NoDataValue>-2</NoDataValue>", 1))
    result = run(str(vrt), IdentityModel(Tiling(16, 0), 2))
    assert not result.valid[2, 2]
    assert result.valid.sum() == 8 * 9 - 1


def test_the_model_is_told_which_pixels_are_invalid_and_sees_0_there(tmp_path):
    values = make_values(24, 17, "int16")
    values[:, :5] = -999
    seen = []

    class Spy(IdentityModel):
        def __call__(self, reflectance, valid):
            seen.append((reflectance.clone(), valid.clone()))
            return reflectance

    run(write_scene(tmp_path / "scene", values, nodata=-999), Spy(Tiling(64, 0)))
    ((reflectance, valid),) = seen
    assert not valid[0, :5].any() and valid[0, 5:].all()
    assert (reflectance[0, :, :5] == 0).all() and (reflectance[0, :, 5:] > 0).all()


def test_a_tile_without_a_valid_pixel_is_not_computed(tmp_path):
    values = make_values(32, 16, "int16")
    values[:, :16] = -999
    calls = []

    class Spy(IdentityModel):
        def __call__(self, reflectance, valid):
            calls.append(reflectance.shape)
            return reflectance

    source = write_scene(tmp_path / "scene", values, nodata=-999)
    result = run(source, Spy(Tiling(16, 0)), piece_bytes=16 * 16 * 24)
    assert calls == [(1, 12, 16, 16)]
    assert result.valid.sum() == 256


@pytest.mark.parametrize("tiling", [Tiling(16, 2), Tiling(16, 4, blend=True)])
def test_a_mask_leaves_out_results_but_not_neighbours(source, tiling):
    def mask(window):
        rows = np.arange(window.row_off, window.row_stop)[:, None]
        cols = np.arange(window.col_off, window.col_stop)
        return (rows + 2 * cols) % 50 < 20

    whole = run(source, ConvModel(tiling), piece_bytes=SMALL_PIECES)
    masked = run(source, ConvModel(tiling), valid_mask=mask, piece_bytes=SMALL_PIECES)
    wanted = mask(Window(0, 0, 53, 47))
    np.testing.assert_array_equal(masked.valid, wanted)
    np.testing.assert_allclose(
        masked.values[:, wanted], whole.values[:, wanted], rtol=1e-5, atol=1e-6
    )
    assert (masked.values[:, ~wanted] == 0).all()


def test_tiles_of_one_shape_go_through_the_model_together(source):
    batches = []

    class Spy(IdentityModel):
        def __call__(self, reflectance, valid):
            batches.append(len(reflectance))
            return reflectance

    run(source, Spy(Tiling(16, 4, blend=True)))
    assert max(batches) > 1


class TooMuchFor(IdentityModel):
    """Runs out of memory above a number of tiles at a time."""

    limit = 1

    def __call__(self, reflectance, valid):
        if len(reflectance) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return reflectance


def test_too_little_memory_halves_the_batch_and_goes_on_with_a_note(tmp_path):
    values = make_values(53, 47, "int16")
    feedback = CancelAfter()
    source = write_scene(tmp_path / "scene", values)
    result = run(source, TooMuchFor(Tiling(16, 4, blend=True)), feedback=feedback)
    np.testing.assert_allclose(result.values, values * 1e-4, rtol=1e-5)
    assert "going on with" in feedback.warnings[0]


def test_too_little_memory_for_one_tile_is_an_error(source):
    model = TooMuchFor(Tiling(16, 0))
    model.limit = 0
    with pytest.raises(DeviceError, match=r"too small for one tile of .* smaller tile size"):
        run(source, model)


def test_a_tile_size_within_the_margin_is_refused_before_work(source):
    with pytest.raises(RequestError, match=r"tile size of 16 px .* at least 21 px"):
        run(source, IdentityModel(Tiling(64, 10)), tile_size_px=16)


def test_the_user_s_tile_size_replaces_the_model_s(source):
    shapes = set()

    class Spy(IdentityModel):
        def __call__(self, reflectance, valid):
            shapes.add(tuple(reflectance.shape[2:]))
            return reflectance

    run(source, Spy(Tiling(512, 2, blend=True)), tile_size_px=20)
    assert shapes == {(20, 20)}


def test_a_model_with_a_wrong_result_is_named(source):
    with pytest.raises(ValueError, match=r"returned \(1, 12, .* instead of \(1, 5,"):
        run(source, IdentityModel(Tiling(16, 0), out_channels=5))


def test_bfloat16_runs_the_model_under_autocast_and_returns_float32(source):
    types = []

    class Spy(ConvModel):
        def forward(self, reflectance, valid):
            result = self.layers[1](self.layers[0](reflectance))
            types.append((reflectance.dtype, result.dtype))
            return result

    result = run(source, Spy(Tiling(64, 2)), precision="bfloat16")
    assert types[0] == (torch.float32, torch.bfloat16)
    assert result.values.dtype == np.float32


def test_an_error_of_the_writer_stops_all_and_is_the_one_that_is_raised(source):
    def sink(window, values, valid):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        stream_into(source, sink)
    assert not threads_of_runs()


def test_an_error_of_the_model_stops_all_and_is_the_one_that_is_raised(source):
    class Broken(IdentityModel):
        def __call__(self, reflectance, valid):
            raise ArithmeticError("broken model")

    with pytest.raises(ArithmeticError, match="broken model"):
        run(source, Broken(Tiling(16, 0)))
    assert not threads_of_runs()


def test_an_error_of_the_reader_stops_all_and_is_the_one_that_is_raised(source, monkeypatch):
    def read(self, window, out=None):
        raise SceneError("block 7 is damaged")

    scene = open_scene(source)
    monkeypatch.setattr(stream.SceneReader, "read", read)
    with pytest.raises(SceneError, match="block 7 is damaged"):
        stream_scene(
            scene, all_bands(scene), IdentityModel(Tiling(16, 0)), Collected(53, 47, BANDS),
            device=torch.device("cpu"), feedback=SilentFeedback(),
        )  # fmt: skip
    assert not threads_of_runs()


@pytest.mark.parametrize("looks", [1, 4, 8])
def test_a_cancel_stops_all_threads(source, looks):
    with pytest.raises(CancelledError):
        stream_into(source, Collected(53, 47, BANDS), feedback=CancelAfter(looks))
    assert not threads_of_runs()


class CancelAtTime(SilentFeedback):
    def __init__(self, after_s):
        self.at = time.monotonic() + after_s

    def raise_if_cancelled(self):
        if time.monotonic() > self.at:
            raise CancelledError


def test_a_cancel_is_answered_while_a_read_hangs(source, monkeypatch):
    scene = open_scene(source)
    answer = threading.Event()
    monkeypatch.setattr(stream.SceneReader, "read", lambda *_, **__: answer.wait(5))
    start_s = time.monotonic()
    with pytest.raises(CancelledError):
        stream_scene(
            scene, all_bands(scene), IdentityModel(Tiling(16, 0)), Collected(53, 47, BANDS),
            device=torch.device("cpu"), feedback=CancelAtTime(0.1),
        )  # fmt: skip
    assert time.monotonic() - start_s < 1
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "reader":
            thread.join()


class Nap(torch.nn.Module):
    def forward(self, x):
        time.sleep(0.05)
        return x


def test_a_cancel_is_answered_between_the_layers_of_a_slow_model(source):
    class Slow(torch.nn.Module):
        tiling, out_channels = Tiling(64, 0), BANDS

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(*[Nap() for _ in range(100)])

        def forward(self, reflectance, valid):
            return self.layers(reflectance)

    start_s = time.monotonic()
    with pytest.raises(CancelledError):
        stream_into(source, Collected(53, 47, BANDS), Slow(), CancelAtTime(0.1))
    assert time.monotonic() - start_s < 1


def test_layers_of_a_quick_model_are_no_longer_watched(source, monkeypatch):
    looks = []
    plain = model_threads.LayerWatch._look

    def count(self, module, args):
        looks.append(module)
        plain(self, module, args)

    monkeypatch.setattr(model_threads.LayerWatch, "_look", count)

    class Quick(torch.nn.Module):
        tiling, out_channels = Tiling(8, 0), BANDS

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(*[torch.nn.Identity() for _ in range(9)])

        def forward(self, reflectance, valid):
            return self.layers(reflectance)

    monkeypatch.setattr(plan, "_BATCH_BYTES", {"cpu": 1})  # a batch a tile
    stream_into(source, Collected(53, 47, BANDS), Quick(), SilentFeedback())
    # 11 modules a batch; of 42 batches a few had begun when the first was done.
    assert 0 < len(looks) < 6 * 11


def test_reading_computing_and_writing_overlap(source):
    """The reader is ahead of the model, and the model goes on while rows are written."""
    writing, computed_meanwhile = threading.Event(), threading.Event()

    class Spy(IdentityModel):
        def __call__(self, reflectance, valid):
            if writing.wait(0.2):  # the writer may be slow to begin on a busy machine
                computed_meanwhile.set()
            return reflectance

    def sink(window, values, valid):
        writing.set()
        assert computed_meanwhile.wait(5)

    stream_into(source, sink, Spy(Tiling(16, 0)))


MANY_TILES = Tiling(16, 2, blend=True)


def test_batches_are_computed_side_by_side_with_a_share_of_the_cores_each(source, lanes):
    together = threading.Barrier(lanes)
    seen = []

    class Spy(IdentityModel):
        def __call__(self, reflectance, valid):
            if len(seen) < lanes:
                seen.append((threading.get_ident(), torch.get_num_threads()))
                together.wait(5)
            return reflectance

    run(source, Spy(MANY_TILES))
    assert len({thread for thread, _ in seen}) == lanes
    assert {cores for _, cores in seen} == {1}


def test_lanes_change_no_result_even_when_later_batches_are_done_first(source, lanes):
    class Uneven(IdentityModel):
        def __call__(self, reflectance, valid):
            time.sleep(float(reflectance[0, 0, 0, 0]) / 50)
            return reflectance

    side_by_side = run(source, Uneven(MANY_TILES)).values
    torch.set_num_threads(1)
    np.testing.assert_array_equal(side_by_side, run(source, IdentityModel(MANY_TILES)).values)


def test_the_number_of_threads_is_the_same_after_a_run_in_old_and_new_threads(source, lanes):
    run(source, ConvModel(MANY_TILES))
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [lanes, lanes]


def test_an_error_in_a_lane_stops_all_and_is_the_one_that_is_raised(source, lanes):
    class Broken(IdentityModel):
        def __call__(self, reflectance, valid):
            raise ArithmeticError("broken model")

    with pytest.raises(ArithmeticError, match="broken model"):
        run(source, Broken(MANY_TILES))
    assert not threads_of_runs()
    assert torch.get_num_threads() == lanes


def test_a_cancel_is_answered_in_the_middle_of_the_batches_of_lanes(source, lanes):
    class Slow(torch.nn.Module):
        tiling, out_channels = MANY_TILES, BANDS

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(*[Nap() for _ in range(100)])

        def forward(self, reflectance, valid):
            return self.layers(reflectance)

    start_s = time.monotonic()
    with pytest.raises(CancelledError):
        run(source, Slow(), feedback=CancelAtTime(0.2))
    assert time.monotonic() - start_s < 1
    assert not threads_of_runs()


def test_too_little_memory_in_lanes_gives_the_same_result(tmp_path, lanes, monkeypatch):
    monkeypatch.setitem(plan._BATCH_BYTES, "cpu", 4 * BANDS * 800)
    values = make_values(53, 47, "int16")
    feedback = CancelAfter()
    source = write_scene(tmp_path / "scene", values)
    result = run(source, TooMuchFor(MANY_TILES), feedback=feedback)
    np.testing.assert_allclose(result.values, values * 1e-4, rtol=1e-5)
    assert "going on with" in feedback.warnings[0]


def test_lanes_that_end_the_watch_together_do_not_stumble():
    """torch's handle looks for its hook and then deletes it: two at once find it both."""
    watch = model_threads.LayerWatch(SilentFeedback(), threading.Event())
    hooks, failed = {"hook": 1}, []

    class Handle:
        def remove(self):
            if "hook" in hooks:
                time.sleep(0.05)
                del hooks["hook"]

    def end():
        try:
            watch.see_batch(0.0)
        except KeyError as error:
            failed.append(error)

    watch._hook = Handle()
    lanes = [threading.Thread(target=end) for _lane in range(2)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert (hooks, failed) == ({}, [])
