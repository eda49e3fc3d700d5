"""The dual two-streamed network: its counts, its reach and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.models.fusion.dts import DTSConfig, DTSNet, halo_px, multiply_adds, reach_px
from engine.models.fusion.presets import PRESETS

SMALL = DTSConfig(
    hsi_channels=5, msi_channels=3, ratio=3, width=8, growth=4, blocks=(0, 1, 1, 1), h_groups=4
)
GRIDS = [(2, "area"), (3, "area"), (4, "bicubic"), (2, "bicubic")]


def made(config, seed=0):
    torch.manual_seed(seed)
    net = DTSNet(config).double()
    with torch.no_grad():  # a tenth of the usual spread would hide how far a network looks
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net.eval()


def made_pair(config, rows, cols, seed=0):
    torch.manual_seed(seed)
    hsi = torch.rand(1, config.hsi_channels, rows, cols, dtype=torch.double)
    fine = (rows * config.ratio, cols * config.ratio)
    return hsi, torch.rand(1, config.msi_channels, *fine, dtype=torch.double)


def cut(hsi, msi, ratio, start, stop):
    """Rows ``start`` to ``stop`` of the coarse grid."""
    return hsi[..., start:stop, :], msi[..., start * ratio : stop * ratio, :]


@pytest.mark.parametrize(
    ("who", "msi_bands", "count"),
    [
        ("teacher", 4, 26_807_686),
        ("student", 4, 7_449_946),
        ("teacher", 6, 26_812_330),
        ("student", 6, 7_454_590),
    ],
)
def test_the_published_sizes(who, msi_bands, count):
    config = getattr(PRESETS["paper"], who)(172, msi_bands, 4)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in DTSNet(config).parameters()) == count


@pytest.mark.parametrize(
    ("who", "msi_bands", "giga"),
    [
        ("teacher", 4, 941.76),
        ("student", 4, 144.77),
        ("teacher", 6, 941.97),
        ("student", 6, 144.98),
    ],
)
def test_the_published_cost_of_an_image(who, msi_bands, giga):
    config = getattr(PRESETS["paper"], who)(172, msi_bands, 4)
    assert multiply_adds(config, 256 * 256) / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize("fusion", ["repaired", "released", "attention", "none", "weights", "sum"])
def test_counted_multiplications_are_those_of_the_convolutions(fusion):
    """At ratio 1 nothing is moved between grids, so that a hook on each convolution counts all."""
    config = replace(SMALL, ratio=1, fusion=fusion, fusion_width=8, heads=2, h_groups=1)
    convolutions = [m for m in DTSNet(config).modules() if isinstance(m, torch.nn.Conv2d)]
    assert multiply_adds(config, 7) == 7 * sum(conv.weight.numel() for conv in convolutions)


@pytest.mark.parametrize(("ratio", "down"), GRIDS)
def test_nothing_beyond_the_reach_changes_a_result(ratio, down):
    config = replace(SMALL, ratio=ratio, down=down, blocks=(1, 1, 0, 1))
    net = made(config)
    reach, rows = net.reach_px, net.reach_px + 6
    assert reach == reach_px(config)
    hsi, msi = made_pair(config, rows, 3)
    with torch.no_grad():
        whole = net(hsi, msi).image
        part = net(*cut(hsi, msi, ratio, 0, reach + 2)).image
    torch.testing.assert_close(part[..., : 2 * ratio, :], whole[..., : 2 * ratio, :])


@pytest.mark.parametrize(("ratio", "down"), GRIDS)
def test_the_reach_is_not_larger_than_it_has_to_be(ratio, down):
    config = replace(SMALL, ratio=ratio, down=down, blocks=(0, 1, 0, 0))
    net = made(config)
    hsi, msi = made_pair(config, net.reach_px + 1, 3)
    hsi.requires_grad_()
    msi.requires_grad_()
    net(hsi, msi).image[..., :ratio, :].square().sum().backward()
    furthest = hsi.grad[..., -1, :].abs().max() + msi.grad[..., -ratio:, :].abs().max()
    assert furthest > 0


def test_far_pixels_matter_little_at_the_start():
    """The margin that is read by default lets next to nothing be missed."""
    config = PRESETS["laptop"].student(16, 4, 3)
    torch.manual_seed(0)
    net = DTSNet(config).eval()
    halo = halo_px(config)
    assert halo < reach_px(config)
    hsi, msi = (image.float() for image in made_pair(config, 2 * halo, 6))
    with torch.no_grad():
        whole = net(hsi, msi).image
        part = net(*cut(hsi, msi, 3, 0, halo + 1)).image
    difference = (part[..., :3, :] - whole[..., :3, :]).abs().max()
    assert difference < 1e-4 * (whole.max() - whole.min())


def test_a_network_may_start_with_nothing():
    net = DTSNet(SMALL)
    net.start_at_zero()
    hsi, msi = (image.float() for image in made_pair(SMALL, 4, 3))
    assert net(hsi, msi).image.abs().max() == 0


def test_a_calibrated_network_knows_its_scene():
    net = made(SMALL)
    pair = made_pair(SMALL, 6, 5)
    net.calibrate([pair])
    fixed = net(*pair).image
    torch.testing.assert_close(net.train()(*pair).image, fixed, rtol=1e-5, atol=1e-6)


def test_calibrating_with_nothing_changes_nothing():
    net = made(SMALL)
    net.calibrate([made_pair(SMALL, 6, 5)])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.calibrate([])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_calibrating_a_network_in_training_leaves_it_so():
    net = made(SMALL).train()
    net.calibrate([made_pair(SMALL, 3, 3)])
    assert net.training


def test_a_single_coarse_pixel_is_enough():
    net = DTSNet(SMALL).eval()
    hsi, msi = (image.float() for image in made_pair(SMALL, 1, 1))
    assert net(hsi, msi).image.shape == (1, 5, 3, 3)


def test_grids_that_do_not_nest_are_refused():
    net = DTSNet(SMALL)
    with pytest.raises(ValueError, match=r"4 x 3 px at ratio 3 needs a fine one of 12 x 9 px, not"):
        net(torch.rand(1, 5, 4, 3), torch.rand(1, 3, 12, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hsi_channels": 0}, "hsi_channels is at least 1, not 0"),
        ({"ratio": 0}, "ratio is a whole number from 1, not 0"),
        ({"blocks": (1, 1, 1)}, r"four numbers from 0, not \(1, 1, 1\)"),
        ({"fusion": "mean"}, "no fusion 'mean'"),
        ({"down": "nearest"}, "down is bicubic or area, not 'nearest'"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
