"""The web viewer: base and merged side by side, review in the browser, no other host."""

from em_circuits.viewer.app import create_app
from em_circuits.viewer.auth import Sessions
from em_circuits.viewer.settings import ViewerSettings

__all__ = ["Sessions", "ViewerSettings", "create_app"]
