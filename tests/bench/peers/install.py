"""Install the peers, each in an environment of its own under one folder: `python -m tests.bench.peers.install DIR`.

Rule: nothing goes into the repository or into its environment. Versions are pinned: those that the figures are of.
nginx comes from the system (`apt-get install nginx`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

THUNDERAGENT = "https://github.com/ThunderAgent-org/ThunderAgent"
THUNDERAGENT_COMMIT = "a7eef77a0e6dc4015efec5465e13a4923f2c8b19"
PACKAGES = {
    "vllm-router": ["vllm-router==0.1.17"],
    "sglang-router": ["sglang-router==0.3.2"],
    "litellm": ["litellm[proxy]==1.106.2"],
    "thunderagent": [],
}
TIMEOUT_S = 900


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", nargs="*", default=list(PACKAGES), help="some of " + ", ".join(PACKAGES))
    parser.add_argument(
        "--thunderagent", default=THUNDERAGENT, help="its repository, or a folder with its source"
    )
    args = parser.parse_args(argv)
    unknown = set(args.peers) - set(PACKAGES)
    if unknown:
        parser.error(f"there is no peer {min(unknown)}; known are {', '.join(PACKAGES)}")
    failed = [peer for peer in args.peers if not _install(peer, args.folder.resolve(), args.thunderagent)]
    if shutil.which("nginx") is None:
        print("nginx is missing: apt-get install nginx")
    return 1 if failed else 0


def _install(peer: str, folder: Path, thunderagent: str) -> bool:
    where = folder / peer
    python = where / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    wanted = PACKAGES[peer]
    try:
        if not python.exists():
            _run([*uv, "venv", "-q", "--python", sys.executable, str(where)])
        if peer == "thunderagent":
            wanted = [str(_source(folder, thunderagent))]
        _run([*uv, "pip", "install", "-q", "--python", str(python), *wanted])
    except (subprocess.SubprocessError, OSError) as error:
        print(f"{peer}: {error}")
        return False
    print(f"{peer}: installed in {where}")
    return True


def _source(folder: Path, origin: str) -> Path:
    """ThunderAgent's source at the commit that the figures are of; it is in no package index."""
    if Path(origin).is_dir():
        return Path(origin).resolve()
    source = folder / "thunderagent-source"
    if not source.exists():
        _run(["git", "clone", "-q", "--filter=blob:none", origin, str(source)])
    _run(["git", "-C", str(source), "checkout", "-q", THUNDERAGENT_COMMIT])
    return source


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
