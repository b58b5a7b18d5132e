"""Runs a command in namespaces of its own: `python3 -m lab.inside COMMAND...`; `--probe` only says whether that works.

Whatever the command leaves behind there (namespaces, interfaces) goes with its last process.
"""

from __future__ import annotations

import os
import sys

from lab import isolate, process


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        mode = isolate.enter()
    except isolate.CannotIsolate as error:
        print(error)
        return 1
    if sys.argv[1] == "--probe":
        print(mode)
        return 0
    process.run(["ip", "link", "set", "lo", "up"])
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
