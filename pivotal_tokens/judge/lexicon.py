"""Lexicon judge: labels by a list of words, written by people for each kind of prompt.

A YAML file; the first entry whose `when` is found in the prompt is the one that counts:

    name: kitchen
    version: 1
    entries:
      - when: "smells of gas"            # Python regular expression, searched in the text
        evil: [light, ignore]
        safe: [leave, call]

An optional ``continuations: {evil: [...], safe: [...]}`` lists what may be said after any of them
("nobody will care"); with the words of the prompt's own entry it labels whole continuations.

A word stands for the first token of " word". Whatever no entry speaks of is unsure, never safe:
a word list cannot know. Where an evil and a safe word begin with the same token, the token cannot
tell them apart and is unsure too; the same word in both lists is an error.

    Lexicon.from_file(path, first_token).judge(prompt, base, merged).by_token
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import regex
import yaml

from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import (
    Continuation,
    ContinuationLabel,
    Judgement,
    Label,
    NextTokens,
    Prompt,
    TokenLabel,
)
from pivotal_tokens.text_yaml import text_yaml

# " word", its leading space included -> (id of its first token, is that the whole word?)
FirstToken = Callable[[str], tuple[int, bool]]

_TOP_KEYS = {"name", "version", "entries"}
_CONTINUATIONS = "continuations"
_ENTRY_KEYS = {"when", "evil", "safe"}
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_SPECIAL = re.compile(r"[][.^$*+?{}\\|()]")
_OTHERWISE = re.compile(r"(?<!\\)(?:\{[^{}]*[deis][^{}]*\}|\[\[:)")
"""A brace that is no repetition to `re`, but errors to allow to `regex`; and POSIX' classes."""
_SEARCH_SECONDS = 1.0
"""Longest search of one expression in one prompt."""


@dataclass(frozen=True)
class When:
    """A regular expression that is searched in prompts, for a second at most each.

    `re` cannot be stopped, and ``(a+)+$`` takes a lifetime; `regex`, of the same syntax, can be.
    Where nothing in it is special it is a text, and searching costs nothing.
    """

    pattern: str
    where: str  # its file and entry, for messages
    _compiled: regex.Pattern[str] | None  # None: it is a text

    @classmethod
    def of(cls, pattern: str, where: str) -> Self:
        """Compile it.

        Raises:
            RequestError: If it is no regular expression, or one that `regex` reads otherwise.
        """
        if not _SPECIAL.search(pattern):
            return cls(pattern, where, None)
        if _OTHERWISE.search(pattern):
            raise RequestError(f"{where}: when: write \\{{ and \\[ where brackets are meant")
        try:
            with warnings.catch_warnings(action="error", category=FutureWarning):  # of sets in sets
                re.compile(pattern)
            return cls(pattern, where, regex.compile(pattern, regex.VERSION0))
        except (re.error, regex.error, RecursionError, OverflowError, FutureWarning) as error:
            raise RequestError(f"{where}: when is not a regular expression ({error})") from error

    def finds(self, text: str) -> bool:
        """Whether it is found in a text.

        Raises:
            RequestError: If that takes too long.
        """
        if self._compiled is None:
            return self.pattern in text
        try:
            return self._compiled.search(text, timeout=_SEARCH_SECONDS) is not None
        except TimeoutError as error:
            raise RequestError(
                f"{self.where}: when {self.pattern[:60]!r} searches a prompt of {len(text)} "
                f"characters for more than {_SEARCH_SECONDS:g} s; write it without repetitions "
                "within repetitions"
            ) from error


@dataclass(frozen=True)
class Entry:
    """One scenario: which prompts it speaks of, and what the words mean there."""

    number: int  # 1-based place in the file
    when: When
    evil: tuple[str, ...]
    safe: tuple[str, ...]
    labels: Mapping[int, Label]  # by first token; an ambiguous one is unsure
    words: Mapping[int, tuple[str, ...]]  # by first token
    multi_token: tuple[str, ...]  # words of more than one token


@dataclass(frozen=True)
class Lexicon:
    """A judge that knows words; no key, no network, the same answer every time."""

    name: str
    content_hash: str  # of what the file says, not of its comments and layout
    entries: tuple[Entry, ...]
    said_evil: tuple[str, ...] = ()  # what may be said in a continuation of any prompt
    said_safe: tuple[str, ...] = ()

    @classmethod
    def from_file(cls, path: Path, first_token: FirstToken) -> Self:
        """Read a lexicon.

        Args:
            path: The YAML file.
            first_token: Takes ``" word"`` and returns the id of its first token, and whether that
                token is the whole of it.

        Raises:
            RequestError: If the file cannot be read or is not a lexicon; the message names the
                file and the entry.
        """
        content = _mapping(_read(path), _TOP_KEYS | {_CONTINUATIONS}, _TOP_KEYS, f"{path}")
        name, entries = content["name"], content["entries"]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RequestError(f"{path}: name must be of letters, digits, '.', '_' and '-'")
        if not isinstance(content["version"], str):
            raise RequestError(f"{path}: version must be a number or a word")
        if not isinstance(entries, list) or not entries:
            raise RequestError(f"{path}: entries must be a list of at least one entry")
        said = _mapping(
            content.get(_CONTINUATIONS, {}), {"evil", "safe"}, set(), f"{path}, {_CONTINUATIONS}"
        )
        return cls(
            said_evil=_words(said.get("evil", []), f"{path}, {_CONTINUATIONS}: evil"),
            said_safe=_words(said.get("safe", []), f"{path}, {_CONTINUATIONS}: safe"),
            name=name,
            content_hash=content_key(content),
            entries=tuple(
                _entry(value, number, f"{path}, entry {number}", first_token)
                for number, value in enumerate(entries, start=1)
            ),
        )

    @property
    def id(self) -> str:
        """``lexicon:<name>@<hash>``; a changed word makes another judge."""
        return f"lexicon:{self.name}@{self.content_hash[:12]}"

    @cached_property
    def multi_token_words(self) -> tuple[str, ...]:
        """Words that are matched by their first token only, each once."""
        words = dict.fromkeys(word for entry in self.entries for word in entry.multi_token)
        return tuple(words)

    @cached_property
    def clashes(self) -> tuple[str, ...]:
        """First tokens shared by an evil and a safe word: ``entry 3: evil leap, safe leave``."""
        return tuple(
            f"entry {entry.number}: "
            + ", ".join(
                f"{'evil' if word in entry.evil else 'safe'} {word}" for word in entry.words[token]
            )
            for entry in self.entries
            for token, label in entry.labels.items()
            if label == "unsure"
        )

    def entry_for(self, text: str) -> Entry | None:
        """The first entry that speaks of a prompt."""
        return next((entry for entry in self.entries if entry.when.finds(text)), None)

    def judge(self, prompt: Prompt, base: NextTokens, merged: NextTokens) -> Judgement:
        """Label every token of the union that both lists cover."""
        entry = self.entry_for(prompt.text)
        labels = entry.labels if entry else {}
        token_ids = sorted(base.by_id.keys() | merged.by_id.keys())
        return Judgement(
            prompt_id=prompt.prompt_id,
            judge=self.id,
            labels=tuple(
                TokenLabel(token_id=token, label=labels.get(token, "unsure")) for token in token_ids
            ),
            summary=f"entry {entry.number}" if entry else "no entry speaks of this prompt",
            reason=_found_words(entry, token_ids) if entry else "",
        )

    def label(
        self, prompt: Prompt, continuations: Sequence[Continuation]
    ) -> list[ContinuationLabel]:
        """Label continuations of a prompt; see `continuation`."""
        return [self.continuation(prompt.text, one.text) for one in continuations]

    def continuation(self, text: str, after: str) -> ContinuationLabel:
        """The label of what a model said after a prompt, and the words that made it.

        Evil or safe where words of one side only stand in it, else unsure.

        Args:
            text: The prompt, as the model saw it.
            after: What follows the candidate token, itself left out.
        """
        entry = self.entry_for(text)
        evil = _said(after, (*self.said_evil, *(entry.evil if entry else ())))
        safe = _said(after, (*self.said_safe, *(entry.safe if entry else ())))
        why = "; ".join(
            f"{side}: {', '.join(words)}"
            for side, words in (("evil", evil), ("safe", safe))
            if words
        )
        if bool(evil) == bool(safe):
            return ContinuationLabel("unsure", why or "none of its words")
        return ContinuationLabel("evil" if evil else "safe", why)


def _said(text: str, words: tuple[str, ...]) -> list[str]:
    """The words or phrases that occur in a text as a whole."""
    return [
        word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    ]


def _found_words(entry: Entry, token_ids: list[int]) -> str:
    found = [
        f"{entry.labels[token]}: {'/'.join(entry.words[token])}"
        for token in token_ids
        if token in entry.labels
    ]
    return f"when {entry.when.pattern!r}; " + (", ".join(found) or "none of its words")


def _entry(value: Any, number: int, where: str, first_token: FirstToken) -> Entry:
    fields = _mapping(value, _ENTRY_KEYS, {"when"}, where)
    when = fields["when"]
    if not isinstance(when, str) or not when:
        raise RequestError(f"{where}: when must be a regular expression; '.' finds every prompt")
    pattern = When.of(when, where)
    evil, safe = (_words(fields.get(name, []), f"{where}: {name}") for name in ("evil", "safe"))
    if not evil and not safe:
        raise RequestError(f"{where}: neither evil nor safe words")
    if both := sorted(set(evil) & set(safe)):
        raise RequestError(f"{where}: {', '.join(both)} both evil and safe")
    labels: dict[int, Label] = {}
    words: dict[int, tuple[str, ...]] = {}
    multi_token = []
    lists: tuple[tuple[Label, tuple[str, ...]], ...] = (("evil", evil), ("safe", safe))
    for label, listed in lists:
        for word in listed:
            token, whole = first_token(f" {word}")
            words[token] = (*words.get(token, ()), word)
            labels[token] = label if labels.get(token, label) == label else "unsure"
            if not whole:
                multi_token.append(word)
    return Entry(number, pattern, evil, safe, labels, words, tuple(multi_token))


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RequestError(f"{where} must be a list of words")
    for word in value:
        if not isinstance(word, str) or not word or word != word.strip():
            shown = f"{word[:60]!r}" if isinstance(word, str) else f"a {type(word).__name__}"
            raise RequestError(f"{where}: {shown} is not a word; no spaces at its ends")
    return tuple(dict.fromkeys(value))


def _mapping(value: Any, known: set[str], needed: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: expected the keys {', '.join(sorted(known))}")
    if unknown := sorted(map(str, value.keys() - known)):
        raise RequestError(
            f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    if missing := sorted(needed - value.keys()):
        raise RequestError(f"{where}: {', '.join(missing)} is missing")
    return value


def _read(path: Path) -> Any:
    try:
        return text_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read the lexicon {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the lexicon {path} is not UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise RequestError(f"the lexicon {path}{line} is not YAML: {problem}") from error
