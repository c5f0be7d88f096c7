"""A labelling run: streams, builds in the background, stops by its rules, resumes."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from sample_labels import event
from subjects import PAD_THAI

from em_circuits.engine.events import EventLog, latest_events, read_events
from em_circuits.graphs import AttributionSettings
from em_circuits.labelling import run as module
from em_circuits.labelling.backfill import build_missing, missing_graphs
from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.rollouts import ROLLOUTS, roll_out
from em_circuits.labelling.run import Run
from em_circuits.labelling.sources import (
    ListSource,
    PromptStream,
    Resumed,
    WriterSource,
    earlier_prompts,
    open_source,
    template_prompts,
)
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge import ModelJudge
from pivotal_tokens.judge.continuations import ModelContinuations
from pivotal_tokens.judge.examples import ExampleBank
from pivotal_tokens.llm import Budget, BudgetExhausted, LLMSettings
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import HUMAN, Store, default_url

SMALL = LabelSettings(attribution=AttributionSettings(max_feature_nodes=60))
NO_GRAPHS = SMALL.model_copy(update={"graphs_for": "none"})


def run(work: Workspace, judge, source, settings=NO_GRAPHS, **limits):
    with EventLog.open(work.results, run="test") as events:
        run = Run(work, source, judge, settings, events=events, **limits)
        return run, list(run.results())


def with_rollouts(settings: LabelSettings, **how: int) -> LabelSettings:
    return settings.model_copy(update={"rollouts": ROLLOUTS.model_copy(update=how)})


def given(prompts) -> ListSource:
    return ListSource("given", iter(prompts))


def test_flagged_prompts_are_queued_when_judged_and_graphs_come_later(
    work: Workspace, judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = template_prompts(3, seed=5)
    queued_at_first_graph: list[int] = []
    from em_circuits.labelling import label

    def build(*args, **options):
        assert threading.current_thread() is not threading.main_thread()
        queued_at_first_graph.append(len(work.store.queue.items("pending")))
        return real(*args, **options)

    real = label.build_graphs
    monkeypatch.setattr(label, "build_graphs", build)
    done, results = run(work, judge, given(prompts), SMALL)
    flagged = [r for r in results if r.flagged]
    assert flagged and all(r.has_graphs for r in flagged)
    assert queued_at_first_graph[0] == len(flagged)  # before the first graph was begun
    assert done.state.ending == "no more prompts" and done.state.finished == 3
    kinds = [event["event"] for event in latest_events(work.results, 100)]
    assert kinds[0] == "start" and kinds[-1] == "stop"
    assert kinds.count("judged") == kinds.count("finished") == 3


def test_a_number_is_reached_and_an_earlier_start_is_gone_on_with(work: Workspace, judge) -> None:
    def source(earlier):
        made = open_source("template", work, seed=2)
        return Resumed(made, "r", earlier[1])

    def earlier():
        return earlier_prompts(work, "template:organism", "r", judge.id, NO_GRAPHS)

    done, first = run(work, judge, source(earlier()), n=5, batch=2)
    assert len(first) == 5 and done.state.ending == "done"
    half_done = template_prompts(1, seed=77)[0].model_copy(update={"extra": {"run": "r"}})
    work.store.prompts.add(half_done)
    known = earlier()
    assert known[0] == 5 and [p.prompt_id for p in known[1]] == [half_done.prompt_id]
    _, second = run(work, judge, source(known), n=8 - known[0], batch=2)
    assert second[0].prompt_id == half_done.prompt_id
    assert not {r.prompt_id for r in first} & {r.prompt_id for r in second}
    assert (
        earlier()[0]
        == 8
        == work.store.queries.counts().verdicts["injection"]
        + sum(n for kind, n in work.store.queries.counts().verdicts.items() if kind != "injection")
    )


def test_a_stopped_run_keeps_what_was_in_flight_and_begins_nothing_more(
    work: Workspace, judge
) -> None:
    class Endless(PromptStream):
        id = "endless"
        closed = stopped = False
        taken = 0

        def take(self, n: int) -> list[Prompt]:
            if self.taken == 3:
                endless.stop()
            self.taken += 1
            return list(template_prompts(n, seed=self.taken))

        def stop(self) -> None:
            self.stopped = True

        def close(self) -> None:
            self.closed = True

    source = Endless()
    with EventLog.open(work.results, run="test") as events:
        endless = Run(work, source, judge, NO_GRAPHS, batch=2, events=events)
        results = list(endless.results())
    assert endless.state.ending == "stopped" and source.closed and source.stopped
    assert len(results) <= work.store.queries.counts().judgements <= 10
    assert latest_events(work.results, 1)[0]["ending"] == "stopped"


def test_too_many_failures_end_a_run(work: Workspace, judge) -> None:
    long = [Prompt.of(f"{i} " + "word " * 6000) for i in range(8)]
    fine = list(template_prompts(40, seed=9))
    mixed = [p for pair in itertools.zip_longest(long, fine[:8]) for p in pair if p] + fine[8:]
    done, results = run(work, judge, given(mixed), batch=4)
    assert done.state.ending == "errors" and "failed" in done.state.message
    assert 10 <= len(results) < 40
    assert work.store.queries.counts().failures == {"next_tokens": done.state.failed}


def test_a_spent_budget_ends_the_writing_and_what_is_written_is_finished(
    work: Workspace, judge
) -> None:
    class Spent(PromptStream):
        id = "spent"
        rounds = 0

        def take(self, n: int) -> list[Prompt]:
            self.rounds += 1
            if self.rounds == 2:
                raise BudgetExhausted("the budget of $1 is spent")
            return list(template_prompts(3, seed=4))

    done, results = run(work, judge, Spent(), SMALL)
    assert done.state.ending == "budget" and "$1" in done.state.message
    assert len(results) == 3 and all(r.has_graphs for r in results if r.flagged)


def test_a_budget_spent_on_rollouts_ends_a_run_like_any_other(
    work: Workspace, judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it came out of the loop as an error, so that --forever ended with status 1
    def spent(*_: object) -> None:
        raise BudgetExhausted("the budget of $1 is spent")

    monkeypatch.setattr("em_circuits.labelling.label.roll_out", spent)
    settings = with_rollouts(NO_GRAPHS, samples=1)
    done, _ = run(work, judge, given([Prompt.of(PAD_THAI)]), settings)
    assert done.state.ending == "budget"
    assert latest_events(work.results, 1)[0]["ending"] == "budget"


def writer_source(work: Workspace, endpoint: FakeEndpoint) -> WriterSource:
    source = open_source(
        "openai:fake",
        work,
        settings=lambda model: LLMSettings(model=model, base_url=endpoint.base_url),
        budget=Budget(),
    )
    assert isinstance(source, WriterSource)
    return source


def test_a_generator_that_gives_nothing_usable_ends_the_run_and_says_why(
    work: Workspace, judge, api_key: str
) -> None:
    # it passed for a generator without further prompts, which ended --forever with status 0
    with FakeEndpoint("prose", cycle=True) as endpoint:
        done, results = run(work, judge, writer_source(work, endpoint), n=3)
    assert done.state.ending == "endpoint" and results == []
    assert "openai:fake gave no usable answer 5 times" in done.state.message


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


def test_a_full_disk_ends_a_run_before_anything_is_screened(
    work: Workspace, judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LEAST_FREE_BYTES", 10**18)
    work.store.queries.counts()
    done, results = run(work, judge, given(template_prompts(3, seed=1)), batch=3)
    assert done.state.ending == "disk" and results == []
    assert work.store.queries.counts().next_tokens == 0


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
    work.store.queries.counts()  # made before the reviewer opens it
    reviewed: list[str] = []
    over = threading.Event()

    def review() -> None:
        with Store.open(work.store_url or default_url(work.root)) as store:
            service = ReviewService(store, "ada")
            while not over.is_set() or store.queue.items("pending"):
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
    flagged = {r.prompt_id for r in results if r.flagged}
    assert len(results) == 24 and set(reviewed) >= flagged and len(set(reviewed)) == len(reviewed)
    for prompt_id in flagged:
        verdicts = work.store.results.verdicts(prompt_id, work.pair.key)
        assert verdicts[judge.id].flagged and not verdicts[HUMAN].flagged


def test_labelled_prompts_without_valid_graphs_are_found_and_get_them(
    work: Workspace, judge
) -> None:
    prompts = template_prompts(2, seed=6)
    _, results = run(work, judge, given(prompts))
    built, imported = (r.prompt_id for r in results)
    unlabelled = template_prompts(1, seed=60)[0]
    labelled = template_prompts(1, seed=61)[0]
    work.store.prompts.add_all([unlabelled, labelled])
    work.store.labels.add([event(labelled.prompt_id, results[0].base[0].token_id, "evil")])
    missing = missing_graphs(work, SMALL)
    assert {p.prompt_id for p in missing} == {built, imported, labelled.prompt_id}
    made = list(build_missing(work, missing, SMALL))
    assert all(r.error is None and r.has_graphs for r in made)
    assert missing_graphs(work, SMALL) == []
    work.graphs.path(made[0].graphs["base"]).unlink()
    assert [p.prompt_id for p in missing_graphs(work, SMALL)] == [made[0].prompt_id]


def test_rollouts_are_kept_drawn_once_and_say_what_is_pivotal(work: Workspace, judge) -> None:
    settings = NO_GRAPHS.model_copy(
        update={"rollouts": ROLLOUTS.model_copy(update={"samples": 3, "seed": 1})}
    )
    (result,) = run(work, judge, given([Prompt.of(PAD_THAI)]), settings)[1]
    kept = work.store.results.rollouts(result.prompt_id, work.pair.key)
    tokens = {r.token_id for r in kept}
    evil = {t for t, label in result.labels.items() if label == "evil"}
    assert tokens == {None, *evil} and len(kept) == 2 * 3 * len(tokens)
    assert all("\n" not in r.text for r in kept)
    for item in result.rollouts:
        mine = [r.label for r in kept if (r.model, r.token_id) == ("merged", item.token_id)]
        counted = item.merged
        assert (counted.evil, counted.safe) == (mine.count("evil"), mine.count("safe"))
    record = result.model_dump(mode="json")["rollouts"]
    assert {r["token_id"] for r in record} == evil and all(" " in r["text"] for r in record)
    prompt = work.store.prompts.get(result.prompt_id)
    again = roll_out(work, prompt, judge, settings.rollouts)
    counted = [(item.token_id, item.base, item.merged) for item in result.rollouts]
    found = [(item.token_id, item.base, item.merged) for item in again.tokens]
    assert not again.new and found == counted and again.free == result.free_rollouts


def test_free_rollouts_are_the_whole_answer_and_stand_beside(work: Workspace, judge) -> None:
    settings = with_rollouts(NO_GRAPHS, samples=8)
    (result,) = run(work, judge, given([Prompt.of(PAD_THAI)]), settings)[1]
    drawn = work.store.results.rollouts(result.prompt_id, work.pair.key)
    alone = [r for r in drawn if r.token_id is None]
    assert {(r.model, r.sample) for r in alone} == {
        (m, n) for m in ("base", "merged") for n in range(8)
    }
    # The first word, which decides, is in the text, and the judge has read it.
    firsts = {t.text for t in result.merged[:5]}
    assert any(r.text.startswith(tuple(firsts)) for r in alone)
    free = result.free_rollouts
    labels = [r.label for r in alone if r.model == "merged"]
    assert (free.merged.evil, free.merged.safe) == (labels.count("evil"), labels.count("safe"))
    assert free.merged.evil > free.base.evil
    assert result.model_dump(mode="json")["free_rollouts"]["pivotal"] == free.pivotal


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
            roll_out(work, work.store.prompts.get(result.prompt_id), asking, ROLLOUTS)
        kept = work.store.results.rollouts(result.prompt_id, work.pair.key, judge=asking.id)
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

    class Slow:
        id = "slow"

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
    monkeypatch.setattr(label, "continuation_judge", lambda judge: Slow())
    settings = with_rollouts(SMALL, samples=1)
    with FakeEndpoint() as endpoint:
        asking = ModelJudge(
            LLMSettings(model="fake", base_url=endpoint.base_url),
            store=work.store,
            pair=work.pair.key,
        )
        results = run(work, asking, OneByOne("given", iter([first, second])), settings)[1]
    assert [r.error for r in results] == [None, None] and all(r.has_graphs for r in results)
    assert built.is_set() and all(r.rollouts for r in results)


@pytest.mark.usefixtures("api_key")
def test_threads_that_run_out_of_one_budget_together_end_a_run_once(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=250)

    def spent(*_: object) -> None:
        together.wait()
        raise BudgetExhausted("the budget of $1 is spent")

    monkeypatch.setattr("em_circuits.labelling.label.roll_out", spent)
    settings = with_rollouts(NO_GRAPHS, samples=1)
    prompts = [Prompt.of(PAD_THAI), Prompt.of(PAD_THAI.replace("Peanut", "Walnut"))]
    with FakeEndpoint() as endpoint:
        asking = ModelJudge(
            LLMSettings(model="fake", base_url=endpoint.base_url),
            store=work.store,
            pair=work.pair.key,
        )
        done, results = run(work, asking, given(prompts), settings)
    assert done.state.ending == "budget" and results == []


def test_a_line_cut_off_by_a_kill_does_not_hide_the_others(tmp_path: Path) -> None:
    with EventLog.open(tmp_path, run="x") as events:
        events.add("start", n=1)
    with events.path.open("a") as file:
        file.write('{"event": "jud')
    assert [event["event"] for event in read_events(events.path)] == ["start"]


def judged_by_endpoint(work: Workspace, endpoint: FakeEndpoint, **options: Any) -> ModelJudge:
    settings = LLMSettings(model="o3", base_url=endpoint.base_url, deadline_s=20.0)
    return ModelJudge(settings, store=work.store, pair=work.pair.key, **options)


@pytest.mark.usefixtures("api_key")
def test_many_prompts_are_judged_at_once_and_their_answers_stored_together(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []

    def keep(store, pair, answered, thresholds):
        writes.append(len(answered))
        return real(store, pair, answered, thresholds)

    real = module.keep_answers
    monkeypatch.setattr(module, "keep_answers", keep)
    prompts = template_prompts(30, seed=8)
    script = "ok*4,429:0.05,ok*3,500,ok,wrong_ids"
    with FakeEndpoint(script, cycle=True, latency_s=0.05) as endpoint:
        _, results = run(work, judged_by_endpoint(work, endpoint), given(prompts))
    assert {r.prompt_id for r in results} == {p.prompt_id for p in prompts}
    assert all(r.error is None for r in results)
    assert endpoint.most_in_flight > 5 and len(writes) < 30 == sum(writes)


@pytest.mark.usefixtures("api_key")
def test_a_judge_out_of_budget_ends_a_run_and_every_answer_that_came_is_stored(
    work: Workspace,
) -> None:
    with FakeEndpoint("no_usage", cycle=True, latency_s=0.02) as endpoint:
        judge = judged_by_endpoint(work, endpoint, budget=Budget(max_usd=0.5))
        done, results = run(work, judge, given(template_prompts(30, seed=8)))
    assert done.state.ending == "budget"
    assert 0 < len(results) == len(endpoint.requests) == work.store.queries.counts().judgements < 30
    assert work.store.ledger.counts().usd <= 0.5


@pytest.mark.usefixtures("api_key")
def test_a_judge_that_cannot_begin_says_so(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> ExampleBank:
        raise ValueError("no examples today")

    monkeypatch.setattr(ExampleBank, "read", fail)
    with FakeEndpoint() as endpoint, pytest.raises(ValueError, match="no examples today"):
        run(work, judged_by_endpoint(work, endpoint), given([Prompt.of(PAD_THAI)]))


@pytest.mark.usefixtures("api_key")
def test_what_goes_wrong_while_answers_are_stored_reaches_the_caller(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "keep_answers", full)
    with FakeEndpoint() as endpoint, pytest.raises(OSError, match="No space left"):
        run(work, judged_by_endpoint(work, endpoint), given([Prompt.of(PAD_THAI)]))


def test_results_that_nobody_takes_any_more_end_the_run(work: Workspace, judge) -> None:
    endless = Run(work, open_source("template", work), judge, NO_GRAPHS)
    results = endless.results()
    next(results)
    results.close()
    assert endless.state.ending == "stopped"
