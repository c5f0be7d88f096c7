"""Every page in a real browser: it shows its thing, complains of nothing and asks nobody else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from browsing import running
from rooms import NASTY, Room

from em_circuits.viewer import Sessions


def test_keys_theme_blur_and_the_live_overview(room: Room, open_browser) -> None:
    with running(room) as base:
        page = open_browser(base).window(room)
        page.keyboard.press("b")
        assert page.locator("html[data-blur]").count() == 1
        page.keyboard.press("d")
        assert page.locator("html").get_attribute("data-theme") == "dark"
        page.keyboard.press("?")
        assert page.locator("#keys").is_visible()
        page.keyboard.press("Escape")
        item = room.store.queue.take("somebody", 60)
        assert item is not None
        room.store.queue.settle(item, "rejected", item.fence)
        page.wait_for_selector("dt:has-text('rejected')")
        page.keyboard.press("g")
        page.keyboard.press("p")
        page.wait_for_url("**/prompts")
        page.keyboard.press("/")
        page.keyboard.type("peanut")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=1 prompt")


def test_nasty_text_is_shown_and_not_run(room: Room, open_browser) -> None:
    nasty = next(p for p in room.prompts if p.text == NASTY)
    with running(room) as base:
        page = open_browser(base).window(room)
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        for path in ("prompts", f"prompt/{nasty.prompt_id}"):
            page.goto(base + path)
            assert "<script>alert('x')</script> [/bold]" in page.locator("main").inner_text()


def test_who_comes_by_a_signed_link_is_not_asked_for_a_name(room: Room, open_browser) -> None:
    shared = replace(room, sessions=Sessions("", reviewers=("ada", "bob")))
    with running(shared) as base:
        page = open_browser(base).window(shared)
        page.goto(f"{base}?token={shared.sessions.link_of('bob')}")
        page.click("#me")
        page.wait_for_selector("#who >> text=You are bob")
        assert page.locator("#who-name").count() == 0
        page.click("#new-link")
        page.wait_for_selector("#link:visible")
        assert page.input_value("#link").endswith(shared.sessions.link_of("bob"))
        page.click("#who >> text=Close")
        assert not page.locator("#who").is_visible()


def test_a_report_is_a_stranger(room: Room, open_browser) -> None:
    page_text = (
        "<p id=x>waiting</p><script>x.textContent='drawn';"
        "try{x.textContent+=document.cookie+localStorage.length+'free'}catch(e){}"
        "fetch('/api/link',{method:'POST'})"
        ".then(()=>x.textContent+=' asked',()=>x.textContent+=' refused')</script>"
    )
    (room.root / "results" / "figures.html").write_text(page_text)
    with running(room) as base:
        browser = open_browser(base)
        browser.allowed = ("connect-src", "Refused to connect", "Connecting to", "sandboxed")
        page = browser.window(room)
        page.goto(base + "report/figures.html")
        frame = page.frame_locator("iframe")
        frame.locator("text=/asked|refused/").wait_for()
        assert frame.locator("#x").inner_text() == "drawn refused"


def test_features_sort_filter_and_say_where_they_fire(seen_room: Room, open_browser) -> None:
    room = seen_room
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(base + "features")
        page.select_option("#compute select[name=method]", "gradient")
        page.click("text=Compute ranking")
        page.wait_for_selector("#table .spark")
        names = page.locator("#table tbody a")
        assert names.count() <= 20
        first = names.first.inner_text()
        page.click("#table th button:has-text('contrast')")
        page.click("#table th button:has-text('contrast')")
        assert names.first.inner_text() != first
        page.fill("#search", "99/99")
        page.wait_for_selector("text=No feature fits")
        page.fill("#search", "")
        names.first.click()
        page.wait_for_selector(".firing mark")
        page.fill("[data-label]", "danger")
        with page.expect_response("**/api/node-labels*"):
            page.keyboard.press("Enter")
        page.locator("text=in its graph").first.click()
        page.wait_for_selector("#panel h2:has-text('danger')")


def test_a_page_of_figures_follows_the_adapter(seen_room: Room, open_browser) -> None:
    from rooms import PAIR, lists

    room = seen_room
    prompt, same = room.prompts[3], lists(scale=0.0)
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}prompt/{prompt.prompt_id}")
        before = page.locator(".butterfly tbody .up, .butterfly tbody .down").count()
        room.store.results.put_next_tokens(prompt.prompt_id, PAIR, same.base, same.merged)
        page.reload()
        changes = page.locator(".butterfly tbody td:nth-child(6)").all_inner_texts()
        assert before > 0 and {json.loads(text) for text in changes} == {0.0}
