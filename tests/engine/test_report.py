import base64
import re

import numpy as np
import pytest
from jinja2 import UndefinedError

from engine import report
from engine.report import (
    confusion_figure,
    figure_to_data_uri,
    format_count,
    format_figures,
    format_number,
    format_percent,
    new_figure,
    render_report,
)

TEMPLATE = """{% extends "base.html" %}{% import "parts.html" as parts %}
{% block content %}{{ parts.cards([("accuracy", share | percent)]) }}
{{ parts.confusion_table(confusion, names) }}{% endblock %}"""


@pytest.fixture
def values():
    return {
        "title": "Trees & <script>alert(1)</script>",
        "share": 0.8512,
        "confusion": [[1200, 3], [0, 7]],
        "names": ["Roof", "<b>Tree</b>"],
    }


@pytest.fixture(autouse=True)
def templates(tmp_path, monkeypatch):
    folder = tmp_path / "templates"
    folder.mkdir()
    for path in report.TEMPLATES.glob("*.html"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "test.html").write_text(TEMPLATE)
    monkeypatch.setattr(report, "TEMPLATES", folder)


def test_report_has_what_it_was_given(tmp_path, values):
    html = render_report("test.html", str(tmp_path / "report.html"), **values).read_text("utf-8")
    assert "85.1 %" in html
    assert "1,200" in html
    assert "1,203" in html  # the row's total


def test_names_cannot_become_markup(tmp_path, values):
    html = render_report("test.html", str(tmp_path / "report.html"), **values).read_text("utf-8")
    assert "<script>" not in html
    assert "Trees &amp; &lt;script&gt;" in html
    assert "<b>" not in html


def test_report_needs_nothing_from_outside(tmp_path, values):
    html = render_report("test.html", str(tmp_path / "report.html"), **values).read_text("utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", html)


def test_report_with_a_missing_value_is_not_written(tmp_path, values):
    del values["share"]
    with pytest.raises(UndefinedError, match="'share' is undefined"):
        render_report("test.html", str(tmp_path / "report.html"), **values)
    assert not list(tmp_path.glob("*.html"))


def test_figure_becomes_a_png_inside_the_page():
    figure, axes = new_figure(3, 2)
    axes.plot([0, 1], [0, 1])
    kind, data = figure_to_data_uri(figure).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_confusion_figure_has_reference_rows_and_map_columns():
    axes = confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]]), ["a", "b", "c"]).axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("reference", "map")
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "3", (1, 0): "1", (0, 2): "2", (2, 2): "2"}  # (column, row)
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0.5, 0, 0.5]]
    )


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_numbers_are_a_dash(missing):
    assert {format_percent(missing), format_number(missing), format_count(missing)} == {"\u2013"}


def test_zero_is_a_number():
    assert (format_percent(0.0), format_number(0.0), format_count(0)) == ("0.0 %", "0.000", "0")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567.0, "1,234,567"),
        (61.25, "61.25"),
        (0.0012345, "0.001234"),
        (-3.0, "-3.000"),
        (0.0, "0.000"),
        (1e-30, "0.000000000"),
        (float("nan"), "\u2013"),
        (None, "\u2013"),
    ],
)
def test_numbers_of_any_magnitude_show_their_first_figures(value, text):
    assert format_figures(value) == text
