"""The protocols on the wire: requests and replies read into values, beside the relay and without copying it.

reader = CallReader()                                  one per process
call = reader.read(path, headers, body)                a Call, or None when the path is none of ours
replies = reader_of(call.protocol, streamed=True)      one per step; feed() every chunk, then finish()
"""

from agentserve.live.wire.bodies import read_reply
from agentserve.live.wire.call import PATHS, Call, CallReader, Protocol, split_path
from agentserve.live.wire.canon import Canon
from agentserve.live.wire.extensions import Extensions, printable_id
from agentserve.live.wire.reply import Reply, ReplyTool, Usage
from agentserve.live.wire.sse import SseSplitter
from agentserve.live.wire.streams import ReplyReader, reader_of

__all__ = [
    "PATHS",
    "Call",
    "CallReader",
    "Canon",
    "Extensions",
    "Protocol",
    "Reply",
    "ReplyReader",
    "ReplyTool",
    "SseSplitter",
    "Usage",
    "printable_id",
    "read_reply",
    "reader_of",
    "split_path",
]
