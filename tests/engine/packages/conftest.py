from __future__ import annotations

import pytest

from engine.packages import installed
from engine.packages.build import ARCHITECTURES, Architecture


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch):
    """The engine knows the architecture of the test's model."""
    monkeypatch.setitem(
        ARCHITECTURES,
        "hyperkd-tiny",
        Architecture("tests.engine.packages.factory", "TinyModel", "TinyConfig"),
    )


@pytest.fixture(autouse=True)
def model_folders(monkeypatch, tmp_path_factory):
    """Two empty folders of installed packages, the plugin's and the user's."""
    plugin_folder = tmp_path_factory.mktemp("plugin models")
    user_folder = tmp_path_factory.mktemp("user models")
    monkeypatch.setattr(installed, "plugin_models_folder", lambda: plugin_folder)
    monkeypatch.setenv(installed.USER_FOLDER_VARIABLE, str(user_folder))
    return plugin_folder, user_folder
