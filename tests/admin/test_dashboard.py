"""The dashboard in a real browser: it loads, updates live, and a click rolls back."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from specproxy.gate.statistics import Mean
from specproxy.server.admin.operator import etag_of
from specproxy.server.gating.audits import Audited, Counts, Kept
from specproxy.server.gating.gate import Gate
from specproxy.server.gating.traffic import RouteTraffic
from specproxy.vocabulary import DraftCounts
from tests.admin.conftest import EDITED, KEY, NEW, OLD, POLICY, Admin, PausedOperator
from tests.admin.test_api import BUNDLE, WRONG
from tests.support.browser import Page, browse, chromium

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None and not os.environ.get("CI"),
    reason="no Chromium here: apt-get install chromium-headless-shell, or set SPECPROXY_CHROMIUM",
)
CODE = '[data-route="code"]'
PICTURES = os.environ.get("SPECPROXY_PICTURES")
"""A folder for screenshots, where a person wants to look."""


def measured(gate: Gate, route: str, scale: float = 1.0) -> None:
    """What a busy route shows: speed-up (42 % times ``scale``, with its interval), drafts, K, times, audits."""
    now = time.time()
    gains, drafts = Mean(), DraftCounts("ngram", drafted_at=[1000] * 8)
    spread = 0.6
    for number in range(1530):
        gains.add(math.log1p(0.42 * scale) + (spread if number % 2 else -spread))
    gate.samples.speedup[route] = (gate.book.active[route].revision, gains)
    drafts.accepted_at = [int(880 * 0.86**depth) for depth in range(8)]
    seen = gate.traffic.routes[route] = RouteTraffic(requests=1843)
    seen.ttft.extend([0.042] * 470 + [0.118] * 30 + [0.31] * 12)
    seen.gaps.extend([0.0031] * 470 + [0.0074] * 30 + [0.012] * 12)
    seen.drafts.append([drafts])
    seen.k.extend((now - 300 + 5 * number, 4 * 3 + number * 7 % 11, 4) for number in range(60))
    gate.audits.counts[route] = Counts(identical=1699, explained=3)


@pytest.fixture
def operator(operator: PausedOperator) -> PausedOperator:
    """With numbers on both routes."""
    measured(operator.gate, "code")
    measured(operator.gate, "default", 0.4)
    return operator


def refuse(operator: PausedOperator, text: str) -> None:
    """The policy file is broken from now on: the old set serves, with a warning."""
    (operator.gate.policies.directory / "code.yaml").write_text(text)
    assert not operator.gate.policies.reload()


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A browser; at the end its scripts must have had no trouble."""
    assert PROGRAM is not None, "CI must have a Chromium"
    async with browse(PROGRAM) as opened:
        await opened.look()
        yield opened
        assert opened.problems == []


async def sign_in(page: Page, admin: Admin) -> None:
    """As a person does: type the key, press Enter."""
    await page.open(f"{admin.url}/")
    await page.until("document.activeElement.id === 'key'")
    # The browser itself reports the refusal that made the page ask for the key.
    page.problems.clear()
    await page.type(KEY)
    await page.press("Enter")
    await page.until(f"document.querySelector('{CODE}')")


async def text(page: Page, selector: str) -> str:
    """What stands there."""
    found: str = await page.run(f"document.querySelector({selector!r}).innerText")
    return found


async def test_it_shows_what_serves_and_what_is_on_its_way(page: Page, admin: Admin) -> None:
    """Every number of a route, the candidate's progress, and the log."""
    await sign_in(page, admin)
    shown = await text(page, CODE)
    for words in ("+42.0 %", "between +35.2 % and +49.2 %", "n = 1,530", "42.0 ms", "118 ms", "7.40 ms", "1,699", "3"):
        assert words in shown
    for words in (
        "audits: 320 of 299",
        "everything is proven",
        "✓ proven",
        "Time to first token, p95",
        OLD[:12],
        NEW[:12],
    ):
        assert words in shown
    labels = await page.run(f"[...document.querySelectorAll('{CODE} svg')].map((e) => e.getAttribute('aria-label'))")
    assert any("position 1: 88 percent" in label for label in labels)
    assert any(label.startswith("K over time") for label in labels)
    assert await page.run("document.querySelectorAll('#log tbody tr').length") == admin.operator.verify()
    assert all(url.startswith((admin.url, "data:")) and KEY not in url for url in page.requested)


async def test_it_updates_live(page: Page, admin: Admin) -> None:
    """What another person does, and new numbers, appear without a reload; focus stays where it was."""
    await sign_in(page, admin)
    await page.run(f"document.querySelector('{CODE} [data-action=rollback]').focus()")
    measured(admin.operator.gate, "code", 2.0)
    body = {"revision": NEW, "reason": "look into it"}
    tag = etag_of(admin.operator.state())
    assert (await admin.ask("POST", "/routes/code/pause", body, If_Match=tag))[0] == 200
    await page.until(f"document.querySelector('{CODE}').innerText.includes('+84.0 %')")
    await page.until("document.querySelector('#log tbody').innerText.includes('look into it')")
    assert "paused" in await text(page, f"{CODE} .candidate .badge")
    assert await page.run(f"document.activeElement === document.querySelector('{CODE} [data-action=rollback]')")
    assert (await text(page, "#live")).startswith("live")


async def test_a_click_promotes_and_another_rolls_back(page: Page, admin: Admin) -> None:
    """With a reason and a confirmation; the page shows it, and the store has it."""
    await sign_in(page, admin)
    await page.click(f"{CODE} [data-action=promote]")
    await page.until("document.activeElement.id === 'reason'")
    await page.type("all proven")
    await page.click("#do")
    await page.until(f"document.querySelector('{CODE} .badges').innerText.includes('active {NEW[:12]}')")
    await page.click(f"{CODE} [data-action=rollback]")
    assert NEW[:12] in await text(page, "#confirm-title")
    await page.type("users complain")
    await page.click("#do")
    await page.until(f"document.querySelector('{CODE} .badges').innerText.includes('active {OLD[:12]}')")
    await page.until("document.querySelector('#log tbody').innerText.includes('users complain')")
    assert [state.phase for state in admin.operator.states()] == ["active", "rolled_back"]
    assert "Roll back: done" in await text(page, "#said")


async def test_nothing_happens_without_a_reason_or_a_confirmation(page: Page, admin: Admin) -> None:
    """Cancel, Escape and a blank reason leave all as it was."""
    await sign_in(page, admin)
    before = admin.operator.verify()
    await page.click(f"{CODE} [data-action=rollback]")
    await page.type("   ")
    await page.click("#do")
    await page.until("document.querySelector('#confirm-error').innerText.includes('reason')")
    await page.press("Escape")
    await page.until("!document.querySelector('#confirm').open")
    await page.click(f"{CODE} [data-action=pause]")
    await page.click("#cancel")
    await page.until("!document.querySelector('#confirm').open")
    assert admin.operator.verify() == before


async def test_who_comes_too_late_is_told(page: Page, admin: Admin) -> None:
    """The order is for what the person saw; moved meanwhile, it is refused and says so."""
    await sign_in(page, admin)
    await page.click(f"{CODE} [data-action=promote]")
    await page.until("document.querySelector('#confirm').open")
    body = {"revision": NEW, "reason": "first"}
    await admin.ask("POST", "/routes/code/pause", body, If_Match=etag_of(admin.operator.state()))
    await page.type("second")
    await page.click("#do")
    await page.until("document.querySelector('#confirm-error').innerText.includes('Somebody else')")
    assert admin.operator.state().phase == "paused"
    page.problems.clear()


async def test_the_switches_switch(page: Page, admin: Admin) -> None:
    """A route's and the one for all, there and back, by keyboard too."""
    await sign_in(page, admin)
    await page.click(f"{CODE} [data-action=kill]")
    await page.type("odd answers")
    await page.press("Tab")
    await page.press("Tab")
    await page.press("Enter")
    await page.until(f"document.querySelector('{CODE}').innerText.includes('off: odd answers')")
    await page.click("#kill-all")
    assert "everywhere" in await text(page, "#confirm-title")
    await page.type("all of them")
    await page.click("#do")
    await page.until("document.querySelector('#warnings').innerText.includes('All speculation is off: all of them')")
    await page.click("#kill-all")
    await page.type("found it")
    await page.click("#do")
    await page.until("!document.querySelector('#warnings').innerText.includes('All speculation is off')")
    assert [kill.route for kill in admin.operator.gate.book.kills] == ["code"]


async def test_words_of_others_are_shown_as_words(page: Page, admin: Admin) -> None:
    """A reason that looks like a page is no page."""
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    await sign_in(page, admin)
    await admin.ask("POST", "/kill", {"route": "code", "reason": evil})
    refuse(admin.operator, f'routes: [{{name: default, speculate: {{drafters: "{evil}"}}}}]')
    await page.until("document.querySelector('#log tbody').innerText.includes('onerror')")
    await page.until("document.querySelector('#warnings').innerText.includes('onerror')")
    assert await page.run("document.title") == "specproxy"
    assert await page.run("document.querySelectorAll('main img, main script').length") == 0


async def test_a_wrong_key_is_said_and_the_right_one_is_for_this_tab_only(page: Page, admin: Admin) -> None:
    """It is in sessionStorage and nowhere else; forgetting it closes the page."""
    await page.open(f"{admin.url}/")
    await page.until("document.activeElement.id === 'key'")
    await page.type("wrong")
    await page.press("Enter")
    await page.until("document.querySelector('#sign-in-error').innerText.includes('not known')")
    page.problems.clear()
    await page.type(KEY)
    await page.press("Enter")
    await page.until(f"document.querySelector('{CODE}')")
    assert await page.run("[localStorage.length, document.cookie, location.href]") == [0, "", f"{admin.url}/"]
    await page.click("#sign-out")
    assert await page.run("[sessionStorage.length, document.querySelector('#dashboard').hidden]") == [0, True]


LONG = "\n  - {name: summaries-with-a-rather-long-name, match: {metadata: {kind: summary}}}\n  - name: default"


def with_long_name(text: str, default: str = "") -> str:
    """A third route with a name that is hard to fit in; ``default``: more of the last route."""
    return text.replace("\n  - name: default", LONG + default)


@pytest.mark.parametrize("texts", [(with_long_name(POLICY), with_long_name(EDITED, "\n    speculate: {k: 3}"))])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 360])
async def test_it_is_readable_in_light_and_dark_and_on_a_phone(
    page: Page, admin: Admin, *, dark: bool, width: int
) -> None:
    """Nothing is wider than the window, every text has a contrast of 4.5, every control a name and a finger's size."""
    refuse(admin.operator, "routes: 3")
    audited = Audited(BUNDLE, "req_1", "active", ("ngram",), served=True)
    admin.operator.gate.audits.ring["m1"] = Kept(time.time(), audited, WRONG)
    await admin.operator.prove("default", shadow=90, audits=120)
    await admin.ask("POST", "/kill", {"route": "default", "reason": "odd answers"})
    await page.look(width=width, dark=dark, phone=width < 500)
    await sign_in(page, admin)
    assert await page.run("document.documentElement.scrollWidth") <= width
    background = await page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) is dark
    assert await page.run(CONTRAST) == []
    assert await page.run(NAMELESS) == []
    if PICTURES:
        (Path(PICTURES) / f"dashboard-{width}-{'dark' if dark else 'light'}.png").write_bytes(await page.picture())


CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const [, , , alpha = 1] = numbers(getComputedStyle(e).backgroundColor);
      if (alpha > 0) return getComputedStyle(e).backgroundColor;
    }
  };
  const texts = [...document.querySelectorAll("body *")]
    .filter((e) => e.offsetParent !== null || e instanceof SVGTextElement)
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && !e.disabled);
  if (texts.length < 50) return ["too few texts"];
  return texts.flatMap((e) => {
    const style = getComputedStyle(e);
    const [a, b] = [light(e instanceof SVGElement ? style.fill : style.color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    return ratio < 4.5 ? [`${e.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`] : [];
  });
})()"""

NAMELESS = """[...document.querySelectorAll("button, input, textarea, svg, progress")]
  .filter((e) => e.checkVisibility())
  .filter((e) => !(e.innerText?.trim() || e.getAttribute("aria-label") || e.labels?.length)
    || (e.tagName === "BUTTON" && e.getBoundingClientRect().height < 40)).map((e) => e.outerHTML.slice(0, 200))"""
