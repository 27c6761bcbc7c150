"""How does a page become files: one HTML file that needs nothing else, and PNGs beside it?"""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mach.errors import RunFolderError
from mach.page.parts import Page
from mach.page.picture import themed, variables
from mach.runfolder import write_atomically
from mach.secrets import secrets_of, without

FILE = "report.html"


def write(page: Page, folder: Path) -> Path:
    """Write a page and its pictures. Returns the HTML file.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    html = _html(page)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in page.pictures:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        write_atomically(folder / FILE, html)
    except OSError as error:
        raise RunFolderError(
            f"{folder}: expected a folder that can be written; {error.strerror or error}. "
            "Choose another: --out FOLDER"
        ) from error
    return folder / FILE


def _html(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("mach.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The SVG is matplotlib's, which escapes every text that is drawn.
    environment.filters["inline"] = lambda p: Markup(themed(p.svg, page.colours))
    html = environment.get_template("page.html.j2").render(
        page=page, variables=variables(page.colours)
    )
    return without(html, secrets_of(os.environ))
