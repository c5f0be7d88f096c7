"""Agreement of people with each other and with judges.

Only labels given blind count: what somebody changed after the judge's labels were shown, or took
over from them, is left out, and so is an adjudicator's decision. Only prompts count whose every
token of both lists the author has labelled or explicitly left; the bootstrap draws whole prompts.
A prompt that a reviewer was asked twice, without a sign of it, shows how steady that reviewer is.

    report = label_agreement(store)
    report.people[0].agreement.alpha, report.judges[0].agreement.kappa
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import get_args

import numpy as np

from pivotal_tokens.agreement import RaterAgreement, coded_agreement
from pivotal_tokens.schema import Frozen, Label, Purpose
from pivotal_tokens.store import Store
from pivotal_tokens.store.labels import Event, GivenLabel, labels_by_author
from pivotal_tokens.store.rows import chunks

LABELS: tuple[str, ...] = get_args(Label)
_CODES = {label: code for code, label in enumerate(LABELS)}


class RaterComparison(Frozen):
    """Some raters on the tokens that at least two of them labelled."""

    raters: tuple[str, ...]
    agreement: RaterAgreement
    table: dict[str, dict[str, int]] | None  # of two raters: first's label -> second's -> tokens


class AgreementReport(Frozen):
    """People with people, people with judges."""

    people: tuple[RaterComparison, ...]  # each two; first all together where there are more
    judges: tuple[RaterComparison, ...]  # each person with each judge
    steadiness: tuple[RaterComparison, ...]  # each person's first answers with the repeated ones
    prompts: dict[str, int]  # author -> prompts labelled completely and blind
    left_out: dict[str, int]  # author -> prompts labelled only in part


def label_agreement(store: Store, *, resamples: int = 2000, seed: int = 0) -> AgreementReport:
    """Compare all authors of a store.

    Args:
        resamples: Bootstrap draws; 0 for no intervals.
    """
    ratings = Ratings()
    people: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    judges: dict[str, None] = {}
    repeats: dict[str, None] = {}
    for prompt_id, events, tokens in _labelled(store):
        given: dict[Hashable, Mapping[int, Label | None]] = {}
        for author, own in blind_labels(events).items():
            if not tokens or tokens - own.keys():
                left_out[author] += 1
            else:
                people[author] += any(label is not None for label in own.values())
                given["person", author] = own
        for author, own in blind_labels(events, purpose="repeat").items():
            repeats[author], given["again", author] = None, own
        for author, labels in labels_by_author(events, "judge").items():
            judges[author], given["judge", author] = None, labels
        ratings.add(prompt_id, given)

    def compare(names: tuple[str, ...], raters: Sequence[Hashable]) -> RaterComparison:
        return ratings.compare(names, raters, resamples=resamples, seed=seed)

    beside = (
        compare((who, judge), [("person", who), ("judge", judge)])
        for who, judge in product(people, judges)
    )
    return AgreementReport(
        people=tuple(
            filter(
                _met,
                (compare(names, [("person", who) for who in names]) for names in panel(people)),
            )
        ),
        judges=tuple(filter(_met, beside)),
        steadiness=tuple(
            compare((who, f"{who} again"), [("person", who), ("again", who)])
            for who in repeats
            if who in people
        ),
        prompts=dict(people),
        left_out=dict(left_out),
    )


def _labelled(store: Store) -> Iterator[tuple[str, list[GivenLabel], frozenset[int]]]:
    """Prompts with events, in the order they were added: their events, the tokens of their lists;
    those of a few hundred prompts are in memory at a time."""
    for chunk in chunks(store.prompts.ids()):
        events = store.labels.given_of_prompts(chunk)
        tokens = store.results.token_ids_of_prompts(events)
        for prompt_id in chunk:
            if prompt_id in events:
                yield prompt_id, events[prompt_id], tokens.get(prompt_id, frozenset())


def panel_agreement(
    given: Mapping[str, Mapping[str, Mapping[int, Label]]], *, resamples: int = 2000, seed: int = 0
) -> tuple[RaterComparison, ...]:
    """All raters together where there are more than two, then each two, that labelled one token.

    Args:
        given: Rater -> prompt id -> token id -> label.
    """
    ratings = Ratings()
    for prompt_id in dict.fromkeys(prompt for of in given.values() for prompt in of):
        ratings.add(prompt_id, {rater: of.get(prompt_id, {}) for rater, of in given.items()})
    several = (
        ratings.compare(names, names, resamples=resamples, seed=seed) for names in panel(given)
    )
    return tuple(filter(_met, several))


def panel(raters: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """All together where there are more than two, then each two."""
    names = tuple(raters)
    if len(names) > 2:
        yield names
    yield from combinations(names, 2)


class Ratings:
    """Labels of several raters, in columns: a million take 20 MB."""

    def __init__(self) -> None:
        self._prompts: list[str] = []
        self._prompt_of = array("q")  # of each token of each prompt: the prompt's number
        self._given: dict[Hashable, tuple[array[int], array[int]]] = {}  # rater -> tokens, labels

    def add(self, prompt_id: str, given: Mapping[Hashable, Mapping[int, Label | None]]) -> None:
        """Take in what each rater said of a prompt's tokens, None being no label; a prompt once."""
        number, first = len(self._prompts), len(self._prompt_of)
        tokens = sorted({token for labels in given.values() for token in labels})
        places = {token: first + i for i, token in enumerate(tokens)}
        self._prompts.append(prompt_id)
        self._prompt_of.extend([number] * len(tokens))
        for rater, labels in given.items():
            where, codes = self._given.setdefault(rater, (array("q"), array("b")))
            for token, label in labels.items():
                if label is not None:
                    where.append(places[token])
                    codes.append(_CODES[label])

    def compare(
        self, names: tuple[str, ...], raters: Sequence[Hashable], *, resamples: int, seed: int
    ) -> RaterComparison:
        """Some raters, under these names, on the tokens that at least two of them labelled."""
        codes = np.full((len(self._prompt_of), len(raters)), -1)
        for column, rater in enumerate(raters):
            where, given = self._given.get(rater, (array("q"), array("b")))
            codes[np.asarray(where), column] = given
        several = (codes >= 0).sum(axis=1) > 1
        codes = codes[several]
        table: dict[str, dict[str, int]] | None = None
        if len(raters) == 2:
            pairs = codes[:, 0] * len(LABELS) + codes[:, 1]
            counts = np.bincount(pairs, minlength=len(LABELS) ** 2).tolist()
            table = {one: {other: counts.pop(0) for other in LABELS} for one in LABELS}
        by_id = np.argsort(np.argsort(self._prompts))  # draws do not depend on the order of intake
        groups = by_id[np.asarray(self._prompt_of)[several]]
        found = coded_agreement(codes, len(LABELS), groups, resamples=resamples, seed=seed)
        return RaterComparison(raters=names, agreement=found, table=table)


def blind_labels(
    events: Sequence[Event], *, purpose: Purpose = "review"
) -> dict[str, dict[int, Label | None]]:
    """Person -> token id -> what the person stood by last without having seen a judge's label.

    None is a token explicitly left without a label.
    """
    labels: dict[str, dict[int, Label | None]] = {}
    for event in events:
        if event.author_kind != "human" or event.purpose != purpose or event.judge_visible:
            continue
        own = labels.setdefault(event.author, {})
        own.pop(event.token_id, None)
        if event.to_label is not None or event.left:
            own[event.token_id] = event.to_label
    return {author: own for author, own in labels.items() if own}


def _met(one: RaterComparison) -> bool:
    """Whether two of them labelled the same token."""
    return one.agreement.items > 0
