"""Twenty browsers on one queue, through the real server: no HTTP 500, and nobody waits long."""

from __future__ import annotations

from pathlib import Path

from many_browsers import crowd
from rooms import furnish

from pivotal_tokens.store import Store, default_url


def test_twenty_browsers_review_one_queue(tmp_path: Path) -> None:
    furnish(tmp_path, n_graphs=0, n_more=60)
    found = crowd(tmp_path, browsers=20, seconds=4.0)
    assert set(found.statuses) <= {200, 409}, found.statuses
    assert found.slowest < 5
    assert found.finished >= 20  # each one at least once, however slow the machine
    with Store.open(default_url(tmp_path)) as store:
        assert not store.chains.check().problems
        settled = store.queue.items("done")
        events = [e for p in store.prompts.ids() for e in store.labels.events(p)]
    assert len({item.reviewer for item in settled}) > 10
    assert {e.author_kind for e in events if e.author.startswith("reviewer")} == {"human"}
