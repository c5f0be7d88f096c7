"""Where do the prompts of a run come from?

template_prompts(24, seed=0, domains=None)     # the embedded organism's own templates
"""

from __future__ import annotations

from collections.abc import Sequence

from em_circuits.organisms import organism_prompts
from pivotal_tokens.schema import Prompt

GENERATOR = "template:organism"


def template_prompts(
    n: int, *, seed: int = 0, domains: Sequence[str] | None = None
) -> tuple[Prompt, ...]:
    """Pivotal prompts from the organism's templates, held-out pairs only, domains in rotation.

    Args:
        n: How many.
        seed: The same seed gives the same prompts.
        domains: Restrict to these.

    Raises:
        RequestError: If a domain does not exist, or there are not that many distinct prompts.
    """
    return tuple(
        Prompt.of(
            drawn.text,
            generator=GENERATOR,
            name=drawn.scenario,
            category=drawn.domain,
            extra={"item": drawn.item, "hazard": drawn.hazard, "seed": seed},
        )
        for drawn in organism_prompts(n, seed=seed, domains=domains)
    )
