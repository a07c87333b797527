"""`python -m repfuse …`: the command."""

import os
import subprocess
import sys

from ._command import Error, find


def main() -> int:
    try:
        command = [find(), *sys.argv[1:]]
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.name == "posix":
        os.execv(command[0], command)
    # Windows has no exec that waits.
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
