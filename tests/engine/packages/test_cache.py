from __future__ import annotations

import os

import pytest
import torch

from engine.errors import PackageError
from engine.packages.cache import ModelCache, load_model
from engine.packages.package import save_package
from tests.engine.packages.factory import tiny_info, tiny_state

CPU = torch.device("cpu")


def save(path, seed=0):
    path = save_package(str(path), tiny_info(), tiny_state(seed))
    for file in [path / "model.json", path / "weights.safetensors"] if path.is_dir() else [path]:
        # Writes within one tick of the disk's clock would look like one and the same.
        os.utime(file, ns=(0, seed))
    return path


@pytest.fixture
def cache():
    return ModelCache(max_models=2)


def test_a_second_job_gets_the_same_model(cache, tmp_path):
    path = save(tmp_path / "tiny")
    assert cache.load(str(path), CPU) is cache.load(str(path), CPU)


def test_a_name_and_a_path_are_one_model(cache, model_folders):
    path = save(model_folders[1] / "tiny.zip")
    assert cache.load("tiny", CPU) is cache.load(str(path), CPU)


@pytest.mark.parametrize("name", ["tiny", "tiny.zip"])
def test_a_replaced_package_is_loaded_again(cache, tmp_path, name):
    first = cache.load(str(save(tmp_path / name, seed=0)), CPU)
    second = cache.load(str(save(tmp_path / name, seed=1)), CPU)
    assert first.package.sha256 != second.package.sha256
    assert torch.equal(second.module.head.weight, tiny_state(1)["head.weight"])


def test_another_device_is_another_model(cache, tmp_path):
    path = save(tmp_path / "tiny")
    on_meta = cache.load(str(path), torch.device("meta"))
    assert on_meta.module.head.weight.device.type == "meta"
    assert cache.load(str(path), CPU).module.head.weight.device.type == "cpu"


def test_the_model_unused_for_longest_goes_first(cache, tmp_path):
    paths = [str(save(tmp_path / f"tiny {number}")) for number in range(3)]
    first, second = cache.load(paths[0], CPU), cache.load(paths[1], CPU)
    cache.load(paths[0], CPU)
    cache.load(paths[2], CPU)
    assert cache.load(paths[0], CPU) is first
    assert cache.load(paths[1], CPU) is not second


def test_a_package_damaged_since_is_refused(cache, tmp_path):
    path = save(tmp_path / "tiny")
    cache.load(str(path), CPU)
    (path / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(PackageError, match="are 5 bytes long"):
        cache.load(str(path), CPU)


def test_a_package_deleted_since_is_refused(cache, tmp_path):
    path = save(tmp_path / "tiny.zip")
    cache.load(str(path), CPU)
    path.unlink()
    with pytest.raises(PackageError, match="no model package"):
        cache.load(str(path), CPU)


def test_a_loaded_model_holds_its_weights_once(cache, tmp_path):
    loaded = cache.load(str(save(tmp_path / "tiny")), CPU)
    weight = loaded.module.head.weight
    assert loaded.package.state["head.weight"].data_ptr() == weight.data_ptr()
    assert not weight.requires_grad


def test_a_cleared_cache_loads_again(cache, tmp_path):
    path = str(save(tmp_path / "tiny"))
    first = cache.load(path, CPU)
    cache.clear()
    assert cache.load(path, CPU) is not first


def test_the_worker_keeps_one_cache(tmp_path):
    path = str(save(tmp_path / "tiny"))
    assert load_model(path, CPU) is load_model(path, CPU)
