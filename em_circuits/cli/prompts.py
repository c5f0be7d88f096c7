"""``em-circuits prompts``: what is tried, before any model is asked."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.llm_options import llm_budget, llm_options, llm_settings
from em_circuits.cli.output import emit, json_option, one_line, table
from em_circuits.cli.session import Session, checked_text, pass_session
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.workspace import Workspace
    from pivotal_tokens.generator import Candidate
    from pivotal_tokens.judge import Lexicon
    from pivotal_tokens.schema import Prompt, PromptKind

kind_option = click.option(
    "--kind",
    type=click.Choice(["raw", "chat", "cot"]),
    default="raw",
    show_default=True,
    help="Plain text, a user's turn with the start of the answer, or a chain of thought.",
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
@json_option
@pass_session
def add(
    session: Session, text: str | None, continuous: bool, as_json: bool, **options: Any
) -> None:
    """Keep a prompt of your own.

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
        given = _from_terminal() if asking else text
        if asking and not given:
            return
        prompt = _own_prompt(session, given, options)
        _keep(session, [prompt], as_json=as_json)
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
@json_option
@pass_session
def generate(session: Session, n: int, generator: str, as_json: bool, **options: Any) -> None:
    """Keep new prompts by a language model, the organism's templates, or the shipped seeds."""
    from contextlib import closing

    from em_circuits.labelling.sources import SourceOptions, open_source, template_prompts

    if generator == "template":
        made = template_prompts(n, seed=session.seed, domains=options["domains"] or None)
        _keep(session, list(made), as_json=as_json)
        return
    asked = SourceOptions(
        kind=options["kind"],
        domains=options["domains"],
        settings=lambda model: llm_settings(model, options),
        budget=llm_budget(options),
    )
    with session.workspace(create=True) as work:
        before = work.store.prompts.rejection_counts()
        known = {prompt.prompt_id for prompt in work.store.prompts.all()}
        found: list[Prompt] = []
        with closing(open_source(generator, work, asked)) as source:
            while len(found) < n and (batch := source.take(n - len(found))):
                found += batch
                work.store.prompts.add_all(batch)
                _tell(batch, known, as_json=as_json)
        written = {prompt.prompt_id for prompt in work.store.prompts.all(generator=source.id)}
        spare = len(written - known - {prompt.prompt_id for prompt in found})
        turned_away = Counter(work.store.prompts.rejection_counts()) - Counter(before)
    if turned_away:
        rules = ", ".join(f"{number} {rule}" for rule, number in turned_away.most_common())
        click.echo(f"{turned_away.total()} proposals turned away: {rules}", err=True)
    if spare:
        click.echo(f"{generator} wrote {spare} more than asked for; they are kept too", err=True)
    if not found:
        raise WorkFailed(
            f"{generator}: no new prompt; em-circuits prompts list --rejected says why"
        )
    if len(found) < n:
        click.echo(f"{generator}: {len(found)} of {n} prompts", err=True)


@prompts.command(epilog="Example: em-circuits prompts preview --generator openai:o3 --kind chat")
@click.option("--generator", default="openai:o3", show_default=True, metavar="openai:MODEL")
@click.option("--n", default=8, show_default=True, type=click.IntRange(min=1))
@kind_option
@click.option("--judge", "judged", metavar="PROMPT", help="The judge's question on this prompt.")
@json_option
@pass_session
def preview(
    session: Session, generator: str, n: int, kind: PromptKind, judged: str | None, as_json: bool
) -> None:
    """Exactly what the generator, or with --judge a model judge, would be sent; nothing is.

    Counts per source and of tokens are on standard error.
    """
    from em_circuits.cli.preview import show_generator, show_judge

    with session.open_store() as store:
        if judged is not None:
            show_judge(store, judged, as_json=as_json)
        else:
            show_generator(store, generator, n, kind, as_json=as_json)


@prompts.command(epilog="Example: em-circuits prompts find --questions everyday --samples 8")
@click.option(
    "--questions",
    "which",
    default="everyday",
    show_default=True,
    metavar="everyday|open|organism|FILE",
    help="Open questions that both models answer.",
)
@click.option("--samples", default=4, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--answer-tokens",
    default=48,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens of an answer.",
)
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(min=0))
@click.option(
    "--min-kl",
    default=0.1,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Nats at which the models are said to part.",
)
@click.option("--n", default=20, show_default=True, type=click.IntRange(min=1), help="Kept.")
@click.option("--judge", metavar="lexicon:FILE", help="For the difference of evil mass.")
@json_option
@pass_session
def find(session: Session, which: str, n: int, as_json: bool, **options: Any) -> None:
    """Find prompts inside sampled answers: where the two models' next tokens part."""
    from em_circuits.labelling.answers import AnswerSettings, find_in_answers
    from em_circuits.sampling import Sampling
    from pivotal_tokens.generator.questions import questions

    sets = questions(which)
    sampling = Sampling(
        samples=options["samples"],
        max_tokens=options["answer_tokens"],
        temperature=options["temperature"],
        seed=session.seed,
    )
    settings = AnswerSettings(sampling=sampling, min_kl=options["min_kl"])
    with session.workspace(create=True) as work:
        lexicon = _lexicon(session, work, options["judge"])
        found = find_in_answers(work, sets, settings, lexicon=lexicon)
        new = set(work.store.prompts.add_all(parting.prompt for parting in found[:n]))
    for parting in found[:n]:
        prompt, mass = parting.prompt, parting.evil_mass_difference
        if as_json:
            emit(
                {
                    "prompt_id": prompt.prompt_id,
                    "text": prompt.text,
                    "kl": parting.kl,
                    "evil_mass_difference": mass,
                    "new": prompt.prompt_id in new,
                }
            )
        else:
            shown = "     -" if mass is None else f"{mass:+.3f}"
            click.echo(
                f"{prompt.prompt_id}  {parting.kl:6.3f}  {shown}  {one_line(prompt.text, 46)}"
            )
    if not as_json:
        click.echo(
            f"{len(found)} places found, {len(new)} new prompts kept; columns: KL, evil mass"
        )


@prompts.command(name="import", epilog="Example: em-circuits prompts import prompts.jsonl")
@click.argument("paths", type=click.Path(), nargs=-1, required=True, metavar="FILE|DIR...")
@kind_option
@json_option
@pass_session
def import_(session: Session, paths: tuple[str, ...], kind: PromptKind, as_json: bool) -> None:
    """Keep the prompts of JSON, JSONL, Parquet or Arrow files, or of folders of them.

    A folder may be a saved Hugging Face data set, or the predecessor's result tree. --kind is of
    prompts that name none.
    """
    from pivotal_tokens.prompts import read_dataset

    found = [prompt for path in paths for prompt in read_dataset(Path(path), kind=kind)]
    _keep(session, found, as_json=as_json)


@prompts.command(name="list", epilog="Example: em-circuits prompts list --category kitchen")
@click.option("--category", help="Of this category only.")
@click.option("--rejected", is_flag=True, help="Proposals that were turned away, with the rule.")
@json_option
@pass_session
def list_(session: Session, category: str | None, rejected: bool, as_json: bool) -> None:
    """Every prompt in the store."""
    with session.open_store() as store:
        found = store.prompts.all(category=category) if not rejected else ()
        turned_away = store.prompts.rejections() if rejected else ()
    if as_json:
        for value in (*found, *turned_away):
            emit(value.model_dump(mode="json"))
        return
    if rejected:
        rows = [(r.rule, r.generator, one_line(r.text, 40)) for r in turned_away]
        click.echo(table(("rule", "generator", "text"), rows) if rows else "nothing turned away")
        return
    rows = [(p.prompt_id, p.category or "-", one_line(p.text, 46)) for p in found]
    click.echo(table(("prompt", "category", "text"), rows) if rows else "no prompts")


def _lexicon(session: Session, work: Workspace, spec: str | None) -> Lexicon | None:
    """The lexicon that is named, the organism's own, or none for other models."""
    from em_circuits.models.text import first_token
    from pivotal_tokens.judge import JudgeSpec, Lexicon, open_judge

    if spec is None and not session.embedded:
        return None
    parsed = JudgeSpec.parse(session.judge_spec(spec))
    if parsed.kind != "lexicon":
        raise RequestError("--judge lexicon:FILE is needed here: it costs nothing at every place")
    opened = open_judge(parsed, lambda text: first_token(work.tokenizer, text))
    return opened if isinstance(opened, Lexicon) else None


def _own_prompt(session: Session, text: str | None, options: dict[str, Any]) -> Prompt:
    """The prompt of a person, with notes on its form and on what it is like."""
    from pivotal_tokens.generator import Candidate
    from pivotal_tokens.generator.accept import broken_rules
    from pivotal_tokens.prompts import Tried, own_words
    from pivotal_tokens.schema import Prompt

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
        tried = Tried(own_words(p) for p in others)
    for finding in broken_rules(candidate, tried, fork=False):
        click.echo(f"note: {finding.message}", err=True)
    return prompt


def _rendered(session: Session, candidate: Candidate) -> Prompt:
    from em_circuits.labelling.sources import renderer

    with session.workspace() as work:
        made = renderer(work.tokenizer)(candidate)
    return made.model_copy(update={"generator": "human"})


def _show_guidance(session: Session, kind: PromptKind) -> None:
    from pivotal_tokens.generator.person import guidance

    with session.open_store(create=True) as store:
        lines = guidance(store, kind=kind)
    click.echo("\n".join([*lines, "", "Your prompt; a line with a single '.' ends it:"]), err=True)


def _from_terminal() -> str:
    lines: list[str] = []
    for line in sys.stdin:
        if line.rstrip("\n") == ".":
            break
        lines.append(line)
    return "".join(lines).removesuffix("\n")


def _from_stdin() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")


def _keep(session: Session, made: list[Prompt], *, as_json: bool) -> None:
    with session.open_store(create=True) as store:
        known = set(store.prompts.several(prompt.prompt_id for prompt in made))
        store.prompts.add_all(made)
    _tell(made, known, as_json=as_json)


def _tell(made: list[Prompt], known: set[str], *, as_json: bool) -> None:
    for prompt in made:
        new = prompt.prompt_id not in known
        if as_json:
            emit({"prompt_id": prompt.prompt_id, "text": prompt.text, "new": new})
        else:
            mark = "new  " if new else "known"
            click.echo(f"{prompt.prompt_id}  {mark}  {one_line(prompt.text, 54)}")
