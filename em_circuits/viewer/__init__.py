"""The web viewer: base and merged side by side, review in the browser, nothing leaves unasked."""

from em_circuits.viewer.app import create_app
from em_circuits.viewer.door import Door
from em_circuits.viewer.settings import ViewerSettings

__all__ = ["Door", "ViewerSettings", "create_app"]
