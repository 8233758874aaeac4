"""Attack the project in every way that is known, and count what came of it.

    python benchmarks/faults.py                       # full size, half an hour on two cores
    python benchmarks/faults.py --size small          # what .ci/run runs, two minutes
    python benchmarks/faults.py --only kills flips    # attacks whose name begins so
    python benchmarks/faults.py --only 'kills: build' --trial 17   # one trial again

Each trial ends right (as if nothing had happened, or done again), refused (a typed error of one
sentence, or a warning) or wrong (all else). Wrong ones are printed with what repeats them, and the
exit code is 1. The attacks stand in `attacks/`.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "tests" / "hub")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, help="So many of each attack, not what --size says.")
    parser.add_argument("--trial", type=int, help="Run the trial of this number alone.")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="faults_"))
    try:
        return attack(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def attack(options: argparse.Namespace, scratch: Path) -> int:
    """Run what was chosen in a folder that is removed afterwards."""
    from attacks.stand_in import WRITER, start_hub

    manager, hub = start_hub()
    set_environment(scratch, {"HF_ENDPOINT": hub.url(), "HF_TOKEN": WRITER})
    from rich.console import Console

    from attacks.all import all_attacks
    from attacks.showing import progress_bars, say
    from attacks.trials import run_attack

    console, tallies = Console(), []
    chosen = [a for a in all_attacks(scratch, hub) if a.name.startswith(tuple(options.only))]
    with manager, progress_bars(console) as begin:
        for one in chosen:
            number = one.small if options.size == "small" else one.full
            numbers = range(number if options.trials is None else options.trials)
            numbers = numbers if options.trial is None else [options.trial]
            show = begin(one.name, len(numbers))
            tallies.append(
                run_attack(
                    one, numbers, seed=options.seed, jobs=options.jobs, scratch=scratch, show=show
                )
            )
    return say(console, tallies)


def set_environment(scratch: Path, hub: dict[str, str]) -> None:
    """Set what the libraries read when they are imported; a fork wants no threads."""
    for name in [name for name in os.environ if name.startswith("HF_") or "proxy" in name.lower()]:
        del os.environ[name]
    os.environ |= {
        **hub,
        "HF_HOME": str(scratch / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
