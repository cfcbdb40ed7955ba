"""File that stores the answers of an evaluation, so that an interrupted evaluation can be continued."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_reinforce.errors import InputError
from llm_reinforce.evaluation.answers import Answer
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.verifier import Verdict

Identity = Mapping[str, Any]

NUM_HASHED = 4096  # approximate number of elements that `fingerprint` reads from each parameter tensor


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """JSONL file of answers: a first line that identifies the evaluation, then one line per problem.

    Use `open_answers` to create or open such a file.

    Attributes:
        path: path of the file.
        done: mapping from the index of each problem in the file to its answers.
    """

    path: Path
    done: dict[int, Sequence[Answer]] = field(default_factory=dict)

    def record(self, index: int, problem: Problem, answers: Sequence[Answer]) -> None:
        """Append one problem's answers to the file."""
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(answer_row(index, problem, answers), ensure_ascii=False) + "\n")
        self.done[index] = answers


def open_answers(path: Path, identity: Identity, problems: Sequence[Problem]) -> AnswerFile:
    """Create an answer file, or open the existing answer file of the same evaluation to continue it.

    An incomplete last line, which a process leaves if it is killed while it writes, is removed.

    Args:
        path: path of the file; missing directories are created.
        identity: all settings on which the answers depend, as JSON values.
        problems: the problems of the evaluation.

    Raises:
        InputError: if the file belongs to another evaluation, is not an answer file, or can't be read or
            written.
    """
    try:
        if not path.exists() or not path.read_bytes().partition(b"\n")[1]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"evaluation": dict(identity)}) + "\n", encoding="utf-8")
            return AnswerFile(path)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        whole, torn = lines[:-1], lines[-1]
        _check_identity(path, whole[0], identity)
        done: dict[int, Sequence[Answer]] = dict(
            _read_row(path, number, line, problems) for number, line in enumerate(whole[1:], 2)
        )
        if torn:
            path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: can't be read or written ({error.strerror}); give another `output_dir` (--output on "
            "the command line)"
        ) from error
    return AnswerFile(path, done)


def recorded_identity(path: Path) -> Identity:
    """Return the settings in the first line of an answer file, which identify the evaluation.

    The result is empty if the file does not exist, or if the first line contains no such settings.
    """
    try:
        with path.open(encoding="utf-8") as file:
            recorded = json.loads(file.readline())["evaluation"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return recorded if isinstance(recorded, Mapping) else {}


def answer_row(index: int, problem: Problem, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return a problem and its answers as a JSON object."""
    return {
        "index": index,
        "id": problem.id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "completions": [
            {
                "text": answer.text,
                "num_tokens": answer.num_tokens,
                "terminated": answer.terminated,
                "correct": answer.verdict.correct,
                "extracted": answer.verdict.extracted,
                "reason": answer.verdict.reason,
                "strict": answer.strict,
                "flexible": answer.flexible,
            }
            for answer in answers
        ],
    }


def answers_in(row: Mapping[str, Any]) -> tuple[Answer, ...]:
    """Return the answers in a JSON object written by `answer_row`."""
    return tuple(
        Answer(
            text=completion["text"],
            num_tokens=completion["num_tokens"],
            terminated=completion["terminated"],
            verdict=Verdict(completion["correct"], completion["extracted"], completion["reason"]),
            strict=completion["strict"],
            flexible=completion["flexible"],
        )
        for completion in row["completions"]
    )


def fingerprint(policy: LanguagePolicy) -> str:
    """Return a digest of a policy's weights. It is computed from a few thousand elements of each tensor."""
    digest = hashlib.blake2b(digest_size=12)
    for name, parameter in policy.model.named_parameters():
        flat = parameter.detach().flatten()
        elements = flat[:: max(1, flat.numel() // NUM_HASHED)].cpu()
        if elements.dtype != torch.float64:
            elements = elements.float()  # NumPy has no bfloat16
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(elements.numpy().astype(np.float64).tobytes())
    return digest.hexdigest()


def problems_digest(problems: Iterable[Problem]) -> str:
    """Return a digest of problems: their order, ids, prompts and reference answers."""
    digest = hashlib.blake2b(digest_size=12)
    for problem in problems:
        chat = [[dict(message) for message in problem.messages]] if problem.messages else []
        text = json.dumps([problem.id, problem.prompt, problem.answer, *chat])
        digest.update(text.encode())
    return digest.hexdigest()


def _check_identity(path: Path, line: str, identity: Identity) -> None:
    try:
        recorded = json.loads(line)["evaluation"]
        keys = sorted({*recorded, *identity})
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: not an answer file of an evaluation; give another `output_dir` (--output on the "
            "command line)"
        ) from None
    current = json.loads(json.dumps(dict(identity)))  # converts tuples to lists, as in the file
    differing = [
        f"{key}: {recorded.get(key)!r} in the file, {current.get(key)!r} now"
        for key in keys
        if recorded.get(key) != current.get(key)
    ]
    if differing:
        raise InputError(
            f"{path}: contains the answers of another evaluation ({'; '.join(differing)}); give another "
            "`output_dir` (--output on the command line), or delete the file"
        )


def _read_row(
    path: Path, number: int, line: str, problems: Sequence[Problem]
) -> tuple[int, Sequence[Answer]]:
    try:
        row = json.loads(line)
        index, answers = row["index"], answers_in(row)
        if not 0 <= index < len(problems) or not answers:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}, line {number}: this line was not written by an evaluation; delete the file to start "
            "from the beginning"
        ) from None
    return index, answers
