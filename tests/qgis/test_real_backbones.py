"""The whole street of backbones and quantities with the real engine, on scenes of a few tiles."""

from pathlib import Path

import processing
import pytest
from osgeo import gdal, ogr, osr
from qgis.core import QgsProcessingException, QgsRasterLayer

WIDTH, HEIGHT = 96, 72  # a few dozen tiles of the preset "laptop"
CORNER, PIXEL_M = (390000.0, 5820000.0), 30.0
# a band in each range of Galileo and Prithvi, and some between
WAVELENGTHS_NM = (
    *(443, 492, 560, 610, 655, 704, 740, 783, 833, 865, 940, 1050, 1240, 1560),
    *(1614, 1700, 2070, 2202, 2300),
)
LANDSAT_NM = (482, 561, 655, 865, 1609, 2201)
QUICK = {"PRESET": "laptop", "EPOCHS": 1, "DEVICE": "cpu"}

pytestmark = pytest.mark.usefixtures("real_plugin")


def wetness(column, row):
    """What there is to learn: 0 to 1, in waves that cross every block."""
    return ((column * 3 + row * 5) % 48) / 47


def write_scene(path, wavelengths_nm):
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32633)
    scene = gdal.GetDriverByName("GTiff").Create(
        str(path), WIDTH, HEIGHT, len(wavelengths_nm), gdal.GDT_Int16
    )
    scene.SetGeoTransform((CORNER[0], PIXEL_M, 0, CORNER[1], 0, -PIXEL_M))
    scene.SetProjection(reference.ExportToWkt())
    for number, wavelength in enumerate(wavelengths_nm, 1):
        band = scene.GetRasterBand(number)
        dry, wet = 3000 if wavelength > 700 else 400, 600 - wavelength // 5
        values = [
            round(dry + (wet - dry) * wetness(column, row)) + (column * 7 + row * 13) % 40
            for row in range(HEIGHT)
            for column in range(WIDTH)
        ]
        packed = b"".join(value.to_bytes(2, "little", signed=True) for value in values)
        band.WriteRaster(0, 0, WIDTH, HEIGHT, packed, buf_type=gdal.GDT_Int16)
        band.SetMetadataItem("wavelength", str(wavelength))
        band.SetMetadataItem("wavelength_units", "nm")
        band.SetMetadataItem("fwhm", "10" if len(wavelengths_nm) > 10 else "40")
        band.SetNoDataValue(-32768)
        band.SetScale(0.0001)
    del band, scene
    return str(path)


def write_samples(path):
    """Points with a number and a class, on every third column."""
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32633)
    source = ogr.GetDriverByName("GPKG").CreateDataSource(str(path))
    layer = source.CreateLayer("samples", reference, ogr.wkbPoint)
    layer.CreateField(ogr.FieldDefn("moisture", ogr.OFTReal))
    layer.CreateField(ogr.FieldDefn("cover", ogr.OFTString))
    for row in range(0, HEIGHT, 2):
        for column in range(row % 3, WIDTH, 3):
            feature = ogr.Feature(layer.GetLayerDefn())
            feature["moisture"] = 10.0 + 30.0 * wetness(column, row)
            feature["cover"] = "wet" if wetness(column, row) > 0.5 else "dry"
            x, y = CORNER[0] + (column + 0.5) * PIXEL_M, CORNER[1] - (row + 0.5) * PIXEL_M
            feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({x} {y})"))
            layer.CreateFeature(feature)
    del layer, source
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory, qgis_app):
    folder = tmp_path_factory.mktemp("place")
    write_scene(folder / "scene.tif", WAVELENGTHS_NM)
    write_scene(folder / "landsat.tif", LANDSAT_NM)
    write_samples(folder / "samples.gpkg")
    return folder


@pytest.fixture(scope="module")
def distilled(real_plugin, place):
    return processing.run(
        "hyperkd:distillbackbone",
        {
            "INPUT": [str(place / "scene.tif")],
            "OUTPUT": str(place / "backbone.zip"),
            "REPORT": str(place / "distillation.html"),
            **QUICK,
        },
    )


@pytest.fixture(scope="module")
def regression(real_plugin, place):
    return processing.run(
        "hyperkd:trainregression",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "samples.gpkg"),
            "VALUE_FIELD": "moisture",
            "UNIT": "%",
            "EPOCHS": 10,
            "DEVICE": "cpu",
            "OUTPUT": str(place / "moisture.zip"),
            "REPORT": str(place / "moisture.html"),
        },
    )


def is_report(path):
    return "</html>" in Path(path).read_text(encoding="utf-8")


def use_of(path):
    """Which uses the plugin's list has for a package."""
    from hyperkd.hyperkd_qgis.model_catalogue import USES, read_model

    model = read_model("made", Path(path))
    assert model.task
    return {name for name, use in USES.items() if name != "any" and use.accepts(model)}


# Distillation


def test_distillation_makes_a_backbone_a_report_and_scores(distilled):
    assert use_of(distilled["OUTPUT"]) == {"backbone"}
    assert is_report(distilled["REPORT"])
    for part in ("", "_WHOLE"):
        assert 0 < distilled[f"PSNR_DB{part}"] < 100
        assert -1 <= distilled[f"SSIM{part}"] <= 1
        assert 0 < distilled[f"SPECTRAL_ANGLE_DEG{part}"] < 180


def test_no_checkpoint_is_left_after_success(distilled):
    assert list(Path(distilled["OUTPUT"]).parent.glob("*.checkpoint.safetensors")) == []


def test_a_cancelled_distillation_is_gone_on_with(real_plugin, place, tmp_path, heard):
    values = {
        "INPUT": [str(place / "scene.tif")],
        "OUTPUT": str(tmp_path / "backbone.zip"),
        **QUICK,
        "EPOCHS": 8,
    }
    with pytest.raises(QgsProcessingException, match=r"backbone\.zip\.checkpoint\.safetensors"):
        processing.run("hyperkd:distillbackbone", values, feedback=heard(cancel_at=40).feedback)
    assert not (tmp_path / "backbone.zip").exists()
    hearing = heard()
    processing.run("hyperkd:distillbackbone", {**values, "RESUME": True}, feedback=hearing.feedback)
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.zip"]
    assert "Going on after step" in hearing.text


def test_other_settings_cannot_be_gone_on_with(real_plugin, place, tmp_path, heard):
    values = {
        "INPUT": [str(place / "scene.tif")],
        "OUTPUT": str(tmp_path / "backbone.zip"),
        **QUICK,
        "EPOCHS": 8,
    }
    with pytest.raises(QgsProcessingException, match="RESUME"):
        processing.run("hyperkd:distillbackbone", values, feedback=heard(cancel_at=40).feedback)
    with pytest.raises(QgsProcessingException, match=r"(?i)mask_ratio|mask ratio"):
        processing.run("hyperkd:distillbackbone", {**values, "RESUME": True, "MASK_RATIO": 0.5})


def test_a_scene_that_does_not_reach_the_teachers_bands_is_refused(real_plugin, place, tmp_path):
    path = write_scene(tmp_path / "visible.tif", WAVELENGTHS_NM[:11])
    with pytest.raises(QgsProcessingException, match=r"(?s)B11.*B12"):
        processing.run(
            "hyperkd:distillbackbone",
            {"INPUT": [path], "OUTPUT": str(tmp_path / "backbone.zip"), **QUICK},
        )
    assert not (tmp_path / "backbone.zip").exists()


# A teacher of one's own


@pytest.fixture(scope="module")
def teacher(real_plugin, place):
    return processing.run(
        "hyperkd:pretrainteacher",
        {
            "INPUT": [str(place / "landsat.tif")],
            "OUTPUT": str(place / "teacher.zip"),
            "REPORT": str(place / "teacher.html"),
            **QUICK,
        },
    )


def test_pretraining_makes_a_teacher_a_report_and_scores(teacher):
    assert use_of(teacher["OUTPUT"]) == {"teacher"}
    assert is_report(teacher["REPORT"])
    assert 0 < teacher["PSNR_DB"] < 100


def test_ones_own_teacher_teaches(teacher, place, tmp_path):
    result = processing.run(
        "hyperkd:distillbackbone",
        {
            "INPUT": [str(place / "scene.tif")],
            "TEACHER": teacher["OUTPUT"],
            "OUTPUT": str(tmp_path / "backbone.zip"),
            **QUICK,
        },
    )
    assert use_of(result["OUTPUT"]) == {"backbone"}


# Quantities


def test_regression_makes_a_model_a_report_and_scores(regression):
    assert use_of(regression["OUTPUT"]) == {"regression", "backbone"}
    assert is_report(regression["REPORT"])
    assert 0 < regression["MAE"] <= regression["RMSE"] < 10
    assert 0.5 < regression["R2"] <= 1


def test_estimate_has_the_grid_the_unit_and_a_ramp(regression, place, tmp_path):
    output = str(tmp_path / "moisture.tif")
    processing.run(
        "hyperkd:estimate",
        {"INPUT": str(place / "scene.tif"), "MODEL": regression["OUTPUT"], "OUTPUT": output},
    )
    from hyperkd.hyperkd_qgis.layers import read_quantity

    scene, layer = (QgsRasterLayer(path, "x") for path in (str(place / "scene.tif"), output))
    assert (layer.width(), layer.height(), layer.bandCount()) == (WIDTH, HEIGHT, 1)
    assert (layer.extent(), layer.crs()) == (scene.extent(), scene.crs())
    assert layer.renderer().type() == "singlebandpseudocolor"
    quantity = read_quantity(output)
    assert (quantity.title, quantity.unit) == ("Moisture", "%")
    dataset = gdal.Open(output)  # owns its bands
    least, most = dataset.GetRasterBand(1).ComputeRasterMinMax(False)
    assert 0 < least < 20
    assert 30 < most < 50


def test_a_quantity_on_a_frozen_backbone(distilled, place, tmp_path):
    result = processing.run(
        "hyperkd:trainregression",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "samples.gpkg"),
            "VALUE_FIELD": "moisture",
            "BACKBONE": distilled["OUTPUT"],
            "FREEZE_BACKBONE": True,
            "EPOCHS": 2,
            "DEVICE": "cpu",
            "OUTPUT": str(tmp_path / "moisture.zip"),
        },
    )
    assert use_of(result["OUTPUT"]) == {"regression", "backbone"}


def test_a_classifier_on_a_frozen_backbone(distilled, place, tmp_path):
    result = processing.run(
        "hyperkd:trainclassifier",
        {
            "INPUT": [str(place / "scene.tif")],
            "TRAINING": str(place / "samples.gpkg"),
            "CLASS_FIELD": "cover",
            "BACKBONE": distilled["OUTPUT"],
            "FREEZE_BACKBONE": True,
            "EPOCHS": 2,
            "DEVICE": "cpu",
            "OUTPUT": str(tmp_path / "cover.zip"),
        },
    )
    assert use_of(result["OUTPUT"]) == {"classifier", "backbone"}
    assert result["BALANCED_ACCURACY"] > 0.5
