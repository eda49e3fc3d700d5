from __future__ import annotations

import pytest
import torch

from engine.models.spectralx.segmenter import SpectralXSegmenter

from .made import BANDS, CHIP_PX, CLASSES, chips, made_segmenter, made_vit, segmenter_config

ADAPTATIONS = ("spectralx", "full", "frozen", "lora", "slr")


def answers(model: SpectralXSegmenter, reflectance, valid) -> torch.Tensor:
    with torch.inference_mode():
        return model(reflectance, valid)


def train_steps(model: SpectralXSegmenter, steps: int = 3) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-3)
    reflectance, valid = chips()
    label = (reflectance[:, 0] > 0.5).long()
    losses = []
    model.train()
    for _step in range(steps):
        loss = torch.nn.functional.cross_entropy(model(reflectance, valid), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    return losses


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "two classes or more, not 1"),
        ({"halo_px": 8}, "no core inside a halo of 8 px"),
        ({"head_channels": 0}, "head needs channels"),
        ({"neck_scales": (1.0,)}, "a pyramid of two maps"),
        ({"network": False, "spectral_path": False}, "without its network needs a spectral path"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        segmenter_config(**changes)


@pytest.mark.parametrize("chip_px", [16, 32, 64, 96, 224])
def test_no_pixel_is_computed_more_than_one_and_a_half_times(chip_px):
    with torch.device("meta"):
        model = SpectralXSegmenter(segmenter_config(chip_px=chip_px, patch_px=4), made_vit())
    stride_px = model.tile_size_px - 2 * model.halo_px
    assert (model.tile_size_px / stride_px) ** 2 <= 1.5
    assert model.blend


def test_the_halo_can_be_chosen():
    assert made_segmenter(halo_px=5).halo_px == 5


# Answers


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 16), (16, 3), (16, 16)])
def test_chips_of_any_size_get_logits(adaptation, height, width):
    logits = answers(made_segmenter(adaptation=adaptation), *chips(2, height, width))
    assert logits.shape == (2, CLASSES, height, width)
    assert torch.isfinite(logits).all()


def test_larger_chips_are_refused():
    with pytest.raises(ValueError, match="up to 16 px a side, not 4 x 17 px"):
        made_segmenter()(*chips(1, 4, 17))


@pytest.mark.parametrize("patch_px", [1, 2, 8])
def test_tokens_of_other_sizes_work(patch_px):
    logits = answers(made_segmenter(patch_px=patch_px), *chips())
    assert logits.shape == (2, CLASSES, CHIP_PX, CHIP_PX)


def test_a_smaller_chip_is_one_with_pixels_that_are_not_valid():
    model = made_segmenter()
    reflectance, valid = chips()
    valid[:, 10:] = False
    valid[:, :, 7:] = False
    whole = answers(model, reflectance, valid)[..., :10, :7]
    part = answers(model, reflectance[..., :10, :7], valid[..., :10, :7])
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("match", ["hard", "soft"])
@pytest.mark.parametrize("scaling", ["standard", "unit", "chip"])
def test_logits_do_not_depend_on_the_batch(scaling, match):
    model = made_segmenter(scaling=scaling, match=match)
    reflectance, valid = chips(5)
    valid[3, :, :9] = False
    together = answers(model, reflectance, valid)
    alone = [answers(model, reflectance[i : i + 1], valid[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -1e6])
def test_pixels_that_are_not_valid_have_no_influence(rubbish):
    model = made_segmenter()
    reflectance, valid = chips()
    valid[:, 4:9, 2:] = False
    spoiled = reflectance.masked_fill(~valid[:, None], rubbish)
    expected = answers(model, reflectance.masked_fill(~valid[:, None], 0.0), valid)
    assert torch.equal(answers(model, spoiled, valid), expected)


def test_without_its_network_each_pixel_answers_alone_in_tiles_of_any_size():
    model = made_segmenter(network=False)
    reflectance, valid = chips()
    model.adapted.vit.forward = None  # whoever asks it fails
    wide, valid = reflectance.repeat(1, 1, 2, 3), valid.repeat(1, 2, 3)
    logits = answers(model, wide, valid)
    shown = wide.masked_fill(~valid[:, None], 0.0)
    torch.testing.assert_close(logits, model.spectral(shown).detach())
    assert (model.halo_px, model.blend) == (0, False)
    assert model.tile_size_px > CHIP_PX


def test_the_spectral_path_is_added_to_the_networks_answer():
    model = made_segmenter()
    reflectance, valid = chips()
    with_path = answers(model, reflectance, valid)
    path, model.spectral = model.spectral, None
    torch.testing.assert_close(with_path, answers(model, reflectance, valid) + path(reflectance))


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_only_spectralx_has_the_refining_adapter(adaptation):
    assert (made_segmenter(adaptation=adaptation).refine is not None) == (adaptation == "spectralx")
    assert made_segmenter(adaptation=adaptation, refine=False).refine is None


def test_refined_tokens_go_on_to_the_next_block():
    model = made_segmenter()
    x = model.adapted.normalise(*chips())
    plain = model.adapted(x)
    torch.nn.init.constant_(model.refine.scale, 1.0)
    refined = model.adapted(x, model.refine)
    assert not torch.allclose(refined.taps[0], plain.taps[0])
    assert not torch.allclose(refined.tokens, plain.tokens)


def test_bfloat16_answers_are_close_and_float32():
    model = made_segmenter(match="soft")
    reflectance, valid = chips()
    with torch.autocast("cpu", torch.bfloat16):
        found = answers(model, reflectance, valid)
    expected = answers(model, reflectance, valid)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * expected.std()


# Training


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_training_lowers_the_loss_and_leaves_the_foundation_to_the_bit(adaptation):
    vit = made_vit()
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    model = made_segmenter(vit, adaptation=adaptation, dropout=0.0)
    model.set_trainable()
    losses = train_steps(model, steps=8)
    assert losses[-1] < losses[0]
    assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in before.items())
    if adaptation != "full":
        name = "vit.blocks.0.attn.qkv." + ("base." if adaptation in ("lora", "slr") else "")
        frozen = model.adapted.state_dict()[f"{name}weight"]
        assert torch.equal(frozen, before["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("match", ["hard", "soft"])
def test_only_soft_matches_learn(match):
    model = made_segmenter(match=match)
    model.set_trainable()
    model.train()
    model(*chips()).square().mean().backward()
    grads = [p.grad for p in model.refine.spatial_match.parameters()]
    assert any(grad is not None for grad in grads) == (match == "soft")


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_counts_by_part_add_up(adaptation):
    model = made_segmenter(adaptation=adaptation)
    model.set_trainable()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts = model.trainable_counts()
    assert sum(counts.values()) == trained
    assert counts["spectral path"] == CLASSES * (2 * BANDS + 1)


# The state that a package holds


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_own_state_and_the_foundation_make_the_model_again(adaptation):
    vit = made_vit()
    model = made_segmenter(vit, adaptation=adaptation)
    model.set_trainable()
    train_steps(model)
    again = SpectralXSegmenter(model.config, vit).eval()
    again.load_own_state(model.own_state())
    assert torch.equal(answers(again, *chips()), answers(model, *chips()))


def test_the_first_stages_state_goes_into_a_segmenter():
    first, model = made_segmenter(seed=1), made_segmenter(seed=7)
    model.adapted.load_own_state(first.adapted.own_state())
    x = first.adapted.normalise(*chips())
    torch.testing.assert_close(model.adapted(x).tokens, first.adapted(x).tokens)


def test_a_state_with_more_in_it_is_refused():
    model = made_segmenter(refine=False)
    with pytest.raises(ValueError, match=r"has too much: 'refine\."):
        model.load_own_state(made_segmenter().own_state())


def test_small_networks_on_spectra_have_their_share_of_the_pixels_answer():
    model = made_segmenter(spectral_heads=2, spectral_hidden=8, spectral_share=0.25)
    reflectance, valid = chips(count=1, height=3, width=5)
    linear = model.spectral(reflectance)
    networks = model.spectral_heads.mean_map(reflectance, model.spectral)
    torch.testing.assert_close(
        model.pixel_answers(reflectance), 0.75 * linear + 0.25 * networks, atol=1e-5, rtol=1e-5
    )
    torch.nn.init.zeros_(model.head.classes.weight)
    with torch.no_grad():
        answers = model(reflectance, valid) - model.head.classes.bias[:, None, None]
    torch.testing.assert_close(answers, model.pixel_answers(reflectance), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"spectral_share": 0.0}, {"spectral_path": False}, {"spectral_heads": 0}]
)
def test_networks_on_spectra_that_answer_nothing_are_left_out(changes):
    given = {"spectral_heads": 2, "spectral_share": 0.5} | changes
    assert made_segmenter(**given).spectral_heads is None


@pytest.mark.parametrize("changes", [{"spectral_heads": -1}, {"spectral_share": 1.5}])
def test_networks_on_spectra_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match="networks on spectra"):
        segmenter_config(**changes)
