"""Where a drill's processes come from: a server without threads that has imported what they need, never the tests' own process."""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from multiprocessing.context import ForkServerContext

__all__ = ["processes"]


@cache
def processes() -> ForkServerContext:
    """The context that forks from the server.

    A fork of the tests' own process has its handlers, and its locks as other tests' threads happen to hold them.
    """
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drill_warm"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # this Python's server is not told
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
