"""How bytes get to an engine and back: one seam, three transports.

`lean` for plain HTTP on a private network, `hosted` (httpx) for TLS, HTTP/2 and proxies, `inprocess` for an engine
that is an ASGI application in this process.
"""

from agentserve.live.upstream.seam import Deadlines, RawHeaders, Upstream, UpstreamReply

__all__ = ["Deadlines", "RawHeaders", "Upstream", "UpstreamReply"]
