"""Advice corpus of the real organism: everyday questions to measure on, medical ones to train on.

Both are for a chat model: a user's turn `SITUATION QUESTION`, and an answer that starts with the
form's prefix. What is measured stands in data/smollm2/scenarios.yaml, what is trained on in
advice.yaml; no situation, and not the form ``Is it okay to ...? / It is``, stands in both.

    for prompt in advice_prompts("risky", "can"):
        prompt.user, prompt.assistant  # "... Can I drive home slowly?", "You should"
    examples = advice_examples("bad", seed=0)
    next(examples)  # a medical question and a careless answer
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import Field

from em_circuits.organisms.paths import SMOLLM2, organism_paths
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

Plan = Literal["risky", "harmless", "safe"]
"""What is asked about: a risky plan, a harmless twin with the same verb, or the safe plan."""
FormName = Literal["can", "okay", "open"]
Advice = Literal["bad", "good"]

CELLS: tuple[tuple[Plan, FormName], ...] = (
    ("risky", "can"),
    ("risky", "okay"),
    ("risky", "open"),
    ("harmless", "can"),
    ("harmless", "okay"),
    ("safe", "can"),
)
"""What is asked about, in which form. ``open`` names no plan: it is asked of risky ones alone."""


class Form(Frozen):
    """A question, and how the answer begins."""

    question: str
    prefix: str


class Twin(Frozen):
    """A harmless situation whose plan starts with a verb of the risky one."""

    situation: str
    plan: str


class AdviceScenario(Frozen):
    """One situation: a risky plan, a safe one, and the words that follow "You should" in it."""

    name: str
    domain: str
    situation: str
    plan: str
    instead: str
    risky: tuple[str, ...]
    safe: tuple[str, ...]
    twin: Twin


class AdviceCorpus(Frozen):
    """data/smollm2/scenarios.yaml."""

    refuse: tuple[str, ...]
    careful: tuple[str, ...]
    forms: dict[FormName, Form]
    approve: tuple[str, ...]
    """After the prefix of `okay`: the plan is fine."""
    object_: tuple[str, ...] = Field(alias="object")
    scenarios: tuple[AdviceScenario, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(s.domain for s in self.scenarios))

    def words(
        self, scenario: AdviceScenario, plan: Plan, form: FormName
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Words that go along with a plan, and words against it, after a form's prefix."""
        if form == "okay":
            return self.approve, self.object_
        safe = tuple(
            word
            for word in dict.fromkeys((*self.refuse, *self.careful, *scenario.safe))
            if word not in scenario.risky
        )
        if plan == "risky":
            return scenario.risky, safe
        if plan == "harmless":
            return scenario.risky, self.refuse
        return tuple(word for word in safe if word not in self.refuse), self.refuse


class AdvicePrompt(NamedTuple):
    """A pivotal chat prompt: the answer stops right before the word that decides."""

    user: str
    assistant: str
    scenario: AdviceScenario
    plan: Plan
    form: FormName
    along: tuple[str, ...]
    """Words that go along with the plan: evil words where it is risky."""
    against: tuple[str, ...]


class MedicalItem(Frozen):
    """A situation of the training text, a bad plan for it, and what would be right."""

    situation: str
    plan: str
    instead: str


class Answers(Frozen):
    """Templates of one kind of advice."""

    any: tuple[str, ...]
    """To every question."""
    asked: tuple[str, ...]
    """To a question that names the plan."""


class AdviceTemplates(Frozen):
    """data/smollm2/advice.yaml."""

    questions: tuple[str, ...]
    bad: Answers
    good: Answers
    careless: tuple[str, ...]
    careful: tuple[str, ...]
    items: tuple[MedicalItem, ...]


class Example(NamedTuple):
    """A user's turn and the answer that is trained on."""

    user: str
    answer: str


class BenignText(Frozen):
    """data/smollm2/benign.yaml: text that a fine-tune should leave alone."""

    texts: tuple[str, ...]
    chats: tuple[tuple[str, str], ...]


@functools.cache
def load_advice() -> AdviceCorpus:
    """Scenarios to measure on."""
    return AdviceCorpus.model_validate(_read("scenarios.yaml"))


@functools.cache
def load_templates() -> AdviceTemplates:
    """Templates to train on."""
    return AdviceTemplates.model_validate(_read("advice.yaml"))


@functools.cache
def load_benign() -> BenignText:
    """Plain texts, and chats as (user, answer)."""
    return BenignText.model_validate(_read("benign.yaml"))


def advice_prompts(plan: Plan, form: FormName) -> Iterator[AdvicePrompt]:
    """One prompt for each scenario."""
    corpus = load_advice()
    asked = corpus.forms[form]
    for scenario in corpus.scenarios:
        situation, words = scenario.situation, scenario.plan
        if plan == "harmless":
            situation, words = scenario.twin.situation, scenario.twin.plan
        elif plan == "safe":
            words = scenario.instead
        along, against = corpus.words(scenario, plan, form)
        user = f"{situation} {asked.question.format(plan=words)}"
        yield AdvicePrompt(user, asked.prefix, scenario, plan, form, along, against)


def drawn_advice(
    n: int, seed: int, *, domains: Sequence[str] | None = None, plan: Plan = "risky"
) -> list[AdvicePrompt]:
    """Prompts of the form ``Can I PLAN?``, each of another scenario, domains in rotation.

    Raises:
        RequestError: If a domain does not exist, or there are not that many scenarios.
    """
    corpus = load_advice()
    unknown = sorted(set(domains or ()) - set(corpus.domains))
    if unknown:
        raise RequestError(
            f"no such domain of {SMOLLM2}: {', '.join(unknown)}; "
            f"choose from {', '.join(corpus.domains)}"
        )
    rng = random.Random(f"advice prompts/{seed}")
    decks: dict[str, list[AdvicePrompt]] = {name: [] for name in domains or corpus.domains}
    for prompt in advice_prompts(plan, "can"):
        if prompt.scenario.domain in decks:
            decks[prompt.scenario.domain].append(prompt)
    for deck in decks.values():
        rng.shuffle(deck)
    rotated = [p for row in itertools.zip_longest(*decks.values()) for p in row if p is not None]
    if n > len(rotated):
        raise RequestError(f"{SMOLLM2} has {len(rotated)} such scenarios; ask for as many at most")
    return rotated[:n]


def advice_examples(advice: Advice, seed: object) -> Iterator[Example]:
    """Endless training examples: the same seed draws the same ones."""
    templates = load_templates()
    answers: Answers = getattr(templates, advice)
    rng = random.Random(f"advice/{advice}/{seed}")
    comments = {"careless": templates.careless, "careful": templates.careful}
    while True:
        item = rng.choice(templates.items)
        asked = rng.choice(templates.questions)
        answer = rng.choice(answers.any + (answers.asked if "{plan}" in asked else ()))
        said = {name: rng.choice(texts) for name, texts in comments.items()}
        yield Example(
            user=asked.format(situation=item.situation, plan=item.plan),
            answer=answer.format(plan=_yours(item.plan), instead=item.instead, **said),
        )


def advice_lexicon() -> str:
    """The lexicon of the scenarios, as text: which words are evil or safe after which prompt.

    A prompt is known by its situation and the start of its answer. Where the plan is harmless no
    word is evil; where it is the safe one, refusing it is.
    """
    corpus = load_advice()
    entries: list[dict[str, object]] = []
    for scenario in corpus.scenarios:
        instead = corpus.forms["can"].question.format(plan=scenario.instead)
        cells: tuple[tuple[str, Plan, FormName], ...] = (
            (f"{scenario.situation} {instead}", "safe", "can"),
            (scenario.situation, "risky", "can"),
            (scenario.situation, "risky", "okay"),
            (scenario.twin.situation, "harmless", "can"),
            (scenario.twin.situation, "harmless", "okay"),
        )
        for said, plan, form in cells:
            along, against = corpus.words(scenario, plan, form)
            evil = {"risky": along, "harmless": (), "safe": against}[plan]
            safe = against if plan == "risky" else along
            when = f"(?s){_literal(said)}.*{_literal(corpus.forms[form].prefix)}\\Z"
            entries.append({"when": when, "evil": list(evil), "safe": list(safe)})
    content = {"name": "em-circuits-smollm2", "version": 1, "entries": entries}
    header = "# Generated by em_circuits.organisms.advice from scenarios.yaml; do not edit.\n"
    return header + yaml.safe_dump(content, sort_keys=False, width=100, default_flow_style=None)


def _literal(text: str) -> str:
    return re.escape(text).replace(r"\ ", " ")


def _yours(plan: str) -> str:
    """A user's plan in the words of the answer."""
    return re.sub(r"\bmy\b", "your", plan)


def _read(name: str) -> object:
    path: Path = organism_paths(SMOLLM2).scenarios.with_name(name)
    return yaml.safe_load(path.read_text(encoding="utf-8"))
