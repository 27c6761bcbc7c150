"""A component that trains nothing, to see what its supervisor does; and a `mach train` of such.

    python tests/standin.py train [overrides]

STANDIN says what each one is, component 0 first: fine, slow (saves for two seconds), deaf (to
SIGTERM), mute (never says a word), wrong (refuses its config) or last (falls after its last step).
A fine one saves when it is told to stop, and ends well when the file `finish` is in the run folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from mach.introduce import introduce, parse


def main() -> None:
    if sys.argv[1] == "train":
        from mach import cli
        from mach.launcher import nursery

        nursery.PROGRAM = (__file__,)
        cli.main()
    else:
        introduce(sys.argv[1:])
        from mach.launcher.rearing import rear

        options, _ = parse(sys.argv[1:])
        rear(options, component)


def component(argv: Sequence[str]) -> None:
    options, _ = parse(argv)
    k, run_dir = options.component, options.run
    kind = os.environ["STANDIN"].split(",")[k]

    def save(*_: object) -> None:
        time.sleep(2.0 if kind == "slow" else 0.0)
        (run_dir / f"saved-{k}").touch()
        os._exit(143)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "deaf" else save)
    if kind == "wrong":
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(ValueError("this will not do"))
        os._exit(2)
    from mach.configfile import load
    from mach.rank import join_supervised
    from mach.roster import Beat, Roster
    from mach.storeaddress import StoreAddress

    size = load(run_dir / "config.yaml").components
    rank = join_supervised(StoreAddress.parse(options.store), k, size, 30.0)
    roster = Roster(rank.store, size)
    life = roster.enter(k)
    (run_dir / f"{kind}-{k}").touch()  # no longer in a call that a signal does not interrupt
    beats = 0
    while kind == "mute" or not (run_dir / "finish").exists():
        if kind != "mute":
            beats += 1
            with suppress(RuntimeError):  # the launcher is gone: who is told to stop saves yet
                roster.beat(k, Beat(life, os.getpid(), beats, beats, "training"))
        time.sleep(0.02)
    roster.finish(k, "")
    if kind == "last":
        roster.beat(k, Beat(life, os.getpid(), beats, beats, "done"))
        finished = f'"component": {k}, "event": "finished"'
        while finished not in (run_dir / "events.jsonl").read_text():
            time.sleep(0.02)
        os._exit(1)
    if k == 0:
        result = {"chain": [{"exit": 0, "loss": 1.0}], "windows": []}
        (run_dir / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
