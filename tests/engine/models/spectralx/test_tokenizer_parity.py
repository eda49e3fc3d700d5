"""The tokenizer at its published size against the published code, in float32 and in float64."""

from __future__ import annotations

import pytest
import torch

from engine.models.spectralx.tokenizer import HyperTokenizer, TokenizerConfig, Tokens
from tests.engine.models.spectralx.official import Fixture, tokenizer_state

# 22 million weights and chips of 224 px: three seconds a case on a quiet core.
pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.fixture(scope="module", params=["spectralx_hypert_c13", "spectralx_hypert_c32"])
def case(request, fixtures_folder):
    """(fixture, tokenizer)."""
    fixture = Fixture(fixtures_folder, request.param)
    state = tokenizer_state(fixture.weights)
    _batch, in_channels, chip_px, _cols = fixture.sidecar["inputs"]["image"]["shape"]
    embed_dim, rank, up_px, _cols = state["up.weight"].shape
    config = TokenizerConfig(
        in_channels=in_channels,
        wavelength_nm=tuple(1000 * um for um in fixture.constructor["wavelength_um"]),
        embed_dim=embed_dim,
        chip_px=chip_px,
        patch_px=up_px * state["down.weight"].shape[-1],
        stem_dim=len(state["core.stem.last.weight"]),
        low_rank=rank,
    )
    tokenizer = HyperTokenizer(config)
    tokenizer.load_state_dict(state)
    return fixture, tokenizer.eval()


def run(tokenizer: HyperTokenizer, image: torch.Tensor) -> tuple[Tokens, dict[str, torch.Tensor]]:
    """Tokens, and what the parts of the core gave on the way."""
    core, parts = tokenizer.core, {}

    def keep(name: str):
        return lambda _module, _inputs, output: parts.update({name: output})

    watched = {
        "stem": core.stem,
        "spectral_block": core.spectral_block,
        "spatial_query_out": core.spatial_match,
        "spectral_query_out": core.spectral_match,
        "core_tokens": core.fc2,
        "low_rank_path": tokenizer.up,
    }
    hooks = [part.register_forward_hook(keep(name)) for name, part in watched.items()]
    with torch.no_grad():
        tokens = tokenizer(image)
    for hook in hooks:
        hook.remove()
    return tokens, parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tokens_and_all_on_the_way(case, dtype):
    """From the image on, so that the first difference is the one to look at."""
    fixture, tokenizer = case
    tokenizer.to(dtype)
    found, parts = run(tokenizer, fixture.input("image").to(dtype))
    side, grid = tokenizer.config.stem_side, tokenizer.config.grid
    places = found.low.spatial - tokenizer.core.spatial_code
    fixture.check("stem", parts["stem"])
    fixture.check("spatial_block", places.unflatten(1, (side, side)))
    channels = parts["spectral_block"].transpose(1, 2)
    fixture.check("spectral_block", channels.unflatten(1, (side, side)))
    fixture.check("F_spa", found.low.spatial)
    fixture.check("F_spe", found.low.spectral)
    for name in ("spatial_query_out", "spectral_query_out", "core_tokens", "low_rank_path"):
        fixture.check(name, parts[name])
    fixture.check("map", found.tokens.transpose(1, 2).unflatten(2, (grid, grid)))


def test_parameters(case):
    fixture, tokenizer = case
    assert sum(w.numel() for w in tokenizer.core_parameters()) == fixture.sidecar["core_parameters"]
    assert sum(weight.numel() for weight in tokenizer.parameters()) == fixture.sidecar["parameters"]
