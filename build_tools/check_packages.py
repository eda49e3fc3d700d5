"""Compare the packages of the Python that runs this with a lock file.

``check_packages.py LOCK [FOLDER]``: exit 0 when every package of the lock that this system needs
is installed (in FOLDER, when given) in the locked version; else name the first that is not.
Without import of a package: a look at its metadata takes milliseconds.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

try:
    from packaging.markers import Marker
except ModuleNotFoundError:  # outside the engine's environment; pip carries a copy
    from pip._vendor.packaging.markers import Marker  # type: ignore[assignment]

REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+))?")


def installed_versions(folder: str | None) -> dict[str, str]:
    """Return the version of every installed package by its normalised name."""
    found = metadata.distributions(path=[folder]) if folder else metadata.distributions()
    return {
        re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package.version
        for package in found
    }


def main() -> int:
    """Compare; return the exit code."""
    lock = Path(sys.argv[1])
    versions = installed_versions(sys.argv[2] if len(sys.argv) > 2 else None)
    for line in lock.read_text(encoding="utf-8").splitlines():
        match = REQUIREMENT.match(line)
        if match is None or (match["marker"] and not Marker(match["marker"]).evaluate()):
            continue
        if versions.get(match["name"]) != match["version"]:
            found = versions.get(match["name"], "nothing")
            print(f"[setup] {lock.name} wants {match['name']} {match['version']}, found {found}")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
