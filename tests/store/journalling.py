"""A process that journals a thousand steps a second until it is killed; it prints how many of them the journal says are
written."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque

from agentserve.config import StoreSettings
from agentserve.core import events as ev
from agentserve.core.ids import StepId
from agentserve.store.journal import WriteBehind
from tests.store.conftest import AT, step_record


async def main(url: str) -> None:
    journal = WriteBehind(StoreSettings(url=url, retention_days=1e5))
    journal.start()
    while not journal.up:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    began = time.monotonic()
    number = 0
    said = deque([(began, 0)])  # when how many had been said
    while True:
        while number < (time.monotonic() - began) * 1000:
            journal.event(ev.StepStarted(step=StepId(str(number))), AT + number, [])
            journal.step(step_record(str(number), "acme/p", AT + number))
            journal.fact("chain", {"program": "acme/p", "body": str(number).encode(), "at": AT})
            number += 1
        said.append((time.monotonic(), number))
        written_at = time.monotonic() - journal.lag_s
        while len(said) > 1 and said[1][0] <= written_at:
            said.popleft()
        print(said[0][1], flush=True)
        await asyncio.sleep(0.02)


asyncio.run(main(sys.argv[1]))
