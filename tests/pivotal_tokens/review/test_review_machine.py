"""Any sequence of enqueue, lease, expire, label, undo, reject and adjudicate keeps the rules."""

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from samples import Clock, next_tokens

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.review import Question, ReviewService
from pivotal_tokens.review.consensus import consensus
from pivotal_tokens.schema import HUMAN, Prompt, ReviewConfig
from pivotal_tokens.store import Store

NAMES = st.sampled_from(["ada", "bob", "cyd"])
LABELS = st.sampled_from(["evil", "safe", "unsure", "abstain"])
TOKENS = st.sampled_from([1, 2, 3])
LEASE = 100.0


class Machine(RuleBasedStateMachine):
    """Two assignments an item; the model is what each person last said and was told is saved."""

    url = ""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.store = Store.open(self.url, create=True, clock=self.clock)
        self.store.assignments.set_config(ReviewConfig(overlap=2, calibration=0, repeat_share=0.0))
        self.numbers = itertools.count()
        self.people = {
            name: ReviewService(self.store, name, lease_seconds=LEASE)
            for name in ("ada", "bob", "cyd")
        }
        self.judge = ReviewService(self.store, "eve", lease_seconds=LEASE, adjudicate=True)
        self.held = {}
        self.said = {}

    def teardown(self):
        self.store.close()

    @rule()
    def enqueue(self):
        prompt = Prompt.of(f"prompt {next(self.numbers)}")
        self.store.prompts.add(prompt)
        lists = (
            next_tokens("base", {1: 0.8, 2: 0.1, 3: 0.05}),
            next_tokens("merged", {1: 0.1, 2: 0.8, 3: 0.05}),
        )
        self.store.results.put_next_tokens(prompt.prompt_id, "p", *lists)
        assert self.store.assignments.add(prompt.prompt_id, "p", "flagged")

    @rule(name=NAMES)
    def ask(self, name):
        question = self.people[name].next_question()
        if question is not None:
            self.held[name] = question
            assert question.votes == {}
            own = self.said.get((name, question.prompt.prompt_id), {})
            assert dict(question.labels) == {t: a for t, a in own.items() if a != "abstain"}

    @rule(name=NAMES, token=TOKENS, label=LABELS)
    def label(self, name, token, label):
        if question := self.held.get(name):
            done = self._try(name, lambda: self.people[name].label(question, {token: label}))
            if done:
                self.held[name] = done
                self.said.setdefault((name, question.prompt.prompt_id), {})[token] = label

    @rule(name=NAMES, rest=LABELS)
    def finish(self, name, rest):
        question = self.held.pop(name, None)
        if question is None:
            return
        if self._try(name, lambda: self.people[name].finish(question, rest=rest)):
            own = self.said.setdefault((name, question.prompt.prompt_id), {})
            for token in (1, 2, 3):
                own.setdefault(token, rest)

    @rule(name=NAMES, how=st.sampled_from(["reject", "skip", "defer", "release"]))
    def put_away(self, name, how):
        if question := self.held.pop(name, None):
            method = getattr(self.people[name], how)
            self._try(name, lambda: method(question, *(["why"] if how == "reject" else [])))

    @rule(name=NAMES)
    def undo(self, name):
        question = self._try(name, lambda: self.people[name].undo(self.held.get(name)))
        if isinstance(question, Question):
            self.held[name] = question
            answers = dict(question.labels) | dict.fromkeys(question.abstained, "abstain")
            self.said[name, question.prompt.prompt_id] = answers

    @rule(seconds=st.sampled_from([1.0, LEASE + 1]))
    def wait(self, seconds):
        self.clock.forward(seconds)

    @rule()
    def return_items(self):
        self.store.queue.return_items()

    @rule(reject=st.booleans())
    def adjudicate(self, reject):
        question = self.judge.next_question()
        if question is None:
            return
        assert question.disputed or (question.rejected_by and question.votes)
        if reject:
            self.judge.reject(question, "no")
        else:
            self.judge.finish(question, rest="safe")

    @invariant()
    def one_assignment_each_and_one_holder(self):
        assigned = {}
        for item in self.store.queue.items():
            if item.kind == "review" and item.reviewer and item.state != "pending":
                key = (item.prompt_id, item.reviewer)
                assert key not in assigned, f"{item.reviewer} has two of {item.prompt_id}"
                assigned[key] = item
            assert (item.state == "leased") == (item.lease_until is not None)

    @invariant()
    def what_was_saved_is_there_and_nothing_else(self):
        for (name, prompt_id), answers in self.said.items():
            last = {e.token_id: e for e in self.store.labels.events(prompt_id, author=name)}
            stands = {
                token: "abstain" if event.left else event.to_label
                for token, event in last.items()
                if event.left or event.to_label is not None
            }
            assert stands == answers

    @invariant()
    def a_human_verdict_stands_exactly_where_people_are_done(self):
        for prompt in self.store.prompts.all():
            items = self.store.queue.items(prompt_id=prompt.prompt_id)
            state = consensus(items, self.store.labels.events(prompt.prompt_id))
            verdict = self.store.results.verdict(prompt.prompt_id, "p", HUMAN)
            assert (verdict is not None) == state.settled
            if verdict is not None:
                assert (verdict.kind == "bad_prompt") == state.bad_prompt

    def _try(self, name, action):
        """What came of it; None, and nothing held, where the lease had gone on."""
        try:
            return action() or True
        except LeaseLost:
            self.held.pop(name, None)
        except RequestError as error:
            assert "assignment" in str(error)  # undo back to a prompt with another one taken since
        return None


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_any_sequence_of_actions_keeps_the_rules(database, request):
    server = request.getfixturevalue("postgres") if database == "postgresql" else None
    counter = itertools.count()
    with tempfile.TemporaryDirectory() as directory:

        class OnDatabase(Machine):
            def __init__(self):
                if server is None:
                    self.url = f"sqlite:///{Path(directory) / f'{next(counter)}.sqlite'}"
                else:
                    server.empty()
                    self.url = server.url
                super().__init__()

        run_state_machine_as_test(
            OnDatabase,
            settings=settings(
                max_examples=8 if server is None else 4,
                stateful_step_count=25,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
