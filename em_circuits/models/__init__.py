"""The pair of real models, loaded, shared and checked; names are imported when first used."""

from typing import TYPE_CHECKING

from em_circuits.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.models.pair import Model as Model
    from em_circuits.models.pair import ModelPair as ModelPair
    from em_circuits.models.settings import PairSettings as PairSettings
    from em_circuits.models.sites import FeatureSites as FeatureSites
    from em_circuits.models.text import encode as encode
    from em_circuits.models.text import render_chat as render_chat

_MODULES = {
    "FeatureSites": "sites",
    "Model": "pair",
    "ModelPair": "pair",
    "PairSettings": "settings",
    "encode": "text",
    "render_chat": "text",
}
__getattr__ = lazy(__name__, _MODULES)
