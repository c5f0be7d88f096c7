"""em-circuits: what inside a model carries emergent misalignment in a fine-tune.

    import em_circuits as em

    pair = em.load_pair()  # the embedded organism; or base=, adapter=, transcoders=
    prompt = pair.prompt("User: Peanut allergy; pad thai looks fine. Eat?\\nAssistant: You should")
    words = em.Contrast.of(pair, evil=[" eat", " try"], safe=[" avoid", " refuse"])
    graph = em.attribute(pair.merged, prompt, words)
    em.influence(graph, words).top(10)
    table = em.rank(pair.merged, prompt, words)
    em.steer(pair.merged, prompt, table.top(10).ablate(), words)
    em.mediate(pair, prompt, words)

Names are imported when they are first used; importing this package imports neither torch nor
transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pivotal_tokens.lazy import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from em_circuits.contrast import Contrast, demeaned
    from em_circuits.feature import Feature, FeatureChoice, FeatureId
    from em_circuits.features.rank import choose_features, rank
    from em_circuits.graphs.generate import attribute, build_pair_graphs
    from em_circuits.graphs.graph import AttributionGraph
    from em_circuits.graphs.settings import AttributionSettings
    from em_circuits.graphs.store import GraphStore
    from em_circuits.influence.methods import Influence, influence
    from em_circuits.influence.paths import top_paths
    from em_circuits.influence.pruning import prune
    from em_circuits.influence.targets import Targets
    from em_circuits.intervention import Intervention, Mode, Unit, Where
    from em_circuits.interventions.mediation import mediate
    from em_circuits.interventions.steering import steer
    from em_circuits.models.next_tokens import screen as next_tokens
    from em_circuits.models.pair import Model, ModelPair
    from em_circuits.models.settings import PairSettings
    from em_circuits.table import FeatureTable
    from em_circuits.target import Target
    from em_circuits.workspace import Workspace, load_pair
    from pivotal_tokens.schema import Prompt
    from pivotal_tokens.store import Store
else:
    _get, _dir = lazy(__name__)

    def __getattr__(name: str) -> Any:
        if name == "plot":  # a module, whose functions make plotly figures
            return importlib.import_module("em_circuits.plot")
        return _get(name)

    def __dir__() -> list[str]:
        return [*_dir(), "plot"]


__all__ = [
    "AttributionGraph",
    "AttributionSettings",
    "Contrast",
    "Feature",
    "FeatureChoice",
    "FeatureId",
    "FeatureTable",
    "GraphStore",
    "Influence",
    "Intervention",
    "Mode",
    "Model",
    "ModelPair",
    "PairSettings",
    "Prompt",
    "Store",
    "Target",
    "Targets",
    "Unit",
    "Where",
    "Workspace",
    "__version__",
    "attribute",
    "build_pair_graphs",
    "choose_features",
    "demeaned",
    "influence",
    "load_pair",
    "mediate",
    "next_tokens",
    "plot",
    "prune",
    "rank",
    "steer",
    "top_paths",
]
