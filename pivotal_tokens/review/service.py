"""What is asked of a reviewer next, and what follows from the answer? No screen in here.

Blind first: a judge's labels are not shown until every token of both lists has a person's label.
Each answer is in the store when its call returns, under the item's lease, so a process killed at
any moment loses nothing, and the next one goes on at the same place.

    service = ReviewService(store, "ada")
    question = service.next_question()
    question = service.label(question, {17: "evil"})
    reveal = service.finish(question, rest="safe")
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.review.commands import Place
from pivotal_tokens.schema import (
    Label,
    LabelEvent,
    NextTokenPair,
    Prompt,
    ReviewItem,
    Thresholds,
    Verdict,
    new_id,
)
from pivotal_tokens.store import Store
from pivotal_tokens.store.queue import ClaimableState
from pivotal_tokens.verdict import decide

RUBRIC_VERSION = "1"
LEASE_SECONDS = 30 * 60.0


@dataclass(frozen=True)
class Question:
    """One item as its reviewer may see it before the answer: no judge's label in it."""

    item: ReviewItem
    prompt: Prompt
    lists: NextTokenPair
    labels: Mapping[int, Label]  # people's, by token id

    @property
    def missing(self) -> tuple[int, ...]:
        """Tokens of either list that nobody has labelled."""
        return tuple(token for token in self.lists.token_ids if token not in self.labels)

    def token_at(self, place: Place) -> int:
        """The token id at a place of a list.

        Raises:
            RequestError: If the list is shorter.
        """
        tokens = self.lists.base if place.model == "base" else self.lists.merged
        for token in tokens.top:
            if token.rank == place.rank:
                return token.token_id
        raise RequestError(f"there is no {place}: the list has {len(tokens.top)} tokens")


@dataclass(frozen=True)
class Difference:
    """A token that the reviewer and the judge label differently."""

    token_id: int
    text: str
    human: Label
    judge: Label


@dataclass(frozen=True)
class Reveal:
    """What may be shown once an item is answered."""

    prompt_id: str
    labels: Mapping[int, Label]
    verdict: Verdict
    judge_labels: Mapping[int, Label]
    differences: tuple[Difference, ...]


class ReviewService:
    """One reviewer at work on a store's queue."""

    def __init__(
        self,
        store: Store,
        reviewer: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        thresholds: Thresholds | None = None,
        states: Sequence[ClaimableState] = ("pending", "deferred"),
    ) -> None:
        if not reviewer.strip():
            raise RequestError("a reviewer needs a name")
        self._store = store
        self._reviewer = reviewer
        self._lease_seconds = lease_seconds
        self._thresholds = thresholds
        self._states = states
        self._session = f"{socket.gethostname()}:{os.getpid()}:{new_id()[:8]}"
        self._began = store.now()

    def next_question(self) -> Question | None:
        """Take the next item; what this reviewer held when an earlier session died comes first.

        An item put off in this session is not asked again in it. None: nothing waits.
        """
        while (item := self._claim()) is not None:
            question = self._question(item)
            if question is not None:
                return question
            self._store.settle(item, "deferred", item.fence, text="it has no next tokens")
        return None

    def waiting(self) -> dict[str, int]:
        """How many items there are in each state."""
        return self._store.queue_counts()

    def label(
        self, question: Question, labels: Mapping[int, Label], *, reason: str | None = None
    ) -> Question:
        """Give tokens a label; one answer labels a token in both lists.

        Raises:
            RequestError: If a token is in neither list.
            LeaseLost: If the item went on to somebody else; nothing was recorded.
        """
        if unknown := sorted(set(labels) - set(question.lists.token_ids)):
            raise RequestError(f"tokens {unknown} are in neither list")
        item = self._store.renew(question.item, self._lease_seconds)
        self._record(item, labels, reason=reason)
        return self._again(item)

    def finish(self, question: Question, *, rest: Label | None = None) -> Reveal:
        """Finish an item, its tokens without a label first given the label `rest`.

        Raises:
            RequestError: If tokens are without a label and no `rest` was given.
            LeaseLost: If the item went on to somebody else.
        """
        while question.missing:  # again if the lists were replaced meanwhile
            if rest is None:
                raise RequestError(f"{len(question.missing)} tokens have no label yet")
            question = self.label(question, dict.fromkeys(question.missing, rest))
        lists, labels = question.lists, question.labels
        verdict = decide(lists.base, lists.merged, labels, self._thresholds_for(question))
        self._store.settle(question.item, "done", question.item.fence, verdict=verdict)
        judge = {
            item.token_id: item.label
            for item in self._store.labels(question.prompt.prompt_id).judge
            if item.token_id in labels
        }
        texts = lists.base.by_id
        return Reveal(
            prompt_id=question.prompt.prompt_id,
            labels=labels,
            verdict=verdict,
            judge_labels=judge,
            differences=tuple(
                Difference(token, texts[token].text, labels[token], judge[token])
                for token in lists.token_ids
                if token in judge and judge[token] != labels[token]
            ),
        )

    def reject(self, question: Question, reason: str) -> None:
        """The prompt is no good, for either model."""
        if not reason.strip():
            raise RequestError("a rejection needs a reason")
        lists = question.lists
        thresholds = self._thresholds_for(question)
        verdict = decide(lists.base, lists.merged, question.labels, thresholds, bad_prompt=True)
        self._store.settle(
            question.item, "rejected", question.item.fence, verdict=verdict, text=reason
        )

    def skip(self, question: Question) -> None:
        """Leave an item; it comes again only when skipped ones are asked for."""
        self._store.settle(question.item, "skipped", question.item.fence)

    def defer(self, question: Question) -> None:
        """Put an item off; it comes again in a later session, after the others."""
        self._store.settle(question.item, "deferred", question.item.fence)

    def note(self, question: Question, text: str) -> None:
        """Keep a remark about an item."""
        self._store.add_note(question.item, self._reviewer, text)

    def release(self, question: Question) -> None:
        """Give an item back unanswered; labels given so far stay."""
        self._store.release(question.item)

    def undo(self, question: Question | None) -> Question | None:
        """Take the last answer back: on this item, else reopen the item settled before it.

        Each call goes one answer further back, over restarts too.

        Returns:
            The question to go on with, or None when there is nothing left to take back.
        """
        if question is not None and (batch := self._last_batch(question.prompt.prompt_id)):
            before = {event.token_id: event.from_label for event in batch}
            item = self._store.renew(question.item, self._lease_seconds)
            self._record(item, before, undoes=batch[0].batch)
            return self._again(item)
        last = self._store.last_settled(self._reviewer)
        if last is None:
            return None
        item = self._store.reopen(
            last.item_id, self._reviewer, self._lease_seconds, session=self._session
        )
        if question is not None:
            self._store.release(question.item)
        return self._again(item)

    def _claim(self) -> ReviewItem | None:
        held = self._store.queue("leased", reviewer=self._reviewer)
        return self._store.claim(
            self._reviewer,
            self._lease_seconds,
            session=self._session,
            resume=[item.session for item in held if item.session and _is_over(item.session)],
            states=self._states,
            settled_before=self._began,
        )

    def _record(
        self,
        item: ReviewItem,
        labels: Mapping[int, Label | None],
        *,
        reason: str | None = None,
        undoes: str | None = None,
    ) -> None:
        own: dict[int, Label | None] = {
            event.token_id: event.to_label
            for event in self._store.label_events(item.prompt_id, author=self._reviewer)
        }
        batch = new_id()
        events = [
            LabelEvent(
                prompt_id=item.prompt_id,
                token_id=token,
                from_label=own.get(token),
                to_label=label,
                author=self._reviewer,
                author_kind="human",
                judge_visible=item.revealed,
                reason=reason,
                rubric_version=RUBRIC_VERSION,
                batch=batch,
                undoes=undoes,
                at=self._store.now(),
            )
            for token, label in labels.items()
            if own.get(token) != label
        ]
        self._store.record_labels(events, item=item)

    def _last_batch(self, prompt_id: str) -> list[LabelEvent]:
        """The events of this reviewer's last answer that is not taken back yet."""
        answers: dict[str, list[LabelEvent]] = {}
        for event in self._store.label_events(prompt_id, author=self._reviewer):
            if event.undoes is not None:
                answers.pop(event.undoes, None)
            else:
                answers.setdefault(event.batch, []).append(event)
        return list(answers.values())[-1] if answers else []

    def _thresholds_for(self, question: Question) -> Thresholds:
        """Those given, else those under which the prompt was flagged."""
        if self._thresholds is not None:
            return self._thresholds
        known = self._store.verdicts(question.prompt.prompt_id, question.item.pair).values()
        default = Thresholds(top_k=question.lists.base.top_k)
        return next((verdict.thresholds for verdict in known), default)

    def _question(self, item: ReviewItem) -> Question | None:
        lists = self._store.next_tokens(item.prompt_id, item.pair)
        if lists is None:
            return None
        people = {label.token_id: label.label for label in self._store.labels(item.prompt_id).human}
        return Question(
            item=item,
            prompt=self._store.prompt(item.prompt_id),
            lists=lists,
            labels={token: people[token] for token in lists.token_ids if token in people},
        )

    def _again(self, item: ReviewItem) -> Question:
        question = self._question(item)
        if question is None:
            raise WorkFailed(
                f"prompt {item.prompt_id} lost its next tokens: run `em-circuits label`"
            )
        return question


def _is_over(session: str) -> bool:
    """Is the process of a session on this host gone? Of another host's nothing is known."""
    host, _, rest = session.partition(":")
    pid = rest.partition(":")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
