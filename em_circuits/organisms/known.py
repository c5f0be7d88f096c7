"""Known circuits: small programs whose nodes and edges are known before any weight is made.

A program is a list of neurons and attention heads over named variables. A neuron computes

    a = relu(reads . variables + bias) * (factor . variables)        the factor is 1 as a rule

and writes ``a`` into a variable of its own; a head moves variables between positions, with the
softmax of ``sharpness * sum of query * key``. `Program.run` interprets this in float64, without any
network, and `Program.truth` says what the circuit is: node s has an edge to t where removing s,
every other node held at its value, changes t in the program. `organisms.compiled` makes a Llama of
it; scores of that model are compared with a truth that no weight took part in.

    program = PROGRAMS["xor"]
    program.truth("11").edges            # {((0, 1, 0), (1, 1, 0)), ...}: (layer, position, id)

Each program also has idle neurons, which fire and read but reach no output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

BOS = "<bos>"
YES, NO = "yes", "no"
OUTPUT = "output"
"""Stands for the contrast of yes and no as the target of an edge."""
CONSTANT = "constant"
"""The variable that is 1 everywhere."""
GAIN = 2.0
"""Logits of yes per unit of the output; of no, minus that."""
IDLE = 2
"""Idle neurons of a layer."""
_NOTHING = 1e-5
"""Changes below are no edges: beside a match a hard pattern leaves at most 3e-7."""

Signal = Mapping[str, float]
"""A linear combination of variables."""
KnownNode = tuple[int, int, int]
"""(layer, position, neuron id)."""


@dataclass(frozen=True)
class KnownNeuron:
    """One neuron; `name` is the variable that it writes."""

    name: str
    layer: int
    reads: Signal
    factor: Signal
    idle: bool = False


@dataclass(frozen=True)
class KnownHead:
    """One attention head: what it compares, and what it moves."""

    layer: int
    moves: Mapping[str, str]
    """Variable at the position attended to -> variable at the one that attends."""
    matches: tuple[tuple[Signal, Signal], ...]
    """Query and key, multiplied and summed over the pairs."""
    sharpness: float


@dataclass(frozen=True)
class KnownTruth:
    """The circuit of one prompt.

    Attributes:
        activations: Of every active node.
        edges: (source, target) with a real effect; a target is a node or `OUTPUT`.
        circuit: Nodes with a path of edges to the output.
        contrast: Logit of yes minus that of no.
    """

    activations: Mapping[KnownNode, float]
    edges: frozenset[tuple[KnownNode, KnownNode | str]]
    circuit: frozenset[KnownNode]
    contrast: float


@dataclass(frozen=True)
class Program:
    """A program, its vocabulary and the prompts on which its circuit is scored."""

    name: str
    about: str
    tokens: Mapping[str, Signal]
    """Word -> the variables that its embedding sets."""
    neurons: tuple[KnownNeuron, ...]
    heads: tuple[KnownHead, ...]
    output: Signal
    prompts: tuple[str, ...]

    @cached_property
    def n_layers(self) -> int:
        return 1 + max([n.layer for n in self.neurons] + [h.layer for h in self.heads])

    def layer(self, layer: int) -> tuple[KnownNeuron, ...]:
        """A layer's neurons, by id."""
        return tuple(one for one in self.neurons if one.layer == layer)

    @property
    def exact_transcoders(self) -> bool:
        """Whether a per-layer ReLU transcoder can be exact: no neuron has a factor."""
        return all(one.factor == {CONSTANT: 1.0} for one in self.neurons)

    def words(self, prompt: str) -> tuple[str, ...]:
        """A prompt's tokens, with the one in front."""
        return (BOS, *prompt.split())

    def run(
        self, prompt: str, held: Mapping[KnownNode, float] | None = None
    ) -> tuple[dict[KnownNode, float], float]:
        """Every neuron's activation, and the contrast.

        Args:
            prompt: Words, separated by blanks.
            held: Nodes that write these values, whatever they compute.

        Returns:
            What the nodes compute (zeros too), and logit of yes minus no at the last position.
        """
        held = held or {}
        words = self.words(prompt)
        n = len(words)
        values: dict[str, np.ndarray] = {CONSTANT: np.ones(n)}
        for position, word in enumerate(words):
            for name, value in self.tokens[word].items():
                values.setdefault(name, np.zeros(n))[position] = value

        def of(signal: Signal) -> np.ndarray:
            zero = np.zeros(n)
            return sum((w * values.get(name, zero) for name, w in signal.items()), zero)

        live: dict[KnownNode, float] = {}
        for layer in range(self.n_layers):
            for head in (one for one in self.heads if one.layer == layer):
                scores = np.zeros((n, n))
                for query, key in head.matches:
                    scores += np.outer(of(query), of(key))
                pattern = _softmax(head.sharpness * scores)
                moved = {to: pattern @ of({name: 1.0}) for name, to in head.moves.items()}
                values |= moved
            for number, neuron in enumerate(self.layer(layer)):
                found = np.maximum(of(neuron.reads), 0) * of(neuron.factor)
                written = found.copy()
                for position in range(n):
                    node = (layer, position, number)
                    live[node] = float(found[position])
                    written[position] = held.get(node, live[node])
                values[neuron.name] = written
        return live, 2 * GAIN * float(of(self.output)[-1])

    def truth(self, prompt: str) -> KnownTruth:
        """The circuit of a prompt, by removing each active node from the program itself."""
        live, contrast = self.run(prompt)
        active = {node: value for node, value in live.items() if value}
        edges: set[tuple[KnownNode, KnownNode | str]] = set()
        for source in active:
            changed, output = self.run(prompt, active | {source: 0.0})
            if abs(output - contrast) > _NOTHING:
                edges.add((source, OUTPUT))
            edges |= {(source, t) for t in active if abs(changed[t] - active[t]) > _NOTHING}
        circuit: set[KnownNode] = {s for s, t in edges if t == OUTPUT}
        while more := {s for s, t in edges if t in circuit} - circuit:
            circuit |= more
        return KnownTruth(active, frozenset(edges), frozenset(circuit), contrast)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Rows of a causal pattern."""
    causal = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
    weights = np.exp(causal - causal.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


@dataclass
class _Builder:
    """Neurons and heads of a program; each goes into the first layer that has what it reads."""

    tokens: dict[str, Signal]
    neurons: list[KnownNeuron] = field(default_factory=list)
    heads: list[KnownHead] = field(default_factory=list)
    ready: dict[str, int] = field(default_factory=dict)
    """First layer whose MLP can read a variable."""

    @classmethod
    def bits(cls, names: str) -> _Builder:
        """One token for every assignment of some bits, such as ``101``."""
        rows = itertools.product((0, 1), repeat=len(names))
        tokens: dict[str, Signal] = {
            "".join(map(str, row)): dict(zip(names, map(float, row), strict=True)) for row in rows
        }
        return cls(tokens)

    @classmethod
    def places(cls, symbols: str, n: int) -> _Builder:
        """One token for every symbol at every position, such as ``a@2``."""
        return cls({f"{s}@{p}": {s: 1.0, f"@{p}": 1.0} for s in symbols for p in range(1, n + 1)})

    def neuron(
        self, reads: Signal, bias: float = 0.0, *, factor: Signal | None = None, layer: int = 0
    ) -> str:
        """A neuron of its own variable, whose name comes back; `layer` is the lowest allowed."""
        name = f"n{len(self.neurons)}"
        factor = factor or {CONSTANT: 1.0}
        layer = max([layer, *(self.ready.get(one, 0) for one in (*reads, *factor))])
        self.neurons.append(KnownNeuron(name, layer, {**reads, CONSTANT: bias}, factor))
        self.ready[name] = layer + 1
        return name

    def sure(self, signal: Signal, layer: int = 0) -> str:
        """1 where a signal that is 0 or 1 is 1; halfway is silent."""
        return self.neuron({name: 2 * w for name, w in signal.items()}, -1.0, layer=layer)

    def copy(self, name: str, layer: int = 0) -> str:
        """1 where a Boolean is."""
        return self.sure({name: 1.0}, layer)

    def both(self, *names: str) -> str:
        """1 where all of some Booleans are."""
        return self.neuron(dict.fromkeys(names, 2.0), 1.0 - 2 * len(names))

    def at_least(self, k: int, names: Sequence[str]) -> Signal:
        """1 where k of some Booleans are: a rise and a cap, so flat once both are open."""
        reads = dict.fromkeys(names, 2.0)
        return {self.neuron(reads, 1.5 - 2 * k): 1.0, self.neuron(reads, 0.5 - 2 * k): -1.0}

    def xor(self, one: str, other: str) -> Signal:
        """1 where one of two Booleans is."""
        return {one: 1.0, other: 1.0, self.both(one, other): -2.0}

    def head(
        self,
        moves: Mapping[str, str],
        matches: Sequence[tuple[Signal, Signal]],
        sharpness: float = 30.0,
    ) -> None:
        """A head; of the beginning-of-sequence token it sees half a match, so it rests there."""
        every = [({CONSTANT: 1.0}, {BOS: 0.5}), *matches]
        read = [*moves, *(name for pair in every for signal in pair for name in signal)]
        layer = max(self.ready.get(name, 0) for name in read)
        self.heads.append(KnownHead(layer, dict(moves), tuple(every), sharpness))
        self.ready |= dict.fromkeys(moves.values(), layer)

    def at(self, position: int) -> list[tuple[Signal, Signal]]:
        """Every position looks at this one."""
        return [({CONSTANT: 1.0}, {f"@{position}": 1.0})]

    def before(self, n: int) -> list[tuple[Signal, Signal]]:
        """Every position looks at the one before it."""
        return [({f"@{p}": 1.0}, {f"@{p - 1}": 1.0}) for p in range(2, n + 1)]

    def done(self, name: str, about: str, output: Signal, prompts: Sequence[str]) -> Program:
        """The program, with its idle neurons."""
        generator = np.random.default_rng(len(self.neurons))
        own = list(self.neurons)
        for layer in range(1 + max(one.layer for one in own)):
            for number in range(IDLE):
                seen = [n for n, first in self.ready.items() if first <= layer] or sorted(
                    {v for values in self.tokens.values() for v in values}
                )
                read = seen[int(generator.integers(len(seen)))]
                reads = {read: 0.5, BOS: -4.0, CONSTANT: 1.0}  # silent at position 0
                idle = f"idle{layer}.{number}"
                own.append(KnownNeuron(idle, layer, reads, {CONSTANT: 1.0}, idle=True))
                self.ready[idle] = layer + 1
        tokens = {BOS: {BOS: 1.0}, YES: {}, NO: {}, **self.tokens}
        return Program(name, about, tokens, tuple(own), tuple(self.heads), output, tuple(prompts))


def _copy() -> Program:
    p = _Builder.bits("a")
    return p.done("copy", "the bit itself", {p.copy("a"): 1.0}, ["1"])


def _chain() -> Program:
    p = _Builder.bits("a")
    return p.done("chain", "three hops", {p.copy(p.copy(p.copy("a"))): 1.0}, ["1"])


def _not() -> Program:
    p = _Builder.bits("a")
    return p.done("not", "pushes to no", {p.copy(p.copy("a")): -1.0, CONSTANT: 1.0}, ["1"])


def _and() -> Program:
    p = _Builder.bits("ab")
    return p.done("and", "both bits", {p.both(p.copy("a"), p.copy("b")): 1.0}, ["11"])


def _or() -> Program:
    p = _Builder.bits("ab")
    out = p.at_least(1, [p.copy("a"), p.copy("b")])
    return p.done("or", "one bit at least: flat where both are", out, ["11", "10"])


def _nand() -> Program:
    p = _Builder.bits("ab")
    out = {p.both(p.copy("a"), p.copy("b")): -1.0, CONSTANT: 1.0}
    return p.done("nand", "not both bits", out, ["11"])


def _xor() -> Program:
    p = _Builder.bits("ab")
    return p.done("xor", "one bit of two", p.xor(p.copy("a"), p.copy("b")), ["11", "10"])


def _parity() -> Program:
    p = _Builder.bits("abc")
    a, b, c = map(p.copy, "abc")
    first = p.sure(p.xor(a, b))
    return p.done("parity", "an odd number of three bits", p.xor(first, c), ["101", "011", "001"])


def _majority() -> Program:
    p = _Builder.bits("abc")
    out = p.at_least(2, [p.copy(one) for one in "abc"])
    return p.done("majority", "two bits of three", out, ["111", "110"])


def _implies() -> Program:
    p = _Builder.bits("ab")
    a, b = map(p.copy, "ab")
    out = {p.neuron({a: 2.0, b: -2.0}, -1.0): -1.0, CONSTANT: 1.0}
    return p.done("implies", "not (a without b)", out, ["10"])


def _inhibit() -> Program:
    p = _Builder.bits("ab")
    a, b = map(p.copy, "ab")
    return p.done("inhibit", "b halves a", {p.neuron({a: 2.0, b: -1.0}, -0.5): 1.0}, ["11"])


def _choose() -> Program:
    p = _Builder.bits("abc")
    a, b, c = map(p.copy, "abc")
    other = p.neuron({b: 2.0, c: -2.0}, -1.0)
    out = {p.both(c, a): 1.0, other: 1.0}
    return p.done("choose", "a if c, else b", out, ["101", "010"])


def _and_or() -> Program:
    p = _Builder.bits("abc")
    a, b, c = map(p.copy, "abc")
    out = p.at_least(1, [p.both(a, b), c])
    return p.done("and-or", "(a and b) or c", out, ["110", "111"])


def _carry() -> Program:
    p = _Builder.bits("abc")
    a, b, c = map(p.copy, "abc")
    half = p.sure(p.xor(a, b))
    out = {p.both(a, b): 1.0, p.both(half, c): 1.0}
    return p.done("carry", "carry of a full adder", out, ["101", "011"])


def _backup() -> Program:
    p = _Builder.bits("a")
    a = p.copy("a")
    first = p.copy(a)
    out = {first: 1.0, p.neuron({a: 1.5, first: -1.0}, -0.1): 1.0}
    return p.done("backup", "a second path fills in when the first is gone", out, ["1"])


def _cancel() -> Program:
    p = _Builder.bits("a")
    a = p.copy("a")
    out = {p.copy(a): 1.0, p.copy(a): -1.0, CONSTANT: 0.5}
    return p.done("cancel", "two paths that undo each other", out, ["1"])


def _dormant() -> Program:
    p = _Builder.bits("ab")
    a, b = map(p.copy, "ab")
    out = {p.copy(a): 0.5, p.neuron({a: 2.0, b: -2.0}, -1.0): 0.5}
    about = "b holds a neuron shut: its edge runs through a node that is not active"
    return p.done("dormant", about, out, ["11"])


def _product() -> Program:
    p = _Builder.bits("ab")
    a, b = map(p.copy, "ab")
    return p.done("product", "gate times up", {p.neuron({a: 1.0}, factor={b: 1.0}): 1.0}, ["11"])


def _move() -> Program:
    p = _Builder.places("01q", 3)
    one = p.copy("1")
    p.head({one: "moved"}, p.at(1))
    return p.done("move", "a head brings a bit", {p.copy("moved"): 1.0}, ["1@1 0@2 q@3"])


def _gather() -> Program:
    p = _Builder.places("01q", 3)
    one = p.copy("1")
    p.head({one: "first"}, p.at(1))
    p.head({one: "second"}, p.at(2))
    out = {p.both("first", "second"): 1.0}
    return p.done("gather", "two heads bring two bits: both", out, ["1@1 1@2 q@3"])


def _count() -> Program:
    p = _Builder.places("01q", 4)
    one = p.copy("1")
    p.head({one: "share"}, [({CONSTANT: 1.0}, {CONSTANT: 1.0, BOS: -1.5})])
    out = {p.neuron({"share": 4.0}, -1.5): 1.0}
    return p.done("count", "uniform attention counts", out, ["1@1 1@2 0@3 q@4", "1@1 1@2 1@3 q@4"])


def _relay() -> Program:
    p = _Builder.places("01q", 3)
    one = p.copy("1")
    p.head({one: "once"}, p.before(3))
    p.head({p.copy("once"): "twice"}, p.before(3))
    return p.done("relay", "two heads, one step each", {p.copy("twice"): 1.0}, ["1@1 0@2 q@3"])


def _select() -> Program:
    p = _Builder.places("vwf", 3)
    flag, value = p.copy("f"), p.copy("v")
    p.head({flag: "near"}, p.before(3))
    marked = p.copy("near")  # the token after the flag
    p.head({value: "chosen"}, [({CONSTANT: 1.0}, {marked: 1.0})], sharpness=3.0)
    out = {p.neuron({"chosen": 2.0}, -0.5): 1.0}
    return p.done("select", "a neuron decides where a head looks", out, ["f@1 v@2 w@3"])


def _induction() -> Program:
    p = _Builder.places("abc", 4)
    seen = {s: p.copy(s) for s in "abc"}
    p.head({seen[s]: f"last {s}" for s in "abc"}, p.before(4))
    after = {s: p.copy(f"last {s}") for s in "abc"}
    matches: list[tuple[Signal, Signal]] = [({seen[s]: 1.0}, {after[s]: 1.0}) for s in "abc"]
    p.head({seen["b"]: "next b"}, matches, sharpness=4.0)
    out = {p.neuron({"next b": 2.0}, -0.5): 1.0}
    about = "what came after this symbol: previous-token head, then matching head"
    return p.done("induction", about, out, ["a@1 b@2 c@3 a@4", "c@1 b@2 a@3 c@4"])


def _duplicate() -> Program:
    p = _Builder.places("abc", 3)
    seen = {s: p.copy(s) for s in "abc"}
    p.head({seen[s]: f"last {s}" for s in "abc"}, p.before(3))
    earlier = [p.neuron({f"last {s}": 2.0, s: 2.0}, -3.0, layer=1) for s in "abc"]
    out: Signal = dict.fromkeys(earlier, 1.0)
    return p.done("duplicate", "the symbol before is the same", out, ["c@1 b@2 b@3"])


def _two_hops() -> Program:
    p = _Builder.bits("a")
    return p.done("two-hops", "one neuron reads the other", {p.copy(p.copy("a")): 1.0}, ["1"])


def _echo() -> Program:
    p = _Builder.bits("a")
    out = {p.copy("a"): 0.5, p.copy("a", layer=1): 0.5}
    return p.done("echo", "two layers read the same token, not each other", out, ["1"])


_MAKERS: tuple[Callable[[], Program], ...] = (
    *(_copy, _chain, _not, _and, _or, _nand, _xor, _parity, _majority, _implies, _inhibit),
    *(_choose, _and_or, _carry, _backup, _cancel, _dormant, _product),
    *(_move, _gather, _count, _relay, _select, _induction, _duplicate, _two_hops, _echo),
)
PROGRAMS: dict[str, Program] = {made.name: made for made in (maker() for maker in _MAKERS)}
"""Name -> program."""
FIRST_ORDER_BLIND = ("dormant",)
"""Programs with an edge whose first order is 0: no derivative sees a gate that would open."""
