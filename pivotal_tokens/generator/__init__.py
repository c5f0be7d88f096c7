"""Who writes the prompts that are tried: a language model, a person, or the shipped seeds."""

from pivotal_tokens.generator.accept import Accepted, accept
from pivotal_tokens.generator.candidate import Candidate, Render
from pivotal_tokens.generator.feedback import feedback_notes
from pivotal_tokens.generator.fill import Fill, Note, fill
from pivotal_tokens.generator.history import history_notes
from pivotal_tokens.generator.instructions import INSTRUCTIONS_VERSION, instructions
from pivotal_tokens.generator.preview import GeneratorRequest, generator_request
from pivotal_tokens.generator.seeds import seeds
from pivotal_tokens.generator.writer import Writer

__all__ = [
    "INSTRUCTIONS_VERSION",
    "Accepted",
    "Candidate",
    "Fill",
    "GeneratorRequest",
    "Note",
    "Render",
    "Writer",
    "accept",
    "feedback_notes",
    "fill",
    "generator_request",
    "history_notes",
    "instructions",
    "seeds",
]
