"""Split of a full edge over what carries it: residual stream, heads, MLP remainders, norms.

In the held network (`em_circuits.graphs.held`) the carriers of layer l are its attention heads,
whose concatenated outputs are ``z_l``, and its MLP less what held nodes write, ``m_l``. Cut the
network at all of them: the *direct* network, in which the residual stream holds only the source's
own write. The edge from s to t, a derivative, splits by its last carrier,

    A[t, s] = dt/ds direct + sum over l of <dt/dz_l direct, dz_l/ds> + <dt/dm_l direct, dm_l/ds>

that is by whose output the target reads, whatever moved that output; or by its first carrier, that
is by what reads the source's write,

    A[t, s] = dt/ds direct + sum over l of <dt/dz_l, dz_l/ds direct> + <dt/dm_l, dm_l/ds direct>

Both are exact. A head's term splits again by the chain rule over its values (pattern constant), and
its queries and keys (the pattern moves). Direct reading goes through one norm: with its scale held
constant the terms are the parts named here, and what the scale adds to all of them is ``norms``.

    split = split_edge(model, nodes, input_ids, weights, target=212, source=17)
    for carrier, value in split.largest():
        print(carrier, value)                     # head 1.3 value +0.211
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from em_circuits.graphs.held import ROWS, Nodes, _Held
from em_circuits.graphs.layout import NodeKind, NodeLayout
from em_circuits.models import Model
from em_circuits.models.family import Decoder, Norm
from em_circuits.models.neurons import matrix
from em_circuits.models.sites import Site, on_output
from em_circuits.target import Branch, Columns
from pivotal_tokens.errors import RequestError

By = Literal["last", "first"]
Kind = Literal["residual", "head", "mlp", "norms"]
HeadPath = Literal["value", "query", "key"]
PATHS: tuple[HeadPath, ...] = ("value", "query", "key")


@dataclass(frozen=True)
class Carrier:
    """What carries a part of an edge.

    Attributes:
        kind: ``residual`` is the source's write itself, ``mlp`` what held nodes leave of an MLP,
            ``norms`` the scale of the norm through which residual stream is read.
        layer: Of a head or an MLP.
        head: Within the layer.
        path: Of a head: its values, or the queries or keys of its attention pattern.
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None
    path: HeadPath | None = None

    def __str__(self) -> str:
        if self.kind == "head":
            return f"head {self.layer}.{self.head} {self.path}"
        return self.kind if self.layer is None else f"{self.kind} {self.layer}"


@dataclass(frozen=True, eq=False)
class EdgeSplit:
    """Parts of the edges into one target; positive raises the target.

    Attributes:
        carriers: Of each part.
        values: A column per source, which sums to the edge.
        edge: The edges themselves, from a backward pass of their own.
    """

    carriers: tuple[Carrier, ...]
    values: Float[Tensor, "carrier column"]
    edge: Float[Tensor, " column"]

    def largest(self, column: int = 0) -> list[tuple[Carrier, float]]:
        """A column's parts that are not 0, the largest by magnitude first."""
        values = self.values[:, column]
        order = values.abs().argsort(descending=True, stable=True).tolist()
        return [(self.carriers[i], float(values[i])) for i in order if values[i] != 0]

    def of(self, kind: Kind, layer: int | None = None, head: int | None = None) -> Tensor:
        """Sum of the parts of a kind, layer and head, by column; None is any."""
        wanted = [
            c.kind == kind and layer in (None, c.layer) and head in (None, c.head)
            for c in self.carriers
        ]
        return self.values[torch.tensor(wanted)].sum(0)


def split_edge(
    model: Model,
    nodes: Nodes,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    *,
    target: int,
    source: int,
    by: By = "last",
) -> EdgeSplit:
    """The split of one edge, in a few passes however many heads there are.

    Args:
        model: The real model is differentiated, with eager attention.
        nodes: Held at their values.
        input_ids: The prompt that they were captured on.
        targets: Terms, or weights ``w[t, v]`` of the logits at the last position.
        target: Row of the edge as in `full_edges`: nodes, then targets.
        source: Its column: nodes, then tokens.
        by: Its carrier nearest to the target, or to the source.

    Raises:
        RequestError: If the architecture's attention has other parts than it can split.
    """
    return _split(model, nodes, input_ids, targets, target, source, by)


def split_row(
    model: Model,
    nodes: Nodes,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    *,
    target: int,
    by: By = "last",
) -> EdgeSplit:
    """The splits of all edges into one target, a backward pass per carrier; see `split_edge`."""
    return _split(model, nodes, input_ids, targets, target, None, by)


@torch.no_grad()
def measured_from(
    model: Model,
    nodes: Nodes,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    *,
    source: int,
) -> Float[Tensor, " row"]:
    """One node's column of `measured_edges`: it is removed, all the others are held."""
    amounts = nodes.activation.repeat(2, 1)
    amounts[1, source] = 0
    layout = nodes.layout(len(input_ids), len(targets))
    values = torch.zeros(layout.n_rows)
    for branch in Branch.of(targets):
        with _Held(model, nodes, input_ids, branch, amounts=amounts) as held:
            outputs = held.run()
        values[layout.logit_rows] += (outputs[0] - outputs[1]).float().cpu()
        for i, live in held.live.items() if not branch.forced else ():
            values[nodes.of_part(i)] = (live[0] - live[1]).float().cpu()
    return values


def _split(
    model: Model,
    nodes: Nodes,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    target: int,
    source: int | None,
    by: By,
) -> EdgeSplit:
    decoder = _decoder(model)
    prompt_alone, *others = Branch.of(targets)
    column = _target_of(nodes.layout(len(input_ids), len(targets)), target)
    read_on = (one for one in others if column in one.columns)
    branch = next(read_on, prompt_alone)
    with torch.enable_grad():

        def run(cut: bool = False, constant_norms: bool = False) -> _Pass:
            made = _Pass(
                model, nodes, input_ids, branch, decoder, cut=cut, constant_norms=constant_norms
            )
            with made:
                return made.run(target)

        held, direct, constant = run(), run(cut=True), run(cut=True, constant_norms=True)
        # Cotangents of the carriers from one network, how the carriers move from the other.
        if by == "last":
            moving = (held, held)
            gradients = (constant.gradients(constant.cuts), direct.gradients(direct.cuts))
        else:
            moving = (constant, direct)
            whole = held.gradients(held.outputs)
            gradients = (whole, whole)
        carriers, terms = moving[0].terms(gradients[0])
        parts = moving[0].pulled(terms, source)
        straight = constant.pulled(constant.target[None], source)
        # The same sum with the norms' scale live: what it is more is their share.
        live = moving[1].pulled(moving[1].whole(gradients[1])[None], source)
        live = live + direct.pulled(direct.target[None], source)
        norms = live - straight - parts.sum(0, keepdim=True)
        edge = held.pulled(held.target[None], source)[0]
    values = torch.cat([straight, parts, norms]).float()
    return EdgeSplit((Carrier("residual"), *carriers, Carrier("norms")), values, edge)


def _target_of(layout: NodeLayout, row: int) -> int | None:
    """Which target a row is of; None for a node's."""
    node = int(layout.nodes_of(torch.tensor([row])))
    return layout.target_of(node) if layout.kind(node) is NodeKind.LOGIT else None


def _decoder(model: Model) -> Decoder:
    """The model's decoder, if its attention is made of the parts that edges split over.

    Raises:
        RequestError: If it is not.
    """
    decoder = model.decoder
    names, width = decoder.family.queries, decoder.n_heads * decoder.d_head
    for layer in decoder.layers:
        maps = [getattr(layer.attention, name, None) for name in names]
        if any(one is None for one in maps) or (
            len(maps) == 3 and width != matrix(maps[0]).shape[0]  # type: ignore[arg-type]
        ):
            raise RequestError(
                f"{decoder.name}: edges split only where attention has {', '.join(names)}, "
                "and queries as wide as its heads"
            )
    return decoder


@dataclass
class _Pass:
    """One forward pass of the held network whose carriers are captured.

    Attributes:
        cut: Each carrier's output is replaced by a constant: the direct network.
        constant_norms: Norms that read the residual stream keep their scale.
    """

    model: Model
    nodes: Nodes
    input_ids: Int[Tensor, " pos"]
    branch: Branch
    decoder: Decoder
    cut: bool = False
    constant_norms: bool = False
    reads: list[dict[str, Tensor]] = field(default_factory=list)
    """By layer: outputs of the maps to queries, keys and values, which one may give together."""
    moving: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """("z" or "m", layer) -> the carrier's output, without what nodes write beside it."""
    outputs: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """The same, as the network goes on with it."""
    cuts: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """The constants that replace them."""

    def __enter__(self) -> _Pass:
        self._stack = contextlib.ExitStack()
        self._held = self._stack.enter_context(
            _Held(self.model, self.nodes, self.input_ids, self.branch)
        )
        layers, final = self.decoder.layers, self.decoder.final_norm
        self.reads = [{} for _ in layers]
        if self.constant_norms:
            for norm in (*(n for x in layers for n in (x.attention_norm, x.mlp_norm)), final):
                # before the held nodes read its output
                hook = partial(_constant_scale, norm)
                self._on(norm.module.register_forward_hook(hook, prepend=True))
        for i, layer in enumerate(layers):
            for name in self.decoder.family.queries:  # after the held nodes wrote into its output

                def keep(_m: Any, _a: Any, output: Tensor, i: int = i, name: str = name) -> None:
                    self.reads[i][name] = output

                self._on(getattr(layer.attention, name).register_forward_hook(keep))
            self._on(
                layer.output.register_forward_pre_hook(
                    lambda _m, args, i=i: self._heads(i, *args), prepend=True
                )
            )
            self._on(on_output(layer.writer, partial(self._mlp, i)))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self, target: int) -> _Pass:
        """Run it; `target` is then the live value of the row that is meant."""
        outputs, nodes = self._held.run()[0], self.nodes
        column = _target_of(self._layout, target)
        if column is not None:
            self.target = outputs[column]
        else:
            part = int(nodes.part[target])
            self.target = self._held.live[part][target - nodes.of_part(part).start]
        return self

    @property
    def _layout(self) -> NodeLayout:
        return self.nodes.layout(len(self.input_ids), self.branch.n_columns)

    def gradients(self, at: dict[tuple[str, int], Tensor]) -> dict[tuple[str, int], Tensor]:
        """Gradients of the target with respect to carriers' outputs; none where it is 0."""
        at = {key: tensor for key, tensor in at.items() if tensor.requires_grad}
        if not self.target.requires_grad or not at:
            return {}
        found = torch.autograd.grad(
            self.target, list(at.values()), retain_graph=True, allow_unused=True
        )
        return {
            key: gradient.detach()
            for key, gradient in zip(at, found, strict=True)
            if gradient is not None and bool(gradient.any())
        }

    def whole(self, gradients: dict[tuple[str, int], Tensor]) -> Tensor:
        """``sum <gradient, carrier>``, whose derivative is that of all carriers together."""
        terms = [(g * self.moving[key]).sum().float() for key, g in gradients.items()]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self.model.device)

    def terms(
        self, gradients: dict[tuple[str, int], Tensor]
    ) -> tuple[list[Carrier], Float[Tensor, " carrier"]]:
        """The same carrier by carrier, heads by path: scalars with the derivatives of the parts."""
        carriers: list[Carrier] = []
        terms: list[Tensor] = []
        for (kind, i), gradient in gradients.items():
            if kind == "m":
                carriers.append(Carrier("mlp", i))
                terms.append((gradient * self.moving["m", i]).sum().float())
                continue
            of_paths = self._paths(i, gradient)
            for head in range(self.decoder.n_heads):
                carriers += [Carrier("head", i, head, path) for path in PATHS]
                terms += [of_path[head] for of_path in of_paths]
        device = self.model.device
        return carriers, torch.stack(terms) if terms else torch.zeros(0, device=device)

    def pulled(
        self, outputs: Float[Tensor, " output"], source: int | None
    ) -> Float[Tensor, "output column"]:
        """Derivatives of scalars along one source, or along every one; float64."""
        if source is not None:
            return self._along(outputs, source)[:, None].double().cpu()
        n = len(outputs)
        rows = [torch.zeros(0, self._layout.n_sources)]
        eye = torch.eye(n, device=outputs.device, dtype=outputs.dtype)
        rows += [self._held.pulled_back(outputs, some) for some in eye.split(ROWS)]
        return torch.cat(rows).double()

    def _along(self, outputs: Float[Tensor, " output"], source: int) -> Float[Tensor, " output"]:
        """The derivative of a derivative: d/dc of <d (c . outputs) / d source, direction>."""
        nothing = torch.zeros_like(outputs)
        if not len(outputs) or not outputs.requires_grad:
            return nothing
        leaves, directions = self._directions(source)
        weights = torch.zeros_like(outputs, requires_grad=True)
        gradients = torch.autograd.grad(
            outputs, leaves, weights, create_graph=True, allow_unused=True
        )
        along = [
            (gradient[0] * direction).sum()
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not along:
            return nothing
        (found,) = torch.autograd.grad(
            torch.stack(along).sum(), weights, retain_graph=True, allow_unused=True
        )
        return nothing if found is None else found

    def _directions(self, source: int) -> tuple[list[Tensor], list[Tensor]]:
        """Where a source is written, and what: leaves of the graph and (position x d) tensors."""
        nodes, layout = self.nodes, self._layout
        embedding = self._held.embedding
        assert embedding is not None
        if layout.kind(source) is NodeKind.TOKEN:
            direction, at = torch.zeros_like(embedding[0]), layout.position_of(source)
            direction[at] = embedding.detach()[0, at]
            return [embedding], [direction]
        part, position = int(nodes.part[source]), int(nodes.position[source])
        leaves, directions = [], []
        for i, k, nudge in self._held.nudges:
            if i == part:
                direction = torch.zeros_like(nudge[0])
                ids = nodes.id[source : source + 1].to(direction.device)
                written = nodes.parts[i].written(ids, k)[0].to(direction)
                direction[position] = nodes.activation[source].to(direction) * written
                leaves.append(nudge)
                directions.append(direction)
        return leaves, directions

    def _paths(self, i: int, gradient: Float[Tensor, "1 pos d"]) -> list[Float[Tensor, " head"]]:
        """Of one layer's heads: the terms of values, queries and keys.

        The gradient with respect to the concatenated heads, one head's share at a time, is taken
        back through the attention alone; keys and values that heads share are thereby separate.
        """
        n = self.decoder.n_heads
        d = gradient.shape[-1] // n
        of_head = torch.eye(n, device=gradient.device, dtype=gradient.dtype)
        of_head = of_head.repeat_interleave(d, 1)[:, None, None]
        inputs = [self.reads[i][name] for name in self.decoder.family.queries]
        if not self.moving["z", i].requires_grad:
            return [torch.zeros(n, device=gradient.device) for _ in PATHS]
        back = torch.autograd.grad(
            self.moving["z", i],
            inputs,
            gradient[None] * of_head,
            is_grads_batched=True,
            retain_graph=True,
        )
        products = [(g.detach() * x) for g, x in zip(back, inputs, strict=True)]
        if len(products) == 1:
            products = list(products[0].chunk(3, -1))
        queries, keys, values = (product.sum((1, 2, 3)).float() for product in products)
        return [values, queries, keys]

    def _heads(self, i: int, z: Tensor) -> tuple[Tensor] | None:
        self.moving["z", i] = self.outputs["z", i] = z
        if not self.cut:
            return None
        self.cuts["z", i] = z.detach().requires_grad_()
        return (self.cuts["z", i],)

    def _mlp(self, i: int, output: Tensor) -> Tensor | None:
        layer, written = self.decoder.layers[i], torch.zeros_like(output)
        # A down_proj's output is what its MLP adds, where no norm stands behind that.
        inner = None
        if layer.behind_mlp is None:
            inner = getattr(layer.mlp, self.decoder.family.down, None)
        for part, k, nudge in self._held.nudges:
            site: Site = self.nodes.parts[part].writes[k]
            if site.module in (layer.writer, inner) and site.side == "output":
                written = written + nudge
        self.moving["m", i], self.outputs["m", i] = output - written, output
        if not self.cut:
            return None
        self.cuts["m", i] = output.detach().clone().requires_grad_()
        return self.cuts["m", i] + written

    def _on(self, handle: Any) -> None:
        self._stack.callback(handle.remove)


def _constant_scale(norm: Norm, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """The output of a norm as a linear map of its input: its scale is a constant.

    Raises:
        RequestError: If the norm is of another form than is known.
    """
    x = args[0]
    if not norm.fits(x.detach(), output.detach()):
        raise RequestError(f"{type(module).__name__} is not of a form that edges split over")
    return norm.apply(x, norm.scale(x.detach()))
