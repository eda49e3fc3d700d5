"""The public checkpoints' names and shapes at full size: those of backbones load, others do not."""

from __future__ import annotations

import argparse
import json
from pathlib import PosixPath

import pytest
import torch

from engine.errors import PackageError
from engine.packages.foundations import load_foundation
from tests.engine.packages.made_teachers import save

pytestmark = pytest.mark.parity

# Kind, heads, tokens before the patches, positions; zeros are no fixed table.
LARGE = {
    "scalemae_vitl_public": ("scalemae", 16, 1, "stored"),
    "scalemae_vitl_upstream": ("scalemae", 16, 1, "stored"),
    "satmaepp_vitl_rgb_public": ("satmaepp", 16, 1, "stored"),
    "mae_vitl_visualize_public": ("mae", 16, 1, "stored"),
    "mae_vitl_pretrain_encoder_public": ("mae", 16, 1, "stored"),
    "dinov3_vitl16_sat493m_public": ("dinov3", 16, 5, "rope"),
    "dinov3_vitl16_lvd1689m_public": ("dinov3", 16, 5, "rope"),
}
OTHERS = {
    "prithvi100m_new_T1": ("prithvi", 12, 1, "stored"),
    "prithvi100m_old_T3": ("prithvi", 12, 1, "stored"),
    "galileo_nano_encoder": ("galileo", 8, 0, "galileo"),
    "galileo_nano_target_encoder": ("galileo", 8, 0, "galileo"),
}
ENCODER_ONLY = ("mae_vitl_pretrain_encoder_public",)
DECODER = ("decoder", "mask_token", "fpn.", "fcn_", "proj_up_", "up_block.")
NO_ENCODERS = ("galileo_nano_decoder", "galileo_nano_second_decoder", "presto_default_model")


def layout_of(fixtures_folder, name) -> dict:
    path = fixtures_folder / "layouts" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"the fixture is not here: {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def state_of(layout) -> dict[str, torch.Tensor]:
    """A public file's tensors, one stored value each."""
    return {
        row["key"]: torch.zeros(1, dtype=getattr(torch, row["dtype"])).expand(row["shape"])
        for row in layout["keys"]
    }


def check(tmp_path, layout, name, expected):
    """Load a file of this layout, named as the public one, with the arguments beside it."""
    state = state_of(layout)
    args = argparse.Namespace(output_dir=PosixPath("/data"), epochs=800)
    file_name = (layout.get("file") or "weights.pth").split()[0]
    foundation = load_foundation(save(tmp_path, {"model": state, "args": args}, file_name))
    config = foundation.vit.config
    found = (foundation.identity.kind, config.num_heads, config.prefix_tokens, config.positions)
    assert found == expected
    blocks = {key: part.shape for key, part in state.items() if ".blocks." in f".{key}"}
    count = sum(
        shape.numel()
        for key, shape in blocks.items()
        if "decoder" not in key and not key.endswith("bias_mask")
    )
    assert sum(weight.numel() for weight in foundation.vit.blocks.parameters()) == count
    if name in LARGE:
        assert (config.embed_dim, config.depth, config.grid, config.patch_px) == (1024, 24, 14, 16)
        names = {key for key in state if key.startswith(DECODER)}
        is_masked = expected[0] != "dinov3" and name not in ENCODER_ONLY
        assert set(foundation.decoder) == (names if is_masked else set())
        assert foundation.decoder_num_heads == (16 if is_masked else None)


@pytest.mark.slow  # more than a gigabyte of zeros is written to memory for each
@pytest.mark.parametrize("name", LARGE)
def test_a_large_public_file_loads(tmp_path, fixtures_folder, name):
    check(tmp_path, layout_of(fixtures_folder, name), name, LARGE[name])


@pytest.mark.parametrize("name", OTHERS)
def test_a_smaller_public_file_loads(tmp_path, fixtures_folder, name):
    check(tmp_path, layout_of(fixtures_folder, name), name, OTHERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["target_scalemae_vit_encoder", "target_satmaepp_vit_encoder"])
def test_the_encoder_of_the_second_stage_loads_without_its_head(tmp_path, fixtures_folder, name):
    foundation = load_foundation(save(tmp_path, state_of(layout_of(fixtures_folder, name))))
    assert foundation.vit.config.embed_dim == 1024
    assert foundation.decoder == {}


@pytest.mark.parametrize("name", NO_ENCODERS)
def test_a_file_of_another_model_is_refused(tmp_path, fixtures_folder, name):
    state = state_of(layout_of(fixtures_folder, name))
    with pytest.raises(PackageError, match="no encoder of a known layout: it has no tensor"):
        load_foundation(save(tmp_path, state))
