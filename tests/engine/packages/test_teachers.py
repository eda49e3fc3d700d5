"""Teachers from files of weights."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import PackageError
from engine.models.galileo import GalileoConfig, GalileoEncoder
from engine.packages.teacher_layouts import known_layouts
from engine.packages.teachers import (
    PRITHVI_1_STATISTICS,
    PRITHVI_2_STATISTICS,
    load_teacher,
)
from tests.engine.packages.made_teachers import (
    HEADS,
    describe,
    flat,
    galileo_state,
    prithvi_config,
    prithvi_state,
    save,
)


def test_both_layouts_give_identical_features(tmp_path):
    state = prithvi_state()
    new = load_teacher(save(tmp_path, state, "new.pt"), **HEADS)
    old = load_teacher(save(tmp_path, flat(state), "old.pt"), **HEADS)
    assert torch.equal(describe(new), describe(old))


def test_the_weights_are_those_of_the_file(tmp_path):
    state = prithvi_state()
    teacher = load_teacher(save(tmp_path, state), **HEADS)
    for name, tensor in teacher.network.state_dict().items():
        if name in state:
            assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("prefix", ["_timm_module.", "module."])
def test_what_wrappers_put_in_front_is_dropped(tmp_path, prefix):
    state = prithvi_state()
    wrapped = {prefix + name: tensor for name, tensor in flat(state).items()}
    teacher = load_teacher(save(tmp_path, {"state_dict": wrapped}), **HEADS)
    plain = load_teacher(save(tmp_path, state, "plain.pt"), **HEADS)
    assert torch.equal(describe(teacher), describe(plain))


def test_safetensors_give_the_same(tmp_path):
    state = prithvi_state()
    save_file(state, tmp_path / "weights.safetensors")
    teacher = load_teacher(str(tmp_path / "weights.safetensors"), **HEADS)
    assert torch.equal(describe(teacher), describe(load_teacher(save(tmp_path, state), **HEADS)))


def test_a_teacher_says_what_it_is(tmp_path):
    teacher = load_teacher(save(tmp_path, prithvi_state(), "Prithvi_tiny.pt"), **HEADS)
    assert teacher.name == "Prithvi_tiny"
    assert [band.name for band in teacher.bands] == ["B02", "B03", "B04", "B05", "B06", "B07"]
    assert teacher.licence == "Apache-2.0"
    assert (teacher.network.width, teacher.network.depth) == (32, 2)
    assert len(teacher.sha256) == 64


def test_a_teacher_is_frozen(tmp_path):
    network = load_teacher(save(tmp_path, prithvi_state()), **HEADS).network
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


def test_statistics_are_in_reflectance(tmp_path):
    network = load_teacher(save(tmp_path, prithvi_state()), **HEADS).network
    expected = torch.tensor(PRITHVI_1_STATISTICS.mean_dn) / 1e4
    torch.testing.assert_close(network.band_mean, expected)


@pytest.mark.parametrize(("frames", "side"), [(1, 4), (3, 4), (4, 4), (1, 8), (2, 3), (12, 1)])
def test_dates_and_grid_are_read_off_the_position_table(tmp_path, frames, side):
    state = prithvi_state(num_frames=frames, img_size=side * 8)
    network = load_teacher(save(tmp_path, state), **HEADS).network
    assert network.config.grid == (frames, side, side)


def test_a_model_of_three_dates_sees_one_like_the_model_of_one(tmp_path):
    one, three = prithvi_state(), prithvi_state(num_frames=3)
    teachers = [
        load_teacher(save(tmp_path, state, name), **HEADS)
        for name, state in (("1.pt", one), ("3.pt", three))
    ]
    assert torch.equal(describe(teachers[0]), describe(teachers[1]))


def test_positions_that_were_trained_are_kept(tmp_path):
    state = prithvi_state()
    state["encoder.pos_embed"] = state["encoder.pos_embed"] + 0.5
    config = prithvi_config()
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    network = load_teacher(save(tmp_path, state)).network
    assert torch.equal(network.encoder.pos_embed, state["encoder.pos_embed"])


@pytest.mark.parametrize(
    ("changes", "statistics"),
    [
        ({}, PRITHVI_1_STATISTICS),
        ({"num_frames": 3}, PRITHVI_1_STATISTICS),
        ({"num_frames": 4}, PRITHVI_2_STATISTICS),
        ({"embed_dim": 1024, "depth": 1, "num_heads": 16}, PRITHVI_2_STATISTICS),
    ],
)
def test_the_second_generation_has_other_statistics(tmp_path, changes, statistics):
    path = save(tmp_path, prithvi_state(**changes))
    heads = {**HEADS, "num_heads": changes.get("num_heads", 4)}
    network = load_teacher(path, **heads).network
    torch.testing.assert_close(network.band_std, torch.tensor(statistics.std_dn) / 1e4)


def test_the_largest_prithvi_has_patches_of_14_px(tmp_path):
    """Prithvi-EO-2.0-600M: width 1280, 80 values a head, patch 14; here of one block."""
    changes = {
        "img_size": 224,
        "patch_px": 14,
        "num_frames": 4,
        "embed_dim": 1280,
        "depth": 1,
        "num_heads": 16,
        "decoder_embed_dim": 512,
        "decoder_depth": 1,
        "decoder_num_heads": 16,
    }
    teacher = load_teacher(save(tmp_path, prithvi_state(**changes)))
    assert teacher.network.config == prithvi_config(**changes)
    assert describe(teacher, rows=3).shape == (2, 9, 1280)


def test_time_and_place_are_left_out_and_logged(tmp_path, caplog):
    state = prithvi_state()
    told = {
        "encoder.temporal_embed_enc.scale": torch.ones(1),
        "encoder.location_embed_enc.scale": torch.ones(1),
        "decoder.temporal_embed_dec.scale": torch.ones(1),
        "decoder.location_embed_dec.scale": torch.ones(1),
    }
    with caplog.at_level("INFO"):
        teacher = load_teacher(save(tmp_path, {**state, **told}), **HEADS)
    assert "time and place are not told to the teacher" in caplog.text
    torch.testing.assert_close(
        teacher.network.band_mean, torch.tensor(PRITHVI_2_STATISTICS.mean_dn) / 1e4
    )


@pytest.mark.parametrize("missing", ["blocks.1.attn.qkv.weight", "decoder_pred.bias", "pos_embed"])
@pytest.mark.parametrize("is_flat", [True, False], ids=["old", "new"])
def test_a_missing_tensor_is_named_as_the_file_names_them(tmp_path, missing, is_flat):
    state = flat(prithvi_state())
    side = "decoder" if "decoder" in missing else "encoder"
    name = missing if is_flat else f"{side}.{missing}"
    state = state if is_flat else prithvi_state()
    del state[name]
    with pytest.raises(PackageError, match=rf"nearest to Prithvi.*lacks 1 of its .*: {name}\."):
        load_teacher(save(tmp_path, state), **HEADS)


def test_many_missing_tensors_are_counted(tmp_path):
    state = {name: part for name, part in prithvi_state().items() if "decoder" not in name}
    with pytest.raises(PackageError, match=r"lacks 20 of its 50 tensors: decoder\.mask_token, .*…"):
        load_teacher(save(tmp_path, state), **HEADS)


def test_tensors_of_unknown_use_are_named(tmp_path):
    state = {**prithvi_state(), "encoder.adapter.weight": torch.ones(3)}
    with pytest.raises(
        PackageError, match=r"holds 1 tensors that .* not: encoder\.adapter\.weight"
    ):
        load_teacher(save(tmp_path, state), **HEADS)


def test_what_no_teacher_looks_like_gets_the_list(tmp_path):
    with pytest.raises(PackageError, match="A teacher is one of: ") as caught:
        load_teacher(save(tmp_path, {"conv1.weight": torch.ones(3, 3)}))
    for layout in known_layouts():
        assert layout.title in str(caught.value)


def test_other_bands_are_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(PackageError, match=r"reads 4 bands.*reads 6: B02 450-510 nm, B03"):
        load_teacher(save(tmp_path, prithvi_state(in_channels=4)), **HEADS)


def test_an_autoencoder_of_photographs_is_told_apart(tmp_path):
    state = prithvi_state()
    name = "encoder.patch_embed.proj.weight"
    state[name] = state[name][:, :3, 0]
    with pytest.raises(PackageError, match=r"kernel \(32, 3, 8, 8\) instead of .*MAE"):
        load_teacher(save(tmp_path, flat(state)), **HEADS)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    state = prithvi_state()
    state["encoder.norm.weight"] = torch.ones(31)
    with pytest.raises(PackageError, match=r"encoder\.norm\.weight \(31,\) instead of \(32,\)"):
        load_teacher(save(tmp_path, state), **HEADS)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = prithvi_state()
    state["encoder.blocks.0.mlp.fc1.bias"][3] = torch.nan
    with pytest.raises(PackageError, match=r"encoder\.blocks\.0\.mlp\.fc1\.bias.* hold NaN"):
        load_teacher(save(tmp_path, state), **HEADS)


def test_heads_that_cannot_be_known_are_asked_for(tmp_path):
    with pytest.raises(PackageError, match=r"width 32, .*Put a config\.json with num_heads"):
        load_teacher(save(tmp_path, prithvi_state()))


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    with pytest.raises(PackageError, match=r"cannot be those of a teacher.*its 5 heads"):
        load_teacher(save(tmp_path, prithvi_state()), num_heads=5, decoder_num_heads=2)


@pytest.mark.parametrize("nesting", ["flat", "pretrained_cfg"])
def test_a_config_beside_the_file_tells_the_heads(tmp_path, nesting):
    sizes = dataclasses.asdict(prithvi_config(num_heads=2, decoder_num_heads=1))
    content = sizes if nesting == "flat" else {"architecture": "x", nesting: sizes}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = load_teacher(save(tmp_path, prithvi_state())).network.config
    assert (config.num_heads, config.decoder_num_heads) == (2, 1)


def test_what_is_given_wins_over_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2, "decoder_num_heads": 1}))
    config = load_teacher(save(tmp_path, prithvi_state()), num_heads=8).network.config
    assert (config.num_heads, config.decoder_num_heads) == (8, 1)


def test_the_config_of_another_file_is_not_used(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps({"embed_dim": 768, "num_heads": 12}))
    network = load_teacher(save(tmp_path, prithvi_state()), **HEADS).network
    assert network.config.num_heads == 4
    assert "is for another model" in caplog.text


def test_a_config_that_cannot_be_read_is_not_used(tmp_path, caplog):
    (tmp_path / "config.json").write_text("{")
    load_teacher(save(tmp_path, prithvi_state()), **HEADS)
    assert "config.json cannot be read" in caplog.text


def test_galileo_is_recognised(tmp_path):
    teacher = load_teacher(save(tmp_path, galileo_state()), num_heads=4)
    assert isinstance(teacher.network, GalileoEncoder)
    assert [band.name for band in teacher.bands][-3:] == ["B8A", "B11", "B12"]
    assert teacher.licence == "MIT"
    assert describe(teacher, bands=10).shape == (2, 16, 32)


def test_galileos_occasional_backbone_is_dropped(tmp_path):
    state = galileo_state()
    renamed = {name.replace("blocks.", "blocks.backbone."): part for name, part in state.items()}
    plain = load_teacher(save(tmp_path, state), num_heads=4)
    other = load_teacher(save(tmp_path, renamed, "other.pt"), num_heads=4)
    assert torch.equal(describe(plain, bands=10), describe(other, bands=10))


def test_galileos_config_tells_the_heads(tmp_path):
    encoder = {"embedding_size": 32, "depth": 2, "num_heads": 2}
    (tmp_path / "config.json").write_text(
        json.dumps({"model": {"encoder": encoder, "decoder": {"num_heads": 8}}})
    )
    network = load_teacher(save(tmp_path, galileo_state())).network
    assert network.config.num_heads == 2


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (768, 12)], ids=["tiny", "base"])
def test_the_larger_galileos_heads_are_known(tmp_path, width, heads):
    encoder = GalileoEncoder(GalileoConfig(embed_dim=width, depth=1, num_heads=heads))
    network = load_teacher(save(tmp_path, dict(encoder.state_dict()))).network
    assert network.config == encoder.config


def test_a_missing_tensor_of_galileo_is_named(tmp_path):
    state = galileo_state()
    del state["space_time_embed.S2_SWIR.proj.bias"]
    with pytest.raises(PackageError, match=r"nearest to Galileo.*space_time_embed\.S2_SWIR\.proj"):
        load_teacher(save(tmp_path, state), num_heads=4)
