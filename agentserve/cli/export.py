"""`agentserve export`: programs, tool calls or steps to a file that `replay` and `forecast evaluate` read."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from agentserve.cli.stored import add_store_arguments, duration, with_database
from agentserve.cli.whole import whole
from agentserve.errors import UsageError
from agentserve.store import export
from agentserve.store.database import Database

HELP = "write programs, steps and tool calls to a file"
NONE = {
    "programs": "no program has finished a step",
    "tools": "no tool call has ended",
    "steps": "no step has ended",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "file", nargs="?", default="-", help="JSONL, .jsonl.gz or .parquet; - is standard output (default)"
    )
    parser.add_argument(
        "--what",
        choices=export.KINDS,
        default="programs",
        help="programs for `replay`, tools for `forecast evaluate`, or steps (default programs)",
    )
    parser.add_argument("--since", type=duration, metavar="AGO", help="only the last 30m, 12h, 7d, …")
    parser.add_argument("--tenant", help="only of this tenant")
    parser.add_argument(
        "--format", choices=("jsonl", "parquet"), help="default: by the file's name, else jsonl"
    )
    add_store_arguments(parser, json=False)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    parquet = _format(args) == "parquet"
    if parquet and args.file == "-":
        raise UsageError("Parquet cannot go to standard output", remedy="name a file")
    since = time.time() - args.since if args.since else 0.0

    async def work(database: Database) -> int:
        lines = export.lines(database, args.what, since=since, tenant=args.tenant)
        if parquet:
            return await _parquet(lines, args.file)
        with _opened(args.file) as stream:
            return await _jsonl(lines, args.what, stream)

    written = with_database(args, work)
    if not written:
        print(f"nothing to export: {NONE[args.what]} in that time", file=sys.stderr)
    elif args.file != "-":
        print(f"{written} {args.what} written to {args.file}", file=sys.stderr)
    return 0


def _format(args: argparse.Namespace) -> str:
    """As told, else by the file's name: one that promises a table gets no JSON lines under it."""
    if args.format is not None:
        return str(args.format)
    ending = Path(args.file.lower().removesuffix(".gz")).suffix
    if ending in (".csv", ".tsv", ".xlsx"):
        raise UsageError(
            f"{args.file}: there is no export as {ending[1:]}",
            remedy="name a .jsonl, .jsonl.gz or .parquet file, or say --format",
        )
    return "parquet" if args.file.lower().endswith(".parquet") else "jsonl"


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with (
            whole(file) as part,
            gzip.open(part, "wb") if file.endswith(".gz") else open(part, "wb") as stream,
        ):
            yield cast(IO[bytes], stream)
    except OSError as error:
        raise UsageError(
            f"cannot write {file}: {error.strerror}", remedy="name a file that can be written"
        ) from error


async def _jsonl(lines: AsyncIterator[dict[str, Any]], what: str, stream: IO[bytes]) -> int:
    encode = msgspec.json.Encoder().encode
    written = 0
    async for line in lines:
        if not written:
            stream.write(encode(export.head(what)) + b"\n")
        stream.write(encode(line) + b"\n")
        written += 1
    return written


async def _parquet(lines: AsyncIterator[dict[str, Any]], file: str) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Parquet needs pyarrow", remedy="pip install 'agentserve-gateway[parquet]'"
        ) from error
    try:
        with whole(file) as part:
            return await _table(lines, part, pyarrow)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error}", remedy="name a file that can be written") from error


async def _table(lines: AsyncIterator[dict[str, Any]], file: str, pyarrow: Any) -> int:
    written = 0
    writer: Any = None
    batch: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal writer
        table = pyarrow.Table.from_pylist(batch, schema=None if writer is None else writer.schema)
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(file, _nullable(pyarrow, table.schema), compression="zstd")
            table = pyarrow.Table.from_pylist(batch, schema=writer.schema)
        writer.write_table(table)
        batch.clear()

    try:
        async for line in lines:
            # nested turns hold lists of mixed types, which a column cannot: they go as JSON text
            if "turns" in line:
                line = {**line, "turns": msgspec.json.encode(line["turns"]).decode()}
            batch.append(line)
            written += 1
            if len(batch) >= export.PARQUET_ROWS:
                flush()
        if batch:
            flush()
    finally:
        if writer is not None:
            writer.close()
    return written


def _nullable(pyarrow: Any, schema: Any) -> Any:
    """A column that was empty in the first rows may hold text later; whole numbers may turn out not to be."""
    fields = []
    for field in schema:
        kind = field.type
        if pyarrow.types.is_null(kind):
            kind = pyarrow.float64() if field.name.endswith(("_s", "_at")) else pyarrow.string()
        fields.append(pyarrow.field(field.name, kind, nullable=True))
    return pyarrow.schema(fields)
