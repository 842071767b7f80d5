"""A process that journals to a file that may not grow any more, as on a full disk, and then may again.

Prints what the journal said while it could not write, and what was lost in the end.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys

from agentserve.config import StoreSettings
from agentserve.core import events as ev
from agentserve.core.ids import StepId
from agentserve.store.journal import WriteBehind
from tests.store.conftest import AT, step_record

BYTES_MAX = 400_000
STEPS = 3_000
FULL_S = 3.0  # enough for several tries


async def main(url: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = WriteBehind(StoreSettings(url=url, retention_days=1e5, batch_rows_max=500))
    journal.start()
    while not journal.up:
        await asyncio.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES_MAX, hard))
    for number in range(STEPS):
        journal.event(ev.StepStarted(step=StepId(str(number))), AT + number, [])
        journal.step(step_record(str(number), "acme/p", AT + number))
    while journal.up:
        await asyncio.sleep(0.01)
    said = journal.failure
    await asyncio.sleep(FULL_S)
    waiting = journal.queued
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    written = await journal.flushed(60)
    print(
        json.dumps({"said": said, "waiting": waiting, "written": written, "lost": sum(journal.lost.values())})
    )
    await journal.stop()


asyncio.run(main(sys.argv[1]))
