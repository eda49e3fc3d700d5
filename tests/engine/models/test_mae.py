"""The student: what it reads, what it predicts, how large it is, and that it learns."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.models.hyperkd import EncoderConfig, HyperKDEncoder
from engine.models.mae import (
    PRESETS,
    DecoderConfig,
    HyperKDStudent,
    compose,
    count_parameters,
    estimate_bytes,
    other_ids,
    tap_blocks,
)
from engine.models.patches import patchify, put_tokens, take_tokens, unpatchify

ENCODER = EncoderConfig(in_channels=7, patch_px=2, embed_dim=16, depth=3, num_heads=2)
DECODER = DecoderConfig(embed_dim=12, depth=2, num_heads=3)


def tiles(batch=2, height=8, width=6, channels=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator)


def kept(batch=2, count=3, tokens=12, seed=0):
    """Ascending ids that differ from sample to sample."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, tokens, generator=generator).argsort(dim=1)[:, :count].sort(1).values


def student(teacher_width=None, taps=(), encoder=ENCODER, decoder=DECODER, seed=0):
    torch.manual_seed(seed)
    return HyperKDStudent(encoder, decoder, teacher_width, taps)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)
)
def test_patches_put_together_are_the_image(batch, channels, rows, cols, patch_px):
    x = torch.rand(batch, channels, rows * patch_px, cols * patch_px)
    tokens = patchify(x, patch_px)
    assert tokens.shape == (batch, rows * cols, patch_px**2 * channels)
    assert torch.equal(unpatchify(tokens, patch_px, rows, cols), x)


def test_a_token_is_its_square_of_pixels_with_the_channel_fastest():
    x = tiles()
    token = patchify(x, 2)[1, 4]  # 3 tokens a row: row 1, column 1
    torch.testing.assert_close(token[:7], x[1, :, 2, 2])
    torch.testing.assert_close(token[7:14], x[1, :, 2, 3])
    torch.testing.assert_close(token[14:21], x[1, :, 3, 2])


def test_tokens_taken_and_put_back_are_the_same():
    tokens, ids = torch.rand(2, 12, 5), kept()
    assert torch.equal(put_tokens(tokens, ids, take_tokens(tokens, ids)), tokens)
    zeroed = put_tokens(tokens, ids, torch.zeros(2, 3, 5))
    assert (zeroed == 0).all(dim=2).sum(dim=1).tolist() == [3, 3]


def test_the_other_tokens_are_those_not_named():
    ids = torch.tensor([[0, 3], [1, 2]])
    assert other_ids(ids, 5).tolist() == [[1, 2, 4], [0, 3, 4]]


def test_visible_tokens_are_embedded_as_among_all():
    encoder = HyperKDEncoder(ENCODER)
    x, ids = tiles(), kept()
    torch.testing.assert_close(encoder.embed(x, ids), take_tokens(encoder.embed(x), ids))


@torch.inference_mode()
def test_taps_are_the_blocks_without_cls_and_the_last_is_normed():
    encoder = HyperKDEncoder(ENCODER).eval()
    x, ids = tiles(), kept()
    tokens, heard = encoder.encode(x, ids, taps=(3, 1, 1))
    torch.testing.assert_close(encoder(x, ids), tokens)
    assert torch.equal(heard[0], tokens[:, 1:])
    assert torch.equal(heard[1], heard[2])
    embedded = torch.cat([encoder.cls_token.expand(2, -1, -1), encoder.embed(x, ids)], dim=1)
    torch.testing.assert_close(heard[1], encoder.blocks[0](embedded)[:, 1:])


def test_hidden_pixels_decide_nothing():
    model, x, ids = student().eval(), tiles(), kept()
    hidden = put_tokens(patchify(x, 2), other_ids(ids, 12), torch.full((2, 9, 28), 99.0))
    changed = unpatchify(hidden, 2, 4, 3)
    torch.testing.assert_close(model(changed, ids).prediction, model(x, ids).prediction)


def test_the_prediction_is_of_the_hidden_tokens_in_their_order():
    model, x, ids = student(32, (3,)).eval(), tiles(), kept()
    output = model(x, ids)
    assert output.prediction.shape == (2, 9, 28)
    assert output.ids_masked.tolist() == other_ids(ids, 12).tolist()
    assert output.features[0].shape == (2, 3, 32)
    # Each token by itself would be predicted the same: the order of hidden tokens is no input.
    alone = model(x[1:], ids[1:]).prediction
    torch.testing.assert_close(alone[0], output.prediction[1])


def test_half_precision_predicts_nearly_the_same_and_has_a_gradient():
    model, x, ids = student(32, (3,)), tiles(), kept()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, ids)
    torch.testing.assert_close(
        output.prediction.float(), model(x, ids).prediction, atol=0.1, rtol=0
    )
    (output.prediction.float().square().mean() + output.features[0].float().mean()).backward()
    assert model.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


def test_the_composite_shows_what_was_visible_and_predicts_the_rest():
    model, x, ids = student().eval(), tiles(), kept()
    output = model(x, ids)
    tokens = patchify(compose(x, output), 2)
    assert torch.equal(take_tokens(tokens, ids), take_tokens(patchify(x, 2), ids))
    assert torch.equal(take_tokens(tokens, output.ids_masked), output.prediction)


def test_features_of_the_teachers_width_need_no_projector():
    model, x, ids = student(16, (1, 3)).eval(), tiles(), kept()
    heard = model.encoder.encode(x, ids, taps=(1, 3))[1]
    for feature, tap in zip(model(x, ids).features, heard, strict=True):
        assert torch.equal(feature, tap)
    assert not list(model.projectors.parameters())


@pytest.mark.parametrize(
    ("width", "taps", "message"),
    [(16, (0,), "blocks 1 to 3"), (16, (4,), "blocks 1 to 3"), (None, (3,), "width is needed")],
)
def test_impossible_taps_are_refused(width, taps, message):
    with pytest.raises(ValueError, match=message):
        student(width, taps)


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 1, 1), "at least 1"), ((6, 1, 2), "divisible by 4"), ((12, 1, 5), "its 5 heads")],
)
def test_an_impossible_decoder_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(*values)


def test_twenty_steps_on_one_batch_lower_the_error():
    model, x, ids = student(), tiles(8), kept(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    target = take_tokens(patchify(x, 2), other_ids(ids, 12))
    errors = []
    for _step in range(20):
        loss = (model(x, ids).prediction - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert errors[-1] < 0.8 * errors[0]


# hyperkd.md, section 2.2: encoder and decoder of the two sizes at the paper's 218 bands.
@pytest.mark.parametrize(("name", "millions"), [("vit_b", 182.2), ("d512", 120.5)])
def test_the_large_presets_have_the_parameters_they_should(name, millions):
    assert count_parameters(PRESETS[name], 218) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_can_be_made(preset):
    with torch.device("meta"):
        model = HyperKDStudent(preset.encoder(218), preset.decoder, 192, (preset.depth,))
    assert preset.tile_size_px % preset.patch_px == 0
    assert model.encoder.patch_embed.proj.weight.shape[1] == 218


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (3, 6, 9, 12)), (6, (2, 3, 5, 6)), (4, (1, 2, 3, 4)), (1, (1,) * 4)]
)
def test_quarters_end_at_the_last_block(depth, blocks):
    assert tap_blocks(depth, "quarters") == blocks
    assert tap_blocks(depth, "last") == (depth,)


class PeakBytes(TorchDispatchMode):
    """The largest sum of the memory of all tensors that were alive together."""

    def __init__(self):
        super().__init__()
        self.peak, self._now, self._alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage):
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self._now -= self._alive.pop(key)


@pytest.mark.parametrize(
    ("name", "batch", "channels"), [("laptop", 16, 177), ("laptop", 2, 30), ("small64", 2, 218)]
)
def test_the_estimate_of_the_memory_is_right_within_a_factor_of_two(name, batch, channels):
    preset = PRESETS[name]
    side, peak = preset.tile_size_px, PeakBytes()
    with peak:
        model = HyperKDStudent(preset.encoder(channels), preset.decoder, 128, (preset.depth,))
        optimiser = torch.optim.AdamW(model.parameters())
        for _step in range(2):  # AdamW's moments exist from the second
            x = torch.randn(batch, channels, side, side)
            ids = kept(batch, preset.num_tokens // 4, preset.num_tokens)
            output = model(x, ids)
            target = take_tokens(patchify(x, preset.patch_px), output.ids_masked)
            loss = (output.prediction - target).square().mean()
            (loss + output.features[0].square().mean()).backward()
            optimiser.step()
            optimiser.zero_grad()
    estimate = estimate_bytes(preset, channels, batch)
    assert peak.peak < estimate < 2 * peak.peak


def test_bfloat16_is_estimated_to_take_less_where_activations_dominate():
    preset = PRESETS["laptop"]
    assert estimate_bytes(preset, 100, 64, "bfloat16") < estimate_bytes(preset, 100, 64)
