"""How do two models' attribution contexts of a prompt not take twice the memory?

Both are needed before either is attributed, because the targets come from both models' logits. The
one that waits needs no more than those: its encoder and decoder rows, by far its largest part,
wait in a file, and come back bit for bit.

    parked = park(context, Scratch())
    parked.unpark()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from em_circuits.graphs.scratch import Scratch, Ticket

_PARTS = ("encoder_vecs", "decoder_vecs")
LEAST_BYTES = 1 << 20
"""Smaller ones stay where they are."""


@dataclass(frozen=True)
class Parked:
    """A context without its large parts."""

    context: Any
    scratch: Scratch
    tickets: dict[str, Ticket]

    def unpark(self) -> Any:
        """The context, whole again."""
        for name, ticket in self.tickets.items():
            setattr(self.context, name, self.scratch.get(ticket))
        return self.context


def park(context: Any, scratch: Scratch) -> Parked:
    """Put a context's large parts away, and drop all logits but the last position's."""
    context.logits = context.logits[:, -1:].clone()
    tickets = {}
    for name in _PARTS:
        tensor = getattr(context, name)
        if tensor.numel() * tensor.element_size() >= LEAST_BYTES:
            tickets[name] = scratch.put(tensor)
            setattr(context, name, None)
    return Parked(context, scratch, tickets)
