"""The list of all attacks, with their sizes."""

from functools import cache
from pathlib import Path

from attacks.cells import malicious
from attacks.dataset import annotation_flips, hostile_inputs
from attacks.disks import disks_of
from attacks.flips import flips_in
from attacks.identity import stale_embeddings
from attacks.kills import kills_of
from attacks.metric import metric_inputs
from attacks.pages import hostile_results
from attacks.servers import server_faults
from attacks.stand_in import Hub
from attacks.trials import Attack
from attacks.world import Command, make_world


def all_attacks(scratch: Path, hub: Hub) -> list[Attack]:
    """Name every attack; the world is made when the first one needs it."""

    @cache
    def commands() -> dict[str, Command]:
        return make_world(scratch / "world", hub)

    kills = {"evaluate": 60, "generate": 30, "finetune": 30, "build": 60, "report": 60}
    kills |= {"evaluate generative": 25}
    kills |= {"generate images": 30, "publish dataset": 40, "publish results": 40}
    kills |= {"evaluate workers": 25, "generate workers": 25, "finetune workers": 15}
    disks = ("build", "evaluate", "report", "generate", "generate images", "finetune")
    parts, checkpoints = ".out.parts/*", "out/checkpoints/*/*"
    return [
        *(kills_of(name, commands, small=2, full=full) for name, full in kills.items()),
        *(disks_of(name, commands, small=2, full=10) for name in disks),
        disks_of("evaluate", commands, small=2, full=10, cache=True),
        annotation_flips(small=10, full=1000),
        flips_in("Parquet", "evaluate a copy", "REPLACE/data/*", commands, small=8, full=1000),
        flips_in("results", "report on a copy", "new/*", commands, small=8, full=1000),
        flips_in("cache", "evaluate", "home/cache/*/*", commands, small=8, full=300),
        flips_in("parts", "generate", parts, commands, small=8, full=1000, stopped=parts),
        flips_in(
            "checkpoints",
            "finetune",
            checkpoints,
            commands,
            small=8,
            full=1000,
            stopped=checkpoints,
        ),
        flips_in(
            "run record", "finetune", "out/*.json", commands, small=4, full=200, stopped=checkpoints
        ),
        hostile_inputs(small=40, full=300),
        malicious(small=20, full=300),
        hostile_results(lambda: commands() and scratch / "world" / "new", small=4, full=100),
        server_faults(small=12, full=200),
        stale_embeddings(small=4),
        metric_inputs(small=500, full=10_000),
    ]
