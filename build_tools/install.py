"""Install the plugin's zip into a QGIS profile, and its engine beside it when there is none.

``install.py --zip ZIP`` installs into the user's own profile, as the plugin manager would: the
files of the zip and nothing else, with the plugin switched on. Close QGIS before; it writes its
settings when it ends.
"""

from __future__ import annotations

import argparse
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "hyperkd"


def user_profiles() -> Path:
    """Return the folder of the user's QGIS 3 profiles on this system."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", home)) / "QGIS" / "QGIS3" / "profiles"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "QGIS" / "QGIS3" / "profiles"
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "QGIS" / "QGIS3" / "profiles"


def unpack(archive: Path, plugins: Path) -> Path:
    """Put the zip's files into the plugin folder, in place of an older version's.

    The new version is unpacked beside the old one first, so that a zip that cannot be read
    leaves the old one as it was.
    """
    target = plugins / FOLDER
    fresh = plugins / f".{FOLDER}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with zipfile.ZipFile(archive) as files:
        files.extractall(fresh)  # our own zip; extractall itself refuses names with ".."
    if target.is_symlink():
        # A developer's link to a checkout: the link goes, not what it leads to.
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    (fresh / FOLDER).rename(target)
    fresh.rmdir()
    return target


def switch_on(profile: Path) -> None:
    """Switch the plugin on in a profile, as its check box in the plugin manager does."""
    ini = profile / "QGIS" / "QGIS3.ini"
    ini.parent.mkdir(parents=True, exist_ok=True)
    lines = ini.read_text(encoding="utf-8").splitlines() if ini.exists() else []
    ini.write_text("\n".join(with_plugin(lines)) + "\n", encoding="utf-8")


def with_plugin(lines: list[str]) -> list[str]:
    """Return the lines of an ini file with ``hyperkd=true`` in its ``[PythonPlugins]``.

    Line by line: QGIS's ini files have values that `configparser` reads and writes otherwise.
    """
    section, setting = "[PythonPlugins]", f"{FOLDER}=true"
    kept = [line for line in lines if not line.startswith(f"{FOLDER}=")]
    if section not in kept:
        return [*kept, "", section, setting]
    place = kept.index(section) + 1
    return [*kept[:place], setting, *kept[place:]]


def installed_version(folder: Path) -> str:
    """Return the version in a plugin folder's ``metadata.txt``."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(folder / "metadata.txt", encoding="utf-8")
    return metadata.get("general", "version", fallback="?")


def ensure_user_engine(plugin: Path) -> Path:
    """Make the engine's environment where the plugin looks for it, if there is none."""
    # The installed plugin is asked, so that the place is written down only there.
    sys.path.insert(0, str(plugin))
    from hyperkd_qgis.environment import user_data_folder

    folder = Path(user_data_folder()) / "engine"
    command = [sys.executable, str(ROOT / "build_tools" / "environment.py"), "engine", str(folder)]
    subprocess.run(command, check=True)
    return folder


def main() -> None:
    """Read the command line and install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zip", type=Path, required=True)
    parser.add_argument("--profiles", type=Path, default=user_profiles(), help="folder of profiles")
    parser.add_argument("--profile", default="default", help="name of the profile")
    parser.add_argument("--with-engine", action="store_true", help="make the engine if missing")
    options = parser.parse_args()
    profile = options.profiles / options.profile
    plugin = unpack(options.zip, profile / "python" / "plugins")
    switch_on(profile)
    print(f"[install] HyperKD {installed_version(plugin)} is in {plugin}")
    if options.with_engine:
        print(f"[install] its engine is in {ensure_user_engine(plugin)}")
        print("[install] start QGIS; the tools are in the Processing Toolbox under HyperKD")


if __name__ == "__main__":
    main()
