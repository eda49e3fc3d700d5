from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from pathlib import Path, PosixPath, PurePosixPath

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import PackageError
from engine.packages.checkpoints import MAX_VALUES, read_checkpoint


class MakesAFolder:
    """A pickle of this makes a folder when it is read without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def state():
    return {"norm.weight": torch.arange(6.0).reshape(2, 3), "norm.bias": torch.ones(2)}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".PT"])
def test_a_plain_state_dict_is_read(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.state, state)
    assert checkpoint.args == {}
    assert checkpoint.path == path


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_wrapped_state_dict_is_unwrapped(tmp_path, state, wrapper):
    path = tmp_path / "weights.pt"
    torch.save({"epoch": 800, wrapper: state, "optimizer": {"lr": torch.ones(1)}}, path)
    assert_same(read_checkpoint(path).state, state)


def test_arguments_of_the_training_script_are_kept(tmp_path, state):
    path = tmp_path / "weights.pth"
    args = argparse.Namespace(mask_ratio=0.75, output_dir=PosixPath("/data/out"), seed=None)
    torch.save({"model": state, "args": args}, path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.state, state)
    assert checkpoint.args == {
        "mask_ratio": 0.75,
        "output_dir": PurePosixPath("/data/out"),
        "seed": None,
    }


def test_a_path_inside_cannot_touch_the_disk(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save({"model": state, "args": argparse.Namespace(out=PosixPath("/data"))}, path)
    assert not isinstance(read_checkpoint(path).args["out"], Path)


def test_the_format_before_torch_1_6_is_read(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(path).state, state)


def test_safetensors_are_read(tmp_path, state):
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    assert_same(dict(sorted(read_checkpoint(path).state.items())), dict(sorted(state.items())))


def test_the_checksum_is_that_of_the_file(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    assert read_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_no_tensor_is_left_out(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save({**state, "epoch": 3}, path)
    assert_same(read_checkpoint(path).state, state)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("place", ["alone", "beside the model", "among the arguments"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, state, place, is_zip):
    trap = MakesAFolder(tmp_path / "made by the pickle")
    content = {
        "alone": trap,
        "beside the model": {"model": state, "scaler": trap},
        "among the arguments": {"model": state, "args": argparse.Namespace(hook=trap)},
    }[place]
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(PackageError, match=rf"names {os.mkdir.__module__}\.mkdir.*run as code"):
        read_checkpoint(path)
    assert not trap.folder.exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert trap.folder.is_dir()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_of_any_protocol_is_refused_and_not_run(tmp_path, protocol):
    trap = MakesAFolder(tmp_path / "made by the pickle")
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps({"model": [trap, trap]}, protocol))
    with pytest.raises(PackageError, match=r"names \w+\.mkdir, which is no tensor"):
        read_checkpoint(path)
    assert not trap.folder.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_trap_in_a_torch_file_of_any_protocol_is_named(tmp_path, state, protocol, is_zip):
    trap = MakesAFolder(tmp_path / "made by the pickle")
    path = tmp_path / "weights.pt"
    torch.save(
        {"model": state, "trap": trap},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=is_zip,
    )
    with pytest.raises(PackageError, match=r"names \w+\.mkdir, which is no tensor"):
        read_checkpoint(path)
    assert not trap.folder.exists()


def test_no_message_advises_to_trust_the_file(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02\x95no pickle")
    with pytest.raises(PackageError) as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)


def test_a_class_of_others_is_named(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save({"model": state, "head": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(PackageError, match=r"names torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(path)


def test_allowances_end_with_the_reading(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save({"model": state, "args": argparse.Namespace()}, path)
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_cut_file_is_refused(tmp_path, state, suffix, share):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PackageError, match=r"is damaged, or no file of weights"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_a_text_is_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_text("<html>404 not found</html>\n" * 10)
    with pytest.raises(PackageError, match=r"is damaged, or no file of weights"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], "weights", {"model": {}}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(PackageError, match="holds no tensors by name"):
        read_checkpoint(path)


def test_tensors_larger_than_any_model_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1).expand(MAX_VALUES + 1)}, path)
    with pytest.raises(PackageError, match=r"claims to hold 4\.29e\+09 numbers"):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PackageError, match=r"no file of weights .*nowhere\.pt"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "weights.pt").mkdir()
    with pytest.raises(PackageError, match="There is no file of weights"):
        read_checkpoint(tmp_path / "weights.pt")


def test_another_kind_of_file_is_not_opened(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(b"II*")
    with pytest.raises(PackageError, match=r"does not look like .*They end with \.pt, \.pth"):
        read_checkpoint(path)
