"""The files of CSAKD's authors: which network they hold, read off, and its weights.

Their training saves compiled models, so that each name starts with ``_orig_mod.``; the network
lies below ``decoder.``. A student's file holds blocks of the mixed fine stream that the published
network never runs; they are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from engine.errors import PackageError
from engine.models.fusion.attention import Fusion
from engine.models.fusion.dts import DTSConfig, DTSNet
from engine.packages.checkpoints import read_checkpoint

RELEASED_RATIO = 4
"""The ratio of the authors' networks; no tensor says it."""
RELEASED_HEADS = 4
"""The heads of their attention; no tensor says it either."""

MOST_NAMED = 8
"""How many missing or unknown tensors a message names."""

_PREFIX = re.compile(r"^(?:_orig_mod\.|module\.)*(?:decoder\.)?")
_STREAMS = {"hm": "mixed_fine", "mh": "mixed_coarse", "h": "hsi", "m": "msi"}
_STEM = re.compile(r"^(hm|mh|h|m)conv1\.(weight|bias)$")
_BLOCK = re.compile(r"^(hm|mh|h|m)feat\.(\d+)\.MFB([123])\.conv([1-5])\.(weight|bias)$")
_OTHERS = {
    "fuse_att.query_conv": "fusion.attention.query",
    "fuse_att.key_conv": "fusion.attention.key",
    "fuse_att.value_conv": "fusion.attention.value",
    "fuse_att.output_conv": "fusion.attention.output",
    "fuse_att.attention_weights": "fusion.gate",  # with attention
    "fuse_att.attention_conv": "fusion.gate",  # without
    "fuse": "head.0",
    "last": "head.2",
}
_WEIGHTS = "fuse_att.weights"  # of the fusion by weights; a tensor without a module


def load_released(path: str | Path, ratio: int = RELEASED_RATIO) -> DTSNet:
    """Load a network of the authors.

    Args:
        path: of their file, or of one in their layout.
        ratio: that it was trained for.

    Raises:
        PackageError: the file cannot be read, or holds no network of CSAKD.
    """
    return network_of(read_checkpoint(path).state, ratio, str(path))


def network_of(
    weights: Mapping[str, Tensor], ratio: int = RELEASED_RATIO, source: str = "The file"
) -> DTSNet:
    """Make the network that tensors under published names are of.

    Args:
        weights: published name to tensor.
        ratio: that it was trained for.
        source: for messages.

    Raises:
        PackageError: they are of no network of CSAKD, or not complete.
    """
    plain = {_PREFIX.sub("", name): tensor for name, tensor in weights.items()}
    config = config_of(plain, ratio, source)
    state = {ours(name, source): tensor for name, tensor in plain.items()}
    if config.blocks[0] == 0:
        state = {name: v for name, v in state.items() if not name.startswith("mixed_fine.blocks.")}
    network = DTSNet(config)
    expected = network.state_dict()
    wrong = [name for name in expected if name not in state]
    wrong += [name for name in state if name not in expected]
    wrong += [
        name
        for name, tensor in state.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    if wrong:
        raise PackageError(
            f"{source} holds a part of a network of CSAKD: {', '.join(wrong[:MOST_NAMED])} "
            f"{'is' if len(wrong) == 1 else 'are'} missing, of another size or too many.",
            "Take the whole file from where it was published.",
        )
    network.load_state_dict(state)
    return network


def config_of(
    plain: Mapping[str, Tensor], ratio: int = RELEASED_RATIO, source: str = "The file"
) -> DTSConfig:
    """Read a network's sizes off its tensors.

    A grouped stream of the hyperspectral image tells the student, whose mixed fine stream is only
    a stem.

    Args:
        plain: published name without prefixes to tensor.
        ratio: that it was trained for.
        source: for messages.

    Raises:
        PackageError: they are of no network of CSAKD.
    """
    try:
        bands, width = plain["last.weight"].shape[0], plain["fuse.weight"].shape[1]
        first = plain["hfeat.0.MFB1.conv1.weight"]
        msi_bands = plain["mconv1.weight"].shape[1]
        growth, h_groups = first.shape[0], width // first.shape[1]
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise PackageError(
            f"{source} holds no network of CSAKD: {error} is not among its tensors.",
            "Name a file of CSAKD's teacher or student.",
        ) from error
    blocks = tuple(_count(plain, stream) for stream in _STREAMS)
    if h_groups > 1:
        blocks = (0, *blocks[1:])
    query = plain.get("fuse_att.query_conv.weight")
    try:
        return DTSConfig(
            hsi_channels=bands,
            msi_channels=msi_bands,
            ratio=ratio,
            width=width,
            growth=growth,
            blocks=blocks,  # type: ignore[arg-type]
            h_groups=h_groups,
            fusion=_fusion(plain),
            fusion_width=64 if query is None else query.shape[0],
            heads=RELEASED_HEADS,
            down="bicubic",
        )
    except ValueError as error:
        raise PackageError(f"{source} holds no network of CSAKD: {error}") from error


def ours(name: str, source: str = "The file") -> str:
    """A published name, without prefixes, as `DTSNet` has it.

    Raises:
        PackageError: no network of CSAKD has such a tensor.
    """
    if stem := _STEM.match(name):
        return f"{_STREAMS[stem[1]]}.stem.{stem[2]}"
    if block := _BLOCK.match(name):
        stream, number, unit, conv, kind = block.groups()
        return (
            f"{_STREAMS[stream]}.blocks.{number}.units.{int(unit) - 1}.convs.{int(conv) - 1}.{kind}"
        )
    if name == _WEIGHTS:
        return "fusion.weights"
    module, _, kind = name.rpartition(".")
    if module in _OTHERS:
        return f"{_OTHERS[module]}.{kind}"
    raise PackageError(
        f"{source} holds {name}, which no network of CSAKD has.",
        "Name a file of CSAKD's teacher or student.",
    )


def _count(plain: Mapping[str, Tensor], stream: str) -> int:
    found = (_BLOCK.match(name) for name in plain)
    return len({match[2] for match in found if match and match[1] == stream})


def _fusion(plain: Mapping[str, Tensor]) -> Fusion:
    """Which of the published fusions the tensors are of."""
    if "fuse_att.attention_weights.weight" in plain:
        return "released"
    if "fuse_att.attention_conv.weight" in plain:
        return "none"
    if _WEIGHTS in plain:
        return "weights"
    return "attention" if "fuse_att.query_conv.weight" in plain else "sum"
