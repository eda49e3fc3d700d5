"""Make the Python environments that the engine and the tests need, from the lock files.

``environment.py engine FOLDER [--dev]`` makes or completes a virtual environment, and
``environment.py qgis-tests FOLDER`` a plain folder of packages for QGIS's own Python. Every
package is fetched by pip with the SHA-256 that its lock states. An environment that already has
what the locks ask for is left alone after a look at it; that takes less than a second.

Standard library only, Python 3.9 or newer: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "engine" / "lock"
STAMP = "hyperkd-locks.txt"
NEEDED = "3.11"


def say(message: str) -> None:
    """Tell the user; standard output stays free for results."""
    print(f"[setup] {message}", file=sys.stderr, flush=True)


def find_base_python() -> str:
    """Find the Python 3.11 that the environment is made with.

    The system's own comes first: it does not move when a version manager is updated.

    Raises:
        SystemExit: there is none.
    """
    candidates = [
        os.environ.get("HYPERKD_BASE_PYTHON"),
        f"/usr/bin/python{NEEDED}",
        shutil.which(f"python{NEEDED}"),
        sys.executable,
    ]
    question = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        try:
            answer = subprocess.run([candidate, "-c", question], capture_output=True, text=True)
        except OSError:
            continue
        if answer.stdout.strip() == NEEDED:
            return candidate
    raise SystemExit(
        f"No Python {NEEDED} with venv was found. Install the packages python{NEEDED} and "
        f"python{NEEDED}-venv, or set HYPERKD_BASE_PYTHON to an interpreter."
    )


def has_gpu() -> bool:
    """Tell whether NVIDIA's driver answers; the engine itself looks closer later."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    return subprocess.run([program, "-L"], capture_output=True).returncode == 0


def python_of(folder: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    if os.name == "nt":
        return folder / "Scripts" / "python.exe"
    return folder / "bin" / "python"


def lock_sum(locks: list[Path]) -> str:
    """Return one sum over the locks' names and texts."""
    digest = hashlib.sha256()
    for lock in locks:
        digest.update(lock.name.encode())
        digest.update(lock.read_bytes())
    return digest.hexdigest()


def stamped(folder: Path) -> list[str]:
    """Return the sums of the locks that were installed into the folder."""
    stamp = folder / STAMP
    return stamp.read_text(encoding="utf-8").split() if stamp.exists() else []


def stamp(folder: Path, lock: Path) -> None:
    """Remember that a lock was installed into the folder."""
    sums = [*stamped(folder), lock_sum([lock])]
    (folder / STAMP).write_text("\n".join(sums) + "\n", encoding="utf-8")


def is_complete(python: Path | str, lock: Path, target: Path | None = None) -> bool:
    """Ask an environment's own Python whether all packages of the lock are there."""
    command = [str(python), "-I", str(ROOT / "build_tools" / "check_packages.py"), str(lock)]
    if target is not None:
        command.append(str(target))
    try:
        return subprocess.run(command, stdout=sys.stderr).returncode == 0
    except OSError:
        return False


def clean_variables() -> dict[str, str]:
    """Return the environment without what would lead pip to another Python's packages."""
    strays = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_USER")
    return {name: value for name, value in os.environ.items() if name not in strays}


def pip_install(python: Path | str, lock: Path, *options: str) -> str:
    """Install a lock; return pip's complaint, empty when it succeeded.

    Wheels only: building a source archive would fetch build tools that no lock pins.
    """
    command = [str(python), "-m", "pip", "install", "--require-hashes", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet"]
    command += [*options, "-r", str(lock)]
    result = subprocess.run(
        command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, env=clean_variables()
    )
    if result.returncode == 0:
        return ""
    return result.stderr.strip() or f"pip ended with {result.returncode}"


def make_venv(folder: Path) -> None:
    """Make the virtual environment afresh."""
    base = find_base_python()
    say(f"making the environment {folder} with {base}")
    if folder.exists() and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"{folder} exists and is not a virtual environment; choose another.")
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True, env=clean_variables())


def choose_lock() -> Path:
    """Choose the lock with CUDA where there is a GPU, else the one without."""
    # The sum of torch's CPU build is known for x86_64; engine/lock/README.md says more.
    other_linux = sys.platform == "linux" and platform.machine() != "x86_64"
    return LOCKS / ("cuda.txt" if has_gpu() or other_linux else "cpu.txt")


def install_engine(folder: Path) -> None:
    """Install the engine's packages."""
    lock = choose_lock()
    say(f"installing the engine's packages from engine/lock/{lock.name} (a minute or two)")
    complaint = pip_install(python_of(folder), lock)
    if "No matching distribution found for torch==" in complaint:
        # PyPI's wheel for Linux is the one with CUDA; it works on a CPU too, but is ten times
        # the size. docs/install.md says how to tell pip where the small one is.
        say("pip's package index has no CPU build of torch; taking the one with CUDA instead")
        lock = LOCKS / "cuda.txt"
        complaint = pip_install(python_of(folder), lock)
    if complaint:
        raise SystemExit(f"The engine's packages could not be installed:\n{complaint}")
    stamp(folder, lock)


def ensure_engine(folder: Path, dev: bool) -> None:
    """Make the engine's environment what its locks say."""
    python = python_of(folder)
    engine_locks = [LOCKS / "cpu.txt", LOCKS / "cuda.txt"]
    installed = [lock for lock in engine_locks if lock_sum([lock]) in stamped(folder)]
    if not (installed and is_complete(python, installed[0])):
        make_venv(folder)
        install_engine(folder)
    lock = LOCKS / "dev.txt"
    if dev and not (lock_sum([lock]) in stamped(folder) and is_complete(python, lock)):
        say("installing the tools for tests and checks from engine/lock/dev.txt")
        complaint = pip_install(python, lock)
        if complaint:
            raise SystemExit(f"The tools could not be installed:\n{complaint}")
        stamp(folder, lock)


def ensure_qgis_tests(folder: Path, python: str) -> None:
    """Make the folder of test packages for QGIS's Python."""
    lock = LOCKS / "qgis-tests.txt"
    if lock_sum([lock]) in stamped(folder) and is_complete(python, lock, folder):
        return
    say(f"installing pytest for QGIS's Python into {folder}")
    if folder.exists():
        shutil.rmtree(folder)
    complaint = pip_install(python, lock, "--ignore-installed", "--target", str(folder))
    if complaint:
        raise SystemExit(f"The test packages could not be installed:\n{complaint}")
    stamp(folder, lock)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["engine", "qgis-tests"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dev", action="store_true", help="with the tools for tests and checks")
    parser.add_argument("--python", default=sys.executable, help="whose pip fills qgis-tests")
    options = parser.parse_args()
    if options.what == "engine":
        ensure_engine(options.folder.absolute(), options.dev)
    else:
        ensure_qgis_tests(options.folder.absolute(), options.python)


if __name__ == "__main__":
    main()
