"""Errors that people see: a wrong request, or work that failed.

Every message is one or two lines: what, where, what to do next. The command line turns a
`RequestError` into exit status 2 and a `WorkFailed` into exit status 1; nothing else is caught.
"""


class EmCircuitsError(Exception):
    """Base of the errors that are shown to a person without a traceback."""


class RequestError(EmCircuitsError):
    """The request cannot be carried out as given; nothing was written."""


class NoStore(RequestError):
    """There is no store where one was meant."""

    def __init__(self, where: object) -> None:
        super().__init__(
            f"no store at {where}: run `em-circuits label` first, or name one with --store"
        )


class WorkFailed(EmCircuitsError):
    """The request was in order, the work was not: what is finished stays, the rest resumes."""


class RunEnds(WorkFailed):
    """What failed would fail for every prompt to come: the budget is spent, the key refused."""


class LeaseLost(WorkFailed):
    """Another reviewer holds the item now; this write was refused as a whole."""
