"""Documents to train on: plain text and JSON lines that a user names.

A file is a document; of JSON lines every line is: its ``text``, or its chat in any form that
`pivotal_tokens.prompts.chats` knows. Needs no torch.

    read_documents("--text", Path("corpus"))      # a file, or a folder and what is under it
"""

from __future__ import annotations

from pathlib import Path

from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Chat, take_chat
from pivotal_tokens.table_files import BadRow, jsonl_rows

PLAIN, LINES = (".txt", ".md", ".rst"), (".jsonl", ".ndjson")


def read_documents(flag: str, place: Path) -> list[str | Chat]:
    """The documents of a file, or of every text file under a folder, in the order of their names.

    Raises:
        RequestError: Naming the file, and the line, that is no text; or if there is none.
    """
    files = [place]
    if place.is_dir():
        files = sorted(one for one in place.rglob("*") if one.suffix in PLAIN + LINES)
    found: list[str | Chat] = []
    for file in files:
        if file.suffix in LINES:
            found += [_document(flag, file, where, row) for where, row in jsonl_rows(file)]
            continue
        try:
            found.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(f"{flag} {file} is not UTF-8; save the file as UTF-8") from error
    found = [one for one in found if one and not (isinstance(one, str) and one.isspace())]
    if not found:
        kinds = ", ".join(PLAIN + LINES)
        raise RequestError(f"{flag} {place} has no text; give a file, or a folder of {kinds}")
    return found


def _document(flag: str, file: Path, where: str, row: object) -> str | Chat:
    why = row.why if isinstance(row, BadRow) else "no object with text or messages"
    if isinstance(row, dict):
        if isinstance(text := row.get("text"), str):
            return text
        try:
            if (chat := take_chat(row)) is not None:
                return chat
        except ValueError as error:
            why = str(error)
    raise RequestError(f"{flag} {file}, {where}: {why}")
