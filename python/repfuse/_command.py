"""Finding the command, and running it for its JSON."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Optional


class Error(Exception):
    """What the command could not do. The text is its message; `causes` are its parts, outermost first."""

    def __init__(self, message: str, causes: Iterable[str] = (), exit_status: int = 2):
        super().__init__(message)
        self.causes = list(causes)
        self.exit_status = exit_status


def _places() -> Iterator[Path]:
    """The folders that installers put scripts in, the likeliest first."""
    yield Path(sysconfig.get_path("scripts"))
    # `pip install --target` and `--prefix`: beside or above the package.
    package = Path(__file__).resolve().parent
    folder = "Scripts" if os.name == "nt" else "bin"
    yield package.parent / folder
    yield from (parent / folder for parent in list(package.parents)[1:5])
    if hasattr(sysconfig, "get_preferred_scheme"):
        yield Path(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")))
    yield Path(sys.executable).parent


def find() -> str:
    """The path of the command that belongs to this package.

    Raises:
        Error: it is not there.
    """
    name = "repfuse.exe" if os.name == "nt" else "repfuse"
    for place in _places():
        if (place / name).is_file():
            return str(place / name)
    on_path = shutil.which("repfuse")
    if on_path is not None:
        return on_path
    raise Error("the command `repfuse` is not where pip puts commands; install the package again")


def arguments(options: Mapping[str, Any]) -> Iterator[str]:
    """Keyword arguments as flags: `bn_eps=1e-3` is `--bn-eps 1e-3`, `only=["a", "b"]` is `--only a --only b`."""
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            yield flag
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield f"{flag}={item}"
        else:
            yield f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}"


def run(command: str, files: Iterable["str | os.PathLike[str]"], options: Mapping[str, Any], answers: int = 0) -> Any:
    """Runs a command with `--json`; gives what it prints. `answers` is the highest exit status that is an answer.

    Raises:
        Error: it could not run.
    """
    call = [find(), command, "--json", *arguments(options), "--", *(os.fspath(file) for file in files)]
    done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", check=False)
    document: Optional[Any] = None
    try:
        document = json.loads(done.stdout)
    except ValueError:
        pass
    failed = isinstance(document, dict) and str(document.get("schema", "")).startswith("repfuse.error/")
    if 0 <= done.returncode <= answers and document is not None and not failed:
        return document
    if failed and isinstance(document, dict):
        raise Error(document["error"], document["causes"], document["exit_status"])
    # Wrong arguments are told in words alone.
    message = done.stderr.strip() or f"the command ended with status {done.returncode}"
    raise Error(message[len("error: "):] if message.startswith("error: ") else message, exit_status=done.returncode)
