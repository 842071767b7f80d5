"""Serving a protocol that an engine does not speak, by chat completions, where nothing is lost.

    made = translation("messages", body)          or BadRequest that names what cannot be said in chat
    made.body, made.path                          what the engine gets
    made.tap(streamed)                            what turns its reply into the client's protocol

Rule: what has no counterpart in chat is refused with its name, never dropped; only hints that engines ignore
themselves (cache_control, thinking of earlier turns) are left out.
"""

from agentserve.live.translate.frame import Translation
from agentserve.live.translate.messages import MessagesTranslation
from agentserve.live.translate.responses import ResponsesTranslation

__all__ = ["MessagesTranslation", "ResponsesTranslation", "Translation", "translation"]


def translation(protocol: str, body: dict[str, object]) -> Translation | None:
    """How to say this in chat; None when the protocol has no translation."""
    if protocol == "messages":
        return MessagesTranslation(body)
    if protocol == "responses":
        return ResponsesTranslation(body)
    return None
