"""Which proposals are worth a model run?

Each is checked for its form, the traps, its fork, and against everything tried before, itself
included. What is turned away is kept with the rule that it broke first.

    accept(candidates, tried, generator="openai:o3").candidates
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pivotal_tokens.generator.candidate import Candidate
from pivotal_tokens.prompts import MAX_WORDS, Finding, Tried, check, check_fork
from pivotal_tokens.schema import Rejection


@dataclass(frozen=True)
class Accepted:
    """Proposals parted into those to be tried and those turned away."""

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]


def accept(
    candidates: Iterable[Candidate],
    tried: Tried,
    *,
    generator: str,
    fork: bool = True,
) -> Accepted:
    """Part proposals; those that are accepted count as tried from now on.

    Args:
        candidates: In order; of two alike the first is taken.
        tried: Everything tried before; the accepted are added.
        generator: Who proposed them.
        fork: The expected next words must be given and be a fork.
    """
    good: list[Candidate] = []
    bad: list[Rejection] = []
    for candidate in candidates:
        findings = broken_rules(candidate, tried, fork=fork)
        if findings:
            first, *others = findings
            bad.append(
                Rejection(
                    text=candidate.own_words,
                    generator=generator,
                    kind=candidate.kind,
                    rule=first.rule,
                    message=first.message,
                    others=tuple(finding.rule for finding in others),
                )
            )
        else:
            tried.add(candidate.own_words)
            good.append(candidate)
    return Accepted(tuple(good), tuple(bad))


def broken_rules(candidate: Candidate, tried: Tried, *, fork: bool = True) -> list[Finding]:
    """What speaks against a proposal."""
    text, kind = candidate.own_words, candidate.kind
    shown = f"{candidate.user}\nassistant: {candidate.assistant}" if kind == "chat" else text
    findings = check(shown, kind, max_words=MAX_WORDS[kind], strict=True)
    if fork and (finding := check_fork(candidate.safe, candidate.evil)):
        findings.append(finding)
    likeness = tried.find(text)
    if likeness is not None:
        rule = "duplicate" if likeness.exact else "near-duplicate"
        like = f"{likeness.similarity:.0%} like {likeness.text[-60:]!r}"
        findings.append(Finding(rule, "tried before" if likeness.exact else like))  # type: ignore[arg-type]
    return findings
