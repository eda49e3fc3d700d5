"""What a pickle would call, listed without reading it: for the message that refuses the file.

`pickletools` lists the instructions of a pickle; it follows none of them.
"""

from __future__ import annotations

import pickletools  # nosec B403
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

# What torch itself writes; `engine.packages.checkpoints` allows two classes more.
_HARMLESS = (
    "torch.",
    "collections.OrderedDict",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
)
# A file of torch before 1.6 is five pickles and then numbers; others are one.
_MOST_PICKLES = 5
# The names stand before the numbers; a pickle of gigabytes is not searched to its end.
_MOST_OPCODES = 2_000_000
_LONGEST_NAME = 100


def foreign_names(path: Path) -> list[str]:
    """List functions and classes that a file would have called, but for those of tensors.

    Args:
        path: a file of torch, or any pickle.

    Returns:
        dotted names in their order; none when the file cannot be understood.
    """
    names: dict[str, None] = {}
    # What was found before the damage, if there is any, is what there is to say.
    with suppress(OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        for stream in _pickles(path):
            for name in _names_in(stream):
                names[name[:_LONGEST_NAME]] = None
    return [name for name in names if not name.startswith(_HARMLESS)]


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Open each pickle of a file: members of a zip, or one after the other."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".pkl"):
                    with archive.open(member) as stream:
                        yield stream
    else:
        with path.open("rb") as stream:
            for _pickle in range(_MOST_PICKLES):
                yield stream


def _names_in(stream: IO[bytes]) -> Iterator[str]:
    """Yield ``module.name`` of each global of one pickle, by reading its instructions."""
    texts: list[str] = []  # as pushed; the last two are what STACK_GLOBAL takes
    memo: dict[int, str] = {}
    latest = ""
    for number, (opcode, argument, _place) in enumerate(pickletools.genops(stream)):
        if number > _MOST_OPCODES:
            return
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif "UNICODE" in opcode.name or "STRING" in opcode.name:
            latest = str(argument)
            texts = [*texts[-1:], latest]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = latest
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = latest
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            latest = memo.get(int(argument or 0), "")
            texts = [*texts[-1:], latest]
