"""Settings of the engine that runs work over many prompts.

The command line makes its options from them, so nothing heavy is imported here.

    EngineSettings(engine="ray://10.0.0.4:10001", workers=8, gpus_per_worker=1)
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from em_circuits.pieces import EVERYTHING, Portion
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class EngineSettings(Frozen, use_attribute_docstrings=True):
    """Where the units of a command run."""

    engine: str = "local"
    """local: on this machine; ray: on a Ray cluster of this machine, which is started for the
    command; ray://HOST:PORT or ray:HOST:PORT: on a running one."""
    workers: int = Field(default=1, ge=1, le=10_000)
    """Processes that load the models and share the work; a single one is this process itself."""
    gpus_per_worker: float = Field(default=0, ge=0, le=64)
    """GPUs that Ray keeps for each worker; a fraction lets workers share one."""
    share: str | None = None
    """Part I of N of the prompts or pieces, for arrays of jobs: 0/8 to 7/8, alike in all starts."""

    @field_validator("engine")
    @classmethod
    def _known(cls, engine: str) -> str:
        if engine not in ("local", "ray") and not engine.startswith("ray:"):
            raise RequestError(f"--engine {engine}: local, ray or ray://HOST:PORT")
        return engine

    @model_validator(mode="after")
    def _ray_alone_keeps_gpus(self) -> EngineSettings:
        if self.gpus_per_worker and self.engine == "local":
            raise RequestError(
                "--gpus-per-worker is of --engine ray; local workers take the GPUs in turn"
            )
        return self

    @field_validator("share")
    @classmethod
    def _a_part(cls, share: str | None) -> str | None:
        if share is None:
            return None
        part, _, of = share.partition("/")
        if not (part.isdecimal() and of.isdecimal() and int(part) < int(of)):
            raise RequestError(f"--share {share}: I/N with I from 0 to N - 1, for example 0/8")
        return share

    def takes(self, prompt_id: str) -> bool:
        """Whether a prompt is of this share."""
        if self.share is None:
            return True
        part, _, of = self.share.partition("/")
        return int(prompt_id, 16) % int(of) == int(part)

    def takes_piece(self, key: str) -> bool:
        """Whether a piece of a command is of this share."""
        return self.takes(content_key(key))

    @property
    def portion(self) -> Portion:
        """What of a command's pieces this process does by itself."""
        if self.share is None:
            return EVERYTHING
        return Portion(name=self.share.replace("/", "-of-"), share=self.takes_piece)

    @property
    def spreads(self) -> bool:
        """Whether other processes do the work."""
        return self.engine != "local" or self.workers > 1
