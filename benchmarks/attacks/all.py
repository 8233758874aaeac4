"""The list of all attacks, with their sizes."""

from functools import cache
from pathlib import Path

from attacks.disks import disks_of
from attacks.flips import flips_in
from attacks.harness import Attack
from attacks.kills import kills_of
from attacks.servers import server_faults
from attacks.stale import stale_embeddings
from attacks.stand_in import Hub
from attacks.world import Command, make_world


def all_attacks(scratch: Path, hub: Hub) -> list[Attack]:
    """Name every attack; the world is made when the first one needs it."""

    @cache
    def commands() -> dict[str, Command]:
        return make_world(scratch / "world", hub)

    return [
        kills_of("build", commands, small=3, full=45),
        kills_of("evaluate", commands, small=3, full=60),
        kills_of("report", commands, small=3, full=45),
        kills_of("generate", commands, small=3, full=30),
        kills_of("generate images", commands, small=2, full=30),
        kills_of("finetune", commands, small=3, full=45),
        kills_of("publish dataset", commands, small=3, full=30),
        kills_of("publish results", commands, small=3, full=30),
        disks_of("build", commands, small=2, full=10),
        disks_of("evaluate", commands, small=2, full=10),
        disks_of("evaluate", commands, small=2, full=10, cache=True),
        disks_of("report", commands, small=2, full=10),
        disks_of("generate", commands, small=2, full=10),
        disks_of("generate images", commands, small=2, full=10),
        disks_of("finetune", commands, small=2, full=10),
        flips_in("Parquet", "evaluate a copy", "REPLACE/data/*", commands, small=10, full=1000),
        flips_in("results", "report on a copy", "new/*", commands, small=10, full=1000),
        flips_in("cache", "evaluate", "home/cache/*/*", commands, small=10, full=1000),
        flips_in("parts", "generate", ".out.parts/*", commands, small=10, full=1000, stopped=True),
        flips_in(
            "checkpoints",
            "finetune",
            "out/checkpoints/*/*",
            commands,
            small=5,
            full=1000,
            stopped=True,
        ),
        server_faults(small=12, full=200),
        stale_embeddings(small=4),
    ]
