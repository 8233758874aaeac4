"""The tests' stand-in Hub in a process of its own, started before anything reads `HF_ENDPOINT`."""

from multiprocessing.managers import BaseManager

from stand_in_hub import WRITER, Repository, StandInHub

__all__ = ["WRITER", "start_hub"]


class Hub:
    """What attacks ask of the Hub."""

    def __init__(self):
        self._hub = StandInHub().__enter__()

    def url(self) -> str:
        """Where it serves."""
        return self._hub.url

    def add(self, kind: str, id: str, files: dict[str, bytes]) -> None:
        """Make a repository."""
        self._hub.add(kind, id, files)

    def remove(self, kind: str, id: str) -> None:
        """Remove a repository, if it is there."""
        self._hub.repositories.pop((kind, id), None)

    def find(self, kind: str, id: str) -> Repository | None:
        """Return a repository as it is now, with all its commits."""
        with self._hub.lock:
            return self._hub.repositories.get((kind, id))


class _Manager(BaseManager):
    pass


_Manager.register("Hub", Hub)


def start_hub() -> tuple[_Manager, Hub]:
    """Start the process; the Hub lives as long as the first of the two."""
    manager = _Manager()
    manager.start()
    return manager, manager.Hub()
