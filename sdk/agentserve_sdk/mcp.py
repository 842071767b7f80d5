"""MCP: a client's tool call is a tool call; what the server says of its progress tells when the program returns.

Rule: arguments and results are not looked at.
"""

from __future__ import annotations

import functools
import time
from typing import Any, Callable, Optional

from agentserve_sdk._context import Program, current
from agentserve_sdk._hooks import around, quiet, tool_mark
from agentserve_sdk._propagate import MARK
from agentserve_sdk._wrap import Mark

PROGRESS_POSITION = 3  # of `progress_callback` among the arguments of `call_tool`, after `self`


def register() -> None:
    """Hook in."""
    from mcp.client.session import ClientSession

    if getattr(ClientSession.call_tool, MARK, False):
        return
    around(ClientSession, "call_tool", _tool)
    _follow_progress(ClientSession)


def _tool(session: Any, name: str, *args: Any, **kwargs: Any) -> Optional[Mark]:
    return tool_mark(name)


def _follow_progress(cls: Any) -> None:
    calls = cls.call_tool

    async def call_tool(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        program = current()
        asked = kwargs.get("progress_callback")
        if program is not None and len(args) < PROGRESS_POSITION:
            kwargs["progress_callback"] = _progress(program, asked)
        return await calls(self, name, *args, **kwargs)

    functools.update_wrapper(call_tool, calls)
    setattr(call_tool, MARK, True)
    cls.call_tool = call_tool


def _progress(program: Program, asked: Optional[Callable[..., Any]]) -> Callable[..., Any]:
    began = time.monotonic()

    @quiet
    def expect(done: float, total: Optional[float]) -> None:
        if total and 0 < done <= total:
            program.expect((time.monotonic() - began) * (total - done) / done)

    async def progress(done: float, total: Optional[float] = None, message: Optional[str] = None) -> None:
        expect(done, total)
        if asked is not None:
            await asked(done, total, message)

    return progress
