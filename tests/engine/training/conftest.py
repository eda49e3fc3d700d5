"""Tiny trainings: see `one_thread`."""

import pytest


@pytest.fixture(autouse=True)
def _always_one_thread(one_thread):
    """Every test here trains something."""
