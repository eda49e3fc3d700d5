"""Help pages: Markdown for the dialog, for tooltips and for a terminal."""

from pathlib import Path

import pytest

from hyperkd_qgis.help import HelpPage

PAGE = HelpPage(
    """Does a *fine* thing
with `rasters`.

## What it does

Takes a < b & more, see [the page](https://example.org/a).

## Parameters

- `INPUT`: The scene, which may
  be large.
- `OUTPUT`: The **map**.

## Example

```
run --INPUT=a.tif  # <here>
- no item
```
"""
)


def test_entries_are_plain_and_joined():
    assert PAGE.entries() == {"INPUT": "The scene, which may be large.", "OUTPUT": "The map."}


def test_first_sentence_is_plain_and_joined():
    assert PAGE.first_sentence() == "Does a fine thing with rasters."


def test_html():
    assert PAGE.as_html({"INPUT": "Scene"}).splitlines() == [
        "<p>Does a <i>fine</i> thing with <code>rasters</code>.</p>",
        "<h3>What it does</h3>",
        '<p>Takes a &lt; b &amp; more, see <a href="https://example.org/a">the page</a>.</p>',
        "<h3>Parameters</h3>",
        "<ul>",
        "<li><b>Scene</b>: The scene, which may be large.</li>",
        "<li><code>OUTPUT</code>: The <b>map</b>.</li>",
        "</ul>",
        "<h3>Example</h3>",
        "<pre>",
        "run --INPUT=a.tif  # &lt;here&gt;",
        "- no item",
        "</pre>",
    ]


def test_text_leaves_the_parameters_to_qgis_process():
    text = PAGE.as_text()
    assert "INPUT`" not in text
    assert "OUTPUT" not in text
    assert text.startswith(
        "What it does\n\nTakes a < b & more, see the page: https://example.org/a."
    )
    assert text.endswith("Example\n\nrun --INPUT=a.tif  # <here>\n- no item")


def test_a_missing_page_is_empty(tmp_path):
    page = HelpPage.read(tmp_path / "none.md")
    assert (page.entries(), page.first_sentence(), page.as_html({})) == ({}, "", "")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).resolve().parents[2] / "resources" / "help").glob("*.md"))
)
def test_no_markup_is_left_over(path):
    rendered = HelpPage.read(path).as_html({})
    assert "`" not in rendered
    assert "**" not in rendered
    assert "##" not in rendered
