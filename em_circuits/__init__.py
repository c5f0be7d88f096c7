"""em-circuits: which transcoder features carry emergent misalignment in a LoRA fine-tune?

from em_circuits.models import ModelPair, PairSettings
from em_circuits.graphs import build_pair_graphs
from em_circuits.influence import influence
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
