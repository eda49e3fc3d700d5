"""Foundations of each kind compute what their own networks do, and bad files are refused."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path, PosixPath

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from engine.errors import PackageError
from engine.models.galileo import GalileoConfig, GalileoEncoder
from engine.models.prithvi import PrithviMAE
from engine.models.transformer import Block
from engine.models.vit import FoundationIdentity
from engine.packages.foundations import check_config, fitted_vit, load_foundation
from engine.packages.package import build_model, load_package, save_package
from engine.packages.vit_layouts import KINDS
from tests.engine.packages.factory import TinyConfig, TinyModel, tiny_info
from tests.engine.packages.made_foundations import (
    DEPTH,
    GRID,
    HEADS,
    PATCH_PX,
    WIDTH,
    dinov3_state,
    encoder_state,
    mae_state,
)
from tests.engine.packages.made_teachers import (
    galileo_state,
    prithvi_config,
    prithvi_state,
    save,
)


def load(tmp_path, state, name="weights.pt", **options):
    heads = {"num_heads": HEADS, "decoder_num_heads": 2, **options}
    return load_foundation(save(tmp_path, state, name), **heads)


def draw_tokens(rows=GRID, cols=GRID, width=WIDTH):
    return torch.randn(2, rows * cols, width, generator=torch.Generator().manual_seed(1))


def encode(vit, tokens, rows=GRID, cols=GRID, **options):
    with torch.no_grad():
        return vit(tokens, rows=rows, cols=cols, **options)


# What each kind computes


def test_an_mae_is_a_pre_norm_transformer_with_its_table(tmp_path):
    """Against the blocks of `engine.models.transformer`, whose names are the same."""
    state, tokens = encoder_state(), draw_tokens()
    vit = load(tmp_path, state).vit
    x = torch.cat([state["cls_token"].expand(2, -1, -1), tokens], dim=1) + state["pos_embed"]
    for index in range(DEPTH):
        block = Block(WIDTH, HEADS, norm_eps=1e-6)
        prefix = f"blocks.{index}."
        block.load_state_dict(
            {name[len(prefix) :]: part for name, part in state.items() if name.startswith(prefix)}
        )
        with torch.no_grad():
            x = block(x)
    torch.testing.assert_close(encode(vit, tokens).tokens, x)


def plain_dinov3(state, tokens, places, heads):
    """DINOv3's encoder written out in float64, queries and keys as complex numbers.

    Args:
        state: by the public names.
        tokens: (N, D) patch tokens.
        places: (N, 2) row and column, -1 to 1.
        heads: of attention.

    Returns:
        (5 + N, D) after the last block.
    """
    state = {name: part.double() for name, part in state.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    def turn(x):  # (N, head_dim) of the patches
        half = x.shape[1] // 2
        wave = 100.0 ** (2 * torch.arange(half // 2, dtype=torch.float64) / half)
        angle = torch.cat([2 * torch.pi * places[:, axis : axis + 1] / wave for axis in (0, 1)], 1)
        turned = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angle)
        return torch.cat([turned.real, turned.imag], dim=1)

    x = torch.cat([state["cls_token"][0], state["storage_tokens"][0], tokens.double()])
    width, first = x.shape[1], 5
    for index in range(DEPTH):
        name = f"blocks.{index}"
        weight, bias = state[f"{name}.attn.qkv.weight"], state[f"{name}.attn.qkv.bias"]
        y = norm(x, f"{name}.norm1")
        q = y @ weight[:width].T + bias[:width]
        k = y @ weight[width : 2 * width].T
        v = y @ weight[2 * width :].T + bias[2 * width :]
        outputs = []
        for number in range(heads):
            part = slice(number * width // heads, (number + 1) * width // heads)
            queries, keys = (torch.cat([z[:first, part], turn(z[first:, part])]) for z in (q, k))
            scores = queries @ keys.T / (width / heads) ** 0.5
            outputs.append(scores.softmax(-1) @ v[:, part])
        y = torch.cat(outputs, 1) @ state[f"{name}.attn.proj.weight"].T
        y = y + state[f"{name}.attn.proj.bias"]
        x = x + y * state[f"{name}.ls1.gamma"]
        y = norm(x, f"{name}.norm2") @ state[f"{name}.mlp.fc1.weight"].T
        y = y + state[f"{name}.mlp.fc1.bias"]
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        y = y @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]
        x = x + y * state[f"{name}.ls2.gamma"]
    return x


def places_of(rows, cols):
    """(N, 2) the tokens' centres, -1 to 1 along each side."""
    return torch.tensor(
        [
            (2 * (row + 0.5) / rows - 1, 2 * (col + 0.5) / cols - 1)
            for row in range(rows)
            for col in range(cols)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(("rows", "cols"), [(GRID, GRID), (3, 6)])
def test_dinov3_equals_its_formula(tmp_path, rows, cols):
    state, tokens = dinov3_state(), draw_tokens(rows, cols)
    vit = load(tmp_path, state).vit.double()
    found = encode(vit, tokens.double(), rows, cols).tokens
    for image, patches in zip(found, tokens, strict=True):
        expected = plain_dinov3(state, patches, places_of(rows, cols), HEADS)
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)  # float32 periods


def test_dinov3_keeps_the_places_of_the_tokens_that_stay(tmp_path):
    state, tokens = dinov3_state(), draw_tokens()
    vit = load(tmp_path, state).vit
    ids_keep = torch.tensor([[11, 0, 6], [3, 9, 14]])
    found = encode(vit, tokens, ids_keep=ids_keep).tokens
    for image, patches, ids in zip(found, tokens, ids_keep, strict=True):
        expected = plain_dinov3(state, patches[ids], places_of(GRID, GRID)[ids], HEADS)
        torch.testing.assert_close(image, expected.float(), atol=1e-5, rtol=0)


def test_dinov3_gives_taps_after_its_final_norm(tmp_path):
    vit = load(tmp_path, dinov3_state()).vit
    output = encode(vit, draw_tokens(), taps=(DEPTH - 1,))
    torch.testing.assert_close(output.taps[0], vit.norm(output.tokens[:, 5:]))


def test_galileos_joined_layers_equal_its_own(tmp_path):
    state, tokens = galileo_state(), draw_tokens(width=32)
    own = GalileoEncoder(GalileoConfig(embed_dim=32, depth=2, num_heads=4))
    own.load_state_dict(state)
    vit = load(tmp_path, state).vit
    found = encode(vit, tokens, taps=(0, 1), positions="none").taps
    x = tokens
    with torch.no_grad():
        for block, tap in zip(own.blocks, found, strict=True):
            x = block(x)
            torch.testing.assert_close(tap, x)


def test_galileo_nanos_joined_layers_equal_its_own():
    package = Path(__file__).parents[3] / "resources" / "models" / "galileo-nano"
    own = build_model(load_package(str(package)))
    foundation = load_foundation(str(package))
    tokens = 3 * draw_tokens(width=128)
    found = encode(foundation.vit, tokens, taps=(0, 1, 2, 3), positions="none").taps
    x = tokens
    with torch.no_grad():
        for block, tap in zip(own.blocks, found, strict=True):
            x = block(x)
            torch.testing.assert_close(tap, x, atol=1e-4, rtol=1e-5)
    assert (foundation.identity.kind, foundation.identity.licence) == ("galileo", "MIT")


def test_galileos_positions_are_the_mean_of_its_groups(tmp_path):
    state = galileo_state()
    state["s_t_channel_embed"] = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    own = GalileoEncoder(GalileoConfig(embed_dim=32, depth=2, num_heads=4))
    own.load_state_dict(state)
    _prefix, codes = load(tmp_path, state).vit.position_codes("galileo", 3, 5, 2.4)
    expected = own._sentinel2_encodings(3, 5, torch.tensor([24.0]), None)[0].mean(dim=1)
    torch.testing.assert_close(codes, expected)


@pytest.mark.parametrize(("frames", "side_px"), [(1, 32), (3, 32), (1, 48)])
def test_prithvi_equals_its_own_encoder_at_one_date(tmp_path, frames, side_px):
    state = prithvi_state(num_frames=frames)
    foundation = load(tmp_path, state)
    network = PrithviMAE(prithvi_config(num_frames=frames))
    network.load_state_dict(state, strict=False)
    image = torch.randn(2, 6, 1, side_px, side_px, generator=torch.Generator().manual_seed(2))
    ids_keep = torch.tensor([[4, 0, 7], [15, 2, 1]])
    with torch.no_grad():
        tokens, (_frames, rows, cols) = network.encoder.patch_embed(image)
        latent, (first,) = network.encoder(image, ids_keep, (1,))
    output = encode(foundation.vit, tokens, rows, cols, ids_keep=ids_keep, taps=(0,))
    torch.testing.assert_close(output.taps[0], first[:, 1:])
    torch.testing.assert_close(foundation.vit.norm(output.tokens), latent)


def test_a_package_of_ours_is_the_same_backbone_as_its_tensors(tmp_path):
    config = prithvi_config(in_channels=12)
    torch.manual_seed(0)
    network = PrithviMAE(config)
    info = tiny_info(
        architecture="prithvi-mae", config=asdict(config), task="generative", classes=()
    )
    path = save_package(str(tmp_path / "teacher"), info, network.state_dict())
    foundation = load_foundation(str(path))
    for name, tensor in foundation.vit.state_dict().items():
        if name.startswith("blocks."):
            assert torch.equal(tensor, network.encoder.state_dict()[name])
    assert torch.equal(foundation.decoder["mask_token"], network.decoder.mask_token)
    assert foundation.decoder_num_heads == config.decoder_num_heads
    assert foundation.identity.licence == info.licence


# What is read off a file


def test_sizes_are_read_off_the_tensors(tmp_path):
    config = load(tmp_path, encoder_state(grid=5)).vit.config
    assert (config.embed_dim, config.depth, config.num_heads) == (WIDTH, DEPTH, HEADS)
    assert (config.patch_px, config.grid, config.prefix_tokens) == (PATCH_PX, 5, 1)
    assert (config.norm_eps, config.layer_scale, config.final_norm_on_taps) == (1e-6, False, False)


@pytest.mark.parametrize(("shift", "positions"), [(0.0, "sincos"), (0.01, "stored")])
def test_a_fixed_table_is_told_from_a_learned_one(tmp_path, shift, positions):
    state = encoder_state()
    state["pos_embed"] = state["pos_embed"] + shift
    assert load(tmp_path, state).vit.config.positions == positions


def test_registers_without_positions_get_zeros(tmp_path):
    state = {**encoder_state(), "register_tokens": torch.ones(1, 4, WIDTH)}
    vit = load(tmp_path, state).vit
    assert vit.config.prefix_tokens == 5
    assert torch.equal(vit.prefix[:, :1], state["cls_token"])
    assert torch.equal(vit.pos_embed[:, 1:5], torch.zeros(1, 4, WIDTH))
    assert torch.equal(vit.pos_embed[:, 5:], state["pos_embed"][:, 1:])


def test_an_encoder_without_cls_loads(tmp_path):
    state = encoder_state()
    state["pos_embed"] = state["pos_embed"][:, 1:]
    del state["cls_token"]
    vit = load(tmp_path, state).vit
    assert vit.prefix is None
    assert encode(vit, draw_tokens()).tokens.shape == (2, GRID * GRID, WIDTH)


def test_the_decoder_is_given_by_its_public_names(tmp_path):
    state = mae_state()
    foundation = load(tmp_path, state)
    names = {name for name in state if name.startswith(("decoder", "mask_token"))}
    assert set(foundation.decoder) == names
    assert torch.equal(foundation.decoder["decoder_pred.weight"], state["decoder_pred.weight"])
    assert foundation.decoder_num_heads == 2


def test_public_decoders_have_heads_of_32_values(tmp_path):
    state = {name: tensor for name, tensor in mae_state().items() if "decoder_embed" not in name}
    state["decoder_embed.weight"] = torch.zeros(512, WIDTH)
    foundation = load(tmp_path, state, decoder_num_heads=None)
    assert foundation.decoder_num_heads == 16


@pytest.mark.parametrize(
    ("extra", "name", "kind", "published"),
    [
        ({}, "weights.pt", "vit", "vit"),
        ({}, "mae_pretrain_vit_large.pth", "mae", "mae"),
        ({}, "scalemae-vitlarge-800.pth", "scalemae", "scalemae"),
        ({}, "satmae_fmow.pth", "vit", "vit"),  # another work, of another licence, than SatMAE++
        ({"decoder_pred.weight": 1}, "mae_visualize_vit_large.pth", "mae", "mae"),
        ({"decoder_pred.weight": 1}, "weights.pt", "mae", "vit"),  # may be anybody's own
        ({"fcn_high.proj.weight": 1, "fpn.fpn1.0.weight": 1}, "w.pt", "scalemae", "scalemae"),
        ({"up_block.up_conv.weight": 1, "decoder_pred.bias": 1}, "w.pt", "satmaepp", "satmaepp"),
    ],
)
def test_the_kind_is_told_by_the_other_tensors_or_the_name(tmp_path, extra, name, kind, published):
    state = {**encoder_state(), **{key: torch.ones(size) for key, size in extra.items()}}
    identity = load(tmp_path, state, name).identity
    assert identity.kind == kind
    assert (identity.licence, identity.source) == (
        KINDS[published].licence,
        KINDS[published].source,
    )


@pytest.mark.parametrize("prefix", ["module.", "model.", "model.vit_backbone.", "_orig_mod."])
def test_what_wrappers_put_in_front_is_dropped(tmp_path, prefix):
    state = encoder_state()
    wrapped = load(tmp_path, {prefix + name: part for name, part in state.items()}, "a.pt").vit
    for name, tensor in load(tmp_path, state).vit.state_dict().items():
        assert torch.equal(wrapped.state_dict()[name], tensor)


def test_the_training_scripts_arguments_do_not_matter(tmp_path):
    args = argparse.Namespace(output_dir=PosixPath("/data"), model="mae_vit_large_patch16")
    vit = load(tmp_path, {"model": encoder_state(), "args": args, "epoch": 799}).vit
    assert vit.config.depth == DEPTH


def test_safetensors_and_half_precision_load_as_float32(tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in encoder_state().items()}
    save_file(state, tmp_path / "weights.safetensors")
    vit = load_foundation(str(tmp_path / "weights.safetensors"), num_heads=HEADS).vit
    assert {tensor.dtype for tensor in vit.state_dict().values()} == {torch.float32}


def test_a_foundation_is_frozen(tmp_path):
    vit = load(tmp_path, encoder_state()).vit
    assert not vit.training
    assert not any(weight.requires_grad for weight in vit.parameters())


def test_an_identity_goes_into_settings_and_back():
    identity = FoundationIdentity("a", "0" * 64, "mae", "CC-BY-NC-4.0", "somewhere")
    content = json.loads(json.dumps(asdict(identity)))
    assert TypeAdapter(FoundationIdentity).validate_python(content) == identity


def test_a_config_beside_the_file_tells_the_heads(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"embed_dim": WIDTH, "num_heads": 8}))
    foundation = load_foundation(save(tmp_path, encoder_state()))
    assert foundation.vit.config.num_heads == 8


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1280, 16)])
def test_the_heads_of_public_widths_are_known(tmp_path, width, heads):
    state = encoder_state(width=width, depth=1)
    assert load_foundation(save(tmp_path, state)).vit.config.num_heads == heads


# What is refused


def test_heads_that_cannot_be_known_are_asked_for(tmp_path):
    with pytest.raises(PackageError, match=r"width 32, .*Put a config\.json with num_heads"):
        load_foundation(save(tmp_path, encoder_state()))


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    with pytest.raises(PackageError, match=r"cannot be those of an encoder: .*the 5 heads"):
        load(tmp_path, encoder_state(), num_heads=5)


@pytest.mark.parametrize(
    "name",
    ["blocks.1.mlp.fc1.weight", "norm.bias", "pos_embed", "patch_embed.proj.weight"],
)
def test_a_missing_tensor_is_named(tmp_path, name):
    state = encoder_state()
    del state[name]
    with pytest.raises(PackageError, match=rf"lacks 1 of its tensors: {name}\."):
        load(tmp_path, state)


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.qkv.bias", "cls_token", "pos_embed", "norm.weight"]
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, name, bad):
    state = encoder_state()
    state[name].view(-1)[3] = bad
    with pytest.raises(PackageError, match=r"hold NaN or infinite numbers"):
        load(tmp_path, state)


def test_a_decoder_that_is_not_finite_is_refused(tmp_path):
    state = mae_state()
    state["decoder_pred.bias"][0] = torch.nan
    with pytest.raises(PackageError, match=r"'decoder_pred\.bias'.* hold NaN"):
        load(tmp_path, state)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blocks.2.norm2.bias", (31,), r"blocks\.2\.norm2\.bias \(31,\) instead of \(32,\)"),
        ("cls_token", (1, 1, 31), r"width 32, but CLS or registers of the shape \(1, 1, 31\)"),
        ("patch_embed.proj.weight", (31, 3, 8, 8), r"width 32, but patches of the kernel \(31,"),
        ("patch_embed.proj.weight", (32, 3, 8, 4), r"instead of \(32, bands, patch, patch\)"),
        ("pos_embed", (1, 13, 32), r"shape \(1, 13, 32\), which is for no square grid"),
        ("pos_embed", (1, 17, 31), r"pos_embed \(1, 17, 31\) instead of \(1, 17, 32\)"),
    ],
)
def test_tensors_of_another_width_are_named(tmp_path, name, shape, message):
    state = {**encoder_state(), name: torch.zeros(shape)}
    with pytest.raises(PackageError, match=message):
        load(tmp_path, state)


@pytest.mark.parametrize("name", ["norm_pre.weight", "blocks.0.attn.q_norm.weight"])
def test_tensors_of_unknown_use_are_named(tmp_path, name):
    state = {**encoder_state(), name: torch.ones(WIDTH)}
    with pytest.raises(PackageError, match=rf"unknown use: {name}"):
        load(tmp_path, state)


def test_an_unknown_layout_gets_the_list(tmp_path):
    with pytest.raises(PackageError, match="no encoder of a known layout") as caught:
        load(tmp_path, {"conv1.weight": torch.ones(3, 3)})
    for kind in KINDS.values():
        assert kind.title in str(caught.value)


@pytest.mark.parametrize("make", [galileo_state, prithvi_state])
def test_a_teacher_that_is_not_whole_is_refused(tmp_path, make):
    state = make()
    name = next(name for name in state if name.endswith("blocks.1.mlp.fc2.bias"))
    del state[name]
    with pytest.raises(PackageError, match=rf"lacks 1 of its .* tensors: {name}\."):
        load(tmp_path, state)


def test_a_model_that_is_no_encoder_is_refused(tmp_path):
    path = save_package(
        str(tmp_path / "model"), tiny_info(), TinyModel(TinyConfig(12, 3)).state_dict()
    )
    with pytest.raises(PackageError, match=r"is a hyperkd-tiny, and no backbone.*installed"):
        load_foundation(str(path))


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "scene.tif").write_bytes(b"II*")
    with pytest.raises(PackageError, match=r"does not look like a file of weights.*\.pt, \.pth"):
        load_foundation(str(tmp_path / "scene.tif"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.pth", r"no file of weights .*nowhere\.pth"), ("nothing", "no model package")],
)
def test_what_is_not_there_is_said(tmp_path, name, message):
    with pytest.raises(PackageError, match=message):
        load_foundation(str(tmp_path / name))


# Other choices, the same weights


def test_an_encoder_of_other_choices_shares_the_weights(tmp_path):
    foundation = load(tmp_path, encoder_state())
    config = replace(foundation.vit.config, positions="stored", norm_eps=1e-5, drop_path=0.1)
    vit = fitted_vit(foundation, config)
    assert vit.config == config
    assert vit.blocks[0].norm1.eps == 1e-5
    qkv = foundation.vit.blocks[2].attn.qkv.weight
    assert vit.blocks[2].attn.qkv.weight.data_ptr() == qkv.data_ptr()
    assert foundation.vit.config.norm_eps == 1e-6


def test_positions_that_the_backbone_has_not_are_refused(tmp_path):
    foundation = load(tmp_path, dinov3_state())
    config = replace(foundation.vit.config, positions="stored")
    with pytest.raises(PackageError, match="has rope positions, and the model needs stored"):
        fitted_vit(foundation, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 64}, "width 32 instead of 64"),
        ({"patch_px": 16, "depth": 12}, "blocks 3 instead of 12, patch 8 instead of 16"),
        ({"num_heads": 8}, "heads 4 instead of 8"),
        ({"prefix_tokens": 5}, "tokens before the patches 1 instead of 5"),
    ],
)
def test_a_backbone_of_other_sizes_is_refused_with_both(tmp_path, changes, message):
    foundation = load(tmp_path, encoder_state())
    with pytest.raises(PackageError, match=f"'weights' does not fit the model: it has {message}"):
        check_config(foundation, replace(foundation.vit.config, **changes))
