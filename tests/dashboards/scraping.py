"""A real Prometheus over a real gateway, for as long as a test needs it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.dashboards.queries import PROMETHEUS
from tests.scenarios import stage

BINARY = shutil.which("prometheus")
SCRAPE_S = 1


@dataclass(slots=True, kw_only=True)
class Asking:
    """Prometheus' HTTP API."""

    client: httpx.AsyncClient

    async def values(self, expr: str) -> list[float]:
        """What an instant query answers, without what is no number."""
        found = await self._get("/api/v1/query", query=expr)
        samples = (
            [found["result"]] if found["resultType"] == "scalar" else [r["value"] for r in found["result"]]
        )
        return [value for _, text in samples if not math.isnan(value := float(text))]

    async def exemplars(self, expr: str, since: float, until: float) -> list[dict[str, str]]:
        """The labels of the exemplars of a query's series."""
        found = await self._get("/api/v1/query_exemplars", query=expr, start=since, end=until)
        return [exemplar["labels"] for series in found for exemplar in series["exemplars"]]

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule and how it goes."""
        return [rule for group in (await self._get("/api/v1/rules"))["groups"] for rule in group["rules"]]

    async def _get(self, path: str, **params: Any) -> Any:
        reply = await self.client.get(path, params=params)
        assert reply.status_code == 200, f"{params}: {reply.text}"
        return reply.json()["data"]


def configuration(folder: Path, gateway_port: int) -> Path:
    """The committed configuration, with this gateway in it and made to look as often as a test can wait for."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{gateway_port}"]}]
    for name in config["rule_files"]:
        rules = yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))
        for group in rules["groups"]:
            group["interval"] = f"{SCRAPE_S}s"
        (folder / name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextlib.asynccontextmanager
async def prometheus(folder: Path, gateway_port: int) -> AsyncIterator[Asking]:
    """It runs and is ready."""
    assert BINARY is not None
    port = stage.free_port()
    command = [
        BINARY, f"--config.file={configuration(folder, gateway_port)}", f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn",
    ]  # fmt: skip
    async with (
        stage.started(command, port, folder / "prometheus.log"),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        async with asyncio.timeout(stage.START_S):
            while (await client.get("/-/ready")).status_code != 200:
                await asyncio.sleep(0.1)
        yield Asking(client=client)
