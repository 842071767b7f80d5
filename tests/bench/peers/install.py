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

PACKAGES = {
    "vllm-router": ["vllm-router==0.1.17"],
    "sglang-router": ["sglang-router==0.3.2"],
    "litellm": ["litellm[proxy]==1.106.2"],
}
# In no package index: the repository, and the commit that the figures are of.
SOURCES = {
    "thunderagent": (
        "https://github.com/ThunderAgent-org/ThunderAgent",
        "a7eef77a0e6dc4015efec5465e13a4923f2c8b19",
    ),
    "production-stack": (
        "https://github.com/vllm-project/production-stack",
        "a6c01db05f65f556235413ba8dbcfb0c01132fff",
    ),
}
PYTHONS = {"production-stack": "3.12"}  # those that ask for more than what runs us; uv finds or fetches it
PEERS = (*PACKAGES, *SOURCES)
TIMEOUT_S = 900


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", nargs="*", default=list(PEERS), help="some of " + ", ".join(PEERS))
    parser.add_argument(
        "--source", action="append", default=[], metavar="PEER=FOLDER", help="take a peer's source from there"
    )
    args = parser.parse_args(argv)
    here = dict(given.split("=", 1) for given in args.source if "=" in given)
    unknown = (set(args.peers) - set(PEERS)) | (set(here) - set(SOURCES))
    if unknown:
        parser.error(f"there is no peer {min(unknown)}; known are {', '.join(PEERS)}")
    failed = [peer for peer in args.peers if not _install(peer, args.folder.resolve(), here.get(peer))]
    if shutil.which("nginx") is None:
        print("nginx is missing: apt-get install nginx")
    return 1 if failed else 0


def _install(peer: str, folder: Path, source: str | None) -> bool:
    where = folder / peer
    python = where / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    try:
        if not python.exists():
            _run([*uv, "venv", "-q", "--python", PYTHONS.get(peer, sys.executable), str(where)])
        wanted = PACKAGES.get(peer) or [str(Path(source).resolve() if source else _cloned(folder, peer))]
        _run([*uv, "pip", "install", "-q", "--python", str(python), *wanted])
    except (subprocess.SubprocessError, OSError) as error:
        print(f"{peer}: {error}")
        return False
    print(f"{peer}: installed in {where}")
    return True


def _cloned(folder: Path, peer: str) -> Path:
    """The peer's source at its commit."""
    origin, commit = SOURCES[peer]
    source = folder / f"{peer}-source"
    if not source.exists():
        _run(["git", "clone", "-q", "--filter=blob:none", origin, str(source)])
    _run(["git", "-C", str(source), "checkout", "-q", commit])
    return source


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
