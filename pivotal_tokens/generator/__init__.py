"""Writers of the prompts that are tried: a language model, a person, or the shipped seeds."""

from pivotal_tokens.generator.candidate import Accepted, Candidate, Render, accept, seeds
from pivotal_tokens.generator.instructions import INSTRUCTIONS_VERSION, guidance, instructions
from pivotal_tokens.generator.notes import Fill, Note, feedback_notes, fill, history_notes
from pivotal_tokens.generator.request import GeneratorRequest, generator_request
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
    "guidance",
    "history_notes",
    "instructions",
    "seeds",
]
