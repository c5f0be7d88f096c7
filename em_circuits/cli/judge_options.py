"""Options of commands that ask a language model or name a judge.

@judge_options
@llm_options
def command(session, **options):
    judge = open_judge(session, work, options)
    settings, budget = llm_settings("o3", options), llm_budget(options)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from em_circuits.cli.options import Command, Flag, Options, OptionSet
from em_circuits.cli.output import say
from em_circuits.cli.session import Session
from pivotal_tokens.judge import Judge, JudgeSpec, Lexicon, ModelJudge
from pivotal_tokens.judge import open_judge as open_named
from pivotal_tokens.llm import load_instructions
from pivotal_tokens.llm.prices import limits_of
from pivotal_tokens.llm.secrets import read_key
from pivotal_tokens.llm.settings import Budget, LLMSettings

if TYPE_CHECKING:
    from em_circuits.workspace import Workspace
    from pivotal_tokens.store import Store

_LLM = "Language model"
_ENDPOINT = OptionSet(
    LLMSettings,
    omit=("model", "max_attempts", "max_body_bytes"),
    base_url=Flag(metavar="URL"),
    max_concurrency=Flag("--concurrency"),
    deadline_s=Flag("--deadline"),
    api_key_env=Flag(metavar="NAME"),
).under(_LLM)
_BUDGET = OptionSet(Budget).under(_LLM)
_WORDS_SHOWN = 20


def llm_options(command: Command) -> Command:
    """Add the options to a command."""
    return _ENDPOINT(_BUDGET(command))


def llm_settings(model: str, options: Mapping[str, Any]) -> LLMSettings:
    """How a model is asked under the options given.

    Raises:
        RequestError: If they make no sense together.
    """
    return _ENDPOINT.read(options, model=model)


def llm_budget(options: Mapping[str, Any]) -> Budget:
    """What may be spent under the options given."""
    return _BUDGET.read(options)


class JudgeOptions(Options):
    """Who judges, and how a model does; a command needs `llm_options` too."""

    judge: str | None = None
    """Who labels tokens. [default: the organism's lexicon]"""
    votes: int = Field(default=1, ge=1, le=25)
    """Votes of a model judge on each prompt."""
    judge_prompt: str = "v1"
    """Instructions of a model judge."""
    examples: int = Field(default=8, ge=0, le=100)
    """Prompts labelled by people that a model judge is shown, at most."""


judge_options = OptionSet(
    JudgeOptions,
    judge=Flag(metavar="lexicon:FILE|openai:MODEL|human"),
    judge_prompt=Flag(metavar="VERSION|FILE"),
)


def check_judge(session: Session, options: dict[str, Any]) -> None:
    """Refuse what cannot be opened, before a model is loaded for it.

    Raises:
        RequestError: If there is no such judge, its file is broken, or its key or price missing.
    """
    spec = JudgeSpec.parse(session.judge_spec(options["judge"]))
    if spec.kind == "openai":
        settings = llm_settings(spec.argument, options)
        read_key(settings.api_key_env, needed=settings.base_url is None)
        limits_of(llm_budget(options), settings)
        load_instructions(options["judge_prompt"])
    else:
        open_named(spec, lambda word: (hash(word), True))  # the models' tokenizer comes later


def open_judge(session: Session, work: Workspace, options: dict[str, Any]) -> Judge:
    """The judge that is named.

    Raises:
        RequestError: If there is no such judge, its file is broken, or its key or price missing.
    """
    spec = JudgeSpec.parse(session.judge_spec(options["judge"]))
    if spec.kind != "openai":
        return open_offline_judge(session, work, options["judge"])
    return open_model_judge(spec.argument, work.store, work.pair.key, options)


def open_model_judge(model: str, store: Store, pair: str, options: Mapping[str, Any]) -> ModelJudge:
    """A judge of one pair's prompts that asks a language model.

    Raises:
        RequestError: If its key or price is missing, or there are no such instructions.
    """
    return ModelJudge(
        llm_settings(model, options),
        store=store,
        pair=pair,
        budget=llm_budget(options),
        votes=options["votes"],
        examples=options["examples"],
        instructions=load_instructions(options["judge_prompt"]),
    ).settled()


def open_offline_judge(session: Session, work: Workspace, judge: str | None) -> Judge:
    """A judge that needs no key, with the models' own tokenizer.

    Raises:
        RequestError: If there is no such judge, or its file is broken.
    """
    from em_circuits.models.text import first_token

    spec = JudgeSpec.parse(session.judge_spec(judge))
    opened = open_named(spec, lambda text: first_token(work.tokenizer, text))
    if isinstance(opened, Lexicon):
        for what, words in (
            ("words of several tokens, matched by their first", opened.multi_token_words),
            ("words that share a first token, unsure", opened.clashes),
        ):
            if words:
                more = f" and {len(words) - _WORDS_SHOWN} more" * (len(words) > _WORDS_SHOWN)
                shown = ", ".join(words[:_WORDS_SHOWN])
                say(f"{opened.id}: {what}: {shown}{more}", err=True)
    return opened
