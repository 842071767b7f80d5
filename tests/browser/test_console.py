"""The console in a real browser: it shows what runs while it runs, finds programs, says why, and keeps to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Gateway, Watched, gateway_process

pytestmark = pytest.mark.slow
VIEWS = ("programs", "engines", "tenants", "forecasts", "graphs", "decisions")


def test_a_program_is_shown_while_its_step_still_runs(gateway: Gateway, watched: Watched) -> None:
    page = watched.open()
    expect(page.locator("#live")).to_have_text("live")
    running = gateway.start("long-essay", tokens=3000, long=True)
    row = page.locator("tr", has=page.get_by_role("link", name="long-essay"))
    expect(row).to_contain_text("running")
    expect(row.locator(".lane .decode, .lane .prefill").first).to_be_attached()
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
    story = page.locator("#story")
    expect(story).to_contain_text("Dispatch")
    expect(story).to_contain_text("seated")
    expect(page.locator("#program-lane .lane .tools").first).to_be_attached()


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
        page.close()


def test_tools_have_a_survival_curve_and_workflows_a_drawn_graph(gateway: Gateway, watched: Watched) -> None:
    page = watched.open("#forecasts")
    card = page.locator("#forecasts article", has_text="read_file")
    expect(card.locator("path.curve")).to_be_attached()
    expect(card).to_contain_text("half back in")
    page = watched.open("#graphs")
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
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        watched.shot(f"{view}-{scheme}")
    page.set_viewport_size({"width": 390, "height": 800})
    watched.shot(f"{view}-phone")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "it must not scroll sideways"
    )


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


def test_names_that_clients_choose_are_text_and_never_markup(gateway: Gateway, watched: Watched) -> None:
    gateway.step("<b>bold</b>", workflow="<i>w</i>")
    page = watched.open()
    expect(page.get_by_role("link", name="<b>bold</b>")).to_be_visible()
    assert page.locator("#programs b").count() == 0


def test_ten_thousand_programs_are_counted_searched_and_drawn(gateway: Gateway, browser: Browser) -> None:
    page = browser.new_page()
    many = [program(i) for i in range(10_000)]

    def answer(route: Any) -> None:
        asked = route.request.url
        text = asked.split("q=")[1].split("&")[0] if "q=" in asked else ""
        found = [p for p in many if text in p["id"]]
        route.fulfill(json={"data": found[:200], "matching": len(found), "total": len(many)})

    page.route("**/admin/v1/programs?*", answer)
    page.goto(f"{gateway.url}/console/")
    expect(page.locator("#programs tr")).to_have_count(200)
    expect(page.locator("#count")).to_contain_text("10,000")
    page.get_by_label("Search").fill("agent-9999")
    expect(page.locator("#programs tr")).to_have_count(1)
    page.close()


def test_where_keys_are_asked_for_one_that_may_read_signs_in(browser: Browser, tmp_path: Path) -> None:
    with gateway_process(tmp_path) as gateway:
        page = browser.new_page()
        refused = 0

        def answer(route: Any) -> None:
            nonlocal refused
            if route.request.headers.get("authorization") == "Bearer good":
                route.continue_(
                    headers={k: v for k, v in route.request.headers.items() if k != "authorization"}
                )
            else:
                refused += 1
                route.fulfill(status=401, json={"error": {"message": "no key"}})

        page.route("**/admin/v1/**", answer)
        page.goto(f"{gateway.url}/console/")
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not accepted")
        field.fill("good")
        page.keyboard.press("Enter")
        expect(page.locator("#view-programs")).to_be_visible()
        expect(page.locator("#live")).to_have_text("live")
        assert refused
        page.close()


def program(index: int) -> dict[str, Any]:
    return {
        "id": f"agent-{index}", "key": f"default/agent-{index}", "tenant": "default", "state": "idle", "workflow": None,
        "steps_done": index % 50, "steps_open": 0, "context_tokens": 1000 + index, "engine": "emulated", "tools": [],
    }  # fmt: skip
