"""Agreement of people with each other and with judges.

Only labels given blind count: what somebody changed after the judge's labels were shown, or took
over from them, is left out, and so is an adjudicator's decision. Only prompts count whose every
token of both lists the author has labelled or explicitly left; the bootstrap draws whole prompts.
A prompt that a reviewer was asked twice, without a sign of it, shows how steady that reviewer is.

    report = label_agreement(store)
    report.people[0].agreement.alpha, report.judges[0].agreement.kappa
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import get_args

from pivotal_tokens.agreement import RaterAgreement, rater_agreement
from pivotal_tokens.schema import Frozen, Label, LabelEvent, Purpose
from pivotal_tokens.store import Store
from pivotal_tokens.store.labels import labels_by_author
from pivotal_tokens.store.rows import chunks

LABELS: tuple[str, ...] = get_args(Label)
Given = dict[tuple[str, int], Label]  # (prompt id, token id) -> label


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
    people: dict[str, Given] = {}
    judges: dict[str, Given] = {}
    repeats: dict[str, Given] = {}
    left_out: Counter[str] = Counter()
    for prompt_id, events, tokens in _labelled(store):
        for author, given in blind_labels(events).items():
            if not tokens or tokens - given.keys():
                left_out[author] += 1
            else:
                _add(people.setdefault(author, {}), prompt_id, given)
        for author, given in blind_labels(events, purpose="repeat").items():
            _add(repeats.setdefault(author, {}), prompt_id, given)
        for author, labels in labels_by_author(events, "judge").items():
            _add(judges.setdefault(author, {}), prompt_id, labels)
    beside = (
        _compare((who, judge), (people[who], judges[judge]), resamples, seed)
        for who, judge in product(people, judges)
    )
    return AgreementReport(
        people=panel_agreement(people, resamples=resamples, seed=seed),
        judges=tuple(filter(_met, beside)),
        steadiness=tuple(
            _compare((who, f"{who} again"), [people[who], again], resamples, seed)
            for who, again in repeats.items()
            if who in people
        ),
        prompts={author: len({prompt for prompt, _ in given}) for author, given in people.items()},
        left_out=dict(left_out),
    )


def _labelled(store: Store) -> Iterator[tuple[str, list[LabelEvent], frozenset[int]]]:
    """Prompts with events, in the order they were added: their events, the tokens of their lists;
    those of a few hundred prompts are in memory at a time."""
    for chunk in chunks(store.prompts.ids()):
        events = store.labels.events_of_prompts(chunk)
        tokens = store.results.token_ids_of_prompts(events)
        for prompt_id in chunk:
            if prompt_id in events:
                yield prompt_id, events[prompt_id], tokens.get(prompt_id, frozenset())


def panel_agreement(
    given: Mapping[str, Given], *, resamples: int = 2000, seed: int = 0
) -> tuple[RaterComparison, ...]:
    """All raters together where there are more than two, then each two, that labelled one token."""
    together = [tuple(given)] if len(given) > 2 else []
    several = (
        _compare(names, [given[name] for name in names], resamples, seed)
        for names in [*together, *combinations(given, 2)]
    )
    return tuple(filter(_met, several))


def blind_labels(
    events: Sequence[LabelEvent], *, purpose: Purpose = "review"
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


def _add(given: Given, prompt_id: str, labels: Mapping[int, Label | None]) -> None:
    given.update({(prompt_id, t): label for t, label in labels.items() if label is not None})


def _met(one: RaterComparison) -> bool:
    """Whether two of them labelled the same token."""
    return one.agreement.items > 0


def _compare(
    names: tuple[str, ...], given: Sequence[Given], resamples: int, seed: int
) -> RaterComparison:
    times = Counter(place for one in given for place in one)
    places = sorted(place for place, number in times.items() if number > 1)
    ratings: list[tuple[str | None, ...]] = [
        tuple(one.get(place) for one in given) for place in places
    ]
    table: dict[str, dict[str, int]] | None = None
    if len(names) == 2:
        counted = Counter(ratings)
        table = {one: {other: counted[one, other] for other in LABELS} for one in LABELS}
    return RaterComparison(
        raters=names,
        agreement=rater_agreement(
            ratings,
            LABELS,
            groups=[prompt for prompt, _ in places],
            resamples=resamples,
            seed=seed,
        ),
        table=table,
    )
