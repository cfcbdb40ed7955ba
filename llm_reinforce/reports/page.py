"""Report of one or more runs as a single HTML file, which needs no network."""

import base64
import hashlib
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2

from llm_reinforce.durable_files import write_whole
from llm_reinforce.errors import InputError
from llm_reinforce.reports.changes import changes_of
from llm_reinforce.reports.curves import CHARTS, first_and_last, run_curves
from llm_reinforce.reports.diagnosis import diagnose
from llm_reinforce.reports.episodes import episodes_data
from llm_reinforce.reports.headline import headline
from llm_reinforce.reports.recorded_run import RecordedRun, find_runs, read_run
from llm_reinforce.reports.shown_text import shown, shown_settings, without_secret_entries
from llm_reinforce.runs import RunSummary

REPORT = "report.html"
# entries of environment.json that a report leaves out
PRIVATE_ENTRIES = ("machine", "working_directory", "paths")
SCRIPTS = ("uplot.min.js", "charts.js", "episodes.js")
STYLES = ("uplot.min.css", "style.css")


def report(
    *runs: str | PathLike[str], output: str | PathLike[str] | None = None, open_browser: bool = False
) -> Path:
    """Write the report of one or more runs to a single HTML file, and return the path of the file.

    Args:
        runs: directories of runs, or directories that contain runs, such as those that `compare` writes.
        output: path of the file. None: `report.html` in the first directory.
        open_browser: open the file in the browser.

    Raises:
        InputError: if a directory contains no run, or if the file cannot be written.
    """
    paths = [Path(run).expanduser() for run in runs]
    text = render(find_runs(paths))
    file = Path(output).expanduser() if output is not None else paths[0] / REPORT
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
    except OSError as error:
        raise InputError(
            f"{file}: can't be written ({error.strerror}); choose another output file"
        ) from error
    if open_browser:
        webbrowser.open(file.resolve().as_uri())
    return file


def render(summaries: Sequence[RunSummary], *, refresh_seconds: int | None = None) -> str:
    """Return the report of runs as HTML.

    Args:
        summaries: the runs, at least one.
        refresh_seconds: time between two requests of the page for new data. None: the page makes no requests.
    """
    names = _names([run.path for run in summaries])
    runs = [read_run(summary, name) for summary, name in zip(summaries, names, strict=True)]
    data = {
        "charts": [asdict(chart) for chart in CHARTS],
        "runs": [run_curves(run, len(runs)) for run in runs],
        "episodes": episodes_data(runs),
        "refresh": refresh_seconds,
    }
    scripts = [_file(name) for name in SCRIPTS]
    return _template().render(
        title=", ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        policy=_content_security_policy(scripts, is_live=refresh_seconds is not None),
        styles=[_file(name) for name in STYLES],
        scripts=scripts,
        data=data,
        headlines=[headline(run) for run in runs],
        runs=[_details(run) for run in runs],
        differing=differing_settings(runs),
    )


def _details(run: RecordedRun) -> dict[str, Any]:
    """Return the findings, metrics, settings and other values of a run that the template shows as text."""
    return {
        "name": run.name,
        "findings": diagnose(run),
        "changes": changes_of(run),
        "metrics": [(shown(name, 200), *values) for name, *values in first_and_last(run.metrics)],
        "settings": shown_settings(run.settings),
        "environment": _flat(_without_private_entries(run.environment)),
        "variance": _flat(without_secret_entries(dict(run.variance))),
    }


def _without_private_entries(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment without secrets and without the names of the machine and of its directories.

    These values must not become public when a report is attached to an issue or sent by email.
    """
    entries = {name: value for name, value in environment.items() if name not in PRIVATE_ENTRIES}
    match entries.get("command"):
        case [str(python), str(script), *arguments]:
            entries["command"] = [Path(python).name, Path(script).name, *arguments]
    return dict(without_secret_entries(entries))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: the path of its directory without the part that all paths share."""
    parts = [path.resolve().parts for path in paths]
    shared = 0
    while len(paths) > 1 and len({names[: shared + 1] for names in parts}) == 1:
        shared += 1
    return [shown("/".join(names[shared:] if len(paths) > 1 else names[-1:]), 120) for names in parts]


def differing_settings(runs: Sequence[RecordedRun]) -> dict[str, list[str]]:
    """Return the values of each setting that differs between runs, in the order of the runs."""
    if len(runs) == 1:
        return {}
    flat = [dict(_flat(without_secret_entries(dict(run.settings or {})))) for run in runs]
    keys = sorted({key for values in flat for key in values} - {"output_dir"})
    rows = {key: [values.get(key, "") for values in flat] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Return nested JSON values as a flat list of rows, each with a dotted key and a value."""
    if isinstance(value, dict):
        return [row for key, each in value.items() for row in _flat(each, f"{path}.{key}" if path else key)]
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return [row for index, each in enumerate(value) for row in _flat(each, f"{path}.{index}")]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(path, text)]


def _content_security_policy(scripts: Sequence[str], *, is_live: bool) -> str:
    """Return a content security policy that allows only the given scripts and forbids loading any file.

    A script in the text of a completion therefore cannot run, even if a bug left the text unescaped. If
    `is_live` is True, the page may request data from its own server.
    """
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    connect = "'self'" if is_live else "'none'"
    return f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; connect-src {connect}"


@cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text("utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
