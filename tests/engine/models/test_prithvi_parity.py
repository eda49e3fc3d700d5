"""Prithvi against numbers of the public code: every file of the fixtures, sizes read off them.

The number of attention heads stands in none of the files, so the one that reproduces them best is
taken; a wrong one is off by more than a thousand tolerances.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange

from engine.models.prithvi import draw_random_mask, position_table, positions_for
from engine.packages.teachers import load_teacher

pytestmark = pytest.mark.parity

ATOL_TOKENS = 3e-5
ATOL_LOSS = 3e-6
ATOL_TABLE = 1e-6
SETS = [(frames, layout) for frames in ("T1", "T3") for layout in ("new", "old")]


class Reference:
    """Arrays of one file as tensors, and what they say about the model's sizes."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            pytest.skip(f"the fixture is not here: {path}")
        with np.load(path) as arrays:
            self._arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._arrays[name]

    def numbered(self, prefix: str) -> list[torch.Tensor]:
        count = sum(name.startswith(prefix) for name in self._arrays)
        assert count > 0
        return [self[f"{prefix}{number}"] for number in range(count)]


@pytest.fixture(scope="module")
def folder(fixtures_folder):
    return fixtures_folder / "teachers"


@pytest.fixture(scope="module")
def load(folder):
    """``load("T1", "new")``: the network of a checkpoint, loaded once."""
    loaded = {}

    def load_once(frames: str, layout: str):
        path = folder / f"prithvi_tiny_{frames}_{layout}.pt"
        if not path.is_file():
            pytest.skip(f"the fixture is not here: {path}")
        if path not in loaded:
            reference = Reference(folder / f"prithvi_tiny_{frames}.npz")
            loaded[path] = network_with_fitting_heads(path, reference)
        return loaded[path]

    return load_once


def divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def network_with_fitting_heads(path: Path, reference: Reference):
    widths = reference["pos_embed"].shape[-1], reference["decoder_pos_embed"].shape[-1]

    def fits(heads: int, decoder_heads: int, wanted: str) -> bool:
        network = build(path, heads, decoder_heads)
        with torch.no_grad():
            output = network(reference["pixel_values"], reference["noise"])
        found = {"latent": output.latent, "pred": output.prediction}[wanted]
        return torch.allclose(found, reference[wanted], atol=1000 * ATOL_TOKENS, rtol=0)

    heads = next((count for count in divisors(widths[0]) if fits(count, 1, "latent")), 1)
    decoder_heads = next((n for n in divisors(widths[1]) if fits(heads, n, "pred")), 1)
    return build(path, heads, decoder_heads)


def build(path: Path, heads: int, decoder_heads: int):
    return load_teacher(str(path), num_heads=heads, decoder_num_heads=decoder_heads).network


def block_outputs(blocks, run) -> list[torch.Tensor]:
    """What each block returns while something runs."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, y: outputs.append(y)) for block in blocks]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return outputs


def close(found: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=0)


@pytest.fixture(params=SETS, ids="-".join)
def case(request, folder, load):
    """(network, reference, its frames) of one checkpoint."""
    frames, layout = request.param
    return load(frames, layout), Reference(folder / f"prithvi_tiny_{frames}.npz"), frames


@pytest.fixture
def masked(case):
    network, reference, _frames = case
    with torch.no_grad():
        return network(reference["pixel_values"], reference["noise"])


def test_normalisation(case):
    network, reference, _frames = case
    close(network.normalise(reference["hls_dn"] / 1e4), reference["pixel_values"], ATOL_TOKENS)


def test_position_tables(case):
    network, reference, _frames = case
    for name, stored in (
        ("pos_embed", network.encoder.pos_embed),
        ("decoder_pos_embed", network.decoder.decoder_pos_embed),
    ):
        close(stored, reference[name], ATOL_TABLE)
        computed = position_table(network.config.grid, stored.shape[-1])
        close(computed, reference[name], ATOL_TABLE)


def test_patch_embedding_with_positions(case):
    network, reference, _frames = case
    with torch.no_grad():
        close(network.encoder.embed(reference["pixel_values"]), reference["tokens_in"], ATOL_TOKENS)


def test_the_draw_of_a_mask_is_exact(case, masked):
    _network, reference, _frames = case
    for name in ("ids_keep", "ids_restore", "mask"):
        assert torch.equal(getattr(masked.mask, name), reference[name])


def test_mask_as_an_image(case, masked):
    network, reference, _frames = case
    x = reference["pixel_values"]
    pixels = network.patchify(x).shape[-1]
    image = network.unpatchify(
        masked.mask.mask[..., None].expand(-1, -1, pixels), network.token_grid(x)
    )
    assert torch.equal(image[:, 0], reference["mask_image"])


def test_masked_pass(case, masked):
    _network, reference, _frames = case
    close(masked.latent, reference["latent"], ATOL_TOKENS)
    close(masked.latent, reference["f64_latent"], ATOL_TOKENS)
    close(masked.prediction, reference["pred"], ATOL_TOKENS)


def test_blocks_of_the_masked_pass(case):
    network, reference, _frames = case
    run = lambda: network(reference["pixel_values"], reference["noise"])  # noqa: E731
    for blocks, prefix in (
        (network.encoder.blocks, "enc_block"),
        (network.decoder.decoder_blocks, "dec_block"),
    ):
        expected = reference.numbered(prefix)
        found = block_outputs(blocks, run)
        assert len(found) == len(expected)
        for output, wanted in zip(found, expected, strict=True):
            close(output, wanted, ATOL_TOKENS)


def test_losses(case, masked):
    network, reference, _frames = case
    x = reference["pixel_values"]
    for name, norm_pix in (("loss", False), ("loss_norm_pix", True)):
        loss = network.loss(x, masked, norm_pix)
        close(loss, reference[name], ATOL_LOSS)
        close(loss, reference[f"f64_{name}"], ATOL_LOSS)


def test_unmasked_encoder(case):
    network, reference, _frames = case
    x = reference["pixel_values"]
    blocks = block_outputs(network.encoder.blocks, lambda: network.encoder(x))
    for output, wanted in zip(blocks, reference.numbered("full_block"), strict=True):
        close(output, wanted, ATOL_TOKENS)
    with torch.no_grad():
        encoded, _ = network.encoder(x)
    close(encoded, reference["full_norm"], ATOL_TOKENS)
    close(encoded, reference["f64_full_norm"], ATOL_TOKENS)


def test_features_as_an_image(case):
    network, reference, _frames = case
    x = reference["pixel_values"]
    t, h, w = network.token_grid(x)
    with torch.no_grad():
        encoded, _ = network.encoder(x)
    image = rearrange(encoded[:, 1:], "b (t h w) d -> b (t d) h w", t=t, h=h, w=w)
    close(image, reference["feat_image_last"], ATOL_TOKENS)


def test_pixels_of_tokens(case, masked, folder):
    network, reference, frames = case
    images = Reference(folder / f"prithvi_tiny_{frames}_images.npz")
    x = reference["pixel_values"]
    assert torch.equal(network.patchify(x), images["target_tokens"])
    predicted = network.unpatchify(masked.prediction, network.token_grid(x))
    close(predicted, images["pred_image"], ATOL_TOKENS)


@pytest.mark.parametrize("frames", ["T1", "T3"])
def test_both_layouts_give_identical_outputs(load, folder, frames):
    x = Reference(folder / f"prithvi_tiny_{frames}.npz")["pixel_values"]
    new, old = load(frames, "new"), load(frames, "old")
    with torch.no_grad():
        assert torch.equal(new.encoder(x)[0], old.encoder(x)[0])


def test_one_frame_to_the_model_of_three_is_the_model_of_one(load, folder):
    x = Reference(folder / "prithvi_tiny_T1.npz")["pixel_values"]
    one, three = load("T1", "new"), load("T3", "new")
    with torch.no_grad():
        close(three.encoder(x)[0], one.encoder(x)[0], ATOL_TABLE)


@pytest.mark.parametrize("frames", ["T1", "T3"])
def test_features_are_those_of_the_masked_pass_on_one_date(load, folder, frames):
    network, reference = load(frames, "new"), Reference(folder / "prithvi_tiny_T1.npz")
    reflectance = reference["hls_dn"][:, :, 0] / 1e4
    _t, rows, cols = network.token_grid(reference["pixel_values"])
    for ids_keep, wanted in ((None, "full_norm"), (reference["ids_keep"], "latent")):
        [found] = network.features(
            reflectance,
            rows=rows,
            cols=cols,
            ids_keep=ids_keep,
            pixel_size_m=torch.full((len(reflectance),), 30.0),
            taps=(network.depth,),
        )
        close(found, reference[wanted][:, 1:], ATOL_TOKENS)


@pytest.mark.parametrize("layout", ["new", "old"])
def test_another_grid_gets_interpolated_positions(load, folder, layout):
    network = load("T1", layout)
    reference = Reference(folder / "prithvi_tiny_interp96.npz")
    x = reference["pixel_values"]
    grid = network.token_grid(x)
    table = positions_for(network.encoder.pos_embed, network.config.grid, grid)
    close(table, reference[f"pos_embed_{grid[1]}x{grid[2]}"], ATOL_TABLE)
    [first, *_rest] = block_outputs(network.encoder.blocks, lambda: network.encoder(x))
    close(first, reference["full_block0"], ATOL_TOKENS)
    with torch.no_grad():
        close(network.encoder(x)[0], reference["full_norm"], ATOL_TOKENS)


@pytest.mark.parametrize("layout", ["new", "old"])
def test_a_real_image(load, folder, layout):
    network = load("T1", layout)
    reference = Reference(folder / "prithvi_tiny_realhls_T1.npz")
    x = network.normalise(reference["hls_dn"] / 1e4)
    close(x, reference["pixel_values"], ATOL_TOKENS)
    x = reference["pixel_values"]
    with torch.no_grad():
        output = network(x, reference["noise"])
        encoded, _ = network.encoder(x)
    assert torch.equal(output.mask.mask, reference["mask"])
    assert torch.equal(output.mask.ids_restore, reference["ids_restore"])
    close(output.latent, reference["latent"], ATOL_TOKENS)
    close(output.prediction, reference["pred"], ATOL_TOKENS)
    close(network.loss(x, output), reference["loss"], ATOL_LOSS)
    close(encoded, reference["full_norm"], ATOL_TOKENS)


def test_the_share_kept_is_the_files(folder):
    reference = Reference(folder / "prithvi_tiny_T1.npz")
    drawn = draw_random_mask(reference["noise"], 0.75)
    assert drawn.ids_keep.shape == reference["ids_keep"].shape
