"""SIGHUP: what runs goes on, and settings with a mistake change nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from agentserve import config
from agentserve.cli.gateway import Composed, composed
from agentserve.cli.reload import Reload
from agentserve.core.ids import TenantId
from agentserve.core.policies.working_set import WorkingSet
from tests.live.conftest import Asked, ScriptedEngine, answers, chat_reply, until

MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}]}


class Gated(ScriptedEngine):
    """An engine with one model, whose replies wait for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.otherwise = self._answer

    async def _answer(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked.method == "POST" and "chat" in asked.path:
            await self.gate.wait()
            await answers(200, chat_reply("hello"))(asked, reader, writer)
        else:
            found = "models" in asked.path
            await answers(200 if found else 404, MODELS if found else {})(asked, reader, writer)


@pytest.fixture
async def engines() -> AsyncIterator[list[Gated]]:
    made = [Gated(), Gated(), Gated()]
    for one in made:
        await one.start()
    yield made
    for one in made:
        await one.stop()


class Under:
    """A gateway under a settings file."""

    def __init__(self, made: Composed, file: Path, client: httpx.AsyncClient) -> None:
        self.made, self.file, self.client = made, file, client
        self.reads = 0
        self.reload = Reload(self._read, made)

    def _read(self) -> config.Settings:
        self.reads += 1
        return config.load(file=self.file, environ={})

    async def told(self, text: str) -> None:
        """The file has this text, and the signal came."""
        self.file.write_text(text)
        self.reload.start()
        assert self.reload._task is not None
        await self.reload._task

    async def chat(self, model: str = "m") -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return await self.client.post("/v1/chat/completions", json=body)

    def up(self) -> dict[str, str]:
        return {e.id: e.settings.url for e in self.made.gateway.engines}


@contextlib.asynccontextmanager
async def under(folder: Path, text: str) -> AsyncIterator[Under]:
    file = folder / "agentserve.toml"
    file.write_text(f"[store]\nurl = 'sqlite+aiosqlite:///{folder}/a.db'\n{text}")
    async with composed(config.load(file=file, environ={})) as made:
        await made.gateway.start()
        transport = httpx.ASGITransport(made.gateway, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield Under(made, file, client)
        await made.gateway.stop()


def entry(engine: Gated, *lines: str) -> str:
    return "\n".join(["[[engines]]", f"url = '{engine.url}'", "kind = 'openai_http'", *lines, ""])


async def test_what_runs_on_an_engine_whose_kv_tokens_change_goes_on(
    tmp_path: Path, engines: list[Gated]
) -> None:
    engine = engines[0]
    async with under(tmp_path, entry(engine)) as gateway:
        engine.gate.clear()
        asking = asyncio.create_task(gateway.chat())
        await until(lambda: any("chat" in a.path for a in engine.asked))
        await gateway.told(entry(engine, "kv_tokens = 5000", "models = ['m', 'alias']"))
        engine.gate.set()
        assert (await asking).status_code == 200
        assert sum("chat" in a.path for a in engine.asked) == 1
        fleet = gateway.made.scheduler.board.fleet
        await until(lambda: any(e.kv_tokens == 5000 for e in fleet.engines.values()))
        assert (await gateway.chat("alias")).status_code == 200


async def test_an_engine_without_a_name_stays_the_same_when_another_goes(
    tmp_path: Path, engines: list[Gated]
) -> None:
    first, second, third = engines
    async with under(tmp_path, entry(first) + entry(second)) as gateway:
        kept = gateway.made.gateway.engines["e2"]
        await gateway.told(entry(second) + entry(third))
        assert gateway.up() == {"e2": second.url, "e3": third.url}
        assert gateway.made.gateway.engines["e2"] is kept


async def test_engines_of_the_admin_api_stay_and_may_be_written_down_later(
    tmp_path: Path, engines: list[Gated]
) -> None:
    first, second, third = engines
    async with under(tmp_path, entry(first) + entry(second)) as gateway:
        await gateway.made.gateway.engines.add(
            config.EngineSettings(id="late", url=third.url, kind="openai_http")
        )
        await gateway.told(entry(first))
        assert gateway.up() == {"e1": first.url, "late": third.url}
        await gateway.told(entry(first) + entry(third, "id = 'late'") + entry(second))
        assert gateway.up() == {"e1": first.url, "late": third.url, "e3": second.url}
        await gateway.made.gateway.engines.remove("e3")
        await gateway.told(entry(first) + entry(third, "id = 'late'") + entry(second))
        assert gateway.up() == {"e1": first.url, "late": third.url, "e3": second.url}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "name no engine any more"),
        ("[[engines]]\nurl = 'gpu1:8000'\n", "not an engine's address"),
        ("[[engines]]\nurl = 'http://gpu1:80000'\n", "not an engine's address"),
        ("[[engines]]\nurl = 'http://gpu1:8000'\napi_key_env = 'NOT_SET'\n", "NOT_SET"),
        ("engines = ['http://gpu1:8000']\n", r"write \[\[engines\]\]"),
        ("[[tenants]]\nid = 'a'\nweight = 0\n", "tenants.weight is 0"),
    ],
)
async def test_settings_with_a_mistake_change_nothing(
    tmp_path: Path,
    engines: list[Gated],
    caplog: pytest.LogCaptureFixture,
    wrong: str,
    said: str,
) -> None:
    async with under(tmp_path, entry(engines[0]) + entry(engines[1])) as gateway:
        before = gateway.up()
        await gateway.told(wrong)
        assert gateway.up() == before
        refused = [r.getMessage() for r in caplog.records if "old ones stay in force" in r.getMessage()]
        assert len(refused) == 1
        assert said.replace("\\", "") in refused[0]


async def test_a_file_that_changes_while_it_is_taken_over_is_read_once_more(
    tmp_path: Path, engines: list[Gated]
) -> None:
    async with under(tmp_path, entry(engines[0])) as gateway:
        gateway.file.write_text(entry(engines[0]) + entry(engines[1]))
        gateway.reload.start()
        await until(lambda: gateway.reads == 1)
        await gateway.told(entry(engines[0]) + entry(engines[2]))
        assert gateway.up() == {"e1": engines[0].url, "e2": engines[2].url}


async def test_a_weight_that_is_reloaded_counts_from_then_on(tmp_path: Path, engines: list[Gated]) -> None:
    async with under(tmp_path, entry(engines[0]) + "[[tenants]]\nid = 'default'\nweight = 1\n") as gateway:
        assert (await gateway.chat()).status_code == 200
        policy = gateway.made.scheduler.policy
        assert isinstance(policy, WorkingSet)
        books = policy.accounts
        now = gateway.made.gateway.driver.now()
        service = books.account(TenantId("default"), now).now(now)
        await gateway.told(entry(engines[0]) + "[[tenants]]\nid = 'default'\nweight = 4\n")
        account = books.account(TenantId("default"), now)
        assert account.weight == 4.0
        assert account.service >= service


async def test_an_engine_that_the_admin_api_cannot_take_is_the_callers_fault(
    tmp_path: Path, engines: list[Gated]
) -> None:
    async with under(tmp_path, entry(engines[0])) as gateway:
        for wrong in ({"kind": "nope"}, {"url": "http://[::1"}, {"url": "http://gpu1:80000"}):
            said = {"id": "late", "url": "http://gpu1:8000", **wrong}
            reply = await gateway.client.post("/admin/v1/engines", json=said)
            assert reply.status_code == 400, reply.text
        assert gateway.up() == {"e1": engines[0].url}
