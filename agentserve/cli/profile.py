"""`agentserve profile`: what emulated engines are modelled on, and how to fit one to an engine of your own.

Rule: a fitted profile is printed with how well it predicts each sample, so that nobody has to believe it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

from agentserve.cli.shapes import HELP as WHICH
from agentserve.cli.shapes import profile_of, read_samples, to_plain, write_samples
from agentserve.cli.timing import measure
from agentserve.cli.trials import write_text
from agentserve.engine import PROFILES, Profile, Sample, fit, fit_error, profile
from agentserve.errors import UsageError

HELP = "list the emulated engines' profiles, show one, or fit one to a real engine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("name", nargs="?", metavar="NAME|FILE.json", help=WHICH)
    parser.add_argument(
        "--measure", metavar="URL", help="time an idle engine's iterations; give --samples to keep them"
    )
    parser.add_argument("--model", help="the model to ask for (default: the first that the engine serves)")
    parser.add_argument("--samples", metavar="FILE.csv", help="timed iterations: written, or read by --fit")
    parser.add_argument("--fit", action="store_true", help="fit the profile's factors to the samples")
    parser.add_argument("--out", metavar="FILE.json", help="write the profile, for --profile elsewhere")


def run(args: argparse.Namespace) -> int:
    """List, show, measure or fit."""
    if args.name is None:
        if args.fit or args.measure or args.out or args.samples:
            raise UsageError("which profile?", remedy="name the one that the engine is nearest to")
        _list()
        return 0
    shape = profile(profile_of(args.name))
    samples: list[Sample] = []
    if args.measure:
        samples = asyncio.run(
            measure(
                args.measure.rstrip("/").removesuffix("/v1"),
                model=args.model,
                api_key=os.environ.get("OPENAI_API_KEY"),
                tell=lambda text: print(text, file=sys.stderr, flush=True),
            )
        )
        if args.samples:
            write_samples(args.samples, samples)
    elif args.samples:
        samples = read_samples(args.samples)
    if args.fit:
        if not samples:
            raise UsageError("there is nothing to fit to", remedy="give --samples FILE.csv or --measure URL")
        shape = fit(shape, samples)
    if samples:
        _compare(shape, samples)
    text = json.dumps(to_plain(shape), indent=2)
    if args.out:
        write_text(args.out, text + "\n")
    else:
        print(text)
    return 0


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("profile")
    for title in ("KV tokens", "prefill tokens/s", "decode tokens/s alone", "64 together"):
        table.add_column(title, justify="right")
    for name, shape in PROFILES.items():
        alone, together = shape.decode_step_s(1, 1000), shape.decode_step_s(64, 1000)
        figures = (shape.kv_tokens(), shape.prefill_tokens_per_s(), 1 / alone, 64 / together)
        table.add_row(name, *(f"{figure:,.0f}" for figure in figures))
    out = Console()
    (out if out.is_terminal else Console(width=120)).print(table)


def _compare(shape: Profile, samples: list[Sample]) -> None:
    """Predicted beside measured."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{shape.name}: mean error {fit_error(shape, samples):.1%}")
    for title in ("prefill", "behind", "decodes", "context", "measured ms", "predicted ms", "error"):
        table.add_column(title, justify="right")
    for s in samples:
        predicted = s.predicted_s(shape)
        counts = (s.prefill_tokens, s.prefill_context, s.decodes, s.decode_context)
        table.add_row(
            *(f"{count:,}" if count else "" for count in counts),
            f"{1e3 * s.seconds:.2f}",
            f"{1e3 * predicted:.2f}",
            f"{predicted / s.seconds - 1:+.1%}",
        )
    out = Console(stderr=True)
    (out if out.is_terminal else Console(stderr=True, width=110)).print(table)
