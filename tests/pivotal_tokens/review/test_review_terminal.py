"""The real screen, driven by keys in Textual's own test harness."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from reviewing import fill_queue
from test_review_screen import NASTY, generated

from pivotal_tokens.review import ReviewController, ReviewService
from pivotal_tokens.review.display import visible, width
from pivotal_tokens.review.keys import key_map
from pivotal_tokens.review.terminal import Pages, ReviewTerminal, run_terminal

Drive = Callable[..., Awaitable[None]]
PARTS = ("#header", "#item", "#message", "#keys")


def controller(store, name="ada") -> ReviewController:
    return ReviewController(ReviewService(store, name), auto_finish=True)


def terminal(store, keys=(), name="ada") -> ReviewTerminal:
    return ReviewTerminal(controller(store, name), key_map(keys))


def on_screen(app: ReviewTerminal) -> list[str]:
    """Every line as it is drawn, styles left out."""
    return [
        "".join(segment.text for segment in app.screen._compositor.render_strips()[y])
        for y in range(app.size.height)
    ]


def drive(app: ReviewTerminal, steps: Drive, size=(80, 24)) -> None:
    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(app, pilot)

    asyncio.run(run())


def test_an_item_fits_80_by_24_with_everything_on_it(store):
    (prompt,) = fill_queue(store, 1)

    async def steps(app, pilot):
        lines = on_screen(app)
        assert len(lines) == 24 and all(width(line) <= 80 for line in lines)
        shown = "\n".join(lines)
        for part in (prompt.prompt_id, "smells of gas (0).\\n", ">T1", "␣ignore", "50.0%"):
            assert part in shown
        assert "e evil" in shown and "l leave" in shown and "U rest unsure" in shown
        assert "? help" in shown and "0 done" in shown
        assert "judge" not in shown

    drive(terminal(store), steps)


@pytest.mark.parametrize("columns", [40, 60])
def test_a_narrow_screen_still_names_help_and_quit(store, columns: int):
    fill_queue(store, 1)

    async def steps(app, pilot):
        last = on_screen(app)[-1].rstrip()
        assert last.endswith("? help   q quit") and width(last) <= columns

    drive(terminal(store), steps, size=(columns, 24))


def test_labelling_revealing_reason_help_and_the_command_line(store):
    prompts = fill_queue(store, 3)

    async def steps(app, pilot):
        await pilot.press("e")
        assert store.labels.of(prompts[0].prompt_id).by_token[2] == "evil"
        assert "saved: ignore evil" in "\n".join(on_screen(app))
        await pilot.press("enter")
        assert "The judge differs on 1 of 3" in "\n".join(on_screen(app))
        await pilot.press("g", "a", "s", "enter")
        events = store.queue.events(prompts[0].prompt_id)
        assert events[-1].text == "gas"
        assert app.review.view.question.prompt == prompts[1]
        await pilot.press("question_mark")
        assert isinstance(app.screen, Pages)
        await pilot.press("escape")
        await pilot.press("T", "1", "comma", "3", "enter")
        assert store.labels.of(prompts[1].prompt_id).ids("evil") == (1, 2)
        await pilot.press("colon", "escape")
        assert app.review.asking is None
        await pilot.press("backspace")
        assert [i.token_id for i in store.labels.of(prompts[1].prompt_id).human] == []
        await pilot.press("enter", "ctrl+g")
        agreed = [e for e in store.labels.events(prompts[1].prompt_id) if e.agreed_after_reveal]
        assert agreed and app.review.view.question.prompt == prompts[2]
        await pilot.press("v")
        assert isinstance(app.screen, Pages)
        await pilot.press("q", "q")

    app = terminal(store)
    drive(app, steps)
    assert app.review.over and store.queue.items("leased") == ()


def test_keys_can_be_bound_anew(store):
    (prompt,) = fill_queue(store, 1)

    async def steps(app, pilot):
        assert "f evil" in "\n".join(on_screen(app))
        await pilot.press("e")
        assert store.labels.of(prompt.prompt_id).human == ()
        await pilot.press("f")
        assert store.labels.of(prompt.prompt_id).human[0].label == "evil"

    drive(terminal(store, ["evil=f"]), steps)


def test_new_items_stream_in_without_moving_the_focus(store):
    fill_queue(store, 1)

    async def steps(app, pilot):
        await pilot.press("down", "colon", "T")
        before = app.review.view
        fill_queue(store, 2, first=5)
        app.poll()
        await pilot.pause()
        assert app.review.view == before and app.query_one("#line").value == "T"
        assert "2 waiting" in "\n".join(on_screen(app))

    drive(terminal(store), steps)


def test_fifty_hostile_texts_in_the_running_screen(store):
    texts = [t.encode("utf-8", "replace").decode() for t in [*NASTY, *generated(50 - len(NASTY))]]
    assert len(texts) == 50
    for i in range(0, 50, 10):
        prompt = "{}" + "".join(texts[i : i + 10])
        prompt = prompt.replace("{", "{{").replace("}", "}}").replace("{{}}", "{}", 1)
        fill_queue(store, 1, texts=texts[i : i + 10], first=i, prompt=prompt)
    seen = 0

    async def steps(app, pilot):
        nonlocal seen
        for _ in range(5):
            question = app.review.view.question
            lines = on_screen(app)
            assert all(line.isprintable() for line in lines), lines
            body = "\n".join(lines)
            for token in question.lists.base.tokens:
                assert visible(token.text)[:5].rstrip() in body
                seen += 1
            await pilot.press("v")
            assert all(line.isprintable() for line in on_screen(app))
            await pilot.press("escape", "U", "escape", "enter")
        assert app.review.view is None

    drive(terminal(store), steps)
    assert seen == 50
    assert store.queue.counts() == {"done": 5}


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (200, 60)])
def test_other_windows_work_too(store, size):
    fill_queue(store, 1, texts=[f" word{i}" for i in range(1, 11)])

    async def steps(app, pilot):
        for _ in range(6):
            await pilot.press("down")
        body = "\n".join(on_screen(app))
        assert ">T7" in body and "e evil" in body

    drive(terminal(store), steps, size)


def test_without_colour_signs_still_say_everything(store, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    fill_queue(store, 1)

    async def steps(app, pilot):
        await pilot.press("e")
        rows = [line for line in on_screen(app) if "␣ignore" in line]
        assert any("T1  E" in line for line in rows)
        assert app.no_color

    drive(terminal(store), steps)


def test_importing_the_review_package_does_not_load_textual():
    import subprocess
    import sys

    code = "import sys, pivotal_tokens.review, em_circuits.cli; print('textual' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_error_in_the_screen_gives_the_item_back(store, monkeypatch):
    fill_queue(store, 1)
    session = controller(store)

    def broken(self, mouse):
        session.start()
        raise RuntimeError("the terminal went away")

    monkeypatch.setattr(ReviewTerminal, "run", broken)
    with pytest.raises(RuntimeError, match="went away"):
        run_terminal(session, key_map())
    assert store.queue.items("leased") == ()
