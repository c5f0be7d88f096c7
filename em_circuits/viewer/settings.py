"""Settings of the viewer: address, allowed hosts, limits."""

from __future__ import annotations

from pydantic import Field

from pivotal_tokens.schema import Frozen

DEFAULT_PORT = 8765
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


class ViewerSettings(Frozen, use_attribute_docstrings=True):
    """What is decided when the server starts."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """Where the default is taken, a free one is; 0 for any free one."""
    allowed_hosts: tuple[str, ...] = ()
    """A further name that browsers may call this server by."""
    read_only: bool = False
    """Nothing can be changed: for showing to others."""
    max_body: int = Field(default=256 << 10, gt=0)
    """Bytes a request may send."""
    lease_seconds: float = Field(default=1800.0, gt=0)
    """Seconds an item stays taken."""
    review_keys: tuple[str, ...] = ()
    """Bind another key of the review page, as in review --key."""
    neuronpedia: str | None = None
    """Links features there, as in gemma-2-2b/{layer}-gemmascope-transcoder-16k."""
    max_nodes: int = Field(default=2000, gt=0)
    """Nodes of one graph that are sent to a browser, at most."""
    max_edges: int = Field(default=40_000, gt=0)
    """Edges of one graph that are sent to a browser, at most."""

    @property
    def names(self) -> frozenset[str]:
        """Every host name this server answers to, in lower case."""
        bound = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        return frozenset(n.lower().strip("[]") for n in (*LOCAL_NAMES, *bound, *self.allowed_hosts))
