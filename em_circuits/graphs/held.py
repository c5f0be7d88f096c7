"""The real network with chosen nodes held at their values: full and measured edges.

Choose any set S of nodes. At every write site of a node s, with ``live_s(x)`` its activation as the
network computes it and ``a_s`` the value it has on the undisturbed prompt,

    output' = output + sum over S of w_s (a_s - live_s(x))

equals the output at the undisturbed point, but a node of S no longer responds to what reaches it:
norms, attention patterns, errors, everything that is no node of S still does. One backward pass
from a node's own ``live_t`` then gives a row of **full edges**

    A[t, s] = a_s w_s . d live_t / d output'(site of s)

For every S, truncated or not, the chain rule makes the sum over all paths (`total_effect`) the
first-order effect in the real model, ``a_s w_s . dz / d output``, which is the `gradient` score.

**Measured edges** put one node's held value to 0 for real, in one forward pass a node:

    M[t, s] = a_t - activation_t(all of S held, s at 0)

so every column is a batch row, and each edge the true effect of s on t with all else of S held.

A target is any term of `em_circuits.target`. One that forces tokens after the prompt is a pass of
its own over the longer sequence, with the same nodes held: they stand at the prompt's positions,
where attention is causal and the activations are those of the prompt alone. Forced tokens have no
columns. (Nodes at an answer's positions: give the prompt with its answer, and a span as target.)

    nodes = choose_nodes(model, parts, input_ids, weights, n=300)
    edges = full_edges(model, nodes, input_ids, target.terms)
    edges.values[target, source]            # rows: nodes, then targets; columns: nodes, then tokens
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor

from em_circuits.bases.part import Part
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.gradient import gradients_at
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.row_cache import RowCache
from em_circuits.models import Model
from em_circuits.models.memory import BatchSize
from em_circuits.models.sites import Site, on_site
from em_circuits.progress import Progress, no_progress
from em_circuits.target import Branch, Columns, Reading
from pivotal_tokens.errors import RequestError

ROWS = 64
"""Default number of rows of one batched pass."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes of one prompt and model, in an order in which edges run from lower to higher index.

    Attributes:
        parts: The parts they belong to, by order.
        part: Index of each node's part, ascending.
        position: Position of each node, ascending within a part.
        id: Its id within the part.
        activation: Undisturbed; never 0.
    """

    parts: tuple[Part, ...]
    part: Int64[Tensor, " node"]
    position: Int64[Tensor, " node"]
    id: Int64[Tensor, " node"]
    activation: Float[Tensor, " node"]

    def __len__(self) -> int:
        return len(self.id)

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        coordinates: Int[Tensor, "node 3"],
        activation: Float[Tensor, " node"],
    ) -> Nodes:
        """Sort nodes, given as (index into `parts`, position, id)."""
        rank = sorted(range(len(parts)), key=lambda i: (parts[i].order, parts[i].basis, i))
        place = torch.tensor([rank.index(i) for i in range(len(parts))], dtype=torch.int64)
        part = place[coordinates[:, 0].long()]
        position, ids = coordinates[:, 1].long(), coordinates[:, 2].long()
        widest = int(ids.max()) + 1 if len(ids) else 1
        n_pos = int(position.max()) + 1 if len(ids) else 1
        order = ((part * n_pos + position) * widest + ids).argsort()
        return cls(
            tuple(parts[i] for i in rank),
            part[order],
            position[order],
            ids[order],
            activation[order],
        )

    def layout(self, n_pos: int, n_targets: int) -> NodeLayout:
        """Which row and column is what, in edges among these nodes, from tokens and to targets."""
        return NodeLayout(len(self), 0, n_pos, n_targets, parts=len(self.parts))

    def of_part(self, index: int) -> slice:
        """The nodes of one part."""
        ends = torch.searchsorted(self.part, torch.tensor([index, index + 1]))
        return slice(*ends.tolist())


@dataclass(frozen=True, eq=False)
class NodeEdges:
    """Edges among nodes, from tokens, and to targets; float32 on the CPU.

    Attributes:
        nodes: What rows and columns are.
        values: Rows: nodes, then targets. Columns: nodes, then token embeddings by position.
        layout: Which rows and columns these are.
    """

    nodes: Nodes
    values: Float[Tensor, "row column"]
    layout: NodeLayout

    @property
    def to_targets(self) -> Float[Tensor, "target column"]:
        """Direct edges to the targets."""
        return self.values[self.layout.logit_rows]

    @property
    def among(self) -> Float[Tensor, "row node"]:
        """Edges from nodes."""
        return self.values[:, self.layout.features]

    @property
    def from_tokens(self) -> Float[Tensor, "row pos"]:
        """Edges from token embeddings; no columns if they were measured."""
        return self.values[:, self.layout.tokens]

    def total_effect(self) -> Float[Tensor, "target column"]:
        """Effect of every node and token on every target, over all paths; float64.

        ``S = w A (I - P)^-1`` with ``P = A[nodes] / a``, by one backward substitution: P is
        strictly lower triangular in the nodes' order.
        """
        nodes, tokens = self.layout.features, self.layout.tokens
        a = self.values.double()
        scaled = a[nodes] / self.nodes.activation.double().cpu()[:, None]
        direct = a[self.layout.logit_rows]
        eye = torch.eye(len(self.nodes), dtype=torch.float64)
        # S (I - P) = direct  <=>  (I - P)^T S^T = direct^T, upper triangular.
        on_nodes = torch.linalg.solve_triangular(
            (eye - scaled[:, nodes]).T, direct[:, nodes].T, upper=True
        ).T
        on_tokens = direct[:, tokens] + on_nodes @ scaled[:, tokens]
        return torch.cat([on_nodes, on_tokens], 1)

    def packed(self) -> Edges:
        """In the form that graphs are stored in; measured edges have no token columns: 0."""
        matrix = torch.zeros(self.layout.n_rows, self.layout.n_sources)
        matrix[:, self.layout.features] = self.among
        if self.from_tokens.shape[1]:
            matrix[:, self.layout.tokens] = self.from_tokens
        return Edges.from_dense(matrix, self.layout, self.nodes.part, self.nodes.position)


@torch.no_grad()
def read_sites(model: Model, sites: Sequence[Site], input_ids: Int[Tensor, " pos"]) -> list[Tensor]:
    """The activation at each site on the undisturbed prompt."""
    found: dict[int, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for i, site in enumerate(sites):

            def keep(x: Tensor, i: int = i) -> None:
                found[i] = x[0].detach()

            stack.enter_context(on_site(site, keep))
        model.hf(
            input_ids=input_ids[None].to(model.device),
            attention_mask=model.decoder.causal_mask(len(input_ids)),
            use_cache=False,
            logits_to_keep=1,
        )
    return [found[i] for i in range(len(sites))]


def captured(model: Model, parts: Sequence[Part], input_ids: Int[Tensor, " pos"]) -> list[Tensor]:
    """What each part reads on the undisturbed prompt."""
    return read_sites(model, [part.read for part in parts], input_ids)


def choose_nodes(
    model: Model,
    parts: Sequence[Part],
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    *,
    n: int | None = 512,
) -> Nodes:
    """The nodes with the largest absolute gradient score, summed over targets.

    Args:
        model: The model that is run.
        parts: Candidates are every active node of these.
        input_ids: One prompt, with its beginning-of-sequence token.
        targets: Terms, or weights ``w[t, v]`` of the logits at the last position.
        n: How many; None takes every active node.

    Raises:
        RequestError: If no node is active.
    """
    reads = captured(model, parts, input_ids)
    gradients = site_gradients(model, parts, input_ids, targets)
    found, amounts, sizes = [], [], []
    for i, (part, x) in enumerate(zip(parts, reads, strict=True)):
        activations = part.activations(x)
        activations = activations.clone()
        activations[: part.first_position] = 0
        scores = part.scores(activations, gradients[i])
        place = activations.nonzero()
        found.append(torch.cat([torch.full_like(place[:, :1], i), place], 1).cpu())
        amounts.append(activations[place[:, 0], place[:, 1]].float().cpu())
        sizes.append(scores[:, place[:, 0], place[:, 1]].abs().sum(0).cpu())
    coordinates, activation = torch.cat(found), torch.cat(amounts)
    if not len(coordinates):
        raise RequestError("no node of this basis is active on the prompt")
    if n is not None and n < len(coordinates):
        best = torch.cat(sizes).topk(n).indices
        coordinates, activation = coordinates[best], activation[best]
    return Nodes.of(parts, coordinates, activation)


def gradient_effects(
    model: Model,
    nodes: Nodes,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
) -> Float[Tensor, "target node"]:
    """First-order effect of every node in the real model, nothing held."""
    gradients = site_gradients(model, nodes.parts, input_ids, targets)
    values = torch.zeros(len(targets), len(nodes))
    for i, part in enumerate(nodes.parts):
        mine = nodes.of_part(i)
        for k, gradient in enumerate(gradients[i]):
            at = gradient[:, nodes.position[mine]]
            vectors = part.written(nodes.id[mine].to(gradient.device), k)
            values[:, mine] += torch.einsum("tnd,nd->tn", at.float(), vectors.float()).cpu()
    return values * nodes.activation


def full_edges(
    model: Model,
    nodes: Nodes,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    *,
    rows: int = ROWS,
    resume: Path | None = None,
    progress: Progress = no_progress,
) -> NodeEdges:
    """Full edges among nodes, from tokens and to targets.

    Args:
        model: The real model is differentiated.
        nodes: Held at their values.
        input_ids: The prompt that they were captured on.
        targets: Terms, or weights ``w[t, v]`` of the logits at the last position.
        rows: Rows of one batched backward pass, at most.
        resume: File of the rows that are done (`row_cache.row_path`, under a key that the targets
            are part of): read if it is there, and appended to.
        progress: Called with the rows done.
    """
    layout = nodes.layout(len(input_ids), len(targets))
    values, every = torch.zeros(layout.n_rows, layout.n_sources), torch.arange(layout.n_rows)
    batches, done = BatchSize(rows), 0
    content = _content(model, nodes, input_ids, len(targets))
    with RowCache(resume, content, layout.n_sources) as cache:
        for branch in Branch.of(targets):
            with torch.enable_grad(), _Held(model, nodes, input_ids, branch) as held:
                read = held.run()[0, list(branch.columns)]
                groups = [(every[layout.logit_rows][list(branch.columns)], read)]
                if not branch.forced:  # nodes have their rows from the prompt alone
                    # From the last layers on: what does not fit is known at once.
                    for i in sorted(held.live, reverse=True):
                        groups.append((every[nodes.of_part(i)], held.live[i]))
                for where, outputs in groups:
                    eye = torch.eye(len(outputs), device=outputs.device, dtype=outputs.dtype)
                    for part, cotangents in zip(where.split(rows), eye.split(rows), strict=True):
                        if not len(part):
                            continue
                        found = cache.get(part)
                        if found is None:
                            pull = partial(held.pulled_back, outputs)
                            found = cache.put(part, _batched(batches, pull, cotangents))
                        values[part] = found
                        done += len(part)
                        progress("full edges", done, len(values))
    return NodeEdges(nodes, values, layout)


@torch.no_grad()
def measured_edges(
    model: Model,
    nodes: Nodes,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    *,
    rows: int = ROWS,
    resume: Path | None = None,
    progress: Progress = no_progress,
) -> NodeEdges:
    """Edges that are real effects: each node removed, all the others held, the rest running free.

    Args:
        model: The real model is run.
        nodes: Held at their values.
        input_ids: The prompt that they were captured on.
        targets: Terms, or weights ``w[t, v]`` of the logits at the last position.
        rows: Rows of one batched forward pass, at most; two are needed.
        resume: See `full_edges`; here of columns.
        progress: Called with the columns done.

    Returns:
        Edges without token columns (an embedding has no value to be removed to).
    """
    layout = nodes.layout(len(input_ids), len(targets))
    values = torch.zeros(layout.n_rows, layout.n_features)
    branches = Branch.of(targets)

    def columns(removed: Int64[Tensor, " removed"]) -> Float[Tensor, "removed row"]:
        # The first row removes nothing: differences are taken within one batch.
        amounts = nodes.activation.repeat(len(removed) + 1, 1)
        amounts[torch.arange(1, len(removed) + 1), removed] = 0
        found = torch.zeros(len(removed), layout.n_rows)
        for branch in branches:
            with _Held(model, nodes, input_ids, branch, amounts=amounts) as held:
                outputs = held.run()
            found[:, layout.logit_rows] += (outputs[:1] - outputs[1:]).float().cpu()
            for i in held.live if not branch.forced else ():
                live = held.live[i]
                found[:, nodes.of_part(i)] = (live[:1] - live[1:]).float().cpu()
        return found

    size = max(rows - 1, 1)
    batches = BatchSize(size)
    content = _content(model, nodes, input_ids, len(targets))
    with RowCache(resume, content, layout.n_rows) as cache:
        for removed in torch.arange(len(nodes)).split(size):
            found = cache.get(removed)
            if found is None:
                found = cache.put(removed, _batched(batches, columns, removed))
            values[:, removed] = found.T
            progress("measured edges", int(removed[-1]) + 1, len(nodes))
    return NodeEdges(nodes, values, layout)


def _batched(
    batches: BatchSize, work: Callable[[Tensor], Tensor], items: Shaped[Tensor, "item ..."]
) -> Float[Tensor, "item value"]:
    """``work(items)``, in as many batches as it takes."""
    found = batches.over(len(items), lambda start, stop: work(items[start:stop]))
    return torch.cat([part for _, part in found])


def _content(model: Model, nodes: Nodes, input_ids: Int[Tensor, " pos"], n_targets: int) -> str:
    """SHA-256 of what decides edges among these nodes, but for the targets."""
    digest = hashlib.sha256()
    for tensor in (nodes.part, nodes.position, nodes.id, nodes.activation.float(), input_ids):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    parts = [(part.basis, part.name) for part in nodes.parts]
    said = (parts, n_targets, model.fingerprint, model.device, model.dtype, torch.__version__)
    digest.update(repr(said).encode())
    return digest.hexdigest()


class _Held:
    """Hooks that hold nodes, and the tensors that edges are read from."""

    def __init__(
        self,
        model: Model,
        nodes: Nodes,
        input_ids: Int[Tensor, " pos"],
        branch: Branch,
        *,
        amounts: Float[Tensor, "row node"] | None = None,
    ) -> None:
        self.model, self.nodes, self.amounts = model, nodes, amounts
        self.prompt, self.branch = input_ids.to(model.device), branch
        self.live: dict[int, Tensor] = {}
        """By part: activations as the network computes them (node, or row x node)."""
        self.nudges: list[tuple[int, int, Tensor]] = []
        """(part, write, zeros added at the site): gradients with respect to a site's output."""
        self._used = [
            i for i in range(len(nodes.parts)) if len(range(*nodes.of_part(i).indices(len(nodes))))
        ]
        self._stack = contextlib.ExitStack()
        self.embedding: Tensor | None = None
        self._reading: Reading

    def __enter__(self) -> _Held:
        by_site: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
        sites: dict[tuple[int, str], Site] = {}
        for i in self._used:
            part = self.nodes.parts[i]
            self._stack.enter_context(on_site(part.read, lambda x, i=i: self._read(i, x)))
            for k, site in enumerate(part.writes):
                key = (id(site.module), site.side)
                by_site[key].append((i, k))
                sites[key] = site
        hf: Any = self.model.hf
        self._reading = self._stack.enter_context(self.branch.reading(hf, self.prompt))
        if self.amounts is None:
            embed = Site(hf.get_input_embeddings(), "output")
            self._stack.enter_context(on_site(embed, self._embed))
        for key, writers in by_site.items():
            self._stack.enter_context(
                on_site(sites[key], lambda x, writers=writers: self._write(writers, x))
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self) -> Float[Tensor, "row target"]:
        """One pass of a row per set of amounts, or of one row; the branch's targets."""
        n_rows = 1 if self.amounts is None else len(self.amounts)
        return self._reading.run(self.model.hf, n_rows)

    def pulled_back(
        self, outputs: Float[Tensor, " output"], cotangents: Float[Tensor, "row output"]
    ) -> Float[Tensor, "row column"]:
        """Rows of edges: derivatives of some outputs with respect to every held node and token."""
        nodes, n_pos = self.nodes, len(self.prompt)
        layout = nodes.layout(n_pos, 0)
        values = torch.zeros(len(cotangents), layout.n_sources)
        assert self.embedding is not None
        leaves = [nudge for _, _, nudge in self.nudges] + [self.embedding]
        if not outputs.requires_grad:  # nothing reaches them: ranks of an embedding's LoRA
            return values
        gradients = torch.autograd.grad(
            outputs,
            leaves,
            cotangents,
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        for (i, k, _), gradient in zip(self.nudges, gradients, strict=False):
            if gradient is None:
                continue
            mine = nodes.of_part(i)
            at = gradient[:, 0, nodes.position[mine].to(gradient.device)]
            vectors = nodes.parts[i].written(nodes.id[mine].to(gradient.device), k)
            values[:, mine] += torch.einsum("rnd,nd->rn", at.float(), vectors.float()).cpu()
        values[:, layout.features] *= nodes.activation
        if gradients[-1] is not None:
            at, token = gradients[-1][:, 0, :n_pos], self.embedding.detach()[0, :n_pos]
            along = torch.einsum("rpd,pd->rp", at.float(), token.float())
            values[:, layout.tokens] = along.cpu()
        return values

    def _embed(self, x: Tensor) -> Tensor:
        self.embedding = x.detach().requires_grad_()
        return self.embedding

    def _read(self, i: int, x: Tensor) -> None:
        mine = self.nodes.of_part(i)
        part = self.nodes.parts[i]
        ids = self.nodes.id[mine].to(x.device)
        at = x[:, self.nodes.position[mine].to(x.device)]
        if self.amounts is None:
            self.live[i] = part.live(at[0], ids)
        else:  # the real activation: gates open and close
            self.live[i] = part.real(at, ids)

    def _write(self, writers: Sequence[tuple[int, int]], output: Tensor) -> Tensor:
        total = output
        for i, k in writers:
            mine = self.nodes.of_part(i)
            part = self.nodes.parts[i]
            live = self.live[i]
            if self.amounts is None:
                # Equal to 0, with the derivative of "the node does not respond".
                change = (live.detach() - live)[None]
                nudge = torch.zeros_like(output, requires_grad=True)
                self.nudges.append((i, k, nudge))
                total = total + nudge
            else:
                change = self.amounts[:, mine].to(live) - live
            vectors = part.written(self.nodes.id[mine].to(output.device), k)
            total = total + _at_positions(
                change.to(vectors)[..., None] * vectors, self.nodes.position[mine], output
            )
        return total


def _at_positions(
    vectors: Float[Tensor, "row op d"], position: Int64[Tensor, " op"], like: Tensor
) -> Tensor:
    """Sum of vectors at their positions."""
    total = torch.zeros(
        (len(vectors), like.shape[1], like.shape[2]), dtype=vectors.dtype, device=like.device
    )
    return total.index_add(1, position.to(like.device), vectors).to(like.dtype)


def site_gradients(
    model: Model,
    parts: Sequence[Part],
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
) -> list[list[Float[Tensor, "target pos d_write"]]]:
    """Gradients of the targets with respect to each part's write sites, nothing held."""
    sites = {(id(site.module), site.side): site for part in parts for site in part.writes}
    found = gradients_at(model, tuple(sites.values()), input_ids, targets)
    at = dict(zip(sites, found, strict=True))
    return [[at[id(site.module), site.side] for site in part.writes] for part in parts]
