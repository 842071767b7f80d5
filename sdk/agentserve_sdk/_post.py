"""Events on their way to the gateway: a bounded queue and one daemon thread.

Rule: `put` returns at once whatever the gateway does. What does not fit is dropped and counted; nothing is sent twice;
after a few failures in a row nothing is tried for a while.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Set, Tuple

from agentserve_sdk._context import quoted

if TYPE_CHECKING:
    import http.client

QUEUE_MAX = 2_000
BATCH_MAX = 200
TIMEOUT_S = 2.0
FAILURES_MAX = 3  # in a row, then the gateway is left alone
REST_S, REST_S_MAX = 1.0, 30.0
REPLY_BYTES_MAX = 64 * 1024
SAID_BYTES_MAX = 300  # of a refusal, in the log
EXIT_S = 0.5  # how long the end of the process waits for what was told last

# Either an event of a program, or (None, a whole request).
Item = Tuple[Optional[str], Dict[str, object]]
_posters: weakref.WeakSet[Poster] = weakref.WeakSet()


class Poster:
    """One gateway's queue."""

    def __init__(self, url: str, key: Optional[str] = None) -> None:
        self.url = url
        self.sent = self.dropped = self.failed = 0
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._connection: Optional[http.client.HTTPConnection] = None
        self._rest_until = 0.0
        self._failures = 0
        self._told: Set[int] = set()  # statuses
        self._fresh()
        _posters.add(self)

    def _fresh(self) -> None:
        """No thread, nothing queued: at the start, and in a forked child, where neither lives on."""
        self._queue: Deque[Item] = deque()
        self._wake = threading.Lock()  # held while there is nothing to do
        self._wake.acquire()
        self._idle = threading.Event()
        self._idle.set()
        self._starting = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._closed = False
        self._connection = None

    # -- the application's side

    def put(self, program_id: Optional[str], event: Dict[str, object]) -> None:
        """Queue an event. While the gateway is left alone nothing is queued, so that nothing wakes the thread."""
        resting = self._rest_until and time.monotonic() < self._rest_until
        if resting or len(self._queue) >= QUEUE_MAX or self._closed:
            self.dropped += 1
            return
        self._queue.append((program_id, event))
        if self._wake.locked():
            self._rouse()

    def request(self, method: str, path: str, body: Dict[str, object]) -> None:
        """Queue a whole request."""
        self.put(None, {"method": method, "path": path, "body": body})

    def _rouse(self) -> None:
        self._idle.clear()
        try:
            self._wake.release()
        except RuntimeError:
            pass  # another thread was first
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="agentserve-events", daemon=True)
                    self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the queue is empty."""
        until = time.monotonic() + timeout_s
        while self._thread is not None and (self._queue or not self._idle.is_set()):
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            self._idle.wait(left_s)
            if self._queue and self._idle.is_set():
                time.sleep(0.001)  # the thread is about to look again
        return True

    def close(self, timeout_s: float) -> None:
        """Take nothing more; give what is queued so long to leave."""
        if timeout_s > 0:
            self.flush(timeout_s)
        self._closed = True
        if self._thread is not None and self._wake.locked():
            self._rouse()

    # -- the thread's side

    def _run(self) -> None:
        _load()
        while True:
            self._wake.acquire()
            while self._queue:
                try:
                    self._post(self._batch())
                except Exception:  # this thread's end would be silent, and forever
                    self.failed += 1
            self._idle.set()
            if self._queue:  # put between the last look and the word that it is empty
                self._idle.clear()
                self._rouse()
            elif self._closed:
                self._hang_up()
                return

    def _batch(self) -> List[Item]:
        """The next request, or the events of one program that stand in a row."""
        batch = [self._queue.popleft()]
        program_id = batch[0][0]
        while program_id is not None and self._queue and len(batch) < BATCH_MAX:
            if self._queue[0][0] != program_id:
                break
            batch.append(self._queue.popleft())
        return batch

    def _post(self, batch: List[Item]) -> None:
        if time.monotonic() < self._rest_until:
            self.dropped += len(batch)
            return
        program_id, first = batch[0]
        method, path, body = "POST", "", None  # type: Tuple[str, str, Any]
        if program_id is None:
            method, path, body = str(first["method"]), str(first["path"]), first["body"]
        else:
            path, body = f"/v1/programs/{quoted(program_id)}/events", [event for _, event in batch]
        try:
            status, said = self._ask(method, path, json.dumps(body, default=str).encode())
        except (OSError, ValueError) as error:
            self._went_wrong(len(batch), repr(error))
            return
        if status >= 500:
            self._went_wrong(len(batch), f"status {status}")
        elif status >= 400:  # the gateway is well, but does not want this
            self.failed += len(batch)
            self._failures = 0
            self._refused(method, path, status, said)
        else:
            self.sent += len(batch)
            self._failures = 0
            self._rest_until = 0.0

    def _refused(self, method: str, path: str, status: int, said: bytes) -> None:
        """A word of it, once for each status: a wrong key or address is the user's to mend."""
        new = status not in self._told
        self._told.add(status)
        log = _log()
        (log.warning if new else log.debug)(
            "agentserve at %s refused %s %s (%d: %s); the application goes on without it",
            self.url, method, path, status, said[:SAID_BYTES_MAX].decode("utf-8", "replace"),
        )  # fmt: skip

    def _ask(self, method: str, path: str, body: bytes) -> Tuple[int, bytes]:
        """One exchange, on the connection that is open if it still is."""
        import http.client

        kept = self._connection is not None
        connection = self._connection or self._connect()
        self._connection = None
        try:
            try:
                connection.request(method, self._path + path, body, self._headers)
                reply = connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                connection.close()
                if not kept:
                    raise
                # closed while it was idle, before this request was read
                connection = self._connect()
                connection.request(method, self._path + path, body, self._headers)
                reply = connection.getresponse()
            left = reply.read(REPLY_BYTES_MAX + 1)
        except http.client.HTTPException as error:
            connection.close()
            raise OSError(str(error)) from error
        except BaseException:
            connection.close()
            raise
        if reply.will_close or len(left) > REPLY_BYTES_MAX:
            connection.close()
        else:
            self._connection = connection
        return reply.status, left

    def _connect(self) -> http.client.HTTPConnection:
        import http.client
        from urllib.parse import urlsplit

        parts = urlsplit(self.url)
        self._path = parts.path.rstrip("/")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)

    def _went_wrong(self, events: int, why: str) -> None:
        self.failed += events
        self._failures += 1
        if self._failures < FAILURES_MAX:
            return
        rest_s = min(REST_S * 2 ** min(self._failures - FAILURES_MAX, 8), REST_S_MAX)
        self._rest_until = time.monotonic() + rest_s
        if self._failures == FAILURES_MAX:
            _log().warning("agentserve does not take events (%s); the application goes on without it", why)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


# Held while the thread imports. A fork waits for it, for its child has the modules that were half loaded as they were,
# and nobody to load the rest: the application's own imports would fail there.
_loading = threading.Lock()


def _load() -> None:
    """What a request needs, which is more than the import of this package should take."""
    with _loading:
        import http.client  # noqa: F401

        "".encode("idna")  # of the host's name, by a codec that is a module too


def _log() -> Any:
    from agentserve_sdk._client import log

    return log


def _at_exit() -> None:
    until = time.monotonic() + EXIT_S
    for poster in list(_posters):
        poster.close(max(until - time.monotonic(), 0.0))


def _after_fork() -> None:
    _loading.release()
    for poster in list(_posters):
        poster._fresh()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_after_fork)
