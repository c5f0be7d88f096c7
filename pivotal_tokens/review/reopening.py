"""Which finished item is meant by the beginning of an id, and what becomes of the one at hand?

question = reopen(service, "964a", held=question)     # its labels are as they were left
"""

from __future__ import annotations

from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.questions import Question
from pivotal_tokens.review.service import ReviewService

_HISTORY = 1000  # finished items that can be opened again by their id


def reopen(service: ReviewService, prefix: str, *, held: Question | None) -> Question:
    """Open a finished item of this reviewer again; the one at hand goes back with its labels.

    Args:
        service: The reviewer's.
        prefix: Beginning of the id of its prompt.
        held: What the reviewer is at.

    Raises:
        LeaseLost: If somebody is at work on it.
        RequestError: If no item of theirs begins with that, or several do.
    """
    found = [item for item in service.history(_HISTORY) if item.prompt_id.startswith(prefix)]
    if len({item.prompt_id for item in found}) != 1:
        some = "several" if found else "none"
        raise RequestError(f"{some} of your finished items begin with {prefix}")
    question = service.open(found[0].item_id)
    if held is not None:
        service.release(held)
    return question
