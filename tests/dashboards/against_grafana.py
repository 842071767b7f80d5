"""The committed dashboards against the types that the newest Grafana publishes. By hand:

    python -m tests.dashboards.against_grafana

Rule: it needs Node and the network, so no test runs it. The package is Grafana's own `@grafana/schema`, on which its
frontend is built; the TypeScript compiler judges each dashboard, panel, option and field as an object literal of its
type, so that a misspelt field or value is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.dashboards.queries import boards, panels

INSTALL_S, CHECK_S = 300, 120
PACKAGES = ("@grafana/schema@latest", "typescript@5")
KINDS = ("timeseries", "stat", "bargauge", "heatmap")

# JSON holds what an enum is written as, and leaves out what has a default.
PRELUDE = """
import type * as dashboard from "./node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen";
type Plain<T> = unknown extends T ? T
  : T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Partly<T> = T extends (infer U)[] ? Partly<U>[] : T extends object ? { [K in keyof T]?: Partly<T[K]> } : T;
"""


def program() -> str:
    """TypeScript that compiles if every dashboard is what its type says."""
    lines = [PRELUDE]
    for kind in KINDS:
        path = f"./node_modules/@grafana/schema/dist/types/raw/composable/{kind}/panelcfg/x/types.gen"
        lines.append(f'import type * as {kind} from "{path}";')
    for number, (name, board) in enumerate(boards().items()):
        lines.append(f"// {name}")
        for panel in panels(board):
            lines += _panel(panel, f"{number}_{panel['id']}")
        # the query and the title of an annotation are its data source's, which this type does not know
        theirs = {"target", "titleFormat"}
        notes = [{k: v for k, v in n.items() if k not in theirs} for n in board["annotations"]["list"]]
        whole = {**board, "panels": [], "annotations": {"list": notes}}
        lines.append(f"export const board{number}: Plain<dashboard.Dashboard> = {json.dumps(whole)};")
    return "\n".join(lines) + "\n"


def _panel(panel: dict[str, Any], place: str) -> list[str]:
    kind = panel["type"]
    assert kind in KINDS, f"no type is imported for panels of kind {kind}"
    typed = [
        ("panel", "Plain<dashboard.Panel>", panel),
        ("options", f"Partly<Plain<{kind}.Options>>", panel["options"]),
    ]
    custom = panel["fieldConfig"]["defaults"].get("custom")
    if custom:
        typed.append(("custom", f"Partly<Plain<{kind}.FieldConfig>>", custom))
    return [f"export const {what}{place}: {type_} = {json.dumps(value)};" for what, type_, value in typed]


def installed() -> Path:
    """A folder with the packages in it, made anew at each run so that it is the newest."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentserve" / "grafana-schema"
    home.mkdir(parents=True, exist_ok=True)
    (home / "package.json").write_text('{"private": true}', encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    subprocess.run(command, cwd=home, check=True, timeout=INSTALL_S)
    return home


def main() -> int:
    """0 when all are what Grafana takes."""
    home = installed()
    (home / "check.ts").write_text(program(), encoding="utf-8")
    command = [
        str(home / "node_modules/.bin/tsc"),
        "--noEmit",
        "--strict",
        "--skipLibCheck",
        "--moduleResolution",
    ]
    command += ["bundler", "--module", "esnext", "--target", "es2022", "check.ts"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=CHECK_S)
    manifest = json.loads((home / "node_modules/@grafana/schema/package.json").read_text(encoding="utf-8"))
    print(done.stdout[-6_000:], end="")
    verdict = "as its types say" if done.returncode == 0 else "NOT as its types say"
    print(f"{len(boards())} dashboards against @grafana/schema {manifest['version']}: {verdict}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
