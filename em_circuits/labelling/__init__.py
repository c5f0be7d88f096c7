"""The labelling loop: prompts, next tokens, judge, verdict, review queue, graphs."""
