"""How is torch's agent kept from talking?"""

from __future__ import annotations

import logging


def quiet_torch() -> None:
    """torch's agent logs every death and signal; here each becomes one message of ours."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # each has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)
