"""What may stand between an engine's reply and the client: the usage filter, translations, the responses store.

Rule: a tap sees every byte once, in order. Where nothing has to change there is no tap.
"""

from __future__ import annotations

from typing import Protocol


class Tap(Protocol):
    """Bytes in, bytes out."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for this chunk; may be nothing yet."""
        ...

    def finish(self) -> bytes:
        """What is left when the reply has ended."""
        ...
