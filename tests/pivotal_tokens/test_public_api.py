"""The public names of the package, pinned."""

import importlib

import pytest

PUBLIC = {
    "pivotal_tokens": (
        "EmCircuitsError Failed GraphRecord Judgement Label LabelEvent LeaseLost NextTokenPair "
        "NextTokens Prompt PromptLabels RequestError ReviewItem Thresholds TokenLabel TokenScore "
        "Unparsed Verdict WorkFailed decide error_verdict prompt_id"
    ),
    "pivotal_tokens.store": (
        "ANYTHING AttemptView HUMAN LabelledPrompt Listing ListingLine ListingQuery "
        "PairAttempt PastPrompt SCHEMA_VERSION Screened Store "
        "StoreCounts Unanswered Wanted default_url"
    ),
    "pivotal_tokens.prompts": (
        "Finding Likeness MAX_WORDS PromptFile PromptHistory Rule check check_fork first_of_each "
        "normalise own_words read_prompts similarity"
    ),
    "pivotal_tokens.judge": (
        "Entry FirstToken Judge JudgeSpec Lexicon ModelJudge PersonJudge open_judge persist"
    ),
    "pivotal_tokens.llm": (
        "Budget BudgetExhausted CallFailed EndpointRefused Filtered Grade Grader Instructions "
        "Invalid LLMClient LLMSettings Message NoReply Ok Refused Reply Truncated Usage "
        "load_instructions why_unusable"
    ),
    "pivotal_tokens.labels": (
        "AgreementReport Divergence FIELDS ImportReport divergence import_labels label_agreement "
        "label_records read_records write_records"
    ),
    "pivotal_tokens.review": (
        "Difference Progress Question Reveal ReviewController ReviewService ReviewSummary run_plain"
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_are_these(name):
    module = importlib.import_module(name)
    assert set(module.__all__) == set(PUBLIC[name].split())
    assert all(hasattr(module, public) for public in module.__all__)
