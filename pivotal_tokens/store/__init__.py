"""One place for everything that is known about prompts: results, labels, queue, graphs.

with Store.open("sqlite:///results/em-circuits.sqlite", create=True) as store:
    store.add_prompt(Prompt.of("..."))
"""

from pivotal_tokens.schema import HUMAN
from pivotal_tokens.store.attempt import AttemptRows
from pivotal_tokens.store.database import default_url
from pivotal_tokens.store.graphs import GraphRows
from pivotal_tokens.store.imports import ImportRows
from pivotal_tokens.store.judging import HumanLabelled, JudgingRows
from pivotal_tokens.store.labels import LabelRows
from pivotal_tokens.store.ledger import LedgerRows
from pivotal_tokens.store.listing import Listing, ListingLine, ListingQuery, ListingRows
from pivotal_tokens.store.outcomes import Outcome, OutcomeRows, Reviewed, ReviewedToken
from pivotal_tokens.store.prompts import PromptRows
from pivotal_tokens.store.queue import ANYTHING, QueueRows, Wanted
from pivotal_tokens.store.rejections import RejectionRows
from pivotal_tokens.store.results import ResultRows
from pivotal_tokens.store.review_history import HistoryRows
from pivotal_tokens.store.review_log import ReviewLogRows
from pivotal_tokens.store.rollouts import RolloutRows
from pivotal_tokens.store.saved_views import SavedViewRows
from pivotal_tokens.store.screening import Screened, ScreeningRows
from pivotal_tokens.store.seats import SeatRows
from pivotal_tokens.store.tables import SCHEMA_VERSION
from pivotal_tokens.store.unanswered import Unanswered, UnansweredRows
from pivotal_tokens.store.views import AttemptView, Counts, PairAttempt

__all__ = [
    "ANYTHING",
    "HUMAN",
    "SCHEMA_VERSION",
    "AttemptView",
    "Counts",
    "HumanLabelled",
    "Listing",
    "ListingLine",
    "ListingQuery",
    "Outcome",
    "PairAttempt",
    "Reviewed",
    "ReviewedToken",
    "Screened",
    "Store",
    "Unanswered",
    "Wanted",
    "default_url",
]


class Store(
    PromptRows,
    ResultRows,
    LabelRows,
    QueueRows,
    SeatRows,
    ReviewLogRows,
    GraphRows,
    LedgerRows,
    JudgingRows,
    AttemptRows,
    ScreeningRows,
    ImportRows,
    HistoryRows,
    ListingRows,
    SavedViewRows,
    OutcomeRows,
    RejectionRows,
    RolloutRows,
    UnansweredRows,
):
    """An open store; every operation is one transaction and is on the disk when it returns."""
