"""What Ctrl-C and the end of this process mean, for the program as a whole and its workers.

`cli` says in a sentence that a command was interrupted. Here stands what it cannot see: an
interrupt before its imports, one that a library has turned into another error or dropped, threads
that would be waited for, and processes that libraries fork. Imports nothing heavy.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130
_SENTENCE = "Interrupted. The same command starts it again."
_PR_SET_PDEATHSIG = 1  # Linux's prctl: the signal for this process when its parent has ended
_came: list[int] = []  # the signals


class NothingKept(UserWarning):
    """Warns that what is done is not kept, so that after an interrupt it is done again."""


def were_there() -> bool:
    """Say whether an interrupt came: libraries make other errors of it, above all in imports."""
    return bool(_came)


def is_spokesman() -> bool:
    """Say whether this process speaks for all of `torchrun` and `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def run(program: Callable[[], Any]) -> None:
    """Run the program of this process; Ctrl-C ends it and its workers, wherever it is.

    The first one unwinds what is being done, so that half-written files are removed. A second one
    ends the process where it stands, which is safe for all that it writes.
    """
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable
    if hasattr(os, "register_at_fork"):
        _have_workers_end_with_this_process()
    try:
        program()
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else None
        if not _came or code == 0:
            raise
        if code != INTERRUPTED:
            _tell()
        # As Python ends, but for threads: it would wait for what they are doing.
        atexit._run_exitfuncs()
        _leave()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if len(_came) > 1:
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


def _unraisable(problem: "sys.UnraisableHookArgs") -> None:
    if not issubclass(problem.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(problem)
        return
    _tell()  # raised where Python drops it
    _leave()


def _tell() -> None:
    if is_spokesman():
        print(_SENTENCE, file=sys.stderr)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _have_workers_end_with_this_process() -> None:
    """Have every process forked from here leave Ctrl-C to this one, and end when this one does.

    On Linux whatever ends it, SIGKILL too; elsewhere the libraries' own checks must do.
    """
    main, blocked = os.getpid(), []
    prctl = _prctl()

    def before() -> None:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}))

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked.pop())

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if prctl is not None:
            parent = os.getppid()
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if parent == main and os.getppid() != main:  # it ended in between
                os._exit(1)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_child)


def _prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    return ctypes.CDLL(None).prctl
