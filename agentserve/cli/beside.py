"""Processes in which a verb's runs go side by side.

Rule: they end with the verb: when it is done, when it fails or is interrupted, and when it is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor


@contextlib.contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """At most `workers`, and no more than there are cores. Nobody waits for runs whose figures nobody takes."""
    with ProcessPoolExecutor(min(workers, os.cpu_count() or 1), initializer=_follow) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _follow() -> None:
    """In each of them: an interrupt of the terminal is the verb's to answer, and its end is ours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_verb, daemon=True).start()


def _end_with_the_verb() -> None:
    verb = multiprocessing.parent_process()
    if verb is not None:
        verb.join()
        os._exit(1)
