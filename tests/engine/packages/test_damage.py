"""Whatever a file holds, the answer is a package or a `PackageError`, and nothing else."""

from __future__ import annotations

import copy
import json
import zipfile
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import PackageError
from engine.packages.build import build_model
from engine.packages.item import info_from_item, parse_item
from engine.packages.item_text import WeightsFile, item_text
from engine.packages.package import load_package, save_package
from tests.engine.packages.factory import tiny_info, tiny_state

WEIGHTS = WeightsFile(sha256="ab" * 32, size_bytes=1234, parameter_count=39, memory_bytes=156)
ITEM = json.loads(item_text(tiny_info(), WEIGHTS))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts),
    max_leaves=5,
)


def places(value, path=()):
    """Every place in a JSON document, as a path of keys and indices."""
    yield path
    entries = value.items() if isinstance(value, dict) else ()
    entries = enumerate(value) if isinstance(value, list) else entries
    for key, part in entries:
        yield from places(part, (*path, key))


PLACES = [path for path in places(ITEM) if path]


def put(item, path, value):
    for key in path[:-1]:
        item = item[key]
    item[path[-1]] = value


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(PLACES), value=JSON)
def test_any_value_anywhere_in_model_json(path, value):
    item = copy.deepcopy(ITEM)
    put(item, path, value)
    with suppress(PackageError):
        info_from_item(parse_item(json.dumps(item).encode()))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_as_model_json(content):
    with pytest.raises(PackageError):
        parse_item(content)


@pytest.fixture(
    scope="module", params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"]
)
def packed(tmp_path_factory, request):
    """A package as the engine packs it, and as a system's zip program does; and its bytes."""
    folder = tmp_path_factory.mktemp("packed")
    saved = save_package(str(folder / "saved.zip"), tiny_info(), tiny_state())
    path = folder / "tiny.zip"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", request.param) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return path, path.read_bytes()


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_zip_cut_anywhere_is_refused(packed, share):
    path, content = packed
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PackageError):
        load_package(str(path))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_byte_changed_anywhere_never_changes_the_weights(packed, share, flip):
    path, content = packed
    damaged = bytearray(content)
    damaged[int(share * len(content))] ^= flip
    path.write_bytes(damaged)
    with suppress(PackageError):
        package = load_package(str(path))
        assert {name: tensor.tolist() for name, tensor in package.state.items()} == {
            name: tensor.tolist() for name, tensor in tiny_state().items()
        }
        build_model(package)
