"""Colour tables, attribute tables and QGIS styles."""

from xml.etree import ElementTree

import pytest

from engine.errors import OutputError
from engine.raster.style import ClassInfo, ClassStyle, RampStyle, check_classes

CLASSES = (ClassInfo(1, 'roofs <5° & "flat"', "#e41a1c"), ClassInfo(4, "Bäume\x07", "#4DAF4A"))
STYLE = ClassStyle(CLASSES)


def test_the_colour_table_has_every_class_and_a_transparent_nodata():
    assert STYLE.color_table() == {
        0: (0, 0, 0, 0),
        1: (228, 26, 28, 255),
        4: (77, 175, 74, 255),
    }


def test_category_names_stand_at_their_values():
    root = ElementTree.fromstring(STYLE.aux_xml())
    names = [node.text or "" for node in root.iter("Category")]
    assert names == ["", 'roofs <5° & "flat"', "", "", "Bäume"]


def test_the_attribute_table_has_a_row_for_each_class():
    root = ElementTree.fromstring(STYLE.aux_xml())
    names = [node.findtext("Name") for node in root.iter("FieldDefn")]
    rows = [[cell.text for cell in row] for row in root.iter("Row")]
    assert names == ["Value", "Class", "Red", "Green", "Blue"]
    assert rows[1] == ["4", "Bäume", "77", "175", "74"]


def test_what_gdal_wrote_beside_the_file_is_kept():
    theirs = '<PAMDataset>\n  <SRS dataAxisToSRSAxisMapping="1,2">LOCAL</SRS>\n</PAMDataset>'
    root = ElementTree.fromstring(STYLE.aux_xml(theirs))
    assert root.findtext("SRS") == "LOCAL"
    assert root.find("PAMRasterBand/CategoryNames") is not None


def test_the_class_style_names_and_colours_every_class():
    root = ElementTree.fromstring(STYLE.qml())
    assert root.find("pipe/rasterrenderer").get("type") == "paletted"
    entries = [(e.get("value"), e.get("color"), e.get("label")) for e in root.iter("paletteEntry")]
    assert entries == [("1", "#e41a1c", 'roofs <5° & "flat"'), ("4", "#4DAF4A", "Bäume")]


def test_the_ramp_goes_from_light_to_dark_between_its_limits():
    root = ElementTree.fromstring(RampStyle(0, 2).qml())
    items = [(float(item.get("value")), item.get("color")) for item in root.iter("item")]
    assert [value for value, _ in items] == [0, 0.5, 1, 1.5, 2]
    brightness = [sum(bytes.fromhex(color[1:])) for _, color in items]
    assert brightness == sorted(brightness, reverse=True)


@pytest.mark.parametrize("color", ["red", "#12345", "#1234567", "#12345g"])
def test_a_colour_that_qgis_would_not_read_is_refused(color):
    with pytest.raises(ValueError, match="is not like '#1b9e77'"):
        ClassInfo(1, "roof", color)


@pytest.mark.parametrize("value", [0, -1, 65536])
def test_a_value_that_is_nodata_or_does_not_fit_is_refused(value):
    with pytest.raises(ValueError, match="is not in 1 to 65535"):
        ClassInfo(value, "roof", "#000000")


def test_polygons_are_filled_in_their_class_s_colour():
    root = ElementTree.fromstring(STYLE.polygon_qml("class_value"))
    renderer = root.find("renderer-v2")
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class_value")
    shown = [(item.get("value"), item.get("label")) for item in root.iter("category")]
    assert shown == [("1", 'roofs <5° & "flat"'), ("4", "Bäume")]
    fills = {
        symbol.get("name"): {o.get("name"): o.get("value") for o in symbol.iter("Option")}
        for symbol in root.iter("symbol")
    }
    assert [item.get("symbol") for item in root.iter("category")] == sorted(fills)
    assert fills["1"]["color"] == "77,175,74,255"
    assert fills["1"]["outline_color"] == "55,125,53,255"


def test_two_classes_with_one_value_are_refused():
    twice = (*CLASSES, ClassInfo(4, "trees", "#000000"))
    with pytest.raises(OutputError, match="Two classes have the value 4"):
        check_classes(twice, 255)


def test_a_class_value_beyond_the_type_is_refused():
    with pytest.raises(OutputError, match="300 does not fit into the map, which holds up to 255"):
        check_classes((ClassInfo(300, "roof", "#000000"),), 255)
