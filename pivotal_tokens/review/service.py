"""Review service: the next question for a reviewer, and the consequences of an answer.

Blind first: neither a judge's nor another reviewer's label is shown until every token of both lists
is answered. Each answer is in the store when its call returns, under the item's lease and in one
transaction, so a process killed at any moment loses nothing, and the next one goes on at the same
place.

    service = ReviewService(store, "ada")
    question = service.next_question()
    question = service.label(question, {17: "evil"})
    reveal = service.finish(question, rest="safe")
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.judge.persist import verdict_under
from pivotal_tokens.review.answers import Answer, ReviewerLabels, answer_before, purpose_of
from pivotal_tokens.review.consensus import conclude, consensus_of, lists_lost
from pivotal_tokens.review.questions import LOW, Difference, Progress, Question, Reveal
from pivotal_tokens.schema import HUMAN, ItemKind, Label, ModelName, ReviewItem
from pivotal_tokens.store import ANYTHING, Store, Wanted
from pivotal_tokens.store.labels import abstained_by_author, labels_by_author
from pivotal_tokens.store.queue import WaitingState
from pivotal_tokens.store.sessions import new_session, session_is_over

LEASE_SECONDS = 30 * 60.0
_PAUSE_SECONDS = 300.0
_HISTORY = 1000  # settled items that can be opened again by their id


def require_no_judge(store: Store, name: str) -> None:
    """Refuse a reviewer's name under which a judge's labels or verdicts stand.

    Raises:
        RequestError: If it is one.
    """
    if name == HUMAN or store.labels.is_judge(name):
        raise RequestError(f"{name!a} is a judge's name; a person reviews under another")


class ReviewService:
    """One reviewer, or adjudicator, at work on a store's queue.

    Every method that takes a `Question` raises `LeaseLost` when the item went on to somebody else;
    nothing is recorded then, and the right thing to do is `next_question`.
    """

    def __init__(
        self,
        store: Store,
        reviewer: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        states: Sequence[WaitingState] = ("pending", "deferred"),
        wanted: Wanted = ANYTHING,
        adjudicate: bool = False,
        seen: Collection[str] = (),
    ) -> None:
        """Begin a session; nothing is claimed yet.

        Args:
            lease_seconds: How long an item is theirs without a sign of life.
            states: Which waiting items are asked.
            adjudicate: Ask only for items that reviewers disagree on, and show their labels.
            seen: Prompt ids whose judge's labels they were shown elsewhere; may grow.
        """
        if not reviewer.strip():
            raise RequestError("a reviewer needs a name")
        require_no_judge(store, reviewer)
        self._store = store
        self._reviewer = reviewer
        self._own = ReviewerLabels(store, reviewer, seen)
        self._lease_seconds = lease_seconds
        self._states = states
        kinds: tuple[ItemKind, ...] = ("adjudication",) if adjudicate else wanted.kinds
        self._wanted = replace(wanted, kinds=kinds)
        self._session = new_session()
        self._began = store.now()
        self._answered = 0

    def next_question(self) -> Question | None:
        """Take the next item; what this reviewer held when an earlier session died comes first.

        An item put off in this session is not asked again in it. None: nothing waits.
        """
        while True:
            with self._store.batch():
                item = self._claim()
                if item is None:
                    return None
                question = self._question(item)
                if question is not None:
                    return question
                self._store.queue.settle(item, "deferred", item.fence, text="it has no next tokens")

    def open(self, item_id: int, *, steal: bool = False) -> Question:
        """Take a particular item, a finished one too, to answer or correct it.

        Args:
            item_id: See `history`, or `Queue.items`.
            steal: Even from somebody at work on it, whose writes are refused from then on.

        Raises:
            LeaseLost: If somebody is at work on it.
            RequestError: If there is no such item, or the reviewer has another assignment there.
        """
        with self._store.batch():
            item = self._store.queue.reopen(
                item_id, self._reviewer, self._lease_seconds, session=self._session, steal=steal
            )
            return self._again(item)

    def reopen(self, prefix: str, held: Question | None = None) -> Question:
        """Take one of one's settled items again, by the beginning of its prompt's id.

        Args:
            held: The item at hand; it goes back with its labels.

        Raises:
            RequestError: If none of them, or more than one prompt's, begins so.
        """
        found = [i for i in self.history(_HISTORY) if i.prompt_id.startswith(prefix)]
        if len({item.prompt_id for item in found}) != 1:
            some = "several" if found else "none"
            raise RequestError(f"{some} of your finished items begin with {prefix}")
        with self._store.batch():
            question = self.open(found[0].item_id)
            if held is not None:
                self._store.queue.release(held.item)
            return question

    def history(self, last: int = 50) -> tuple[ReviewItem, ...]:
        """This reviewer's settled items, latest first; repeats, which never count, left out."""
        settled = self._store.queue.settled_by(self._reviewer, last, repeats=False)
        return tuple(map(self._masked, settled))

    def progress(self) -> Progress:
        """How far this reviewer is, how fast, and how long it will take."""
        waiting = self._store.queue.waiting_for(self._reviewer, self._wanted)
        if self._mixes_in:
            waiting += self._store.assignments.calibration_waiting(self._reviewer)
        times = self._store.queue.answer_times(self._reviewer)
        gaps = [b - a for a, b in pairwise(times) if b - a <= _PAUSE_SECONDS]
        rate = len(gaps) / sum(gaps) if gaps and sum(gaps) > 0 else None
        return Progress(
            reviewer=self._reviewer,
            answered=self._store.queue.answered_by(self._reviewer),
            answered_now=self._answered,
            waiting=waiting,
            states=self._store.queue.counts(),
            per_hour=None if rate is None else 3600 * rate,
            eta_seconds=None if rate is None else waiting / rate,
        )

    def continuations(self, question: Question) -> dict[int, list[tuple[ModelName, str]]]:
        """How each model went on after tokens, as far as may be shown before the answer.

        They are mostly sampled after tokens that a judge called evil. Shown only there, they would
        give its labels away: so for a prompt they are shown only where tokens that the judge did
        not call evil have some as well. Labels of continuations are never shown.
        """
        prompt_id = question.prompt.prompt_id
        found: dict[int, list[tuple[ModelName, str]]] = {}
        for one in self._store.results.rollouts(prompt_id, question.item.pair):
            if one.token_id is None:  # of flagged prompts alone: their being there says it is one
                continue
            several = found.setdefault(one.token_id, [])
            if all(model != one.model for model, _ in several):
                several.append((one.model, one.text))
        evil = {j.token_id for j in self._store.labels.of(prompt_id).judge if j.label == "evil"}
        return {} if set(found) <= evil else found

    def heartbeat(self, question: Question) -> Question:
        """Prolong the lease: the reviewer is still at it."""
        item = self._store.queue.renew(question.item, self._lease_seconds)
        return replace(question, item=self._masked(item))

    def label(
        self, question: Question, labels: Mapping[int, Answer], *, reason: str | None = None
    ) -> Question:
        """Give tokens a label, or leave them on purpose; one answer counts in both lists.

        Raises:
            RequestError: If a token is in neither list.
        """
        self._known(question, labels)
        with self._store.batch():
            item = self._store.queue.renew(question.item, self._lease_seconds)
            self._own.record(item, labels, reason=reason)
            return self._again(item)

    def finish(self, question: Question, *, rest: Answer | None = None) -> Reveal:
        """Finish an item, its tokens without an answer first given the answer `rest`.

        Raises:
            RequestError: If tokens have no answer, are not optional, and no `rest` was given.
        """
        with self._store.batch():
            item = self._store.queue.renew(question.item, self._lease_seconds)
            question = self._again(item)  # the lists may have been replaced meanwhile
            needed = [token for token in question.missing if token not in question.optional]
            if rest is None and needed:
                raise RequestError(f"{len(needed)} tokens have no label yet")
            self._own.record(item, dict.fromkeys(question.missing, rest or "abstain"))
            question = self._again(item)
            item = self._store.queue.settle(item, "done", item.fence)
            conclude(self._store, item)
            reveal = self._reveal(item, question)
        self._answered += 1
        return reveal

    def reject(self, question: Question, reason: str) -> None:
        """The prompt is no good, for either model."""
        if not reason.strip():
            raise RequestError("a rejection needs a reason")
        with self._store.batch():
            item = self._store.queue.renew(question.item, self._lease_seconds)
            rejected = self._store.queue.settle(item, "rejected", item.fence, text=reason)
            conclude(self._store, rejected)
        self._answered += 1

    def agree(self, reveal: Reveal, tokens: Collection[int] | None = None) -> Reveal:
        """Take the judge's labels over where they differ, now that they were shown.

        These labels count, marked `agreed_after_reveal`; agreement statistics leave them out.

        Args:
            tokens: Only these; by default every difference.

        Raises:
            LeaseLost: If the item was reopened since.
        """
        differ = {one.token_id: one.judge for one in reveal.differences}
        chosen = {t: differ[t] for t in (differ if tokens is None else tokens) if t in differ}
        with self._store.batch():
            item = self._settled(reveal)
            self._own.record(item, chosen, agreed=True)
            self._store.queue.log(item, self._reviewer, "agreed", tokens=tuple(chosen))
            conclude(self._store, item)
            return self._reveal(item, self._again(item))

    def explain(self, reveal: Reveal, reason: str, tokens: Collection[int] | None = None) -> None:
        """Store why the reviewer's labels differ from the judge's."""
        if not reason.strip():
            raise RequestError("an explanation needs words")
        about = tuple(one.token_id for one in reveal.differences) if tokens is None else tokens
        self._store.queue.log(
            reveal.item, self._reviewer, "explained", text=reason, tokens=tuple(about)
        )

    def skip(self, question: Question) -> None:
        """Skip an item; it comes again only when skipped items are requested."""
        self._store.queue.settle(question.item, "skipped", question.item.fence)

    def defer(self, question: Question) -> None:
        """Put an item off; it comes again in a later session, after the others."""
        self._store.queue.settle(question.item, "deferred", question.item.fence)

    def note(self, question: Question, text: str) -> None:
        """Keep a remark about an item."""
        self._store.queue.log(question.item, self._reviewer, "note", text=text)

    def release(self, question: Question) -> None:
        """Give an item back unanswered; labels given so far stay."""
        self._store.queue.release(question.item)

    def undo(self, question: Question | None) -> Question | None:
        """Take the last answer back: on this item, else reopen the item settled before it.

        Each call goes one answer further back, over restarts too.

        Returns:
            The question to go on with, or None when there is nothing left to take back.
        """
        with self._store.batch():
            if question is not None:
                item = self._store.queue.renew(question.item, self._lease_seconds)
                if batch := self._own.last_batch(item):
                    before = {event.token_id: answer_before(event) for event in batch}
                    self._own.record(item, before, undoes=batch[0].batch)
                    return self._again(item)
            last = next(iter(self._store.queue.settled_by(self._reviewer, 1)), None)
            if last is None:
                return None
            if question is not None:
                self._store.queue.release(question.item)
            item = self._store.queue.reopen(
                last.item_id, self._reviewer, self._lease_seconds, session=self._session
            )
            return self._again(item)

    @property
    def _mixes_in(self) -> bool:
        """Whether first items and repeats are mixed in, or only the requested items come."""
        return "adjudication" not in self._wanted.kinds and not self._wanted.narrowed

    def _claim(self) -> ReviewItem | None:
        store, lease = self._store, self._lease_seconds
        held = store.queue.items("leased", reviewer=self._reviewer)
        over = [i.session for i in held if i.session and session_is_over(i.session)]
        if self._mixes_in and not over:
            for mixed_in in (store.assignments.take_calibration, store.assignments.take_repeat):
                item = mixed_in(self._reviewer, lease, session=self._session)
                if item is not None:
                    return item
        return store.queue.take(
            self._reviewer,
            lease,
            session=self._session,
            resume=over,
            states=self._states,
            settled_before=self._began,
            wanted=self._wanted,
        )

    def _reveal(self, item: ReviewItem, question: Question) -> Reveal:
        judged = self._store.labels.of(item.prompt_id).judge
        labels, texts = question.labels, question.lists.base.by_id
        tokens = [token for token in question.lists.token_ids if token in labels]
        judge = {one.token_id: one.label for one in judged if one.token_id in texts}
        verdict = verdict_under(self._store, item.prompt_id, item.pair, labels)
        assert verdict is not None  # the question has the lists
        return Reveal(
            prompt_id=item.prompt_id,
            item=self._masked(item),
            labels=labels,
            verdict=verdict,
            judge_labels=judge,
            differences=tuple(
                Difference(token, texts[token].text, labels[token], judge[token])
                for token in tokens
                if token in judge and judge[token] != labels[token]
            ),
            quotes=self._quotes(item),
        )

    def _quotes(self, item: ReviewItem) -> tuple[str, ...]:
        """What judges quoted, each span once."""
        said = self._store.results.judgements_on(item.prompt_id, item.pair).values()
        return tuple(dict.fromkeys(quote for one in said for quote in one.quotes))

    def _settled(self, reveal: Reveal) -> ReviewItem:
        """The item of a reveal, if it is still as it was settled."""
        item = self._store.queue.get(reveal.item.item_id)
        if (item.state, item.fence, item.reviewer) != ("done", reveal.item.fence, self._reviewer):
            raise LeaseLost(
                f"prompt {reveal.prompt_id} was reopened since (now {item.state}, "
                f"{item.reviewer}): nothing was saved"
            )
        return item

    def _known(self, question: Question, labels: Mapping[int, Answer]) -> None:
        if unknown := sorted(set(labels) - set(question.lists.token_ids)):
            raise RequestError(f"tokens {unknown} are in neither list")

    def _question(self, item: ReviewItem) -> Question | None:
        store = self._store
        lists = store.results.next_tokens(item.prompt_id, item.pair)
        if lists is None:
            return None
        own, purpose = self._own.events(item), purpose_of(item)
        labels = labels_by_author(own, purpose=purpose).get(self._reviewer, {})
        question = Question(
            item=self._masked(item),
            prompt=store.prompts.get(item.prompt_id),
            lists=lists,
            labels={token: labels[token] for token in lists.token_ids if token in labels},
            abstained=abstained_by_author(own, purpose=purpose).get(self._reviewer, frozenset()),
            optional=frozenset(
                token
                for token in lists.token_ids
                if lists.base.by_id[token].probability < LOW
                and lists.merged.by_id[token].probability < LOW
            ),
            notes=tuple(
                event.text
                for event in store.queue.events(item.prompt_id)
                if event.action == "note" and event.author == self._reviewer and event.text
            ),
        )
        return self._with_votes(question) if question.adjudication else question

    def _with_votes(self, question: Question) -> Question:
        """An adjudicator sees everybody's labels, and answers where they disagree."""
        state = consensus_of(self._store, question.item)
        agreed: dict[int, Label] = {}
        for vote in state.votes.values():
            agreed |= {t: label for t, label in vote.items() if t not in state.disputed}
        known = question.lists.base.by_id
        return replace(
            question,
            labels={t: label for t, label in agreed.items() if t in known} | dict(question.labels),
            votes=state.votes,
            rejected_by=state.rejected_by,
        )

    def _again(self, item: ReviewItem) -> Question:
        question = self._question(item)
        if question is None:
            raise lists_lost(item)
        return question

    def _masked(self, item: ReviewItem) -> ReviewItem:
        """The item without what would tell a reviewer what to expect."""
        if item.kind == "adjudication":
            return item
        return item.model_copy(
            update={
                "reason": "",
                "kind": "review",
                "seat": 0,
                "sampling": None,
                "flagged": True,
                "evil_mass": 0.0,
                "uncertainty": 0.0,
                "disagreement": 0.0,
            }
        )
