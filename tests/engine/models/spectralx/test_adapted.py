from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from engine.models.spectralx.adapted import AdaptedConfig, AdaptedViT, quarter_blocks
from engine.models.spectralx.aomoa import AdaptedLinear
from engine.models.spectralx.low_rank import LowRankLinear
from engine.models.vit import ViTConfig

from .made import BANDS, CHIP_PX, VIT, adapted_config, chips, made_adapted, made_vit

ADAPTATIONS = ("spectralx", "full", "frozen", "lora", "slr")


def train_steps(model: nn.Module, steps: int = 3) -> None:
    """Steps that move whatever may move; weight decay would move what has no gradient too."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    model.train()
    for step in range(steps):
        reflectance, valid = chips(seed=step)
        output = model(model.normalise(reflectance, valid))
        loss = sum(tap.square().mean() for tap in output.taps) + output.tokens.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Settings


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(24, (5, 11, 17, 23)), (4, (0, 1, 2, 3)), (12, (2, 5, 8, 11)), (2, (0, 1)), (1, (0,))],
)
def test_blocks_are_the_last_of_each_quarter(depth, expected):
    assert quarter_blocks(depth) == expected
    assert adapted_config(vit=ViTConfig(embed_dim=64, depth=depth, num_heads=4)).blocks == expected


def test_settings_survive_json():
    config = adapted_config(adaptation="slr", scaling="unit")
    adapter = TypeAdapter(AdaptedConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config
    assert adapter.validate_python(asdict(config)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_px": 5}, "16 px cannot be cut into tokens of 5 px"),
        ({"blocks": (1, 0)}, r"\(1, 0\) must be ascending, from 0 to 3"),
        ({"blocks": (0, 4)}, "must be ascending, from 0 to 3"),
        ({"wavelength_nm": ()}, "needs the bands' wavelengths"),
        ({"load_balancing": -1.0}, "weight is -1.0, below 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        adapted_config(**changes)


def test_another_vit_than_the_settings_say_is_refused():
    with pytest.raises(ValueError, match=r"settings are for .*num_heads=4"):
        AdaptedViT(adapted_config(), made_vit(replace(VIT, num_heads=2)))


def test_stochastic_depth_may_differ_from_the_foundations():
    config = adapted_config(vit=replace(VIT, drop_path=0.3))
    model = AdaptedViT(config, made_vit())
    assert model.vit.blocks[-1].drop_path == 0.3


# What is adapted


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_taps_are_maps_of_the_chips(adaptation):
    model = made_adapted(adaptation=adaptation)
    output = model(model.normalise(*chips(3)))
    assert [tuple(tap.shape) for tap in output.taps] == [(3, 64, 4, 4)] * 4
    assert output.tokens.shape == (3, 1 + 16, 64)
    assert (output.low is None) == (adaptation != "spectralx")


def test_spectralx_adapts_the_feed_forward_of_its_blocks():
    model = made_adapted(blocks=(1, 3))
    found = {name for name, part in model.vit.named_modules() if isinstance(part, AdaptedLinear)}
    assert found == {f"blocks.{block}.mlp.{layer}" for block in (1, 3) for layer in ("fc1", "fc2")}


@pytest.mark.parametrize("adaptation", ["lora", "slr"])
def test_low_rank_paths_stand_in_all_blocks(adaptation):
    model = made_adapted(adaptation=adaptation, blocks=(3,))
    found = {name for name, part in model.vit.named_modules() if isinstance(part, LowRankLinear)}
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert found == {f"blocks.{block}.{name}" for block in range(4) for name in linears}


def test_experts_that_start_at_zero_leave_the_foundation_as_it_is():
    bare, adapted = made_adapted(aomoa=False), made_adapted(zero_init=True)
    adapted.tokenizer.load_state_dict(bare.tokenizer.state_dict())
    x = bare.normalise(*chips())
    torch.testing.assert_close(adapted(x).tokens, bare(x).tokens)


def test_the_foundation_is_not_changed_by_what_is_made_of_it():
    vit = made_vit()
    before = snapshot(vit)
    names = set(before)
    for adaptation in ADAPTATIONS:
        train_steps(AdaptedViT(adapted_config(adaptation=adaptation), vit))
    assert set(vit.state_dict()) == names
    assert all(torch.equal(vit.state_dict()[name], before[name]) for name in names)


def test_frozen_tensors_share_the_foundations_memory():
    vit = made_vit()
    model = AdaptedViT(adapted_config(), vit)
    shared = model.vit.blocks[0].attn.qkv.weight
    assert shared.data_ptr() == vit.blocks[0].attn.qkv.weight.data_ptr()
    own = model.vit.blocks[0].norm1.weight
    assert own.data_ptr() != vit.blocks[0].norm1.weight.data_ptr()


def test_moving_a_model_leaves_its_foundation_where_it_is():
    vit = made_vit()
    AdaptedViT(adapted_config(), vit).double()
    assert vit.blocks[0].attn.qkv.weight.dtype == torch.float32


# What trains


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_frozen_tensors_are_bit_identical_after_training(adaptation):
    model = made_adapted(adaptation=adaptation)
    model.set_trainable(1)
    before = snapshot(model)
    train_steps(model)
    frozen = model.foundation_names
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert not changed & frozen
    assert changed  # something was trained
    assert bool(frozen) or adaptation == "full"


@pytest.mark.parametrize("adaptation", ["spectralx", "lora", "slr"])
def test_a_frozen_core_and_base_stay_as_they_were_drawn(adaptation):
    model = made_adapted(adaptation=adaptation, train_tokenizer=False)
    before = snapshot(model)
    train_steps(model)
    kept = [name for name in before if ".core." in name or ".base." in name]
    assert kept
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in kept)


def test_statistics_of_a_frozen_core_follow_only_when_asked_to():
    for update in (False, True):
        model = made_adapted(train_tokenizer=False, update_frozen_statistics=update)
        before = model.tokenizer.core.stem.residuals[0][1].running_mean.clone()
        train_steps(model)
        after = model.tokenizer.core.stem.residuals[0][1].running_mean
        assert torch.equal(after, before) != update


def test_prefix_tokens_train_in_the_first_stage_only():
    model = made_adapted()
    model.set_trainable(1)
    assert model.vit.prefix.requires_grad
    model.set_trainable(2)
    assert not model.vit.prefix.requires_grad


def test_norms_can_be_kept_frozen():
    model = made_adapted(norms_trainable=False)
    assert "norms" not in model.trainable_counts()
    assert "vit.blocks.0.norm1.weight" in model.foundation_names


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("stage", [1, 2])
def test_counts_by_part_add_up(adaptation, stage):
    model = made_adapted(adaptation=adaptation)
    model.set_trainable(stage)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(model.trainable_counts().values()) == trained


def test_load_balancing_is_a_weighted_loss_of_training_passes():
    model = made_adapted(load_balancing=0.5).train()
    model(model.normalise(*chips()))
    balances = [part.balance for part in model.modules() if isinstance(part, AdaptedLinear)]
    torch.testing.assert_close(model.balance(), 0.5 * sum(balances))
    assert model.balance() > 0


def test_there_is_no_load_balancing_by_default():
    model = made_adapted().train()
    model(model.normalise(*chips()))
    assert model.balance() == 0


# The state that a package holds


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_own_state_and_the_foundation_make_the_model_again(adaptation):
    vit = made_vit()
    model = AdaptedViT(adapted_config(adaptation=adaptation), vit)
    model.set_trainable(1)
    train_steps(model)
    again = AdaptedViT(model.config, vit).eval()
    again.load_own_state(model.own_state())
    x = model.normalise(*chips())
    assert torch.equal(again(x).tokens, model(x).tokens)


@pytest.mark.parametrize("adaptation", ["spectralx", "frozen", "lora", "slr"])
def test_own_state_holds_no_linear_layer_of_the_foundation(adaptation):
    own = made_adapted(adaptation=adaptation).own_state()
    linears = [
        name for name in own if name.startswith("vit.blocks") and name.endswith(("qkv.weight",
        "proj.weight", "fc1.weight", "fc2.weight", "base.weight", "base.bias"))
    ]  # fmt: skip
    assert linears == []


def test_a_state_of_other_settings_is_refused():
    state = made_adapted(aomoa=False).own_state()
    with pytest.raises(ValueError, match=r"misses 'vit.blocks.0.mlp.fc1.bias_in'"):
        made_adapted().load_own_state(state)


def test_a_state_of_other_sizes_is_refused():
    state = made_adapted().own_state()
    state["band_mean"] = torch.zeros(BANDS + 1)
    with pytest.raises(ValueError, match=r"'band_mean' is \(6,\); the model has \(5,\)"):
        made_adapted().load_own_state(state)


# Scaling


def test_standard_scaling_is_that_of_the_training_pixels():
    model = made_adapted()
    model.band_mean.fill_(0.5)
    model.band_std.fill_(0.25)
    reflectance, valid = chips()
    torch.testing.assert_close(model.normalise(reflectance, valid), (reflectance - 0.5) / 0.25)


def test_unit_scaling_does_not_see_brightness():
    model = made_adapted(scaling="unit")
    reflectance, valid = chips()
    dark = model.normalise(0.3 * reflectance, valid)
    torch.testing.assert_close(dark, model.normalise(reflectance, valid))


def test_chip_scaling_spans_each_band_of_each_chip():
    model = made_adapted(scaling="chip")
    reflectance, valid = chips()
    x = model.normalise(reflectance * torch.tensor([0.2, 3.0])[:, None, None, None], valid)
    torch.testing.assert_close(x.amin(dim=(-2, -1)), torch.zeros(2, BANDS))
    torch.testing.assert_close(x.amax(dim=(-2, -1)), torch.ones(2, BANDS))


def test_chip_scaling_leaves_a_constant_band_as_it_is():
    model = made_adapted(scaling="chip")
    reflectance, valid = chips()
    reflectance[:, 2] = 0.37
    assert torch.equal(model.normalise(reflectance, valid)[:, 2], reflectance[:, 2])


def test_chip_scaling_does_not_look_at_what_is_not_valid():
    model = made_adapted(scaling="chip")
    reflectance, valid = chips()
    valid[:, :3] = False
    reflectance[:, :, :3] = 50.0
    x = model.normalise(reflectance, valid)
    torch.testing.assert_close(x.amax(dim=(-2, -1)), torch.ones(2, BANDS))


@pytest.mark.parametrize("scaling", ["standard", "unit", "chip"])
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -1e6])
def test_what_is_not_valid_becomes_zero_and_has_no_influence(scaling, rubbish):
    model = made_adapted(scaling=scaling)
    model.band_mean.fill_(0.2)
    reflectance, valid = chips()
    valid[0, :, :5] = False
    valid[1] = False
    spoiled = reflectance.masked_fill(~valid[:, None], rubbish)
    x = model.normalise(spoiled, valid)
    assert torch.equal(x, model.normalise(reflectance, valid))
    assert (x.movedim(1, -1)[~valid] == 0).all()
    assert x.shape == (2, BANDS, CHIP_PX, CHIP_PX)
