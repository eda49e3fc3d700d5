"""The memory of a step of a fusion's training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.models.fusion.presets import PRESETS
from engine.training.fusion_memory import estimate_memory

LAPTOP = PRESETS["laptop"]


def laptop(**changes):
    return estimate_memory(replace(LAPTOP, **changes), 40, 4, 2, "injection")


def test_a_crop_of_twice_the_side_takes_four_times_as_much():
    small, large = laptop(crop_px=32), laptop(crop_px=64)
    assert large.sample_bytes == pytest.approx(4 * small.sample_bytes, rel=1e-6)
    assert large.fixed_bytes == small.fixed_bytes


def test_a_deeper_teacher_takes_more():
    deeper = laptop(teacher_blocks=(2, 4, 4, 4))
    assert deeper.fixed_bytes > laptop().fixed_bytes
    assert deeper.sample_bytes > laptop().sample_bytes


def test_the_published_networks_hold_their_weights_gradients_and_moments():
    memory = estimate_memory(PRESETS["paper"], 172, 4, 4, "none")
    # 26,807,686 and 7,449,946 values, each with a gradient and two moments.
    assert memory.fixed_bytes >= 16 * (26_807_686 + 7_449_946)
    # A batch of eight crops does not fit into the memory of a laptop, one of them does.
    assert memory.bytes_for(8) > 8 * 1024**3 > memory.bytes_for(1)


def test_too_few_bands_for_the_published_width_are_refused():
    with pytest.raises(ValueError, match="too few"):
        estimate_memory(PRESETS["paper"], 3, 1, 2, "none")
