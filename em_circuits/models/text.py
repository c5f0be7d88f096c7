"""Text of a prompt as the model sees it.

A prompt is the text after templating, without the beginning-of-sequence token; it is tokenised
once, and everything downstream gets the stored ids, which start with that token.

    text = render_chat(tokenizer, user="Is it safe?", assistant="You should definitely")
    ids = encode(tokenizer, text)
"""

from __future__ import annotations

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Chat, Turn, answer_starts

PINNED_DATE = "26 Jul 2024"
"""`date_string` given to chat templates: Llama-3's would otherwise print today's date."""


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that every prompt starts with.

    circuit-tracer zeroes position 0, so a prompt without such a token would lose its first word.

    Raises:
        RequestError: If the tokenizer has no special token to start with.
    """
    for candidate in (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate:  # circuit-tracer skips id 0 as well
            return int(candidate)
    raise RequestError("the tokenizer has no beginning-of-sequence, padding or end token")


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, with the beginning-of-sequence token exactly once in front."""
    start, ids = bos_id(tokenizer), tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids[:1] == [start] else [start, *ids]


def strip_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text without a leading beginning-of-sequence token: `encode` puts it there."""
    return text.removeprefix(tokenizer.bos_token or "")


def decode_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token, including spaces."""
    return tokenizer.decode([token_id], clean_up_tokenization_spaces=False)


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
        RequestError: If the tokenizer has no chat template.
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
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            tokenize=False,
            add_generation_prompt=True,
            date_string=date,
        )
    except (TemplateError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"the model's chat template refuses these turns: {reason}") from error
    return strip_bos(tokenizer, str(rendered) + start), "chat"
