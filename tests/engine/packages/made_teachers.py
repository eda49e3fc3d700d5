"""Small teachers made by code: tensors as public files hold them, and what they say of an image."""

from __future__ import annotations

import torch

from engine.models.galileo import GalileoConfig, GalileoEncoder
from engine.models.prithvi import PrithviConfig, PrithviMAE

HEADS = {"num_heads": 4, "decoder_num_heads": 2}


def prithvi_config(**changes) -> PrithviConfig:
    settings = {
        "img_size": 32,
        "patch_px": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "decoder_embed_dim": 16,
        "decoder_depth": 2,
        "decoder_num_heads": 2,
    }
    return PrithviConfig(**{**settings, **changes})


def prithvi_state(seed=0, **changes) -> dict[str, torch.Tensor]:
    """The tensors that a public file would hold, by the new names."""
    torch.manual_seed(seed)
    state = dict(PrithviMAE(prithvi_config(**changes)).state_dict())
    return {name: tensor for name, tensor in state.items() if not name.startswith("band_")}


def flat(state):
    return {name.partition(".")[2]: tensor for name, tensor in state.items()}


def save(tmp_path, state, name="weights.pt") -> str:
    path = tmp_path / name
    torch.save(state, path)
    return str(path)


def describe(teacher, seed=1, rows=4, bands=6):
    """The features of an image by a teacher."""
    reflectance = torch.rand(2, bands, 32, 32, generator=torch.Generator().manual_seed(seed))
    [found] = teacher.network.features(
        reflectance,
        rows=rows,
        cols=rows,
        ids_keep=None,
        pixel_size_m=torch.full((2,), 30.0),
        taps=(teacher.network.depth,),
    )
    return found


def galileo_state(seed=0):
    torch.manual_seed(seed)
    return dict(GalileoEncoder(GalileoConfig(embed_dim=32, depth=2, num_heads=4)).state_dict())
