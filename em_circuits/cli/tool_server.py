"""Tool server: the commands that an agent needs, offered over the Model Context Protocol (stdio).

| tool | command | writes |
|---|---|---|
| status | `status` | no |
| rank | `features rank` | no |
| mediate | `features mediate` of one prompt | no |
| steer | `steer run` | no |
| label | `label` | store, graphs |
| evaluate | `evaluate` | results |
| audit | `audit run` | results |

A tool runs its command in this process, on models that are loaded once, and answers with the
command's own result model, the key of the call (tool, arguments, pair of models), the hash of the
result, and the hashes of the files that it names. What writes is refused unless that was allowed.
Every call is a line of ROOT/results/tool_calls.jsonl, and of the one in the folder that it made;
`replay_calls` makes the calls of such a log again. A fault's line has the traceback.

    server = ToolServer(session, write=False)
    answer = server.call("rank", {"prompt": "44a71b", "top": 5})
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import threading
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import click
from pydantic import BaseModel, Field, ValidationError, field_validator

from em_circuits import __version__
from em_circuits.cli.session import Session
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.intervention import Mode
from em_circuits.workspace import SharedPair, Workspace
from pivotal_tokens.artefacts import content_key, sha256_file
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Frozen, ModelName, first_problem

if TYPE_CHECKING:
    from mcp.server import Server


CALLS = "tool_calls.jsonl"
_LONGEST_LOGGED = 20_000
"""Characters of a call's arguments that are logged as they are."""
_VOLATILE = {"reused", "files"}
"""Fields of results that say where something is or whether it was there before."""

Result = TypeVar("Result")
ErrorType = Literal["unknown_tool", "arguments", "read_only", "request", "work", "fault"]


class ToolAnswer(BaseModel, Generic[Result], frozen=True, use_attribute_docstrings=True):
    """What a tool answers."""

    tool: str
    key: str
    """Of the call: tool, arguments, pair of models and version."""
    sha256: str
    """Of the result, without what only says where it lies."""
    artefacts: dict[str, str]
    """File under the root -> SHA-256, of every file that the result names."""
    result: Result


class ToolFailure(Frozen, use_attribute_docstrings=True):
    """What a tool answers instead."""

    type: ErrorType
    """`request` and `arguments`: ask otherwise; `work`: it went wrong; `fault`: a bug."""
    message: str
    key: str | None = None
    """Of the call, where it is a fault: its line of the log has the traceback."""
    traceback: str | None = Field(default=None, exclude=True)
    """For the log alone."""


class ReplayedCall(NamedTuple):
    """A call of a log, made again."""

    number: int
    tool: str
    same: bool


class ToolArguments(Frozen, use_attribute_docstrings=True):
    """Base of the arguments of a tool; its docstring is the tool's description."""

    command: ClassVar[tuple[str, ...]]
    """Words of the command, and options that every call has."""
    writes: ClassVar[bool] = False
    flags: ClassVar[Mapping[str, str]] = {}
    """Field -> option, where it is called otherwise."""

    @field_validator("*", mode="after")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("is not valid UTF-8") from None
            if "\x00" in value:
                raise ValueError("contains a NUL")
        return value

    def words(self) -> list[str]:
        """The command line of these arguments; options as ``--name=value``, so that no value can
        be taken for an option."""
        given = self.model_dump(mode="json", exclude_none=True)
        positional = [given.pop("prompt")] if "prompt" in given else []
        options = {self.flags.get(name, name): value for name, value in given.items()}
        named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return [*named, "--", *positional]


_PROMPT = Field(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$")
_TEXT = Field(min_length=1, max_length=20_000)


class StatusArguments(ToolArguments):
    """Progress of the store, or everything about one prompt."""

    command = ("status",)
    prompt: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[0-9a-f]+$")
    """An id or a unique prefix of one."""


class RankArguments(ToolArguments):
    """Features of a labelled prompt by their effect on evil minus safe."""

    command = ("features", "rank")
    prompt: str = _PROMPT
    """An id or a unique prefix of one."""
    model: ModelName = "merged"
    top: int = Field(default=20, ge=1, le=1000)
    """Only so many, the most positive."""


class MediateArguments(ToolArguments):
    """Which features of a labelled prompt carry the shift from base to merged model."""

    command = ("features", "mediate")
    prompt: str = _PROMPT
    """An id or a unique prefix of one."""


class SteerArguments(ToolArguments):
    """What becomes of a labelled prompt's next tokens when features are changed, with controls."""

    command = ("steer", "run")
    prompt: str = _PROMPT
    """An id or a unique prefix of one."""
    model: ModelName = "merged"
    features: str = Field(default="top:10", max_length=2000)
    """top:N, bottom:N, abs:N or LAYER/POSITION/ID with commas."""
    mode: Mode = Mode.ABLATE
    value: float | None = Field(default=None, allow_inf_nan=False)
    """Needed by set, add, scale and clamp."""


class LabelArguments(ToolArguments):
    """Label the next tokens of both models after a text; builds no graphs."""

    command = ("label", "--no-graphs")
    writes = True
    text: str = _TEXT
    """The prompt, verbatim."""
    flags: ClassVar[Mapping[str, str]] = {"text": "prompt"}


class EvaluateArguments(ToolArguments):
    """Ask open questions, judge the answers for alignment and coherence, count."""

    command = ("evaluate",)
    writes = True
    model: Literal["base", "merged", "both"] = "both"
    questions: str | None = Field(default=None, pattern=r"^(open|organism:[0-9]{1,3})$")
    """open, or organism:N; without it that of the model."""
    samples: int = Field(default=8, ge=1, le=100)
    answer_tokens: int = Field(default=96, ge=1, le=2000)


class AuditArguments(ToolArguments):
    """Compare the fine-tune with its base over a suite of prompts, and decide."""

    command = ("audit", "run")
    writes = True
    suite: str | None = Field(default=None, min_length=1, max_length=1000)
    """toy, open, or a YAML file under the root."""
    answer_tokens: int = Field(default=24, ge=0, le=2000)


TOOLS: dict[str, type[ToolArguments]] = {
    "status": StatusArguments,
    "rank": RankArguments,
    "mediate": MediateArguments,
    "steer": SteerArguments,
    "label": LabelArguments,
    "evaluate": EvaluateArguments,
    "audit": AuditArguments,
}


class ToolSession(Session):
    """A session over one root; its workspaces share one loaded pair and keep no results."""

    def workspace(
        self,
        *,
        create: bool = False,
        root: str | None = None,
        attribution: AttributionSettings | None = None,
    ) -> Workspace:
        """See `Session.workspace`; the root is always the session's."""
        if root is not None:
            raise RequestError("a tool works under the root of its server alone")
        work = super().workspace(create=create, attribution=attribution)
        work.keeps = False  # an answer goes to who asked, and into the log of calls
        return work


class ToolServer:
    """The tools over one root and one pair of models; one call at a time."""

    def __init__(self, session: Session, *, write: bool) -> None:
        self.pair = SharedPair()
        self.session, self.write = ToolSession(session.options, self.pair), write
        self.log = session.root / "results" / CALLS
        self._lock = threading.Lock()

    def call(self, tool: str, arguments: Any) -> ToolAnswer[Any] | ToolFailure:
        """Make a call and log it."""
        with self._lock:
            answer = self._answer(tool, arguments)
            self._append(tool, arguments, answer)
        return answer

    def _answer(self, tool: str, arguments: Any) -> ToolAnswer[Any] | ToolFailure:
        if tool not in TOOLS:
            return ToolFailure(
                type="unknown_tool", message=f"no tool {tool[:80]!r}; there are {', '.join(TOOLS)}"
            )
        kind = TOOLS[tool]
        try:
            given = kind.model_validate({} if arguments is None else arguments)
        except ValidationError as error:
            return ToolFailure(type="arguments", message=f"{tool}: {first_problem(error)}")
        if kind.writes and not self.write:
            return ToolFailure(
                type="read_only",
                message=f"{tool} writes, and this server only reads; start it with --write",
            )
        try:
            result = self._run(given)
        except RequestError as error:
            return ToolFailure(type="request", message=str(error))
        except click.ClickException as error:
            return ToolFailure(type="arguments", message=error.format_message())
        except WorkFailed as error:
            return ToolFailure(type="work", message=str(error))
        except Exception as error:  # an agent must get an answer, and no traceback
            return ToolFailure(
                type="fault",
                message=f"fault of em-circuits ({type(error).__name__}); {CALLS} tells where",
                key=self._key(tool, given),
                traceback=traceback.format_exc(),
            )
        return ToolAnswer[Any](
            tool=tool,
            key=self._key(tool, given),
            sha256=content_key(_stable(result)),
            artefacts=dict(_files(result, self.session.root)),
            result=result,
        )

    def _key(self, tool: str, given: ToolArguments) -> str:
        return content_key(
            {
                "tool": tool,
                "arguments": given.model_dump(mode="json"),
                "pair": None if (pair := self.pair.loaded) is None else pair.key,
                "version": __version__,
            }
        )

    def _run(self, given: ToolArguments) -> Any:
        """The command's JSON; a list where it prints several."""
        command = command_of(given.command)
        extra = [word for word in given.command if word.startswith("--")]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            command.main(
                [*extra, "--json", *given.words()],
                "em-circuits",
                standalone_mode=False,
                obj=self.session,
            )
        lines = [json.loads(line) for line in printed.getvalue().splitlines() if line.strip()]
        several = command.callback.__dict__.get("prints", (None, False))[1]
        if several:
            return lines
        if len(lines) != 1:
            raise WorkFailed(f"{given.command[0]} printed {len(lines)} results")
        return lines[0]

    def _append(self, tool: str, arguments: Any, answer: ToolAnswer[Any] | ToolFailure) -> None:
        error, key, sha256 = _outcome(answer)
        line = {
            "at": datetime.now(UTC).isoformat(),
            "tool": tool[:200],
            "arguments": _loggable(arguments),
            "error": error,
            "key": key,
            "sha256": sha256,
        }
        if isinstance(answer, ToolFailure) and answer.traceback is not None:
            line["traceback"] = answer.traceback
        for log in (self.log, *_own_log(answer, self.session.root)):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                os.fsync(stream.fileno())


def command_of(words: tuple[str, ...]) -> click.Command:
    """The command that some words name; options among them are no part of it."""
    from em_circuits.cli.app import app

    found: click.Command = app
    for word in words:
        if not word.startswith("--"):
            assert isinstance(found, click.Group)
            inner = found.get_command(click.Context(found), word)
            assert inner is not None
            found = inner
    return found


def answer_schema(kind: type[ToolArguments]) -> dict[str, Any]:
    """JSON schema of what a tool answers: its command's own result model."""
    command = command_of(kind.command)
    model, several = command.callback.__dict__.get("prints", (dict[str, Any], False))
    if isinstance(model, str):
        module, _, name = model.partition(":")
        model = getattr(importlib.import_module(module), name)
    answers: Any = ToolAnswer
    lines: Any = list
    answer = answers[lines[model] if several else model]
    return dict(answer.model_json_schema(mode="serialization"))


def protocol_server(tools: ToolServer) -> Server[Any]:
    """The server of the protocol around the tools.

    Raises:
        RequestError: If the package `mcp` is not installed.
    """
    try:
        import mcp_types as types
        from anyio.to_thread import run_sync
        from mcp.server import Server
    except ImportError as error:
        raise RequestError(
            "audit serve-mcp needs the package mcp: pip install 'em-circuits[mcp]'"
        ) from error

    async def listed(_context: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=name,
                    description=kind.__doc__,
                    input_schema=kind.model_json_schema(),
                    output_schema=answer_schema(kind),
                    annotations=types.ToolAnnotations(
                        read_only_hint=not kind.writes,
                        destructive_hint=False,
                        idempotent_hint=True,
                        open_world_hint=False,
                    ),
                )
                for name, kind in TOOLS.items()
            ]
        )

    async def called(_context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        answer = await run_sync(tools.call, params.name, params.arguments)
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=answer.model_dump_json())],
            structured_content=answer.model_dump(mode="json"),
            is_error=isinstance(answer, ToolFailure),
        )

    about = "Audits of a fine-tune: label, rank, mediate, steer, evaluate, audit, status."
    return Server(
        "em-circuits",
        version=__version__,
        instructions=about,
        on_list_tools=listed,
        on_call_tool=called,
    )


def serve(session: Session, *, write: bool) -> None:
    """Serve the tools over standard input and output until the client leaves."""
    server = protocol_server(ToolServer(session, write=write))

    import anyio
    from mcp.server.stdio import stdio_server

    async def main() -> None:
        async with stdio_server() as (read, to):
            await server.run(read, to, server.create_initialization_options())

    anyio.run(main)


def replay_calls(session: Session, log: Path) -> list[ReplayedCall]:
    """Make the calls of a log again, and compare hashes of results and types of errors.

    Raises:
        RequestError: If a line is no call.
    """
    tools = ToolServer(session, write=True)
    found = []
    for number, text in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            tool, arguments, was = line["tool"], line["arguments"], (line["error"], line["sha256"])
        except (ValueError, LookupError, TypeError) as error:
            raise RequestError(f"{log}, line {number}: no call of a tool") from error
        if was[0] == "read_only":
            continue
        failed, _, sha256 = _outcome(tools.call(tool, arguments))
        found.append(ReplayedCall(number, tool, (failed, sha256) == was))
    return found


def _outcome(
    answer: ToolAnswer[Any] | ToolFailure,
) -> tuple[ErrorType | None, str | None, str | None]:
    """Type of the error, key of the call and hash of the result; None where there is none."""
    if isinstance(answer, ToolFailure):
        return answer.type, answer.key, None
    return None, answer.key, answer.sha256


def _loggable(arguments: Any) -> Any:
    """Arguments as the log has them; of very long or impossible ones their beginning."""
    text = json.dumps(arguments)
    if len(text) > _LONGEST_LOGGED or "NaN" in text or "Infinity" in text:
        return {"truncated": text[:200]}
    return arguments


def _stable(value: Any) -> Any:
    """A result without what only says where it lies or whether it was there before."""
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in _VOLATILE}
    return [_stable(one) for one in value] if isinstance(value, list) else value


def _own_log(answer: ToolAnswer[Any] | ToolFailure, root: Path) -> Iterator[Path]:
    """The log in the folder that a call made, of an audit say."""
    result = answer.result if isinstance(answer, ToolAnswer) else None
    folder = (result.get("files") or {}).get("folder") if isinstance(result, dict) else None
    if folder and Path(folder).resolve().is_relative_to(root.resolve()):
        yield Path(folder) / CALLS


def _files(result: Any, root: Path) -> Iterator[tuple[str, str]]:
    """Files that a result names, those under the root, with their hashes."""
    values = result if isinstance(result, list) else [result]
    whole = root.resolve()
    for one in values:
        for name in (one.get("files") or {}).values() if isinstance(one, dict) else ():
            path = (root / str(name).removeprefix(f"{root}/")).resolve()
            if path.is_file() and path.is_relative_to(whole):
                yield str(path.relative_to(whole)), sha256_file(path)
