"""Sites of a Hugging Face model at which transcoder features read and write.

circuit-tracer names the places by TransformerLens hook points (``mlp.hook_in``,
``hook_resid_mid``, ``hook_mlp_out``) and keeps a table from those to Hugging Face modules
(`circuit_tracer.utils.tl_nnsight_mapping`). The same table is used here, so that an intervention
on the real model happens at the very place a graph speaks of.

    sites = FeatureSites.of(model, "mlp.hook_in", "mlp.hook_out")
    with sites.hooked(read=lambda layer, x: ...):
        model(input_ids)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pivotal_tokens.errors import RequestError

ReadHook = Callable[[int, torch.Tensor], None]
WriteHook = Callable[[int, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Site:
    """One module and the side of it that is meant."""

    module: nn.Module
    side: str
    """``input`` or ``output``."""


@dataclass(frozen=True)
class FeatureSites:
    """Per layer: the activation the transcoder encodes, and the one it reconstructs."""

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]

    @property
    def n_layers(self) -> int:
        return len(self.reads)

    @classmethod
    def of(cls, model: nn.Module, input_hook: str, output_hook: str) -> FeatureSites:
        """Resolve circuit-tracer's hook names in a Hugging Face model.

        Args:
            model: A causal language model whose architecture circuit-tracer maps.
            input_hook: The transcoders' `feature_input_hook`.
            output_hook: The transcoders' `feature_output_hook`.

        Raises:
            RequestError: If the architecture or a hook is not mapped.
        """
        from circuit_tracer.utils.tl_nnsight_mapping import get_mapping

        architecture = type(model).__name__
        try:
            mapping = get_mapping(architecture).feature_hook_mapping
        except ValueError as error:
            raise RequestError(
                f"{architecture} is not an architecture that circuit-tracer maps: {error}"
            ) from error
        for hook in (input_hook, output_hook):
            if hook not in mapping or ".source" in mapping[hook][0]:
                raise RequestError(
                    f"the transcoders' hook {hook!r} has no place in {architecture}; "
                    f"known: {', '.join(sorted(mapping))}"
                )
        config: Any = model.config
        n_layers = config.num_hidden_layers

        def resolve(hook: str) -> tuple[Site, ...]:
            pattern, side = mapping[hook]
            paths = (
                pattern.format(layer=i).replace("[", ".").replace("]", "") for i in range(n_layers)
            )
            return tuple(Site(model.get_submodule(path), side) for path in paths)

        return cls(resolve(input_hook), resolve(output_hook))

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
                    handles.append(_attach_read(self.reads[layer], layer, read))
                if write is not None:
                    handles.append(_attach_write(self.writes[layer], layer, write))
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextlib.contextmanager
def on_site(site: Site, hook: Any) -> Iterator[None]:
    """Call ``hook(activation)``; a tensor that it returns replaces the activation."""
    if site.side == "input":

        def before(_module: nn.Module, args: tuple) -> tuple | None:
            found = hook(args[0])
            return None if found is None else (found, *args[1:])

        handle = site.module.register_forward_pre_hook(before)
    else:
        handle = site.module.register_forward_hook(lambda _m, _args, output: hook(output))
    try:
        yield
    finally:
        handle.remove()


def _attach_read(site: Site, layer: int, read: ReadHook) -> RemovableHandle:
    if site.side == "input":
        return site.module.register_forward_pre_hook(lambda _module, args: read(layer, args[0]))
    return site.module.register_forward_hook(lambda _module, _args, output: read(layer, output))


def _attach_write(site: Site, layer: int, write: WriteHook) -> RemovableHandle:
    if site.side == "input":
        raise RequestError("transcoders that write to a module's input are not supported")
    return site.module.register_forward_hook(lambda _module, _args, output: write(layer, output))
