"""Settings of the viewer: address, allowed hosts, limits."""

from __future__ import annotations

from pydantic import Field

from pivotal_tokens.schema import Frozen

DEFAULT_PORT = 8765
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


class ViewerSettings(Frozen):
    """What is decided when the server starts."""

    host: str = "127.0.0.1"
    """Address that is listened on."""
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """Port that is asked for; 0 for any free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names a browser may use in the Host header, beside the local ones and `host`."""
    read_only: bool = False
    """Refuse everything that is not GET: for showing to others."""
    max_body: int = Field(default=256 << 10, gt=0)
    """Bytes a request may send."""
    lease_seconds: float = Field(default=1800.0, gt=0)
    """How long an item of the review queue stays with a silent browser."""
    review_keys: tuple[str, ...] = ()
    """``ACTION=KEY`` each: other keys of the review page, as `pivotal_tokens.review.keys` binds."""
    neuronpedia: str | None = None
    """``MODEL/SOURCE`` of the transcoders on Neuronpedia, with ``{layer}`` in it."""
    max_nodes: int = Field(default=2000, gt=0)
    """Nodes of one graph that are sent to a browser, at most."""
    max_edges: int = Field(default=40_000, gt=0)
    """Edges of one graph that are sent to a browser, at most."""

    @property
    def names(self) -> frozenset[str]:
        """Every host name this server answers to, in lower case."""
        bound = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        return frozenset(n.lower().strip("[]") for n in (*LOCAL_NAMES, *bound, *self.allowed_hosts))
