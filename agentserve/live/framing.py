"""What a request's head says of its framing, and what is not taken because another hop might read it differently.

Rule: nothing ambiguous is passed on. Of sockets and connections this knows nothing: it is given the head as it was
parsed, and refuses it or says what follows it.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

HEADERS_MAX = 128
NUL, LF, CR = b"\0\n\r"  # as numbers: looking for one byte, Python first tries whether it is one
_SINGLE = frozenset({b"content-length", b"host", b"authorization", b"transfer-encoding", b"content-type"})


class Refused(Exception):
    """The bytes are not a request that we take."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Framing(NamedTuple):
    """What follows a head that is taken."""

    length: int  # of the body, as declared; 0 where none is
    expects: bool  # does the client wait for a word before it sends the body?


def read(
    version: str, url: bytes, headers: list[tuple[bytes, bytes]], head_bytes_max: int, body_bytes_max: int
) -> Framing:
    """Raises `Refused` for what is too large or not plain HTTP/1.1; the headers' names are in lower case."""
    if len(headers) > HEADERS_MAX:
        raise Refused(431, f"more than {HEADERS_MAX} headers")
    text = b"".join(chain.from_iterable(headers))
    if len(url) + len(text) + 4 * len(headers) > head_bytes_max:
        raise Refused(431, "the request's headers are too large")
    if LF in text or CR in text or NUL in text:
        raise Refused(400, "a header holds a line break")
    by_name = dict(headers)
    if len(by_name) != len(headers):
        _check_repeated(headers)
    coding, length = by_name.get(b"transfer-encoding"), by_name.get(b"content-length")
    declared = 0
    if coding is not None and coding.strip().lower() != b"chunked":
        raise Refused(501, "no transfer encoding but chunked is taken")
    if length is not None:
        if not length.isdigit():
            raise Refused(400, "the content length is not a number")
        declared = int(length)
        if declared > body_bytes_max:
            raise Refused(413, f"the request body is over the limit of {body_bytes_max} bytes")
        if coding is not None:
            raise Refused(400, "both a content length and a transfer encoding")
    if version not in ("1.1", "1.0"):
        raise Refused(505, "only HTTP/1.1 is spoken here")
    expect = by_name.get(b"expect")
    return Framing(declared, expect is not None and expect.lower() == b"100-continue")


def _check_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in headers]
    for name in _SINGLE:
        if names.count(name) > 1:
            raise Refused(400, f"the header {name.decode('latin-1')} stands twice")
