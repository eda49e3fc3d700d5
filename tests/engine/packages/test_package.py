from __future__ import annotations

import json
import pickle
import struct
import zipfile
from dataclasses import replace

import pytest
import torch

from engine.errors import PackageError
from engine.packages.package import load_info, load_package, save_package
from tests.engine.packages.factory import BAND_COUNT, tiny_info, tiny_state


@pytest.fixture(params=["tiny", "tiny.zip"])
def saved(request, tmp_path):
    return save_package(str(tmp_path / request.param), tiny_info(), tiny_state())


@pytest.fixture
def folder(tmp_path):
    return save_package(str(tmp_path / "tiny"), tiny_info(), tiny_state())


def edit_json(folder, edit):
    path = folder / "model.json"
    item = json.loads(path.read_bytes())
    edit(item)
    path.write_text(json.dumps(item))


def test_weights_come_back_bit_for_bit(saved):
    package = load_package(str(saved))
    assert package.info.name == "tiny-test"
    assert package.path == saved
    for name, tensor in tiny_state().items():
        assert torch.equal(package.state[name], tensor)
        assert package.state[name].dtype == tensor.dtype


def test_other_kinds_of_numbers_come_back(tmp_path):
    state = {
        "half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        "steps": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }
    state["shared"] = state["transposed"]
    save_package(str(tmp_path / "kinds"), tiny_info(), state)
    again = load_package(str(tmp_path / "kinds")).state
    assert set(again) == set(state)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)


def test_folder_and_zip_have_the_same_hash(tmp_path):
    hashes = {
        load_package(str(save_package(str(tmp_path / name), tiny_info(), tiny_state()))).sha256
        for name in ("tiny", "tiny.zip")
    }
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def test_other_weights_have_another_hash(tmp_path):
    paths = [
        save_package(str(tmp_path / f"seed {seed}"), tiny_info(), tiny_state(seed))
        for seed in (0, 1)
    ]
    assert load_package(str(paths[0])).sha256 != load_package(str(paths[1])).sha256


def test_the_hash_is_that_of_the_file(folder):
    import hashlib

    weights = (folder / "weights.safetensors").read_bytes()
    assert load_package(str(folder)).sha256 == hashlib.sha256(weights).hexdigest()


def test_a_path_of_model_json_stands_for_its_folder(folder):
    assert load_package(str(folder / "model.json")).path == folder


def test_a_changed_weight_is_noticed(folder):
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    with pytest.raises(PackageError, match=r"have the SHA-256 .* changed or damaged"):
        load_package(str(folder))


def test_half_a_download_is_noticed(folder):
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:-7])
    with pytest.raises(PackageError, match=f"are {len(weights) - 7} bytes long.*not complete"):
        load_package(str(folder))


def test_another_hash_in_model_json_is_noticed(folder):
    edit_json(
        folder, lambda item: item["assets"]["weights"].update({"file:checksum": "1220" + "0" * 64})
    )
    with pytest.raises(PackageError, match=r"model\.json says 000000000000"):
        load_package(str(folder))


def test_no_hash_in_model_json_is_refused(folder):
    edit_json(folder, lambda item: item["assets"]["weights"].pop("file:checksum"))
    with pytest.raises(PackageError, match="file:checksum: Field required"):
        load_package(str(folder))


def replace_weights(folder, weights):
    """Put other bytes in, with a hash and a size that fit: a package made with bad will."""
    import hashlib

    (folder / "weights.safetensors").write_bytes(weights)
    about = {
        "file:checksum": "1220" + hashlib.sha256(weights).hexdigest(),
        "file:size": len(weights),
    }
    edit_json(folder, lambda item: item["assets"]["weights"].update(about))


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("a package has run code",))


def test_a_pickle_under_the_weights_name_is_refused_and_not_run(folder):
    replace_weights(folder, pickle.dumps(Exploit()))
    with pytest.raises(PackageError, match="is not a safetensors file"):
        load_package(str(folder))


def test_a_pickle_beside_is_not_read(folder):
    (folder / "weights.pkl").write_bytes(pickle.dumps(Exploit()))
    assert load_package(str(folder)).info.name == "tiny-test"


def test_a_pickle_in_the_zip_is_refused(tmp_path):
    path = save_package(str(tmp_path / "tiny.zip"), tiny_info(), tiny_state())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights.pkl", pickle.dumps(Exploit()))
    with pytest.raises(PackageError, match=r"holds 'weights\.pkl', which does not belong"):
        load_package(str(path))


@pytest.mark.parametrize(
    "weights",
    [b"", b"\x00" * 4, struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 2) + b"{]"],
    ids=["empty", "short", "header beyond the file", "header not JSON"],
)
def test_damaged_safetensors_are_refused(folder, weights):
    replace_weights(folder, weights)
    with pytest.raises(PackageError, match="is not a safetensors file"):
        load_package(str(folder))


def test_weights_that_could_only_predict_nan_are_not_saved(tmp_path):
    state = tiny_state()
    state["head.weight"][1, 2] = torch.nan
    with pytest.raises(PackageError, match=r"'head\.weight' hold NaN"):
        save_package(str(tmp_path / "tiny"), tiny_info(), state)
    assert list(tmp_path.glob("tiny*")) == []


def test_no_weights_are_not_saved(tmp_path):
    with pytest.raises(PackageError, match="has no weights"):
        save_package(str(tmp_path / "tiny"), tiny_info(), {})


def test_info_is_loaded_without_weights(folder):
    (folder / "weights.safetensors").unlink()
    assert len(load_info(str(folder)).bands) == BAND_COUNT


def test_saving_counts_the_parameters(folder):
    properties = json.loads((folder / "model.json").read_bytes())["properties"]
    assert properties["mlm:total_parameters"] == BAND_COUNT * 3 + 3
    assert properties["mlm:memory_size"] == 4 * (BAND_COUNT * 3 + 3)


def test_checksums_in_settings_and_facts_carry_a_note_for_scanners_and_come_back_without_it(
    tmp_path,
):
    digest = "0f" * 32
    info = replace(tiny_info(), training={"adapted_sha256": digest, "parts": [{"sha256": digest}]})
    saved = save_package(str(tmp_path / "noted"), info, tiny_state())
    text = (saved / "model.json").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if digest in line]
    assert len(lines) == 2
    assert all("pragma: allowlist secret" in line for line in lines)
    assert load_package(str(saved)).info.training == info.training
