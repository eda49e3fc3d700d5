"""Foundations: frozen encoders from published files or packages, found again by their hash.

A model that was adapted from one holds only what was added; it names its foundation, users say
backbone, by the SHA-256 of its file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import PackageError
from engine.models.galileo import GalileoEncoder
from engine.models.prithvi import PrithviMAE
from engine.models.vit import FoundationIdentity, ViT, ViTConfig
from engine.packages import installed
from engine.packages.build import build_model
from engine.packages.checkpoints import CHECKPOINT_SUFFIXES, read_checkpoint
from engine.packages.encoder_weights import EncoderWeights
from engine.packages.files import METADATA_NAME, is_package, read_file
from engine.packages.foundation_files import files_named, find_file, remember_file
from engine.packages.installed import installed_paths, list_packages, user_models_folder
from engine.packages.item import WEIGHTS_NAME, parse_item
from engine.packages.package import ModelPackage, load_package
from engine.packages.size_hints import size_hints
from engine.packages.teacher_encoders import galileo_encoder, prithvi_encoder
from engine.packages.vit_layouts import published_by, read_encoder

__all__ = [
    "FOUNDATION_ARCHITECTURES",
    "Foundation",
    "FoundationIdentity",
    "check_config",
    "find_foundation",
    "fitted_vit",
    "load_foundation",
    "remember_foundation",
]

FOUNDATION_ARCHITECTURES = ("galileo", "prithvi-mae")
"""Of packages that can be a backbone; keys of `engine.packages.build.ARCHITECTURES`."""

SHOWN_DIGITS = 12
"""Of a SHA-256 in messages."""

_logger = logging.getLogger(__name__)

# What a file fixes, and how messages call it; other settings are choices of those who adapt it.
_FIXED = {
    "embed_dim": "width",
    "depth": "blocks",
    "num_heads": "heads",
    "mlp_ratio": "MLP ratio",
    "patch_px": "patch",
    "grid": "grid",
    "prefix_tokens": "tokens before the patches",
    "layer_scale": "layer scale",
}


@dataclass(frozen=True, eq=False)
class Foundation:
    """A frozen encoder, and what its file holds beside it.

    Args:
        identity: by which it is found again.
        vit: in eval mode, without gradients, on the CPU.
        decoder: tensors of its pre-training's decoder by their public names, may be empty.
        decoder_num_heads: attention heads of that decoder, None where not known.
    """

    identity: FoundationIdentity
    vit: ViT
    decoder: dict[str, Tensor]
    decoder_num_heads: int | None


def load_foundation(
    name_or_path: str,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> Foundation:
    """Load a foundation.

    Args:
        name_or_path: a file of weights of a kind that `vit_layouts.KINDS` lists, a package (folder
            or zip) of `FOUNDATION_ARCHITECTURES`, or the name of an installed one.
        num_heads: attention heads of a file's encoder, when neither its width nor a config.json
            beside it tells.
        decoder_num_heads: likewise, of its decoder.

    Raises:
        PackageError: there is no such file or package, it is damaged, would run code, or is no
            encoder of a known layout.
    """
    path = Path(name_or_path).expanduser()
    if path.name in (WEIGHTS_NAME, METADATA_NAME) and is_package(path.parent):
        path = path.parent
    is_file = path.is_file() and not is_package(path)
    if is_file or path.suffix.lower() in CHECKPOINT_SUFFIXES:
        return _of_checkpoint(path, num_heads, decoder_num_heads)
    return _of_package(load_package(str(path) if path.exists() else name_or_path))


def _of_checkpoint(path: Path, num_heads: int | None, decoder_num_heads: int | None) -> Foundation:
    checkpoint = read_checkpoint(path)
    hints = size_hints(checkpoint, num_heads=num_heads, decoder_num_heads=decoder_num_heads)
    weights = read_encoder(checkpoint.state, hints, str(checkpoint.path))
    published = published_by(weights.kind, str(checkpoint.path))
    identity = FoundationIdentity(
        checkpoint.path.stem, checkpoint.sha256, weights.kind, published.licence, published.source
    )
    return _foundation(identity, weights)


def _of_package(package: ModelPackage) -> Foundation:
    info, origin = package.info, str(package.path)
    network = build_model(package) if info.architecture in FOUNDATION_ARCHITECTURES else None
    if isinstance(network, GalileoEncoder):
        weights = galileo_encoder(network.state_dict(), network.config, origin)
    elif isinstance(network, PrithviMAE):
        weights = prithvi_encoder(network.state_dict(), network.config, origin)
    else:
        raise PackageError(
            f"The model {info.name!r} is a {info.architecture}, and no backbone.",
            f"Choose an installed backbone ({_installed_names()}), or a file of weights "
            f"({', '.join(CHECKPOINT_SUFFIXES)}).",
        )
    identity = FoundationIdentity(
        info.name, package.sha256, weights.kind, info.licence, _source_of(package)
    )
    return _foundation(identity, weights)


def _source_of(package: ModelPackage) -> str:
    """Where to get a package: this file of weights is nowhere else."""
    if package.path.parent == installed.plugin_models_folder():
        return f"HyperKD itself, which brings the package {package.info.name!r}"
    return f"whoever made the package {package.info.name!r} ({package.info.title})"


def _installed_names() -> str:
    names = [item.name for item in list_packages() if item.architecture in FOUNDATION_ARCHITECTURES]
    return ", ".join(names) or "none"


def _foundation(identity: FoundationIdentity, weights: EncoderWeights) -> Foundation:
    vit = _filled(weights.config, weights.state)
    return Foundation(identity, vit, weights.decoder, weights.decoder_num_heads)


def _filled(config: ViTConfig, state: dict[str, Tensor]) -> ViT:
    """Make an encoder of tensors, which it takes over; nothing is filled first."""
    with torch.device("meta"):
        vit = ViT(config)
    vit.load_state_dict(state, assign=True)
    return vit.requires_grad_(False).eval()


def find_foundation(
    identity: FoundationIdentity,
    config: ViTConfig | None = None,
    *,
    folders: Sequence[Path] = (),
) -> Foundation:
    """Find the foundation of an adapted model, and load it.

    It is looked for by its hash among the installed packages, the places that were remembered,
    and the files of weights in the user's models folder.

    Args:
        identity: as the model holds it.
        config: of the encoder that the model was made for; tells the heads, and is compared.
        folders: where to look for a file of weights of its name too, for example beside the model.

    Raises:
        PackageError: it is not there; a file of its name is another; it has other sizes than
            ``config``; or as `load_foundation`.
    """
    path = _package_with(identity.sha256) or find_file(identity.sha256, identity.name, folders)
    if path is None:
        raise _missing(identity, folders)
    heads = None if config is None else config.num_heads
    foundation = load_foundation(str(path), num_heads=heads)
    if foundation.identity.sha256 != identity.sha256:
        # It was changed without a new time of modification.
        raise _different(identity, str(path), foundation.identity.sha256)
    if config is not None:
        check_config(foundation, config)
    return foundation


def remember_foundation(identity: FoundationIdentity, path: str | Path) -> None:
    """Note where a foundation is, so that what is adapted from it later finds it without asking.

    A place that cannot be noted is logged; it is no error.

    Args:
        identity: of the foundation that was loaded from there.
        path: file of weights or package; the name of an installed package needs no note.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / WEIGHTS_NAME
    elif path.name == METADATA_NAME:
        path = path.parent / WEIGHTS_NAME
    if path.is_file():
        remember_file(path, identity.sha256)


def check_config(foundation: Foundation, config: ViTConfig) -> None:
    """Refuse a foundation of other sizes than a model was made for.

    Raises:
        PackageError: the message has both sizes.
    """
    own = foundation.vit.config
    wrong = [
        f"{noun} {getattr(own, name)} instead of {getattr(config, name)}"
        for name, noun in _FIXED.items()
        if getattr(own, name) != getattr(config, name)
    ]
    if wrong:
        raise PackageError(
            f"The backbone {foundation.identity.name!r} does not fit the model: it has "
            f"{', '.join(wrong)}.",
            "Choose the backbone that the model was adapted from, or adapt this one.",
        )


def fitted_vit(foundation: Foundation, config: ViTConfig) -> ViT:
    """Make an encoder of other choices (positions, epsilon, stochastic depth) with its weights.

    Args:
        foundation: stays as it is.
        config: the sizes are those of the foundation.

    Returns:
        in eval mode, without gradients; the tensors are shared, not copied.

    Raises:
        PackageError: as `check_config`, or the foundation has no table or periods for these
            positions.
    """
    check_config(foundation, config)
    state = foundation.vit.state_dict()
    with torch.device("meta"):
        wanted = ViT(config).state_dict()
    missing = [name for name in wanted if name not in state]
    if missing or any(state[name].shape != wanted[name].shape for name in wanted):
        raise PackageError(
            f"The backbone {foundation.identity.name!r} has {foundation.vit.config.positions} "
            f"positions, and the model needs {config.positions} ones.",
            "Choose the backbone that the model was adapted from.",
        )
    return _filled(config, {name: state[name] for name in wanted})


def _package_with(sha256: str) -> Path | None:
    """Find the installed package with these weights, by what its model.json says."""
    return next((path for path, found in _packages() if found == sha256), None)


def _packages() -> Iterator[tuple[Path, str]]:
    """The installed packages that can be a backbone, each with the hash of its weights."""
    for path in installed_paths().values():
        try:
            item = parse_item(read_file(path, METADATA_NAME))
        except PackageError as error:
            _logger.warning("The model package %s is left out: %s", path, error)
            continue
        if item.properties.architecture in FOUNDATION_ARCHITECTURES:
            yield path, item.weights_sha256


def _missing(identity: FoundationIdentity, folders: Sequence[Path]) -> PackageError:
    """Say what is not there, or that what is there under its name is something else."""
    others = [(str(path), found) for path, found in _packages() if path.stem == identity.name]
    others += [(file.path, file.sha256) for file in files_named(identity.name, folders)]
    if others:
        return _different(identity, *others[0])
    return PackageError(
        f"The model needs the backbone {identity.name!r}, which is not on this computer (SHA-256 "
        f"{_short(identity.sha256)}, licence {identity.licence}).",
        f"Get it from {identity.source} and put it into {user_models_folder()}.",
    )


def _different(identity: FoundationIdentity, path: str, found: str) -> PackageError:
    return PackageError(
        f"{path} is not the backbone {identity.name!r} of the model: its SHA-256 is "
        f"{_short(found)}, and the model was adapted from {_short(identity.sha256)}.",
        f"Get the file from {identity.source} (licence {identity.licence}) and put it into "
        f"{user_models_folder()}.",
    )


def _short(sha256: str) -> str:
    return f"{sha256[:SHOWN_DIGITS]}…"
