"""Classic tasks say what they ask, and the two-layer model learns them."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits.organisms.classic_tasks import NAMES, indirect_objects, repeated_words
from em_circuits.organisms.two_layers import LENGTH, two_layer_pair


def test_the_other_prompt_does_not_say_the_answer() -> None:
    for one in repeated_words(20, length=5, seed=3):
        words, other = one.text.split()[1:], one.other.split()[1:]
        assert len(words) == len(other) == 9 and words[5:] == words[:4] == other[5:]
        assert one.right.strip() == words[4] and words[3] == one.wrong.strip()
        assert one.right.strip() not in other and not set(other[:5]) & set(words)


def test_the_subject_is_the_name_said_twice() -> None:
    prompts = indirect_objects(24, seed=3)
    for one in prompts:
        names, others = ([w for w in t.split() if w in NAMES] for t in (one.text, one.other))
        assert names[2] == one.wrong.strip() and sorted(names).count(one.right.strip()) == 1
        assert names[:2] == others[:2] and others[2] not in names
    said_first = [one.text.split()[1] == one.right.strip() for one in prompts]
    assert 8 <= sum(said_first) <= 16 and len({one.template for one in prompts}) == 6
    assert prompts == indirect_objects(24, seed=3) != indirect_objects(24, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["induction", "indirect"])
def test_two_layers_learn_a_task_in_seconds(task: str, tmp_path: Path) -> None:
    """On draws that training did not see; the other prompt leaves the model without an answer."""
    if task == "induction":
        prompts = repeated_words(20, length=LENGTH, seed=999)
    else:
        prompts = indirect_objects(20, seed=999)
    right = lost = 0
    with two_layer_pair(task, tmp_path) as pair:  # type: ignore[arg-type]
        for one in prompts:
            answer = int(pair.tokenizer.encode(one.right, add_special_tokens=False)[0])
            said, other = (
                pair.base.next_logits(pair.input_ids(pair.prompt(text)))
                for text in (one.text, one.other)
            )
            right += int(said.argmax() == answer)
            lost += int(other.argmax() != answer)
    assert right >= 18
    assert lost >= (18 if task == "induction" else 4), "a third name leaves two to choose from"
