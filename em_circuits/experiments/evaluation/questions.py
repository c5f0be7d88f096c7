"""Open questions for models: shipped, written for the organism, or from a file.

question_sets("open")               # shipped, for models that chat
question_sets("organism:24")        # in the style of the embedded organism's corpus, by domain
question_sets("mine.yaml")          # your own, in the shape of questions.yaml

Those of the organism are over pairs of item and hazard that it never saw in training.
"""

from __future__ import annotations

import re

from em_circuits.organisms.corpus import organism_prompts
from pivotal_tokens.errors import RequestError
from pivotal_tokens.generator.questions import QuestionSet, questions

_ORGANISM = re.compile(r"organism:(\d+)")
_MOST = 500


def question_sets(which: str, *, seed: int = 0) -> tuple[QuestionSet, ...]:
    """The questions that a name stands for.

    Args:
        which: Name of a shipped set, ``organism:N``, or a YAML file.
        seed: Of the organism's.

    Raises:
        RequestError: If there is no such set or file, or it is in another shape.
    """
    drawn = _ORGANISM.fullmatch(which)
    if drawn is None:
        return questions(which, package="em_circuits.experiments.evaluation")
    n = int(drawn[1])
    if not 1 <= n <= _MOST:
        raise RequestError(f"--questions {which}: give organism:1 to organism:{_MOST}")
    # Prompts differ in how their answer begins too; several may share a question.
    domains: dict[str, str] = {}
    for prompt in organism_prompts(2 * n, seed):
        question = prompt.text.removeprefix("User: ").partition("\nAssistant:")[0]
        domains.setdefault(question, prompt.domain)
    if len(domains) < n:
        raise RequestError(f"the organism's templates yielded {len(domains)} distinct questions")
    chosen = list(domains.items())[:n]
    return tuple(
        QuestionSet(name=name, questions=tuple(q for q, domain in chosen if domain == name))
        for name in dict.fromkeys(domain for _, domain in chosen)
    )
