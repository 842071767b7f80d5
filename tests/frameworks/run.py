"""Every framework's tests in an environment of its own: `python -m tests.frameworks.run [NAME ...]`.

Two things are seen: what the gateway makes of the framework's traffic when nothing but its base URL is changed
(`test_base_url.py`), and what the SDK adds (`test_NAME.py`). `--write` puts the tables into this folder's README.
Rule: versions are not pinned, so that what a framework's newest version breaks is seen here and not by users.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from tests.frameworks import environments
from tests.frameworks.environments import FRAMEWORKS, QUIET, ROOT

TEST_S = 300
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- {} -->\n", "<!-- end -->\n"
TRAFFIC = ("framework", "version", "recognised by", "steps right", "runs")
WITH_SDK = ("framework", "version", "recognised by", "calls right", "tests")


class Row(NamedTuple):
    """A line of a table."""

    cells: tuple[str, ...]
    ok: bool


def main() -> int:
    """Print the tables; 1 when any test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {README.name}; needs all")
    args = parser.parse_args()
    names = args.names or list(FRAMEWORKS)
    unknown = [name for name in names if name not in FRAMEWORKS]
    if unknown:
        parser.error(f"no test of {', '.join(unknown)}; there are {', '.join(FRAMEWORKS)}")
    if args.write and args.names:
        parser.error("--write is of all frameworks")
    traffic: list[Row] = []
    with_sdk: list[Row] = []
    for name in names:
        began = time.monotonic()
        seen, told = tried(name)
        traffic += seen
        with_sdk.append(told)
        for row in [*seen, told]:
            print("  ".join(f"{cell:<28}" for cell in row.cells).rstrip(), "" if row.ok else "FAILED")
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    if args.write:
        write({"traffic": table(TRAFFIC, traffic), "sdk": table(WITH_SDK, with_sdk)})
    return 0 if all(row.ok for row in [*traffic, *with_sdk]) else 1


def tried(name: str) -> tuple[list[Row], Row]:
    """One framework: its agents by their traffic, and with the SDK."""
    try:
        python = environments.own(name)
    except (subprocess.SubprocessError, OSError) as error:
        detail = str(getattr(error, "stderr", "") or error)
        print(f"  {name} cannot be installed: {detail.strip().splitlines()[-1:]}", file=sys.stderr)
        return [], Row((name, "-", "-", "-", "none"), False)
    version = environments.version(python, name)
    env = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT / "sdk"), "PYTHONDONTWRITEBYTECODE": "1"}
    cases, ok = tested(python, [*PLAIN, f"tests/frameworks/test_{name}.py"], env)
    told = sdk_row(name, version, cases, ok)
    env = {**os.environ, environments.GIVEN: f"{name}={python}"}
    cases, _ = tested(Path(sys.executable), ["tests/frameworks/test_base_url.py"], env)
    return [row for case in cases if (row := traffic_row(name, version, case))], told


# the framework's own warnings are not ours to mend
PLAIN = ("-p", "no:cacheprovider", "-W", "ignore", "-o", "filterwarnings=default")


def tested(python: Path, arguments: list[str], env: dict[str, str]) -> tuple[list[ET.Element], bool]:
    """The cases of a run of pytest, and whether all is well."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            str(python), "-m", "pytest", "-q", "-o", "junit_family=xunit1", f"--junitxml={report}",
            f"--rootdir={ROOT}", *arguments,
        ]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TEST_S)
        except subprocess.TimeoutExpired:
            print(f"  {arguments[-1]} took more than {TEST_S} s", file=sys.stderr)
            return [], False
        if done.returncode != 0:
            print(done.stdout[-4_000:], done.stderr[-2_000:], file=sys.stderr)
        cases = list(ET.parse(report).getroot().iter("testcase")) if report.is_file() else []
    return cases, done.returncode == 0


def traffic_row(name: str, version: str, case: ET.Element) -> Row | None:
    """What an agent's case recorded; None if it is another framework's, or passed and is of no run."""
    said = recorded(case)
    if any(child.tag == "skipped" for child in case):
        return None
    ok = not any(child.tag in ("failure", "error") for child in case)
    if ok and "title" not in said:
        return None
    title = said.get("title", str(case.get("name")))
    steps = said.get("steps", "-")
    return Row((title, version, said.get("recognised by", "-"), steps, said.get("runs", "failed")), ok)


def sdk_row(name: str, version: str, cases: list[ET.Element], ok: bool) -> Row:
    """What its tests with the SDK recorded. A skipped test counts as failed: the framework is not there after all."""
    passed = sum(not any(c.tag in ("failure", "error", "skipped") for c in case) for case in cases)
    said = [recorded(case) for case in cases]
    right = sum(int(one["calls"].split()[0]) for one in said if "calls" in one)
    otherwise = "header on its HTTP client" if right else "-"
    by = next((one["recognised by"] for one in said if "recognised by" in one), otherwise)
    calls = f"{right} of {right}" if right else "-"
    return Row(
        (name, version, by, calls, f"{passed} of {len(cases)}"), ok and bool(cases) and passed == len(cases)
    )


def recorded(case: ET.Element) -> dict[str, str]:
    """The properties of a case."""
    return {str(p.get("name")): str(p.get("value")) for p in case.iter("property")}


def table(head: tuple[str, ...], rows: list[Row]) -> str:
    """In Markdown."""
    lines = [head, tuple("---" for _ in head), *(row.cells for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(tables: dict[str, str]) -> None:
    """Put tables between their marks."""
    text = README.read_text()
    for name, lines in tables.items():
        before, found, rest = text.partition(BEGIN.format(name))
        _, ended, after = rest.partition(END)
        if not found or not ended:
            raise SystemExit(f"{README} has no place for the table of {name}")
        text = before + found + lines + ended + after
    README.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
