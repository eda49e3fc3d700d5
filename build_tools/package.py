"""Pack the plugin's zip: the tracked files without those that ``.gitattributes`` leaves out.

``package.py ZIP``. The files are taken from the disk as they are now, so that a change can be
tried before it is committed; which files they are, git says. The same files give the same zip to
the byte: the names are sorted, and times and permissions are fixed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The installed plugin's name for ever: QGIS's settings and other plugins know it by it.
FOLDER = "hyperkd"
SIZE_LIMIT_BYTES = 25_000_000  # of the plugin site
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
PLAIN_FILE = 0o100644 << 16


def git(*arguments: str, text: str | None = None) -> list[str]:
    """Run git in the repository; return what it prints, split at NUL."""
    # The checkout may belong to another user, as in a container.
    command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, input=text, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise SystemExit(f"The zip is made from a git checkout: {result.stderr.strip()}")
    return result.stdout.split("\0")[:-1]


def is_left_out(states: dict[str, str], name: str) -> bool:
    """Tell whether a file, or a folder above it, has the attribute export-ignore."""
    path = Path(name)
    return any(states.get(str(part)) == "set" for part in (path, *path.parents))


def shipped_files() -> list[str]:
    """Return the names of the files that the plugin is made of, sorted."""
    names = git("ls-files", "-z")
    # Attributes are set on folders too, and git does not hand those down to the files in them.
    paths = {str(path) for name in names for path in (Path(name), *Path(name).parents)} - {"."}
    answer = git("check-attr", "-z", "--stdin", "export-ignore", text="\0".join(sorted(paths)))
    # Three fields a path: the path, the attribute's name, its state.
    states = dict(zip(answer[0::3], answer[2::3], strict=True))
    return sorted(name for name in names if not is_left_out(states, name))


def write_zip(target: Path) -> int:
    """Write the zip under a temporary name, rename it, and return its size in bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in shipped_files():
            path = ROOT / name
            if not path.is_file():
                raise SystemExit(
                    f"{name} is tracked by git, but is not there; restore or git rm it."
                )
            entry = zipfile.ZipInfo(f"{FOLDER}/{name}", EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = PLAIN_FILE
            archive.writestr(entry, path.read_bytes())
    part.replace(target)
    return target.stat().st_size


def main() -> None:
    """Read the command line, pack, and say how large the zip is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zip", type=Path)
    target = parser.parse_args().zip
    size_bytes = write_zip(target)
    print(f"[package] {target}: {size_bytes / 1e6:.1f} MB", file=sys.stderr)
    if size_bytes > SIZE_LIMIT_BYTES:
        raise SystemExit("The plugin site takes at most 25 MB.")


if __name__ == "__main__":
    main()
