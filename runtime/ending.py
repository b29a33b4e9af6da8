"""How a program that has answered ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable


def end_early(main: Callable[[], object]) -> None:
    """Call `main`, which raises SystemExit, and let the process end with its code when Python has done all that users can see.

    Threads are waited for, and what is registered with `atexit` from now on is run, as always. What is left out is taking
    modules and libraries down, which after an import of torch takes longer than many an answer.
    """
    status = [1]  # that of any other exception, which Python prints before it ends

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or its reader went away
                stream.flush()
        os._exit(status[0])

    atexit.register(end)  # the first is the last to be called
    try:
        main()
    except SystemExit as ended:
        status[0] = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    except KeyboardInterrupt:  # before `main` could tell of it
        status[0] = 130
        raise
