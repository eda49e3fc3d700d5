"""Make the lock files in ``engine/lock`` again, from the dependencies in ``pyproject.toml``.

Run it by hand with the program ``uv`` on the path when a dependency changes; nothing that a user
or a test does needs it. The lists that it leaves out and adds are explained in
``engine/lock/README.md``.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "engine" / "lock"

# The CPU builds of torch that its authors offer on an index of their own, where the version has
# the suffix "+cpu". The sums are those of the wheels for Linux on x86_64.
TORCH_CPU_SHA256 = {
    "cp311": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
}
# What torch's builds with CUDA need, and nothing else does.
ONLY_CUDA = re.compile(r"^(nvidia-|cuda-|triton==)")

HEADER = """\
# {title}
# Made by build_tools/make_locks.py from pyproject.toml; see engine/lock/README.md.
"""


def resolve(*arguments: str) -> str:
    """Let uv resolve for Python 3.11 and newer on all systems; return the lock's text."""
    command = ["uv", "pip", "compile", "--quiet", "--no-config", "--universal", "--upgrade"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--python-version", "3.11"]
    result = subprocess.run(
        [*command, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return result.stdout


def entries(lock: str) -> list[str]:
    """Split a lock into its requirements, each with the lines of its sums."""
    return re.split(r"\n(?=\S)", lock.strip())


def torch_for_cpu(entry: str) -> list[str]:
    """Split torch's entry in two: the CPU build for Linux on x86_64, the index's elsewhere."""
    requirement, *sums = entry.splitlines()
    version = re.match(r"torch==([\d.]+)", requirement)
    if version is None:
        raise SystemExit(f"The lock's entry for torch is not understood: {requirement!r}.")
    linux = "sys_platform == 'linux' and platform_machine == 'x86_64'"
    others = "sys_platform != 'linux' or platform_machine != 'x86_64'"
    cpu_sums = [f"    --hash=sha256:{value}" for value in TORCH_CPU_SHA256.values()]
    return [
        "# CPU build\n" + " \\\n".join([f"torch=={version[1]}+cpu ; {linux}", *cpu_sums]),
        "\n".join([f"torch=={version[1]} ; {others} \\", *sums]),
    ]


def cpu_entries(cuda: Iterable[str]) -> list[str]:
    """Leave out CUDA's packages, and ask for torch without CUDA."""
    kept: list[str] = []
    for entry in cuda:
        if entry.startswith("torch=="):
            kept += torch_for_cpu(entry)
        elif not ONLY_CUDA.match(entry):
            kept.append(entry)
    return kept


def write(name: str, title: str, lines: Iterable[str]) -> None:
    """Write one lock file."""
    text = HEADER.format(title=title) + "\n".join(lines) + "\n"
    (LOCKS / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write the four lock files."""
    cuda = entries(resolve("pyproject.toml"))
    write("cuda.txt", "The engine with CUDA on Linux (without it elsewhere).", cuda)
    write("cpu.txt", "The engine without CUDA.", cpu_entries(cuda))
    # The tools live in the engine's environment, so its versions bind them.
    constraint = ["--constraint", str(LOCKS / "cuda.txt")]
    dev = entries(resolve("--group", "pyproject.toml:dev", *constraint))
    write("dev.txt", "Tests and checks, in the engine's environment.", dev)
    qgis = entries(resolve("--group", "pyproject.toml:qgis-tests"))
    write("qgis-tests.txt", "Tests in QGIS's own Python: pure Python packages only.", qgis)


if __name__ == "__main__":
    main()
