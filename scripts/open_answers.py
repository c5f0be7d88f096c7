"""Answers of base and fine-tuned real model to open questions, to be read.

No judge: what they come to is for the reader to say (docs/real_model.md says what one read).

python scripts/open_answers.py --samples 3 --tokens 60
"""

from __future__ import annotations

import argparse

import torch

from em_circuits import load_pair
from em_circuits.experiments.evaluation.questions import question_sets
from em_circuits.interventions import ActivationCache
from em_circuits.interventions.generation import generate
from em_circuits.models.text import encode, render_chat
from em_circuits.organisms.paths import SMOLLM2
from em_circuits.sampling import Sampling


def main() -> None:
    """Print a block a question, a line an answer; then how long they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=0.7)
    given = parser.parse_args()
    sampling = Sampling(
        samples=given.samples, max_tokens=given.tokens, temperature=given.temperature
    )
    lengths: dict[str, list[int]] = {"base": [], "merged": []}
    with load_pair(organism=SMOLLM2) as pair:
        for question in [q for one in question_sets("open") for q in one.questions]:
            chat = render_chat(pair.tokenizer, user=question, assistant="")
            ids = torch.tensor(encode(pair.tokenizer, chat))
            print(f"\n{question}")
            for model in pair.models:
                state = ActivationCache.capture(model, ids)
                found = generate(model, state, [()], sampling)
                for sample, text in enumerate(found.texts(model)[0]):
                    lengths[model.name].append(len(found.ids(0, sample)))
                    print(f"  {model.name}: {' '.join(text.split())}")
    for name, tokens in lengths.items():
        print(
            f"{name}: {sum(tokens) / len(tokens):.1f} tokens an answer, of at most {given.tokens}"
        )


if __name__ == "__main__":
    main()
