"""The store of everything known about prompts: results, labels, queue, graphs, calls.

with Store.open("sqlite:///results/em-circuits.sqlite", create=True) as store:
    store.prompts.add(Prompt.of("..."))
    store.results.put_next_tokens(prompt_id, pair, base, merged)
    item = store.queue.take("ada", 1800)
"""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine

from pivotal_tokens.schema import HUMAN
from pivotal_tokens.store.address import Address
from pivotal_tokens.store.assignments import Assignments
from pivotal_tokens.store.chain import Chains
from pivotal_tokens.store.database import Database, default_url
from pivotal_tokens.store.graphs import Graphs
from pivotal_tokens.store.history import Histories
from pivotal_tokens.store.labels import Labels
from pivotal_tokens.store.ledger import Ledger
from pivotal_tokens.store.prompts import Prompts
from pivotal_tokens.store.queries import (
    AttemptView,
    LabelledPrompt,
    Listing,
    ListingLine,
    ListingQuery,
    PairAttempt,
    PastPrompt,
    Queries,
    StoreCounts,
    Unanswered,
)
from pivotal_tokens.store.queue import ANYTHING, Queue, Wanted
from pivotal_tokens.store.results import Results, Screened
from pivotal_tokens.store.saved_views import SavedViews
from pivotal_tokens.store.tables import SCHEMA_VERSION

__all__ = [
    "ANYTHING",
    "HUMAN",
    "SCHEMA_VERSION",
    "AttemptView",
    "LabelledPrompt",
    "Listing",
    "ListingLine",
    "ListingQuery",
    "PairAttempt",
    "PastPrompt",
    "Screened",
    "Store",
    "StoreCounts",
    "Unanswered",
    "Wanted",
    "default_url",
]


class Store(Database):
    """An open store and its repositories.

    Every operation is one transaction and is on the disk when it returns.
    """

    def __init__(self, engine: Engine, place: Address, clock: Callable[[], datetime]) -> None:
        super().__init__(engine, place, clock)
        self.prompts = Prompts(self)
        self.results = Results(self)
        self.labels = Labels(self)
        self.chains = Chains(self)
        self.queue = Queue(self)
        self.assignments = Assignments(self)
        self.histories = Histories(self)
        self.graphs = Graphs(self)
        self.ledger = Ledger(self)
        self.views = SavedViews(self)
        self.queries = Queries(self)
