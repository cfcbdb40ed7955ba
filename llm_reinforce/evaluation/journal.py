"""An evaluation's answers on disk, one line a problem, from which a stopped one goes on."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llm_reinforce.errors import InputError
from llm_reinforce.evaluation.answers import Answer
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.verifier import Verdict

Identity = Mapping[str, Any]

NUM_HASHED = 4096  # elements of each parameter that its fingerprint reads


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """A JSONL file: a first line that says which evaluation this is, then a line for each problem.

    Open it by `open_answers`.
    """

    path: Path
    done: dict[int, Sequence[Answer]] = field(default_factory=dict)

    def record(self, index: int, problem: Problem, answers: Sequence[Answer]) -> None:
        """Add a problem's line and flush it."""
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(answer_row(index, problem, answers), ensure_ascii=False) + "\n")
        self.done[index] = answers


def open_answers(path: Path, identity: Identity, problems: Sequence[Problem]) -> AnswerFile:
    """Begin a file of answers, or go on with one of the same evaluation; a torn last line is dropped.

    Args:
        identity: all that the answers depend on, as JSON holds it.

    Raises:
        InputError: the file holds another evaluation, or something else, or can't be written.
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
        raise InputError(f"{path}: can't be read or written: {error.strerror}") from error
    return AnswerFile(path, done)


def answer_row(index: int, problem: Problem, answers: Sequence[Answer]) -> dict[str, Any]:
    """A problem with all that was said to it."""
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
    """The answers that `answer_row` wrote."""
    return tuple(
        Answer(
            text=said["text"],
            num_tokens=said["num_tokens"],
            terminated=said["terminated"],
            verdict=Verdict(said["correct"], said["extracted"], said["reason"]),
            strict=said["strict"],
            flexible=said["flexible"],
        )
        for said in row["completions"]
    )


def fingerprint(policy: LanguagePolicy) -> str:
    """A digest of a policy's weights, from some thousand elements of each: another update changes it."""
    digest = hashlib.blake2b(digest_size=12)
    for name, parameter in policy.model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // NUM_HASHED)].to("cpu", torch.float64)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def problems_digest(problems: Iterable[Problem]) -> str:
    """A digest of what is asked and what is right, in its order."""
    digest = hashlib.blake2b(digest_size=12)
    for problem in problems:
        text = json.dumps([problem.id, problem.prompt, problem.answer])
        digest.update(text.encode())
    return digest.hexdigest()


def _check_identity(path: Path, line: str, identity: Identity) -> None:
    try:
        there = json.loads(line)["evaluation"]
        keys = sorted({*there, *identity})
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is no file of answers; give another --output") from None
    here = json.loads(json.dumps(dict(identity)))  # tuples are lists, as they are there
    differing = [
        f"{key} ({there.get(key)!r} there, {here.get(key)!r} now)"
        for key in keys
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise InputError(
            f"{path} holds another evaluation; it differs in {', '.join(differing)}. Give another --output, "
            "or remove the file"
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
            f"{path}, line {number}: isn't what an evaluation writes; remove the file to start anew"
        ) from None
    return index, answers
