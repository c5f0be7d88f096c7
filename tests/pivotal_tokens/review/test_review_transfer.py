"""Review histories go into another store with the labels, and replace nothing."""

import pytest
from reviewing import PAIR, fill_queue

from pivotal_tokens.labels import label_agreement
from pivotal_tokens.labels.dump import read_dump, write_dump
from pivotal_tokens.labels.tree import read_tree, write_tree
from pivotal_tokens.review import ReviewService
from pivotal_tokens.schema import HUMAN, ReviewConfig
from pivotal_tokens.store import Store

FORMATS = ("all.jsonl", "all.parquet", "tree")


@pytest.fixture
def source(tmp_path, clock):
    with Store.open(tmp_path / "source.sqlite", create=True, clock=clock) as opened:
        opened.assignments.set_config(ReviewConfig(overlap=2, calibration=0, repeat_share=0.0))
        yield opened


def answer(service, labels=None, rest="safe"):
    question = service.next_question()
    if labels:
        question = service.label(question, labels)
    return service.finish(question, rest=rest)


@pytest.fixture
def worked(source):
    """Two people on eight items: agreed, adjudicated, rejected, put off, begun, untouched."""
    prompts = fill_queue(source, 8)
    ada, bob = ReviewService(source, "ada"), ReviewService(source, "bob")
    for service in (ada, bob):
        answer(service, {2: "evil", 1: "abstain"})
    reveal = answer(ada, {2: "evil"})
    ada.explain(reveal, "gas")
    answer(bob)
    eve = ReviewService(source, "eve", adjudicate=True)
    answer(eve, {2: "evil"})
    for service in (ada, bob):
        service.reject(service.next_question(), "no stakes")
    ada.skip(ada.next_question())
    ada.defer(ada.next_question())
    ada.note(ada.label(ada.next_question(), {2: "unsure"}), "odd")
    assert source.queue.items("leased", reviewer="ada")
    return prompts


def write(store, path):
    return write_dump(store, path) if path.suffix else write_tree(store, path)


def read(store, path):
    return read_tree(store, path, author="?") if path.is_dir() else read_dump(store, path)


def assignments(store, *, numbers=False):
    """Every assignment without what belongs to one store: its number, its lease, its fence."""
    found = []
    for item in store.queue.items():
        state, held = item.state, item.state == "leased"
        reviewer = None if state in ("pending", "leased") else item.reviewer
        here = {"session": None, "lease_until": None, "fence": 0, "reviewer": reviewer}
        here |= {"state": "pending" if held else state, "item_id": item.item_id if numbers else 0}
        found.append(item.model_copy(update=here))
    return found


def humans(store, prompts):
    return [
        event.model_copy(update={"item_id": None})
        for prompt in prompts
        for event in store.labels.events(prompt.prompt_id)
        if event.author_kind == "human"
    ]


def log(store, prompts):
    return [
        event.model_copy(update={"item_id": None})
        for prompt in prompts
        for event in store.queue.events(prompt.prompt_id)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_states_verdicts_and_log_survive_into_an_empty_store(source, worked, store, tmp_path, name):
    """Found in review: after an import every item was waiting again."""
    write(source, tmp_path / name)
    report = read(store, tmp_path / name)
    assert (report.reviews, report.reviews_kept, report.conflicts) == (9, 0, 0)
    assert assignments(store) == assignments(source)
    assert (
        store.queue.items("leased") == ()
        and store.assignments.config() == source.assignments.config()
    )
    assert humans(store, worked) == humans(source, worked)
    assert log(store, worked) == log(source, worked)
    for prompt in worked:
        one, two = (s.results.verdicts(prompt.prompt_id, PAIR) for s in (source, store))
        assert two == one
    assert [HUMAN in store.results.verdicts(p.prompt_id, PAIR) for p in worked[:4]] == [
        True
    ] * 3 + [False]
    assert label_agreement(store, resamples=0) == label_agreement(source, resamples=0)
    mine, theirs = (
        {one.prompt.prompt_id: one for one in s.queries.reviewed()} for s in (store, source)
    )
    assert mine == theirs and len(mine) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_second_import_changes_nothing(source, worked, store, tmp_path, name):
    write(source, tmp_path / name)
    read(store, tmp_path / name)
    before = (assignments(store, numbers=True), humans(store, worked), log(store, worked))
    again = read(store, tmp_path / name)
    assert (again.added, again.conflicts, again.reviews, again.reviews_kept) == (0, 0, 0, 0)
    assert (assignments(store, numbers=True), humans(store, worked), log(store, worked)) == before


def test_reviewers_go_on_where_they_were(source, worked, store, tmp_path, clock):
    write_dump(source, tmp_path / "all.jsonl")
    read_dump(store, tmp_path / "all.jsonl")
    clock.forward(1)
    ada = ReviewService(store, "ada")
    question = ada.next_question()
    assert question.prompt == worked[5] and question.labels == {2: "unsure"}
    assert [i.prompt_id for i in ada.history()] == [w.prompt_id for w in worked[4::-1]]
    assert ada.progress().answered == 3 and ada.progress().per_hour is not None
    bob = ReviewService(store, "bob")
    assert bob.undo(None).prompt == worked[2], "the rejection is the last thing bob did"
    assert store.results.verdict(worked[2].prompt_id, PAIR, HUMAN) is None


def test_what_somebody_did_here_stays(source, worked, store, tmp_path):
    write_dump(source, tmp_path / "all.jsonl")
    read_dump(store, tmp_path / "all.jsonl")
    ada = ReviewService(store, "ada")
    ada.release(ada.undo(None))  # the deferred item waits again
    reopened = next(i for i in store.queue.items("done", reviewer="ada"))
    ada.label(ada.open(reopened.item_id), {2: "safe"})
    before = assignments(store, numbers=True)
    report = read_dump(store, tmp_path / "all.jsonl")
    assert (report.reviews, report.added, report.conflicts) == (0, 0, 0) and report.reviews_kept
    assert assignments(store, numbers=True) == before
    assert store.queue.items("leased", reviewer="ada")[0].item_id == reopened.item_id
    assert store.results.verdict(reopened.prompt_id, PAIR, HUMAN) is None


def test_items_that_wait_untouched_take_the_answers_over(source, store, tmp_path):
    """A first export of an untouched queue, later one with answers."""
    prompts = fill_queue(source, 2)
    write_dump(source, tmp_path / "first.jsonl")
    read_dump(store, tmp_path / "first.jsonl")
    assert store.queue.counts() == {"pending": 4}
    for name in ("ada", "bob"):
        answer(ReviewService(source, name), {2: "evil"})
    write_dump(source, tmp_path / "second.jsonl")
    assert read_dump(store, tmp_path / "second.jsonl").reviews == 2
    assert store.results.verdict(prompts[0].prompt_id, PAIR, HUMAN).kind == "promotion"
    assert assignments(store) == assignments(source)


def test_a_contradiction_waits_for_a_person_and_a_second_import_does_not_settle_it(
    source, worked, store, tmp_path
):
    first = fill_queue(store, 1)[0]
    item_id = store.queue.items()[0].item_id
    cyd = ReviewService(store, "cyd")
    cyd.release(cyd.label(cyd.next_question(), {2: "safe"}))
    write_dump(source, tmp_path / "all.jsonl")
    for conflicts in (2, 0):
        report = read_dump(store, tmp_path / "all.jsonl")
        assert report.conflicts == conflicts
        assert store.queue.get(item_id).state == "pending"
        assert HUMAN not in store.results.verdicts(first.prompt_id, PAIR)
    assert {c.event.author for c in store.labels.conflicts()} == {"ada", "bob"}


def test_repeats_and_controls_come_along(source, store, pair, tmp_path):
    """A repeat answered differently was a conflict of a person with themselves."""
    source.assignments.set_config(ReviewConfig(calibration=0, repeat_share=0.999))
    prompts = fill_queue(source, 30)
    unflagged = fill_queue(source, 3, first=100)[0]
    source.assignments.draw_control(unflagged.prompt_id, "pair-2")
    ada = ReviewService(source, "ada")
    for _ in range(20):
        answer(ada, {2: "evil"})
    answer(ada, {2: "safe"})
    (repeat,) = source.queue.items("done", kind="repeat")
    fill_queue(store, 2, first=500)  # so that items have other numbers here
    write_dump(source, tmp_path / "all.jsonl")
    report = read_dump(store, tmp_path / "all.jsonl")
    assert (report.conflicts, report.reviews) == (0, 21)
    assert store.assignments.control_draws() == source.assignments.control_draws()
    (here,) = store.queue.items("done", kind="repeat")
    assert here.item_id != repeat.item_id and here.reviewer == "ada"
    opened = ReviewService(store, "ada").open(here.item_id)
    assert opened.labels == {1: "safe", 2: "safe", 3: "safe"}
    events = [e for e in store.labels.events(here.prompt_id) if e.purpose == "repeat"]
    assert {e.item_id for e in events} == {here.item_id}
    assert store.labels.of(here.prompt_id).by_token[2] == "evil"
    assert len({i.prompt_id for i in store.queue.items("done")}) == 20 <= len(prompts)


def test_files_with_bare_rejections_are_still_read(source, store, tmp_path):
    prompts = fill_queue(source, 1)
    path = tmp_path / "all.jsonl"
    write_dump(source, path)
    lines = [line for line in path.read_text().splitlines() if '"kind": "review' not in line]
    assert len(lines) < len(path.read_text().splitlines())
    value = '{"author": "ada", "reason": "no stakes"}'
    lines.append(
        f'{{"kind": "rejection", "prompt_id": "{prompts[0].prompt_id}", "pair": null, '
        f'"judge": null, "value": {value}}}'
    )
    path.write_text("\n".join(lines) + "\n")
    read_dump(store, path)
    assert store.queue.counts() == {"rejected": 1}
