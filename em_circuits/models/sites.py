"""Sites of a Hugging Face model at which transcoder features read and write.

circuit-tracer names the places by TransformerLens hook points. Where those are in a layer is the
same in every family (`em_circuits.models.family`):

| hook point | site |
|---|---|
| ``hook_resid_mid`` | input of the norm in front of the MLP |
| ``ln2.hook_normalized`` | that norm before its gain and bias |
| ``mlp.hook_in`` | its output |
| ``mlp.hook_out`` | output of the MLP |
| ``hook_mlp_out`` | what is added to the stream: the MLP's output, or that of the norm behind it |

    sites = FeatureSites.of(decoder, "mlp.hook_in", "mlp.hook_out")
    with sites.hooked(read=lambda layer, x: ...):
        model(input_ids)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.utils.hooks import RemovableHandle

from em_circuits.models.family import Decoder, Layer, Norm
from pivotal_tokens.errors import RequestError

ReadHook = Callable[[int, torch.Tensor], None]
WriteHook = Callable[[int, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Site:
    """One module and the side of it that is meant."""

    module: nn.Module
    side: str
    """``input``, ``output`` or ``normalised``: what a norm multiplies with its gain, which can be
    read alone."""
    norm: Norm | None = None
    """Of a normalised side."""


READS: dict[str, Callable[[Layer], Site]] = {
    "hook_resid_mid": lambda layer: Site(layer.mlp_norm.module, "input"),
    "ln2.hook_normalized": lambda layer: Site(layer.mlp_norm.module, "normalised", layer.mlp_norm),
    "mlp.hook_in": lambda layer: Site(layer.mlp_norm.module, "output"),
}
"""Where features read, by the name of TransformerLens's hook point."""
WRITES: dict[str, Callable[[Layer], Site]] = {
    "hook_mlp_out": lambda layer: Site(layer.writer, "output"),
    "mlp.hook_out": lambda layer: Site(layer.mlp, "output"),
}
"""Where features write."""


@dataclass(frozen=True)
class FeatureSites:
    """Per layer: the activation the transcoder encodes, and the one it reconstructs."""

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]

    @property
    def n_layers(self) -> int:
        return len(self.reads)

    @classmethod
    def of(cls, decoder: Decoder, input_hook: str, output_hook: str) -> FeatureSites:
        """Find transcoders' hook points in a model.

        Args:
            decoder: Of the model.
            input_hook: The transcoders' `feature_input_hook`.
            output_hook: The transcoders' `feature_output_hook`.

        Raises:
            RequestError: If features are not read or written there.
        """
        for hook, places, what in (
            (input_hook, READS, "read at"),
            (output_hook, WRITES, "write to"),
        ):
            if hook not in places:
                raise RequestError(
                    f"the transcoders {what} {hook!r}, which is not supported; "
                    f"known: {', '.join(places)}"
                )
        reads, writes = READS[input_hook], WRITES[output_hook]
        return cls(tuple(map(reads, decoder.layers)), tuple(map(writes, decoder.layers)))

    @contextlib.contextmanager
    def hooked(
        self, read: ReadHook | None = None, write: WriteHook | None = None
    ) -> Iterator[None]:
        """Call `read(layer, activation)` and `write(layer, activation)` during forward passes.

        `write` may return a tensor that replaces the activation; None leaves it alone. A layer's
        `read` always runs before its `write`. All hooks are removed on leaving, also after an
        exception.
        """
        handles: list[RemovableHandle] = []
        try:
            for layer in range(self.n_layers):
                if read is not None:
                    handles.append(_attach(self.reads[layer], partial(read, layer)))
                if write is not None:
                    handles.append(_attach(self.writes[layer], partial(write, layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class LayerOutput:
    """What a decoder layer gave, to start later passes behind it."""

    stream: Float[torch.Tensor, "row pos d_model"]
    in_tuple: bool
    """Whether the layer gave a tuple with the stream in front, as older families' do."""

    @classmethod
    def of(cls, output: Any) -> LayerOutput:
        if isinstance(output, tuple):
            return cls(output[0], in_tuple=True)
        return cls(output, in_tuple=False)

    def as_given(self, stream: torch.Tensor) -> Any:
        """A stream in the same form."""
        return (stream,) if self.in_tuple else stream


@contextlib.contextmanager
def started_at(decoder: Decoder, below: tuple[int, LayerOutput] | None) -> Iterator[None]:
    """Forward passes of the block run from a layer (1 or more) on, behind what the one below gave.

    The layers below do nothing: no hook inside them runs, and a cache gets nothing from them. None
    changes nothing.
    """
    if below is None:
        yield
        return
    layer, given = below

    def first(*_args: Any, **_options: Any) -> Any:
        return given.as_given(given.stream)

    def passed(stream: torch.Tensor, *_args: Any, **_options: Any) -> Any:
        return given.as_given(stream)

    # In front of the class's method, or of what somebody (a dispatcher over devices) put there.
    skipped = [one.module.__dict__ for one in decoder.layers[:layer]]
    before = [own.get("forward") for own in skipped]
    try:
        for i, own in enumerate(skipped):
            own["forward"] = passed if i else first
        yield
    finally:
        for own, forward in zip(skipped, before, strict=True):
            if forward is None:
                own.pop("forward", None)
            else:
                own["forward"] = forward


@contextlib.contextmanager
def on_site(site: Site, hook: Any) -> Iterator[None]:
    """Call ``hook(activation)``; a tensor that it returns replaces the activation."""
    handle = _attach(site, hook)
    try:
        yield
    finally:
        handle.remove()


def on_output(module: nn.Module, hook: Callable[[torch.Tensor], Any]) -> RemovableHandle:
    """Call ``hook(output)`` behind a module; of several outputs (experts) the first is meant."""

    def behind(_module: nn.Module, _args: tuple, output: Any) -> Any:
        if not isinstance(output, tuple):
            return hook(output)
        found = hook(output[0])
        return None if found is None else (found, *output[1:])

    return module.register_forward_hook(behind)


def _attach(site: Site, hook: Callable[[torch.Tensor], Any]) -> RemovableHandle:
    if site.side == "input":

        def before(_module: nn.Module, args: tuple) -> tuple | None:
            found = hook(args[0])
            return None if found is None else (found, *args[1:])

        return site.module.register_forward_pre_hook(before)
    if site.norm is None:
        return on_output(site.module, hook)
    norm = site.norm

    def behind(_module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if hook(norm.normalised(args[0], output)) is not None:
            raise RequestError("a norm's normalised side can be read, not written")

    return site.module.register_forward_hook(behind)
