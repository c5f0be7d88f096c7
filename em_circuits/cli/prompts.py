"""``em-circuits prompts``: candidate prompts, before any model runs on them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field

from em_circuits.cli.judge_options import llm_budget, llm_options, llm_settings
from em_circuits.cli.options import Flag, Options, options
from em_circuits.cli.output import Printed, emit, name_left_out, prints, prompt_line, say
from em_circuits.cli.session import Session, checked_text, pass_session
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.generator import Candidate, GeneratorRequest, generator_request
from pivotal_tokens.generator.candidate import broken_rules
from pivotal_tokens.generator.instructions import guidance
from pivotal_tokens.generator.questions import questions
from pivotal_tokens.generator.request import estimated_tokens
from pivotal_tokens.judge import JudgeSpec, Lexicon, open_judge
from pivotal_tokens.judge.examples import judge_request
from pivotal_tokens.llm.settings import LLMSettings, Message
from pivotal_tokens.prompts import PromptFile, PromptHistory, own_words, read_prompts
from pivotal_tokens.schema import Prompt, PromptKind, Rejection

if TYPE_CHECKING:
    from em_circuits.workspace import Workspace

_PAGE = 1000
"""Prompts in memory at a time."""
_ESTIMATED = "estimated: a quarter of the bytes"


class StoredPrompt(Printed):
    """A prompt, and whether it was new to the store."""

    prompt_id: str
    text: str
    new: bool


class FoundPrompt(Printed):
    """A prompt inside a sampled answer at which the two models differ."""

    prompt_id: str
    text: str
    kl: float
    """In nats, of the next token."""
    evil_mass_difference: float | None
    """Merged minus base; null without a lexicon."""
    new: bool


class JudgeRequest(Printed):
    """What a model judge would be sent, in its first vote."""

    messages: tuple[Message, ...]
    sources: dict[str, int]
    """Labels of people that are shown, by kind."""
    tokens: int
    exact: bool = False
    """The count is no estimate by bytes."""


class FindOptions(Options):
    """Which answers are sampled, and what is found in them."""

    which: Annotated[str, Flag("--questions", "which", metavar="everyday|open|organism|FILE")] = (
        "everyday"
    )
    """Open questions that both models answer."""
    samples: int = Field(default=4, ge=1)
    """Answers of each model to each question."""
    answer_tokens: int = Field(default=48, ge=1)
    """Tokens of an answer."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the answers."""
    min_kl: float = Field(default=0.1, ge=0)
    """Nats from which the models are said to differ."""
    n: int = Field(default=20, ge=1)
    """Prompts that are stored."""
    judge: Annotated[str | None, Flag(metavar="lexicon:FILE")] = None
    """For the difference of evil mass."""


kind_option = click.option(
    "--kind",
    type=click.Choice(["raw", "chat", "cot"]),
    default="raw",
    show_default=True,
    help="Plain text, a user's turn with the start of the answer, or a chain of thought.",
)


text_field_option = click.option(
    "--text-field", metavar="NAME", help="Where a prompt's text, or its chat, stands in a file."
)


@click.group()
def prompts() -> None:
    """Add, generate, import, preview and list prompts."""


@prompts.command(
    epilog="Example: em-circuits prompts add 'The lift is stuck. She decides to calmly'"
)
@click.argument("text", required=False)
@click.option("--user", metavar="TEXT", help="A user's turn, put into the model's chat template.")
@click.option("--assistant", metavar="TEXT", help="How the assistant's turn starts.")
@kind_option
@click.option("--name", help="A short name.")
@click.option("--continuous", is_flag=True, help="Ask for one prompt after another.")
@prints(StoredPrompt, lines=True)
@pass_session
def add(
    session: Session, text: str | None, continuous: bool, as_json: bool, **options: Any
) -> None:
    """Store a prompt of your own.

    Without TEXT it is read from standard input, newlines included. On a terminal the rules, the
    latest attempts and people's remarks are shown first; a line with a single full stop, or
    Ctrl-D, ends the prompt.
    """
    if text is not None and options["user"] is not None:
        raise RequestError("give the prompt as TEXT, or as --user and --assistant")
    asking = text is None and options["user"] is None and sys.stdin.isatty()
    if continuous and not asking:
        raise RequestError("--continuous asks on a terminal; leave TEXT out")
    while True:
        if asking:
            _show_guidance(session, options["kind"])
            text = _from_terminal()
            if not text:
                return
        _store(session, [_own_prompt(session, text, options)], as_json)
        if not continuous:
            return


@prompts.command(epilog="Example: em-circuits prompts generate --generator openai:o3 --n 8")
@click.option("--n", default=24, show_default=True, type=click.IntRange(min=1))
@click.option("--domain", "domains", multiple=True, help="Templates of this domain only.")
@click.option(
    "--generator",
    default="template",
    show_default=True,
    metavar="openai:MODEL|template|seeds",
    help="Who writes them.",
)
@kind_option
@llm_options
@prints(StoredPrompt, lines=True)
@pass_session
def generate(session: Session, n: int, generator: str, as_json: bool, **options: Any) -> None:
    """Store new prompts by a language model, the organism's templates, or the shipped seeds."""
    from em_circuits.labelling.sources import drawn_prompts, open_source

    if generator == "template":
        domains = options["domains"] or None
        with session.workspace(create=True) as work:
            templates = drawn_prompts(work, n, seed=session.seed, domains=domains)
        _store(session, list(templates), as_json)
        return
    with session.workspace(create=True) as work:
        stored = work.store.prompts
        before = stored.rejection_counts()
        known = {prompt.prompt_id for prompt in stored.all()}
        found: list[Prompt] = []
        source = open_source(
            generator,
            work,
            kind=options["kind"],
            domains=options["domains"],
            settings=lambda model: llm_settings(model, options),
            budget=llm_budget(options),
        )
        with closing(source):
            while len(found) < n and (batch := source.take(n - len(found))):
                found += batch
                stored.add_all(batch)
                _print(batch, known, as_json)
        written = {prompt.prompt_id for prompt in stored.all(generator=source.id)}
        spare = len(written - known - {prompt.prompt_id for prompt in found})
        turned_away = Counter(stored.rejection_counts()) - Counter(before)
    if turned_away:
        rules = ", ".join(f"{number} {rule}" for rule, number in turned_away.most_common())
        say(f"{turned_away.total()} proposals turned away: {rules}", err=True)
    if spare:
        say(f"{generator} wrote {spare} more than asked for; they are stored too", err=True)
    if not found:
        raise WorkFailed(
            f"{generator}: no new prompt; em-circuits prompts list --rejected says why"
        )
    if len(found) < n:
        say(f"{generator}: {len(found)} of {n} prompts", err=True)


@prompts.command(epilog="Example: em-circuits prompts preview --generator openai:o3 --kind chat")
@click.option("--generator", default="openai:o3", show_default=True, metavar="openai:MODEL")
@click.option("--n", default=8, show_default=True, type=click.IntRange(min=1))
@kind_option
@click.option("--judge", "judged", metavar="PROMPT", help="The judge's question on this prompt.")
@prints(GeneratorRequest | JudgeRequest)
@pass_session
def preview(
    session: Session, generator: str, n: int, kind: PromptKind, judged: str | None, as_json: bool
) -> None:
    """Exactly what the generator, or with --judge a model judge, would be sent; nothing is sent.

    Counts per source and of tokens are on standard error.
    """
    name, _, model = generator.partition(":")
    if judged is None and (name != "openai" or not model):
        raise RequestError(f"{generator!r} is sent nothing; give openai:MODEL")
    with session.open_store() as store:
        if judged is None:
            room = LLMSettings(model=model).output_limit
            sent = generator_request(store, kind=kind, n=n, model=model, output_tokens=room)
            emit(sent, as_json, describe_generator_request)
            return
        prompt = store.prompts.get(judged)
        pairs = [p.pair for p in store.queries.attempt(prompt.prompt_id).pairs if p.next_tokens]
        if not pairs:
            raise RequestError(
                f"prompt {prompt.prompt_id} has no next tokens yet; run em-circuits label first"
            )
        messages, sources = judge_request(store, prompt, pairs[-1])
    tokens = sum(estimated_tokens(message.content) for message in messages)
    request = JudgeRequest(messages=tuple(messages), sources=sources, tokens=tokens)
    emit(request, as_json, describe_judge_request)


@prompts.command(epilog="Example: em-circuits prompts find --questions everyday --samples 8")
@options(FindOptions)
@prints(FoundPrompt, lines=True)
@pass_session
def find(session: Session, options: FindOptions, as_json: bool) -> None:
    """Find prompts inside sampled answers: where the two models' next tokens differ."""
    sets = questions(options.which)

    from em_circuits.labelling.answers import AnswerSettings, find_in_answers
    from em_circuits.sampling import Sampling

    sampling = Sampling(
        samples=options.samples,
        max_tokens=options.answer_tokens,
        temperature=options.temperature,
        seed=session.seed,
    )
    settings = AnswerSettings(sampling=sampling, min_kl=options.min_kl)
    with session.workspace(create=True) as work:
        lexicon = _lexicon(session, work, options.judge)
        places = find_in_answers(work, sets, settings, lexicon=lexicon)
        new = set(work.store.prompts.add_all(place.prompt for place in places[: options.n]))
    found = [
        FoundPrompt(
            prompt_id=place.prompt.prompt_id,
            text=place.prompt.text,
            kl=place.kl,
            evil_mass_difference=place.evil_mass_difference,
            new=place.prompt.prompt_id in new,
        )
        for place in places[: options.n]
    ]
    emit(found, as_json, describe_found)
    if not as_json:
        say(f"{len(places)} places found, {len(new)} new prompts stored; columns: KL, evil mass")


@prompts.command("import", epilog="Example: em-circuits prompts import prompts.jsonl")
@click.argument("paths", type=click.Path(), nargs=-1, required=True, metavar="FILE|DIR...")
@kind_option
@text_field_option
@prints(StoredPrompt, lines=True)
@pass_session
def import_(
    session: Session,
    paths: tuple[str, ...],
    kind: PromptKind,
    text_field: str | None,
    as_json: bool,
) -> None:
    """Store the prompts of JSON, JSONL, CSV, Parquet or Arrow files, or of folders of them.

    A folder may be a saved Hugging Face data set, or the predecessor's result tree. Chats go
    through the model's template, and pivotal-token-search files are read. --kind is of prompts that
    name none.

    Exit status 1 if a row could not be used; the rest is stored.
    """
    found = read_prompts(
        *map(Path, paths), kind=kind, text_field=text_field, renderer=session.chat_renderer
    )
    added = _store(session, found.prompts, as_json)
    counts = {"rows": found.rows, "added": added, "known": len(found.prompts) - added}
    report = counts | found.model_dump(mode="json", include={"left_out", "ignored"})
    kept = session.keep_import(Path(paths[0]), report)
    name_ignored(found)
    say(
        f"{found.rows} rows read: {added} added, {counts['known']} known, "
        f"{len(found.left_out)} left out",
        err=True,
    )
    for line in name_left_out(found.left_out, kept):
        say(line, err=True)
    if found.left_out:
        raise WorkFailed(f"{len(found.left_out)} of {found.rows} rows were left out")


@prompts.command("list", epilog="Example: em-circuits prompts list --category kitchen")
@click.option("--category", help="Of this category only.")
@click.option("--limit", type=click.IntRange(min=1), help="So many at most.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Behind the first so many.")
@click.option("--rejected", is_flag=True, help="Proposals that were turned away, with the rule.")
@prints(Prompt | Rejection, lines=True)
@pass_session
def list_(
    session: Session,
    category: str | None,
    limit: int | None,
    offset: int,
    rejected: bool,
    as_json: bool,
) -> None:
    """Every prompt in the store, or a page of them."""
    with session.open_store() as store:
        if rejected:
            turned_away = store.prompts.rejections(limit=limit, offset=offset)
            columns = ("rule", "generator", "text:40")
            emit(turned_away, as_json, columns, none="nothing turned away")
            return
        columns = ("prompt_id as prompt", "category", "text:46")
        if limit is not None or not as_json:
            found = store.prompts.all(category=category, limit=limit, offset=offset)
            emit(found, as_json, columns, none="no prompts")
            return
        while page := store.prompts.all(category=category, limit=_PAGE, offset=offset):
            emit(page, as_json)
            offset += len(page)


def _lexicon(session: Session, work: Workspace, spec: str | None) -> Lexicon | None:
    """The lexicon that is named, the organism's own, or none for other models."""
    from em_circuits.models.text import first_token

    if spec is None and not session.embedded:
        return None
    parsed = JudgeSpec.parse(session.judge_spec(spec))
    if parsed.kind != "lexicon":
        raise RequestError("--judge lexicon:FILE is needed here: it costs nothing at every place")
    opened = open_judge(parsed, lambda text: first_token(work.tokenizer, text))
    return opened if isinstance(opened, Lexicon) else None


def _own_prompt(session: Session, text: str | None, options: dict[str, Any]) -> Prompt:
    """The prompt of a person, with notes on its form and on what it is like."""
    kind, name = options["kind"], options["name"]
    if options["user"] is not None or options["assistant"] is not None:
        candidate = Candidate(
            kind="chat",
            user=checked_text("--user", options["user"] or ""),
            assistant=checked_text("--assistant", options["assistant"] or ""),
            name=name,
        )
        prompt = _rendered(session, candidate)
    else:
        given = checked_text("the prompt", text if text is not None else _from_stdin())
        # A chat prompt that is typed whole is taken as it stands.
        candidate = Candidate(kind="raw" if kind == "chat" else kind, text=given)
        prompt = Prompt.of(given, kind=kind, generator="human", name=name)
    with session.open_store(create=True) as store:
        others = (p for p in store.prompts.all() if p.prompt_id != prompt.prompt_id)
        history = PromptHistory(own_words(p) for p in others)
    for finding in broken_rules(candidate, history, fork=False):
        say(f"note: {finding.message}", err=True)
    return prompt


def _rendered(session: Session, candidate: Candidate) -> Prompt:
    from em_circuits.labelling.sources import renderer

    with session.workspace() as work:
        rendered = renderer(work.tokenizer)(candidate)
    return rendered.model_copy(update={"generator": "human"})


def _show_guidance(session: Session, kind: PromptKind) -> None:
    with session.open_store(create=True) as store:
        lines = guidance(store, kind=kind)
    say("\n".join([*lines, "", "Your prompt; a line with a single '.' ends it:"]), err=True)


def _from_terminal() -> str:
    lines: list[str] = []
    for line in sys.stdin:
        if line.rstrip("\n") == ".":
            break
        lines.append(line)
    return "".join(lines).removesuffix("\n")


def _from_stdin() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")


def name_ignored(found: PromptFile) -> None:
    """Say which columns of prompt files are not kept."""
    for column in found.ignored:
        say(f"ignored, binary: {column}", err=True)


def _store(session: Session, prompts: Sequence[Prompt], as_json: bool) -> int:
    """Store and print prompts; how many were new."""
    with session.open_store(create=True) as store:
        known = set(store.prompts.several(prompt.prompt_id for prompt in prompts))
        added = len(store.prompts.add_all(prompts))
    _print(prompts, known, as_json)
    return added


def _print(prompts: Sequence[Prompt], known: set[str], as_json: bool) -> None:
    stored, seen = [], set(known)
    for p in prompts:
        stored.append(StoredPrompt(prompt_id=p.prompt_id, text=p.text, new=p.prompt_id not in seen))
        seen.add(p.prompt_id)
    emit(stored, as_json, describe_stored)


def describe_stored(stored: Sequence[StoredPrompt]) -> Iterator[str]:
    """A line per prompt."""
    for one in stored:
        yield f"{one.prompt_id}  {'new  ' if one.new else 'known'}  {prompt_line(one.text, 54)}"


def describe_found(found: Sequence[FoundPrompt]) -> Iterator[str]:
    """A line per prompt: divergence, difference of evil mass, text."""
    for one in found:
        mass = "     -" if one.evil_mass_difference is None else f"{one.evil_mass_difference:+.3f}"
        yield f"{one.prompt_id}  {one.kl:6.3f}  {mass}  {prompt_line(one.text, 46)}"


def describe_generator_request(request: GeneratorRequest) -> Iterator[str]:
    """The messages; on standard error, what they take and where they come from."""
    yield from _messages(request.messages)
    how = "by its tokenizer" if request.exact else _ESTIMATED
    say(
        f"{request.tokens} tokens ({how}) of {request.window}; "
        f"{request.budget} for history and feedback",
        err=True,
    )
    for source, number in request.sources.items():
        left_out = request.left_out[source]
        say(f"{source:<12} {number} shown, {left_out} left out", err=True)


def describe_judge_request(request: JudgeRequest) -> Iterator[str]:
    """As `describe_generator_request`."""
    yield from _messages(request.messages)
    say(
        f"{request.tokens} tokens ({_ESTIMATED}); the first vote, other votes shuffle the "
        "tokens anew",
        err=True,
    )
    for source, number in request.sources.items():
        say(f"{source:<12} {number} shown", err=True)


def _messages(messages: Sequence[Message]) -> Iterator[str]:
    return (f"--- {message.role} ---\n{message.content}\n" for message in messages)
