"""Files in the layout of CSAKD's authors, made here; parity tests load theirs."""

from __future__ import annotations

import pytest
import torch

from engine.errors import PackageError
from engine.models.fusion.dts import DTSConfig, DTSNet
from engine.packages.csakd_checkpoints import load_released, ours

SIZES = {"hsi_channels": 8, "msi_channels": 3, "ratio": 4, "width": 4, "growth": 2}
TEACHER = DTSConfig(**SIZES, blocks=(2, 2, 1, 1), fusion="released", down="bicubic")
STUDENT = DTSConfig(**SIZES, blocks=(0, 1, 1, 1), h_groups=2, fusion="released", down="bicubic")


def published_names(net):
    """The network's tensors under the names of the published code, from ours by search."""
    names = [
        *(f"{s}conv1.{k}" for s in ("hm", "mh", "h", "m") for k in ("weight", "bias")),
        *(
            f"{s}feat.{i}.MFB{u}.conv{c}.{k}"
            for s in ("hm", "mh", "h", "m")
            for i in range(3)
            for u in (1, 2, 3)
            for c in (1, 2, 3, 4, 5)
            for k in ("weight", "bias")
        ),
        *(
            f"fuse_att.{m}.{k}"
            for m in ("query_conv", "key_conv", "value_conv", "output_conv", "attention_weights")
            for k in ("weight", "bias")
        ),
        *("fuse.weight", "fuse.bias", "last.weight"),
    ]
    state = net.state_dict()
    return {name: state[ours(name)] for name in names if ours(name) in state}


def save(tmp_path, state, prefix="_orig_mod.decoder."):
    path = tmp_path / "best.pth"
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    return path


def unused_blocks():
    spare = DTSConfig(**SIZES, blocks=(1, 0, 0, 0))
    names = published_names(DTSNet(spare))
    return {name: tensor for name, tensor in names.items() if name.startswith("hmfeat.")}


@pytest.mark.parametrize("config", [TEACHER, STUDENT], ids=["teacher", "student"])
@torch.no_grad()
def test_a_released_file_gives_its_network(tmp_path, config):
    torch.manual_seed(0)
    net = DTSNet(config)
    loaded = load_released(save(tmp_path, published_names(net)))
    assert loaded.config == config
    hsi, msi = torch.rand(1, 8, 3, 2), torch.rand(1, 3, 12, 8)
    assert torch.equal(loaded(hsi, msi).image, net(hsi, msi).image)


def test_the_blocks_that_a_student_never_runs_are_left_out(tmp_path):
    state = published_names(DTSNet(STUDENT)) | unused_blocks()
    assert load_released(save(tmp_path, state)).config.blocks == (0, 1, 1, 1)


@pytest.mark.parametrize("prefix", ["", "decoder.", "module.decoder.", "_orig_mod.decoder."])
def test_every_prefix_is_cut(tmp_path, prefix):
    assert load_released(save(tmp_path, published_names(DTSNet(TEACHER)), prefix)).config == TEACHER


@pytest.mark.parametrize("fusion", ["none", "weights", "attention", "sum"])
def test_the_other_fusions_are_told_apart(tmp_path, fusion):
    net = DTSNet(DTSConfig(**SIZES, blocks=(1, 1, 1, 1), fusion=fusion, down="bicubic"))
    state = published_names(net)
    state = {
        name.replace("attention_weights", "attention_conv") if fusion == "none" else name: tensor
        for name, tensor in state.items()
    }
    if fusion == "weights":
        state["fuse_att.weights"] = net.fusion.weights.detach()
    assert load_released(save(tmp_path, state)).config.fusion == fusion


def test_a_file_of_another_network_is_refused(tmp_path):
    with pytest.raises(PackageError, match=r"no network of CSAKD: 'last\.weight' is not among"):
        load_released(save(tmp_path, {"conv.weight": torch.zeros(2, 2)}))


def test_a_tensor_that_no_network_has_is_refused(tmp_path):
    state = published_names(DTSNet(TEACHER)) | {"extra.weight": torch.zeros(1)}
    with pytest.raises(PackageError, match=r"extra\.weight, which no network of CSAKD has"):
        load_released(save(tmp_path, state))


def test_a_missing_tensor_is_named(tmp_path):
    state = published_names(DTSNet(TEACHER))
    del state["mfeat.0.MFB2.conv3.bias"]
    with pytest.raises(PackageError, match=r"msi\.blocks\.0\.units\.1\.convs\.2\.bias is missing"):
        load_released(save(tmp_path, state))


def test_sizes_that_do_not_fit_each_other_are_refused(tmp_path):
    state = published_names(DTSNet(TEACHER)) | {"mconv1.weight": torch.zeros(5, 3, 3, 3)}
    with pytest.raises(PackageError, match=r"msi\.stem\.weight is missing, of another size"):
        load_released(save(tmp_path, state))
