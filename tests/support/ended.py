"""Work in a process that is killed at one of its calls."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any


def killed_at(step: int, calls: Iterable[str], work: Callable[[Callable[[], None]], Any]) -> bool:
    """Do ``work`` in a child that is killed before its call number ``step`` of a builtin that is one of ``calls``.

    They are counted from the moment on at which the work calls what it is given. Returns whether it came so far.
    """
    names = frozenset(calls)
    child = os.fork()
    if child == 0:
        left = step

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal left
            if event == "c_call" and argument.__name__ in names:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            work(lambda: sys.setprofile(count))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "the work failed by itself"
    return status != 0
