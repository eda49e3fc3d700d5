"""The frozen encoder: what is added to tokens, what taps and the hook see, and in which order."""

from __future__ import annotations

import pytest
import torch

from engine.models.spectralx.encodings import spatial_encoding
from engine.models.transformer import sincos_positions
from engine.models.vit import ViT, ViTBlock, ViTConfig, _turn_last
from engine.models.vit_positions import resized_positions, rope_angles, rotate

WIDTH, GRID = 32, 4


def config_of(**changes) -> ViTConfig:
    settings = {"embed_dim": WIDTH, "depth": 3, "num_heads": 4, "patch_px": 8, "grid": GRID}
    return ViTConfig(**{**settings, **changes})


def make_vit(seed=0, **changes) -> ViT:
    torch.manual_seed(seed)
    return ViT(config_of(**changes)).eval()


def draw_tokens(rows=GRID, cols=GRID, seed=1):
    return torch.randn(2, rows * cols, WIDTH, generator=torch.Generator().manual_seed(seed))


def encode(vit, tokens, rows=GRID, cols=GRID, **options):
    with torch.no_grad():
        return vit(tokens, rows=rows, cols=cols, **options)


@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
def test_taps_hold_the_patch_tokens_only(prefix_tokens):
    vit = make_vit(prefix_tokens=prefix_tokens)
    output = encode(vit, draw_tokens(), taps=(0, 2))
    assert output.tokens.shape == (2, prefix_tokens + 16, WIDTH)
    assert [tap.shape for tap in output.taps] == [(2, 16, WIDTH)] * 2
    assert torch.equal(output.taps[-1], output.tokens[:, prefix_tokens:])


def test_what_a_hook_returns_is_the_tap_and_goes_on():
    vit, tokens = make_vit(), draw_tokens()
    called = []

    def hook(index, patches):
        called.append(index)
        return patches + 1

    output = encode(vit, tokens, taps=(0, 1), hook=hook)
    plain = encode(vit, tokens, taps=(0,))
    assert called == [0, 1]
    assert torch.equal(output.taps[0], plain.taps[0] + 1)
    x = torch.cat([vit.prefix.expand(2, -1, -1) + vit.pos_embed[:, :1], tokens], dim=1)
    x[:, 1:] += vit.pos_embed[:, 1:]
    with torch.no_grad():
        x = vit.blocks[0](x)
        x[:, 1:] += 1
        x = vit.blocks[1](x)
        x[:, 1:] += 1
        x = vit.blocks[2](x)
    torch.testing.assert_close(output.tokens, x)


def test_tokens_are_left_out_after_positions_were_added():
    vit, tokens = make_vit(positions="stored"), draw_tokens()
    ids_keep = torch.tensor([[9, 2, 5], [0, 15, 3]])
    kept = encode(vit, tokens, ids_keep=ids_keep).tokens
    placed = tokens + vit.pos_embed[:, 1:]
    chosen = torch.stack([image[ids] for image, ids in zip(placed, ids_keep, strict=True)])
    x = torch.cat([(vit.prefix + vit.pos_embed[:, :1]).expand(2, -1, -1), chosen], dim=1)
    with torch.no_grad():
        for block in vit.blocks:
            x = block(x)
    torch.testing.assert_close(kept, x)


def test_the_stored_table_is_added_as_it_is_on_its_own_grid():
    vit = make_vit(positions="stored")
    vit.pos_embed.normal_()
    prefix, patches = vit.position_codes("stored", GRID, GRID, 1.0)
    assert torch.equal(torch.cat([prefix, patches]), vit.pos_embed[0])


def test_fixed_positions_are_computed_for_other_grids():
    vit = make_vit(positions="sincos")
    vit.pos_embed += 1  # what is not computed
    _prefix, patches = vit.position_codes("sincos", 3, 7, 1.0)
    assert torch.equal(patches, sincos_positions(3, 7, WIDTH))


@pytest.mark.parametrize("corners", [True, False])
def test_stored_positions_are_resized_for_other_grids(corners):
    vit = make_vit(positions="stored", align_corners=corners)
    vit.pos_embed.normal_()
    prefix, patches = vit.position_codes("stored", 7, 7, 1.0)
    table = vit.pos_embed[0, 1:]
    assert torch.equal(prefix, vit.pos_embed[0, :1])
    assert torch.equal(patches, resized_positions(table, GRID, 7, 7, corners=corners))
    if corners:  # 3 steps become 6, so that every second token stands where one stood
        found = patches.reshape(7, 7, WIDTH)[::2, ::2]
        torch.testing.assert_close(found, table.reshape(GRID, GRID, WIDTH))


def test_a_step_multiplies_the_coordinates():
    by_four = spatial_encoding(2, 2, WIDTH, 4.0)
    plain = spatial_encoding(5, 5, WIDTH, 1.0).reshape(5, 5, WIDTH)[::4, ::4].reshape(4, WIDTH)
    torch.testing.assert_close(by_four, plain)
    torch.testing.assert_close(spatial_encoding(3, 5, WIDTH, 1.0), sincos_positions(3, 5, WIDTH))


def test_scaled_positions_give_cls_nothing():
    vit = make_vit(positions="stored")
    prefix, patches = vit.position_codes("gsd", GRID, GRID, 10.0)
    assert prefix is None
    assert torch.equal(patches, spatial_encoding(GRID, GRID, WIDTH, 10.0))


def test_a_call_may_take_other_positions_than_the_settings():
    vit, tokens = make_vit(positions="stored"), draw_tokens()
    assert not torch.equal(encode(vit, tokens, positions="gsd").tokens, encode(vit, tokens).tokens)
    by_step = encode(vit, tokens, positions="gsd", step=3.0).tokens
    assert not torch.equal(by_step, encode(vit, tokens, positions="gsd").tokens)


def test_without_positions_the_order_of_tokens_says_nothing():
    vit, tokens = make_vit(positions="none"), draw_tokens()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    shuffled = encode(vit, tokens[:, order]).tokens
    straight = encode(vit, tokens).tokens
    torch.testing.assert_close(shuffled[:, 1:], straight[:, 1:][:, order])


def test_rotations_tell_the_distance_only():
    """Queries and keys of two tokens agree as far as they stand apart, wherever they stand."""
    angles = rope_angles(6, 6, torch.tensor([1.0, 10.0], dtype=torch.float64)).reshape(6, 6, 8)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def agreement(first, second):
        turned = [
            rotate(x.reshape(1, 1, 1, 8), angles[place]).flatten()
            for x, place in ((q, first), (k, second))
        ]
        return turned[0] @ turned[1]

    torch.testing.assert_close(agreement((0, 1), (2, 4)), agreement((3, 2), (5, 5)))
    assert abs(agreement((0, 1), (2, 4)) - agreement((0, 1), (2, 2))) > 0.01


def test_prefix_tokens_are_not_turned():
    vit = make_vit(positions="rope", prefix_tokens=2, depth=1)
    x = torch.randn(1, 2 + 16, WIDTH)
    angles = rope_angles(GRID, GRID, vit.rope_periods)[None, None]
    with torch.no_grad():
        q, _k, _v = vit.blocks[0].attn.qkv(x).chunk(3, dim=-1)
        heads = q.reshape(1, 18, 4, 8).transpose(1, 2)
        turned = _turn_last(heads, angles)
    assert torch.equal(turned[:, :, :2], heads[:, :, :2])
    assert not torch.equal(turned[:, :, 2:], heads[:, :, 2:])


def test_the_final_norm_is_on_taps_where_it_is_asked_for():
    vit, tokens = make_vit(final_norm_on_taps=True), draw_tokens()
    output = encode(vit, tokens, taps=(2,))
    with torch.no_grad():
        assert torch.equal(output.taps[0], vit.norm(output.tokens[:, 1:]))


def test_a_branch_is_left_out_for_some_images_in_training_only():
    block = ViTBlock(config_of(), drop_path=0.25)
    branch = torch.ones(4000, 1, 1)
    torch.manual_seed(0)
    dropped = block.train()._drop(branch)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert dropped.mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(block.eval()._drop(branch), branch)


def test_later_blocks_are_left_out_more_often():
    vit = make_vit(drop_path=0.2)
    assert [block.drop_path for block in vit.blocks] == pytest.approx([0, 0.1, 0.2])


def test_a_replaced_linear_layer_is_used():
    vit, tokens = make_vit(), draw_tokens()
    before = encode(vit, tokens, taps=(0, 1)).taps
    vit.blocks[1].mlp.fc2 = torch.nn.Linear(4 * WIDTH, WIDTH)
    after = encode(vit, tokens, taps=(0, 1)).taps
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("taps", [(2, 1), (1, 1), (3,), (-1,)])
def test_taps_that_are_not_there_are_refused(taps):
    with pytest.raises(ValueError, match="ascending numbers of blocks, 0 to 2, not"):
        encode(make_vit(), draw_tokens(), taps=taps)


@pytest.mark.parametrize("shape", [(2, 15, WIDTH), (2, 16, WIDTH + 1), (16, WIDTH)])
def test_tokens_of_another_grid_or_width_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 16, 32\) tokens of this grid, not"):
        encode(make_vit(), torch.zeros(shape))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("stored", "no table for stored"), ("sincos", "no table for sincos")],
)
def test_positions_that_the_file_has_not_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        encode(make_vit(positions="rope"), draw_tokens(), positions=kind)


def test_rotations_need_periods():
    with pytest.raises(ValueError, match="no periods for rotary"):
        encode(make_vit(), draw_tokens(), positions="rope")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "sizes of at least 1"),
        ({"prefix_tokens": -1}, "sizes of at least 1"),
        ({"num_heads": 5}, "by the 5 heads"),
        ({"embed_dim": 24, "positions": "galileo"}, "divisible by 16"),
        ({"num_heads": 16, "positions": "rope"}, "width is divisible by 4, not 2"),
        ({"drop_path": 1.0}, "share from 0 to below 1, not 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)
