"""The ledger against the truth: what the gateway expects to be cached, and what the engine then says it found.

    python -m tests.scenarios.ledger                      # a thousand requests to a real vLLM on this machine
    python -m tests.scenarios.ledger --requests 3000

Programs grow, are begun anew and share their beginning, in less KV than they need together. Prints the share of cached
tokens by which the two differ; exit status 1 at two per cent. A program's first step is not counted: what it shares
with others stands inside one message, so that nobody could foretell it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.scenarios.stage import gateway

PROGRAMS = 24
WORDS_MOST = 1_000
OFF_SHARE_MAX = 0.02
EVENTS_COME_S = 0.02  # over the loopback; what is late counts as an error of ours
REAL_PROGRAMS = 12
REAL_WORDS_MOST = 160


@dataclass(slots=True)
class Tally:
    """Over many requests: tokens found cached, foretold, and the sum of differences."""

    found: int = 0
    foretold: int = 0
    off: int = 0

    @property
    def off_share(self) -> float:
        return self.off / max(self.found, 1)


class Client:
    """Programs whose prompts grow, are compacted, and share their beginning."""

    def __init__(
        self,
        port: int,
        *,
        seed: int,
        model: str = "emulated",
        programs: int = PROGRAMS,
        words_most: int = WORDS_MOST,
    ) -> None:
        self._model, self._programs, self._words_most = model, programs, words_most
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False)
        self._rng = random.Random(seed)
        self._words: dict[str, int] = {}

    @property
    def known(self) -> int:
        """Programs that have made a step."""
        return len(self._words)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, program: str, words: int) -> tuple[int, int]:
        """(expected, found) cached tokens of one step."""
        text = "You are an agent. " * 40 + " ".join(f"{program}-{i}" for i in range(words))
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 4,
        }
        reply = await self._http.post(
            "/v1/chat/completions", json=body, headers={"x-agentserve-program-id": program}
        )
        assert reply.status_code == 200, reply.text
        details = reply.json()["usage"]["prompt_tokens_details"] or {}
        return int(reply.headers["x-agentserve-cached-tokens"]), details.get("cached_tokens") or 0

    async def press_on(self) -> None:
        """Steps without end, whatever comes of them."""
        while True:
            with contextlib.suppress(AssertionError, httpx.HTTPError):
                await self.next()
            await asyncio.sleep(0.02)

    async def next(self) -> tuple[int, int]:
        """A step of some program: usually longer than its last, sometimes begun anew."""
        program = f"p{self._rng.randrange(self._programs)}"
        words = self._words.get(program, 0) + self._rng.randrange(
            self._words_most // 50, self._words_most // 8
        )
        self._words[program] = words if words < self._words_most else 20
        return await self.ask(program, self._words[program])


async def compare(client: Client, requests: int) -> Tally:
    """That many steps, one after the other."""
    tally = Tally()
    for _ in range(requests):
        known, (expected, found) = client.known, await client.next()
        if client.known == known:
            tally.found += found
            tally.foretold += expected
            tally.off += abs(expected - found)
        await asyncio.sleep(EVENTS_COME_S)
    return tally


async def real(url: str, requests: int, seed: int, folder: Path) -> Tally:
    """Through a gateway of its own to an engine that runs."""
    async with gateway([url], folder) as process:
        client = Client(
            process.port, seed=seed, model="tiny", programs=REAL_PROGRAMS, words_most=REAL_WORDS_MOST
        )
        try:
            return await compare(client, requests)
        finally:
            await client.close()


def main() -> int:
    from tests.engines.installs import INSTALLS
    from tests.engines.run import serving

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    with serving(INSTALLS["vllm"]) as (url, _), tempfile.TemporaryDirectory() as folder:
        tally = asyncio.run(real(url, args.requests, args.seed, Path(folder)))
    print(
        f"{args.requests} requests: {tally.found} tokens found cached, {tally.foretold} expected, "
        f"off by {tally.off} ({tally.off_share:.2%})"
    )
    return 1 if not tally.found or tally.off_share >= OFF_SHARE_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
