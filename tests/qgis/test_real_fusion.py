"""The whole street of fusion with the real engine: train, fuse, assess, on one small place."""

import os
from pathlib import Path

import processing
import pytest
from osgeo import gdal
from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterRasterLayer,
    QgsRaster,
    QgsRasterLayer,
)

from tests.qgis.two_images import (
    COARSE_M,
    FWHM_NM,
    HEIGHT,
    RATIO,
    WAVELENGTHS_NM,
    WIDTH,
    move,
    write_pair,
)

pytestmark = pytest.mark.usefixtures("real_plugin")
CLASSICAL = ("bicubic", "gsa", "glphs", "cnmf")
QUICK = {"PRESET": "laptop", "EPOCHS": 2, "DEVICE": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, qgis_app):
    return write_pair(tmp_path_factory.mktemp("place"))


def fuse(place, output, feedback=None, **parameters):
    values = {
        "HYPERSPECTRAL": str(place / "hsi.tif"),
        "MULTISPECTRAL": str(place / "msi.tif"),
        "OUTPUT": str(output),
        "DEVICE": "cpu",
        **parameters,
    }
    return processing.run("hyperkd:fuse", values, feedback=feedback)


def train(place, output, feedback=None, **parameters):
    values = {
        "HYPERSPECTRAL": [str(place / "hsi.tif")],
        "MULTISPECTRAL": [str(place / "msi.tif")],
        "OUTPUT": str(output),
        **QUICK,
        **parameters,
    }
    return processing.run("hyperkd:trainfusion", values, feedback=feedback)


@pytest.fixture(scope="module")
def fused(real_plugin, place):
    """By a classical method, with everything."""
    names = {"CONSISTENCY": "consistency.tif", "REPORT": "fusion.html"}
    more = {name: str(place / path) for name, path in names.items()}
    return fuse(place, place / "fused.tif", METHOD="glphs", **more)


@pytest.fixture(scope="module")
def trained(real_plugin, place):
    return train(place, place / "fusion.zip", REPORT=str(place / "training.html"))


def is_report(path):
    return "</html>" in Path(path).read_text(encoding="utf-8")


def assess_by_truth(place, fused_path, report):
    return processing.run(
        "hyperkd:assessfusion",
        {"INPUT": fused_path, "REFERENCE": str(place / "truth.tif"), "REPORT": str(report)},
    )


# Fusing without training


def test_a_fused_image_has_the_coarse_corners_and_the_fine_pixels(fused, place):
    scene = QgsRasterLayer(str(place / "hsi.tif"), "scene")
    for name, bands in (("OUTPUT", len(WAVELENGTHS_NM)), ("CONSISTENCY", 2)):
        layer = QgsRasterLayer(fused[name], name)
        size = layer.width(), layer.height(), layer.bandCount()
        assert size == (RATIO * WIDTH, RATIO * HEIGHT, bands)
        assert (layer.extent(), layer.crs()) == (scene.extent(), scene.crs())


def test_a_fused_image_keeps_the_bands(fused, place):
    made, scene = (gdal.Open(path) for path in (fused["OUTPUT"], str(place / "hsi.tif")))
    for number, wavelength_nm in enumerate(WAVELENGTHS_NM, 1):
        band = made.GetRasterBand(number)
        assert band.GetDescription() == scene.GetRasterBand(number).GetDescription()
        assert float(band.GetMetadataItem("wavelength")) == pytest.approx(wavelength_nm)
        assert float(band.GetMetadataItem("fwhm")) == pytest.approx(FWHM_NM)


def test_numbers_of_a_fused_image_are_reflectance_in_qgis(fused, place):
    layers = [QgsRasterLayer(path, "x") for path in (fused["OUTPUT"], str(place / "truth.tif"))]
    dataset = gdal.Open(fused["OUTPUT"])  # newer bindings close it with the last name for it
    assert gdal.GetDataTypeName(dataset.GetRasterBand(1).DataType) == "Int16"
    center = layers[0].extent().center()
    made, true = (
        layer.dataProvider().identify(center, QgsRaster.IdentifyFormatValue).results()
        for layer in layers
    )
    assert list(made.values()) == pytest.approx(list(true.values()), abs=0.05)


def test_a_fused_image_opens_in_its_own_colours(fused):
    layer = QgsRasterLayer(fused["OUTPUT"], "fused")  # the renderer is the layer's
    renderer = layer.renderer()
    assert renderer.type() == "multibandcolor"
    shown = [renderer.redBand(), renderer.greenBand(), renderer.blueBand()]
    assert [WAVELENGTHS_NM[number - 1] for number in shown] == [650, 550, 470]
    stretch = renderer.greenContrastEnhancement()
    assert 0 <= stretch.minimumValue() < stretch.maximumValue() < 0.5


def test_consistency_opens_in_a_ramp_that_is_dark_where_it_is_good(fused):
    layer = QgsRasterLayer(fused["CONSISTENCY"], "consistency")
    renderer = layer.renderer()
    assert renderer.type() == "singlebandpseudocolor"
    items = renderer.shader().rasterShaderFunction().colorRampItemList()
    brightness = [item.color.value() for item in items]
    assert items[0].value == 0
    assert brightness == sorted(brightness)


def test_report_and_numbers_of_a_fusion(fused):
    assert is_report(fused["REPORT"])
    assert abs(fused["SHIFT_X"]) < 0.2
    assert abs(fused["SHIFT_Y"]) < 0.2
    assert 0 <= fused["CONSISTENCY_HSI"] < 0.2
    assert 0 <= fused["CONSISTENCY_MSI"] < 0.2


@pytest.fixture(scope="module")
def by_method(real_plugin, place, tmp_path_factory):
    """What every method is worth beside the truth."""
    folder = tmp_path_factory.mktemp("methods")
    scores = {}
    for method in CLASSICAL:
        made = fuse(place, folder / f"{method}.tif", METHOD=method)
        scores[method] = assess_by_truth(place, made["OUTPUT"], folder / f"{method}.html")
    return scores


@pytest.mark.parametrize("method", CLASSICAL[1:])
def test_each_method_is_better_than_no_detail(by_method, method):
    assert by_method[method]["PSNR_DB"] > by_method["bicubic"]["PSNR_DB"] + 1


def test_scores_beside_a_reference_are_plausible(by_method):
    scores = by_method["glphs"]
    assert 20 < scores["PSNR_DB"] < 80
    assert 0 < scores["SAM_DEG"] < 20
    assert 0 < scores["ERGAS"]
    assert 0 < scores["RMSE"] < 0.05
    assert 0.5 < scores["UIQI"] <= 1
    assert 0.5 < scores["Q2N"] <= 1
    assert "CONSISTENCY_HSI" not in scores


def test_a_shift_of_a_coarse_pixel_is_found_and_corrected(place, fused, tmp_path):
    moved = move(tmp_path / "moved.tif", place / "msi.tif", COARSE_M, -COARSE_M)
    made = fuse(place, tmp_path / "fused.tif", METHOD="glphs", MULTISPECTRAL=moved)
    assert made["SHIFT_X"] == pytest.approx(1, abs=0.2)
    assert made["SHIFT_Y"] == pytest.approx(-1, abs=0.2)
    straight = assess_by_truth(place, fused["OUTPUT"], tmp_path / "straight.html")
    corrected = assess_by_truth(place, made["OUTPUT"], tmp_path / "corrected.html")
    assert corrected["PSNR_DB"] > straight["PSNR_DB"] - 3


def test_without_correction_a_shift_is_warned_of(place, tmp_path, heard):
    moved = move(tmp_path / "moved.tif", place / "msi.tif", COARSE_M, 0)
    hearing = heard()
    more = {"METHOD": "glphs", "SHIFT": "0,0", "MULTISPECTRAL": moved}
    fuse(place, tmp_path / "fused.tif", hearing.feedback, **more)
    assert any(line.startswith("warning:") and "shift" in line for line in hearing.lines)


def test_without_a_model_that_fits_a_classical_method_is_used_and_said(place, tmp_path, heard):
    hearing = heard()
    made = fuse(place, tmp_path / "fused.tif", hearing.feedback)
    assert Path(made["OUTPUT"]).is_file()
    assert "glphs" in hearing.text.lower().replace("-", "") or "MTF-GLP-HS" in hearing.text


def test_a_part_can_be_fused(place, tmp_path):
    left, top = 390000 + 10 * COARSE_M, 5820000 - 5 * COARSE_M
    box = f"{left},{left + 20 * COARSE_M},{top - 12 * COARSE_M},{top} [EPSG:32633]"
    made = fuse(place, tmp_path / "part.tif", METHOD="bicubic", EXTENT=box, DATA_TYPE="float32")
    layer = QgsRasterLayer(made["OUTPUT"], "part")
    assert (layer.width(), layer.height()) == (20 * RATIO, 12 * RATIO)


def test_images_of_different_places_get_a_sentence(place, tmp_path):
    far = move(tmp_path / "far.tif", place / "msi.tif", 1e5, 0)
    with pytest.raises(QgsProcessingException, match=r"(?i)overlap"):
        fuse(place, tmp_path / "fused.tif", METHOD="gsa", MULTISPECTRAL=far)


def test_swapped_images_get_a_sentence(place, tmp_path):
    images = {"HYPERSPECTRAL": str(place / "msi.tif"), "MULTISPECTRAL": str(place / "hsi.tif")}
    with pytest.raises(QgsProcessingException, match=r"(?i)ratio|finer|coarser"):
        fuse(place, tmp_path / "fused.tif", METHOD="gsa", **images)


def test_a_cancelled_fusion_leaves_nothing(place, tmp_path, heard):
    large = {name: str(tmp_path / f"large_{name}.tif") for name in ("hsi", "msi")}
    for name, path in large.items():
        gdal.Translate(path, str(place / f"{name}.tif"), widthPct=300, heightPct=300)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(QgsProcessingException, match="Cancelled"):
        fuse(
            place,
            out / "fused.tif",
            heard(cancel_at=30).feedback,
            METHOD="glphs",
            HYPERSPECTRAL=large["hsi"],
            MULTISPECTRAL=large["msi"],
            CONSISTENCY=str(out / "consistency.tif"),
        )
    assert os.listdir(out) == []


# With training


def test_training_makes_a_package_a_report_and_scores(trained):
    from hyperkd.hyperkd_qgis.model_catalogue import USES, read_model

    model = read_model("made", Path(trained["OUTPUT"]))
    assert (model.task, model.architecture) == ("super-resolution", "csakd-fuser")
    assert USES["fusion"].accepts(model)
    assert not USES["classifier"].accepts(model)
    assert is_report(trained["REPORT"])
    assert 10 < trained["PSNR_DB"] < 100
    assert 10 < trained["TEACHER_PSNR_DB"] < 100
    assert 10 < trained["BEST_CLASSICAL_PSNR_DB"] < 100
    assert 0 <= trained["SAM_DEG"] < 90
    assert trained["ERGAS"] > 0
    assert trained["PARAMETERS"] > 1000
    assert abs(trained["SHIFT_X"]) < 0.2


def test_a_model_of_the_users_own_fuses(trained, place, by_method, tmp_path):
    made = fuse(place, tmp_path / "fused.tif", MODEL=trained["OUTPUT"])
    layer = QgsRasterLayer(made["OUTPUT"], "fused")
    assert (layer.width(), layer.bandCount()) == (RATIO * WIDTH, len(WAVELENGTHS_NM))
    scores = assess_by_truth(place, made["OUTPUT"], tmp_path / "quality.html")
    assert scores["PSNR_DB"] > by_method["bicubic"]["PSNR_DB"]


def test_a_model_for_another_ratio_gets_a_sentence(trained, place, tmp_path):
    with pytest.raises(QgsProcessingException, match=r"(?i)ratio"):
        fuse(place, tmp_path / "fused.tif", MODEL=trained["OUTPUT"], RATIO=2)


def test_a_model_that_fuses_classifies_nothing(trained, place, tmp_path):
    with pytest.raises(QgsProcessingException, match="it is a model that fuses images"):
        processing.run(
            "hyperkd:classify",
            {
                "INPUT": str(place / "hsi.tif"),
                "MODEL": trained["OUTPUT"],
                "OUTPUT": str(tmp_path / "map.tif"),
            },
        )


def test_a_fusion_describes_itself(trained, place, tmp_path):
    report = tmp_path / "model.html"
    processing.run(
        "hyperkd:describemodel",
        {"MODEL": trained["OUTPUT"], "INPUT": str(place / "hsi.tif"), "REPORT": str(report)},
    )
    assert is_report(report)


def test_an_interrupted_training_is_gone_on_with(place, tmp_path, heard):
    with pytest.raises(QgsProcessingException, match=r"fusion\.zip\.checkpoint\.safetensors"):
        train(place, tmp_path / "fusion.zip", heard(cancel_at=50).feedback, EPOCHS=12)
    assert not (tmp_path / "fusion.zip").exists()
    hearing = heard()
    train(place, tmp_path / "fusion.zip", hearing.feedback, EPOCHS=12, RESUME=True)
    assert [path.name for path in tmp_path.iterdir()] == ["fusion.zip"]
    assert "Going on after step" in hearing.text


# Assessing, batch, and a saved model


def test_assessing_beside_the_two_inputs(fused, place, tmp_path):
    report = tmp_path / "quality.html"
    scores = processing.run(
        "hyperkd:assessfusion",
        {
            "INPUT": fused["OUTPUT"],
            "HYPERSPECTRAL": str(place / "hsi.tif"),
            "MULTISPECTRAL": str(place / "msi.tif"),
            "REPORT": str(report),
        },
    )
    assert is_report(report)
    assert scores["CONSISTENCY_HSI"] == pytest.approx(fused["CONSISTENCY_HSI"], abs=0.01)
    assert scores["CONSISTENCY_MSI"] == pytest.approx(fused["CONSISTENCY_MSI"], abs=0.01)
    assert "PSNR_DB" not in scores


def test_back_projection_gives_back_the_hyperspectral_image(fused, place, tmp_path):
    made = fuse(place, tmp_path / "fused.tif", METHOD="glphs", BACK_PROJECTION=True)
    assert made["CONSISTENCY_HSI"] < fused["CONSISTENCY_HSI"]


def test_a_batch(place, tmp_path, algorithm_of):
    made = algorithm_of("fuse")
    for method in ("bicubic", "gsa"):
        values = {
            "HYPERSPECTRAL": str(place / "hsi.tif"),
            "MULTISPECTRAL": str(place / "msi.tif"),
            "METHOD": method,
            "OUTPUT": str(tmp_path / f"{method}.tif"),
        }
        results, successful = made.run(values, QgsProcessingContext(), QgsProcessingFeedback())
        assert successful
        assert Path(results["OUTPUT"]).is_file()


@pytest.fixture
def algorithm_of(real_plugin):
    from qgis.core import QgsApplication

    return lambda name: QgsApplication.processingRegistry().createAlgorithmById(f"hyperkd:{name}")


def test_inside_a_saved_model(place, tmp_path):
    """A fused image is assessed beside what it was made of."""
    source = QgsProcessingModelChildParameterSource
    model = QgsProcessingModelAlgorithm("fuse_and_check", "tests")
    names = ("HYPERSPECTRAL", "MULTISPECTRAL")
    for name in names:
        definition = QgsProcessingParameterRasterLayer(name, name)
        model.addModelParameter(definition, QgsProcessingModelParameter(name))
    first = QgsProcessingModelChildAlgorithm("hyperkd:fuse")
    first.setChildId("fusion")
    second = QgsProcessingModelChildAlgorithm("hyperkd:assessfusion")
    second.setChildId("check")
    for child in (first, second):
        for name in names:
            child.addParameterSources(name, [source.fromModelParameter(name)])
    first.addParameterSources("METHOD", [source.fromStaticValue("gsa")])
    output = QgsProcessingModelOutput("fused", "fused")
    output.setChildId("fusion")
    output.setChildOutputName("OUTPUT")
    first.setModelOutputs({"fused": output})
    second.addParameterSources("INPUT", [source.fromChildOutput("fusion", "OUTPUT")])
    second.addParameterSources("SHIFT", [source.fromStaticValue("0,0")])
    for child in (first, second):
        model.addChildAlgorithm(child)
    path = str(tmp_path / "fuse_and_check.model3")
    assert model.toFile(path)
    saved = QgsProcessingModelAlgorithm()
    assert saved.fromFile(path)
    name = next(item.name() for item in saved.destinationParameterDefinitions())
    values = {
        "HYPERSPECTRAL": str(place / "hsi.tif"),
        "MULTISPECTRAL": str(place / "msi.tif"),
        name: str(tmp_path / "fused.tif"),
    }
    result = processing.run(saved, values)
    assert (tmp_path / "fused.tif").is_file()
    assert 0 <= result["CHILD_RESULTS"]["check"]["CONSISTENCY_HSI"] < 0.5
