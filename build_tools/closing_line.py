"""Sum up JUnit reports in a line like pytest's own, and give the exit code for it.

``closing_line.py FOLDER [--seconds N] [FAILED STEP]...``. A step that failed counts as an error,
so that a run that ended before its tests did cannot look like a success.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.etree import ElementTree  # nosec B405: the reports are pytest's own, of this run


def count(folder: Path) -> dict[str, int]:
    """Return how many tests passed, failed, were skipped, or had an error."""
    totals = {"failed": 0, "passed": 0, "skipped": 0, "errors": 0}
    for report in sorted(folder.glob("*.xml")):
        suites = ElementTree.parse(report).getroot().iter("testsuite")  # nosec B314
        for suite in suites:
            tests, failures, errors, skipped = (
                int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
            )
            totals["failed"] += failures
            totals["errors"] += errors
            totals["skipped"] += skipped
            totals["passed"] += tests - failures - errors - skipped
    return totals


def in_words(totals: dict[str, int], seconds: int) -> str:
    """Write the line."""
    parts = [f"{number} {name}" for name, number in totals.items() if number]
    if totals["errors"] == 1:
        parts[-1] = "1 error"
    return f" {', '.join(parts) or 'no tests ran'} in {seconds}s "


def main() -> int:
    """Print the line; return 1 when something failed, or nothing was tested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", nargs="*", help="steps that failed")
    parser.add_argument("--seconds", type=int, default=0)
    options = parser.parse_args()
    totals = count(options.folder)
    if options.steps and not totals["failed"]:
        totals["errors"] += len(options.steps)
        print(f"failed steps: {', '.join(options.steps)}")
    print(in_words(totals, options.seconds).center(80, "="))
    return int(bool(options.steps or totals["failed"] or totals["errors"] or not totals["passed"]))


if __name__ == "__main__":
    raise SystemExit(main())
