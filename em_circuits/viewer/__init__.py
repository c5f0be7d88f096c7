"""The web viewer: base and merged side by side, review in the browser, nothing leaves unasked."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.viewer.app import create_app
    from em_circuits.viewer.door import Door
    from em_circuits.viewer.settings import ViewerSettings
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = ["Door", "ViewerSettings", "create_app"]
