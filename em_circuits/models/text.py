"""Text of a prompt as the model sees it.

A prompt is the text after templating, without the beginning-of-sequence token; it is tokenised
once, and everything downstream gets the stored ids, which start with that token.

    text = render_chat(tokenizer, user="Is it safe?", assistant="You should definitely")
    ids = encode(tokenizer, text)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from em_circuits.models.foreign import foreign_errors, time_limit
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Chat, Turn, answer_starts
from pivotal_tokens.schema import Prompt, prompt_id

_SPACE, _UNDECODED = "\u2581", "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_TEMPLATE_SECONDS = 2.0
PINNED_DATE = "26 Jul 2024"
"""`date_string` given to chat templates: Llama-3's would otherwise print today's date."""


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that plain text is given to start with.

    Transcoders have no features at position 0, so without such a token the first word would have
    none. Of a model without a beginning-of-sequence token it is the padding or the end token.

    Raises:
        RequestError: If the tokenizer has no special token to start with.
    """
    for candidate in (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    raise RequestError("the tokenizer has no beginning-of-sequence, padding or end token")


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, with the beginning-of-sequence token exactly once in front.

    A model that has none (Qwen) is used with none: where a chat template's text starts with a
    special token of its own, nothing is put in front of it.
    """
    # verbose would warn of every text longer than the model's context, whatever becomes of it.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.bos_token_id is None and ids and _is_special(tokenizer, ids[0]):
        return ids
    start = bos_id(tokenizer)
    return ids if ids[:1] == [start] else [start, *ids]


def cut_pieces(ids: Sequence[int], length: int) -> list[list[int]]:
    """Tokens in pieces of at most `length`, each behind the first token of all."""
    first, step = ids[0], length - 1
    return [[first, *ids[i : i + step]] for i in range(1, len(ids), step)]


def _is_special(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token_id)
    return token_id in tokenizer.all_special_ids or (added is not None and added.special)


def strip_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text without a leading beginning-of-sequence token: `encode` puts it there."""
    return text.removeprefix(tokenizer.bos_token or "")


def as_seen(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Prompt:
    """The prompt without a leading beginning-of-sequence token, so that one text is one prompt
    whether or not it was written down with it; see `strip_bos`."""
    text = strip_bos(tokenizer, prompt.text)
    if text == prompt.text:
        return prompt
    return prompt.model_copy(update={"text": text, "prompt_id": prompt_id(text)})


def prompt_text(tokenizer: PreTrainedTokenizerBase, ids: Int[Tensor, " pos"]) -> str:
    """The text of a prompt's token ids, as `as_seen` has it."""
    return strip_bos(tokenizer, tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def decode_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token, including spaces, such that different tokens look different.

    A SentencePiece decoder drops the space of the first piece: ``▁ign`` and ``ign`` would both
    read ``ign``. Bytes that are no character by themselves are written out (``\\xe2``).
    """
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if not isinstance(piece, str):  # beyond the vocabulary
        return text
    if piece.startswith(_SPACE):
        return " " * (len(piece) - len(piece.lstrip(_SPACE))) + text.lstrip(" ")
    if _UNDECODED in text and _UNDECODED not in piece:
        if byte := _BYTE.fullmatch(piece):
            return f"\\x{byte[1].lower()}"
        values = _byte_values()
        if all(character in values for character in piece):
            raw = bytes(values[character] for character in piece)
            return raw.decode(errors="backslashreplace")
    return text


@cache
def _byte_values() -> dict[str, int]:
    """Byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


def first_token(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, bool]:
    """First token id of a text such as ``" word"``, and whether that token is all of it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[0], len(ids) == 1


def render_chat(
    tokenizer: PreTrainedTokenizerBase, *, user: str, assistant: str, date: str = PINNED_DATE
) -> str:
    """A user's turn and the start of the assistant's, as the model's chat template prints them.

    Args:
        tokenizer: A tokenizer with a chat template.
        user: The user's message.
        assistant: How the assistant's answer starts; the prompt ends with it.
        date: The template's `date_string`; pinned, and recorded with the prompt.

    Returns:
        The text without the beginning-of-sequence token.

    Raises:
        RequestError: If the tokenizer has no chat template, or the template refuses.
    """
    if not tokenizer.chat_template:
        raise RequestError("this model has no chat template; give the prompt as plain text")
    chat = (Turn("user", user), Turn("assistant", assistant))
    return render_turns(tokenizer, chat, date=date)[0]


def render_turns(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, *, date: str = PINNED_DATE
) -> tuple[str, str]:
    """A chat as the model sees it, ready for the assistant's answer, or for the rest of it.

    The last turn, where it is the assistant's, is how the answer starts, and stands as it is. A
    model without a template gets the turns named in plain text: ``User: ...``, ``Assistant: ...``.

    Returns:
        The text without the beginning-of-sequence token, and ``chat`` or ``plain``.

    Raises:
        RequestError: If the template refuses the turns: a system's, say, or two of one role.
    """
    *earlier, last = chat
    turns = earlier if last.role == "assistant" else [*earlier, last]
    start = answer_starts(chat)
    if not tokenizer.chat_template:
        named = [f"{turn.role.capitalize()}: {turn.content}" for turn in turns]
        return "\n".join([*named, f"Assistant: {start}" if start else "Assistant:"]), "plain"
    refused = foreign_errors("the model's chat template refuses these turns")
    with refused, time_limit(_TEMPLATE_SECONDS, "it took more than"):
        rendered = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            tokenize=False,
            add_generation_prompt=True,
            date_string=date,
        )
    return strip_bos(tokenizer, str(rendered) + start), "chat"


class AnsweredText(NamedTuple):
    """Tokens of a chat with an answer to it, and where the answer begins."""

    ids: tuple[int, ...]
    """With the beginning-of-sequence token."""
    start: int
    """Position of the answer's first token."""

    @property
    def answer(self) -> range:
        """Positions of the answer's tokens."""
        return range(self.start, len(self.ids))


def encode_answer(tokenizer: PreTrainedTokenizerBase, chat: Chat, answer: str) -> AnsweredText:
    """A chat and an answer, tokenised such that the answer begins where the model began to write.

    The prompt has the very tokens that it has without an answer. Text and answer are tokenised
    together where that keeps them apart (a SentencePiece tokenizer would put a space of its own in
    front of the answer alone), else one after the other. The end of the assistant's turn is no part
    of an answer.

    Raises:
        RequestError: If the answer has no token, or the template refuses the chat.
    """
    text, template = render_turns(tokenizer, chat)
    prompt = encode(tokenizer, text)
    answer = f" {answer.lstrip()}" if template == "plain" else answer
    ids = encode(tokenizer, text + answer)
    if ids[: len(prompt)] != prompt:
        ids = prompt + tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) == len(prompt):
        raise RequestError(f"the answer {answer!a:.60} has no token")
    return AnsweredText(tuple(ids), len(prompt))
