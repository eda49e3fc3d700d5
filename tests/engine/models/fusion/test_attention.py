"""How streams are fused: by an attention without effect, as published, or by a fixed one."""

from __future__ import annotations

import pytest
import torch

from engine.models.fusion.attention import (
    FUSIONS,
    GatedFusion,
    ScaledAttention,
    Streams,
    build_fusion,
    to_fine,
)

WIDTH, INNER, HEADS, RATIO = 6, 8, 2, 3


def made_streams(rows=5, cols=4, seed=0, batch=2):
    torch.manual_seed(seed)
    coarse, fine = (batch, WIDTH, rows, cols), (batch, WIDTH, rows * RATIO, cols * RATIO)
    return Streams(*(torch.randn(s, dtype=torch.double) for s in (coarse, fine, coarse, fine)))


def made_fusion(kind):
    torch.manual_seed(1)
    return build_fusion(kind, WIDTH, INNER, HEADS).double().eval()


def on_the_fine_grid(streams):
    return Streams(*(to_fine(stream, streams.msi) for stream in streams))


@pytest.mark.parametrize("kind", FUSIONS)
def test_convolving_before_repeating_is_the_same_as_after(kind):
    fusion, streams = made_fusion(kind), made_streams()
    if kind == "repaired":
        fusion.observe(streams)
    torch.testing.assert_close(fusion(streams), fusion(on_the_fine_grid(streams)))


def test_the_published_attention_ignores_queries_and_keys():
    fusion, streams = made_fusion("released"), made_streams()
    before = fusion(streams)
    torch.nn.init.normal_(fusion.attention.query.weight)
    torch.nn.init.normal_(fusion.attention.key.weight)
    assert torch.equal(fusion(streams), before)


def test_the_repaired_attention_does_not():
    fusion, streams = made_fusion("repaired"), made_streams()
    fusion.observe(streams)
    before = fusion(streams)
    torch.nn.init.normal_(fusion.attention.query.weight)
    fusion.forget()
    fusion.observe(streams)
    assert (fusion(streams) - before).abs().max() > 1e-3


def test_the_repaired_attention_is_the_written_out_one():
    """softmax over keys of t · cosine over the pixels of the fine grid, in plain words."""
    attention = ScaledAttention(WIDTH, INNER, HEADS).double()
    streams = made_streams()
    fine = on_the_fine_grid(streams)
    found = attention.train().attend(streams)
    d = INNER // HEADS
    for head in range(HEADS):
        own = slice(head * d, (head + 1) * d)
        query = attention.query(fine.hsi)[:, own].transpose(0, 1).flatten(1)
        key = attention.key(fine.msi)[:, own].transpose(0, 1).flatten(1)
        cosine = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(key).T
        matrix = (attention.temperature[head] * cosine).softmax(dim=-1)
        value = attention.value(streams.mixed_coarse)[:, own]
        torch.testing.assert_close(
            found[:, own], torch.einsum("qv,bvhw->bqhw", matrix, value), rtol=1e-6, atol=1e-6
        )


def test_the_repaired_attention_is_that_of_a_scene_not_of_a_tile():
    fusion, streams = made_fusion("repaired"), made_streams()
    fusion.observe(streams)
    whole = fusion(streams)
    tile = Streams(
        streams.hsi[..., :2, :],
        streams.msi[..., : 2 * RATIO, :],
        streams.mixed_coarse[..., :2, :],
        streams.mixed_fine[..., : 2 * RATIO, :],
    )
    torch.testing.assert_close(fusion(tile), whole[..., : 2 * RATIO, :])


def test_batches_of_any_size_add_up_to_the_statistics_of_all():
    fusion, streams = made_fusion("repaired"), made_streams(batch=3)
    fusion.observe(streams)
    at_once = fusion.attention.attention()
    fusion.forget()
    for part in (slice(0, 2), slice(2, 3)):
        fusion.observe(Streams(*(stream[part] for stream in streams)))
    torch.testing.assert_close(fusion.attention.attention(), at_once)


def test_the_mean_of_training_steps_is_kept_for_afterwards():
    attention = ScaledAttention(WIDTH, INNER, HEADS).double()
    streams = made_streams()
    for _ in range(3):
        trained = attention.train()(streams)
    torch.testing.assert_close(attention.eval()(streams), trained)


def test_temperature_queries_and_keys_learn():
    attention = ScaledAttention(WIDTH, INNER, HEADS).double().train()
    attention(made_streams()).square().sum().backward()
    for parameter in (attention.temperature, attention.query.weight, attention.key.weight):
        assert parameter.grad.abs().max() > 0


def test_statistics_go_with_the_weights():
    fusion, streams = made_fusion("repaired"), made_streams()
    fusion.observe(streams)
    other = made_fusion("repaired")
    other.load_state_dict(fusion.state_dict())
    assert torch.equal(other(streams), fusion(streams))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        build_fusion("repaired", WIDTH, INNER, 3)


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ValueError, match="no fusion 'mean'; there are released, repaired"):
        build_fusion("mean", WIDTH, INNER, HEADS)


def test_a_fusion_without_a_gate_says_so():
    with pytest.raises(ValueError, match="no gate"):
        GatedFusion(WIDTH, gated=False).gate_logits(made_streams())
