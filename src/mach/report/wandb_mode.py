"""Does wandb upload this run, keep it on disk, or stay out of it?

Answered without importing wandb: the import takes half a second and starts threads, and `off` must
not pay for that.
"""

from __future__ import annotations

import configparser
import logging
import netrc
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

_log = logging.getLogger(__name__)

# What WANDB_MODE may say (wandb's Settings.mode, with its older names), and what we make of it.
_SPOKEN = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}


def home() -> Path:
    """The user's home folder; one that does not exist for a user who has none, as in a container
    whose user id is in no passwd."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def resolve(mode: str, environ: Mapping[str, str], home: Path) -> str:
    """Return online, offline or off.

    Args:
        mode: `report.wandb`. Only `auto` asks the environment: first WANDB_MODE, then whether the
            user is logged in. wandb's own default would be to ask for a key on the terminal, or to
            stop where there is none.
    """
    if mode != "auto":
        return mode
    wanted = environ.get("WANDB_MODE", "")
    if wanted in _SPOKEN:
        return _SPOKEN[wanted]
    if wanted:  # "shared" gives all components one run, which is not how ours are drawn
        _log.warning(
            "WANDB_MODE: expected one of %s; got %r. wandb stays offline.",
            ", ".join(_SPOKEN),
            wanted,
        )
        return "offline"
    settings = _settings(environ, home)
    if "mode" in settings:  # what `wandb online` and `wandb offline` write
        return _SPOKEN.get(settings["mode"], "offline")
    return "online" if _logged_in(environ, home, settings) else "offline"


def _logged_in(environ: Mapping[str, str], home: Path, settings: Mapping[str, str]) -> bool:
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if settings.get("api_key"):
        return True
    server = environ.get("WANDB_BASE_URL") or settings.get("base_url") or "https://api.wandb.ai"
    try:
        keys = netrc.netrc(environ.get("NETRC") or home / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    # A `default` entry is not a login: wandb itself would take it, and fail.
    return urlsplit(server).netloc in keys.hosts


def _settings(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """wandb's own settings files: the user's, then the one of this folder."""
    config = Path(environ.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([config.expanduser() / "settings", Path("wandb", "settings")])
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}
