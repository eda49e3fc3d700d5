"""Segmentation and the adapting of backbones: the exact request, and what is refused."""

import processing
import pytest
from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsVectorLayer,
)

KINDS = {
    "galileo-nano": ("generative", "galileo"),
    "my-teacher": ("generative", "prithvi-mae"),
    "my-backbone": ("generative", "hyperkd-backbone"),
    "my-adapters": ("generative", "spectralx-adapted"),
    "berlin": ("semantic-segmentation", "hyperkd-classifier"),
    "cities": ("semantic-segmentation", "spectralx-segmenter"),
    "carbon": ("regression", "hyperkd-regressor"),
}


@pytest.fixture(autouse=True)
def models(install_kinds):
    """One package of each kind, installed."""
    return install_kinds(KINDS)


def segment(scene, **parameters):
    return processing.run(
        "hyperkd:segment",
        {"INPUT": scene, "MODEL": "cities", "OUTPUT": "TEMPORARY_OUTPUT", **parameters},
    )


def adapt(scenes, **parameters):
    return processing.run(
        "hyperkd:adaptbackbone",
        {"INPUT": scenes, "OUTPUT": "TEMPORARY_OUTPUT", "REPORT": "", **parameters},
    )


def train(scenes, training, **parameters):
    return processing.run(
        "hyperkd:trainsegmentation",
        {
            "INPUT": scenes,
            "TRAINING": training,
            "OUTPUT": "TEMPORARY_OUTPUT",
            "REPORT": "",
            **parameters,
        },
    )


# Segmentation


def test_segmentation_has_its_defaults(client, scene_path):
    segment(scene_path)
    assert client.command == "segment"
    assert client.parameters.pop("output").endswith(".tif")
    assert client.parameters == {
        "input": scene_path,
        "model": "cities",
        "device": "auto",
        "require_gpu": False,
        "precision": "auto",
        "min_area": 0.0,
    }


def test_every_output_of_a_segmentation_is_asked_for(client, scene_path, tmp_path):
    names = ("CONFIDENCE", "PROBABILITIES", "SUPPORT")
    rasters = {name: str(tmp_path / f"{name}.tif") for name in names}
    segment(scene_path, POLYGONS=str(tmp_path / "p.gpkg"), OVERLAP=9, MIN_AREA=2700.5, **rasters)
    asked = {name.lower(): path for name, path in rasters.items()}
    assert {name: client.parameters[name] for name in asked} == asked
    assert client.parameters["polygons"] == str(tmp_path / "p.gpkg")
    assert (client.parameters["overlap"], client.parameters["min_area"]) == (9, 2700.5)


def test_an_overlap_of_nothing_is_an_overlap(client, scene_path):
    segment(scene_path, OVERLAP=0)
    assert client.parameters["overlap"] == 0


@pytest.mark.parametrize("sink", ["TEMPORARY_OUTPUT", None])
def test_temporary_polygons_are_a_geopackage(client, scene_path, sink):
    chosen = sink or QgsProcessingOutputLayerDefinition("TEMPORARY_OUTPUT")
    segment(scene_path, POLYGONS=chosen)
    assert client.parameters["polygons"].endswith(".gpkg")


@pytest.mark.parametrize(("suffix", "is_written"), [("gpkg", True), ("shp", False)])
def test_dialogs_take_the_format_that_the_engine_writes(algorithm, suffix, is_written):
    """The dialog asks the provider; elsewhere the engine refuses another format."""
    made = algorithm("segment")
    definition, context = made.parameterDefinition("POLYGONS"), QgsProcessingContext()
    supported, _ = made.provider().isSupportedOutputValue(f"/p.{suffix}", definition, context)
    assert supported is is_written


def test_polygons_do_not_overwrite_the_mask(client, scene_path, labels, tmp_path):
    from qgis.core import QgsCoordinateTransformContext, QgsVectorFileWriter

    path = str(tmp_path / "mask.gpkg")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.layerOptions = ["FID=id"]
    QgsVectorFileWriter.writeAsVectorFormatV3(
        labels, path, QgsCoordinateTransformContext(), options
    )
    with pytest.raises(QgsProcessingException, match="POLYGONS would overwrite MASK"):
        segment(scene_path, MASK=path, POLYGONS=path)


def test_a_negative_area_is_refused(client, scene_path):
    with pytest.raises(QgsProcessingException, match="MIN_AREA"):
        segment(scene_path, MIN_AREA=-1.0)


@pytest.mark.parametrize("name", ["my-adapters", "my-teacher", "carbon"])
def test_what_segments_nothing_is_refused(client, scene_path, name):
    with pytest.raises(
        QgsProcessingException, match=f"The model '{name}' is no model of classes: .*cities"
    ):
        segment(scene_path, MODEL=name)


@pytest.mark.parametrize("name", ["berlin", "cities"])
def test_every_model_of_classes_makes_polygons(client, scene_path, tmp_path, name):
    segment(scene_path, MODEL=name, POLYGONS=str(tmp_path / "p.gpkg"))
    assert client.parameters["model"] == name


def test_classify_offers_support(client, scene_path, tmp_path):
    path = str(tmp_path / "support.tif")
    processing.run(
        "hyperkd:classify",
        {"INPUT": scene_path, "MODEL": "berlin", "OUTPUT": "TEMPORARY_OUTPUT", "SUPPORT": path},
    )
    assert client.parameters["support"] == path


# Adapting a backbone

ADAPTATION = {
    "backbone": "galileo-nano",
    "preset": "laptop",
    "epochs": 400,
    "resume": False,
    "mask_ratio": 0.75,
    "load_balancing": 0.0,
    "validation": 0.2,
    "seed": 0,
    "device": "auto",
    "require_gpu": False,
    "gpus": 1,
    "precision": "auto",
    "licence": "other",
}


def test_adapting_has_its_defaults(client, scene_path):
    adapt([scene_path])
    assert client.command == "adapt_backbone"
    assert client.parameters.pop("output").endswith(".zip")
    assert client.parameters == {"input": [scene_path], **ADAPTATION}


def test_every_value_of_adapting_goes_over(client, scene_path, tiny, tmp_path):
    other = tiny.write(tmp_path / "other.tif")
    (tmp_path / "bands.csv").write_text("wavelength_nm\n500\n")
    values = {
        "backbone": "my-teacher",
        "preset": "paper",
        "epochs": 7,
        "resume": True,
        "mask_ratio": 0.5,
        "scaling": "unit",
        "load_balancing": 0.001,
        "batch_size": 3,
        "learning_rate": 0.0000125,
        "validation": 0.5,
        "seed": 2**31 - 1,
        "bands": str(tmp_path / "bands.csv"),
        "device": "cpu",
        "require_gpu": True,
        "gpus": 4,
        "precision": "float32",
        "title": "Mine",
        "description": "All mine",
        "licence": "CC-BY-4.0",
        "attribution": "Me",
        "output": str(tmp_path / "mine.zip"),
        "report": str(tmp_path / "mine.html"),
    }
    given = {name.upper(): value for name, value in values.items()}
    more = {"TARGETS": [other], "MASK_INPUT": "yes", "TRAIN_TOKENIZER": "no"}
    adapt([scene_path], **given, **more)
    read = {"targets": [other], "mask_input": True, "train_tokenizer": False}
    assert client.parameters == {"input": [scene_path], **values, **read}


@pytest.mark.parametrize("name", ["SCALING", "PRESET", "MASK_INPUT", "TRAIN_TOKENIZER"])
def test_unknown_words_of_adapting_are_refused(client, scene_path, name):
    with pytest.raises(QgsProcessingException, match=name):
        adapt([scene_path], **{name: "nonsense"})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".zip"])
def test_a_file_can_be_the_backbone(client, scene_path, tmp_path, suffix):
    path = tmp_path / f"scalemae{suffix}"
    path.write_bytes(b"weights")
    adapt([scene_path], BACKBONE=str(path))
    assert client.parameters["backbone"] == str(path)


def test_a_backbone_that_is_not_there_is_refused_with_those_that_are(client, scene_path):
    with pytest.raises(
        QgsProcessingException,
        match=r"no model package 'nobody'\. .*\(.*galileo-nano, my-teacher\).*\.safetensors",
    ):
        adapt([scene_path], BACKBONE="nobody")


@pytest.mark.parametrize("name", ["my-backbone", "my-adapters", "berlin", "cities", "carbon"])
def test_what_is_no_foundation_is_refused(client, scene_path, name):
    with pytest.raises(QgsProcessingException, match=f"The model '{name}' is no backbone to adapt"):
        adapt([scene_path], BACKBONE=name)


def test_adapting_into_a_temporary_output_cannot_be_gone_on_with(client, scene_path):
    with pytest.raises(QgsProcessingException, match="OUTPUT is the same file as before"):
        adapt([scene_path], RESUME=True)


def test_adapting_needs_scenes(client):
    with pytest.raises(QgsProcessingException, match="INPUT"):
        adapt([])


# Training a segmentation

SEGMENTATION = {
    "backbone": "galileo-nano",
    "preset": "laptop",
    "epochs": 40,
    "validation": 0.25,
    "adaptation": "spectralx",
    "load_balancing": 0.0,
    "block_size": 10,
    "seed": 0,
    "device": "auto",
    "require_gpu": False,
    "precision": "auto",
    "licence": "other",
}


def test_training_a_segmentation_has_its_defaults(client, scene_path, labels):
    client.inspect = lambda parameters: QgsVectorLayer(parameters["training"], "x").fields().names()
    train([scene_path], labels)
    assert client.command == "train_segmentation"
    assert client.seen == ["hyperkd_fid", "class"]
    assert client.parameters.pop("output").endswith(".zip")
    assert client.parameters.pop("training").endswith(".gpkg")
    assert client.parameters.pop("classes") == [
        {"value": 1, "name": "Roofs", "color": "#c81e1e", "field_value": "roof"},
        {"value": 2, "name": "Trees", "color": "#1ec81e", "field_value": "tree"},
    ]
    assert client.parameters == {"input": [scene_path], "class_field": "class", **SEGMENTATION}


def test_every_value_of_training_a_segmentation_goes_over(client, scene_path, labels, tmp_path):
    (tmp_path / "bands.csv").write_text("wavelength_nm\n500\n")
    values = {
        "adapted": "my-adapters",
        "backbone": "my-teacher",
        "preset": "large",
        "epochs": 7,
        "validation": 0.5,
        "adaptation": "slr",
        "scaling": "chip",
        "load_balancing": 0.001,
        "match": "soft",
        "block_size": 20,
        "batch_size": 3,
        "learning_rate": 0.0000125,
        "seed": 5,
        "bands": str(tmp_path / "bands.csv"),
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
    chosen = {"TRAIN_TOKENIZER": "yes", "REFINE": "no", "SPECTRAL_PATH": "no"}
    train([scene_path], labels, **given, **chosen)
    for name in ("input", "training", "classes", "class_field"):
        client.parameters.pop(name)
    switches = {"train_tokenizer": True, "refine": False, "spectral_path": False}
    assert client.parameters == {**values, **switches}


def test_a_raster_of_classes_needs_no_field_to_train_a_segmentation(
    client, scene_path, tiny, tmp_path
):
    path = tiny.write(tmp_path / "labels.tif", bands=1, fill=1)
    train([scene_path], path)
    assert client.parameters["training"] == path
    assert "class_field" not in client.parameters


def test_a_field_that_is_not_there_is_named(client, scene_path, labels):
    with pytest.raises(QgsProcessingException, match="no field cover"):
        train([scene_path], labels, CLASS_FIELD="cover")


@pytest.mark.parametrize("name", ["my-teacher", "my-backbone", "cities", "berlin"])
def test_what_is_not_adapted_is_refused(client, scene_path, labels, name):
    with pytest.raises(
        QgsProcessingException, match=f"The model '{name}' is no adapted backbone: .*my-adapters"
    ):
        train([scene_path], labels, ADAPTED=name)


def test_adapters_alone_are_no_backbone(client, scene_path, labels):
    with pytest.raises(
        QgsProcessingException, match="my-adapters' is no backbone to adapt: it is an adapted"
    ):
        train([scene_path], labels, BACKBONE="my-adapters")


@pytest.mark.parametrize("name", ["ADAPTATION", "SCALING", "MATCH", "REFINE", "SPECTRAL_PATH"])
def test_unknown_words_of_training_a_segmentation_are_refused(client, scene_path, labels, name):
    with pytest.raises(QgsProcessingException, match=name):
        train([scene_path], labels, **{name: "nonsense"})


# Batch: one algorithm, several rows


def test_a_batch_of_segmentations(session, client, scene_path, algorithm, tmp_path):
    made = algorithm("segment")
    sent = []
    client.inspect = lambda parameters: sent.append((parameters["overlap"], parameters["output"]))
    rows = [(overlap, str(tmp_path / f"{overlap}.tif")) for overlap in (0, 8)]
    for overlap, output in rows:
        values = {"INPUT": scene_path, "MODEL": "cities", "OVERLAP": overlap, "OUTPUT": output}
        _, successful = made.run(values, QgsProcessingContext(), QgsProcessingFeedback())
        assert successful
    assert sent == rows
