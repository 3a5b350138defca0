"""What the doors share: `--config.FIELD=VALUE`, and errors as one paragraph instead of a traceback."""

import errno
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from slicedice.data import DataError
from slicedice.files import FileError
from slicedice.grid import GridError
from slicedice.hugging_face import ExportError
from slicedice.launching import LaunchError
from slicedice.spec import SpecError
from slicedice.spec.config import flat_fields
from slicedice.spec.reading import READ
from slicedice.store import StoreError
from slicedice.store.files import NO_ROOM, BucketError

EXPECTED = (DataError, ExportError, FileError, GridError, LaunchError, SpecError, StoreError)
"""Errors whose message is written for the user."""

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def split(arguments: Sequence[str], prefix: str = "--config.") -> tuple[list[str], list[str]]:
    """Parts the arguments of a door: its own, and those that set fields, which argparse must not see."""
    own = [argument for argument in arguments if not argument.startswith(prefix)]
    return own, [argument for argument in arguments if argument.startswith(prefix)]


def overrides(config: ConfigDict, arguments: Sequence[str]) -> dict[str, Any]:
    """Reads arguments of the form `--config.FIELD=VALUE` as the types that `config` has.

    Raises:
      SpecError: a field does not exist or a value does not fit its type.
    """
    known, found = flat_fields(config), {}
    for argument in arguments:
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise SpecError("argument", argument, "it is unknown; see --help. Fields are set by --config.FIELD=VALUE")
        if field not in known:
            raise SpecError(f"--config.{field}", value, f"there is no such field. Fields are: {', '.join(known)}")
        # Not ml_collections' own flags: they read the arguments of the process, and nothing else.
        try:
            found[field] = READ[type(known[field])](value)
        except (KeyError, ValueError) as error:
            kind = type(known[field]).__name__
            raise SpecError(f"--config.{field}", value, f"it has to be of type {kind}") from error
    return found


def door(main: Callable[..., int]) -> Callable[..., int]:
    """Makes a door's `main` end in a paragraph on standard error where the user can do something about it."""

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except EXPECTED as error:
            print(error, file=sys.stderr)
            return 2
        except BucketError as error:
            again = " Nothing that was finished or saved is lost; the same command goes on." if error.passes else ""
            print(f"{error}.{again}", file=sys.stderr)
            return 2
        except OSError as error:
            if error.errno in NO_ROOM:
                print(f"The disk is full ({error}). Finished runs are safe; make room and run again.", file=sys.stderr)
            elif error.errno in FORBIDDEN:
                print(f"{error.filename}: {error.strerror}. Choose a --store where you may write.", file=sys.stderr)
            else:
                raise
            return 2
        except KeyboardInterrupt:
            print("Stopped. Nothing that was finished or saved is lost; the same command goes on.", file=sys.stderr)
            return INTERRUPTED

    return wrapped
