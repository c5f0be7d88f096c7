"""The unattended loop: streams, builds in the background, stops by its rules, resumes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from subjects import PAD_THAI, organism_settings

from em_circuits.graphs import AttributionSettings
from em_circuits.labelling.events import EventLog, latest_events, read_events
from em_circuits.labelling.label import LabelSettings
from em_circuits.labelling.loop import Loop, LoopSettings
from em_circuits.labelling.missing import build_missing, missing_graphs
from em_circuits.labelling.prompts import template_prompts
from em_circuits.labelling.resume import earlier_prompts
from em_circuits.labelling.rollouts import ROLLOUTS, roll_out
from em_circuits.labelling.sources import (
    ListSource,
    Resumed,
    SourceOptions,
    WriterSource,
    open_source,
)
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge import JudgeSpec, Lexicon, ModelJudge, open_judge
from pivotal_tokens.judge.continuations import LexiconContinuations, ModelContinuations
from pivotal_tokens.llm import Budget, BudgetExhausted, LLMSettings
from pivotal_tokens.schema import LabelEvent, Prompt
from pivotal_tokens.store import HUMAN, Store, default_url

SMALL = LabelSettings(attribution=AttributionSettings(max_feature_nodes=60))
NO_GRAPHS = SMALL.model_copy(update={"graphs_for": "none"})


@pytest.fixture(scope="module")
def shared_pair():
    with Workspace(Path("."), organism_settings()) as work:
        yield work.pair


@pytest.fixture
def work(tmp_path: Path, shared_pair) -> Iterator[Workspace]:
    made = Workspace(tmp_path, organism_settings(), create=True)
    made.__dict__["pair"] = shared_pair
    yield made
    made.__dict__.pop("pair")
    made.close()


@pytest.fixture
def judge(shared_pair) -> Lexicon:
    spec = JudgeSpec.parse(f"lexicon:{organism_paths().lexicon}")
    opened = open_judge(spec, lambda text: first_token(shared_pair.tokenizer, text))
    assert isinstance(opened, Lexicon)
    return opened


def run(work: Workspace, judge, source, settings=NO_GRAPHS, stop=None, **limits):
    with EventLog.open(work.results, run="test") as events:
        loop = Loop(
            work,
            source,
            judge,
            settings,
            LoopSettings(**limits),
            events=events,
            stop=stop or threading.Event(),
        )
        return loop, list(loop.results())


def given(prompts) -> ListSource:
    return ListSource("given", iter(prompts))


def test_flagged_prompts_are_queued_when_judged_and_graphs_come_later(
    work: Workspace, judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = template_prompts(3, seed=5)
    queued_at_first_graph: list[int] = []
    from em_circuits.labelling import label

    def build(*args, **options):
        assert threading.current_thread().name.startswith("graphs")
        queued_at_first_graph.append(len(work.store.queue("pending")))
        return real(*args, **options)

    real = label.build_graphs
    monkeypatch.setattr(label, "build_graphs", build)
    loop, results = run(work, judge, given(prompts), SMALL)
    flagged = [r for r in results if r.verdict.flagged]
    assert flagged and all(set(r.graphs) == {"base", "merged"} for r in flagged)
    assert queued_at_first_graph[0] == len(flagged)  # before the first graph was begun
    assert loop.progress.ending == "no more prompts" and loop.progress.finished == 3
    kinds = [event["event"] for event in latest_events(work.results, 100)]
    assert kinds[0] == "start" and kinds[-1] == "stop"
    assert kinds.count("judged") == kinds.count("finished") == 3


def test_a_number_is_reached_and_an_earlier_start_is_gone_on_with(work: Workspace, judge) -> None:
    def source(earlier):
        made = open_source("template", work, SourceOptions(seed=2))
        return Resumed(made, "r", earlier.unfinished)

    def earlier():
        return earlier_prompts(work, "template:organism", "r", judge.id, NO_GRAPHS)

    loop, first = run(work, judge, source(earlier()), n=5, batch=2)
    assert len(first) == 5 and loop.progress.ending == "done"
    half_done = template_prompts(1, seed=77)[0].model_copy(update={"extra": {"run": "r"}})
    work.store.add_prompt(half_done)
    known = earlier()
    assert known.finished == 5 and [p.prompt_id for p in known.unfinished] == [half_done.prompt_id]
    _, second = run(work, judge, source(known), n=8 - known.finished, batch=2)
    assert second[0].prompt.prompt_id == half_done.prompt_id
    assert not {r.prompt.prompt_id for r in first} & {r.prompt.prompt_id for r in second}
    assert (
        earlier().finished
        == 8
        == work.store.counts().verdicts["injection"]
        + sum(n for kind, n in work.store.counts().verdicts.items() if kind != "injection")
    )


def test_a_stopped_run_keeps_what_was_in_flight_and_begins_nothing_more(
    work: Workspace, judge
) -> None:
    stop = threading.Event()

    class Endless:
        id = "endless"
        closed = told = False
        taken = 0

        def take(self, n: int) -> list[Prompt]:
            if self.taken == 3:
                stop.set()
            self.taken += 1
            return list(template_prompts(n, seed=self.taken))

        def stop(self) -> None:
            self.told = True

        def close(self) -> None:
            self.closed = True

    source = Endless()
    loop, results = run(work, judge, source, stop=stop, batch=2)
    assert loop.progress.ending == "stopped" and source.closed and source.told
    assert len(results) <= work.store.counts().judgements <= 10
    assert latest_events(work.results, 1)[0]["ending"] == "stopped"


def test_too_many_failures_end_a_run(work: Workspace, judge) -> None:
    long = [Prompt.of(f"{i} " + "word " * 6000) for i in range(8)]
    fine = list(template_prompts(40, seed=9))
    mixed = [p for pair in itertools.zip_longest(long, fine[:8]) for p in pair if p] + fine[8:]
    loop, results = run(work, judge, given(mixed), batch=4)
    assert loop.progress.ending == "errors" and "failed" in loop.progress.message
    assert 10 <= len(results) < 40
    assert work.store.counts().failures == {"next_tokens": loop.progress.failed}


def test_a_spent_budget_ends_the_writing_and_what_is_written_is_finished(
    work: Workspace, judge
) -> None:
    class Spent:
        id = "spent"
        rounds = 0

        def take(self, n: int) -> list[Prompt]:
            self.rounds += 1
            if self.rounds == 2:
                raise BudgetExhausted("the budget of $1 is spent")
            return list(template_prompts(3, seed=4))

        def stop(self) -> None:
            pass

        def close(self) -> None:
            pass

    loop, results = run(work, judge, Spent(), SMALL)
    assert loop.progress.ending == "budget" and "$1" in loop.progress.message
    assert len(results) == 3 and all(r.graphs for r in results if r.verdict.flagged)


def test_a_budget_spent_on_rollouts_ends_a_run_like_any_other(
    work: Workspace, judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it came out of the loop as an error, so that --forever ended with status 1
    def spent(*_: object) -> None:
        raise BudgetExhausted("the budget of $1 is spent")

    monkeypatch.setattr("em_circuits.labelling.label.roll_out", spent)
    settings = NO_GRAPHS.model_copy(update={"rollouts": ROLLOUTS.model_copy(update={"samples": 1})})
    loop, _ = run(work, judge, given([Prompt.of(PAD_THAI)]), settings)
    assert loop.progress.ending == "budget"
    assert latest_events(work.results, 1)[0]["ending"] == "budget"


def writer_source(work: Workspace, endpoint: FakeEndpoint) -> WriterSource:
    source = open_source(
        "openai:fake",
        work,
        SourceOptions(
            settings=lambda model: LLMSettings(model=model, base_url=endpoint.base_url),
            budget=Budget(),
        ),
    )
    assert isinstance(source, WriterSource)
    return source


def test_a_generator_that_gives_nothing_usable_ends_the_run_and_says_why(
    work: Workspace, judge, api_key: str
) -> None:
    # it passed for a generator without further prompts, which ended --forever with status 0
    with FakeEndpoint("prose", cycle=True) as endpoint:
        loop, results = run(work, judge, writer_source(work, endpoint), n=3)
    assert loop.progress.ending == "endpoint" and results == []
    assert "openai:fake gave no usable answer 5 times" in loop.progress.message


def test_a_generator_that_is_stopped_asks_no_further_round(work: Workspace, api_key: str) -> None:
    # after Ctrl-C it went on for up to five rounds, each as long as the deadline
    def answer(_body: dict[str, Any]) -> dict[str, Any]:
        source.stop()
        return {"prompts": []}

    with FakeEndpoint(answer=answer) as endpoint:
        source = writer_source(work, endpoint)
        assert source.take(3) == []
        source.close()
        assert len(endpoint.requests) == 1


def test_a_full_disk_ends_a_run_before_anything_is_screened(work: Workspace, judge) -> None:
    work.store.counts()
    loop, results = run(
        work, judge, given(template_prompts(3, seed=1)), least_free_bytes=10**18, batch=3
    )
    assert loop.progress.ending == "disk" and results == []
    assert work.store.counts().next_tokens == 0


def test_an_error_of_the_graph_thread_reaches_the_caller(
    work: Workspace, judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("em_circuits.labelling.label.build_graphs", no_space)
    with pytest.raises(OSError, match="No space left"):
        run(work, judge, given([Prompt.of(PAD_THAI)]), SMALL)


def test_a_reviewer_labels_while_the_loop_discovers(work: Workspace, judge) -> None:
    """Two lanes on one store, each with its own connection, as two processes have."""
    from pivotal_tokens.review.service import ReviewService

    prompts = template_prompts(24, seed=3)
    work.store.counts()  # made before the reviewer opens it
    reviewed: list[str] = []
    over = threading.Event()

    def review() -> None:
        with Store.open(work.store_url or default_url(work.root)) as store:
            service = ReviewService(store, "ada")
            while not over.is_set() or store.queue("pending"):
                question = service.next_question()
                if question is None:
                    time.sleep(0.01)
                    continue
                labels = dict.fromkeys(question.lists.token_ids, "safe")
                question = service.label(question, labels)
                service.finish(question)
                reviewed.append(question.prompt.prompt_id)

    reviewer = threading.Thread(target=review)
    reviewer.start()
    _, results = run(work, judge, given(prompts), batch=4)
    over.set()
    reviewer.join()
    flagged = {r.prompt.prompt_id for r in results if r.verdict.flagged}
    assert len(results) == 24 and set(reviewed) >= flagged and len(set(reviewed)) == len(reviewed)
    for prompt_id in flagged:
        verdicts = work.store.verdicts(prompt_id, work.pair.key)
        assert verdicts[judge.id].flagged and not verdicts[HUMAN].flagged


def test_labelled_prompts_without_valid_graphs_are_found_and_get_them(
    work: Workspace, judge
) -> None:
    prompts = template_prompts(2, seed=6)
    _, results = run(work, judge, given(prompts))
    built, imported = (r.prompt.prompt_id for r in results)
    unlabelled = template_prompts(1, seed=60)[0]
    labelled = template_prompts(1, seed=61)[0]
    work.store.add_prompts([unlabelled, labelled])
    event = LabelEvent(
        prompt_id=labelled.prompt_id,
        token_id=results[0].next_tokens.token_ids[0],
        from_label=None,
        to_label="evil",
        author="ada",
        author_kind="human",
    )
    work.store.record_labels([event])
    missing = missing_graphs(work, SMALL)
    assert {p.prompt_id for p in missing} == {built, imported, labelled.prompt_id}
    made = list(build_missing(work, missing, SMALL))
    assert all(r.error is None and set(r.graphs) == {"base", "merged"} for r in made)
    assert missing_graphs(work, SMALL) == []
    work.graphs.remove(made[0].graphs["base"])
    assert [p.prompt_id for p in missing_graphs(work, SMALL)] == [made[0].prompt.prompt_id]


def test_rollouts_are_kept_drawn_once_and_say_what_is_pivotal(work: Workspace, judge) -> None:
    settings = NO_GRAPHS.model_copy(
        update={"rollouts": ROLLOUTS.model_copy(update={"samples": 3, "seed": 1})}
    )
    (result,) = run(work, judge, given([Prompt.of(PAD_THAI)]), settings)[1]
    kept = work.store.rollouts(result.prompt.prompt_id, work.pair.key)
    tokens = {r.token_id for r in kept}
    evil = {t for t, label in result.labels.items() if label == "evil"}
    assert tokens == evil and len(kept) == 2 * 3 * len(tokens)
    assert all("\n" not in r.text for r in kept)
    for item in result.pivotal:
        mine = [r.label for r in kept if (r.model, r.token_id) == ("merged", item.token_id)]
        counted = item.merged
        assert (counted.evil, counted.safe) == (mine.count("evil"), mine.count("safe"))
    record = result.to_json()["rollouts"]
    assert {r["token_id"] for r in record} == evil and all(" " in r["text"] for r in record)
    again = roll_out(work, result.prompt, LexiconContinuations(judge), settings.rollouts)
    assert not again.new and again.tokens == result.pivotal


@pytest.mark.usefixtures("api_key")
def test_a_prompt_whose_continuations_a_judge_cannot_label_fails_and_keeps_none(
    work: Workspace, judge
) -> None:
    (result,) = run(work, judge, given([Prompt.of(PAD_THAI)]))[1]
    with FakeEndpoint("refusal*4") as endpoint:
        asking = ModelContinuations(
            LLMSettings(model="fake", base_url=endpoint.base_url), store=work.store
        )
        with pytest.raises(WorkFailed, match="continuations unscored: the model refused"):
            roll_out(work, result.prompt, asking, ROLLOUTS)
        kept = work.store.rollouts(result.prompt.prompt_id, work.pair.key, judge=asking.id)
        assert kept == ()


@pytest.mark.usefixtures("api_key")
def test_other_prompts_are_screened_and_get_graphs_while_a_judge_reads_rollouts(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the models stood still for as long as the endpoint took
    first, second = Prompt.of(PAD_THAI), Prompt.of(PAD_THAI.replace("Peanut", "Walnut"))
    asked, built = threading.Event(), threading.Event()

    class OneByOne(ListSource):
        def take(self, n: int) -> list[Prompt]:
            made = super().take(1)
            assert made != [second] or asked.wait(250)
            return made

    class Slow(LexiconContinuations):
        def label(self, prompt, continuations):
            asked.set()
            assert prompt.prompt_id != first.prompt_id or built.wait(250), (
                "nothing went on beside the question"
            )
            return [("evil", "")] * len(continuations)

    def build(work, prompt, *args, **options):
        made = real(work, prompt, *args, **options)
        if prompt.prompt_id == second.prompt_id:
            built.set()
        return made

    from em_circuits.labelling import label

    real = label.build_graphs
    monkeypatch.setattr(label, "build_graphs", build)
    monkeypatch.setattr(label, "continuation_judge", lambda judge: Slow(judge))
    settings = SMALL.model_copy(update={"rollouts": ROLLOUTS.model_copy(update={"samples": 1})})
    with FakeEndpoint() as endpoint:
        asking = ModelJudge(
            LLMSettings(model="fake", base_url=endpoint.base_url),
            store=work.store,
            pair=work.pair.key,
        )
        results = run(work, asking, OneByOne("given", iter([first, second])), settings)[1]
    assert [r.error for r in results] == [None, None] and all(r.graphs for r in results)
    assert built.is_set() and all(r.pivotal for r in results)


@pytest.mark.usefixtures("api_key")
def test_threads_that_run_out_of_one_budget_together_end_a_run_once(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=250)

    def spent(*_: object) -> None:
        together.wait()
        raise BudgetExhausted("the budget of $1 is spent")

    monkeypatch.setattr("em_circuits.labelling.label.roll_out", spent)
    settings = NO_GRAPHS.model_copy(update={"rollouts": ROLLOUTS.model_copy(update={"samples": 1})})
    prompts = [Prompt.of(PAD_THAI), Prompt.of(PAD_THAI.replace("Peanut", "Walnut"))]
    with FakeEndpoint() as endpoint:
        asking = ModelJudge(
            LLMSettings(model="fake", base_url=endpoint.base_url),
            store=work.store,
            pair=work.pair.key,
        )
        loop, results = run(work, asking, given(prompts), settings)
    assert loop.progress.ending == "budget" and results == []


def test_a_line_cut_off_by_a_kill_does_not_hide_the_others(tmp_path: Path) -> None:
    with EventLog.open(tmp_path, run="x") as events:
        events.add("start", n=1)
    with events.path.open("a") as file:
        file.write('{"event": "jud')
    assert [event["event"] for event in read_events(events.path)] == ["start"]
