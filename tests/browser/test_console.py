"""The console in a real browser: it shows what runs while it runs, finds programs, says why, and keeps to itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Gateway, Watched, gateway_process

pytestmark = pytest.mark.slow
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
VIEWS = ("programs", "engines", "tenants", "forecasts", "graphs", "decisions")


def test_a_program_is_shown_while_its_step_still_runs(gateway: Gateway, watched: Watched) -> None:
    page = watched.open()
    expect(page.locator("#live")).to_have_text("live")
    running = gateway.start("long-essay", tokens=9000, long=True)
    row = page.locator("tr", has=page.get_by_role("link", name="long-essay"))
    expect(row).to_contain_text("running")
    expect(row.locator(".lane .model").first).to_be_attached()  # no stream was asked for
    page.goto(f"{gateway.url}/console/#/program/default%2Flong-essay")
    expect(page.locator("#program-facts")).to_contain_text("in use by its step")
    assert running.is_alive(), "it was seen only after it was over"


def test_filters_find_programs_by_name_workflow_and_state(gateway: Gateway, watched: Watched) -> None:
    page = watched.open()
    rows = page.locator("#programs tr")
    page.get_by_label("Search").fill("survey")
    expect(rows).to_have_count(2)
    page.get_by_label("Search").fill("essay-1")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("a person's turn")
    page.get_by_label("State").select_option("idle")
    expect(rows).to_have_count(0)
    page.get_by_label("Search").fill("")
    expect(rows).to_have_count(2)
    expect(page.locator("#count")).to_contain_text("2 of")


def test_a_program_s_page_shows_its_steps_its_outlook_and_the_reasons(
    gateway: Gateway, watched: Watched
) -> None:
    page = watched.open()
    page.get_by_role("link", name="survey-1").click()
    expect(page.locator("#program-name")).to_contain_text("survey-1")
    expect(page.locator("#steps tr")).to_have_count(2)
    expect(page.locator("#steps tr").first).to_contain_text("read_file")
    expect(page.locator("#program-facts")).to_contain_text("nine in ten by")
    expect(page.locator("#gaps tr")).to_have_count(1)
    expect(page.locator("#gaps")).to_contain_text("read_file")
    expect(page.locator("#steps tr").first).to_contain_text("whole")
    story = page.locator("#story")
    expect(story).to_contain_text("Dispatch")
    expect(story).to_contain_text("seated")
    expect(page.locator("#program-lane .lane .tools").first).to_be_attached()
    look(watched, "program")
    assert story.get_by_text("StepArrived", exact=True).count() == 2, "each is told once"


def test_a_program_that_ends_while_its_page_is_open_is_said_to_have_ended(
    gateway: Gateway, watched: Watched
) -> None:
    gateway.step("short-lived", tool=False)
    page = watched.open("#/program/default%2Fshort-lived")
    expect(page.locator("#steps tr")).to_have_count(1)
    httpx.delete(f"{gateway.url}/v1/programs/short-lived").raise_for_status()
    expect(page.locator("#program-facts")).to_contain_text("not live any more")
    expect(page.locator("#steps tr")).to_have_count(1)
    expect(page.locator("#story")).to_contain_text("ProgramEnded")
    watched.troubles.clear()  # it asked for a program that is not there any more, and the browser says so


def test_pins_are_shown_with_their_reason(browser: Browser, tmp_path: Path) -> None:
    with gateway_process(tmp_path, "--kv-tokens", "4000") as gateway:
        page = browser.new_page()
        page.goto(f"{gateway.url}/console/")
        expect(page.locator("#live")).to_have_text("live")
        gateway.step("keeper", words=1500)
        back_soon = {"type": "next", "in_ms": 3000}
        httpx.post(f"{gateway.url}/v1/programs/keeper/events", json=[back_soon]).raise_for_status()
        gateway.start("other", words=2400, tool=False)  # wants the memory that is kept
        page.get_by_role("link", name="keeper").click()
        expect(page.locator("#story")).to_contain_text("Pin on")
        expect(page.locator("#story")).to_contain_text("worth_keeping")
        expect(page.locator("#program-lane .pinned").first).to_be_attached()
        pins = httpx.get(f"{gateway.url}/admin/v1/pins").json()["data"]
        kept = [row for row in pins if row["program"] == "keeper"]
        assert len(kept) <= 1  # it may have been let go meanwhile
        assert all(row["engine"] == "emulated" for row in kept)
        page.close()


def test_tools_have_a_survival_curve_and_workflows_a_drawn_graph(gateway: Gateway, watched: Watched) -> None:
    page = watched.open("#/forecasts")
    card = page.locator("#forecasts article", has_text="read_file")
    expect(card.locator("path.curve")).to_be_attached()
    expect(card).to_contain_text("half are back by")
    page = watched.open("#/graphs")
    page.get_by_role("link", name="survey").click()
    image = page.locator("#graph-image")
    expect(image).to_be_visible()
    assert page.evaluate("document.getElementById('graph-image').decode().then(() => true)")
    watched.shot("graph")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_reached_by_keyboard_and_fits_a_phone(view: str, watched: Watched) -> None:
    page = watched.open()
    link = page.get_by_role("navigation").get_by_role("link", name=view.capitalize(), exact=True)
    for _ in range(20):
        page.keyboard.press("Tab")
        if link.evaluate("link => link === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator(f"#view-{view}")).to_be_visible()
    expect(link).to_have_attribute("aria-current", "page")
    look(watched, view)


def look(watched: Watched, name: str) -> None:
    """In both themes, at a desk and on a phone; it never scrolls sideways, and nothing is cut off."""
    page = watched.page
    for place, width in (("desktop", 1280), ("phone", 390)):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in THEMES:
            page.emulate_media(color_scheme=scheme)
            watched.shot(f"{name}-{place}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), place
        assert page.evaluate(CUT_OFF) == [], place


# What is wider than the place that it stands in, even where that scrolls; a program's long name ends in dots.
CUT_OFF = """
() => [...document.querySelectorAll('header *, main *')]
  .filter(e => e.checkVisibility() && !e.closest('.unseen, .skip, thead, svg, #programs'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1
    || e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
  .map(e => `${e.tagName} ${e.id || e.className} ${e.textContent.slice(0, 40)}`)
"""


def test_on_a_phone_a_folded_table_is_still_a_table_and_names_each_figure(
    gateway: Gateway, watched: Watched
) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 800})
    page = watched.open("#/program/default%2Fsurvey-1")
    row = page.locator("#steps tr").first
    expect(row.locator("td")).to_have_count(9)
    for cell in row.locator("td").all():
        expect(cell).to_be_in_viewport(ratio=0.95)
    named = row.locator("td").evaluate_all("cells => cells.map(c => getComputedStyle(c, '::before').content)")
    assert named[0] == '"Arrived"'
    assert named[-1] == '"Asked for"'
    assert "- cell" in page.get_by_role("region", name="Steps").aria_snapshot()


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(
    gateway: Gateway, watched: Watched
) -> None:
    reply = httpx.get(f"{gateway.url}/console/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    page = watched.open()
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hurt = 1\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hurt") is None
    watched.troubles.clear()  # the browser says that it refused


def test_an_open_page_comes_back_by_itself_when_its_gateway_does(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    with gateway_process(tmp_path) as before:
        before.step("early", tool=False)
        page.goto(f"{before.url}/console/")
        expect(page.get_by_role("link", name="early")).to_be_visible()
    expect(page.locator("#live")).not_to_have_text("live")
    with gateway_process(tmp_path, "--port", before.url.rpartition(":")[2]) as after:
        expect(page.locator("#live")).to_have_text("live")
        after.step("late", tool=False)
        expect(page.get_by_role("link", name="late")).to_be_visible()
    page.close()


def test_names_that_clients_choose_are_text_and_never_markup(gateway: Gateway, watched: Watched) -> None:
    gateway.step("<b>bold</b>", workflow="<i>w</i>")
    page = watched.open()
    expect(page.get_by_role("link", name="<b>bold</b>")).to_be_visible()
    assert page.locator("#programs b").count() == 0


def test_a_program_that_was_only_declared_is_not_said_to_run_tools(
    gateway: Gateway, watched: Watched
) -> None:
    said = {"id": "declared", "workflow": "survey"}
    httpx.post(f"{gateway.url}/v1/programs", json=said).raise_for_status()
    page = watched.open()
    row = page.locator("#programs tr", has=page.get_by_role("link", name="declared"))
    expect(row).to_contain_text("no step yet")
    gateway.step("declared")
    expect(row).to_contain_text("tools run")
    httpx.delete(f"{gateway.url}/v1/programs/declared").raise_for_status()


def test_programs_that_wait_are_shown_by_the_names_they_chose(browser: Browser, tmp_path: Path) -> None:
    hostile = '<img src=x onerror="window.hit=1">'
    with gateway_process(tmp_path, "--kv-tokens", "4000") as gateway:
        page = browser.new_page()
        page.goto(f"{gateway.url}/console/")
        for number in range(3):
            gateway.start(f"{number}{hostile}", words=1800, tokens=1200, long=True, workflow=hostile)
        waiting = page.locator("#programs tr", has_text="waiting")
        expect(waiting).to_have_count(2)
        waiting.first.get_by_role("link").click()
        expect(page.locator("#program-name")).to_contain_text(hostile)
        expect(page.locator("#program-facts")).to_contain_text(hostile)
        expect(page.locator("#story")).to_contain_text("no_seat")
        assert page.evaluate("window.hit") is None
        page.close()


def test_of_ten_thousand_programs_only_those_in_sight_are_drawn(browser: Browser, tmp_path: Path) -> None:
    with gateway_process(tmp_path) as gateway:
        declare(gateway, 10_000)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{gateway.url}/console/")
        page.get_by_label("Order").select_option("oldest")
        expect(page.locator("#count")).to_have_text("10,000 live")
        rows = page.locator("#programs tr")
        expect(rows.first).to_contain_text("agent-0")
        assert page.locator("#programs-scroll table").get_attribute("aria-rowcount") == "10001"
        elements = page.evaluate("document.querySelectorAll('*').length")
        page.locator("#programs-scroll").focus()
        page.keyboard.press("End")
        last = page.locator('#programs tr[aria-rowindex="10001"]')
        expect(last).to_be_in_viewport()
        expect(rows.last).to_have_attribute("aria-rowindex", "10001")
        assert rows.count() < 100
        assert page.evaluate("document.querySelectorAll('*').length") < elements + 500
        page.get_by_label("Search").fill("agent-9999")
        expect(rows).to_have_count(1)
        expect(page.locator("#found")).to_have_text("1 program found")
        page.get_by_label("Search").fill("")
        expect(rows.nth(20)).to_be_attached()
        page.close()


def declare(gateway: Gateway, programs: int) -> None:
    """So many live programs, in order."""
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(base_url=gateway.url, timeout=60, limits=limits) as client:
        for i in range(programs):
            client.post("/v1/programs", json={"id": f"agent-{i}"})


def test_a_row_keeps_the_focus_while_the_list_is_renewed(gateway: Gateway, watched: Watched) -> None:
    page = watched.open()
    page.get_by_label("Search").fill("-1")
    expect(page.locator("#programs tr")).to_have_count(2)
    link = page.get_by_role("link", name="survey-1")
    link.focus()
    gateway.step("essay-1", tool=False)  # the order changes
    expect(page.locator("#programs tr").first).to_contain_text("essay-1")
    expect(link).to_be_focused()


def test_decisions_from_before_the_page_was_opened_are_there(gateway: Gateway, watched: Watched) -> None:
    page = watched.open("#/decisions")
    expect(page.locator("#feed")).to_contain_text("Dispatch")
    expect(page.locator("#feed").get_by_role("link", name="default/survey-1").first).to_be_attached()


def test_outcomes_are_drawn_against_what_was_forecast(gateway: Gateway, watched: Watched) -> None:
    page = watched.open("#/forecasts")
    gaps = page.locator("#plots article", has_text="Gaps")
    expect(gaps.locator("circle.dot").first).to_be_attached()
    expect(page.locator("#calibration")).to_contain_text("50 % is right")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, dict[str, str]]]:
    """A gateway that asks for keys, and one of each scope."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = {scope: make_key(folder, scope) for scope in ("call", "read", "admin")}
    with gateway_process(folder) as gateway:
        headers = {"authorization": f"Bearer {keys['call']}", "x-agentserve-program-id": "mine"}
        asked = {"model": "emulated", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
        httpx.post(
            f"{gateway.url}/v1/chat/completions", json=asked, headers=headers, timeout=60
        ).raise_for_status()
        yield gateway, keys


def make_key(folder: Path, scope: str) -> str:
    command = [sys.executable, "-m", "agentserve.cli", "keys", "create", "--tenant", "ops", "--scope", scope]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTSERVE_")}
    made = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=True, timeout=120
    )
    found = re.search(r"as-\S+", made.stdout)
    assert found, made.stdout
    return found.group()


def signed_in(browser: Browser, url: str, key: str, view: str = "") -> Page:
    page = browser.new_page()
    page.goto(f"{url}/console/{view}")
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    field.fill(key)
    page.keyboard.press("Enter")
    return page


def test_a_key_that_may_read_sees_everything_and_no_action(
    browser: Browser, guarded: tuple[Gateway, dict[str, str]]
) -> None:
    gateway, keys = guarded
    page = signed_in(browser, gateway.url, keys["call"])
    expect(page.get_by_role("alert")).to_contain_text("not accepted")
    page.get_by_label("API key").fill(keys["read"])
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_role("link", name="mine").click()
    expect(page.locator("#program-facts")).to_contain_text("ops")
    assert page.get_by_role("button", name="End program").count() == 0
    page.get_by_role("link", name="Engines").click()
    expect(page.locator("#engines article")).to_have_count(1)
    assert page.get_by_role("button").all_inner_texts() == ["Sign out"]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    page.close()


def test_an_admin_drains_an_engine_and_ends_a_program_after_saying_so_twice(
    browser: Browser, guarded: tuple[Gateway, dict[str, str]]
) -> None:
    gateway, keys = guarded
    page = signed_in(browser, gateway.url, keys["admin"], "#/engines")
    page.get_by_role("button", name="Drain emulated").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator("#engines h3")).to_contain_text("up")
    page.get_by_role("button", name="Drain emulated").click()
    page.get_by_role("button", name="Drain it").click()
    expect(page.locator("#engines h3")).to_contain_text("draining")
    page.get_by_role("button", name="Resume emulated").click()
    expect(page.locator("#engines h3")).to_contain_text("up")
    page.get_by_role("link", name="Programs").click()
    page.get_by_role("link", name="mine").click()
    page.get_by_role("button", name="End program").click()
    page.get_by_role("button", name="End it").click()
    expect(page.locator("#program-facts")).to_contain_text("not live any more")
    page.close()
