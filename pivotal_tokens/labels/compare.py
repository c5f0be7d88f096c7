"""Do the people agree with each other, and with the judge?

Only labels given blind count: what somebody changed after the judge's labels were shown, or took
over from them, is left out. Only prompts count whose every token of both lists that author has
labelled; the bootstrap draws whole prompts.

    report = label_agreement(store)
    report.people[0].agreement.alpha, report.judges[0].agreement.kappa
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import get_args

from pivotal_tokens.agreement import Agreement, agreement
from pivotal_tokens.schema import Frozen, Label, LabelEvent
from pivotal_tokens.store import Store

LABELS: tuple[str, ...] = get_args(Label)
Given = dict[tuple[str, int], Label]  # (prompt id, token id) -> label


class Comparison(Frozen):
    """Some raters on the tokens that at least two of them labelled."""

    raters: tuple[str, ...]
    agreement: Agreement
    table: dict[str, dict[str, int]] | None  # of two raters: first's label -> second's -> tokens


class AgreementReport(Frozen):
    """People with people, people with judges."""

    people: tuple[Comparison, ...]  # each two; first all together where there are more
    judges: tuple[Comparison, ...]  # each person with each judge
    prompts: dict[str, int]  # author -> prompts labelled completely and blind
    left_out: dict[str, int]  # author -> prompts labelled only in part


def label_agreement(store: Store, *, resamples: int = 2000, seed: int = 0) -> AgreementReport:
    """Compare all authors of a store.

    Args:
        store: Where the labels are.
        resamples: Bootstrap draws; 0 for no intervals.
        seed: Of the draws.
    """
    people: dict[str, Given] = {}
    judges: dict[str, Given] = {}
    left_out: dict[str, int] = {}
    for prompt in store.prompts():
        events = store.label_events(prompt.prompt_id)
        if not events:
            continue
        tokens = set(store.token_texts(prompt.prompt_id))
        for author, labels in blind_labels(events).items():
            is_person = any(e.author == author and e.author_kind == "human" for e in events)
            if is_person and (not tokens or tokens - labels.keys()):
                left_out[author] = left_out.get(author, 0) + 1
                continue
            given = (people if is_person else judges).setdefault(author, {})
            given |= {(prompt.prompt_id, token): label for token, label in labels.items()}
    together = [tuple(people)] if len(people) > 2 else []
    pairs = [*together, *combinations(people, 2)]
    with_judges = [(person, judge) for person in people for judge in judges]
    everyone = people | judges
    return AgreementReport(
        people=tuple(_compare(names, everyone, resamples, seed) for names in pairs),
        judges=tuple(_compare(names, everyone, resamples, seed) for names in with_judges),
        prompts={author: len({prompt for prompt, _ in given}) for author, given in people.items()},
        left_out=left_out,
    )


def blind_labels(events: tuple[LabelEvent, ...]) -> dict[str, dict[int, Label]]:
    """Author -> token id -> the label the author stood by last without having seen a judge's.

    An item asked twice counts by its first answer, and an adjudicator has seen the reviewers'.
    """
    labels: dict[str, dict[int, Label]] = {}
    for event in events:
        if event.author_kind == "human" and (event.judge_visible or event.purpose != "review"):
            continue
        own = labels.setdefault(event.author, {})
        own.pop(event.token_id, None)
        if event.to_label is not None:
            own[event.token_id] = event.to_label
    return {author: own for author, own in labels.items() if own}


def _compare(
    names: tuple[str, ...], given: Mapping[str, Given], resamples: int, seed: int
) -> Comparison:
    places = sorted({place for name in names for place in given[name]})
    ratings: list[tuple[str | None, ...]] = [
        tuple(given[name].get(place) for name in names) for place in places
    ]
    table: dict[str, dict[str, int]] | None = None
    if len(names) == 2:
        counted = Counter(ratings)
        table = {one: {other: counted[one, other] for other in LABELS} for one in LABELS}
    return Comparison(
        raters=names,
        agreement=agreement(
            ratings,
            LABELS,
            groups=[prompt for prompt, _ in places],
            resamples=resamples,
            seed=seed,
        ),
        table=table,
    )
