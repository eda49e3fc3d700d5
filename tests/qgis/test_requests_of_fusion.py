"""Fusing, training a fusion, assessing one: the exact request, and what is refused."""

from pathlib import Path

import processing
import pytest
from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsRasterLayer,
)

KINDS = {
    "my-fusion": ("super-resolution", "csakd-fuser"),
    "berlin": ("semantic-segmentation", "hyperkd-classifier"),
    "my-teacher": ("generative", "prithvi-mae"),
}
ALIGNMENT = {"shift": "estimate", "max_shift": 3.0, "response": "estimate"}
COMPUTING = {"device": "auto", "require_gpu": False, "precision": "auto"}


@pytest.fixture(autouse=True)
def models(install_kinds):
    """One package of each kind, installed."""
    return install_kinds(KINDS)


@pytest.fixture
def pair(tiny, tmp_path):
    """A hyperspectral image and a multispectral one, which only have to be there."""
    return tiny.write(tmp_path / "hsi.tif"), tiny.write(tmp_path / "msi.tif", bands=4)


@pytest.fixture
def tables(tmp_path):
    paths = {name: tmp_path / f"{name}.csv" for name in ("bands", "multispectral_bands")}
    for path in paths.values():
        path.write_text("wavelength_nm\n500\n", encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def fuse(pair, **parameters):
    hyperspectral, multispectral = pair
    return processing.run(
        "hyperkd:fuse",
        {
            "HYPERSPECTRAL": hyperspectral,
            "MULTISPECTRAL": multispectral,
            "OUTPUT": "TEMPORARY_OUTPUT",
            "REPORT": "",
            **parameters,
        },
    )


def train(coarse, fine, **parameters):
    return processing.run(
        "hyperkd:trainfusion",
        {
            "HYPERSPECTRAL": coarse,
            "MULTISPECTRAL": fine,
            "OUTPUT": "TEMPORARY_OUTPUT",
            "REPORT": "",
            **parameters,
        },
    )


def assess(fused, **parameters):
    return processing.run("hyperkd:assessfusion", {"INPUT": fused, **parameters})


# Fusing


def test_fusing_has_its_defaults(client, pair):
    fuse(pair)
    assert client.command == "fuse"
    assert client.parameters.pop("output").endswith(".tif")
    assert client.parameters == {
        "hyperspectral": pair[0],
        "multispectral": pair[1],
        "method": "csakd",
        "model": "auto",
        "back_projection": False,
        "data_type": "int16",
        **ALIGNMENT,
        **COMPUTING,
    }


def test_every_value_of_fusing_goes_over(client, pair, tables, tmp_path):
    values = {
        "method": "csakd",
        "model": "my-fusion",
        "back_projection": True,
        "ratio": 3,
        "shift": "0.5,-1",
        "max_shift": 1.25,
        "response": "nominal",
        **tables,
        "data_type": "float32",
        "tile_size": 64,
        "device": "cpu",
        "require_gpu": True,
        "precision": "float32",
        "output": str(tmp_path / "fused.tif"),
        "consistency": str(tmp_path / "consistency.tif"),
        "report": str(tmp_path / "report.html"),
    }
    fuse(pair, **{name.upper(): value for name, value in values.items()})
    assert client.parameters == {"hyperspectral": pair[0], "multispectral": pair[1], **values}


@pytest.mark.parametrize("method", ["bicubic", "gsa", "glphs", "cnmf"])
def test_a_classical_method_needs_no_model(client, pair, method):
    fuse(pair, METHOD=method)
    assert (client.parameters["method"], client.parameters["model"]) == (method, "auto")


def test_a_classical_method_with_a_model_is_refused(client, pair):
    with pytest.raises(
        QgsProcessingException, match=r"METHOD gsa needs no model, .*'my-fusion'.*Choose csakd"
    ):
        fuse(pair, METHOD="gsa", MODEL="my-fusion")


@pytest.mark.parametrize("name", ["berlin", "my-teacher"])
def test_what_fuses_nothing_is_refused(client, pair, name):
    with pytest.raises(
        QgsProcessingException,
        match=rf"'{name}' is no model that fuses images: .*Choose auto, .*\(.*my-fusion\)",
    ):
        fuse(pair, MODEL=name)


def test_a_model_that_is_not_there_is_refused(client, pair):
    with pytest.raises(QgsProcessingException, match="no model package 'nobody'"):
        fuse(pair, MODEL="nobody")


@pytest.mark.parametrize("shift", ["0,0", " 1.5 , -2e-1 ", "+3,-0.25"])
def test_a_shift_can_be_given(client, pair, shift):
    fuse(pair, SHIFT=shift)
    assert client.parameters["shift"] == shift.strip()


@pytest.mark.parametrize("shift", ["1", "1;2", "1,2,3", "left", "nan,0", "1,inf", "0,5,1,0"])
def test_a_shift_that_is_none_is_refused(client, pair, shift):
    with pytest.raises(QgsProcessingException, match=r"SHIFT is .*Write estimate, or two numbers"):
        fuse(pair, SHIFT=shift)


def test_no_shift_is_that_of_the_engine(client, pair):
    fuse(pair, SHIFT="", RESPONSE="")
    assert "shift" not in client.parameters
    assert "response" not in client.parameters


def test_a_table_of_responses_can_be_given(client, pair, tables):
    fuse(pair, RESPONSE=tables["bands"])
    assert client.parameters["response"] == tables["bands"]


def test_a_table_of_responses_that_is_not_there_is_refused(client, pair):
    with pytest.raises(
        QgsProcessingException, match=r"RESPONSE is '/none\.csv', which is neither estimate, nom"
    ):
        fuse(pair, RESPONSE="/none.csv")


@pytest.mark.parametrize("ratio", [0, 1])
def test_a_ratio_below_two_is_refused(client, pair, ratio):
    with pytest.raises(QgsProcessingException, match="RATIO"):
        fuse(pair, RATIO=ratio)


@pytest.mark.parametrize("name", ["METHOD", "DATA_TYPE"])
def test_unknown_words_are_refused(client, pair, name):
    with pytest.raises(QgsProcessingException, match=name):
        fuse(pair, **{name: "nonsense"})


@pytest.mark.parametrize("missing", ["HYPERSPECTRAL", "MULTISPECTRAL"])
def test_fusing_needs_both_images(client, pair, missing):
    with pytest.raises(QgsProcessingException, match=missing):
        fuse(pair, **{missing: None})


def test_one_image_in_both_places_is_refused(client, pair, tmp_path):
    """As a dialog proposes it where one layer is loaded."""
    scene = QgsRasterLayer(pair[0], "Berlin")
    names = "Berlin was chosen as the hyperspectral and as the multispectral image"
    with pytest.raises(QgsProcessingException, match=names):
        fuse((scene, scene))
    with pytest.raises(QgsProcessingException, match="hsi was chosen as the hyperspectral and"):
        assess(pair[1], HYPERSPECTRAL=pair[0], MULTISPECTRAL=pair[0])
    other = QgsRasterLayer(pair[1], "fine")
    with pytest.raises(QgsProcessingException, match=names):
        train([scene, scene], [other, scene])


@pytest.mark.parametrize("index", [0, 1])
def test_neither_image_is_overwritten(client, pair, index):
    name = ("HYPERSPECTRAL", "MULTISPECTRAL")[index]
    with pytest.raises(QgsProcessingException, match=f"OUTPUT would overwrite {name}"):
        fuse(pair, OUTPUT=pair[index])


def test_the_extent_is_of_the_hyperspectral_image(client, pair, tiny, tmp_path):
    """It is drawn on the map in degrees, and goes over in the image's own CRS."""
    degrees = tiny.write(tmp_path / "other.tif", epsg=4326)
    left, top = tiny.corner
    fuse((pair[0], degrees), EXTENT=f"{left},{left + 90},{top - 60},{top} [EPSG:{tiny.epsg}]")
    assert client.parameters["extent"] == [left, top - 60, left + 90, top]


def test_an_extent_beside_the_hyperspectral_image_is_refused(client, pair):
    with pytest.raises(QgsProcessingException, match="extent lies outside"):
        fuse(pair, EXTENT="0,1,0,1 [EPSG:32633]")


def test_numbers_of_fusing_come_back(plugin, pair, tmp_path):
    result = fuse(pair, OUTPUT=str(tmp_path / "fused.tif"))
    assert (result["SHIFT_X"], result["SHIFT_Y"]) == (1.02, -0.5)
    assert (result["CONSISTENCY_HSI"], result["CONSISTENCY_MSI"]) == (0.01, 0.02)


def test_a_batch_of_methods(plugin, client, pair, algorithm, tmp_path):
    made, sent = algorithm("fuse"), []
    client.inspect = lambda parameters: sent.append((parameters["method"], parameters["output"]))
    rows = [(method, str(tmp_path / f"{method}.tif")) for method in ("gsa", "cnmf")]
    for method, output in rows:
        values = {"HYPERSPECTRAL": pair[0], "MULTISPECTRAL": pair[1], "METHOD": method}
        _, successful = made.run(
            {**values, "OUTPUT": output}, QgsProcessingContext(), QgsProcessingFeedback()
        )
        assert successful
    assert sent == rows


# Training

TRAINING = {
    "preset": "laptop",
    "validation": 0.25,
    "resume": False,
    "seed": 0,
    "licence": "other",
    **ALIGNMENT,
    **COMPUTING,
}


def test_training_a_fusion_has_its_defaults(client, pair):
    train([pair[0]], [pair[1]])
    assert client.command == "train_fusion"
    assert client.parameters.pop("output").endswith(".zip")
    assert client.parameters == {
        "hyperspectral": [pair[0]],
        "multispectral": [pair[1]],
        **TRAINING,
    }


def test_every_value_of_training_a_fusion_goes_over(client, pair, tables, tmp_path):
    values = {
        "preset": "paper",
        "epochs": 7,
        "validation": 0.5,
        "resume": True,
        "ratio": 4,
        "shift": "0,0",
        "max_shift": 2.0,
        "response": tables["bands"],
        **tables,
        "distillation": "feature",
        "fusion": "released",
        "seed": 2**31 - 1,
        "device": "cpu",
        "require_gpu": True,
        "precision": "float32",
        "title": "Mine",
        "description": "All mine",
        "licence": "CC-BY-4.0",
        "attribution": "Me",
        "output": str(tmp_path / "mine.zip"),
        "report": str(tmp_path / "mine.html"),
    }
    given = {name.upper(): value for name, value in values.items()}
    train([pair[0]], [pair[1]], START="no", **given)
    images = {"hyperspectral": [pair[0]], "multispectral": [pair[1]]}
    assert client.parameters == {**images, **values, "start": False}


def test_pairs_keep_their_order(client, pair, tiny, tmp_path):
    """Also when images are layers, and not in the order of their names."""
    paths = [tiny.write(tmp_path / f"{name}.tif") for name in ("z", "a")]
    layers = [QgsRasterLayer(path, Path(path).stem) for path in paths]
    train(layers, [pair[1], pair[0]])
    assert client.parameters["hyperspectral"] == paths
    assert client.parameters["multispectral"] == [pair[1], pair[0]]


def test_images_that_make_no_pairs_are_refused(client, pair):
    with pytest.raises(
        QgsProcessingException, match=r"2 hyperspectral and 1 multispectral images\. Choose as many"
    ):
        train([pair[0], pair[0]], [pair[1]])


@pytest.mark.parametrize("index", [0, 1])
def test_training_needs_both_images(client, pair, index):
    name = ("HYPERSPECTRAL", "MULTISPECTRAL")[index]
    with pytest.raises(QgsProcessingException, match=name):
        train(*([] if place == index else [path] for place, path in enumerate(pair)))


def test_training_refuses_a_shift_that_is_none(client, pair):
    with pytest.raises(QgsProcessingException, match="SHIFT is 'far'"):
        train([pair[0]], [pair[1]], SHIFT="far")


def test_training_into_a_temporary_output_cannot_be_gone_on_with(client, pair):
    with pytest.raises(QgsProcessingException, match="OUTPUT is the same file as before"):
        train([pair[0]], [pair[1]], RESUME=True)


@pytest.mark.parametrize("name", ["PRESET", "START", "DISTILLATION", "FUSION"])
def test_unknown_words_of_training_are_refused(client, pair, name):
    with pytest.raises(QgsProcessingException, match=name):
        train([pair[0]], [pair[1]], **{name: "nonsense"})


def test_scores_of_training_come_back(plugin, pair, tmp_path):
    result = train([pair[0]], [pair[1]], OUTPUT=str(tmp_path / "mine.zip"))
    assert (result["PSNR_DB"], result["SAM_DEG"], result["ERGAS"]) == (33.5, 2.5, 1.5)
    assert (result["TEACHER_PSNR_DB"], result["BEST_CLASSICAL_PSNR_DB"]) == (33.75, 32.5)
    assert result["PARAMETERS"] == 123_456


def test_a_cancelled_training_says_where_its_checkpoint_is(plugin, pair, tmp_path, heard):
    with pytest.raises(QgsProcessingException, match=r"mine\.zip\.checkpoint\.safetensors"):
        processing.run(
            "hyperkd:trainfusion",
            {
                "HYPERSPECTRAL": [pair[0]],
                "MULTISPECTRAL": [pair[1]],
                "SEED": 99,
                "OUTPUT": str(tmp_path / "mine.zip"),
            },
            feedback=heard(cancel_at=1).feedback,
        )


# Assessing


def test_assessing_by_a_reference(client, pair):
    assess(pair[0], REFERENCE=pair[1])
    assert client.command == "assess_fusion"
    assert client.parameters.pop("report").endswith("fusion.html")
    assert client.parameters == {"input": pair[0], "reference": pair[1], **ALIGNMENT}


def test_assessing_by_the_two_inputs(client, pair, scene_path, tables, tmp_path):
    values = {
        "input": scene_path,
        "hyperspectral": pair[0],
        "multispectral": pair[1],
        "ratio": 3,
        "shift": "1,0",
        "max_shift": 0.5,
        "response": "nominal",
        **tables,
        "report": str(tmp_path / "quality.html"),
    }
    processing.run("hyperkd:assessfusion", {key.upper(): value for key, value in values.items()})
    assert client.parameters == values


def test_assessing_by_nothing_is_refused(client, scene_path):
    with pytest.raises(QgsProcessingException, match=r"nothing to compare with\. Choose a REFER"):
        assess(scene_path)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("with_reference", [False, True])
def test_one_input_alone_is_refused(client, pair, scene_path, index, with_reference):
    names = ("HYPERSPECTRAL", "MULTISPECTRAL")
    more = {"REFERENCE": scene_path} if with_reference else {}
    with pytest.raises(QgsProcessingException, match=f"{names[1 - index]} is missing"):
        assess(scene_path, **{names[index]: pair[index]}, **more)


@pytest.mark.parametrize(
    ("given", "empty"),
    [
        ({"REFERENCE"}, {"CONSISTENCY_HSI", "CONSISTENCY_MSI"}),
        ({"HYPERSPECTRAL", "MULTISPECTRAL"}, {"PSNR_DB", "SAM_DEG", "ERGAS", "RMSE"}),
        ({"REFERENCE", "HYPERSPECTRAL", "MULTISPECTRAL"}, set()),
    ],
)
def test_scores_that_nothing_was_given_for_stay_empty(plugin, scene_path, pair, given, empty):
    images = {"HYPERSPECTRAL": pair[0], "MULTISPECTRAL": pair[1], "REFERENCE": scene_path}
    result = assess(scene_path, **{name: images[name] for name in given})
    assert empty.isdisjoint(result)
    assert {"REPORT"} <= set(result)
