"""Processes that end with this one, whatever ends it: an error, Ctrl-C, SIGTERM, SIGKILL.

Beside its work each of them waits for the end of a pipe that only the main process holds open. When
that process is gone, by whatever cause, the system closes the pipe, and they end where they are.

Nothing here knows what is worked on.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def worker_processes(
    number: int,
) -> Iterator[Callable[[Callable[[Item], Result], Iterable[Item]], list[Result]]]:
    """Give a `map` over `number` processes; they start with the first item and end with the block.

    Results come in the order of the items. With one process that is this one.

    Raises:
        ChildProcessError: A process was killed.

    Examples:
        >>> with worker_processes(1) as map_:
        ...     map_(len, ["a", "bb"])
        [1, 2]
    """
    if number == 1:
        yield lambda function, items: [function(item) for item in items]
        return
    reader, writer = Pipe(duplex=False)
    pool = ProcessPoolExecutor(number, initializer=_follow, initargs=(reader, writer))
    try:
        yield lambda function, items: [
            future.result() for future in _submitted(pool, function, items)
        ]
    except BaseException as error:
        writer.close()  # they end where they are: nobody waits for what they work on
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                "Expected every worker process to finish its work, got one that was killed, "
                "perhaps for want of memory. Run the same again, with fewer workers."
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        writer.close()
        reader.close()


def _submitted(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> list[Future[Result]]:
    # Not by pool.map, which cancels what waits when it is interrupted: where the workers end at the
    # same time, Python 3.11 fails in a thread that would tell cancelled work of it.
    # The processes are started here. Ctrl-C reaches them too, also before they can ignore it.
    if not hasattr(signal, "pthread_sigmask"):
        return [pool.submit(function, item) for item in items]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(function, item) for item in items]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(reader: Connection, writer: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what Ctrl-C means
    writer.close()  # a copy: the pipe ends when the last one is closed
    threading.Thread(target=_end_after, args=(reader,), daemon=True).start()


def _end_after(pipe: Connection) -> None:
    wait([pipe])
    os._exit(1)


def end_with(parent: int, worker: int = 0) -> None:
    """Have this process end when the one that started it has; for a DataLoader's `worker_init_fn`.

    Torch's own watch asks for the parent's number when a worker begins. A parent that was killed
    just before is never missed, and the worker stays for good.
    """
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
