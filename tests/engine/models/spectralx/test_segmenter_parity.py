"""Stage 2, segmentation, against the published code: tokens, taps, neck, head and logits.

Both fixtures are of full size: 410 million weights are filled, which takes a minute and, for the
strict pass, 5 GB.
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from engine.models.spectralx.aomoa import GATE_MIN, AdaptedLinear
from engine.models.spectralx.presets import PRESETS
from engine.models.spectralx.refine import RefiningAdapter
from engine.models.spectralx.segmenter import SegmenterConfig, SpectralXSegmenter
from engine.models.spectralx.upernet import resize
from engine.models.vit import FoundationIdentity, ViT, ViTConfig

from .official import Fixture, adapted_state, refine_state, tokenizer_state, under

# Slow: each fills and runs a ViT-L with its head, about a minute and half on two cores.
pytestmark = [pytest.mark.parity, pytest.mark.slow]

IDENTITY = FoundationIdentity("fixture", "0" * 64, "scalemae", "other", "nowhere")
NORM_EPS = 1e-6  # of ScaleMAE and SatMAE++ in this stage (methods.md, section 5.1)
NAMES = ("spectralx_stage2_scalemae_c13", "spectralx_stage2_scalemae_c32")

_NECK = ((r"^lateral_convs\.(\d+)\.conv", r"lateral.\1"), (r"^convs\.(\d+)\.conv", r"smooth.\1"))
_HEAD = (
    (r"^psp_modules\.(\d+)\.1", r"pooled.\1"),
    (r"^lateral_convs", "lateral"),
    (r"^fpn_convs", "smooth"),
    (r"^fpn_bottleneck", "fuse"),
    (r"^conv_seg", "classes"),
    (r"\.bn\.", ".norm."),
)


def renamed(state, rules):
    result = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = tensor
    return result


def config_of(fixture: Fixture) -> SegmenterConfig:
    """The paper's preset with the sizes of a fixture."""
    made = fixture.constructor
    shapes = fixture.sidecar["state_dict"]
    backbone = [name.removeprefix("vit_backbone.") for name in shapes]
    blocks = {int(m[1]) for name in backbone if (m := re.match(r"blocks\.(\d+)\.", name))}
    adapted = {int(m[1]) for k in backbone if (m := re.match(r"blocks\.(\d+).*scaler$", k))}
    width = shapes["vit_backbone.cls_token"][-1]
    vit = ViTConfig(
        embed_dim=width,
        depth=len(blocks),
        num_heads=width // 64,
        norm_eps=NORM_EPS,
        patch_px=made["patch_size"],
        grid=round((shapes["vit_backbone.pos_embed"][1] - 1) ** 0.5),
    )
    return PRESETS["paper"].segmenter(
        num_classes=made["num_classes"],
        wavelength_nm=[1000.0 * um for um in made["wavelength_um"]],
        vit=vit,
        foundation=IDENTITY,
        in_channels=made["in_channels"],
        blocks=tuple(sorted(adapted)),
        head_channels=shapes["head.conv_seg.weight"][1],
    )


def model_of(fixture: Fixture) -> SpectralXSegmenter:
    config, weights = config_of(fixture), fixture.weights
    backbone = adapted_state(under(weights, "vit_backbone."))
    state = {name.replace(".base.", "."): tensor for name, tensor in backbone.items()}
    state["prefix"] = backbone["cls_token"]
    with torch.device("meta"):
        vit = ViT(config.vit)
    vit.load_state_dict({name: state[name] for name in vit.state_dict()}, assign=True)
    model = SpectralXSegmenter(config, vit)
    own = model.adapted.vit.state_dict()
    missing = model.adapted.vit.load_state_dict(
        {name: tensor for name, tensor in backbone.items() if name in own}, strict=False
    )
    assert missing.missing_keys == ["prefix"]  # the foundation's, loaded above
    tokenizer = tokenizer_state(under(weights, "vit_backbone.patch_embed.proj."))
    model.adapted.tokenizer.load_state_dict(tokenizer)
    model.refine.load_state_dict(refine_state(under(weights, "AreApt.")))
    model.neck.load_state_dict(renamed(under(weights, "neck."), _NECK))
    model.head.load_state_dict(renamed(under(weights, "head."), _HEAD))
    return model.eval()


@torch.inference_mode()
def outputs_of(model: SpectralXSegmenter, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that the fixtures record, by its name there."""
    found: dict[str, torch.Tensor] = {}
    routes: list[tuple[torch.Tensor, torch.Tensor]] = []
    chosen: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdaptedLinear, "route", recording(AdaptedLinear.route, routes))
        patch.setattr(RefiningAdapter, "choose", recording(RefiningAdapter.choose, chosen))
        first = model.adapted.vit.blocks[0]
        handle = first.register_forward_pre_hook(
            lambda _module, args: found.update(tokens_in=args[0])
        )
        output = model.adapted(image, model.refine)
        handle.remove()
    pyramid = model.neck(output.taps)
    found["head"] = model.head(pyramid)
    found["logits"] = resize(found["head"], model.config.chip_px)
    found |= {f"tap{index}": tap for index, tap in enumerate(output.taps)}
    found |= {f"neck{index}": level for index, level in enumerate(pyramid)}
    found |= {f"index_spa{number}": index for number, index in enumerate(chosen[::2])}
    found |= {f"index_spe{number}": index for number, index in enumerate(chosen[1::2])}
    found["expert_mask"] = torch.cat([as_bits(*route) for route in routes])
    return found


def recording(function, log):
    def run(*args):
        log.append(function(*args))
        return log[-1]

    return run


def as_bits(log_shares: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Shares and numbers (top_k, 2 M) of the chosen experts to (2, M): expert e is bit e."""
    is_asked = log_shares > math.log(GATE_MIN)
    return (is_asked.long() << index).sum(dim=0).reshape(-1, 2).T


@pytest.fixture(scope="module", params=NAMES)
def run(request, fixtures_folder):
    """A fixture, its model and image; the weights are let go once the model has them."""
    fixture = Fixture(fixtures_folder, request.param)
    model = model_of(fixture)
    del fixture.__dict__["weights"]
    return fixture, model, fixture.input("image")


def test_parameters_are_those_that_the_published_code_trains(run):
    fixture, model, _image = run
    counts = model.trainable_counts()
    trained = sum(count for part, count in counts.items() if part != "neck and head")
    # The published wrapper holds one more LayerNorm, which it never uses.
    unused = sum(fixture.sidecar["state_dict"][f"norm.{name}"][0] for name in ("weight", "bias"))
    expected = fixture.sidecar["trainable_parameters_without_neck_and_head"]
    assert trained + unused == expected


def test_outputs_equal_the_published_ones(run):
    fixture, model, image = run
    found = outputs_of(model, image)
    for name in fixture.output_names:
        fixture.check(name, found[name])


def test_outputs_equal_the_published_ones_in_float64(run):
    fixture, model, image = run
    model.double()
    found = outputs_of(model, image.double())
    for name in fixture.output_names:
        if fixture.has_strict(name):
            fixture.check(name, found[name])
