from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from engine.models.spectralx.tokenizer import (
    ConvTokenizer,
    HyperTokenizer,
    TokenizerConfig,
    largest_divisor,
    stem_widths,
)

BANDS = 5
WAVELENGTH_NM = (450.0, 610.0, 900.0, 1650.0, 2200.0)


def config(**changes) -> TokenizerConfig:
    settings = {
        "in_channels": BANDS,
        "wavelength_nm": WAVELENGTH_NM,
        "embed_dim": 64,
        "chip_px": 16,
        "patch_px": 4,
    }
    return TokenizerConfig(**{**settings, **changes})


def make(**changes) -> HyperTokenizer:
    torch.manual_seed(0)
    return HyperTokenizer(config(**changes)).eval()


def chips(count=2, side=16, bands=BANDS, seed=1) -> torch.Tensor:
    return torch.rand(count, bands, side, side, generator=torch.Generator().manual_seed(seed))


def count(parameters) -> int:
    return sum(weight.numel() for weight in parameters)


def published(in_channels: int) -> HyperTokenizer:
    with torch.device("meta"):
        return HyperTokenizer(TokenizerConfig(in_channels, (500.0,), 1024))


@pytest.mark.parametrize(
    ("in_channels", "core", "adapter"),
    [(13, 22_205_744, 267_536), (24, 22_206_448, 270_352), (32, 22_206_960, 272_400)],
)
def test_published_counts_of_parameters(in_channels, core, adapter):
    tokenizer = published(in_channels)
    assert count(tokenizer.core_parameters()) == core
    assert count(tokenizer.adapter_parameters()) == adapter
    assert count(tokenizer.parameters()) == core + adapter


def test_published_counts_of_the_cores_parts():
    core = published(32).core
    parts = {
        "stem": 1_532_160,
        "spatial_block": 3_152_384,
        "spectral_block": 7_386_064,
        "spatial_match": 526_336,
        "spectral_match": 1_018_656,
    }
    assert {name: count(getattr(core, name).parameters()) for name in parts} == parts
    assert core.spatial_query.numel() + core.spectral_query.numel() == 200_704
    feed_forward = (core.norm, core.fc1, core.fc2)
    assert sum(count(part.parameters()) for part in feed_forward) == 8_390_656


def test_published_sizes_follow_from_the_chip_and_the_patch():
    found = TokenizerConfig(32, (500.0,), 1024)
    assert (found.grid, found.stem_side, found.stem_width, found.halvings) == (14, 28, 512, 3)
    assert stem_widths(512, 3) == [64, 128, 256, 512]


@pytest.mark.parametrize("embed_dim", [64, 128, 192])
@pytest.mark.parametrize(
    ("chip_px", "patch_px", "side"),
    [(16, 1, 16), (24, 1, 24), (16, 2, 16), (24, 2, 24), (16, 4, 8), (24, 4, 12), (32, 4, 16),
     (32, 8, 8), (24, 8, 6), (32, 16, 4), (64, 32, 4)],
)  # fmt: skip
def test_small_geometries(embed_dim, chip_px, patch_px, side):
    tokenizer = make(embed_dim=embed_dim, chip_px=chip_px, patch_px=patch_px)
    with torch.no_grad():
        found = tokenizer(chips(2, chip_px))
    grid = chip_px // patch_px
    assert found.tokens.shape == (2, grid**2, embed_dim)
    assert found.low.spatial.shape == (2, side**2, embed_dim // 2)
    assert found.low.spectral.shape == (2, embed_dim // 2, side**2)
    assert bool(found.tokens.isfinite().all())


def test_a_map_as_wide_as_the_tokens_saves_work():
    wide, narrow = make(), make(map_scale=1)
    assert narrow(chips()).low.spatial.shape == (2, 16, 32)
    assert narrow(chips()).tokens.shape == wide(chips()).tokens.shape
    assert count(narrow.core_parameters()) < 0.8 * count(wide.core_parameters())


def test_any_number_of_bands_and_one():
    for bands in (1, 3, 120):
        tokenizer = make(in_channels=bands, wavelength_nm=tuple(range(400, 400 + bands)))
        assert tokenizer(chips(bands=bands)).tokens.shape == (2, 16, 64)


def test_a_wavelength_list_of_another_length_is_allowed_as_published():
    assert make(wavelength_nm=(500.0, 600.0))(chips()).tokens.shape == (2, 16, 64)


def test_the_stem_may_be_wider_than_half_a_token():
    found = make(stem_dim=96)(chips())
    assert found.low.spectral.shape == (2, 96, 64)
    assert found.tokens.shape == (2, 16, 64)


def test_the_wavelengths_change_the_tokens():
    first, second = make(), make(wavelength_nm=WAVELENGTH_NM[::-1])
    assert not torch.equal(first(chips()).tokens, second(chips()).tokens)


def test_codes_are_not_among_the_weights():
    assert not [name for name in make().state_dict() if "code" in name]


def test_a_chip_does_not_see_the_others():
    tokenizer, x = make(), chips(5)
    with torch.no_grad():
        together, alone = tokenizer(x), tokenizer(x[2:3])
    torch.testing.assert_close(together.tokens[2:3], alone.tokens, atol=1e-6, rtol=0)


def test_the_low_rank_path_puts_each_patch_into_its_own_token():
    tokenizer, x = make(), chips(1)
    with torch.no_grad():
        for weight in tokenizer.core_parameters():
            weight.zero_()
        changed = x.clone()
        changed[..., 4:8, 8:12] = 0.0  # the patch of row 1, column 2
        difference = (tokenizer(x).tokens - tokenizer(changed).tokens)[0].abs().amax(dim=1)
    assert difference.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_the_scaler_is_one_factor_a_channel():
    tokenizer, x = make(), chips()
    with torch.no_grad():
        before = tokenizer(x).tokens
        tokenizer.scaler.copy_(torch.linspace(-1, 2, 64))
        torch.testing.assert_close(tokenizer(x).tokens, before * torch.linspace(-1, 2, 64))


def test_places_attend_within_their_window():
    core = make().core
    x = torch.rand(1, 32, 8, 8)
    changed = x.clone()
    changed[..., 4:, :4] += 1.0  # the window at the lower left
    with torch.no_grad():
        first, second = core.low_level(x).spatial, core.low_level(changed).spatial
    moved = (first - second)[0].abs().amax(dim=1).reshape(8, 8) > 0
    assert moved[4:, :4].all()
    assert moved.sum() == 16


def test_channels_attend_to_all_channels():
    core = make().core
    x = torch.rand(1, 32, 8, 8)
    changed = x.clone()
    changed[:, 7] += torch.rand(8, 8)
    with torch.no_grad():
        first, second = core.low_level(x).spectral, core.low_level(changed).spectral
    assert ((first - second)[0].abs().amax(dim=1) > 0).all()


def test_the_codes_are_added_after_the_blocks():
    core = make().core
    x = torch.rand(2, 32, 8, 8)
    with torch.no_grad():
        low = core.low_level(x)
        blocks = core.spectral_block(x.flatten(2))
    torch.testing.assert_close(low.spectral, blocks + core.spectral_code)


def test_every_weight_learns():
    tokenizer = make().train()
    tokenizer(chips()).tokens.square().sum().backward()
    still = [n for n, w in tokenizer.named_parameters() if w.grad is None or not w.grad.any()]
    # The bias of a convolution before a batch norm has no effect on what comes out of it.
    assert [name for name in still if not name.endswith(".0.bias")] == []


def test_a_frozen_core_gets_no_gradient_and_keeps_its_statistics():
    tokenizer = make()
    tokenizer.set_core_trainable(False)
    tokenizer.train()
    before = {name: value.clone() for name, value in tokenizer.core.state_dict().items()}
    tokenizer(chips()).tokens.square().sum().backward()
    assert all(weight.grad is None for weight in tokenizer.core_parameters())
    assert all(weight.grad.any() for weight in tokenizer.adapter_parameters())
    after = tokenizer.core.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_freezing_holds_while_training_goes_on():
    tokenizer = make().train()
    tokenizer.set_core_trainable(False)
    assert not any(part.training for part in tokenizer.core.modules())
    assert tokenizer.training
    tokenizer.set_core_trainable(True)
    assert all(part.training for part in tokenizer.core.modules())


def test_a_frozen_core_follows_the_batches_as_published_when_asked():
    tokenizer = make(update_frozen_statistics=True)
    tokenizer.set_core_trainable(False)
    tokenizer.train()
    norm = tokenizer.core.stem.residuals[0][1]
    tokenizer(chips())
    assert norm.running_mean.any()
    assert norm.num_batches_tracked == 1


def test_both_paths_of_a_new_tokenizer_weigh_alike():
    torch.manual_seed(0)
    tokenizer = HyperTokenizer(config(embed_dim=128, chip_px=32)).eval()
    x = chips(4, 32)
    with torch.no_grad():
        core, _low = tokenizer.core(x)
        path = tokenizer.up(tokenizer.down(x))
    assert 0.3 < (core.std() / path.std()).item() < 3


def test_lower_precision_is_close():
    tokenizer, x = make(), chips()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = tokenizer(x).tokens
    torch.testing.assert_close(found.float(), tokenizer(x).tokens, atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["none", "lora", "slr"])
def test_the_plain_tokenizer_is_a_patch_convolution(kind):
    torch.manual_seed(0)
    tokenizer, x = ConvTokenizer(config(), kind), chips()
    found = tokenizer(x)
    conv = tokenizer.proj if kind == "none" else tokenizer.proj.base
    expected = conv(x).flatten(2).transpose(1, 2)  # low-rank paths start at 0
    torch.testing.assert_close(found.tokens, expected)
    assert found.low is None


@pytest.mark.parametrize(
    ("kind", "trained"), [("none", 3_408_896), ("lora", 266_512), ("slr", 267_536)]
)
def test_published_counts_of_the_plain_tokenizer(kind, trained):
    with torch.device("meta"):
        tokenizer = ConvTokenizer(TokenizerConfig(13, (500.0,), 1024), kind)
    assert count(w for w in tokenizer.parameters() if w.requires_grad) == trained


@pytest.mark.parametrize("kind", [HyperTokenizer, ConvTokenizer])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 4, 16, 16), "not 4 bands of 16 x 16 px"),
        (torch.zeros(1, 5, 16, 20), "reads 5 bands of 16 x 16 px, not 5 bands of 16 x 20 px"),
    ],
)
def test_other_chips_are_refused(kind, x, message):
    with pytest.raises(ValueError, match=message):
        kind(config())(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_px": 3}, "3 px is not a power of two"),
        ({"patch_px": 0}, "0 px is not a power of two"),
        ({"chip_px": 18}, "18 px is no whole number of 4 px patches"),
        ({"in_channels": 0}, "sizes of at least 1"),
        ({"low_rank": 0}, "sizes of at least 1"),
        ({"embed_dim": 63}, "width 63"),
        ({"embed_dim": 100}, "stem of 50 channels"),
        ({"map_scale": 3}, "1 or 2 times the tokens' grid, not 3"),
        ({"chip_px": 15, "patch_px": 1}, "15 px wide, and its code needs an even number"),
        ({"wavelength_nm": ()}, "needs the bands' wavelengths"),
        ({"wavelength_nm": (500.0, 0.0)}, "above 0 nm"),
        ({"wavelength_nm": (500.0, math.nan)}, "above 0 nm"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(("width", "heads"), [(784, 8), (36, 6), (100, 5), (7, 7), (11, 1)])
def test_heads_divide_the_width(width, heads):
    assert largest_divisor(width, 8) == heads


@pytest.mark.parametrize(
    ("width", "halvings", "expected"),
    [(32, 0, [32]), (64, 1, [32, 64]), (64, 3, [32, 32, 32, 64]), (96, 2, [32, 48, 96]),
     (16, 2, [16, 16, 16])],
)  # fmt: skip
def test_narrow_stems_keep_channels_at_full_size(width, halvings, expected):
    assert stem_widths(width, halvings) == expected


def test_stems_halve_after_their_residuals():
    stem = make(patch_px=16, chip_px=32).core.stem
    assert [len(stem.residuals), len(stem.downs)] == [2, 2]
    assert [part[0].stride for part in stem.downs] == [(2, 2), (2, 2)]
    assert isinstance(stem.last, nn.Conv2d)
    assert stem.last.stride == (2, 2)
