"""Options of a command, read from a pydantic model: each field is one, its docstring the help.

    class Answers(Options):
        samples: int = Field(default=8, ge=1)
        \"\"\"Answers to each question.\"\"\"
        n_random: Annotated[int, Flag("--random", metavar="N")] = 2
        \"\"\"Matched random draws.\"\"\"

    @click.command()
    @options(Answers)
    def evaluate(options: Answers) -> None: ...

A settings model of another room gives its options by an `OptionSet`, which keeps what is of the
command line alone (names, placeholders) beside it and reads the model back from what was typed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from em_circuits.cli.output import say
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

_LONGEST_CHOICE = 44
"""Characters of a choice that still stand beside its option in 80 columns."""
Model = TypeVar("Model", bound=BaseModel)
Command = TypeVar("Command", bound=Callable[..., Any])


class Options(Frozen, use_attribute_docstrings=True):
    """Base of the options of one command."""


class Flag:
    """What an option has beside its field: other names, a placeholder, whatever click takes.

    Args:
        names: As click takes them: ``"--random"``, or ``"--random", "n_random"`` where the
            configuration file and the environment call it by another name than the option's.
        settings: Arguments of `click.option` that replace those of the field.
    """

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


class SectionedCommand(click.Command):
    """A command whose help puts the options of a set with a title apart, after its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then each titled set."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = getattr(parameter, "section", "") or "Options"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class SectionedOption(click.Option):
    """An option that stands under a title of its own in the help."""

    def __init__(self, *names: Any, section: str = "", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section


class Renamed(click.Choice[str]):
    """A choice that takes words of the first edition too, and says what they are called now.

    Args:
        choices: The words of today.
        former: Word of the first edition -> word of today.
    """

    def __init__(self, choices: Iterable[str], former: Mapping[str, str]) -> None:
        words = [str(choice) for choice in choices]
        self._former = {old: str(new) for old, new in former.items() if str(new) in words}
        self._shown = click.Choice(words)
        self.words = tuple(words)
        super().__init__([*words, *self._former])

    def convert(self, value: Any, *context: Any) -> Any:
        """Today's word."""
        if value not in self._former:
            return self._shown.convert(value, *context)
        say(f"{value} is now called {self._former[value]}", err=True)
        return self._former[value]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The words of today."""
        return self._shown.get_metavar(param, ctx)


class Finite(type(click.FLOAT)):  # type: ignore[misc]
    """A number; neither inf nor nan, which no bound refuses."""

    def convert(self, value: Any, *context: Any) -> Any:
        """The number."""
        number = super().convert(value, *context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", *context)
        return number


class FiniteRange(click.FloatRange, Finite):
    """A finite number within bounds."""


class OptionSet(Generic[Model]):
    """The options of a settings model; a decorator that adds them to a command.

    Args:
        omit: Fields that are no options.
        flags: By field, what is of the command line alone.
    """

    def __init__(self, model: type[Model], *, omit: Iterable[str] = (), **flags: Flag) -> None:
        self.model, self._section = model, ""
        self._declared = {
            name: _declaration(name, field, flags.get(name) or _flag_of(field))
            for name, field in model.model_fields.items()
            if name not in set(omit)
        }
        options = {name: click.Option(names) for name, (names, _) in self._declared.items()}
        self._keys = {name: str(option.name) for name, option in options.items()}
        self._typed = {name: option.opts[0] for name, option in options.items()}

    def under(self, title: str) -> OptionSet[Model]:
        """The same under a title of its own in the help of a `SectionedCommand`."""
        self._section = title
        return self

    def __call__(self, command: Command) -> Command:
        for names, settings in reversed(self._declared.values()):
            own: dict[str, Any] = {"cls": SectionedOption, "section": self._section}
            own = own if self._section else {}
            command = click.option(*names, **settings, **own)(command)
        return command

    def read(self, values: Mapping[str, Any], **others: Any) -> Model:
        """The settings that were typed.

        Args:
            values: Of all options of the command, by click's names.
            others: Fields that are no options, or are given otherwise.

        Raises:
            RequestError: If they make no sense together.
        """
        typed = {name: values[key] for name, key in self._keys.items()}
        return checked(self.model, typed | others, self._typed)

    def without(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A command's values that are of no option of this set."""
        return {key: value for key, value in values.items() if key not in self._keys.values()}


def options(
    model: type[Model] | OptionSet[Model], into: str = "options"
) -> Callable[[Command], Command]:
    """Add a model's options to a command, which gets the model under the name `into`."""
    of_model = model if isinstance(model, OptionSet) else OptionSet(model)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gathered(*arguments: Any, **values: Any) -> Any:
            typed = {into: of_model.read(values)}
            return command(*arguments, **typed, **of_model.without(values))

        return of_model(gathered)  # type: ignore[return-value]

    return decorate


def checked(model: type[Model], values: Mapping[str, Any], names: Mapping[str, str]) -> Model:
    """A model of values that somebody typed.

    Args:
        values: By field.
        names: What a field is called where it was typed.

    Raises:
        RequestError: Naming the first value that does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False, include_context=False)
        where = ".".join(str(part) for part in first["loc"])
        name = names.get(where, where)
        reason = first["msg"].removeprefix("Value error, ")
        raise RequestError(f"{name}: {reason}" if name else reason) from None


def numbers(name: str, text: str) -> tuple[float, ...]:
    """Distinct finite numbers of an option, such as ``2,5,15``.

    Raises:
        RequestError: Naming the option.
    """
    try:
        found = tuple(float(value) for value in text.split(","))
    except ValueError:
        raise RequestError(f"{name} {text!r}: give numbers, such as 2,5,15") from None
    if not all(map(math.isfinite, found)) or len(set(found)) < len(found):
        raise RequestError(f"{name} {text!r}: give finite numbers, each once")
    return found


def _flag_of(field: FieldInfo) -> Flag:
    return next((item for item in field.metadata if isinstance(item, Flag)), Flag())


def _declaration(name: str, field: FieldInfo, flag: Flag) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names and settings of one field's option, as `click.option` takes them."""
    kind = _without_none(field.annotation)
    required = field.is_required()
    default = None if required else field.get_default(call_default_factory=True)
    settings: dict[str, Any] = {"help": _plain(field.description), "required": required}
    if kind is bool:
        settings |= {"is_flag": True, "default": default}
    else:
        multiple = get_origin(kind) is tuple
        item = _without_none(get_args(kind)[0]) if multiple else kind
        settings |= {"type": _click_type(item, field.metadata), "multiple": multiple}
        if default not in (None, ()):
            settings |= {"default": _typed(default), "show_default": True}
    names = flag.names or (f"--{name.replace('_', '-')}",)
    settings |= flag.settings
    kind = settings.get("type")
    if isinstance(kind, click.Choice) and "metavar" not in settings:
        words = kind.words if isinstance(kind, Renamed) else tuple(map(str, kind.choices))
        if len("|".join(words)) > _LONGEST_CHOICE:  # wider than a terminal beside the option
            settings["metavar"] = names[0].lstrip("-").upper()
            settings["help"] = f"{settings['help'] or ''} One of {', '.join(words)}.".strip()
    return names, settings


def _typed(default: Any) -> Any:
    """A default as it would be typed."""
    if isinstance(default, tuple):
        return tuple(_typed(item) for item in default)
    return str(default) if isinstance(default, StrEnum | Path) else default


def _without_none(annotation: Any) -> Any:
    """``int`` of ``int | None``."""
    if get_origin(annotation) in (Union, UnionType):
        (kind, *others) = [part for part in get_args(annotation) if part is not type(None)]
        assert not others, f"an option of several types: {annotation}"
        return kind
    return annotation


def _click_type(kind: Any, constraints: Iterable[Any]) -> click.ParamType[Any] | type | None:
    if get_origin(kind) is Literal:
        return click.Choice(list(get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return click.Choice([str(item) for item in kind])
    if kind is Path:
        return click.Path(path_type=Path)
    if kind not in (int, float):
        return str
    limits: dict[str, Any] = {}
    for limit in constraints:
        match limit:
            case Ge(ge=low):
                limits["min"] = low
            case Gt(gt=low):
                limits |= {"min": low, "min_open": True}
            case Le(le=high):
                limits["max"] = high
            case Lt(lt=high):
                limits |= {"max": high, "max_open": True}
    if kind is float:
        return FiniteRange(**limits) if limits else Finite()
    return click.IntRange(**limits) if limits else kind


def _plain(description: str | None) -> str | None:
    """A docstring as help: without marks of code."""
    return None if description is None else " ".join(description.replace("`", "").split())
