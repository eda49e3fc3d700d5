"""segment: the street of classify, with blended tiles and polygons."""

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from rasterio.features import rasterize

from engine.errors import CancelledError, OutputError, PackageError, RequestError
from engine.feedback import SilentFeedback
from engine.jobs.classify import Request as ClassifyRequest
from engine.jobs.classify import classify
from engine.jobs.segment import Request, segment
from engine.packages.metadata import Quantity
from engine.packages.package import save_package
from engine.packages.parts import ModelParts
from engine.raster.polygons import FIELDS
from tests.engine.conftest import HEIGHT, TRANSFORM, WIDTH
from tests.engine.jobs.brightest import (
    CLASSES,
    Listener,
    brightest_scene,
    info_of,
    left_in,
    model_of,
    read,
)

PIXEL_M2 = 600  # of the made scenes
OVERLAP = {"overlap": 4}


@pytest.fixture
def request_of(tmp_path, scene, save_model):
    """A request for a model that sees chips of 8 px, with a margin of 2 px."""
    model = save_model(gate=1.0)

    def make(**parameters):
        output = str(tmp_path / "out" / "map.tif")
        Path(output).parent.mkdir(exist_ok=True)
        return Request.parse({"input": scene, "model": model, "output": output} | parameters)

    return make


@pytest.fixture
def patches(tmp_path):
    return str(tmp_path / "out" / "patches.gpkg")


def features(path):
    _meta, _fids, wkb, columns = pyogrio.raw.read(path, layer=Path(path).stem)
    return shapely.from_wkb(wkb), dict(zip(FIELDS, columns, strict=True))


def test_the_map_is_that_of_classify(request_of, tmp_path):
    result = segment(request_of(), SilentFeedback())
    path = str(tmp_path / "classified.tif")
    values = request_of().model_dump(exclude_unset=True) | {"output": path}
    classify(ClassifyRequest.parse(values), SilentFeedback())
    np.testing.assert_array_equal(read(result["output"]), read(path))
    assert set(result) == {"output", "valid_pixels", "seconds", "device"}
    assert result["valid_pixels"] == HEIGHT * WIDTH - 20


def test_polygons_burn_back_to_the_map(request_of, patches):
    result = segment(request_of(polygons=patches), SilentFeedback())
    geometries, columns = features(result["polygons"])
    shapes = zip(geometries, columns["class_value"].tolist(), strict=True)
    burnt = rasterize(shapes, (HEIGHT, WIDTH), transform=TRANSFORM, dtype="uint8")
    np.testing.assert_array_equal(burnt, read(result["output"])[0])


def test_polygons_know_class_area_and_confidence(request_of, patches, tmp_path):
    confidence = str(tmp_path / "confidence.tif")
    result = segment(request_of(polygons=patches, confidence=confidence), SilentFeedback())
    geometries, columns = features(result["polygons"])
    names = {info.value: info.name for info in CLASSES}
    assert [names[value] for value in columns["class_value"]] == columns["class_name"].tolist()
    np.testing.assert_allclose(columns["area_m2"], shapely.area(geometries))
    pixels = columns["area_m2"] / PIXEL_M2
    assert pixels.sum() == pytest.approx(result["valid_pixels"])
    mean = (columns["mean_confidence"] * pixels).sum() / pixels.sum()
    assert mean == pytest.approx(np.nanmean(read(confidence)), rel=1e-5)


def test_the_smallest_area_is_in_square_metres(request_of, patches):
    segment(request_of(polygons=patches, min_area=2.5 * PIXEL_M2), SilentFeedback())
    areas = features(patches)[1]["area_m2"]
    assert len(areas) and areas.min() == 3 * PIXEL_M2


def test_the_log_counts_the_polygons(request_of, patches):
    listener = Listener()
    for least_m2, words in ((0, ""), (5 * PIXEL_M2, f" of {5 * PIXEL_M2:,.0f} m² or more")):
        segment(request_of(polygons=patches, min_area=least_m2), listener)
        assert f"Polygons: {len(features(patches)[0]):,}{words}." in listener.infos


def test_polygons_of_an_extent_lie_in_it(request_of, patches):
    left, top = TRANSFORM @ (3, 2)
    right, bottom = TRANSFORM @ (9, 20)
    request = request_of(polygons=patches, extent=(left, bottom, right, top))
    segment(request, SilentFeedback())
    assert shapely.total_bounds(features(patches)[0]).tolist() == [left, bottom, right, top]


def test_an_older_layer_is_replaced(request_of, patches):
    segment(request_of(polygons=patches), SilentFeedback())
    many = len(features(patches)[0])
    segment(request_of(polygons=patches, min_area=5 * PIXEL_M2), SilentFeedback())
    assert 0 < len(features(patches)[0]) < many
    assert left_in(Path(patches).parent) == [
        "map.qml", "map.tif", "map.tif.aux.xml", "patches.gpkg",
    ]  # fmt: skip


def test_a_model_that_sees_single_pixels_is_taken_too(request_of, save_model, expected, patches):
    request = request_of(model=save_model(), polygons=patches, tile_size=16)
    result = segment(request, SilentFeedback())
    np.testing.assert_array_equal(read(result["output"])[0], expected)
    assert len(features(patches)[0])


@pytest.mark.parametrize(("overlap", "expected"), [(None, 4), (0, 0), (3, 4), (6, 6)])
def test_the_log_says_how_tiles_overlap(request_of, overlap, expected):
    listener = Listener()
    parameters = {} if overlap is None else {"overlap": overlap}
    segment(request_of(**parameters), listener)
    times = (8 / (8 - expected)) ** 2
    assert any(
        f"overlap by {expected} px: each pixel is computed {times:.2f} times" in info
        for info in listener.infos
    )


def test_the_overlap_is_used(request_of, tmp_path):
    model = model_of(gate=1.0)
    torch.nn.init.normal_(model.head.classes.weight)  # of a new model it adds nothing
    state = model.state_dict() | ModelParts(temperature=50.0).state()
    package = str(save_package(str(tmp_path / "models" / "other"), info_of(model), state))
    made = []
    for overlap in (0, 4):
        path = str(tmp_path / f"{overlap}.tif")
        segment(request_of(model=package, overlap=overlap, probabilities=path), SilentFeedback())
        made.append(read(path))
    difference = np.abs(made[0] - made[1])
    assert np.nanmax(difference) > 1e-3
    assert np.nanmin(difference) < 1e-6  # in the middle of tiles that are where they were


def test_an_overlap_that_leaves_nothing_is_refused(request_of):
    with pytest.raises(RequestError, match=r"overlap of 7 px leaves nothing of a tile of 8 px.*6"):
        segment(request_of(overlap=7), SilentFeedback())


def test_an_overlap_of_tiles_that_are_cropped_is_refused(request_of, save_model):
    with pytest.raises(RequestError, match="tiles of this model do not overlap"):
        segment(request_of(model=save_model(), overlap=4), SilentFeedback())


def test_tiles_of_another_size_are_refused(request_of):
    with pytest.raises(RequestError, match="reads tiles of 8 px, not of 16 px"):
        segment(request_of(tile_size=16), SilentFeedback())


@pytest.mark.parametrize(
    ("parameter", "value"), [("overlap", -1), ("min_area", -0.1), ("min_area", float("inf"))]
)
def test_numbers_out_of_range_are_refused(request_of, parameter, value):
    with pytest.raises(RequestError, match=parameter):
        request_of(**{parameter: value})


def test_polygons_are_a_geopackage(request_of, tmp_path):
    with pytest.raises(OutputError, match=r"only \.gpkg is written"):
        segment(request_of(polygons=str(tmp_path / "out" / "patches.shp")), SilentFeedback())
    assert left_in(tmp_path / "out") == []


def test_the_mask_cannot_be_the_polygons(request_of, patches):
    segment(request_of(polygons=patches), SilentFeedback())
    with pytest.raises(OutputError, match="is also an input"):
        segment(request_of(mask=patches, polygons=patches), SilentFeedback())


def test_a_model_of_a_quantity_is_refused(request_of, save_model):
    other = save_model(task="regression", classes=(), quantity=Quantity("carbon", "g/kg", 0, 1))
    with pytest.raises(PackageError, match="not for classification"):
        segment(request_of(model=other), SilentFeedback())


@pytest.mark.parametrize("cancel_at", [0.02, 0.95])
def test_cancelled_run_leaves_nothing(request_of, patches, tmp_path, cancel_at):
    request = request_of(polygons=patches, confidence=str(tmp_path / "out" / "c.tif"))
    with pytest.raises(CancelledError):
        segment(request, Listener(cancel_at=cancel_at))
    assert left_in(tmp_path / "out") == []


def test_a_scene_without_crs_has_areas_in_its_own_units(request_of, make_raster, patches):
    nowhere = make_raster("nowhere.tif", array=brightest_scene()[0], scale=1e-4, crs=None)
    listener = Listener()
    segment(request_of(input=nowhere.path, polygons=patches), listener)
    assert any("take coordinates for metres" in message for message in listener.warnings)
    assert features(patches)[1]["area_m2"].min() == PIXEL_M2


def test_the_map_tells_the_request_that_made_it(request_of, patches):
    result = segment(request_of(polygons=patches, **OVERLAP), SilentFeedback())
    with rasterio.open(result["output"]) as dataset:
        assert '"overlap": 4' in dataset.tags()["PARAMETERS"]
