"""The floor under the gateway: a relay of the same parts with nothing of ours between them.

    python -m tests.bench.relay.bare PORT ENGINE_URL [--reads]

uvicorn's sockets, the gateway's own protocol class and its lean client, in one loop. `--reads` adds what a recogniser
of programs does that remembers no bodies: each is decoded, its messages are hashed, the program is looked up by them,
and the reply is read. The distance from here to nginx is the language's; the distance from the gateway to here is ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import MutableMapping
from typing import Any

import uvicorn
import uvloop

from agentserve.core.identity import Resolver
from agentserve.live.asgi import Receive, Scope, Send
from agentserve.live.headers import content_length, forwarded, returned, texts_of
from agentserve.live.interpreter import settle_interpreter
from agentserve.live.passage import encoded
from agentserve.live.pouring import is_stream
from agentserve.live.reading import parse_body
from agentserve.live.serve import BACKLOG
from agentserve.live.server import limited
from agentserve.live.upstream import Deadlines, Upstream
from agentserve.live.upstream.lean import LeanUpstream
from agentserve.live.wire import PATHS, CallReader, reader_of, split_path

DEADLINES = Deadlines(connect_s=5.0, first_byte_s=60.0, idle_s=60.0, overall_s=600.0)


class Bare:
    """The application."""

    def __init__(self, upstream: Upstream, *, reads: bool) -> None:
        self._upstream = upstream
        self._reader = CallReader() if reads else None
        self._resolver = Resolver()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        program, path = split_path(scope["path"])
        protocol = PATHS[path]
        body = (await receive())["body"]
        resolved = reply_reader = None
        headers = texts_of(scope["headers"])
        if self._reader is not None:
            call = self._reader.read_as(protocol, program, headers, parse_body(body, headers))
            resolved = self._resolver.resolve(call.evidence, tenant="default", now=time.time())
        sent = encoded(forwarded(scope["headers"], headers))
        reply = await self._upstream.send("POST", path, sent, body, deadlines=DEADLINES)
        if resolved is not None:
            reply_reader = reader_of(protocol, streamed=is_stream(reply.headers))
        try:
            answer = returned(reply.headers)
            length = content_length(reply.headers)
            if length is not None:
                answer.append((b"content-length", length))
            start: MutableMapping[str, Any] = {"type": "http.response.start", "status": reply.status}
            await send({**start, "headers": answer})
            while True:
                chunk, done = await reply.read(), reply.done
                if reply_reader is not None:
                    reply_reader.feed(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": not done})
                if done:
                    break
        finally:
            reply.close()
        if resolved is not None and reply_reader is not None:
            self._resolver.replied(resolved, reply_reader.finish().evidence(), time.time())


async def serve(port: int, url: str, *, reads: bool) -> None:
    """Until a signal says to stop."""
    speaks = limited(header_bytes_max=1 << 16, body_bytes_max=1 << 25, bodies_bytes_max=1 << 30)
    config = uvicorn.Config(
        Bare(LeanUpstream(url), reads=reads), port=port, ws="none", lifespan="off", log_config=None,
        http=speaks,  # type: ignore[arg-type]  # buffered protocols too
        backlog=BACKLOG, access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip
    settle_interpreter()
    await uvicorn.Server(config).serve()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="bare relay")
    parser.add_argument("port", type=int)
    parser.add_argument("url")
    parser.add_argument("--reads", action="store_true")
    args = parser.parse_args()
    uvloop.run(serve(args.port, args.url, reads=args.reads))


if __name__ == "__main__":
    main()
