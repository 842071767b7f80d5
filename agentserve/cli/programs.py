"""`agentserve programs`: list programs, show one with its steps and reasons, or draw a workflow's graph."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from agentserve.cli.stored import (
    add_store_arguments,
    ago,
    clock,
    print_json,
    print_table,
    seconds,
    share,
    with_database,
)
from agentserve.errors import AgentServeError, UsageError
from agentserve.store import queries
from agentserve.store.database import Database

HELP = "list programs, show one with its steps, or draw a workflow's graph"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    _list_arguments(parser, repeated=False)  # `agentserve programs` alone lists
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    every = actions.add_parser("list", help="the programs, most recently active first (default)")
    _list_arguments(every, repeated=True)
    one = actions.add_parser("show", help="one program: steps, tool calls, pins, decisions")
    one.add_argument("id", metavar="ID", help="its id, or the name that its tenant gave it")
    one.add_argument("--decisions", action="store_true", help="every decision, with its reason")
    add_store_arguments(one, repeated=True)
    graph = actions.add_parser("graph", help="a workflow's step graph, declared and learned")
    graph.add_argument("name", metavar="NAME", help="the workflow")
    graph.add_argument("--tenant", default=argparse.SUPPRESS, help="of this tenant")
    graph.add_argument("--format", choices=("text", "dot", "svg"), default="text", help="default text")
    add_store_arguments(graph, repeated=True)


def _list_arguments(parser: argparse.ArgumentParser, *, repeated: bool) -> None:
    def default(value: Any) -> Any:
        return argparse.SUPPRESS if repeated else value

    add_store_arguments(parser, repeated=repeated)
    parser.add_argument("--tenant", default=default(None), help="of this tenant")
    parser.add_argument("--workflow", default=default(None), help="of this workflow")
    parser.add_argument(
        "--live", action="store_true", default=default(False), help="only those that are not over"
    )
    parser.add_argument(
        "--search", metavar="TEXT", default=default(None), help="part of the id or the workflow"
    )
    parser.add_argument("--limit", type=int, default=default(50), help="at most so many (default 50)")


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    if args.action == "show":
        return _show(args)
    if args.action == "graph":
        return _graph(args)
    return _list(args)


def _list(args: argparse.Namespace) -> int:
    if args.limit < 1:
        raise UsageError(f"--limit is {args.limit}", remedy="it is at least 1")

    async def work(database: Database) -> queries.Rows:
        return await queries.programs(
            database,
            tenant=args.tenant,
            workflow=args.workflow,
            live=True if args.live else None,
            search=args.search,
            limit=args.limit,
        )

    rows = with_database(args, work)
    if args.json:
        print_json(rows)
        return 0
    if not rows:
        print("no programs")
        return 0
    columns = (
        "program", "workflow", "state", ">steps", ">prompt", ">cached", ">output", ">queued", ">time", "active",
    )  # fmt: skip
    print_table("", columns, [_line(row) for row in rows])
    return 0


def _line(row: dict[str, Any]) -> tuple[object, ...]:
    took = row["seconds"] if row["seconds"] is not None else row["last_at"] - row["opened_at"]
    return (
        row["id"],
        row["workflow"] or "-",
        f"ended: {row['end_reason']}" if row["state"] == "ended" else "live",
        row["steps"],
        row["prompt_tokens"],
        share(row["cached_tokens"], row["prompt_tokens"]),
        row["output_tokens"],
        seconds(row["queue_s"]),
        seconds(took),
        ago(row["last_at"]),
    )


def _show(args: argparse.Namespace) -> int:
    async def work(database: Database) -> dict[str, Any] | None:
        called = await queries.named(database, args.id)
        if len(called) > 1:
            raise UsageError(
                f"several tenants have a program {args.id!r}", remedy=f"say whose, as in {called[0]['id']!r}"
            )
        if not called:
            return None
        program = called[0]
        key, most = program["id"], queries.ROWS_MAX
        return {
            **program,
            "children": [row["id"] for row in await queries.programs(database, parent=key, limit=most)],
            "step_list": await queries.steps(database, key, limit=most),
            "tool_calls": await queries.tool_calls(database, key, limit=most),
            "pins": await queries.pins(database, program_id=key, limit=most),
            "warms": await queries.warms(database, program_id=key, limit=most),
            "decisions": await queries.decisions(database, program_id=key, limit=most),
        }

    found = with_database(args, work)
    if found is None:
        raise UsageError(f"there is no program {args.id!r}", remedy="`agentserve programs list` shows them")
    if args.json:
        print_json(found)
    else:
        _print_program(found, decisions=args.decisions)
    return 0


def _print_program(found: dict[str, Any], *, decisions: bool) -> None:
    start = found["opened_at"]
    facts = [
        ("tenant", found["tenant"]),
        ("workflow", found["workflow"] or "-"),
        ("recognised by", found["identity_source"] or "-"),
        ("parent", found["parent"] or "-"),
        ("children", ", ".join(found["children"]) or "-"),
        ("opened", clock(start)),
        ("state", f"ended: {found['end_reason']}" if found["state"] == "ended" else "live"),
        ("slowdown by queueing", f"{found['slowdown']:.2f}" if found["slowdown"] is not None else "-"),
    ]
    print_table(found["id"], ("", ""), facts)
    if found["step_list"]:
        print_table("\nsteps", _STEP_COLUMNS, [_step_line(step, start) for step in found["step_list"]])
    if found["tool_calls"]:
        print_table(
            "\ntool calls",
            (">at", "tool", "arguments", ">took", "known by"),
            [_tool_line(tool, start) for tool in found["tool_calls"]],
        )
    if found["pins"]:
        rows = [
            (
                seconds(pin["made_at"] - start), pin["engine"], pin["tokens"], pin["mode"], pin["outcome"],
                pin["reason"], seconds(pin["held_s"]), seconds(pin["saved_s"]),
            )
            for pin in reversed(found["pins"])
        ]  # fmt: skip
        columns = (">at", "engine", ">tokens", "mode", "outcome", "reason", ">held", ">saved")
        print_table("\npins", columns, rows)
    if decisions:
        decided = [
            (seconds(d["at"] - start), d["kind"], d["reason"], d["engine"] or "-", d["detail"], d["cause"])
            for d in found["decisions"]
        ]
        print_table("\ndecisions", (">at", "decision", "reason", "engine", "detail", "cause"), decided)
    elif found["decisions"]:
        print(f"\n{len(found['decisions'])} decisions; --decisions shows them")


_STEP_COLUMNS = (
    ">at", ">queued", ">first byte", ">whole", ">prompt", ">cached", ">output", "engine", "reason", "asked for",
)  # fmt: skip


def _step_line(step: dict[str, Any], start: float) -> tuple[object, ...]:
    at, first_at, ended_at = step["arrived_at"], step["first_byte_at"], step["ended_at"]
    outcome = "" if step["outcome"] == "finished" else f"{step['outcome']} {step['status']}: {step['error']}"
    return (
        seconds(at - start),
        seconds(step["queue_s"]),
        seconds(first_at - at if first_at is not None else None),
        seconds(ended_at - at if ended_at is not None else None),
        step["prompt_tokens"],
        share(step["cached_tokens"], step["prompt_tokens"]),
        step["output_tokens"],
        step["engine"] or "-",
        outcome or step["reason"],
        ", ".join(step["tools"]) or step["finish_reason"],
    )


def _tool_line(tool: dict[str, Any], start: float) -> tuple[object, ...]:
    took = f"over {seconds(tool['seconds'])}" if tool["censored"] else seconds(tool["seconds"])
    known = "the client" if tool["measured"] else "the gap"
    return (seconds(tool["started_at"] - start), tool["name"], tool["argument_class"], took, known)


def _graph(args: argparse.Namespace) -> int:
    async def work(database: Database) -> queries.Rows:
        return await queries.graphs(database, args.name, tenant=args.tenant)

    rows = with_database(args, work)
    if not rows:
        raise UsageError(
            f"no graph of a workflow {args.name!r} is known",
            remedy="declare one, or let a few of its programs run; `agentserve programs list` shows workflows",
        )
    if args.json:
        print_json([{**row, "graph": _declared(row)} for row in rows])
        return 0
    for row in rows:
        print(f"{row['kind']} by {row['tenant']}, {ago(row['at'])}" if args.format == "text" else "", end="")
        print(("\n" if args.format == "text" else "") + _drawn(row, args.format))
    return 0


def _declared(row: dict[str, Any]) -> Any:
    return msgspec.json.decode(row["body"]) if row["kind"] == "declared" else None


def _drawn(row: dict[str, Any], how: str) -> str:
    from agentserve.core import workflow

    graph: workflow.WorkflowGraph | workflow.LearnedGraph | None
    try:
        if row["kind"] == "declared":
            graph = workflow.WorkflowGraph.parse(_declared(row), kept=True)
        else:
            graph = workflow.LearnedGraph.from_bytes(row["body"])
    except (AgentServeError, msgspec.DecodeError) as error:
        raise UsageError(
            f"the {row['kind']} graph cannot be read: {error}", remedy="declare it again"
        ) from error
    if graph is None:
        raise UsageError(
            "the learned graph is of another version of agentserve",
            remedy="it is learned anew as programs run",
        )
    render = {"text": workflow.render_text, "dot": workflow.render_dot, "svg": workflow.render_svg}[how]
    return render(graph)
