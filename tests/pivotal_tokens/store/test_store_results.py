"""Results of prompts: stored once, found by prefix, replaced by key."""

import pytest
from sample_labels import judgement

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import GraphRecord, Judgement, Label, Prompt
from pivotal_tokens.store import Screened
from pivotal_tokens.verdict import decide

PAIR = "pair-1"


def judged(prompt_id: str, judge: str = "lexicon:a@1", **labels: Label) -> Judgement:
    given = {int(token[1:]): label for token, label in labels.items()}
    return judgement(prompt_id, given, judge, reason="because")


def test_a_prompt_is_added_once_and_keeps_its_first_form(store):
    first = Prompt.of("Odd\x00text\u202e\n", name="first", extra={"why": ["é"]})
    assert store.prompts.add(first)
    assert not store.prompts.add(Prompt.of(first.text, name="second"))
    assert store.prompts.get(first.prompt_id) == first
    assert store.prompts.has(first.prompt_id) and not store.prompts.has("0" * 12)


def test_a_prompt_is_found_by_a_unique_prefix_only(store):
    prompts = [Prompt.of(f"prompt {i}") for i in range(40)]  # more than 16: two share a digit
    for prompt in prompts:
        store.prompts.add(prompt)
    assert store.prompts.get(prompts[7].prompt_id.upper()) == prompts[7]
    first_digits = [prompt.prompt_id[0] for prompt in prompts]
    shared = next(digit for digit in first_digits if first_digits.count(digit) > 1)
    with pytest.raises(RequestError, match="several prompt ids"):
        store.prompts.get(shared)
    absent = next(
        p
        for p in map("{:03x}".format, range(4096))
        if not any(prompt.prompt_id.startswith(p) for prompt in prompts)
    )
    with pytest.raises(RequestError, match="no prompt"):
        store.prompts.get(absent)
    for wrong in ("", "%", "User: hello", "_" * 12, "0" * 13):
        with pytest.raises(RequestError, match="is no prompt id"):
            store.prompts.get(wrong)


def test_prompts_are_listed_in_the_order_they_came(store):
    prompts = [Prompt.of(f"p{i}", category="abc"[i % 3], generator="g") for i in range(9)]
    for prompt in prompts:
        store.prompts.add(prompt)
    assert list(store.prompts.all()) == prompts
    assert list(store.prompts.all(category="b")) == prompts[1::3]
    assert store.prompts.all(generator="nobody") == ()


def test_token_ids_are_kept_once(store, prompt, pair):
    def screen(token_ids):
        tokenised = prompt.model_copy(update={"token_ids": token_ids})
        store.results.put_screened(PAIR, [Screened(prompt=tokenised, next_tokens=pair)])

    screen((0, 5, 9))
    screen((0, 5, 9))
    assert store.prompts.get(prompt.prompt_id).token_ids == (0, 5, 9)
    with pytest.raises(RequestError, match="other ids"):
        screen((5, 9))


def test_next_tokens_are_replaced_only_by_other_ones(store, prompt, pair, make_pair):
    key = (prompt.prompt_id, PAIR)
    assert store.results.next_tokens(*key) is None
    assert store.results.put_next_tokens(*key, pair.base, pair.merged)
    assert not store.results.put_next_tokens(*key, pair.base, pair.merged)
    assert store.results.next_tokens(*key) == pair
    other = make_pair({1: 0.7, 2: 0.1}, {1: 0.2, 2: 0.6})
    assert store.results.put_next_tokens(*key, other.base, other.merged)
    assert store.results.next_tokens(*key) == other
    assert store.results.next_tokens(prompt.prompt_id, "another pair") is None
    assert store.queries.counts().next_tokens == 1


def test_a_judgement_adds_label_events_once_and_again_only_for_changes(store, prompt):
    first = judged(prompt.prompt_id, t1="safe", t2="evil")
    assert store.results.put_judgement(PAIR, first)
    assert not store.results.put_judgement(PAIR, judged(prompt.prompt_id, t1="safe", t2="evil"))
    assert store.results.put_judgement("pair-2", judged(prompt.prompt_id, t2="evil", t3="unsure"))
    assert store.results.put_judgement(PAIR, judged(prompt.prompt_id, t1="unsure", t2="evil"))
    events = store.labels.events(prompt.prompt_id, author="lexicon:a@1")
    assert [(e.token_id, e.from_label, e.to_label) for e in events] == [
        (1, None, "safe"),
        (2, None, "evil"),
        (3, None, "unsure"),
        (1, "safe", "unsure"),
    ]
    assert (
        store.results.judgement(prompt.prompt_id, "pair-2", "lexicon:a@1").by_token[3] == "unsure"
    )
    assert store.results.judgement(prompt.prompt_id, PAIR, "lexicon:b@1") is None


def test_verdicts_stand_apart_by_pair_and_judge(store, prompt, pair):
    injected = decide(pair.base, pair.merged, {2: "evil"})
    nothing = decide(pair.base, pair.merged, {})
    assert store.results.put_verdict(prompt.prompt_id, PAIR, "a", injected)
    assert not store.results.put_verdict(prompt.prompt_id, PAIR, "a", injected)
    assert store.results.put_verdict(prompt.prompt_id, PAIR, "b", injected)
    assert store.results.put_verdict(prompt.prompt_id, PAIR, "b", nothing)
    assert store.results.verdict(prompt.prompt_id, PAIR, "a") == injected
    assert store.results.verdict(prompt.prompt_id, PAIR, "b") == nothing
    assert store.results.verdict(prompt.prompt_id, "pair-2", "a") is None
    assert store.queries.counts().verdicts == {"injection": 1, "none": 1}


def test_failures_count_up_and_can_be_cleared(store, prompt):
    store.results.fail(prompt.prompt_id, PAIR, "graph", "out of memory")
    assert store.results.fail(prompt.prompt_id, PAIR, "graph", "again").attempts == 2
    store.results.fail(prompt.prompt_id, "pair-2", "judge", "no answer")
    assert [f.error for f in store.results.failures(stage="graph")] == ["again"]
    assert store.queries.counts().failures == {"graph": 1, "judge": 1}
    store.results.clear_failure(prompt.prompt_id, PAIR, "graph")
    assert [f.stage for f in store.results.failures()] == ["judge"]


def graph_record(prompt: Prompt, key: str, model: str, **changes) -> GraphRecord:
    fields = {"path": f"{key}.safetensors", "sha256": "0" * 64, "bytes": 10, "pair": PAIR}
    return GraphRecord(key=key, prompt_id=prompt.prompt_id, model=model, **(fields | changes))


def test_a_graph_is_found_by_a_unique_prefix_and_replaced_by_key(store, prompt):
    store.graphs.put(graph_record(prompt, "ab12", "merged"))
    store.graphs.put(graph_record(prompt, "ab34", "base"))
    store.graphs.put(graph_record(prompt, "ab12", "merged", bytes=4))
    assert store.graphs.get("ab1").bytes == 4
    assert [g.model for g in store.graphs.all(prompt.prompt_id, PAIR)] == ["base", "merged"]
    assert store.graphs.all(prompt.prompt_id, "pair-2") == ()
    for wrong, says in (("ab", "several"), ("ff", "no graph"), (" ", "empty"), ("%", "no graph")):
        with pytest.raises(RequestError, match=says):
            store.graphs.get(wrong)
    counts = store.queries.counts()
    assert (counts.graphs, counts.graph_bytes) == (2, 14)
    store.graphs.drop("ab12")
    assert len(store.graphs.all()) == 1


def test_pairs_keep_what_their_key_stands_for(store):
    store.results.put_pair(PAIR, {"base": "b", "adapter": "é"})
    assert store.results.pairs() == {PAIR: {"base": "b", "adapter": "é"}}


def test_an_attempt_shows_everything_about_one_prompt(store, prompt, pair):
    store.prompts.add(Prompt.of("another"))
    store.results.put_next_tokens(prompt.prompt_id, PAIR, pair.base, pair.merged)
    store.results.put_judgement(PAIR, judged(prompt.prompt_id, t1="safe", t2="evil"))
    verdict = decide(pair.base, pair.merged, {1: "safe", 2: "evil"})
    store.results.put_verdict(prompt.prompt_id, PAIR, "lexicon:a@1", verdict)
    store.assignments.add(prompt.prompt_id, PAIR, "flagged")
    store.graphs.put(graph_record(prompt, "ab12", "base"))
    store.results.fail(prompt.prompt_id, "pair-2", "next_tokens", "broken")
    item = store.queue.take("ada", 60)
    store.queue.log(item, "ada", "note", text="odd")
    view = store.queries.attempt(prompt.prompt_id[:6])
    assert view.prompt == prompt
    assert view.labels.by_token == {1: "safe", 2: "evil"}
    assert [event.text for event in view.review_events] == ["odd"]
    one, two = view.pairs
    assert (one.pair, one.next_tokens, one.item.state) == (PAIR, pair, "leased")
    assert one.verdicts == {"lexicon:a@1": verdict}
    assert [j.judge for j in one.judgements] == ["lexicon:a@1"]
    assert [g.key for g in one.graphs] == ["ab12"] and one.failures == ()
    assert (two.next_tokens, two.item, two.failures[0].error) == (None, None, "broken")


def test_counts_can_be_of_one_pair(store, prompt, pair):
    for key in (PAIR, "pair-2"):
        store.results.put_next_tokens(prompt.prompt_id, key, pair.base, pair.merged)
        store.results.put_verdict(
            prompt.prompt_id, key, "a", decide(pair.base, pair.merged, {2: "evil"})
        )
    store.assignments.add(prompt.prompt_id, PAIR, "flagged")
    assert store.queries.counts().flagged == 2
    only = store.queries.counts(PAIR)
    assert (only.next_tokens, only.flagged, only.divergent) == (1, 1, 1)
    assert store.queries.counts("pair-2").queue == {}
