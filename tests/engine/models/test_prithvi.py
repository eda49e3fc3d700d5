from __future__ import annotations

import pytest
import torch

from engine.models.prithvi import (
    PrithviConfig,
    PrithviMAE,
    draw_random_mask,
    position_table,
    positions_for,
)

BANDS = 5


def tiny_config(**changes) -> PrithviConfig:
    settings = {
        "in_channels": BANDS,
        "img_size": 32,
        "patch_px": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 4,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    }
    return PrithviConfig(**{**settings, **changes})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PrithviMAE(tiny_config()).eval()


def image(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def features(model, reflectance, rows, cols, ids_keep=None, taps=None):
    return model.features(
        reflectance,
        rows=rows,
        cols=cols,
        ids_keep=ids_keep,
        pixel_size_m=torch.full((len(reflectance),), 30.0),
        taps=(model.depth,) if taps is None else taps,
    )


@pytest.mark.parametrize("width", [16, 64, 768])
def test_positions_of_one_date_are_the_first_of_three(width):
    one, three = position_table((1, 14, 14), width), position_table((3, 14, 14), width)
    assert torch.equal(one, three[:, :197])


def test_cls_has_no_position():
    assert not position_table((2, 3, 3), 32)[:, 0].any()


def test_no_two_places_share_a_position():
    table = position_table((2, 3, 5), 64)[0]
    assert len(torch.unique(table, dim=0)) == 1 + 2 * 3 * 5


def test_a_place_is_coded_as_column_then_row_then_date():
    [table] = position_table((2, 3, 5), 16)
    places = table[1:].reshape(2, 3, 5, 16)
    assert torch.equal(places[0, 0, :, :6], places[1, 2, :, :6])  # the column's code
    assert torch.equal(places[0, :, 0, 6:12], places[1, :, 4, 6:12])  # the row's
    assert torch.equal(places[:, 0, 0, 12:], places[:, 2, 4, 12:])  # the date's


def test_fewer_dates_take_the_stored_positions():
    stored = torch.rand(1, 1 + 3 * 4, 32)
    assert torch.equal(positions_for(stored, (3, 2, 2), (1, 2, 2)), stored[:, :5])


def test_more_dates_than_stored_are_computed():
    table = position_table((1, 2, 2), 32)
    found = positions_for(table, (1, 2, 2), (3, 2, 2))
    assert torch.equal(found, position_table((3, 2, 2), 32))


def test_corners_of_another_grid_keep_their_positions():
    table = position_table((1, 4, 4), 32)
    found = positions_for(table, (1, 4, 4), (1, 7, 9))[0, 1:].reshape(7, 9, 32)
    stored = table[0, 1:].reshape(4, 4, 32)
    torch.testing.assert_close(found[[0, 0, -1, -1], [0, -1, 0, -1]],
                               stored[[0, 0, -1, -1], [0, -1, 0, -1]])  # fmt: skip


def test_patchify_and_back(model):
    x = image(2, BANDS, 3, 16, 40)
    tokens = model.patchify(x)
    assert tokens.shape == (2, 3 * 2 * 5, 8 * 8 * BANDS)
    assert torch.equal(model.unpatchify(tokens, model.token_grid(x)), x)


def test_the_channel_is_fastest_in_a_token(model):
    x = image(1, BANDS, 1, 16, 16)
    assert torch.equal(model.patchify(x)[0, 0, :BANDS], x[0, :, 0, 0, 0])


def test_a_quarter_of_the_tokens_of_the_paper_is_kept():
    drawn = draw_random_mask(image(3, 196), 0.75)
    assert drawn.ids_keep.shape == (3, 49)
    assert torch.equal(drawn.mask.sum(dim=1), torch.full((3,), 147.0))


def test_tokens_with_the_smallest_noise_are_kept():
    drawn = draw_random_mask(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    assert drawn.ids_keep.tolist() == [[1, 3]]
    assert drawn.mask.tolist() == [[1.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("ratio", [1.0, 0.99, -0.5])
def test_a_mask_must_keep_some_and_no_more_than_all(ratio):
    with pytest.raises(ValueError, match=rf"mask ratio of {ratio} keeps"):
        draw_random_mask(image(1, 16), ratio)


def test_hidden_pixels_change_no_kept_feature(model):
    x = image(1, BANDS, 32, 32)
    ids_keep = torch.tensor([[0, 5, 15]])
    changed = x.clone()
    changed[..., :8, 8:] = 0.9  # tokens 1 to 3
    first, second = (features(model, part, 4, 4, ids_keep)[0] for part in (x, changed))
    assert torch.equal(first, second)


def test_features_stand_in_the_order_of_the_ids(model):
    x = image(1, BANDS, 32, 32)
    [forward] = features(model, x, 4, 4, torch.tensor([[2, 7, 9]]))
    [backward] = features(model, x, 4, 4, torch.tensor([[9, 7, 2]]))
    torch.testing.assert_close(forward, backward.flip(1), atol=1e-6, rtol=0)


def test_all_ids_are_the_same_as_none(model):
    x = image(2, BANDS, 32, 32)
    everything = torch.arange(16).expand(2, -1)
    assert torch.equal(features(model, x, 4, 4)[0], features(model, x, 4, 4, everything)[0])


@pytest.mark.parametrize(("side_px", "rows", "cols"), [(32, 4, 4), (24, 12, 12), (64, 3, 3)])
def test_features_follow_the_students_grid(model, side_px, rows, cols):
    [found] = features(model, image(2, BANDS, side_px, side_px), rows, cols)
    assert found.shape == (2, rows * cols, 32)
    assert bool(found.isfinite().all())


def test_features_of_an_oblong_image(model):
    [found] = features(model, image(1, BANDS, 16, 48), 2, 6)
    assert found.shape == (1, 12, 32)


def test_a_tap_is_its_blocks_output_and_the_last_one_is_normed(model):
    outputs = []
    hook = model.encoder.blocks[0].register_forward_hook(lambda _m, _i, y: outputs.append(y))
    first, last = features(model, image(1, BANDS, 32, 32), 4, 4, taps=(1, 3))
    hook.remove()
    assert torch.equal(first, outputs[0][:, 1:])
    torch.testing.assert_close(last.mean(dim=-1), torch.zeros(1, 16), atol=1e-5, rtol=0)


def test_features_hold_no_graph(model):
    assert not features(model, image(1, BANDS, 32, 32), 4, 4)[0].requires_grad


def test_lower_precision_keeps_the_residual_stream_in_float32(model):
    x = image(1, BANDS, 32, 32)
    plain = features(model, x, 4, 4)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = features(model, x, 4, 4)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, atol=0.05, rtol=0)


def test_the_teacher_normalises_by_itself(model):
    x = image(1, BANDS, 32, 32)
    plain = features(model, x, 4, 4)[0]
    model.band_mean.fill_(0.25)
    model.band_std.fill_(0.5)
    torch.testing.assert_close(features(model, 0.25 + 0.5 * x, 4, 4)[0], plain, atol=1e-5, rtol=0)


def test_other_bands_are_refused(model):
    with pytest.raises(ValueError, match="reads 5 bands, not 6"):
        features(model, image(1, 6, 32, 32), 4, 4)


@pytest.mark.parametrize("tap", [0, 4])
def test_a_block_that_is_not_there_is_refused(model, tap):
    with pytest.raises(ValueError, match=f"blocks 1 to 3, not {tap}"):
        features(model, image(1, BANDS, 32, 32), 4, 4, taps=(tap,))


def test_the_order_of_kept_ids_changes_no_prediction(model):
    x = image(1, BANDS, 1, 32, 32)
    with torch.no_grad():
        forward = model.reconstruct(x, torch.tensor([[1, 4, 11]]))[1]
        shuffled = model.reconstruct(x, torch.tensor([[11, 1, 4]]))[1]
    torch.testing.assert_close(forward, shuffled, atol=1e-6, rtol=0)


def test_the_loss_looks_at_removed_tokens_only(model):
    x = image(1, BANDS, 1, 32, 32)
    output = model(x, noise=image(1, 16))
    before = model.loss(x, output)
    with torch.no_grad():
        output.prediction[output.mask.mask == 0] += 7.0
        assert torch.equal(model.loss(x, output), before)
        output.prediction[output.mask.mask == 1] += 7.0
        assert model.loss(x, output) > before + 10


def test_a_perfect_prediction_costs_nothing(model):
    x = image(1, BANDS, 1, 32, 32)
    output = model(x)
    with torch.no_grad():
        output.prediction.copy_(model.patchify(x))
    assert model.loss(x, output).item() == 0.0


def test_every_weight_learns(model):
    x = image(2, BANDS, 1, 32, 32)
    model.loss(x, model(x)).backward()
    still = [name for name, weight in model.named_parameters() if not weight.grad.abs().sum() > 0]
    assert still == []


def test_twenty_steps_on_one_batch_lower_the_loss(model):
    x, noise = image(2, BANDS, 1, 32, 32), image(2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _step in range(20):
        loss = model.loss(x, model(x, noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 30}, "30 px is no whole number of 8 px patches"),
        ({"img_size": 4}, "4 px is no whole number of 8 px patches"),
        ({"embed_dim": 24}, "encoder's token width 24 must be divisible by 16"),
        ({"num_heads": 5}, "divisible by 16 .* and by its 5 heads"),
        ({"num_heads": 0}, "its 0 heads"),
        ({"decoder_embed_dim": 8}, "decoder's token width 8"),
        ({"depth": 0}, "sizes of at least 1"),
        ({"num_frames": 0}, "sizes of at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)
