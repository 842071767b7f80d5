"""Write the dashboards' JSON: `python -m dashboards.generate`; `--check` only says whether it is as generated."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.boards import BOARDS
from dashboards.panels import Board, built, levelled

__all__ = ["BOARDS", "FOLDER", "levelled", "main", "text"]

FOLDER = Path(__file__).parent / "grafana" / "dashboards"


def text(board: Board) -> str:
    """The JSON of a dashboard."""
    return json.dumps(built(board), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write all, or say which is stale."""
    stale = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        path = FOLDER / board.filename
        made = text(board)
        if not path.is_file() or path.read_text(encoding="utf-8") != made:
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(made, encoding="utf-8")
    print(f"stale: {', '.join(stale)}" if "--check" in arguments and stale else f"{len(BOARDS)} dashboards")
    return 1 if "--check" in arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
