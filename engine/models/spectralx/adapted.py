"""A frozen foundation model with the parts that teach it spectral scenes.

SpectralX (arXiv 2508.01731) replaces a ViT's patch embedding by the hyper tokenizer and puts
mixtures of adapters beside the feed-forward linears of four blocks; the ViT stays as it was, but
for its norms. Its comparisons stand in the same class: the whole ViT trained, nothing but the
patch embedding, and low-rank paths beside every linear (LoRA, SLR).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from engine.models.spectral import unit_length
from engine.models.spectralx.aomoa import AdaptedLinear, load_balance
from engine.models.spectralx.low_rank import LowRankConv, LowRankLinear
from engine.models.spectralx.on_foundation import (
    copy_but_share,
    count_trainable,
    layer_norms,
    load_own_state,
    own_state,
)
from engine.models.spectralx.refine import RefiningAdapter
from engine.models.spectralx.tokenizer import (
    ConvTokenizer,
    HyperTokenizer,
    LowLevel,
    TokenizerConfig,
    Tokens,
)
from engine.models.vit import FoundationIdentity, Hook, ViT, ViTConfig

Adaptation = Literal["spectralx", "full", "frozen", "lora", "slr"]
"""What is taught to a foundation: SpectralX's parts; everything; its patch embedding alone; or
low-rank paths beside all linears of all blocks, plain or with scaled channels."""

Scaling = Literal["standard", "unit", "chip"]
"""How reflectance becomes the network's input: by mean and spread of the training pixels; the same
after each spectrum has been brought to unit length, which light and shade leave alone (both ours,
equal for a pixel whatever chip it is in); or by each chip's own range of each band (published)."""

Stage = Literal[1, 2]

ATTENTION = ("attn.qkv", "attn.proj")
FEED_FORWARD = ("mlp.fc1", "mlp.fc2")
CHIP_RANGE_MIN = 1e-8  # published: added to the range of a band before dividing by it


@dataclass(frozen=True, kw_only=True)
class AdaptedConfig:
    """The settings of an adapted foundation model.

    Args:
        in_channels: C, bands.
        wavelength_nm: (C,) their centres, which the hyper tokenizer encodes. The published second
            stage gives another sensor's list; its length need not be C.
        vit: the foundation's settings.
        foundation: which weights these are, so that they can be found again.
        chip_px: side of the chips that it sees.
        patch_px: side of a token, in the scene's pixels; the foundation's own may differ.
        blocks: 0-based, ascending: those that carry adapters, and whose tokens are tapped. None
            given: the last of each quarter, as published (5, 11, 17, 23 of 24).
        adaptation: see `Adaptation`.
        train_tokenizer: whether the hyper tokenizer's core trains, as the paper's figure has it;
            False: it stays random, as the published code and the paper's counts have it.
        aomoa: whether there are mixtures of adapters; False only to take them away.
        zero_init: whether they begin by adding nothing (ours); published: they do not.
        load_balancing: weight of the loss that spreads tokens over experts; published: 0.
        low_rank: inner width of the low-rank paths.
        stem_dim: width of the hyper tokenizer's stem; None: half of the ViT's, as published.
        map_scale: side of the stem's map over that of the token grid, 2 as published or 1.
        scaling: see `Scaling`.
        norms_trainable: whether the ViT's LayerNorms train, as published.
        update_frozen_statistics: whether a frozen core's BatchNorms go on averaging in training,
            as in the published code.

    Raises:
        ValueError: a setting is out of range, or contradicts another.
    """

    in_channels: int
    wavelength_nm: tuple[float, ...]
    vit: ViTConfig
    foundation: FoundationIdentity
    chip_px: int
    patch_px: int
    blocks: tuple[int, ...] = ()
    adaptation: Adaptation = "spectralx"
    train_tokenizer: bool = True
    aomoa: bool = True
    zero_init: bool = False
    load_balancing: float = 0.0
    low_rank: int = 16
    stem_dim: int | None = None
    map_scale: int = 2
    scaling: Scaling = "standard"
    norms_trainable: bool = True
    update_frozen_statistics: bool = False

    def __post_init__(self) -> None:
        if not self.blocks:
            # A frozen dataclass fills in its own default only like this.
            object.__setattr__(self, "blocks", quarter_blocks(self.vit.depth))
        if self.patch_px < 1 or self.chip_px < self.patch_px or self.chip_px % self.patch_px:
            raise ValueError(
                f"Chips of {self.chip_px} px cannot be cut into tokens of {self.patch_px} px."
            )
        ascending = all(0 <= block < self.vit.depth for block in self.blocks) and list(
            self.blocks
        ) == sorted(set(self.blocks))
        if not ascending:
            raise ValueError(
                f"The adapted blocks {self.blocks} must be ascending, from 0 to "
                f"{self.vit.depth - 1}."
            )
        if self.load_balancing < 0:
            raise ValueError(f"The load balancing's weight is {self.load_balancing}, below 0.")
        _ = self.tokenizer  # its own checks

    @property
    def grid(self) -> int:
        """G, tokens a side of a chip."""
        return self.chip_px // self.patch_px

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The part of the settings that describes the tokenizer."""
        return TokenizerConfig(
            in_channels=self.in_channels,
            wavelength_nm=self.wavelength_nm,
            embed_dim=self.vit.embed_dim,
            chip_px=self.chip_px,
            patch_px=self.patch_px,
            stem_dim=self.stem_dim,
            low_rank=self.low_rank,
            map_scale=self.map_scale,
            update_frozen_statistics=self.update_frozen_statistics,
        )


class AdaptedOutput(NamedTuple):
    """What an adapted foundation says about chips.

    Args:
        taps: for each of the config's blocks (B, D, G, G), after refinement where there is one.
        tokens: (B, P + N, D) after the last block, without the final norm; prefix tokens first.
        low: the hyper tokenizer's own features; None for other tokenizers.
    """

    taps: tuple[Tensor, ...]
    tokens: Tensor
    low: LowLevel | None


class AdaptedViT(nn.Module):
    """A foundation's ViT, a tokenizer for spectral chips, and adapters.

    The tensors of the foundation that stay as they are share their memory with the given ViT;
    those that may change are copies. So one ViT serves any number of models, and stays as it was.

    Args:
        config: see there.
        vit: the foundation, on any device; its settings are those that ``config`` names.

    Raises:
        ValueError: it is another ViT than the settings say.
    """

    band_mean: Tensor
    band_std: Tensor

    def __init__(self, config: AdaptedConfig, vit: ViT) -> None:
        super().__init__()
        # How it is run may differ; what its tensors are may not.
        if replace(vit.config, **_run_settings(config.vit)) != config.vit:
            raise ValueError(f"The settings are for {config.vit}, but the ViT is {vit.config}.")
        self.config = config
        self.register_buffer("band_mean", torch.zeros(config.in_channels))
        self.register_buffer("band_std", torch.ones(config.in_channels))
        self.tokenizer = _tokenizer(config)
        changing = _changing_names(vit, config)
        self.vit = copy_but_share(vit, config.vit, changing)
        frozen = {
            id(t) for n, t in self.vit.state_dict(keep_vars=True).items() if n not in changing
        }
        self._norm_names = tuple(layer_norms(self.vit))
        self._inserted = _insert_adapters(self.vit, config)
        # By identity, because an adapted layer's own tensors have moved into it.
        everything = self.state_dict(keep_vars=True)
        self._foundation_names = frozenset(n for n, t in everything.items() if id(t) in frozen)
        self.set_trainable(2)

    @torch.no_grad()
    def normalise(self, reflectance: Tensor, valid: Tensor) -> Tensor:
        """Bring chips to the network's scale.

        Args:
            reflectance: (B, C, h, w) float32, 0 to 1.
            valid: (B, h, w) bool, True = use; what stands elsewhere does not matter, be it NaN.

        Returns:
            (B, C, h, w) float32, 0 where not valid.
        """
        use = valid[:, None]
        x = reflectance.float()
        if self.config.scaling == "chip":
            return _chip_scaled(x, use)
        if self.config.scaling == "unit":
            x = unit_length(x, dim=1)
        # All is done pixel by pixel, so that NaN stays where it is until the last step; in place,
        # because fresh memory takes longer than the arithmetic.
        x = (x - self.band_mean[:, None, None]).div_(self.band_std[:, None, None])
        return x.masked_fill_(~use, 0.0)

    def forward(self, x: Tensor, refine: RefiningAdapter | None = None) -> AdaptedOutput:
        """Encode normalised chips.

        Args:
            x: (B, C, chip_px, chip_px), see `normalise`.
            refine: asked after each tapped block; what it returns goes on to the next block, and
                is the tap. Only with the hyper tokenizer, whose features it looks at.
        """
        embedded: Tokens = self.tokenizer(x)
        low, hook = embedded.low, None
        if refine is not None and low is not None:
            hook = _refining_hook(refine, low)
        grid, blocks = self.config.grid, self.config.blocks
        output = self.vit(embedded.tokens, rows=grid, cols=grid, taps=blocks, hook=hook)
        taps = tuple(rearrange(tap, "b (r c) d -> b d r c", r=grid) for tap in output.taps)
        return AdaptedOutput(taps, output.tokens, low)

    def balance(self) -> Tensor:
        """The weighted load-balancing loss of the last training pass: scalar, 0 where unused."""
        weight = self.config.load_balancing
        total = load_balance(self.vit) if weight > 0 else None
        return self.band_mean.new_zeros(()) if total is None else weight * total

    def set_trainable(self, stage: Stage) -> None:
        """Choose what trains, and tell autograd.

        Args:
            stage: 1, masked reconstruction, where the prefix tokens train too, as published; or 2,
                segmentation.
        """
        config = self.config
        self.requires_grad_(config.adaptation == "full")
        self.tokenizer.requires_grad_(True)
        if isinstance(self.tokenizer, HyperTokenizer):
            self.tokenizer.set_core_trainable(config.train_tokenizer)
        elif isinstance(self.tokenizer.proj, LowRankConv):
            self.tokenizer.proj.base.requires_grad_(False)
        for module in self._inserted.values():
            module.requires_grad_(True)
            module.base.requires_grad_(False)
        if config.adaptation == "frozen":
            return
        if config.norms_trainable:
            for name in self._norm_names:
                self.vit.get_parameter(name).requires_grad_(True)
        if stage == 1 and self.vit.prefix is not None:
            self.vit.prefix.requires_grad_(True)

    def trainable_counts(self) -> dict[str, int]:
        """Count the values that train now, part by part; parts without any are left out."""
        parts: dict[str, list[nn.Parameter]] = {
            "norms": [self.vit.get_parameter(name) for name in self._norm_names],
            **_tokenizer_parts(self.tokenizer),
        }
        for module in self._inserted.values():
            name = "AoMoA" if isinstance(module, AdaptedLinear) else "low-rank linears"
            base = {id(parameter) for parameter in module.base.parameters()}
            own = [parameter for parameter in module.parameters() if id(parameter) not in base]
            parts[name] = [*parts.get(name, []), *own]
        named = {id(parameter) for part in parts.values() for parameter in part}
        parts["other backbone"] = [p for p in self.vit.parameters() if id(p) not in named]
        return count_trainable(parts)

    @property
    def foundation_names(self) -> frozenset[str]:
        """Names, in the state, of the foundation's tensors that no training changes."""
        return self._foundation_names

    def own_state(self) -> dict[str, Tensor]:
        """Everything but the foundation's frozen tensors: what a package holds."""
        return own_state(self, self._foundation_names)

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `own_state` of a model with the same settings gave.

        Raises:
            ValueError: names or shapes differ; the message names the first.
        """
        load_own_state(self, self._foundation_names, state)


def _run_settings(config: ViTConfig) -> dict[str, Any]:
    """What a model may set otherwise than its foundation: how it is run, not what it is."""
    return {"drop_path": config.drop_path, "position_step": config.position_step}


def quarter_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each quarter, 0-based: 5, 11, 17, 23 of 24, as published."""
    return tuple(sorted({-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}))


def _refining_hook(refine: RefiningAdapter, low: LowLevel) -> Hook:
    """Ask the adapter after a block; the features are the same for all of them."""
    keys = refine.keys(low)
    return lambda _block_index, tokens: refine(tokens, low, keys)


def _chip_scaled(x: Tensor, use: Tensor) -> Tensor:
    """Scale each band of each chip from its least to its largest valid value, as published.

    A band that is constant over the chip stays as it is.
    """
    low = x.masked_fill(~use, torch.inf).amin(dim=(-2, -1), keepdim=True)
    high = x.masked_fill(~use, -torch.inf).amax(dim=(-2, -1), keepdim=True)
    scaled = torch.where(high > low, (x - low) / (high - low + CHIP_RANGE_MIN), x)
    return scaled.masked_fill(~use, 0.0)


def _tokenizer(config: AdaptedConfig) -> HyperTokenizer | ConvTokenizer:
    """The tokenizer of the kind of adaptation."""
    if config.adaptation == "spectralx":
        return HyperTokenizer(config.tokenizer)
    kinds: dict[Adaptation, Literal["none", "lora", "slr"]] = {"lora": "lora", "slr": "slr"}
    return ConvTokenizer(config.tokenizer, kinds.get(config.adaptation, "none"))


def _tokenizer_parts(tokenizer: HyperTokenizer | ConvTokenizer) -> dict[str, list[nn.Parameter]]:
    """The tokenizer's parameters, part by part."""
    if isinstance(tokenizer, HyperTokenizer):
        return {
            "tokenizer's low-rank path": list(tokenizer.adapter_parameters()),
            "tokenizer's core": list(tokenizer.core_parameters()),
        }
    return {"patch embedding": list(tokenizer.parameters())}


def _changing_names(vit: ViT, config: AdaptedConfig) -> set[str]:
    """Names of the foundation's tensors that some training changes, and that a package holds."""
    if config.adaptation == "full":
        return {name for name, _parameter in vit.named_parameters()}
    if config.adaptation == "frozen":
        return set()
    norms = set(layer_norms(vit)) if config.norms_trainable else set()
    return norms | ({"prefix"} if vit.prefix is not None else set())


def _insert_adapters(vit: ViT, config: AdaptedConfig) -> dict[str, AdaptedLinear | LowRankLinear]:
    """Put adapters in the place of linear layers; returns them by name."""
    adaptation = config.adaptation
    inserted: dict[str, AdaptedLinear | LowRankLinear] = {}
    if adaptation == "spectralx" and config.aomoa:
        for name, base in _linears(vit, config.blocks, FEED_FORWARD):
            inserted[name] = AdaptedLinear(base, zero_init=config.zero_init)
    if adaptation in ("lora", "slr"):
        for name, base in _linears(vit, range(config.vit.depth), (*ATTENTION, *FEED_FORWARD)):
            inserted[name] = LowRankLinear(base, config.low_rank, scaled=adaptation == "slr")
    for name, module in inserted.items():
        vit.set_submodule(name, module)
    return inserted


def _linears(
    vit: ViT, blocks: Iterable[int], names: Iterable[str]
) -> Iterator[tuple[str, nn.Linear]]:
    """Name and layer of some linear layers of some blocks."""
    wanted = {f"blocks.{block}.{name}" for block in blocks for name in names}
    for name, module in vit.named_modules():
        if name in wanted and isinstance(module, nn.Linear):
            yield name, module
