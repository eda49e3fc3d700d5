import torch

from engine.models.transformer import Block, sincos_positions


def test_positions_tell_every_token_from_every_other():
    positions = sincos_positions(5, 7, 16)
    assert positions.shape == (35, 16)
    distance = torch.cdist(positions, positions) + torch.eye(35)
    assert distance.min() > 0.05


def test_half_of_a_position_is_the_column_and_half_the_row():
    grid = sincos_positions(4, 6, 8).reshape(4, 6, 8)
    torch.testing.assert_close(grid[0, :, :4], grid[3, :, :4])
    torch.testing.assert_close(grid[:, 0, 4:], grid[:, 5, 4:])


def test_a_larger_grid_begins_like_a_smaller_one():
    small = sincos_positions(2, 3, 8).reshape(2, 3, 8)
    large = sincos_positions(4, 6, 8).reshape(4, 6, 8)
    torch.testing.assert_close(large[:2, :3], small)


@torch.inference_mode()
def test_masked_tokens_change_nothing_for_the_others():
    torch.manual_seed(0)
    block = Block(8, 2).eval()
    x = torch.randn(1, 4, 8)
    valid = torch.tensor([[True, True, False, True]])
    changed = x.clone()
    changed[:, 2] = 100.0
    kept = valid[0]
    torch.testing.assert_close(block(changed, valid)[:, kept], block(x, valid)[:, kept])
