import pytest
import torch

from engine.models.classifier import ClassifierConfig, HyperKDClassifier
from engine.models.hyperkd import EncoderConfig, HyperKDEncoder, d512, vit_b
from engine.models.spectral import SpectralPath

BANDS, CLASSES = 12, 3


def classifier(**settings):
    """A small classifier in which every weight does something."""
    torch.manual_seed(0)
    values = {"chip_px": 12, "halo_px": 2, "embed_dim": 16, "depth": 2, "head_channels": 8}
    config = ClassifierConfig(in_channels=BANDS, num_classes=CLASSES, **(values | settings))
    model = HyperKDClassifier(config)
    model.spectral.fit_views(torch.rand(50, BANDS) + 0.05, torch.ones(50))
    model.encoder.band_mean.copy_(model.spectral.band_mean)
    model.encoder.band_std.copy_(model.spectral.band_std)
    torch.nn.init.normal_(model.spectral.weight)
    torch.nn.init.normal_(model.head.classes.weight)
    return model.eval()


def chips(batch=2, height=7, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reflectance = torch.rand(batch, BANDS, height, width, generator=generator)
    return reflectance, torch.ones(batch, height, width, dtype=torch.bool)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize("patch_px", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (12, 12)])
@torch.inference_mode()
def test_any_size_gives_logits_for_each_pixel(share, gate, patch_px, size):
    reflectance, valid = chips(2, *size)
    model = classifier(heads_share=share, encoder_gate=gate, patch_px=patch_px)
    logits = model(reflectance, valid)
    assert logits.shape == (2, CLASSES, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("gate", [0.0, 0.5])
@torch.inference_mode()
def test_a_chip_gives_the_same_alone_and_in_a_batch(gate):
    model = classifier(encoder_gate=gate)
    reflectance, valid = chips(3)
    together = model(reflectance, valid)
    torch.testing.assert_close(model(reflectance[1:2], valid[1:2]), together[1:2])


@pytest.mark.parametrize("gate", [0.0, 1.0])
@pytest.mark.parametrize("patch_px", [1, 2])
@torch.inference_mode()
def test_what_stands_in_invalid_pixels_does_not_matter(gate, patch_px):
    model = classifier(encoder_gate=gate, patch_px=patch_px)
    reflectance, valid = chips(1, 6, 8)
    valid[:, :3, :5] = False
    expected = model(reflectance, valid)
    for filling in (float("nan"), -99.0, 1e9):
        filled = reflectance.masked_fill(~valid[:, None], filling)
        found = model(filled, valid)
        torch.testing.assert_close(found[:, :, valid[0]], expected[:, :, valid[0]], rtol=0, atol=0)


@torch.inference_mode()
def test_tokens_without_a_valid_pixel_are_not_attended_to():
    model = classifier(encoder_gate=1.0, patch_px=1, depth=1)
    reflectance, valid = chips(1, 4, 6)
    valid[:, :, 3:] = False
    narrow = model.encoder(
        model.encoder.normalise(reflectance[..., :3]), token_valid=valid[..., :3].flatten(1)
    )
    x = model.encoder.normalise(reflectance).masked_fill(~valid[:, None], 0.0)
    wide = model.encoder(x, token_valid=valid.flatten(1))
    kept = wide[:, 1:].unflatten(1, (4, 6))[:, :, :3].flatten(1, 2)
    torch.testing.assert_close(kept, narrow[:, 1:])


@torch.inference_mode()
def test_with_the_gate_closed_no_pixel_sees_another():
    model = classifier(encoder_gate=0.0, heads_share=0.5)
    reflectance, valid = chips(1, 6, 5)
    whole = model(reflectance, valid)
    alone = model(reflectance[..., 2:3, 3:4], valid[..., 2:3, 3:4])
    torch.testing.assert_close(whole[..., 2:3, 3:4], alone)
    assert (model.reach_px, model.halo_px, model.blend) == (0, 0, False)


@torch.inference_mode()
def test_with_the_gate_open_the_neighbourhood_matters():
    model = classifier(encoder_gate=1.0)
    reflectance, valid = chips(1, 6, 5)
    changed = reflectance.clone()
    changed[..., 0, 0] += 0.5
    difference = model(changed, valid) - model(reflectance, valid)
    assert difference[..., 5, 4].abs().max() > 1e-6
    assert (model.tile_size_px, model.halo_px, model.blend) == (12, 2, True)
    assert model.reach_px >= model.tile_size_px


@torch.inference_mode()
def test_the_gate_scales_what_the_encoder_adds():
    reflectance, valid = chips()
    none, half, whole = (
        classifier(encoder_gate=gate)(reflectance, valid) for gate in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(half - none, (whole - none) / 2)


@torch.inference_mode()
def test_the_folded_spectral_path_equals_its_definition():
    model = classifier()
    reflectance, valid = chips(1, 4, 3)
    spectra = reflectance[0].flatten(1).T
    expected = model.spectral.views(spectra) @ model.spectral.weight.T + model.spectral.bias
    found = model(reflectance, valid)[0].flatten(1).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_answer_from_the_pixel_is_a_mixture_of_line_and_networks():
    reflectance, valid = chips(1, 4, 3)
    line, mixture, networks = (
        classifier(heads_share=share)(reflectance, valid) for share in (0.0, 0.25, 1.0)
    )
    torch.testing.assert_close(mixture, 0.75 * line + 0.25 * networks, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_networks_answer_is_their_mean_for_any_number_of_pixels(monkeypatch):
    model = classifier(heads_share=1.0)
    reflectance, valid = chips(2, 7, 5)
    spectra = reflectance.permute(0, 2, 3, 1).reshape(-1, BANDS)
    expected = model.heads(model.spectral.views(spectra)).mean(dim=0)
    found = model(reflectance, valid).permute(0, 2, 3, 1).reshape(-1, CLASSES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("engine.models.spectral.CHUNK_PX", 16)
    torch.testing.assert_close(
        model(reflectance, valid).permute(0, 2, 3, 1), found.unflatten(0, (2, 7, 5))
    )


@torch.inference_mode()
def test_under_autocast_the_sum_of_all_blocks_stays_in_float32():
    encoder = HyperKDEncoder(EncoderConfig(12, patch_px=1, embed_dim=32, num_heads=4))
    x, ids_keep = torch.randn(2, 12, 4, 4), torch.arange(5).expand(2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {encoder.embed(x).dtype, encoder.embed(x, ids_keep).dtype} == {torch.float32}


def test_bfloat16_autocast_leaves_the_spectral_path_exact():
    model = classifier(encoder_gate=0.0)
    reflectance, valid = chips()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(reflectance, valid)
    torch.testing.assert_close(rough, model(reflectance, valid), rtol=0, atol=0)


def test_a_band_that_never_changes_divides_by_nothing():
    path = SpectralPath(BANDS, CLASSES)
    spectra = torch.rand(20, BANDS)
    spectra[:, 4] = 0.25
    path.fit_views(spectra, torch.ones(20))
    assert path.band_std[4] == 1.0
    assert path.views(spectra).isfinite().all()


def test_normalisation_is_that_of_the_weighted_training_pixels():
    path = SpectralPath(1, CLASSES)
    path.fit_views(torch.tensor([[0.1], [0.4]]), torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(path.band_mean, torch.tensor([0.175]))


@torch.inference_mode()
def test_kept_tokens_are_those_asked_for_in_that_order():
    torch.manual_seed(0)
    encoder = HyperKDEncoder(EncoderConfig(BANDS, patch_px=2, embed_dim=16, depth=1)).eval()
    x = torch.rand(2, BANDS, 6, 4)
    ids_keep = torch.tensor([[5, 0], [2, 3]])
    encoded = encoder(x, ids_keep=ids_keep)
    assert encoded.shape == (2, 3, 16)
    # Alone in view, a token is encoded from its own pixels and position only.
    first = encoder(x, ids_keep=ids_keep[:, :1])
    assert first.shape == (2, 2, 16)
    swapped = encoder(x, ids_keep=ids_keep.flip(1))
    torch.testing.assert_close(swapped[:, 1], encoded[:, 2], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_keeping_all_tokens_equals_no_masking():
    torch.manual_seed(0)
    encoder = HyperKDEncoder(EncoderConfig(BANDS, patch_px=2, embed_dim=16, depth=2)).eval()
    x = torch.rand(1, BANDS, 6, 4)
    torch.testing.assert_close(encoder(x, ids_keep=torch.arange(6)[None]), encoder(x))


def test_presets_have_the_widths_that_distillation_needs():
    assert (vit_b(218).embed_dim, vit_b(218).depth, vit_b(218).num_heads) == (768, 12, 12)
    assert (d512(218).embed_dim, d512(218).patch_px) == (512, 16)


def test_encoder_tensors_are_named_as_in_public_vits():
    names = set(HyperKDEncoder(EncoderConfig(BANDS, embed_dim=16, depth=1)).state_dict())
    block = {
        f"blocks.0.{part}.{kind}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    assert block | {"cls_token", "patch_embed.proj.weight", "norm.weight"} <= names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_dim": 18}, "divisible by 4"),
        ({"embed_dim": 20, "num_heads": 3}, "3 heads"),
        ({"depth": 0}, "at least 1"),
        ({"dropout": 1.0}, "Dropout"),
        ({"num_classes": 1}, "two classes"),
        ({"encoder_gate": 1.5}, "gate"),
        ({"heads_share": -0.1}, "share"),
        ({"heads": 0}, "at least one head"),
        ({"chip_px": 8, "halo_px": 4}, "no core"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**({"in_channels": BANDS, "num_classes": CLASSES} | settings))
