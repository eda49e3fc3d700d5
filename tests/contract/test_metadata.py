"""metadata.txt as the plugin site and QGIS read it, and the facts that it shares with others."""

import configparser
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest

from engine.version import engine_version

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = (
    "name",
    "description",
    "version",
    "qgisMinimumVersion",
    "author",
    "email",
    "about",
    "tracker",
    "repository",
)


@pytest.fixture(scope="module")
def general():
    # As the plugin site reads it: with interpolation, so that a lone % is an error.
    parser = configparser.ConfigParser()
    parser.optionxform = str
    parser.read(ROOT / "metadata.txt", encoding="utf-8")
    return dict(parser.items("general"))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_required_key_has_a_value(general, key):
    assert general[key].strip()


def test_the_versions_of_qgis(general):
    assert general["qgisMinimumVersion"] == "3.22"
    # Without a maximum QGIS takes the plugin for one that ends at 3.99.
    assert general["qgisMaximumVersion"] == "4.99"


def test_qgis_process_finds_the_algorithms(general):
    assert general["hasProcessingProvider"] == "yes"


def test_the_name_is_not_called_a_plugin(general):
    assert "plugin" not in general["name"].lower()


def test_the_author_has_no_slash(general):
    assert "/" not in general["author"]


def test_the_category_is_one_of_qgis(general):
    assert general["category"] in {"Raster", "Vector", "Database", "Mesh", "Web"}


@pytest.mark.parametrize("key", ["tracker", "repository", "homepage"])
def test_a_link_is_a_whole_address(general, key):
    address = urlparse(general[key])
    assert address.scheme == "https"
    assert address.netloc


def test_the_icon_is_there(general):
    assert (ROOT / general["icon"]).is_file()


@pytest.mark.parametrize("key", ["experimental", "deprecated", "server"])
def test_a_flag_is_true_or_false(general, key):
    assert general.get(key, "False") in {"True", "False"}


def test_the_version_has_three_numbers(general):
    assert re.fullmatch(r"\d+\.\d+\.\d+", general["version"])


def test_the_engine_has_the_same_version(general):
    assert engine_version() == general["version"]


def test_both_changelogs_begin_with_the_version(general):
    assert general["changelog"].lstrip().startswith(general["version"])
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == general["version"]


def test_no_version_stands_anywhere_else(general):
    """One place for each fact: pyproject.toml must take the version from metadata.txt."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r'^version\s*=\s*"', project, re.MULTILINE)
