"""Weights as others publish them: files of torch and safetensors, read without running anything.

A ``.pt`` file is a pickle, and a pickle can name any function to be called while it is read. torch
reads it with ``weights_only``: tensors, plain values, and the two classes below. Whatever else a
file names is refused; there is no second, trusting try.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from engine.errors import PackageError
from engine.packages.item import MOST_NAMED
from engine.packages.pickle_names import foreign_names

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
CHECKPOINT_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")

# What public files hold beside tensors: the training script's arguments. A path becomes one that
# only holds its text, so that it can be made on every system; Python 3.13 pickles it by the other
# name.
_ALLOWED: list[Any] = [
    argparse.Namespace,
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),
]
# The names under which training scripts put the weights beside optimizer, epoch and the like.
_WRAPPERS = ("model", "state_dict")
# The largest encoder in sight has 0.6e9; tensors of stride 0 may claim more than the file holds.
MAX_VALUES = 2**32

# torch wraps its reason into advice to trust the file, which is no advice of ours.
_TORCH_REASON = re.compile(r"WeightsUnpickler error: ([^\n]+)")
_BLOCKED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file of weights holds.

    Args:
        state: tensors by name, on the CPU. They may be read from disk only when they are used, and
            may have stride 0: copy them, do not write to them.
        args: of the training script, where the file has them.
        path: of the file.
        sha256: of the file, 64 hexadecimal digits.
    """

    state: dict[str, Tensor]
    args: dict[str, Any]
    path: Path
    sha256: str


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights.

    Args:
        path: ``.pt``, ``.pth``, ``.bin`` (torch, old or new format) or ``.safetensors``.

    Raises:
        PackageError: the file is missing, damaged, of another kind, names something that would
            run code, or holds no tensors.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise PackageError(f"There is no file of weights {path}.", "Check its name and folder.")
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise PackageError(
            f"{path} does not look like a file of weights.",
            f"They end with {', '.join(CHECKPOINT_SUFFIXES)}.",
        )
    is_torch = path.suffix.lower() in TORCH_SUFFIXES
    content = _read_torch(path) if is_torch else _read_safetensors(path)
    state, args = _unwrap(content)
    _check_state(state, path)
    return Checkpoint(state, args, path, _sha256(path))


def _read_torch(path: Path) -> Any:
    """Unpickle tensors and plain values, and nothing else."""
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(  # noqa: TID251 - foreign weights exist in no other format
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),  # files before torch 1.6 are no zip
            )
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error) from error
    # torch has no common class for what it raises: UnpicklingError, RuntimeError, EOFError,
    # KeyError, AttributeError and others, by where in the file the damage is.
    except Exception as error:
        blocked = _BLOCKED_GLOBAL.findall(str(error)) or foreign_names(path)
        if not blocked:
            raise _damaged(path, error) from error
        raise PackageError(
            f"{path} was not read: it names {', '.join(blocked[:MOST_NAMED])}, which is no tensor "
            "and would run as code of whoever made the file.",
            "Take the weights from where they were published, best as .safetensors.",
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error) from error
    return state


def _unwrap(content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Find the tensors and the training script's arguments in what the file holds."""
    if not isinstance(content, Mapping):
        return {}, {}
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    inner = next(
        (content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content
    )
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    return state, dict(args) if isinstance(args, Mapping) else {}


def _check_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file without weights, and one that claims more than any model has."""
    if not state:
        raise PackageError(
            f"{path} holds no tensors by name.",
            "It should be a state dict, or hold one under 'model' or 'state_dict'.",
        )
    count = sum(tensor.numel() for tensor in state.values())
    if count > MAX_VALUES:
        raise PackageError(
            f"{path} claims to hold {count:.3g} numbers; no model here has more than "
            f"{MAX_VALUES:.3g}.",
            "Take the weights from where they were published.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(path: Path, error: Exception) -> PackageError:
    text = str(error).strip()
    torch_reason = _TORCH_REASON.search(text)
    if torch_reason:
        reason = torch_reason[1]
    elif not text or "weights_only" in text:
        reason = type(error).__name__
    else:
        reason = text.partition("\n")[0]
    return PackageError(
        f"{path} is damaged, or no file of weights: {reason.rstrip('.')}.",
        "Copy or download it again.",
    )


def _unreadable(path: Path, error: Exception) -> PackageError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return PackageError(
        f"{path} cannot be read: {reason}.", "Check that you may read it and that memory is free."
    )
