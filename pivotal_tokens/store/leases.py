"""Is the lease under which somebody writes still theirs?

Each claim of a queue item raises its fence. A reviewer who was away past the lease, and whose item
another one has claimed since, comes back with an older fence and is refused. An expired lease that
nobody claimed is still good: nobody else can have answered.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from pivotal_tokens.errors import LeaseLost
from pivotal_tokens.schema import ReviewItem
from pivotal_tokens.store import tables


def require_lease(connection: Connection, item: ReviewItem, fence: int | None = None) -> str:
    """Refuse unless the item is leased under this fence (default: the item's own).

    The row stays locked until the transaction ends: nobody can claim it meanwhile.

    Returns:
        Who holds it.

    Raises:
        LeaseLost: If it is not.
    """
    columns = tables.queue.c
    row = connection.execute(
        select(columns.state, columns.fence, columns.reviewer)
        .where(columns.item_id == item.item_id)
        .with_for_update()
    ).one_or_none()
    if (
        row is None
        or row.state != "leased"
        or row.fence != (item.fence if fence is None else fence)
    ):
        holder = f" (now {row.state}, {row.reviewer})" if row is not None else ""
        raise LeaseLost(
            f"your lease on prompt {item.prompt_id} ended and the item went on{holder}: "
            "your last answer was not saved; go on with the next item"
        )
    return str(row.reviewer)
