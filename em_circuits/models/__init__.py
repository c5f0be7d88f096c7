"""The pair of real models, loaded, shared and checked."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.models.check import Check
    from em_circuits.models.pair import Model, ModelPair
    from em_circuits.models.settings import PairSettings
    from em_circuits.models.sites import FeatureSites
    from em_circuits.models.text import encode, render_chat
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "Check",
    "FeatureSites",
    "Model",
    "ModelPair",
    "PairSettings",
    "encode",
    "render_chat",
]
