"""How a person browses: blind to what judges say of prompts that wait for them, or not.

The choice and the prompts whose judge's labels they have been shown are kept in the store, under
their name, so that a later label of theirs says that it was given after the judge's.

    how = Browsing.of(store, "ada")
    how.seeing(store, "ada", {"964a7382b6b7"})
"""

from __future__ import annotations

from collections.abc import Collection

from pivotal_tokens.schema import Frozen
from pivotal_tokens.store import Store

SUBJECT = "browsing"


class Browsing(Frozen):
    """One person's choice, and what they have seen."""

    unblinded: bool | None = None
    """None: they have not chosen."""
    seen: frozenset[str] = frozenset()
    """Prompt ids whose judge's labels they were shown."""

    @classmethod
    def of(cls, store: Store, person: str) -> Browsing:
        """How a person browses."""
        return cls.model_validate(store.views.get(person, SUBJECT) or {})

    def choosing(self, store: Store, person: str, *, unblinded: bool) -> Browsing:
        """The same with another choice, kept."""
        return self._kept(store, person, self.model_copy(update={"unblinded": unblinded}))

    def seeing(self, store: Store, person: str, prompts: Collection[str]) -> Browsing:
        """The same after they were shown the judge's labels of some prompts, kept where new."""
        if self.seen.issuperset(prompts):
            return self
        seen = self.model_copy(update={"seen": self.seen | frozenset(prompts)})
        return self._kept(store, person, seen)

    def _kept(self, store: Store, person: str, new: Browsing) -> Browsing:
        record = {"unblinded": new.unblinded, "seen": sorted(new.seen)}
        store.views.save(person, SUBJECT, record)
        return new
