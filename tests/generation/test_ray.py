"""The same rows on a Ray cluster of two nodes, one of which may die."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from datasets import Dataset

from hard_positives.generation.captions import read_captions
from hard_positives.generation.rules import Rules
from hard_positives.generation.run import TASKS, generate

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow

THINGS = ("cat", "dog", "horse", "cow", "bird", "chair", "table", "cup")
CAPTIONS = [f"a red {one} and a white {two}" for one in THINGS for two in THINGS if one != two]
PATIENCE = 120  # seconds


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def source():
    return read_captions(
        Dataset.from_dict({"id": list(map(str, range(len(CAPTIONS)))), "caption": CAPTIONS})
    )


@dataclass(frozen=True)
class Meeting(Rules):
    """Writes down what each node edits, and waits until there are two."""

    meeting: Path = Path()

    def edit_batch(self, captions, task):
        node = ray.get_runtime_context().get_node_id()
        with (self.meeting / node).open("a") as file:
            file.writelines(f"{task}/{caption}\n" for caption in captions)
        wait_until(lambda: len(list(self.meeting.iterdir())) >= 2)
        return super().edit_batch(captions, task)


@dataclass(frozen=True)
class Doomed(Meeting):
    """On one node never comes to an end."""

    node: str = ""

    def edit_batch(self, captions, task):
        edits = super().edit_batch(captions, task)
        if ray.get_runtime_context().get_node_id() == self.node:
            (self.meeting.parent / "doomed").touch()
            time.sleep(PATIENCE)
        return edits


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setattr("hard_positives.generation.run.BATCH_SIZE", 3)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes have no tests
    nodes = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    cluster.add_node(**nodes)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def expected(tmp_path, monkeypatch) -> dict[str, bytes]:
    """What this process makes of the rows."""
    monkeypatch.setattr("hard_positives.generation.run.BATCH_SIZE", 3)
    return files_of(generate(source(), tmp_path / "here", Rules(), workers=1, progress=False))


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_two_nodes_share_the_work_and_make_the_same_files(cluster, expected, tmp_path, capfd):
    (tmp_path / "meeting").mkdir()
    editor = Meeting(meeting=tmp_path / "meeting")
    capfd.readouterr()
    there = generate(source(), tmp_path / "there", editor, engine="ray", progress=False)
    assert capfd.readouterr().err == ""  # nor do Ray's own lines and bars appear
    logs = {path.name: path.read_text().splitlines() for path in editor.meeting.iterdir()}
    assert set(logs) == {node["NodeID"] for node in ray.nodes()}
    assert len(logs) == 2
    every_task = {f"{task}/{text}": 1 for task in TASKS for text in CAPTIONS}
    assert Counter(chain(*logs.values())) == every_task
    assert files_of(there) == expected


def test_what_a_node_leaves_undone_when_it_dies_is_done_by_the_other(cluster, expected, tmp_path):
    (tmp_path / "meeting").mkdir()
    [other] = cluster.worker_nodes
    editor = Doomed(meeting=tmp_path / "meeting", node=other.node_id)
    failed = []

    def run():
        try:
            generate(source(), tmp_path / "there", editor, engine="ray", progress=False)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until((tmp_path / "doomed").exists)
    cluster.remove_node(other, allow_graceful=False)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert failed == []
    logs = {path.name: path.read_text().splitlines() for path in editor.meeting.iterdir()}
    assert len(logs) == 2
    [survivor] = set(logs) - {other.node_id}
    every_task = {f"{task}/{text}" for task in TASKS for text in CAPTIONS}
    assert set(logs[other.node_id]) & set(logs[survivor])  # done again
    assert set(logs[survivor]) == every_task
    assert files_of(tmp_path / "there") == expected
