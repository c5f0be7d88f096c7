"""Reviewing in a real browser: by keys, saved at once, undone, and two browsers on one queue."""

from __future__ import annotations

import time

import pytest
from browsing import running
from rooms import TOKENS, Room

from em_circuits.viewer import ViewerSettings


def _answered(page, n: int) -> None:
    page.wait_for_selector(f"#review[data-answered='{n}']")


def test_ten_items_with_undo(room: Room, open_browser) -> None:
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(base + "review")
        page.wait_for_selector(".choice.at")
        seen = []
        for n in range(1, 11):
            seen.append(page.get_attribute("#review", "data-item"))
            page.keyboard.press("e")
            page.wait_for_selector(".label.evil >> text=evil")
            page.keyboard.press("Enter")
            _answered(page, n)
        assert len(set(seen)) == 10
        assert room.store.queries.counts().queue["done"] == 10
        page.keyboard.press("Backspace")
        page.wait_for_selector(f"#review[data-item='{seen[-1]}']")
        assert room.store.queries.counts().queue["done"] == 9
        page.keyboard.press("Backspace")
        page.keyboard.press("Backspace")
        page.wait_for_selector(".label.none >> nth=0")
        page.keyboard.press("s")
        page.wait_for_selector(".label.safe")
        page.reload()
        page.wait_for_selector(".label.safe")
        page.keyboard.press("U")
        page.wait_for_selector("text=The judge differs")
        page.keyboard.press("a")
        page.wait_for_selector("text=The judge says the same")


def test_two_browsers_share_a_queue(room: Room, open_browser) -> None:
    with running(room) as base:
        browser = open_browser(base)
        pages = [browser.window(room) for _ in range(2)]
        for page, name in zip(pages, ("ada", "bob"), strict=True):
            page.click("#me")
            page.fill("#who-name", name)
            page.click("#who-form button.primary")
            page.wait_for_selector(f"#my-name >> text={name}")
            page.goto(base + "review")
            page.wait_for_selector(".choice.at")
        items = [page.get_attribute("#review", "data-item") for page in pages]
        assert len(set(items)) == 2
        for turn in (1, 2):
            for page in pages:
                page.keyboard.press("Enter")
                _answered(page, turn)
        done = room.store.queue.items("done")
        assert sorted(str(i.reviewer) for i in done) == ["ada", "ada", "bob", "bob"]
        assert len({i.item_id for i in done}) == 4


def test_a_rejection_asks_for_words_and_a_command_is_typed(room: Room, open_browser) -> None:
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(base + "review")
        page.wait_for_selector(".choice.at")
        first = page.get_attribute("#review", "data-item")
        page.keyboard.press(":")
        page.keyboard.type("T1")
        page.keyboard.press("Enter")
        page.wait_for_selector(".label.evil >> text=evil")
        page.keyboard.press("x")
        page.keyboard.type("no fork")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#review:not([data-item='{first}'])")
        assert [i.item_id for i in room.store.queue.items("rejected")] == [int(first or 0)]
        page.keyboard.press("q")
        page.wait_for_selector("text=You stopped")


def test_rebound_keys_hold_and_the_others_stay(room: Room, open_browser) -> None:
    bound = ViewerSettings(port=0, review_keys=("evil=f", "rest-safe=f2", "low=b"))
    with running(room, bound) as base:
        page = open_browser(base).window(room)
        page.goto(base + "review")
        page.wait_for_selector(".choice.at")
        page.keyboard.press("e")
        page.keyboard.press("b")
        assert page.locator("html[data-blur]").count() == 0
        page.keyboard.press("f")
        page.wait_for_selector(".label.evil >> text=evil")
        assert page.locator("button.evil kbd").inner_text() == "f"
        page.keyboard.press("F2")
        _answered(page, 1)
        assert room.store.queries.counts().queue["done"] == 1


def test_a_line_begun_by_its_first_character_a_reason_and_a_reopened_item(
    room: Room, open_browser
) -> None:
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(base + "review")
        page.wait_for_selector(".choice.at")
        first = page.get_attribute("#review", "data-item")
        page.keyboard.press("T")
        page.keyboard.type("1,B1")
        page.keyboard.press("Enter")
        page.wait_for_selector("#review[data-unsaved='0'] .label.evil")
        page.keyboard.press("U")
        _answered(page, 1)
        page.keyboard.press("r")
        page.keyboard.type("an idiom")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=saved the reason")
        page.keyboard.press("v")
        assert page.locator(".prompt-text.whole").count() == 1
        prompt = room.store.queue.items("done")[0].prompt_id
        page.keyboard.press("o")
        page.keyboard.type(prompt[:8])
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#review[data-item='{first}']")
        page.keyboard.press("?")
        assert "Judge the token where it stands" in page.locator("#keys").inner_text()


@pytest.mark.parametrize("delay", [0.0, 0.25])
def test_a_key_belongs_to_the_item_that_was_shown(room: Room, open_browser, delay: float) -> None:
    """Keys pressed before the next item was there once labelled it, unseen."""

    def slowly(route) -> None:
        time.sleep(delay)
        route.continue_()

    with running(room) as base:
        page = open_browser(base).window(room)
        page.route("**/api/review", slowly)
        page.goto(base + "review")
        page.wait_for_selector(".choice.at")
        page.evaluate(PRESS, ["e", "Enter", "s", "s", "Enter", "u", "a", "U"])
        _answered(page, 1)
        assert room.store.queries.counts().queue["done"] == 1
        first, second = (room.store.queue.items(state)[0].prompt_id for state in ("done", "leased"))
        given = {one.token_id: one.label for one in room.store.labels.of(first).human}
        assert given == {3: "evil", 10: "safe", 17: "safe"}
        assert not room.store.labels.of(second).human
        page.evaluate(PRESS, ["u", "s", "e"])
        page.wait_for_selector("#review[data-unsaved='0']")
        given = {one.token_id: one.label for one in room.store.labels.of(second).human}
        assert given == dict(zip(TOKENS, ("unsure", "safe", "evil"), strict=True))
        page.evaluate(PRESS, ["Backspace", "Backspace", "e", "Enter"])
        _answered(page, 2)
        given = {one.token_id: one.label for one in room.store.labels.of(second).human}
        assert given == dict(zip(TOKENS, ("unsure", "evil", "safe"), strict=True))
        assert page.locator("#toasts .bad").count() == 0


PRESS = """(keys) => { for (const key of keys) document.querySelector("#review").dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })); }"""
