"""Whose weights a file holds, told by the names of its tensors; and the models' sizes, read off.

The layouts are those of the public files: Prithvi's old one without prefixes and its new one with
``encoder.`` and ``decoder.``, and Galileo's encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor

from engine.errors import PackageError
from engine.models.galileo import GalileoConfig, GalileoEncoder
from engine.models.prithvi import PrithviConfig, PrithviMAE, position_table

Family = Literal["prithvi", "galileo"]

MOST_NAMED = 8
"""How many missing or unknown tensors a message names."""

# Tensors of the variants of Prithvi-EO-2.0 that may be told time and place. They are used only
# when they are told, which was left out at random in their training; so they can be left out here.
TIME_AND_PLACE = ("temporal_embed", "location_embed")
# The number of heads cannot be told from tensors: width of a token to heads, of public models.
PRITHVI_HEADS = {192: 3, 256: 4, 768: 12, 1024: 16, 1280: 16}
PRITHVI_DECODER_HEADS = {128: 4, 512: 16}
GALILEO_HEADS = {128: 8, 192: 3, 768: 12}
PUBLIC_IMAGE_PX = 224
# Ten times what frequencies in float32 instead of float64 make of the largest public table.
POSITION_ROUNDING = 1e-5

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How a family of teachers names its tensors.

    Args:
        name: short, for messages and tests.
        title: for people.
        family: which network it is for.
        names_for: the names that a file must hold, given those that it holds (for the number of
            blocks).
        rename: from a name of the file to that of the network.
    """

    name: str
    title: str
    family: Family
    names_for: Callable[[Iterable[str]], list[str]]
    rename: Callable[[str], str]


def known_layouts() -> tuple[Layout, ...]:
    """List the layouts in the order in which they are tried."""
    return _LAYOUTS


def recognise(
    state: Mapping[str, Tensor], origin: str, noun: str = "teacher"
) -> tuple[Layout, dict[str, Tensor]]:
    """Find the layout of a state dict.

    Args:
        state: tensors by the file's names.
        origin: the file, for messages.
        noun: what the file is wanted as, for messages.

    Returns:
        the layout, and the tensors by the network's names; `TIME_AND_PLACE` left out.

    Raises:
        PackageError: tensors are missing, or there are some whose use is not known; the message
            names the nearest layout and the tensors.
    """
    clean = {_clean(name): tensor for name, tensor in state.items()}
    wanted_by = [(layout, layout.names_for(clean)) for layout in _LAYOUTS]
    layout, wanted = max(
        wanted_by, key=lambda pair: sum(name in clean for name in pair[1]) / len(pair[1])
    )
    missing = [name for name in wanted if name not in clean]
    if missing:
        raise PackageError(
            f"{origin} is no {noun} of a known layout. It is nearest to {layout.title}, but lacks "
            f"{len(missing)} of its {len(wanted)} tensors: {_listed(missing)}.",
            f"A {noun} is one of: {'; '.join(item.title for item in _LAYOUTS)}.",
        )
    others = [name for name in clean if name not in set(wanted)]
    _refuse_unknown(layout, others, origin)
    return layout, {layout.rename(name): clean[name] for name in wanted}


def _refuse_unknown(layout: Layout, others: list[str], origin: str) -> None:
    """Refuse tensors whose part in the computation is not known; leave out the harmless ones."""
    told = [name for name in others if any(part in name for part in TIME_AND_PLACE)]
    unknown = [name for name in others if name not in told]
    if unknown:
        raise PackageError(
            f"{origin} looks like {layout.title}, but holds {len(unknown)} tensors that this has "
            f"not: {_listed(unknown)}.",
            "What they do is not known here, so the features would be others: take the weights as "
            "they were published.",
        )
    if told:
        _logger.info("%s: time and place are not told to the teacher (%s).", origin, _listed(told))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + ", …" * (len(names) > MOST_NAMED)


def _clean(name: str) -> str:
    """Drop what wrappers of training scripts leave in names, as the public loaders do."""
    return name.removeprefix("module.").replace("_timm_module.", "").replace(".backbone", "")


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Count the blocks ``prefix0.``, ``prefix1.``, … that are named; at least 1."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    return max(len(numbers), 1)


def _prithvi_names(names: Iterable[str]) -> list[str]:
    """The new layout's names, from the network itself, made as small as can be."""
    names = list(names)
    config = PrithviConfig(
        in_channels=1,
        img_size=1,
        patch_px=1,
        embed_dim=16,
        depth=count_blocks(names, "encoder.blocks."),
        num_heads=1,
        decoder_embed_dim=16,
        decoder_depth=count_blocks(names, "decoder.decoder_blocks."),
        decoder_num_heads=1,
    )
    with torch.device("meta"):
        model = PrithviMAE(config)
    return [name for name in model.state_dict() if name not in ("band_mean", "band_std")]


def _flat_prithvi_names(names: Iterable[str]) -> list[str]:
    prefixed = _prithvi_names(_prefixed(name) for name in names if not _has_prefix(name))
    return [name.partition(".")[2] for name in prefixed]


def _has_prefix(name: str) -> bool:
    return name.startswith(("encoder.", "decoder."))


def _prefixed(name: str) -> str:
    """The new name of a tensor of the old layout, by the rule of the public loader."""
    is_decoder = "decoder" in name or "_dec" in name or name == "mask_token"
    return f"{'decoder' if is_decoder else 'encoder'}.{name}"


def _galileo_names(names: Iterable[str]) -> list[str]:
    config = GalileoConfig(embed_dim=16, depth=count_blocks(names, "blocks."), num_heads=1)
    with torch.device("meta"):
        return list(GalileoEncoder(config).state_dict())


def _same(name: str) -> str:
    return name


_LAYOUTS = (
    Layout(
        "prithvi",
        "Prithvi (tensors named encoder.… and decoder.…)",
        "prithvi",
        _prithvi_names,
        _same,
    ),
    Layout(
        "prithvi-flat",
        "Prithvi-EO-1.0 in its old layout (blocks.…, decoder_blocks.…)",
        "prithvi",
        _flat_prithvi_names,
        _prefixed,
    ),
    Layout("galileo", "Galileo's encoder (space_time_embed.…)", "galileo", _galileo_names, _same),
)


def read_prithvi_config(
    state: Mapping[str, Tensor], hints: Mapping[str, Any], origin: str
) -> PrithviConfig:
    """Read the sizes of a Prithvi off its tensors.

    Args:
        state: tensors by the network's names.
        hints: ``num_heads``, ``decoder_num_heads``, ``img_size``, ``num_frames`` where somebody
            said them: they cannot be read off, or not in every case.
        origin: the file, for messages.

    Raises:
        PackageError: the patches are of another kind, or the number of heads is not known.
    """
    kernel = state["encoder.patch_embed.proj.weight"]
    if kernel.dim() != 5 or kernel.shape[2] != 1 or kernel.shape[3] != kernel.shape[4]:
        raise PackageError(
            f"{origin} is no Prithvi: its patches have the kernel {tuple(kernel.shape)} instead of "
            "(width, bands, 1, patch, patch).",
            "A masked autoencoder of photographs (MAE, ScaleMAE, SatMAE) has tensors of the same "
            "names; it is not known here as a teacher.",
        )
    width, in_channels, _frames, patch_px, _cols = kernel.shape
    decoder_width = state["decoder.decoder_embed.weight"].shape[0]
    frames, side = _token_grid(state["encoder.pos_embed"], patch_px, hints)
    try:
        return PrithviConfig(
            in_channels=in_channels,
            img_size=side * patch_px,
            patch_px=patch_px,
            num_frames=frames,
            embed_dim=width,
            depth=count_blocks(state, "encoder.blocks."),
            num_heads=_heads(hints.get("num_heads"), PRITHVI_HEADS, width, "num_heads", origin),
            decoder_embed_dim=decoder_width,
            decoder_depth=count_blocks(state, "decoder.decoder_blocks."),
            decoder_num_heads=_heads(
                hints.get("decoder_num_heads"),
                PRITHVI_DECODER_HEADS,
                decoder_width,
                "decoder_num_heads",
                origin,
            ),
            mlp_ratio=state["encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
        )
    except ValueError as error:
        raise _impossible(origin, error) from error


def read_galileo_config(
    state: Mapping[str, Tensor], hints: Mapping[str, Any], origin: str
) -> GalileoConfig:
    """Read the sizes of a Galileo off its tensors; arguments as `read_prithvi_config`."""
    kernel = state["space_time_embed.S2_RGB.proj.weight"]
    width = kernel.shape[0]
    try:
        return GalileoConfig(
            embed_dim=width,
            depth=count_blocks(state, "blocks."),
            num_heads=_heads(hints.get("num_heads"), GALILEO_HEADS, width, "num_heads", origin),
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            max_patch_px=kernel.shape[-1],
            max_dates=state["pos_embed"].shape[0],
        )
    except ValueError as error:
        raise _impossible(origin, error) from error


def _impossible(origin: str, error: ValueError) -> PackageError:
    return PackageError(
        f"The sizes in {origin} cannot be those of a teacher: {error}",
        "Take the weights, and their config.json, from where they were published.",
    )


def _heads(given: Any, table: Mapping[int, int], width: int, setting: str, origin: str) -> int:
    """Return the number of heads that was given, or that the public model of this width has."""
    heads = given if given is not None else table.get(width)
    if heads is None:
        raise PackageError(
            f"{origin} has tokens of width {width}, which no public model has, and weights do not "
            "tell the number of attention heads.",
            f"Put a config.json with {setting} beside the file.",
        )
    return int(heads)


def _token_grid(table: Tensor, patch_px: int, hints: Mapping[str, Any]) -> tuple[int, int]:
    """Find how many dates, and how many rows and columns, a position table is for.

    Its length is their product with that of the square grid, which several pairs may have. What
    was said beside the file decides, then the table's own numbers, then the image size of the
    public models.

    Args:
        table: (1, 1 + N, D).
        patch_px: side of a patch.
        hints: ``num_frames`` and ``img_size``, where known.

    Returns:
        dates, and tokens a side.
    """
    count = table.shape[1] - 1
    pairs = [(count // n**2, n) for n in range(isqrt(max(count, 0)), 0, -1) if count % n**2 == 0]
    said = hints.get("num_frames"), hints.get("img_size")
    for frames, side in pairs if any(said) else ():
        if said[0] in (None, frames) and said[1] in (None, side * patch_px):
            return frames, side
    for frames, side in pairs:
        own = position_table((frames, side, side), table.shape[-1])
        if own.shape == table.shape and torch.allclose(own, table.float(), atol=1e-3):
            return frames, side
    for frames, side in pairs:
        if side == PUBLIC_IMAGE_PX // patch_px:
            return frames, side
    return pairs[0] if pairs else (1, 1)


def with_computed_positions(
    state: Mapping[str, Tensor], config: PrithviConfig
) -> dict[str, Tensor]:
    """Replace the position tables by computed ones where they differ by no more than rounding.

    The public loader computes them always; the stored ones of the two layouts were rounded
    differently. A table that says something else is kept, because the weights were trained on it.
    """
    replaced = dict(state)
    for name in ("encoder.pos_embed", "decoder.decoder_pos_embed"):
        computed = position_table(config.grid, state[name].shape[-1])
        if computed.shape == state[name].shape and torch.allclose(
            computed, state[name].float(), atol=POSITION_ROUNDING, rtol=0
        ):
            replaced[name] = computed
    return replaced
