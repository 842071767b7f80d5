"""`agentserve engine`: the emulated engine alone, as a vLLM server would be."""

from __future__ import annotations

import argparse
import socket
from importlib.metadata import entry_points

from agentserve.cli.shapes import HELP as WHICH
from agentserve.cli.shapes import profile_of
from agentserve.errors import UsageError

PORTS = 1 << 16
HELP = "serve the emulated engine alone, as a vLLM server would"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--profile", default="llama-3.1-8b-h100", metavar="NAME|FILE.json", help=WHICH)
    parser.add_argument("--model", default="emulated", help="served model name")
    parser.add_argument("--time-scale", type=float, default=1.0, help="how much faster than real")
    parser.add_argument("--kv-tokens", type=int, help="default: what the profile's memory leaves")
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-queued-reqs", type=int)
    parser.add_argument("--scheduling-policy", choices=("fcfs", "priority"), default="fcfs")
    parser.add_argument(
        "--host-kv-tokens", type=int, default=0, help="a second KV tier in host memory (default none)"
    )
    parser.add_argument(
        "--host-gb-per-s", type=float, default=50.0, help="from host memory to the accelerator (default 50)"
    )
    parser.add_argument(
        "--native-pins", action="store_true", help="hold a session's KV when told to; stock engines do not"
    )
    parser.add_argument("--pin-share-max", type=float, default=0.8, help="of the KV, for pins (default 0.8)")
    parser.add_argument("--kv-events-port", type=int, help="publish KV events; replay on the next port")
    parser.add_argument(
        "--kv-events-legacy", action="store_true", help="positional arrays, as vLLM 0.23 and older"
    )
    parser.add_argument("--old-metric-names", action="store_true", help="also vLLM's old metric names")
    parser.add_argument("--dev-mode", action="store_true", help="also vLLM's development routes")


def can_listen(host: str, port: int) -> None:
    """Refuse an address before it is said to be served. The resolver takes a port of any size, by its last bits."""
    try:
        if not 0 <= port < PORTS:
            raise OSError(f"a port is at most {PORTS - 1}")
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            remedy="give another --host, --port or --kv-events-port",
        ) from error


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    found = [p for p in entry_points(group="agentserve.servers") if p.name == "emulated"]
    if not found:
        raise UsageError("the emulated engine is not installed", remedy="install agentserve-gateway whole")
    flags = {k: v for k, v in vars(args).items() if k not in ("host", "port", "verb")}
    flags["profile"] = profile_of(args.profile)
    serve = found[0].load()
    can_listen(args.host, args.port)
    if args.kv_events_port is not None:
        for port in (args.kv_events_port, args.kv_events_port + 1):
            can_listen(args.host, port)
    print(
        f"emulated engine on http://{args.host}:{args.port}/v1, model {args.model}, {args.profile}",
        flush=True,
    )
    status: int = serve(host=args.host, port=args.port, **flags)
    return status
