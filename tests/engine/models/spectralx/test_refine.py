from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.models.spectralx.refine import RefiningAdapter
from engine.models.spectralx.tokenizer import LowLevel

D, STEM, GRID, SIDE = 32, 24, 4, 8
MATCHES = ("spatial_match.", "spectral_match.")


def make(grid=GRID, side=SIDE, width=D, stem=STEM, **settings) -> RefiningAdapter:
    torch.manual_seed(0)
    return RefiningAdapter(width, stem, grid, side, **settings).eval()


def normal(*shape, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch=2, grid=GRID, side=SIDE, width=D, stem=STEM) -> tuple[torch.Tensor, LowLevel]:
    low = LowLevel(normal(batch, side**2, stem, seed=2), normal(batch, stem, side**2, seed=3))
    return normal(batch, grid**2, width), low


def count(adapter: nn.Module) -> int:
    return sum(weight.numel() for weight in adapter.parameters())


def learned(adapter: nn.Module) -> set[str]:
    return {name for name, w in adapter.named_parameters() if w.grad is not None and w.grad.any()}


def published(**settings) -> RefiningAdapter:
    with torch.device("meta"):
        return RefiningAdapter(1024, 512, 14, 28, **settings)


def test_published_counts_of_parameters():
    assert count(published(keep_unused=True)) == 3_671_665
    assert count(published()) == 3_417_257
    assert count(published(match="soft")) == 3_417_257


def test_published_counts_of_the_parts():
    adapter = published(keep_unused=True)
    parts = {
        "spatial_match": 526_336,
        "spectral_match": 1_018_656,
        "norm": 1_024,
        "unused_spatial": 153_860,
        "unused_spectral": 100_548,
        "refine_spatial": 1_770_496,
        "refine_spectral": 100_744,
    }
    assert {name: count(getattr(adapter, name)) for name in parts} == parts
    assert adapter.scale.numel() == 1


@pytest.mark.parametrize("width", [64, 128, 192])
@pytest.mark.parametrize(("grid", "side"), [(16, 16), (8, 16), (6, 12), (4, 4), (1, 2)])
@pytest.mark.parametrize("match", ["hard", "soft"])
def test_small_geometries(width, grid, side, match):
    adapter = make(grid, side, width, width // 2, match=match)
    x, low = inputs(1, grid, side, width, width // 2)
    with torch.no_grad():
        found = adapter(x, low)
    assert found.shape == x.shape
    assert bool(found.isfinite().all())


def test_one_chip_is_as_good_as_many():
    adapter, (x, low) = make(scale_init=1.0), inputs(3)
    with torch.no_grad():
        together = adapter(x, low)
        alone = adapter(x[1:2], LowLevel(low.spatial[1:2], low.spectral[1:2]))
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("match", ["hard", "soft"])
def test_a_scale_of_zero_changes_nothing(match):
    adapter, (x, low) = make(match=match, scale_init=0.0), inputs()
    assert torch.equal(adapter(x, low), x)


def test_the_scale_starts_small():
    assert make().scale.item() == pytest.approx(0.01)


@pytest.mark.parametrize("match", ["hard", "soft"])
def test_a_refined_half_is_scaled_up_by_one_gain_a_token(match):
    adapter, (x, low) = make(match=match, scale_init=1.0), inputs()
    with torch.no_grad():
        gain = adapter(x, low) / x - 1
    for half in gain.chunk(2, dim=-1):
        torch.testing.assert_close(half, half[..., :1].expand_as(half), atol=1e-4, rtol=1e-3)
        assert (half > -1e-5).all()
        assert (half.amax(dim=1) - half.amin(dim=1) > 1e-4).any()


def test_each_place_takes_the_token_that_looks_at_it_most():
    adapter, (x, low) = make(), inputs(1)
    spatial = x.chunk(2, dim=-1)[0]
    match = adapter.spatial_match
    with torch.no_grad():
        queries = match.to_q(match.norm_queries(spatial[0]))
        keys = match.to_kv(match.norm_features(low.spatial[0]))[:, : match.head_dim]
        looks = (queries @ keys.T / match.head_dim**0.5).softmax(dim=1)  # (N, L)
        found = adapter.choose(match, match.keys(low.spatial), spatial)
    assert found.tolist() == [looks.argmax(dim=0).tolist()]
    assert found.unique().numel() > 3


def test_looks_are_shares_and_not_scores():
    """Of two tokens with equal scores for a place the one with fewer looks elsewhere wins."""
    adapter = make()
    match, tokens = adapter.spatial_match, torch.zeros(1, 2, D // 2)
    scores = torch.tensor([[[2.0, 9.0, 9.0], [2.0, 0.0, 0.0]]])
    match.scores = lambda keys, queries: scores
    assert adapter.choose(match, torch.zeros(1, 3, 1), tokens)[0, 0] == 1


def test_what_is_picked_is_the_chosen_tokens_normed():
    adapter, (x, low) = make(), inputs()
    nn.init.normal_(adapter.norm.weight)
    spectral = x.chunk(2, dim=-1)[1]
    with torch.no_grad():
        keys = adapter.spectral_match.keys(low.spectral)
        index = adapter.choose(adapter.spectral_match, keys, spectral)
        picked = adapter.pick(adapter.spectral_match, keys, spectral)
        for chip in range(2):
            expected = adapter.norm(spectral[chip, index[chip]])
            torch.testing.assert_close(picked[chip], expected)


def test_a_soft_match_of_sharp_scores_is_the_best_scores_token():
    adapter, (x, low) = make(match="soft"), inputs()
    spatial = x.chunk(2, dim=-1)[0]
    match = adapter.spatial_match
    with torch.no_grad():
        match.to_q.weight.mul_(1e4)
        keys = match.keys(low.spatial)
        best = match.scores(keys, spatial).argmax(dim=1)
        picked = adapter.pick(match, keys, spatial)
        expected = adapter.norm(spatial[0, best[0]])
    torch.testing.assert_close(picked[0], expected, atol=1e-3, rtol=1e-3)


def test_hard_matches_get_no_gradient():
    adapter, (x, low) = make(keep_unused=True, scale_init=1.0).train(), inputs()
    x, spatial = x.requires_grad_(), low.spatial.requires_grad_()
    adapter(x, low).square().sum().backward()
    still = {name for name, weight in adapter.named_parameters() if weight.grad is None}
    assert still == {
        n for n, _w in adapter.named_parameters() if n.startswith((*MATCHES, "unused"))
    }
    assert "scale" in learned(adapter)
    assert x.grad.any()
    assert spatial.grad is None


def test_soft_matches_learn_and_so_does_the_tokenizer():
    adapter, (x, low) = make(match="soft", scale_init=1.0).train(), inputs()
    features = low.spatial.requires_grad_(), low.spectral.requires_grad_()
    adapter(x, low).square().sum().backward()
    still = {name for name, _weight in adapter.named_parameters()} - learned(adapter)
    # What a match's query would answer is not asked for, as published.
    assert still == {f"{match}to_out.weight" for match in MATCHES}
    assert all(feature.grad.any() for feature in features)


@pytest.mark.parametrize("match", ["hard", "soft"])
def test_keys_are_made_once_for_all_blocks(match):
    adapter, (x, low) = make(match=match), inputs()
    assert torch.equal(adapter(x, low, adapter.keys(low)), adapter(x, low))


def test_lower_precision_chooses_the_same_tokens():
    adapter, (x, low) = make(scale_init=1.0), inputs()
    with torch.no_grad():
        exact = adapter.choose(adapter.spatial_match, adapter.keys(low).spatial, x[..., : D // 2])
        with torch.autocast("cpu", torch.bfloat16):
            keys = adapter.keys(low)
            found = adapter.choose(adapter.spatial_match, keys.spatial, x[..., : D // 2])
            refined = adapter(x, low)
    assert torch.equal(found, exact)
    torch.testing.assert_close(refined.float(), adapter(x, low), atol=0.05, rtol=0.02)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((30, STEM, 4, 8), "divisible by 4, not 30"), ((D, STEM, 4, 12), "4 tokens a side, not 12")],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        RefiningAdapter(*sizes)
