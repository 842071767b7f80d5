"""The emulated engine served as a vLLM server, and the adapter that hosts it in the gateway's own process."""

from __future__ import annotations

import dataclasses
from typing import Any

import httpx

from agentserve.errors import ConfigError
from agentserve.ports import Asgi, Capabilities, EngineOptions, Outcome, ProgramPrefix, Receipt
from agentserve_adapters.actions import ActionType, Refused
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.emulated.options import EmulatedOptions
from agentserve_adapters.emulated.server import EmulatedServer
from agentserve_adapters.served import RESERVED
from agentserve_adapters.vllm import VLLMAdapter

__all__ = ["EmulatedAdapter", "EmulatedOptions", "EmulatedServer", "run_engine_server"]


class EmulatedAdapter(VLLMAdapter):
    """An engine in this process. It is asked what any vLLM server is asked, over its ASGI application."""

    kind = "emulated"

    def __init__(self, options: EngineOptions, **kwargs: Any) -> None:
        known = {f.name for f in dataclasses.fields(EmulatedOptions)}
        unknown = set(options.extra) - known
        if unknown:
            raise ConfigError(
                f"the emulated engine has no option `{min(unknown)}`",
                remedy=f"it knows {', '.join(sorted(known))}",
            )
        given = dict(options.extra)
        if options.kv_tokens is not None:
            given["kv_tokens"] = options.kv_tokens
        self.server = EmulatedServer(EmulatedOptions(**given))
        super().__init__(
            dataclasses.replace(options, url=options.url or "http://emulated", extra={}),
            # as behind a socket: what fails inside is an answer, not an exception of ours
            transport=httpx.ASGITransport(app=self.server, raise_app_exceptions=False),
            **kwargs,
        )

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        """Never: it lives in this process, and what answers elsewhere is to be treated as the server it is."""
        return None

    @property
    def app(self) -> Asgi | None:
        return self.server

    async def start(self) -> None:
        await self.server.start()
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        await self.server.stop()

    async def probe(self) -> Capabilities:
        found = dataclasses.replace(await super().probe(), kind=self.kind)
        if not self.server.options.native_pins:
            return found
        how = dict(found.mechanisms) | {
            "pin": "native: held when told to, for a time, as no stock engine does"
        }
        return dataclasses.replace(found, pin="native", mechanisms=tuple(how.items()))

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        if not self.server.options.native_pins:
            return await super().pin(program, prefix, tokens, ttl_s)
        payload = {"session_id": program, "ttl_s": round(ttl_s, 3), "tokens": tokens}
        return await self._hint("kv.pin", payload)

    async def unpin(self, program: str) -> Receipt:
        if not self.server.options.native_pins:
            return await super().unpin(program)
        return await self._hint("kv.release", {"session_id": program})

    async def _hint(self, kind: ActionType, payload: dict[str, Any]) -> Receipt:
        async def ask() -> Receipt:
            action = {"action_type": kind, "action_version": "1.0", "payload": payload}
            answer = await self.wire.post("/kv_hints", {"protocol_version": "1.0", "actions": [action]})
            if not answer.ok:
                raise Refused.by_status(answer.status, answer.complaint())
            (result,) = answer.table()["results"]
            return Receipt(outcome=Outcome(result["outcome"]), mode="native", detail=str(result["detail"]))

        return await self.actions.carry_out(kind, payload, ask, instead="reserved", emulation=RESERVED)


def run_engine_server(*, host: str, port: int, **flags: Any) -> int:
    """Serve one emulated engine until interrupted; `flags` are `EmulatedOptions`."""
    import uvicorn

    server = EmulatedServer(EmulatedOptions(**flags))
    uvicorn.run(server, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)
    return 0
