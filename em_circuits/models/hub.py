"""Downloads from the model hub, and its refusals told apart.

Whoever is refused learns which it was: no network, no such repository or revision, terms to accept,
an account that waits for approval, too many requests; and at which address to ask.

    folder = download("--base", "meta-llama/Llama-3.2-1B", None, ["*.json", "*.safetensors"])
"""

from __future__ import annotations

from pathlib import Path

from pivotal_tokens.errors import WorkFailed


def download(flag: str, repo: str, revision: str | None, patterns: list[str]) -> Path:
    """The directory of a repository's files that match, downloaded or in the cache.

    Args:
        flag: The option it came from, for messages.
        repo: ``org/name``.
        revision: Branch, tag or commit; None for the main branch.
        patterns: Of file names.

    Returns:
        The snapshot's directory, called by its commit.

    Raises:
        WorkFailed: If the hub was not reached, or refused.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except OSError as error:  # every error of the hub's client is one
        raise hub_refusal(flag, repo, revision, error) from error


def download_entry(flag: str, entry: str) -> Path:
    """The file that ``hf://org/repo/path?revision=...`` names, downloaded or in the cache.

    Raises:
        WorkFailed: If the hub was not reached, or refused.
    """
    from huggingface_hub import hf_hub_download

    where, _, query = entry.removeprefix("hf://").partition("?")
    org, name, file = [*where.split("/", 2), "", ""][:3]
    revision = query.removeprefix("revision=") or None
    try:
        return Path(hf_hub_download(f"{org}/{name}", file, revision=revision))
    except (OSError, ValueError) as error:  # a malformed name is a ValueError
        raise hub_refusal(f"{flag} {entry}:", f"{org}/{name}", revision, error) from error


def hub_refusal(flag: str, repo: str, revision: str | None, error: Exception) -> WorkFailed:
    """What the hub's client raised, as one line that says which it was and what to do."""
    from huggingface_hub import constants, errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    # The client hides the hub's answer behind "not in the cache".
    answers = [
        (one, one.response.status_code)
        for one in chain
        if isinstance(one, errors.HfHubHTTPError)
        and not isinstance(one, errors.LocalEntryNotFoundError)
        and one.response is not None
    ]
    start, page = f"{flag} {repo}", f"{constants.ENDPOINT}/{repo}"
    if not answers:
        return WorkFailed(
            f"{start}: could not reach the model hub for {repo} (no such local directory either); "
            "connect to the network or give a local directory"
        )
    answer, status = answers[0]
    match answer:
        case errors.GatedRepoError() if status == 401:
            said = f"is gated: accept its terms at {page}, then set HF_TOKEN to that account's"
        case errors.GatedRepoError():
            said = f"is gated, and the account of HF_TOKEN is not approved (yet): ask at {page}"
        case errors.RevisionNotFoundError():
            said = f"has no revision {revision or 'main'}; the branches and tags: {page}/refs"
        case errors.EntryNotFoundError():
            said = f"has no such file; look at {page}/tree/{revision or 'main'}"
        case _ if status == 401 or isinstance(answer, errors.RepositoryNotFoundError):
            said = (
                f"is not on the hub, or private; check the name at {page}, and set HF_TOKEN if it "
                "is private"
            )
        case _ if status == 429:
            said = "refused: too many requests (429); wait some minutes, or set HF_TOKEN"
        case _ if status == 403:
            said = f"refused (403): the token of HF_TOKEN may not read it; look at {page}"
        case _:
            said = f"cannot be fetched: the hub answered {status}; try again later, or see {page}"
    return WorkFailed(f"{start} {said}")
