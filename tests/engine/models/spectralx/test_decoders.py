from __future__ import annotations

import json

import pytest
import torch

from engine.models.mae import DecoderConfig
from engine.models.spectralx.adapted import AdaptedViT
from engine.models.spectralx.aomoa import AdaptedLinear
from engine.models.spectralx.decoder import ChipTokens
from engine.models.spectralx.decoders import DecoderSource, make_decoder
from engine.models.spectralx.low_rank import LowRankLinear
from engine.models.spectralx.masked import MaskedSpectralX
from engine.models.spectralx.plain_decoder import PlainDecoder
from engine.models.spectralx.satmaepp_decoder import SatMAEppDecoder, doubled_target
from engine.models.spectralx.scalemae_decoder import (
    HeadConfig,
    ScaleMAEDecoder,
    resized,
    token_means,
)
from engine.models.vit import ViT, ViTConfig
from engine.models.vit_positions import plain_positions
from engine.packages.foundations import load_foundation
from engine.packages.teachers import load_teacher

from .masked_models import (
    BANDS,
    DECODER_WIDTH,
    FRESH,
    GRID,
    IDENTITY,
    PATCH_PX,
    RGB,
    adapted_config,
    source,
)

CLASSES = {"scalemae": ScaleMAEDecoder, "satmaepp": SatMAEppDecoder, "mae": PlainDecoder}
OWN = tuple(CLASSES)


def made(kind: str, config=None, **options):
    return make_decoder(
        config or adapted_config(), options.pop("of", source(kind)), FRESH, **options
    )


def of_layers(decoder, layer):
    return sorted(name for name, part in decoder.named_modules() if isinstance(part, layer))


@pytest.mark.parametrize("kind", OWN)
def test_the_checkpoints_decoder_is_known_by_its_layers(kind):
    decoder = made(kind)
    assert type(decoder) is CLASSES[kind]
    assert decoder.config == DecoderConfig(DECODER_WIDTH, 2, 2)


def test_without_one_a_plain_decoder_is_made():
    decoder = made("plain")
    assert type(decoder) is PlainDecoder
    assert decoder.config == FRESH
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_a_decoder_for_other_tokens_is_not_taken():
    vit = ViTConfig(embed_dim=128, depth=2, num_heads=4, patch_px=PATCH_PX, grid=GRID)
    assert made("mae", adapted_config(vit=vit)).config == FRESH


@pytest.mark.parametrize("prefix_tokens", [0, 5])
def test_encoders_with_other_prefixes_get_a_plain_decoder(prefix_tokens):
    vit = ViTConfig(
        embed_dim=64, depth=2, num_heads=4, grid=GRID, prefix_tokens=prefix_tokens, patch_px=4
    )
    decoder = made("mae", adapted_config(vit=vit))
    assert decoder.config == FRESH
    tokens = torch.randn(2, prefix_tokens + 4, 64)
    ids_keep = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert decoder(tokens, ids_keep).prediction.shape == (2, 12, PATCH_PX**2 * BANDS)


@pytest.mark.parametrize("kind", OWN)
def test_the_checkpoints_weights_are_loaded(kind):
    checkpoint = source(kind).tensors
    decoder = made(kind)
    for name, own in decoder.state_dict().items():
        public = name.replace(".base.", ".")
        if public in checkpoint and checkpoint[public].shape == own.shape and "pos" not in name:
            assert torch.equal(own, checkpoint[public]), name
    assert torch.equal(decoder.mask_token, checkpoint["mask_token"])


@pytest.mark.parametrize("kind", OWN)
def test_adapters_stand_where_the_published_code_has_them(kind):
    wanted = ["decoder_blocks.0.mlp.fc1", "decoder_blocks.0.mlp.fc2",
              "decoder_blocks.1.mlp.fc1", "decoder_blocks.1.mlp.fc2", "decoder_embed"]  # fmt: skip
    if kind != "scalemae":
        wanted.append("decoder_pred")
    assert of_layers(made(kind, train_output=False), AdaptedLinear) == wanted


@pytest.mark.parametrize("kind", ["satmaepp", "mae"])
def test_an_output_layer_that_starts_at_random_is_trained(kind):
    decoder = made(kind)
    assert type(decoder.decoder_pred) is torch.nn.Linear
    assert decoder.decoder_pred.weight.requires_grad


@pytest.mark.parametrize("kind", ["satmaepp", "mae"])
def test_a_loaded_output_layer_is_adapted_and_frozen(kind):
    decoder = made(kind, of=source(kind, bands=BANDS))
    assert isinstance(decoder.decoder_pred, AdaptedLinear)
    assert not decoder.decoder_pred.base.weight.requires_grad


def test_output_layers_are_tiled_where_the_bands_are_a_multiple():
    config = adapted_config(in_channels=2 * RGB, wavelength_nm=(500.0, 900.0))
    stored = source("mae")
    decoder = made("mae", config, of=stored)
    weight = decoder.decoder_pred.base.weight.reshape(PATCH_PX**2, 2 * RGB, -1)
    public = stored.tensors["decoder_pred.weight"].reshape(PATCH_PX**2, RGB, -1)
    assert torch.equal(weight, torch.cat([public, public], dim=1))


def test_heads_are_tiled_where_the_bands_are_a_multiple():
    config = adapted_config(in_channels=2 * RGB, wavelength_nm=(500.0, 900.0))
    stored = source("scalemae")
    decoder = made("scalemae", config, of=stored)
    for head in ("fcn_low", "fcn_high"):
        public = stored.tensors[f"{head}.pred.7.weight"]
        own = decoder.state_dict()[f"{head}.pred.7.weight"]
        assert torch.equal(own, torch.cat([public, public], dim=1))


def test_an_output_layer_for_patches_of_another_side_is_not_taken():
    # 16 px² of 3 bands are as many values as 8 px² of 12; they mean something else.
    vit = ViTConfig(embed_dim=64, depth=2, num_heads=4, patch_px=8, grid=GRID)
    stored = source("mae", bands=RGB, patch_px=8)
    config = adapted_config(vit=vit, in_channels=4 * RGB, wavelength_nm=(500.0, 900.0))
    decoder = made("mae", config, of=stored)
    assert stored.tensors["decoder_pred.weight"].shape == decoder.decoder_pred.weight.shape
    assert not torch.equal(decoder.decoder_pred.weight, stored.tensors["decoder_pred.weight"])


def test_a_layer_of_odd_width_is_trained_as_it_is():
    config = adapted_config(chip_px=8, patch_px=1, in_channels=5)
    decoder = made("mae", config, train_output=False)
    assert decoder.decoder_pred.out_features == 5
    assert decoder.decoder_pred.weight.requires_grad


@pytest.mark.parametrize(("adaptation", "scaled"), [("lora", False), ("slr", True)])
def test_baselines_adapt_the_decoder_in_their_own_way(adaptation, scaled):
    decoder = made("mae", adapted_config(adaptation=adaptation))
    layers = [part for part in decoder.modules() if isinstance(part, LowRankLinear)]
    assert len(layers) == 5
    assert all((layer.in_scaler is not None) == scaled for layer in layers)


def test_full_fine_tuning_trains_the_decoder_whole():
    decoder = made("mae", adapted_config(adaptation="full"))
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_a_frozen_foundation_has_a_frozen_decoder_but_for_its_outputs():
    decoder = made("scalemae", adapted_config(adaptation="frozen"))
    assert of_layers(decoder, AdaptedLinear | LowRankLinear) == []
    assert not decoder.decoder_embed.weight.requires_grad
    assert decoder.fcn_low.pred[7].weight.requires_grad


def test_a_missing_tensor_is_named():
    tensors = dict(source("mae").tensors)
    del tensors["decoder_norm.bias"]
    with pytest.raises(ValueError, match=r"decoder_norm\.bias is missing; .* \(64,\)"):
        made("mae", of=DecoderSource(tensors))


def test_a_tensor_of_another_shape_is_named():
    tensors = dict(source("mae").tensors) | {"decoder_norm.bias": torch.zeros(9)}
    with pytest.raises(ValueError, match=r"decoder_norm\.bias is of shape \(9,\)"):
        made("mae", of=DecoderSource(tensors))


def test_stored_positions_are_taken_for_their_own_grid():
    stored = source("mae")
    assert torch.equal(
        made("mae", of=stored).decoder_pos_embed, stored.tensors["decoder_pos_embed"]
    )


def test_positions_by_formula_are_computed_for_another_grid():
    tensors = dict(source("mae").tensors)
    tensors["decoder_pos_embed"][0, 1:] = plain_positions(GRID, GRID, DECODER_WIDTH)
    decoder = made("mae", adapted_config(chip_px=24), of=DecoderSource(tensors, 2))
    assert torch.equal(decoder.decoder_pos_embed[0, 1:], plain_positions(6, 6, DECODER_WIDTH))
    assert torch.equal(decoder.decoder_pos_embed[0, 0], tensors["decoder_pos_embed"][0, 0])


def test_other_positions_are_resized_corner_on_corner():
    stored = source("mae")
    table = stored.tensors["decoder_pos_embed"][0, 1:].reshape(GRID, GRID, -1)
    found = made("mae", adapted_config(chip_px=24), of=stored).decoder_pos_embed[0, 1:]
    corners = [0, 0, -1, -1], [0, -1, 0, -1]
    torch.testing.assert_close(found.reshape(6, 6, -1)[corners], table[corners])


def test_of_several_dates_the_first_counts():
    stored = source("mae")
    table = stored.tensors["decoder_pos_embed"]
    tensors = dict(stored.tensors) | {"decoder_pos_embed": torch.cat([table, table[:, 1:]], dim=1)}
    assert torch.equal(made("mae", of=DecoderSource(tensors)).decoder_pos_embed, table)


@pytest.mark.parametrize("patch_px", [1, 4, 16, 32])
def test_scalemae_tells_tokens_of_any_side_that_divides_its_own(patch_px):
    tokens = ChipTokens(BANDS, patch_px, 2, 64)
    config = DecoderConfig(32, 1, 2)
    decoder = ScaleMAEDecoder(tokens, config, torch.zeros(5, 32), HeadConfig(8, 1))
    decoded = decoder(torch.randn(1, 2, 64), torch.tensor([[3]]))
    assert decoded.prediction.shape == (1, 3, patch_px**2 * BANDS)
    assert [image.shape[-1] for image in decoded.images] == [32, 64]


def test_scalemae_refuses_tokens_that_do_not_fit_its_heads():
    with pytest.raises(ValueError, match="side divides 32 px, not 6 px"):
        ScaleMAEDecoder(ChipTokens(BANDS, 6, 2, 64), FRESH, torch.zeros(5, 32))


def test_tokens_that_do_not_fit_scalemae_get_a_plain_decoder():
    config = adapted_config(chip_px=128, patch_px=64)
    assert type(made("scalemae", config)) is PlainDecoder


def test_positions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"Positions are \(17, 32\), not \(16, 32\)"):
        PlainDecoder(ChipTokens(BANDS, PATCH_PX, GRID, 64), FRESH, torch.zeros(16, 32))


@pytest.mark.parametrize("sizes", [(0, 4, 4, 64), (5, 4, 4, 64, -1)])
def test_sizes_of_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        ChipTokens(*sizes)


def test_a_tokens_mean_is_that_of_its_valid_pixels():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, 0] = False
    assert token_means(x, valid, 2)[0, 0, 0, 0] == (1 + 4 + 5) / 3
    assert token_means(x, valid, 2)[0, 0, 1, 1] == (10 + 11 + 14 + 15) / 4


def test_a_token_without_data_takes_the_chips_mean():
    x = torch.tensor([[[[9.0, 2.0], [4.0, 6.0]]]])
    valid = torch.tensor([[[False, True], [True, True]]])
    assert token_means(x, valid, 1)[0, 0, 0, 0] == 4.0


def test_sizes_change_by_repeating_and_by_means():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert torch.equal(resized(resized(x, 8), 2), x)
    assert resized(x, 1) == x.mean()


def test_beside_pixels_without_data_the_doubled_chip_does_not_count():
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, :, 3] = False
    _image, counts = doubled_target(torch.zeros(1, 1, 4, 4), valid)
    assert counts[0, 0].tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("layout", "positions", "trainable"),
    [
        ("scalemae_vitl_public", "gsd", 9_763_274),
        ("scalemae_vitl_upstream", "gsd", 9_763_274),
        ("satmaepp_vitl_rgb_public", None, 12_436_109),
    ],
)
@pytest.mark.parity
def test_published_counts_with_the_public_files(fixtures_folder, layout, positions, trainable):
    path = fixtures_folder / "layouts" / f"{layout}.json"
    if not path.is_file():
        pytest.skip(f"the fixture is not here: {path}")
    entries = json.loads(path.read_text())["keys"]
    bands, blocks = 13, (5, 11, 17, 23)
    vit = ViTConfig()
    config = adapted_config(
        in_channels=bands, vit=vit, foundation=IDENTITY, chip_px=224, patch_px=16, blocks=blocks,
        stem_dim=512, train_tokenizer=False,
    )  # fmt: skip
    with torch.device("meta"):
        tensors = {e["key"]: torch.empty(e["shape"]) for e in entries}
        decoder = make_decoder(config, DecoderSource(tensors), FRESH, train_output=False)
        model = MaskedSpectralX(AdaptedViT(config, ViT(vit)), decoder, positions=positions)
    assert sum(model.trainable_counts().values()) == trainable


@pytest.mark.parametrize(
    "layout", ["mae_vitl_visualize_public", "mae_vitl_pretrain_encoder_public"]
)
@pytest.mark.parity
def test_a_public_mae_brings_its_decoder_or_none(fixtures_folder, layout):
    path = fixtures_folder / "layouts" / f"{layout}.json"
    if not path.is_file():
        pytest.skip(f"the fixture is not here: {path}")
    entries = json.loads(path.read_text())["keys"]
    tensors = {e["key"]: torch.empty(e["shape"], device="meta") for e in entries}
    has_decoder = any(key.startswith("decoder_blocks") for key in tensors)
    assert DecoderSource(tensors).kind == ("mae" if has_decoder else "plain")


@pytest.mark.parity
@pytest.mark.parametrize("frames", ["T1", "T3"])
def test_prithvis_decoder_says_what_it_says_in_prithvi(fixtures_folder, frames):
    path = fixtures_folder / "teachers" / f"prithvi_tiny_{frames}_new.pt"
    if not path.is_file():
        pytest.skip(f"the fixture is not here: {path}")
    heads = {"num_heads": 2, "decoder_num_heads": 2}
    network = load_teacher(str(path), **heads).network
    foundation = load_foundation(str(path), **heads)
    bands, patch_px = network.config.in_channels, network.config.patch_px
    config = adapted_config(
        in_channels=bands, vit=foundation.vit.config, chip_px=network.config.img_size,
        patch_px=patch_px, adaptation="frozen",
    )  # fmt: skip
    decoder = made("mae", config, of=DecoderSource(foundation.decoder, 2))
    x = torch.randn(1, bands, 1, *[network.config.img_size] * 2)
    ids_keep = torch.tensor([[0, 3]])
    with torch.no_grad():
        latent, expected = network.reconstruct(x, ids_keep)
        decoded = decoder(latent, ids_keep)
    torch.testing.assert_close(
        decoded.prediction[0], expected[0, decoded.ids_masked[0]], atol=1e-5, rtol=1e-4
    )
