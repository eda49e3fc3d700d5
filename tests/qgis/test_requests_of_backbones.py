"""Distillation, teachers, regression and estimates: the exact request, and what is refused."""

import processing
import pytest
from osgeo import gdal
from qgis.core import (
    QgsFeature,
    QgsGraduatedSymbolRenderer,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsVectorLayer,
)

KINDS = {
    "galileo-nano": ("generative", "galileo"),
    "my-teacher": ("generative", "prithvi-mae"),
    "my-backbone": ("generative", "hyperkd-backbone"),
    "berlin": ("semantic-segmentation", "hyperkd-classifier"),
    "carbon": ("regression", "hyperkd-regressor"),
}


@pytest.fixture(autouse=True)
def models(install_kinds):
    """One package of each kind, installed."""
    return install_kinds(KINDS)


def distil(scenes, **parameters):
    return processing.run(
        "hyperkd:distillbackbone",
        {"INPUT": scenes, "OUTPUT": "TEMPORARY_OUTPUT", "REPORT": "", **parameters},
    )


def pretrain(scenes, **parameters):
    return processing.run(
        "hyperkd:pretrainteacher",
        {"INPUT": scenes, "OUTPUT": "TEMPORARY_OUTPUT", "REPORT": "", **parameters},
    )


def train(scenes, training, **parameters):
    return processing.run(
        "hyperkd:trainregression",
        {
            "INPUT": scenes,
            "TRAINING": training,
            "OUTPUT": "TEMPORARY_OUTPUT",
            "REPORT": "",
            **parameters,
        },
    )


def estimate(scene, **parameters):
    return processing.run(
        "hyperkd:estimate",
        {"INPUT": scene, "MODEL": "carbon", "OUTPUT": "TEMPORARY_OUTPUT", **parameters},
    )


# Distillation

DISTILLATION = {
    "teacher": "galileo-nano",
    "preset": "laptop",
    "epochs": 200,
    "resume": False,
    "mask_ratio": 0.75,
    "guided_share": 0.25,
    "hide": "informative",
    "mse_weight": 1.0,
    "ssim_weight": 0.1,
    "feature_weight": 1.0,
    "spectral_weight": 0.0,
    "temperature": 2.0,
    "feature_loss": "kl",
    "feature_layers": "last",
    "alignment": "mean",
    "drop_ranges": "1358-1453, 1814-1961",
    "copy_teacher": False,
    "validation": 0.2,
    "seed": 0,
    "device": "auto",
    "require_gpu": False,
    "gpus": 1,
    "precision": "auto",
    "licence": "other",
}


def test_distillation_has_its_defaults(client, scene_path):
    distil([scene_path])
    assert client.command == "distill_backbone"
    assert client.parameters.pop("output").endswith(".zip")
    assert client.parameters == {"input": [scene_path], **DISTILLATION}


def test_every_value_of_distillation_goes_over(client, scene_path, tiny, tmp_path):
    other = tiny.write(tmp_path / "other.tif")
    for name in ("bands.csv", "responses.csv"):
        (tmp_path / name).write_text("wavelength_nm\n500\n")
    values = {
        "preset": "vit_b",
        "epochs": 7,
        "resume": True,
        "mask_ratio": 0.5,
        "guided_share": 1.0,
        "hide": "plain",
        "mse_weight": 2.0,
        "ssim_weight": 0.0,
        "feature_weight": 3.5,
        "spectral_weight": 0.25,
        "temperature": 4.0,
        "feature_loss": "mse",
        "feature_layers": "quarters",
        "alignment": "response",
        "responses": str(tmp_path / "responses.csv"),
        "drop_ranges": "1000-1100",
        "copy_teacher": True,
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
    distil([scene_path, other], TEACHER="my-teacher", **given)
    assert client.parameters == {"input": [scene_path, other], "teacher": "my-teacher", **values}


def test_no_ranges_are_said_to_be_none(client, scene_path):
    distil([scene_path], DROP_RANGES="")
    assert client.parameters["drop_ranges"] == "none"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".zip"])
def test_a_file_can_be_the_teacher(client, scene_path, tmp_path, suffix):
    path = tmp_path / f"teacher{suffix}"
    path.write_bytes(b"weights")
    distil([scene_path], TEACHER=str(path))
    assert client.parameters["teacher"] == str(path)


def test_a_teacher_that_is_not_there_is_refused_with_those_that_are(client, scene_path):
    with pytest.raises(
        QgsProcessingException,
        match=r"no model package 'nobody'\. .*\(.*galileo-nano, my-teacher\).*\.safetensors",
    ):
        distil([scene_path], TEACHER="nobody")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("my-backbone", "distilled"), ("berlin", "classifier"), ("carbon", "model of a quantity")],
)
def test_what_is_no_teacher_is_refused(client, scene_path, name, kind):
    words = f"The model '{name}' is no teacher: it is a {kind}"
    with pytest.raises(QgsProcessingException, match=words):
        distil([scene_path], TEACHER=name)


def test_the_path_of_what_is_no_teacher_is_refused_too(client, scene_path, models):
    with pytest.raises(QgsProcessingException, match="The model 'berlin' is no teacher"):
        distil([scene_path], TEACHER=str(models / "berlin" / "model.json"))


def test_a_loss_of_nothing_is_refused(client, scene_path):
    weights = ("MSE_WEIGHT", "SSIM_WEIGHT", "FEATURE_WEIGHT", "SPECTRAL_WEIGHT")
    with pytest.raises(QgsProcessingException, match="All weights are 0"):
        distil([scene_path], **dict.fromkeys(weights, 0.0))


def test_response_functions_that_nobody_would_read_are_refused(client, scene_path, tmp_path):
    (tmp_path / "responses.csv").write_text("wavelength_nm\n500\n")
    with pytest.raises(QgsProcessingException, match="only used when ALIGNMENT is response"):
        distil([scene_path], RESPONSES=str(tmp_path / "responses.csv"))


@pytest.mark.parametrize("run", [distil, pretrain])
def test_a_temporary_output_cannot_be_gone_on_with(client, scene_path, run):
    with pytest.raises(QgsProcessingException, match="OUTPUT is the same file as before"):
        run([scene_path], RESUME=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MASK_RATIO", 1.0), ("GUIDED_SHARE", 1.5), ("TEMPERATURE", 0.0), ("EPOCHS", 0)],
)
def test_numbers_out_of_range_are_refused(client, scene_path, name, value):
    with pytest.raises(QgsProcessingException, match=name):
        distil([scene_path], **{name: value})


@pytest.mark.parametrize("name", ["PRESET", "HIDE", "FEATURE_LOSS", "FEATURE_LAYERS", "ALIGNMENT"])
def test_unknown_words_are_refused(client, scene_path, name):
    with pytest.raises(QgsProcessingException, match=name):
        distil([scene_path], **{name: "nonsense"})


def test_distillation_needs_scenes(client):
    with pytest.raises(QgsProcessingException, match="INPUT"):
        distil([])


# A teacher of one's own


def test_pretraining_has_its_defaults(client, scene_path):
    pretrain([scene_path])
    assert client.command == "pretrain_teacher"
    assert client.parameters.pop("output").endswith(".zip")
    assert client.parameters == {
        "input": [scene_path],
        "preset": "laptop",
        "epochs": 200,
        "resume": False,
        "mask_ratio": 0.75,
        "validation": 0.2,
        "seed": 0,
        "device": "auto",
        "require_gpu": False,
        "gpus": 1,
        "precision": "auto",
        "licence": "other",
    }


def test_pretraining_has_presets_of_its_own(client, scene_path):
    pretrain([scene_path], PRESET="prithvi-100m", BATCH_SIZE=2, LEARNING_RATE=0.001)
    assert client.parameters["preset"] == "prithvi-100m"
    assert (client.parameters["batch_size"], client.parameters["learning_rate"]) == (2, 0.001)


# Regression


@pytest.fixture
def samples(labels):
    """The labels with a field of numbers beside the texts."""
    fields = "field=fid:integer&field=class:string&field=soc:double"
    layer = QgsVectorLayer(f"Polygon?crs=EPSG:4326&{fields}", "L", "memory")
    features = []
    for number, label in enumerate(labels.getFeatures()):
        feature = QgsFeature(layer.fields())
        feature.setAttributes([*label.attributes(), 10.5 + number])
        feature.setGeometry(label.geometry())
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    layer.setRenderer(labels.renderer().clone())
    return layer


def test_regression_has_its_defaults(client, scene_path, samples):
    client.inspect = lambda parameters: QgsVectorLayer(parameters["training"], "x").fields().names()
    train([scene_path], samples, VALUE_FIELD="soc")
    assert client.command == "train_regression"
    assert client.seen == ["hyperkd_fid", "soc"]
    assert client.parameters.pop("output").endswith(".zip")
    assert client.parameters.pop("training").endswith(".gpkg")
    assert client.parameters == {
        "input": [scene_path],
        "value_field": "soc",
        "epochs": 100,
        "validation": 0.25,
        "freeze_backbone": False,
        "block_size": 10,
        "licence": "other",
        "seed": 0,
        "device": "auto",
    }


def test_every_value_of_regression_goes_over(client, scene_path, samples):
    train(
        [scene_path],
        samples,
        VALUE_FIELD="soc",
        QUANTITY="soil organic carbon",
        UNIT="g/kg",
        BACKBONE="my-backbone",
        FREEZE_BACKBONE=True,
        BLOCK_SIZE=20,
        TITLE="Carbon",
    )
    chosen = ("quantity", "unit", "backbone", "freeze_backbone", "block_size", "title")
    assert [client.parameters[name] for name in chosen] == [
        "soil organic carbon",
        "g/kg",
        "my-backbone",
        True,
        20,
        "Carbon",
    ]


def test_a_raster_of_values_needs_no_field(client, scene_path, tiny, tmp_path):
    path = tiny.write(tmp_path / "values.tif", bands=1, kind=gdal.GDT_Float32, fill=3.5)
    train([scene_path], path)
    assert client.parameters["training"] == path
    assert "value_field" not in client.parameters


def test_field_that_the_layer_is_coloured_by_is_taken_when_none_is_chosen(
    client, scene_path, samples
):
    samples.setRenderer(QgsGraduatedSymbolRenderer("soc"))
    train([scene_path], samples)
    assert client.parameters["value_field"] == "soc"


def test_a_legend_of_classes_chooses_no_field_of_values(client, scene_path, samples):
    with pytest.raises(
        QgsProcessingException, match=r"choose the field of its values \(fid, soc\)"
    ):
        train([scene_path], samples)


def test_a_field_of_texts_is_refused_with_those_of_numbers(client, scene_path, samples):
    with pytest.raises(
        QgsProcessingException, match=r"field class of L holds no numbers.* fid, soc\."
    ):
        train([scene_path], samples, VALUE_FIELD="class")


def test_a_field_that_is_not_there_is_named(client, scene_path, samples):
    with pytest.raises(QgsProcessingException, match="no field nitrogen"):
        train([scene_path], samples, VALUE_FIELD="nitrogen")


# Backbones


@pytest.fixture(params=["trainclassifier", "trainregression"])
def run_training(request, scene_path, tiny, tmp_path):
    labels = tiny.write(tmp_path / "labels.tif", bands=1, kind=gdal.GDT_Byte, fill=1)

    def run(**parameters):
        processing.run(
            f"hyperkd:{request.param}",
            {
                "INPUT": [scene_path],
                "TRAINING": labels,
                "OUTPUT": "TEMPORARY_OUTPUT",
                **parameters,
            },
        )

    return run


@pytest.mark.parametrize("name", ["my-backbone", "berlin", "carbon"])
def test_encoders_and_models_that_have_one_can_be_begun_with(client, run_training, name):
    run_training(BACKBONE=name, FREEZE_BACKBONE=True)
    assert client.parameters["backbone"] == name
    assert client.parameters["freeze_backbone"] is True


def test_a_teacher_is_no_backbone(client, run_training):
    with pytest.raises(QgsProcessingException, match="my-teacher' is no backbone"):
        run_training(BACKBONE="my-teacher")


def test_nothing_cannot_be_left_as_it_is(client, run_training):
    with pytest.raises(QgsProcessingException, match="no backbone that could be left as it is"):
        run_training(FREEZE_BACKBONE=True)


# Estimates


def test_estimates_have_their_defaults(client, scene_path):
    estimate(scene_path)
    assert client.command == "estimate"
    assert client.parameters.pop("output").endswith(".tif")
    assert client.parameters == {
        "input": scene_path,
        "model": "carbon",
        "device": "auto",
        "require_gpu": False,
        "precision": "auto",
    }


def test_estimates_of_a_part(client, scene_path, labels):
    estimate(scene_path, MASK=labels, TILE_SIZE=64, EXTENT="390000,390300,5819800,5820000")
    assert client.parameters["mask"].endswith(".gpkg")
    assert client.parameters["tile_size"] == 64
    assert client.parameters["extent"] == [390000.0, 5819800.0, 390300.0, 5820000.0]


def test_a_classifier_estimates_nothing(client, scene_path):
    with pytest.raises(
        QgsProcessingException, match="berlin' is no model of a quantity: it is a classifier"
    ):
        estimate(scene_path, MODEL="berlin")


def test_a_model_of_a_quantity_classifies_nothing(client, scene_path):
    with pytest.raises(
        QgsProcessingException, match="carbon' is no classifier: it is a model of a"
    ):
        processing.run(
            "hyperkd:classify",
            {"INPUT": scene_path, "MODEL": "carbon", "OUTPUT": "TEMPORARY_OUTPUT"},
        )


# Batch: one algorithm, several rows


def test_a_batch_of_presets(session, client, scene_path, algorithm, tmp_path):
    made = algorithm("distillbackbone")
    sent = []
    client.inspect = lambda parameters: sent.append((parameters["preset"], parameters["output"]))
    rows = [(preset, str(tmp_path / f"{preset}.zip")) for preset in ("laptop", "small64")]
    for preset, output in rows:
        values = {"INPUT": [scene_path], "PRESET": preset, "OUTPUT": output}
        _, successful = made.run(values, QgsProcessingContext(), QgsProcessingFeedback())
        assert successful
    assert sent == rows
