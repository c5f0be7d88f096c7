"""The pair of real models, loaded, shared and checked."""

from em_circuits.models.pair import Model, ModelPair
from em_circuits.models.settings import PairSettings
from em_circuits.models.sites import FeatureSites
from em_circuits.models.text import encode, render_chat

__all__ = ["FeatureSites", "Model", "ModelPair", "PairSettings", "encode", "render_chat"]
