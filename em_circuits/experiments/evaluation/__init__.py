"""Whether a model is misaligned at all: open questions, sampled answers, judged and counted."""
