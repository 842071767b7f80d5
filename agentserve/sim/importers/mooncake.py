"""Mooncake's traces: requests with the hashes of their 512-token blocks."""

from __future__ import annotations

from collections.abc import Iterator

from agentserve.sim.importers.reading import (
    GAP_S_MAX,
    REPLY_S_PER_TOKEN,
    UNFIT,
    Malformed,
    Reader,
    count,
    fault,
    moment,
)
from agentserve.sim.programs import OWN_KEYS, ProgramPlan, Run, StepPlan

MOONCAKE_BLOCK = 512


def mooncake(reader: Reader) -> Iterator[ProgramPlan]:
    """Requests whose blocks begin with all of an earlier request's are the next step of its program."""
    rows = []
    for row in reader.objects():
        try:
            ids = row["hash_ids"]
            if not isinstance(ids, list) or not ids or not all(isinstance(h, int) for h in ids):
                raise Malformed("hash_ids is not a list of numbers")
            start = moment(row["timestamp"], "timestamp")
            length = count(row["input_length"], "input_length", least=1)
            rows.append(
                (start / 1000.0, length, count(row["output_length"], "output_length", least=1), tuple(ids))
            )
        except UNFIT as error:
            reader.complain(fault(error))
    ends: dict[tuple[int, ...], int] = {}
    programs: list[list[tuple[float, int, int, tuple[int, ...]]]] = []
    for request in rows:
        ids = request[3]
        # the last block of a prompt is partial, so its hash changes as the conversation grows
        known = next((ends[ids[:n]] for n in range(len(ids) - 1, 0, -1) if ids[:n] in ends), None)
        if known is None or len(ids) <= 2:
            known = len(programs)
            programs.append([])
        programs[known].append(request)
        if len(ids) > 2:
            ends[ids[:-1]] = known
    for index, requests in enumerate(programs):
        yield _mooncake_program(index, requests)


def _mooncake_program(index: int, requests: list[tuple[float, int, int, tuple[int, ...]]]) -> ProgramPlan:
    steps = []
    for k, (at, length, output, ids) in enumerate(requests):
        runs = []
        left = length
        for position, block in enumerate(ids):
            tokens = min(MOONCAKE_BLOCK, left)
            key = block + 1 if position < 1 else OWN_KEYS * 2 + block
            runs.append(Run(key, tokens))
            left -= tokens
        gap = 0.0
        if k + 1 < len(requests):
            # the trace has arrivals only: of the time between them, a rough service time is not the client's
            gap = max(requests[k + 1][0] - at - REPLY_S_PER_TOKEN * output, 0.0)
        steps.append(
            StepPlan(
                new_tokens=0,
                output_tokens=output,
                contents=tuple(runs),
                think_s=min(gap, GAP_S_MAX),
                human=True,
            )
        )
    return ProgramPlan(
        id=f"mooncake-{index}",
        steps=tuple(steps),
        workflow="conversation",
        own=OWN_KEYS + index,
        arrives_s=requests[0][0],
    )
