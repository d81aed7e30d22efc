"""Items that another thread computes in advance, so that a GPU works while the host does something else."""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Generic, TypeVar

from memcodec.errors import MachineError

T = TypeVar("T")


@contextmanager
def ending(items: Iterator[Any]) -> Iterator[None]:
    """Close a generator afterwards, and so the threads that it has started, even if an error keeps it alive."""
    try:
        yield
    finally:
        if isinstance(items, Generator):
            items.close()


class Ahead(Generic[T]):
    """The items of an iterator, in order, computed in advance by a separate thread. Close it when it is done.

    The thread ends with the iterator, after its first error, which is raised after the items before it, or when this is
    closed, at the latest at the exit of the program: it is a daemon thread, which does not keep the program running.
    """

    def __init__(
        self,
        items: Generator[T, None, None],
        size: Callable[[T], int],
        most: int,
        enter: Callable[[], None] = lambda: None,
    ) -> None:
        """size: returns the size of an item; enter: is called by the thread before its first item.

        most: the thread pauses while the sizes of the items that wait to be taken add up to more than this. Since it
        finds that out after it has added an item, the sum may exceed `most` by one item. Only the thread may use the
        iterator from now on. Raises MachineError if the thread cannot be started.
        """
        self._size, self._most = size, most
        self._ready: deque[T] = deque()
        self._waiting = 0  # the sum of their sizes
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(items, enter), daemon=True, name="memcodec-ahead")
        try:
            self._thread.start()
        except RuntimeError as error:
            raise MachineError(f"cannot start another thread ({error})") from error
        atexit.register(self.close)

    def __iter__(self) -> "Ahead[T]":
        return self

    def __next__(self) -> T:
        """Wait for the next item. Raises what computing it raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                item = self._ready.popleft()
                self._waiting -= self._size(item)
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is None:
            raise StopIteration
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame, which would keep the thread's data in memory

    def close(self) -> None:
        """Let the thread end with the item that it is computing, and wait for that."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # the garbage collector may call this in the thread itself
            self._thread.join()
        atexit.unregister(self.close)

    def _run(self, items: Generator[T, None, None], enter: Callable[[], None]) -> None:
        """The thread."""
        try:
            with closing(items):
                enter()
                while not self._closed:
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    self._give(item)
        except BaseException as error:  # raised again where the items are taken
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _give(self, item: T) -> None:
        with self._changed:
            if not self._closed:
                self._ready.append(item)
                self._waiting += self._size(item)
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._waiting <= self._most)
