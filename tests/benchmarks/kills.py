"""Kill a run repeatedly, resume it, and compare it bit for bit with an undisturbed run.

    python tests/benchmarks/kills.py --hits 200
    python tests/benchmarks/kills.py --hits 50 --by signals

A tiny run (a random policy, a warm start, 30 updates with a checkpoint each) is started, killed and resumed
until it finishes. Then its weights, optimizer, train state, metrics (except times), evaluations, answers and
episodes are compared with those of an undisturbed run with the same seed. Runs are repeated until there are
enough hits (kills or signals), with at least a quarter of the hits during a save and a quarter during
sampling.

A third of the hits are made at a random moment of a save, a third at a random moment of sampling, and a third
at any time. With `--by signals`, the run is not killed. It gets SIGTERM or SIGINT, in half of the cases two
signals, and the exit code is checked.
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

AIMS = ("saving", "sampling", None)  # None: any time
MOST_AWAITED = 6  # a hit is made during one of the first 6 saves or samplings of a process


@dataclass
class Tally:
    """Counts of hits by place and exit code, and of runs that ended with the same bits."""

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
            f"exit codes: {dict(self.exits)}; wrong exits: {self.wrong_exits}"
        )


def aim(life: Life, rng: random.Random, durations: dict[str, float], whole: float) -> None:
    """Wait for a random moment of a save, of sampling, or of the whole run."""
    target = rng.choice(AIMS)
    if target is None:
        time.sleep(rng.uniform(0, whole / 3))
    else:
        life.wait_for(target, rng.randint(1, MOST_AWAITED))
        time.sleep(rng.uniform(0, durations[target]))


def hit(life: Life, by: str, rng: random.Random, tally: Tally, pause: float, output: Path) -> int:
    """Kill the process or send it a signal, wait until it ends, and return its exit code."""
    if by == "kill":
        life.kill(signal.SIGKILL)
        return life.wait()
    numbers = [rng.choice(ASKING)]
    life.kill(numbers[0])
    while life.listen(0):  # read all reports of the process so far, to find out where it is
        pass
    place = life.place()
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, pause))
        numbers.append(rng.choice(ASKING))
        life.kill(numbers[1])
    code = life.wait()
    # before the run has begun, SIGTERM ends the process directly, which a shell also shows as 143
    allowed = {0} | {128 + number for number in numbers} | {-number for number in numbers}
    if code not in allowed:
        tally.wrong_exits.append(f"{code} after {numbers} while {place}: {output.read_text()[-800:]}")
    if code != 0:
        tally.places[place] += 1
    tally.exits[code] += 1
    return code


def disturbed(
    directory: Path, by: str, rng: random.Random, tally: Tally, durations: dict[str, float], whole: float
) -> int:
    """Hit and resume a run until it finishes, and return the number of hits."""
    num_hits, output = 0, directory.with_suffix(".txt")
    while True:
        # if the directory is empty, the process was hit before the run began
        is_begun = directory.exists() and any(directory.iterdir())
        life = start(directory, output, SETTINGS, resume=is_begun)
        aim(life, rng, durations, whole)
        code = hit(life, by, rng, tally, 2 * durations["saving"] + durations["sampling"], output)
        if code == 0:
            return num_hits
        num_hits += 1
        if by == "kill" and code != -signal.SIGKILL:
            tally.wrong_exits.append(f"{code}: {output.read_text()[-800:]}")
        if tally.wrong_exits:  # stop here, because the run might fail every time
            return num_hits
        if by == "kill":
            tally.places[life.place()] += 1
            tally.exits[code] += 1


def main() -> None:
    """Hit, resume, compare and print the counts. Exit with code 1 if any run differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hits", type=int, default=200, help="minimum number of hits")
    parser.add_argument("--by", nargs="+", choices=("kill", "signals"), default=["kill"], help="kind of hits")
    parser.add_argument(
        "--updates", type=int, default=SETTINGS["training.num_updates"], help="number of updates of each run"
    )
    parser.add_argument("--baseline", default=SETTINGS["reinforce.baseline"], help="baseline of the runs")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
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
                actual = outcome(directory)
                is_equal = actual == expected
                if not is_equal:
                    differing = [key for key in actual if actual[key] != expected[key]]
                    print(f"{directory.name} differs in", differing)
                    print(actual["files"])
                tally.num_runs += 1
                tally.num_equal_runs += is_equal
                tally.num_equal_hits += num_hits * is_equal
                print(f"{by}: {tally}", flush=True)
            are_all_equal &= tally.num_equal_runs == tally.num_runs
    if not are_all_equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
