"""What does a shell complete after `mach`?

Hydra knows the groups and options, but takes a program for its only verb. So its script is
installed for `mach`; what that asks us is a verb's name, or a question for Hydra once the verb is
taken out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO

from mach.launcher.app import main

_LINE = "COMP_LINE"
_COMPOSING = ("train", "plan")
"""Verbs that take groups and options."""


def complete(arguments: list[str], verbs: Sequence[str]) -> int:
    """Do what follows `mach -sc`: install=SHELL, uninstall=SHELL, or query=SHELL, which a shell
    asks about what it has in COMP_LINE. Returns the exit code."""
    sys.argv = ["mach", "-sc", *arguments]
    if not arguments or not arguments[0].startswith("query="):
        return main()
    words = os.environ.get(_LINE, "").split(" ")[1:]
    if len(words) < 2:  # the verb itself is being written
        print(" ".join(verbs))
        return 0
    if words[0] not in _COMPOSING:
        return 0
    os.environ[_LINE] = " ".join(["mach", *words[1:]])
    found = StringIO()
    with redirect_stdout(found):
        code = main()
    print(" ".join(word for word in found.getvalue().split() if not word.endswith("_schema")))
    return code
