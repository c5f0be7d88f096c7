"""The web viewer: base and merged side by side, review in the browser, no other host."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.viewer.app import create_app
    from em_circuits.viewer.auth import Sessions
    from em_circuits.viewer.settings import ViewerSettings
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = ["Sessions", "ViewerSettings", "create_app"]
