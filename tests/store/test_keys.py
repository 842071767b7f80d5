"""Keys are shown once, kept as digests, and checked from memory."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from agentserve.errors import UsageError
from agentserve.live.auth import authorise
from agentserve.store import keys
from agentserve.store.database import Database
from agentserve.store.keys import StoredKeys

NOW = 1_700_000_000.0


async def test_a_key_stands_for_its_tenant_and_scopes(database: Database) -> None:
    made = await keys.create(database, tenant="acme", now=NOW, scopes=("call", "read"))
    view = StoredKeys(database)
    await view.refresh()
    found = view.check(made.token, NOW)
    assert found is not None
    assert (found.tenant, found.scopes, found.key_id) == (
        "acme",
        frozenset({"call", "read"}),
        made.key.key_id,
    )
    prefix, public, secret = made.token.split("-")
    assert (prefix, public) == ("as", made.key.key_id)
    assert len(secret) == 40
    assert authorise(view, {"authorization": f"Bearer {made.token}"}, "read", NOW) is found


async def test_no_part_of_the_secret_is_in_the_database_or_in_a_message(database: Database) -> None:
    made = await keys.create(database, tenant="acme", now=NOW)
    secret = made.token.split("-")[2]
    async with database.reading() as connection:
        rows = (await connection.execute(text("SELECT * FROM api_keys"))).all()
    assert secret not in repr(rows)
    assert repr(keys.digest_of(made.token)) not in repr((await keys.listed(database))[0])


@pytest.mark.parametrize("change", ["", "x", "-", "cut", "case", "other id", "no prefix"])
async def test_anything_but_the_very_key_is_nobody(database: Database, change: str) -> None:
    token = (await keys.create(database, tenant="acme", now=NOW)).token
    other = (await keys.create(database, tenant="other", now=NOW)).token
    view = StoredKeys(database)
    await view.refresh()
    wrong = {
        "": "",
        "x": token + "x",
        "-": token + "-",
        "cut": token[:-1],
        "case": token.swapcase(),
        "other id": "-".join([*other.split("-")[:2], token.split("-")[2]]),
        "no prefix": token.removeprefix("as-"),
    }[change]
    assert view.check(wrong, NOW) is None


async def test_a_key_ends_when_it_expires(database: Database) -> None:
    made = await keys.create(database, tenant="acme", now=NOW, expires_at=NOW + 60)
    view = StoredKeys(database)
    await view.refresh()
    assert view.check(made.token, NOW + 59.9) is not None
    assert view.check(made.token, NOW + 60) is None


@pytest.mark.parametrize("by", ["public id", "token"])
@pytest.mark.parametrize("later_s", [5, -3600], ids=["later", "after the clock was put back"])
async def test_a_revoked_key_stops_working_in_a_running_gateway(
    database: Database, by: str, later_s: float
) -> None:
    made = await keys.create(database, tenant="acme", now=NOW)
    view = StoredKeys(database, refresh_s=0.01)
    await view.refresh()
    view.start()
    await keys.revoke(database, made.token if by == "token" else made.key.key_id, now=NOW + later_s)
    async with asyncio.timeout(30):
        while view.check(made.token, NOW + 5) is not None:
            await asyncio.sleep(0.005)
    await view.stop()
    [listed] = await keys.listed(database)
    assert listed.state(NOW + 6) == "revoked"


async def test_nothing_is_read_again_while_no_key_changes(database: Database) -> None:
    await keys.create(database, tenant="acme", now=NOW)
    view = StoredKeys(database)
    assert await view.refresh()
    assert not await view.refresh()
    await keys.create(database, tenant="acme", now=NOW)
    assert await view.refresh()
    assert len(view) == 2


async def test_revoking_an_unknown_key_or_making_a_senseless_one_is_the_callers_error(
    database: Database,
) -> None:
    with pytest.raises(UsageError, match="there is no key"):
        await keys.revoke(database, "nobody", now=NOW)
    with pytest.raises(UsageError, match="scopes are call, read, admin"):
        await keys.create(database, tenant="acme", now=NOW, scopes=("root",))
    with pytest.raises(UsageError, match="tenant"):
        await keys.create(database, tenant="", now=NOW)
