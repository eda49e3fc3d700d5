import pytest
import torch

from engine.errors import LabelError
from engine.raster.style import ClassInfo
from engine.training.classes import (
    LabelClass,
    categorical_color,
    check_class_pixels,
    classes_of_values,
    present_classes,
)
from tests.engine.training.made_samples import made_samples

WOOD = LabelClass(ClassInfo(1, "Wood", "#117733"), "wood")
ROOF = LabelClass(ClassInfo(2, "Roof", "#cc6677"), "roof")
SOIL = LabelClass(ClassInfo(3, "Soil", "#999933"), "soil")


def test_whole_numbers_keep_their_value():
    classes = classes_of_values((3, 7, 255))
    assert [item.info.value for item in classes] == [3, 7, 255]
    assert [item.info.name for item in classes] == ["3", "7", "255"]


@pytest.mark.parametrize("values", [("roof", "wood"), (100, 300), (-1, 4)])
def test_other_values_are_numbered(values):
    classes = classes_of_values(values)
    assert [item.info.value for item in classes] == [1, 2]
    assert [item.field_value for item in classes] == list(values)


def test_colours_differ_for_many_classes():
    assert len({categorical_color(index) for index in range(60)}) == 60


def test_classes_without_labels_and_labels_without_class_are_named():
    found, notes = present_classes((WOOD, ROOF, SOIL), ("lake", "roof", "wood"), "a.gpkg")
    assert found == (WOOD, ROOF)
    assert "Soil" in notes[0] and "lake" in notes[1]


def test_field_values_written_as_text_are_found_as_numbers():
    four = LabelClass(ClassInfo(4, "Four", "#117733"), "4")
    nine = LabelClass(ClassInfo(9, "Nine", "#cc6677"), "9")
    found, _notes = present_classes((four, nine), (4, 9), "a.gpkg")
    assert [item.field_value for item in found] == [4, 9]


def test_one_class_only_is_refused():
    with pytest.raises(LabelError, match=r"one class only \(Wood\)"):
        present_classes((WOOD,), ("wood",), "a.gpkg")


def test_no_class_among_the_values_is_refused():
    with pytest.raises(LabelError, match=r"None of the classes.*lake"):
        present_classes((WOOD, ROOF), ("lake",), "a.gpkg")


def labelled(*counts):
    """Samples with so many pixels of each class."""
    samples = made_samples()
    label = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    kept = samples.subset(torch.arange(len(samples.chip)) < len(label))
    shares = torch.zeros(len(label), 3)
    shares[torch.arange(len(label)), label] = 1.0
    kept.shares.copy_(shares)
    return kept


def test_a_class_with_two_pixels_is_refused_by_name():
    with pytest.raises(LabelError, match="'Roof' has only two labelled pixels") as caught:
        check_class_pixels(labelled(30, 2, 40), (WOOD, ROOF, SOIL))
    assert "leave it out" in caught.value.remedy


def test_every_class_that_is_too_small_is_named():
    with pytest.raises(LabelError, match=r"'Wood' has only one.*'Soil' has no"):
        check_class_pixels(labelled(1, 40, 0), (WOOD, ROOF, SOIL))


def test_one_class_on_the_scene_is_refused():
    with pytest.raises(LabelError, match="one class only: Wood 0 px, Roof 9 px"):
        check_class_pixels(labelled(0, 9, 0), (WOOD, ROOF, SOIL))


def test_few_pixels_are_a_warning():
    (warning,) = check_class_pixels(labelled(30, 3, 40), (WOOD, ROOF, SOIL))
    assert "'Roof' has only 3" in warning
