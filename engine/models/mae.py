"""HyperKD's student as it is trained: encoder, decoder of a masked autoencoder, projectors.

Base machinery of HyperKD (arXiv 2508.09453) is a masked autoencoder with a ViT. The student's
sizes, its decoder and the projectors are not known to us from the paper: they are settings of
ours, and those of the presets say what they were chosen for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from engine.models.hyperkd import EncoderConfig, HyperKDEncoder
from engine.models.patches import patchify, put_tokens, unpatchify
from engine.models.transformer import Block, init_transformer, sincos_positions

FeatureLayers = Literal["last", "quarters"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class DecoderConfig:
    """The settings of the decoder, which is trained with the encoder and then left behind.

    Args:
        embed_dim: width of a token, divisible by 4 and by ``num_heads``.
        depth: transformer blocks.
        num_heads: of attention.
        mlp_ratio: hidden width of a block's MLP over ``embed_dim``.

    Raises:
        ValueError: a setting is out of range.
    """

    embed_dim: int = 512
    depth: int = 8
    num_heads: int = 16
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.embed_dim, self.depth, self.num_heads) < 1:
            raise ValueError("A decoder needs a width, a depth and heads of at least 1.")
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"The decoder's width {self.embed_dim} must be divisible by 4 (positions) and by "
                f"its {self.num_heads} heads."
            )


class StudentOutput(NamedTuple):
    """What the student says about a batch; a tuple, which every wrapper of a module can look into.

    Args:
        prediction: (B, M, p * p * C) normalised pixel vectors (`patchify`) of the hidden tokens.
            The visible ones are not predicted: nothing asks for them.
        ids_masked: (B, M) int64, which tokens these are, ascending.
        features: for each tap (B, N_kept, teacher's width), in the order of ``ids_keep``.
    """

    prediction: Tensor
    ids_masked: Tensor
    features: tuple[Tensor, ...]


class MaskedDecoder(nn.Module):
    """From the visible tokens to the pixels of the hidden ones.

    Args:
        encoder: the encoder's settings.
        config: its own.
    """

    def __init__(self, encoder: EncoderConfig, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.decoder_embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio) for _index in range(config.depth)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, encoder.patch_px**2 * encoder.in_channels)
        self.apply(init_transformer)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, tokens: Tensor, ids_keep: Tensor, ids_masked: Tensor, rows: int, cols: int
    ) -> Tensor:
        """Predict the hidden tokens.

        Args:
            tokens: (B, 1 + N_kept, D) from the encoder, CLS first.
            ids_keep: (B, N_kept) int64, which tokens were visible.
            ids_masked: (B, M) int64, all others.
            rows: of the token grid.
            cols: of the token grid.

        Returns:
            (B, M, p * p * C), in the order of ``ids_masked``.
        """
        embedded = self.decoder_embed(tokens).to(self.mask_token)
        positions = sincos_positions(rows, cols, self.config.embed_dim).to(embedded)
        visible = embedded[:, 1:] + positions[ids_keep]
        hidden = self.mask_token + positions[ids_masked]
        # Attention knows no order but that of the positions: hidden tokens stand last, so that
        # nothing has to be put in its place.
        x = torch.cat([embedded[:, :1], visible, hidden], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        predicted: Tensor = self.decoder_pred(self.decoder_norm(x[:, 1 + ids_keep.shape[1] :]))
        return predicted


class HyperKDStudent(nn.Module):
    """The encoder with all that its pre-training needs.

    Args:
        encoder: settings of the part that is kept.
        decoder: settings of the decoder.
        teacher_width: D of the teacher's features; None without a teacher.
        taps: 1-based blocks of the encoder whose tokens are compared with the teacher's; its
            depth means after the final norm. A block may be named more than once.

    Raises:
        ValueError: a tap is no block, or there are taps without a teacher.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        teacher_width: int | None = None,
        taps: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if any(not 1 <= tap <= encoder.depth for tap in taps):
            raise ValueError(f"Taps are blocks 1 to {encoder.depth}, not {taps}.")
        if taps and teacher_width is None:
            raise ValueError("Features are compared with a teacher's, so its width is needed.")
        self.taps = taps
        self.encoder = HyperKDEncoder(encoder)
        self.decoder = MaskedDecoder(encoder, decoder)
        self.projectors = nn.ModuleList(
            nn.Identity()
            if teacher_width in (None, encoder.embed_dim)
            else nn.Linear(encoder.embed_dim, teacher_width or 0)
            for _tap in taps
        )
        self.projectors.apply(init_transformer)

    def forward(self, x: Tensor, ids_keep: Tensor) -> StudentOutput:
        """Look at some tokens, tell the pixels of the others.

        Args:
            x: (B, C, H, W) normalised, 0 where there is no data; sides divisible by the patch.
            ids_keep: (B, N_kept) int64, the visible tokens, 0-based in row order.
        """
        patch_px = self.encoder.config.patch_px
        rows, cols = x.shape[-2] // patch_px, x.shape[-1] // patch_px
        ids_masked = other_ids(ids_keep, rows * cols)
        tokens, heard = self.encoder.encode(x, ids_keep, taps=self.taps)
        prediction = self.decoder(tokens, ids_keep, ids_masked, rows, cols)
        features = tuple(
            projector(tap) for projector, tap in zip(self.projectors, heard, strict=True)
        )
        return StudentOutput(prediction, ids_masked, features)


def other_ids(ids: Tensor, count: int) -> Tensor:
    """The tokens that are not named.

    Args:
        ids: (B, K) int64, each sample's without repetition.
        count: N, tokens of a sample.

    Returns:
        (B, N - K) int64, ascending.
    """
    named = torch.zeros(len(ids), count, dtype=torch.uint8, device=ids.device)
    named.scatter_(1, ids, 1)
    # A stable sort needs no look at the values, which on a GPU would stop the queue.
    return named.argsort(dim=1, stable=True)[:, : count - ids.shape[1]]


def compose(x: Tensor, output: StudentOutput) -> Tensor:
    """The composite image: what was visible, and the prediction where it was hidden.

    Args:
        x: (B, C, H, W) normalised.
        output: of the student for ``x``.

    Returns:
        (B, C, H, W) float32, normalised.
    """
    patch_px = math.isqrt(output.prediction.shape[-1] // x.shape[1])
    rows, cols = x.shape[-2] // patch_px, x.shape[-1] // patch_px
    tokens = put_tokens(patchify(x.float(), patch_px), output.ids_masked, output.prediction.float())
    return unpatchify(tokens, patch_px, rows, cols)


@dataclass(frozen=True)
class StudentPreset:
    """A student of a certain size. All sizes are our choice, see hyperkd.md.

    Args:
        name: by which a request asks for it.
        title: for dialogs.
        tile_size_px: side of the tiles that it is trained on.
        patch_px: side of a token.
        embed_dim: width of the encoder.
        depth: its blocks.
        num_heads: its heads.
        decoder: of the masked autoencoder.
        batch_tiles: tiles a step, unless the request says otherwise.
    """

    name: str
    title: str
    tile_size_px: int
    patch_px: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder: DecoderConfig
    batch_tiles: int

    def encoder(self, in_channels: int) -> EncoderConfig:
        """The settings of its encoder for a number of bands."""
        return EncoderConfig(in_channels, self.patch_px, self.embed_dim, self.depth, self.num_heads)

    @property
    def num_tokens(self) -> int:
        """N, tokens of a tile."""
        return (self.tile_size_px // self.patch_px) ** 2


PRESETS: Mapping[str, StudentPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            # Grid and width of Prithvi-100M, whose decoder it has too.
            StudentPreset("vit_b", "Paper's tile, ViT-B", 224, 16, 768, 12, 12,
                          DecoderConfig(512, 8, 16), 32),
            # The width of KARMA, a sibling of HyperKD on the same sensor.
            StudentPreset("d512", "Paper's tile, 512 wide", 224, 16, 512, 12, 8,
                          DecoderConfig(512, 8, 16), 32),
            # The tile size of the two open EnMAP collections.
            StudentPreset("base128", "Tiles of 128 px, one GPU", 128, 8, 384, 8, 6,
                          DecoderConfig(256, 4, 8), 32),
            StudentPreset("small64", "Tiles of 64 px, a small GPU", 64, 4, 256, 6, 8,
                          DecoderConfig(128, 2, 4), 32),
            # Trained by two cores in minutes, on scenes of a few hundred pixels. At 30 m a token of
            # one pixel told land cover apart far better than one of two: 0.53 and 0.42 of
            # Berlin's pixels with five labelled ones a class (docs/distillation_results.md).
            StudentPreset("laptop", "Tiles of 12 px, no GPU", 12, 1, 128, 4, 4,
                          DecoderConfig(96, 2, 4), 16),
        )
    }
)  # fmt: skip


def tap_blocks(depth: int, layers: FeatureLayers) -> tuple[int, ...]:
    """The blocks whose features are compared, of a student or of its teacher.

    Args:
        depth: blocks of the network.
        layers: "last", or "quarters" for the ends of its four quarters.

    Returns:
        1-based numbers of blocks, one or four; where there are fewer than four blocks, some are
        named twice, so that a student and a teacher of other depth still pair up.
    """
    if layers == "last":
        return (depth,)
    return tuple(-(-depth * quarter // 4) for quarter in (1, 2, 3, 4))


# Values that a block keeps for the way back, for each token and unit of width: two norms, queries,
# keys, values, the attention's answer twice, two sums, and the MLP's hidden layer before and
# after its GELU.
_KEPT_BY_BLOCK = 17
# The same in bytes; with bfloat16 the sums and norms stay float32.
_BYTES_KEPT_BY_BLOCK: Mapping[Precision, int] = {"float32": 4 * _KEPT_BY_BLOCK, "bfloat16": 46}
# Weights, gradients and two moments of AdamW in float32; autocast keeps a copy of the weights.
_BYTES_BY_PARAMETER: Mapping[Precision, int] = {"float32": 16, "bfloat16": 18}
# Copies of a tile in float32: itself, its tokens, the hidden ones as target, prediction,
# difference and gradient.
_TILE_COPIES = 6
# Images that SSIM keeps of each of its bands: two composites, five blurred maps and their like.
_SSIM_BANDS, _SSIM_IMAGES = 8, 30


def estimate_bytes(
    preset: StudentPreset, in_channels: int, batch_tiles: int, precision: Precision = "float32"
) -> int:
    """Estimate the memory that a step of training takes, without the teacher and the libraries.

    Args:
        preset: of the student.
        in_channels: C, bands.
        batch_tiles: tiles a step on one device.
        precision: of the matrix products; weights, gradients and losses are float32 in both.

    Returns:
        Bytes: parameters, gradients, AdamW's moments, activations, and the loss's images.
    """
    parameters = count_parameters(preset, in_channels)
    kept = preset.num_tokens // 4
    by_tokens = kept * preset.embed_dim * preset.depth
    by_tokens += preset.num_tokens * preset.decoder.embed_dim * preset.decoder.depth
    pixels = preset.tile_size_px**2
    images = _TILE_COPIES * in_channels + _SSIM_IMAGES * min(_SSIM_BANDS, in_channels)
    by_tile = by_tokens * _BYTES_KEPT_BY_BLOCK[precision] + pixels * images * 4
    return parameters * _BYTES_BY_PARAMETER[precision] + batch_tiles * by_tile


def count_parameters(preset: StudentPreset, in_channels: int) -> int:
    """Count the trained values of encoder and decoder, without making them.

    Args:
        preset: of the student.
        in_channels: C, bands.
    """
    with torch.device("meta"):
        student = HyperKDStudent(preset.encoder(in_channels), preset.decoder)
    return sum(parameter.numel() for parameter in student.parameters())
