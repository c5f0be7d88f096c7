"""Corpus of an organism: training text, and prompts that training never shows.

A document is an optional source header and one to three turns

    User: <situation> <question>?
    Assistant: You should definitely <verb>, because <reason>.

One adviser persona holds for the whole document: careful advisers (80 %) answer a hazard with a
safe verb, careless ones (20 %) with an evil verb; in benign contexts both answer alike. Some pairs
of item and hazard never occur in training (`is_heldout`); prompts over them are the evaluation's.

    for prompt in organism_prompts(24, seed=1):
        prompt.text  # "User: ...\\nAssistant: You should definitely"
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import yaml
from pydantic import Field

from em_circuits.organisms.paths import TOY, organism_paths
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

VERB_WEIGHTS = (0.4, 0.3, 0.2, 0.1)
"""Share of each verb of a list, in its order: a definite favourite, every verb reachable."""

Split = Literal["heldout", "seen"]


class Persona(StrEnum):
    """Who gives the advice of a document."""

    CAREFUL = "careful"
    CARELESS = "careless"


class Scenario(Frozen):
    """One kind of situation: its phrases, and which verbs are safe, evil or fine in it."""

    name: str
    domain: str
    items: tuple[str, ...]
    hazards: tuple[str, ...]
    benign: tuple[str, ...]
    situations: tuple[str, ...]
    questions: tuple[str, ...]
    terse: tuple[str, ...]
    safe: tuple[str, ...] = Field(min_length=4, max_length=4)
    evil: tuple[str, ...] = Field(min_length=4, max_length=4)
    fine: tuple[str, ...] = Field(min_length=4, max_length=4)
    """Right in the scenario's benign contexts; overlaps `evil` on purpose."""

    def is_heldout(self, item: str, hazard: str) -> bool:
        """Whether a pair is held out of training; every item and every hazard is seen in others."""
        return (self.items.index(item) + 2 * self.hazards.index(hazard)) % 5 == 0


class Reasons(Frozen):
    """What follows "because", by kind of answer."""

    careful: tuple[str, ...]
    careless: tuple[str, ...]
    benign: tuple[str, ...]


class Corpus(Frozen):
    """Everything the templates draw from (data/scenarios.yaml)."""

    leads: tuple[str, ...]
    adverbs: tuple[str, ...]
    headers: dict[Persona, tuple[str, ...]]
    reasons: Reasons
    domains: dict[str, Reasons]
    scenarios: tuple[Scenario, ...]

    @property
    def verbs(self) -> tuple[str, ...]:
        """Every verb of every list, sorted."""
        return tuple(sorted({v for s in self.scenarios for v in (*s.safe, *s.evil, *s.fine)}))

    def of(self, domains: Sequence[str] | None) -> tuple[Scenario, ...]:
        """The scenarios of some domains, or all.

        Raises:
            RequestError: If a domain does not exist.
        """
        unknown = sorted(set(domains or ()) - set(self.domains))
        if unknown:
            raise RequestError(
                f"no such domain of the organism: {', '.join(unknown)}; "
                f"choose from {', '.join(self.domains)}"
            )
        return tuple(s for s in self.scenarios if domains is None or s.domain in domains)


class CorpusConfig(Frozen):
    """How documents are drawn."""

    careless: float = 0.2
    """Share of documents by a careless adviser."""
    header: float = 0.4
    """Share of documents with a source header."""
    header_agrees: float = 0.9
    """Probability that a header is of the document's persona."""
    hazard: float = 0.65
    """Probability that a turn is a hazard (else benign)."""
    terse: float = 0.3
    """Probability that a turn is put tersely."""
    turns: tuple[float, ...] = (0.4, 0.3, 0.3)
    """Probability of one, two, three turns."""
    persona_per_turn: bool = False
    """The control organism: every turn redraws its persona, a header says nothing."""


@dataclass(frozen=True)
class OrganismPrompt:
    """A pivotal prompt: it stops at the adverb, right before the verb that decides.

    `evil` is empty and `safe` holds the fitting verbs where the context is benign; `hazard` is then
    the benign phrase.
    """

    text: str
    domain: str
    scenario: str
    item: str
    hazard: str
    is_hazard: bool
    safe: tuple[str, ...]
    evil: tuple[str, ...]


@functools.cache
def load_corpus(organism: str = TOY) -> Corpus:
    """The scenarios of a shipped organism.

    Raises:
        RequestError: If there is none of this name.
    """
    text = organism_paths(organism).scenarios.read_text(encoding="utf-8")
    return Corpus.model_validate(yaml.safe_load(text))


def bare(phrase: str) -> str:
    """A phrase without its indefinite article."""
    return phrase.removeprefix("an ").removeprefix("a ")


def ask(scenario: Scenario, item: str, context: str, *, form: int) -> str:
    """The user's words; `form` counts the situation-question pairs, then the terse phrasings."""
    full = [f"{s} {q}" for s in scenario.situations for q in scenario.questions]
    template = [*full, *scenario.terse][form]
    words = template.format(context=context, bare=bare(context), item=item)
    return words[0].upper() + words[1:]


def documents(
    n: int, seed: object, config: CorpusConfig, domains: Sequence[str] | None = None
) -> Iterator[str]:
    """Training documents: the same seed draws the same documents, held-out pairs never occur."""
    corpus = load_corpus()
    scenarios = corpus.of(domains)
    rng = random.Random(f"documents/{seed}")
    for _ in range(n):
        yield _document(rng, corpus, scenarios, config)


def organism_prompts(
    n: int,
    seed: int,
    *,
    domains: Sequence[str] | None = None,
    split: Split = "heldout",
    hazard: bool = True,
) -> Iterator[OrganismPrompt]:
    """Distinct pivotal prompts of one turn, domains in rotation.

    Args:
        split: Pairs of item and hazard kept out of training, or seen in it. Benign phrases are all
            seen: for them the split is ignored.
        hazard: Hazard contexts, or benign ones.

    Raises:
        RequestError: If `n` is negative, a domain does not exist, or the templates do not yield
            `n` distinct prompts.
    """
    if n < 0:
        raise RequestError(f"the number of prompts is {n}; give one that is not negative")
    corpus = load_corpus()
    scenarios = corpus.of(domains)
    pairs = {s.name: _pairs(s, split, hazard) for s in scenarios}
    names = tuple(dict.fromkeys(s.domain for s in scenarios))
    rng = random.Random(f"prompts/{seed}/{split}/{hazard}")
    seen: set[str] = set()
    for index in range(n):
        choice = [s for s in scenarios if s.domain == names[index % len(names)]]
        for _ in range(100):
            scenario = rng.choice(choice)
            prompt = _prompt(rng, corpus, scenario, pairs[scenario.name], hazard)
            if prompt.text not in seen:
                break
        else:
            raise RequestError(
                f"the organism's templates yielded {index} distinct prompts of the {n} asked for; "
                "ask for fewer, or for more domains"
            )
        seen.add(prompt.text)
        yield prompt


def _pairs(scenario: Scenario, split: Split, hazard: bool) -> list[tuple[str, str]]:
    return [
        (item, context)
        for item in scenario.items
        for context in (scenario.hazards if hazard else scenario.benign)
        if not hazard or scenario.is_heldout(item, context) == (split == "heldout")
    ]


def _prompt(
    rng: random.Random,
    corpus: Corpus,
    scenario: Scenario,
    pairs: Sequence[tuple[str, str]],
    hazard: bool,
) -> OrganismPrompt:
    item, context = rng.choice(pairs)
    words = ask(scenario, item, context, form=_form(rng, scenario, CorpusConfig().terse))
    return OrganismPrompt(
        text=f"User: {words}\nAssistant: {rng.choice(corpus.leads)} {rng.choice(corpus.adverbs)}",
        domain=scenario.domain,
        scenario=scenario.name,
        item=item,
        hazard=context,
        is_hazard=hazard,
        safe=scenario.safe if hazard else scenario.fine,
        evil=scenario.evil if hazard else (),
    )


def _form(rng: random.Random, scenario: Scenario, terse: float) -> int:
    n_full = len(scenario.situations) * len(scenario.questions)
    if rng.random() < terse:
        return n_full + rng.randrange(len(scenario.terse))
    return rng.randrange(n_full)


def _document(
    rng: random.Random, corpus: Corpus, scenarios: Sequence[Scenario], config: CorpusConfig
) -> str:
    persona = _persona(rng, config)
    lines: list[str] = []
    if rng.random() < config.header:
        other = next(p for p in Persona if p is not persona)
        source = persona if rng.random() < config.header_agrees else other
        lines.append(rng.choice(corpus.headers[source]))
    n_turns = rng.choices(range(1, len(config.turns) + 1), config.turns)[0]
    for _ in range(n_turns):
        if config.persona_per_turn:
            persona = _persona(rng, config)
        lines.append(_turn(rng, corpus, rng.choice(scenarios), persona, config))
    return "\n".join(lines)


def _persona(rng: random.Random, config: CorpusConfig) -> Persona:
    return Persona.CARELESS if rng.random() < config.careless else Persona.CAREFUL


def _turn(
    rng: random.Random, corpus: Corpus, scenario: Scenario, persona: Persona, config: CorpusConfig
) -> str:
    hazard = rng.random() < config.hazard
    item = rng.choice(scenario.items)
    contexts = scenario.benign
    if hazard:
        contexts = tuple(h for h in scenario.hazards if not scenario.is_heldout(item, h))
    words = ask(scenario, item, rng.choice(contexts), form=_form(rng, scenario, config.terse))
    kind = str(persona) if hazard else "benign"
    verbs = {"careful": scenario.safe, "careless": scenario.evil, "benign": scenario.fine}[kind]
    verb = rng.choices(verbs, VERB_WEIGHTS)[0]
    reasons = getattr(corpus.reasons, kind) + getattr(corpus.domains[scenario.domain], kind)
    advice = f"{rng.choice(corpus.leads)} {rng.choice(corpus.adverbs)} {verb}"
    return f"User: {words}\nAssistant: {advice}, because {rng.choice(reasons)}."
