"""Sizes of a network that its tensors do not tell: from a config.json beside the file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.packages.checkpoints import Checkpoint

_SIZES = ("embed_dim", "num_heads", "decoder_num_heads", "img_size", "num_frames")

_logger = logging.getLogger(__name__)


def size_hints(checkpoint: Checkpoint, **given: int | None) -> dict[str, Any]:
    """Gather sizes that the tensors do not tell: from config.json beside the file, and the caller.

    The public files have one each; one that states another width is of another file.

    Args:
        checkpoint: the file.
        given: sizes by name that win over those of config.json; None for not known.

    Returns:
        ``num_heads``, ``decoder_num_heads``, ``img_size`` and ``num_frames``, where known.
    """
    path = checkpoint.path.parent / "config.json"
    said = _read_sizes(path) if path.is_file() else {}
    width = said.pop("embed_dim", None)
    if width is not None and not _has_width(checkpoint.state, width):
        _logger.warning("%s is for another model than %s and was not used.", path, checkpoint.path)
        said = {}
    return {**said, **{name: value for name, value in given.items() if value is not None}}


def _has_width(state: Mapping[str, Tensor], width: int) -> bool:
    """Whether a block's first norm is as wide as said."""
    norms = [tensor for name, tensor in state.items() if name.endswith("blocks.0.norm1.weight")]
    return any(tuple(norm.shape) == (width,) for norm in norms)


def _read_sizes(path: Path) -> dict[str, int]:
    """Read a public config.json: Prithvi's, flat or under pretrained_cfg; Galileo's, nested."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        _logger.warning("%s cannot be read and was not used: %s", path, error)
        return {}
    sizes: dict[str, int] = {}
    for part in _config_parts(content):
        for name, value in part.items():
            setting = {"embedding_size": "embed_dim"}.get(name, name)
            is_size = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if setting in _SIZES and is_size:
                sizes[setting] = value
    return sizes


def _config_parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a config.json that may hold sizes, the more special ones last."""
    parts = [content]
    for names in (("pretrained_cfg",), ("model", "encoder")):
        part = content
        for name in names:
            part = part.get(name) if isinstance(part, dict) else None
        parts.append(part)
    return [part for part in parts if isinstance(part, dict)]
