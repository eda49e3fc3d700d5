from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import pytest
import torch

from engine.packages.pickle_names import foreign_names


class Calls:
    """A pickle of this calls what it is given."""

    def __init__(self, function) -> None:
        self.function = function

    def __reduce__(self):
        return self.function, ("x",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_each_name_is_listed_once_in_its_order(tmp_path, protocol):
    path = tmp_path / "weights.bin"
    calls = [Calls(os.rmdir), Calls(os.mkdir), Calls(os.rmdir)]
    path.write_bytes(pickle.dumps({"model": calls, "epoch": 3}, protocol))
    assert foreign_names(path) == [f"{os.name}.rmdir", f"{os.name}.mkdir"]


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_are_not_listed(tmp_path, is_zip):
    path = tmp_path / "weights.pt"
    state = OrderedDict(weight=torch.ones(3), bias=torch.nn.Parameter(torch.ones(2)))
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    assert foreign_names(path) == []


def test_names_before_the_damage_are_listed(tmp_path):
    path = tmp_path / "weights.bin"
    content = pickle.dumps([Calls(os.mkdir), "a" * 100], 2)
    path.write_bytes(content[:-50])
    assert foreign_names(path) == [f"{os.name}.mkdir"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>", bytes(range(256))])
def test_what_is_no_pickle_has_no_names(tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    assert foreign_names(path) == []
