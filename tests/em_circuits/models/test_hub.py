"""What the model hub answers is told apart; a local server plays it for the real client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils._http import reset_sessions
from lifelike import Lifelike
from test_pair import settings

from em_circuits.models.source import locate, locate_all
from pivotal_tokens.errors import RequestError, WorkFailed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by name, and the answers that some of them give instead."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Of the repository's API; status and X-Error-Code."""
    gated: dict[str, int] = field(default_factory=dict)
    """Status with which files are refused, while the API answers."""
    served: list[str] = field(default_factory=list)

    def put(self, repo: str, folder: Path, under: str = "") -> None:
        held = self.files.setdefault(repo, {})
        for path in folder.rglob("*"):
            if path.is_file():
                held[under + path.relative_to(folder).as_posix()] = path.read_bytes()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        else:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _info(self, repo: str, revision: str) -> None:
        hub = self.hub
        if repo in hub.refusals:
            status, code = hub.refusals[repo]
            return self._answer(status, b"{}", {"X-Error-Code": code} if code else {})
        if repo not in hub.files:
            return self._answer(401, b"{}", {})  # what the hub says of a name that it does not know
        if revision not in ("main", COMMIT):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        record = {
            "_id": "1",
            "id": repo,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in hub.files[repo]],
        }
        self._answer(200, json.dumps(record).encode(), {})

    def _file(self, repo: str, revision: str, name: str) -> None:
        hub = self.hub
        if repo in hub.refusals:
            status, code = hub.refusals[repo]
            return self._answer(status, b"", {"X-Error-Code": code} if code else {})
        if repo in hub.gated:
            return self._answer(hub.gated[repo], b"", {"X-Error-Code": "GatedRepo"})
        data = hub.files.get(repo, {}).get(name)
        if data is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            hub.served.append(f"{repo}/{name}")
        etag = hashlib.sha256(data).hexdigest()
        self._answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A server on this machine, which the real client takes for the hub."""
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": made}))
    made.address = f"http://127.0.0.1:{server.server_port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    # What HF_ENDPOINT and HF_HUB_CACHE set, read when the client was imported.
    template = made.address + "/{repo_id}/resolve/{revision}/{filename}"
    for place, value in (
        ("constants.ENDPOINT", made.address),
        ("constants.HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("file_download.HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("hf_api.api.endpoint", made.address),
        ("constants.HF_HUB_CACHE", str(tmp_path / "cache")),
        ("constants.HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(f"huggingface_hub.{place}", value)
    reset_sessions()  # one that was opened offline stays offline
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    reset_sessions()
    server.shutdown()
    server.server_close()
    thread.join()


def refusal(reference: str) -> str:
    with pytest.raises(WorkFailed) as caught:
        locate("--base", reference, kind="model")
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and reference.split("@")[0] in message
    return message


def test_a_gated_repository_gives_the_address_to_ask_at(hub: Hub, lifelike_paths: Lifelike) -> None:
    hub.put("org/gated", lifelike_paths.base)
    hub.gated["org/gated"] = 401
    said = f"is gated: accept its terms at {hub.address}/org/gated, then set HF_TOKEN"
    assert said in refusal("org/gated")
    hub.gated["org/gated"] = 403
    assert "is not approved (yet): ask at " + hub.address + "/org/gated" in refusal("org/gated")


def test_a_repository_that_is_refused_as_gated_at_once(hub: Hub) -> None:
    hub.refusals["org/gated"] = (403, "GatedRepo")
    assert "is not approved (yet): ask at " + hub.address + "/org/gated" in refusal("org/gated")


def test_an_unknown_repository(hub: Hub) -> None:
    assert "org/none is not on the hub, or private" in refusal("org/none")
    hub.refusals["org/gone"] = (404, "RepoNotFound")
    assert "org/gone is not on the hub, or private" in refusal("org/gone")


def test_an_unknown_revision(hub: Hub, lifelike_paths: Lifelike) -> None:
    hub.put("org/model", lifelike_paths.base)
    assert "org/model has no revision v9" in refusal("org/model@v9")


def test_too_many_requests(hub: Hub) -> None:
    hub.refusals["org/busy"] = (429, "")
    assert "too many requests (429); wait" in refusal("org/busy")


def test_other_answers_name_the_status(hub: Hub) -> None:
    hub.refusals["org/forbidden"] = (403, "")
    assert "refused (403): the token of HF_TOKEN may not read it" in refusal("org/forbidden")
    hub.refusals["org/odd"] = (418, "")
    assert "the hub answered 418" in refusal("org/odd")


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    assert "could not reach the model hub for org/model" in refusal("org/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "could not reach the model hub for org/model" in refusal("org/model")


def test_a_pair_comes_from_the_hub(hub: Hub, lifelike_paths: Lifelike) -> None:
    hub.put("org/lifelike-1b", lifelike_paths.base)
    hub.put("org/lora", lifelike_paths.adapter)
    hub.put("org/set", lifelike_paths.transcoders)
    hub.files["org/set"]["features/layer_0.bin"] = b"pages"
    found = locate_all(
        settings(lifelike_paths, base="org/lifelike-1b", adapter="org/lora", transcoders="org/set")
    )
    assert {source.revision for source in found.values()} == {COMMIT}
    assert found["base"].name == "lifelike-1b"
    assert not any("features" in name for name in hub.served)
    again = locate("--base", f"org/lifelike-1b@{COMMIT}", kind="model")
    assert again.path == found["base"].path and again.name == "lifelike-1b"


def test_a_model_of_pickles_alone_is_fetched_too(hub: Hub, lifelike_paths: Lifelike) -> None:
    hub.put("org/old", lifelike_paths.base)
    del hub.files["org/old"]["model.safetensors"]
    hub.files["org/old"] |= {"pytorch_model.bin": b"weights", "training_args.bin": b"no"}
    assert "pytorch_model.bin" in locate("--base", "org/old", kind="model").files
    assert "org/old/training_args.bin" not in hub.served


@pytest.mark.parametrize("reference", ["org/sets/it/width_16k", f"org/sets/it/width_16k@{COMMIT}"])
def test_a_set_in_a_folder_of_a_repository(
    reference: str, hub: Hub, lifelike_paths: Lifelike
) -> None:
    hub.put("org/sets", lifelike_paths.transcoders, "it/width_16k/")
    hub.put("org/sets", lifelike_paths.transcoders, "pt/")
    found = locate("--transcoders", reference, kind="transcoders")
    assert found.revision == COMMIT and found.path.name == "width_16k"
    assert found.transcoders is not None and len(found.transcoders.layers) == 4
    assert not any("/pt/" in name for name in hub.served)
    with pytest.raises(RequestError, match=r"no config.yaml in org/sets; .*org/name/folder"):
        locate("--transcoders", "org/sets", kind="transcoders")


def test_a_set_that_lists_files_of_another_repository(hub: Hub, lifelike_paths: Lifelike) -> None:
    hub.put("lab/weights", lifelike_paths.transcoders, "deep/")
    config = yaml.safe_load((lifelike_paths.transcoders / "config.yaml").read_text())
    entries = [f"hf://lab/weights/deep/layer_{i}.safetensors?revision={COMMIT}" for i in range(4)]
    record = yaml.safe_dump(config | {"transcoders": entries})
    hub.files["org/list"] = {"config.yaml": record.encode()}
    found = locate("--transcoders", "org/list", kind="transcoders")
    assert list(found.files)[1:] == entries
    for layer, path in enumerate(list(found.files.values())[1:]):
        own = lifelike_paths.transcoders / f"layer_{layer}.safetensors"
        assert path.read_bytes() == own.read_bytes()


def test_an_entry_that_is_not_there_is_named(hub: Hub, lifelike_paths: Lifelike) -> None:
    hub.put("lab/weights", lifelike_paths.transcoders)
    config = yaml.safe_load((lifelike_paths.transcoders / "config.yaml").read_text())
    entries = ["hf://lab/weights/layer_0.safetensors", "hf://lab/weights/layer_9.safetensors"]
    hub.files["org/list"] = {
        "config.yaml": yaml.safe_dump(config | {"transcoders": entries}).encode()
    }
    with pytest.raises(WorkFailed, match=r"layer_9.safetensors: lab/weights has no such file"):
        locate("--transcoders", "org/list", kind="transcoders")


def test_the_command_line_reads_the_hubs_address_from_the_environment(
    hub: Hub, lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    hub.put("org/gated", lifelike_paths.base)
    hub.gated["org/gated"] = 401
    place = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    options = ["--base", "org/gated", "--adapter", str(lifelike_paths.adapter)]
    options += ["--transcoders", str(lifelike_paths.transcoders)]
    done = subprocess.run(
        [sys.executable, "-m", "em_circuits", *options, "doctor"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"accept its terms at {hub.address}/org/gated" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
