"""Kill a run again and again, resume it, and compare it with one that nobody disturbed, bit for bit.

    python tests/benchmarks/kills.py --hits 200
    python tests/benchmarks/kills.py --hits 50 --by signals

A tiny run (a random policy, a warm start, 30 updates, a checkpoint each) is started, hit, and resumed, until
it comes to its end; then its weights, optimiser, train state, metrics (times aside), evaluations, answers and
episodes are compared with those of an undisturbed run of the same seed. So many runs are made that there are
enough hits, and a quarter of them inside a save, a quarter inside sampling.

A third of the hits aim at a save, a third at sampling (a random moment within it), a third at any instant.
`--by signals` sends SIGTERM or SIGINT, half of the time a second one soon after, and looks at the exit code.
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lives import SETTINGS, Life, make_traced, outcome, start

from llm_reinforce.cli.interruption import ASKING

AIMS = ("saving", "sampling", None)  # None: any instant
MOST_AWAITED = 6  # a hit aims at one of the first so many saves or samplings of a life


@dataclass
class Tally:
    """What the hits did: where they found the run, how it left, and what came of the runs."""

    places: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    wrong_exits: list[str] = field(default_factory=list)
    num_runs: int = 0
    num_equal_runs: int = 0
    num_equal_hits: int = 0

    def is_enough(self, num_hits: int) -> bool:
        quarter = num_hits // 4
        return self.places.total() >= num_hits and min(self.places[aim] for aim in AIMS[:2]) >= quarter

    def __str__(self) -> str:
        return (
            f"{self.num_equal_hits} of {self.places.total()} hits resumed to the same bits, "
            f"{self.num_equal_runs} of {self.num_runs} runs; hits by place: {dict(self.places)}; "
            f"exits: {dict(self.exits)}; wrong exits: {self.wrong_exits}"
        )


def aim(life: Life, rng: random.Random, durations: dict[str, float], whole: float) -> None:
    """Wait for a random moment inside a save, inside a sampling, or at all."""
    target = rng.choice(AIMS)
    if target is None:
        time.sleep(rng.uniform(0, whole / 3))
    else:
        life.wait_for(target, rng.randint(1, MOST_AWAITED))
        time.sleep(rng.uniform(0, durations[target]))


def hit(life: Life, by: str, rng: random.Random, tally: Tally, pause: float, said: Path) -> int:
    """Kill it, or ask it to stop, and wait for its end; return its exit code."""
    if by == "kill":
        life.kill(signal.SIGKILL)
        return life.wait()
    numbers = [rng.choice(ASKING)]
    life.kill(numbers[0])
    while life.listen(0):  # what it was about when it was hit, as far as the pipe has it
        pass
    place = life.place()
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, pause))
        numbers.append(rng.choice(ASKING))
        life.kill(numbers[1])
    code = life.wait()
    # SIGTERM before the run has begun ends the process as it ends any; a shell calls that 143, too
    right = {0} | {128 + number for number in numbers} | {-number for number in numbers}
    if code not in right:
        tally.wrong_exits.append(f"{code} after {numbers} while {place}: {said.read_text()[-800:]}")
    if code != 0:
        tally.places[place] += 1
    tally.exits[code] += 1
    return code


def disturbed(
    directory: Path, by: str, rng: random.Random, tally: Tally, durations: dict[str, float], whole: float
) -> int:
    """A run hit until it has come to its end; how many hits it took."""
    num_hits, said = 0, directory.with_suffix(".txt")
    while True:
        # an empty directory is no run: a signal has come between its making and the lock's
        is_begun = directory.exists() and any(directory.iterdir())
        life = start(directory, said, SETTINGS, resume=is_begun)
        aim(life, rng, durations, whole)
        code = hit(life, by, rng, tally, 2 * durations["saving"] + durations["sampling"], said)
        if code == 0:
            return num_hits
        num_hits += 1
        if by == "kill" and code != -signal.SIGKILL:
            tally.wrong_exits.append(f"{code}: {said.read_text()[-800:]}")
        if tally.wrong_exits:  # it may fail so for ever
            return num_hits
        if by == "kill":
            tally.places[life.place()] += 1
            tally.exits[code] += 1


def main() -> None:
    """Hit, resume, compare, and say how many of how many came out the same; exit 1 if not all did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hits", type=int, default=200, help="how many at least")
    parser.add_argument("--by", nargs="+", choices=("kill", "signals"), default=["kill"])
    parser.add_argument("--updates", type=int, default=SETTINGS["training.num_updates"], help="of each run")
    parser.add_argument("--baseline", default=SETTINGS["reinforce.baseline"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    SETTINGS.update({"training.num_updates": options.updates, "reinforce.baseline": options.baseline})
    make_traced()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        began = time.monotonic()
        undisturbed = start(root / "undisturbed", root / "undisturbed.txt", SETTINGS, resume=False)
        assert undisturbed.wait() == 0, (root / "undisturbed.txt").read_text()
        whole, durations = time.monotonic() - began, undisturbed.durations()
        print(f"undisturbed: {whole:.2f} s;", {place: round(each, 4) for place, each in durations.items()})
        expected, are_all_equal = outcome(root / "undisturbed"), True
        for by in options.by:
            rng, tally = random.Random(f"{options.seed} {by}"), Tally()
            while not tally.is_enough(options.hits):
                directory = root / f"{by}-{tally.num_runs}"
                num_hits = disturbed(directory, by, rng, tally, durations, whole)
                if tally.wrong_exits:
                    raise SystemExit(f"{by}: {tally}")
                left = outcome(directory)
                is_equal = left == expected
                if not is_equal:
                    print(f"{directory.name} differs in", [key for key in left if left[key] != expected[key]])
                    print(left["files"])
                tally.num_runs += 1
                tally.num_equal_runs += is_equal
                tally.num_equal_hits += num_hits * is_equal
                print(f"{by}: {tally}", flush=True)
            are_all_equal &= tally.num_equal_runs == tally.num_runs
    if not are_all_equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
