"""Directory of a run: files, lock and logs."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from llm_reinforce.durable_files import finite, sync, write_whole
from llm_reinforce.errors import InputError, texts_without_secrets

if TYPE_CHECKING:
    from llm_reinforce.evaluation import Evaluation

OWN_NAMES = (
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "episodes.jsonl",
    "evaluations.jsonl",
    "answers.jsonl",
    "comparison.json",
    "checkpoints",
    "policy",
    "report.html",
    "trackers",  # logs of experiment trackers
    "initial_policy",  # a policy object passed in Python
    "problems",  # problem objects passed in Python
)
LOCK = ".lock"  # lock file of the process that writes the run; released when the process ends
WRITTEN_BEFORE_RECIPE = frozenset(
    {
        "environment.json",
        "environment.json.partial",
        "recipe.yaml.partial",
        "initial_policy",
        "initial_policy.partial",
        "problems",
    }
)
RESUME, OVERWRITE = "--resume, or resume=True", "--overwrite, or overwrite=True"  # for messages
LOGS = ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl", "answers.jsonl")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Directory of one run.

    Attributes:
        path: path of the directory. The directory need not exist yet.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        """Directory of the final policy."""
        return self.path / "policy"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that `prepare` would succeed, without changing any file.

        The check is fast, so that errors can be reported before a model is loaded.

        Args:
            resume: the run in the directory will be continued.
            overwrite: the run in the directory will be replaced.

        Raises:
            InputError: if the directory is not empty and neither `resume` nor `overwrite` is set, if there
                is nothing to resume, if `overwrite` would delete files not written by a run, or if the
                directory cannot be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output_dir {self.path} is a file; choose another output_dir")
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise InputError(f"output_dir {self.path} can't be written to; choose another output_dir")
        found = [entry.name for entry in self._entries()]
        if resume:
            if "recipe.yaml" not in found and not self.is_begun():
                raise InputError(
                    f"nothing to resume in {self.path}; start the run without --resume (in Python, without "
                    "resume=True)"
                )
            return
        foreign = [name for name in found if name.removesuffix(".partial") not in OWN_NAMES]
        if foreign and (overwrite or "recipe.yaml" not in found):
            raise InputError(
                f"output_dir {self.path} contains files not written by a run ({', '.join(foreign[:4])}), so "
                "it is not overwritten; choose another output_dir"
            )
        if found and not overwrite:
            raise InputError(
                f"output_dir {self.path} is not empty ({', '.join(found[:4])}); resume the run in this "
                f"directory ({RESUME}), replace the run ({OVERWRITE}), or choose another output_dir"
            )

    def is_begun(self) -> bool:
        """Return True if a run was started in this directory and killed before it had written its recipe."""
        names = {entry.name for entry in self._entries()}
        return (self.path / LOCK).exists() and names <= WRITTEN_BEFORE_RECIPE

    def _entries(self) -> list[Path]:
        """Return the paths of all files and folders in the directory, except the lock, sorted by name."""
        entries = sorted(self.path.iterdir()) if self.path.is_dir() else []
        return [entry for entry in entries if entry.name != LOCK]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory within the context. Other runs then cannot write to the directory.

        Raises:
            InputError: if another run holds the lock, or the directory cannot be created.
        """
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                f"output_dir {self.path}: another run is writing to this directory; wait until that run "
                "ends, stop it, or choose another output_dir"
            ) from error
        except OSError as error:
            raise InputError(f"output_dir {self.path} can't be created: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Create an empty directory for a new run, or check that the run in the directory can be resumed.

        With `overwrite`, the files of an earlier run are deleted.

        Raises:
            InputError: under the conditions listed for `check`.
        """
        self.check(resume=resume, overwrite=overwrite)
        if resume:
            return
        for entry in self._entries():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output_dir {self.path} can't be created: {error.strerror}") from error

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically: readers see either the old or the new content, never a part of it."""
        write_whole(self.path / name, text)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a line of JSON to a log and flush the file. Numbers that are not finite become null."""
        # an unpaired surrogate, such as in the text of an exception, is written as the JSON escape \udXXX
        with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            line = json.dumps(texts_without_secrets(finite(row)), ensure_ascii=False, allow_nan=False)
            file.write(line + "\n")
            file.flush()

    def append_answers(
        self, where: Mapping[str, Any], evaluation: "Evaluation", num_problems: int | None = None
    ) -> None:
        """Append one line per problem of an evaluation to `answers.jsonl`.

        A line contains all answers to its problem.

        Args:
            where: values of the columns `update` and `data`, which are the same in all lines.
            evaluation: the evaluation.
            num_problems: number of problems to write, starting with the first problem. None: all problems.
        """
        from llm_reinforce.evaluation import answer_row  # imports torch

        pairs = [*zip(evaluation.problems, evaluation.answers, strict=True)][:num_problems]
        rows = (
            {**where, "decoding": evaluation.decoding, **answer_row(index, problem, answers)}
            for index, (problem, answers) in enumerate(pairs)
        )
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with (self.path / "answers.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of a log as dicts. The list is empty if the file does not exist."""
        file = self.path / name
        rows = []
        # the last line of a killed run may end within a character
        text = file.read_text("utf-8", errors="replace") if file.is_file() else ""
        for line in text.split("\n"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # the last line of a killed run may be incomplete
        return rows

    def has_logs_of(self, num_updates: int) -> bool:
        """Return True if the logs end with this update, so that a checkpoint of this update fits them."""
        logs = [rows for name in LOGS[:2] if (rows := self.rows(name))]
        return all(rows[-1].get("update") == num_updates for rows in logs) if logs else num_updates == 0

    def sync_logs(self) -> None:
        """Wait until the logs are stored on the disk.

        This is necessary before a checkpoint is saved, because a run that is resumed from the checkpoint
        needs all log lines of the updates before it.
        """
        for name in LOGS:
            if (self.path / name).is_file():
                sync(self.path / name)

    def cut_logs(self, num_updates: int, pending: Collection[str] = ()) -> None:
        """Remove the log lines that a resumed run writes again.

        Args:
            num_updates: number of updates of the checkpoint. The lines of later updates are removed.
            pending: decodings ("greedy" or "sampled") whose evaluation after update `num_updates` is repeated
                by the resumed run. The lines of these evaluations are removed, too.
        """
        for name in LOGS:
            file = self.path / name
            if file.is_file():
                text = file.read_text("utf-8", errors="replace")  # a killed run may end within a character
                lines = text.split("\n")  # not splitlines: text may contain U+2028
                kept = [line for line in lines if _is_kept(line, num_updates, pending)]
                self.write_text(name, "".join(line + "\n" for line in kept))


def _is_kept(line: str, num_updates: int, pending: Collection[str]) -> bool:
    try:
        row = json.loads(line)
        if row["update"] == num_updates and row.get("decoding") in pending:
            return False
        return bool(row["update"] <= num_updates)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
