"""The console without a mouse and without eyes: everything is reached, seen to be reached, and has a name."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Gateway, Watched

pytestmark = pytest.mark.slow
VIEWS = ("programs", "program/default%2Fsurvey-1", "engines", "tenants", "forecasts", "graphs", "decisions")
# What a key press can do something with, and what the walk came to: by position in the document.
REACHABLE = """
() => [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')]
  .filter(e => e.checkVisibility() && !e.disabled && !e.closest('#programs') && !e.closest('#feed'))
  .map(e => e.id || e.getAttribute('name') || e.textContent.trim().slice(0, 40))
"""
FOCUSED = """
() => {
  const e = document.activeElement;
  if (e === document.body) return null;
  const style = getComputedStyle(e);
  return { name: e.id || e.getAttribute('name') || e.textContent.trim().slice(0, 40),
           outline: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1,
           skip: e.classList.contains('skip') };
}
"""


def walk(page: Any) -> list[dict[str, Any]]:
    """Tab from the beginning until the walk leaves the page."""
    page.evaluate("document.activeElement.blur()")
    steps: list[dict[str, Any]] = []
    for _ in range(400):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found is None or (steps and found == steps[0]):
            return steps
        steps.append(found)
    raise AssertionError("the walk does not end")


@pytest.mark.parametrize("view", VIEWS)
def test_everything_is_reached_by_keyboard_and_shows_that_it_is(
    view: str, gateway: Gateway, watched: Watched
) -> None:
    page = watched.open(f"#/{view}")
    page.locator(f"#view-{view.partition('/')[0]}").wait_for()
    expect(page.locator("#live")).to_have_text("live")
    steps = walk(page)
    reached = {step["name"] for step in steps}
    assert set(page.evaluate(REACHABLE)) <= reached
    assert steps[0]["skip"], "the first stop leads past the navigation"
    assert all(step["outline"] for step in steps), [s for s in steps if not s["outline"]]


@pytest.mark.parametrize("view", VIEWS)
def test_everything_has_a_name_and_only_quiet_places_announce(
    view: str, gateway: Gateway, watched: Watched
) -> None:
    page = watched.open(f"#/{view}")
    page.locator(f"#view-{view.partition('/')[0]}").wait_for()
    expect(page.locator("#live")).to_have_text("live")
    tree = page.locator("body").aria_snapshot()
    for role in ("button", "link", "textbox", "searchbox", "combobox", "img", "region"):
        lines = [line.strip() for line in tree.splitlines() if line.strip().startswith(f"- {role}")]
        assert all('"' in line for line in lines), [line for line in lines if '"' not in line]
    # what changes every second is not announced; what is, says little
    announced = page.evaluate(
        "() => [...document.querySelectorAll('[role=status], [role=alert], [aria-live]:not([aria-live=off])')]"
        ".map(e => e.id)"
    )
    assert set(announced) <= {"live", "found", "refused"}
    assert page.locator("h1").count() == 1
    assert page.locator("h2:visible").count() == 1


def test_nothing_moves_for_who_does_not_want_it(gateway: Gateway, watched: Watched) -> None:
    page = watched.open()
    expect(page.locator("#live")).to_have_text("live")
    moving = "() => getComputedStyle(document.querySelector('#live'), '::before').animationName"
    assert page.evaluate(moving) != "none"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == "none"


def test_a_status_that_does_not_change_is_not_said_again(gateway: Gateway, watched: Watched) -> None:
    page = watched.open()
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate(
        "window.changes = 0;"
        "for (const e of document.querySelectorAll('[role=status], [role=alert]'))"
        " new MutationObserver(() => window.changes += 1)"
        ".observe(e, {childList: true, characterData: true, subtree: true})"
    )
    for _ in range(3):  # it looks again every second
        with page.expect_response("**/summary"):
            pass
    assert page.evaluate("window.changes") == 0
