"""Windows of labelled chips: where they may lie, and what each pixel counts."""

from dataclasses import dataclass, replace

import pytest
import torch

from engine.training.segmentation_chips import LabelledChips, Light, chip_sizes
from tests.engine.training.made_samples import BANDS, CHIP_PX, made_samples

DARK = Light(brightness=0.0, noise=0.0)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sizes:
    chip_px: int


def draw(chips, target, seed=0, light=DARK, index=None):
    index = torch.arange(len(chips)) if index is None else index
    chance = torch.Generator().manual_seed(seed)
    return chips.draw(index, target, light, torch.full((BANDS,), 0.1), chance)


def numbered(samples):
    """Targets from which a pixel can be told: its number from 1; 0 where there is no label."""
    number = torch.arange(1, len(samples.chip) + 1, dtype=torch.float32)
    return torch.cat([number, torch.zeros(1)])[:, None]


@pytest.mark.parametrize("chip_px", [5, 8, 32, 224])
def test_every_window_of_what_is_read_holds_the_core(chip_px):
    sizes = chip_sizes(Sizes(chip_px), block_px=7)
    first = (sizes.chip_px - sizes.core_px) // 2  # where the core begins
    last_corner = sizes.chip_px - chip_px
    assert last_corner <= first
    assert first + sizes.core_px <= chip_px
    assert sizes.block_px == 7


def test_a_window_shows_labels_where_their_pixels_are():
    samples = made_samples()
    chips = LabelledChips(samples, 4, CPU)
    batch = draw(chips, numbered(samples))
    where = batch.target[..., 0] > 0
    assert where.any()
    number = batch.target[..., 0][where].long() - 1
    shown = batch.reflectance.permute(0, 2, 3, 1)[where]
    torch.testing.assert_close(shown, samples.spectra[number])


def test_windows_lie_at_all_places_and_are_turned():
    samples = made_samples(chips=1)
    chips = LabelledChips(samples, 4, CPU)
    seen = [draw(chips, numbered(samples), seed).target[0, ..., 0] for seed in range(200)]
    # Pixel 6, in the middle of the chip, is in every window: at 9 places, and turned at all 16.
    places = {tuple((window == 6).nonzero()[0].tolist()) for window in seen}
    assert places == {(row, col) for row in range(4) for col in range(4)}


def test_the_label_of_a_neighbours_core_counts_too():
    samples = made_samples(chips=2)
    # The same ground twice: what the second chip's core is labelled as, the first chip shows.
    position = samples.position.clone()
    position[samples.chip == 1] = position[samples.chip == 0]
    position[samples.chip == 1, 2] += 4
    chips = LabelledChips(replace(samples, position=position), CHIP_PX, CPU)
    target = draw(chips, numbered(samples), index=torch.tensor([0])).target
    shown = target[target > 0].long() - 1
    assert set(samples.chip[shown].tolist()) == {0, 1}


def test_every_pixel_counts_alike_however_often_windows_show_it():
    samples = made_samples(chips=3)
    chips = LabelledChips(samples, 4, CPU)
    target = torch.cat([1 / chips.visits, torch.zeros(1)])[:, None]
    epochs = 1500
    total = sum(float(draw(chips, target, seed).target.sum()) for seed in range(epochs))
    assert total / epochs == pytest.approx(len(samples.chip), rel=0.02)
    # The corner of a core is in few windows of 4 px out of 6, its middle in all.
    assert chips.visits.min() < chips.visits.max() == pytest.approx(1.0)


def test_a_chip_smaller_than_the_window_is_taken_whole():
    chips = LabelledChips(made_samples(chips=2), 32, CPU)
    assert draw(chips, numbered(made_samples(chips=2))).valid.shape == (2, CHIP_PX, CHIP_PX)


def test_what_is_not_valid_is_0_in_any_light():
    samples = made_samples(chips=2)
    samples.valid[:, 0] = False
    batch = draw(LabelledChips(samples, CHIP_PX, CPU), numbered(samples), light=Light(0.5, 0.5))
    assert not batch.reflectance.permute(0, 2, 3, 1)[~batch.valid].any()
    assert (~batch.valid).sum() == 2 * CHIP_PX


def test_light_changes_reflectance_by_its_spreads():
    samples = made_samples(chips=12, noise=0.0)
    chips = LabelledChips(samples, CHIP_PX, CPU)
    plain, brighter, noisy = (
        draw(chips, numbered(samples), light=light).reflectance
        for light in (DARK, Light(0.1, 0.0), Light(0.0, 0.5))
    )
    factor = (brighter / plain).flatten(1)
    torch.testing.assert_close(factor.amax(dim=1), factor.amin(dim=1))  # one a chip
    assert 0.04 < float(factor[:, 0].std()) < 0.2
    assert float((noisy - plain).std()) == pytest.approx(0.5 * 0.1, rel=0.1)


def test_only_chips_whose_cores_hold_samples_are_gone_through():
    samples = made_samples(chips=5)
    chips = LabelledChips(samples, CHIP_PX, CPU)
    asked = (samples.chip == 1) | (samples.chip == 3)
    assert chips.chips_with(asked).tolist() == [1, 3]
