"""Settings of the engine that runs work over many prompts.

The command line makes its options from them, so nothing heavy is imported here.

    EngineSettings(engine="ray://10.0.0.4:10001", workers=8, gpus_per_worker=1)
"""

from __future__ import annotations

from pydantic import ConfigDict, Field, field_validator, model_validator

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class EngineSettings(Frozen):
    """Where the units of a command run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    engine: str = "local"
    """local: on this machine; ray: on the Ray cluster of this machine, which is started where there
    is none; ray://HOST:PORT or ray:HOST:PORT: on a running one."""
    workers: int = Field(default=1, ge=1, le=10_000)
    """Processes that load the models and share the work; one is this process itself."""
    gpus_per_worker: float = Field(default=0, ge=0, le=64)
    """GPUs that Ray keeps for each worker; a fraction lets workers share one."""

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

    @property
    def spreads(self) -> bool:
        """Whether other processes do the work."""
        return self.engine != "local" or self.workers > 1
