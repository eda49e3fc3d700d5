"""The public checkpoints' names and shapes at full size: those of teachers load, others do not."""

from __future__ import annotations

import argparse
import json
from pathlib import PosixPath

import pytest
import torch

from engine.errors import PackageError
from engine.packages.teachers import load_teacher
from tests.engine.packages.made_teachers import save

pytestmark = pytest.mark.parity

TEACHERS = {  # and the attention heads, which no tensor tells
    "prithvi100m_new_T1": 12,
    "prithvi100m_new_T3": 12,
    "prithvi100m_old_T1": 12,
    "prithvi100m_old_T3": 12,
    "galileo_nano_encoder": 8,
}
OTHERS = (
    "scalemae_vitl_public",
    "satmaepp_vitl_rgb_public",
    "mae_vitl_visualize_public",
    "dinov3_vitl16_sat493m_public",
    "galileo_nano_decoder",
    "presto_default_model",
)


def state_of(fixtures_folder, name) -> dict[str, torch.Tensor]:
    """A public file's tensors, one stored value each."""
    path = fixtures_folder / "layouts" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"the fixture is not here: {path}")
    rows = json.loads(path.read_text(encoding="utf-8"))["keys"]
    return {
        row["key"]: torch.zeros(1, dtype=getattr(torch, row["dtype"])).expand(row["shape"])
        for row in rows
    }


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teachers_file_loads_with_the_arguments_beside_it(tmp_path, fixtures_folder, name):
    state = state_of(fixtures_folder, name)
    args = argparse.Namespace(output_dir=PosixPath("/data"), epochs=800)
    network = load_teacher(save(tmp_path, {"model": state, "args": args})).network
    sizes = {
        key: tensor.numel()
        for key, tensor in network.state_dict().items()
        if key not in ("band_mean", "band_std")  # no file has them
    }
    assert len(sizes) == len(state)
    assert sum(sizes.values()) == sum(tensor.numel() for tensor in state.values())
    assert network.config.num_heads == TEACHERS[name]
    if "_T" in name:
        assert network.config.grid == (int(name[-1]), 14, 14)


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_model_is_refused(tmp_path, fixtures_folder, name):
    state = state_of(fixtures_folder, name)
    with pytest.raises(PackageError, match=r"no teacher of a known layout|is no Prithvi|but holds"):
        load_teacher(save(tmp_path, state))
