"""The real program in a real terminal, killed for real."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from reviewing import PAIR, fill_queue

from pivotal_tokens.store import HUMAN, Store, default_url

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
PATIENCE = 800.0  # a little less than the time limit of a test
AGREEING = ("e", "u", "s")  # what the judge says of T1, T2, T3: no reason is asked for


class Terminal:
    """A program in a tmux window of 80 by 24."""

    def __init__(self, server: str, *arguments: str) -> None:
        self._server = server
        self._name = uuid.uuid4().hex[:8]
        command = [sys.executable, "-m", "em_circuits", *arguments]
        environment = f"OMP_NUM_THREADS=1 PYTHONPATH={os.getcwd()}"
        line = f"env {environment} {' '.join(command)}; echo left $?; exec sleep 1000"
        self._tmux("new-session", "-d", "-x", "80", "-y", "24", "-s", self._name, line)

    def press(self, *keys: str) -> None:
        for key in keys:
            self._tmux("send-keys", "-t", self._name, key)

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", self._name)

    def wait(self, *texts: str) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            shown = self.screen()
            if all(text in shown for text in texts):
                return shown
            time.sleep(0.05)
        raise AssertionError(f"{texts} never came:\n{self.screen()}")

    def kill(self) -> None:
        """SIGKILL the program itself."""
        shell = self._tmux("display", "-p", "-t", self._name, "#{pane_pid}").strip()
        found = subprocess.run(["pgrep", "-P", shell], capture_output=True, text=True, check=True)
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
        self.wait("left 137")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._server, "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def start() -> Iterator[Callable[..., Terminal]]:
    server = f"em-{uuid.uuid4().hex[:8]}"
    yield lambda *arguments: Terminal(server, *arguments)
    subprocess.run(["tmux", "-L", server, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def queue(tmp_path):
    """A store in a root directory, with ten flagged prompts."""
    with Store.open(default_url(tmp_path), create=True) as store:
        yield tmp_path, store, fill_queue(store, 10)


def test_five_items_two_undone_a_kill_and_the_place_kept(queue, start):
    root, store, prompts = queue
    command = ("--root", str(root), "review", "--reviewer", "ada")
    terminal = start(*command)
    terminal.wait(prompts[0].prompt_id, ">T1")
    for i in range(5):
        terminal.press(*AGREEING)
        terminal.wait(f"saved {prompts[i].prompt_id}", prompts[i + 1].prompt_id)
    assert [item.state for item in store.queue.items()[:6]] == ["done"] * 5 + ["leased"]
    terminal.press("BSpace")
    terminal.wait("taken back", prompts[4].prompt_id)
    terminal.press("BSpace")
    terminal.wait("T3  .")
    assert store.labels.of(prompts[4].prompt_id).human[0].token_id == 2
    assert HUMAN not in store.results.verdicts(prompts[4].prompt_id, PAIR)
    terminal.press("q")
    terminal.wait("everything is saved", "left 0")
    assert store.queue.items("leased") == ()

    terminal = start(*command)
    terminal.wait(prompts[4].prompt_id, "T1  E", "T2  ?", ">T3")
    terminal.press("s")
    terminal.wait(prompts[5].prompt_id)
    terminal.press("e")
    terminal.wait("saved: ignore evil")
    terminal.kill()

    terminal = start(*command)
    shown = terminal.wait(prompts[5].prompt_id, "T1  E", ">T2", "5 done")
    assert len(shown.rstrip("\n").split("\n")) <= 24
    for prompt in prompts[:5]:
        human = {item.token_id: item.label for item in store.labels.of(prompt.prompt_id).human}
        assert human == {1: "safe", 2: "evil", 3: "unsure"}
        events = store.labels.events(prompt.prompt_id, author="ada")
        assert len(events) == (3 if prompt != prompts[4] else 5), "applied once, undone once"
    assert [item.state for item in store.queue.items("leased")] == ["leased"]


def test_two_terminals_never_show_the_same_item_and_an_idle_ones_returns(queue, start):
    root, store, prompts = queue
    command = ("--root", str(root), "review", "--id", prompts[0].prompt_id[:9])
    command += ("--id", prompts[1].prompt_id[:9])
    ada = start(*command, "--reviewer", "ada")
    ada.wait(prompts[0].prompt_id)
    bob = start(*command, "--reviewer", "bob")
    bob.wait(prompts[1].prompt_id)
    assert {i.reviewer for i in store.queue.items("leased")} == {"ada", "bob"}
    (idle,) = store.queue.items("leased", reviewer="ada")
    store.queue.renew(idle, -1.0)  # ada did nothing for as long as her lease
    bob.press(*AGREEING)
    bob.wait(prompts[0].prompt_id)
    ada.press("e")
    ada.wait("was not saved", "Nothing waits for review that your filters")
    assert store.labels.of(prompts[0].prompt_id).human == ()
