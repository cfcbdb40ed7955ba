"""The report of runs as a file: what it contains, what it leaves out, and how large it is."""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from llm_reinforce import InputError, live_report, report
from tests.reports.made_up_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "sums")


def page_data(file: Path) -> dict:
    text = file.read_text("utf-8")
    return json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])


def test_headline_has_accuracy_with_intervals_and_cost_of_a_point(run: Path) -> None:
    text = report(run).read_text("utf-8")
    assert "20.0% [10.0, 30.0]" in text
    assert "44.0% [34.0, 54.0]" in text
    # 24 points were gained with 1,200 tokens in 12 updates of 2 seconds
    assert "50 sampled tokens, 1.0 seconds" in text


def test_headline_names_the_warm_start(tmp_path: Path) -> None:
    run = write_run(tmp_path / "warm", training={"warm_start": {"num_updates": 20, "batch_size": 8}})
    assert "20 supervised updates with 8 examples each" in report(run).read_text("utf-8")


def test_report_is_written_into_the_run_unless_output_is_given(run: Path, tmp_path: Path) -> None:
    assert report(run) == run / "report.html"
    assert report(run, output=tmp_path / "new" / "page.html").is_file()


def test_problems_gained_and_lost_are_counted(run: Path) -> None:
    text = report(run).read_text("utf-8")
    assert "Problems gained: 2" in text
    assert "Problems lost: 1" in text


def test_curves_have_the_position_of_each_update_and_evaluation(run: Path) -> None:
    (curves,) = page_data(report(run))["runs"]
    assert curves["x"]["tokens"] == [100 * update for update in range(1, 13)]
    assert curves["x"]["minutes"][-1] == pytest.approx(24 / 60, rel=1e-3)
    assert curves["evaluations"]["greedy"]["update"] == [0, 6, 12]
    assert curves["evaluations"]["greedy"]["tokens"] == [0, 600, 1200]
    assert curves["metrics"]["grad_norm"] == [None] * 12


def test_episodes_keep_the_numbers_of_each_token(run: Path) -> None:
    episodes = page_data(report(run))["episodes"]
    first = episodes["rows"][0]
    assert [episodes["texts"][index] for index in first["tokens"]] == ["7", "t0", "t1", "<end>"]
    assert first["entropy"] == [0.5, 0.51, 0.52, 0.53]
    assert first["log_prob"] == -0.25  # equal numbers are written once
    unscored = [row for row in episodes["rows"] if row["update"] == 3]
    assert all(row["reward"] is None and "ValueError" in row["failure"] for row in unscored)


def test_shown_reward_of_an_episode_includes_its_step_rewards(run: Path) -> None:
    file = run / "episodes.jsonl"
    first, *others = file.read_text("utf-8").splitlines(keepends=True)
    row = {**json.loads(first), "reward": 1.0, "step_rewards": [0.0, 0.5, 0.5, 0.0]}
    file.write_text(json.dumps(row) + "\n" + "".join(others), "utf-8")
    assert page_data(report(run))["episodes"]["rows"][0]["reward"] == 2.0


def test_page_of_1001_updates_is_below_5_mb_and_says_that_it_is_thinned(long_report: Path) -> None:
    assert long_report.stat().st_size < 5_000_000
    episodes = page_data(long_report)["episodes"]
    assert 2 <= episodes["num_shown"] < episodes["num_updates"] == 1001
    shown = [row["update"] for row in episodes["rows"] if "decoding" not in row]
    assert (shown[0], shown[-1]) == (1, 1001)


def test_points_of_a_long_run_are_means_of_updates(long_report: Path) -> None:
    (curves,) = page_data(long_report)["runs"]
    assert curves["mean_of"] == 2
    assert curves["metrics"]["reward"][:2] == pytest.approx([0.15, 0.35])


def test_several_runs_share_charts_and_their_differing_settings_are_listed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "compare" / "plain" / f"seed-{seed}", seed=seed)
    file = report(tmp_path / "compare")
    assert file == tmp_path / "compare" / "report.html"
    assert [run["name"] for run in page_data(file)["runs"]] == ["seed-0", "seed-1"]
    assert {run["variant"] for run in page_data(file)["runs"]} == {"plain"}
    assert "<th>seed</th>" in file.read_text("utf-8")


@pytest.mark.parametrize("missing", ["metrics.jsonl", "episodes.jsonl", "evaluations.jsonl", "answers.jsonl"])
def test_a_run_without_one_of_its_files_still_has_a_report(run: Path, missing: str) -> None:
    (run / missing).unlink()
    assert report(run).is_file()


def test_a_run_that_was_killed_while_it_wrote_still_has_a_report(run: Path) -> None:
    with (run / "episodes.jsonl").open("a") as file:
        file.write('{"update": 13, "prom')
    (run / "environment.json").write_text('{"device": "c')
    assert len(page_data(report(run))["episodes"]["rows"]) == 24 + 60


HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\x1b[31m\u202e"


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "hostile", text=HOSTILE)
    rows = (run / "episodes.jsonl").read_text("utf-8").replace("window", "\\ud800window")
    (run / "episodes.jsonl").write_text(rows, "utf-8")
    text = report(run).read_text("utf-8")
    assert "<script>window" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_huge_token_and_a_huge_prompt_are_cut(tmp_path: Path) -> None:
    file = report(write_run(tmp_path / "huge", text="9" * 100_000))
    assert file.stat().st_size < 1_500_000
    assert "(100,000 characters)" in file.read_text("utf-8")


def test_secrets_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = {"function": "correct_answer", "arguments": {}}
    run = write_run(tmp_path / "secret", text="completion with hunter2hunter2", rewards=[reward])
    recipe = (run / "recipe.yaml").read_text("utf-8")
    (run / "recipe.yaml").write_text(
        recipe.replace("arguments: {}", "arguments: {api_key: abcdefgh}"), "utf-8"
    )
    (run / "environment.json").write_text('{"nested": {"HF_TOKEN": "hidden-value"}}', "utf-8")
    monkeypatch.setenv("MY_PASSWORD", "hunter2hunter2")
    text = report(run).read_text("utf-8")
    for secret in ("abcdefgh", "hidden-value", "hunter2hunter2"):
        assert secret not in text


def test_the_machine_and_its_directories_are_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "private")
    environment = {
        "device": "cpu",
        "machine": "host-of-ann",
        "working_directory": "/home/ann/project",
        "paths": {"words.jsonl": "/home/ann/words.jsonl"},
        "command": ["/home/ann/venv/bin/python", "-m", "llm_reinforce", "train", "mine.yaml"],
    }
    (run / "environment.json").write_text(json.dumps(environment), "utf-8")
    text = report(run).read_text("utf-8")
    assert "python, -m, llm_reinforce, train, mine.yaml" in text
    assert "ann" not in text


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no run"):
        report(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        report(tmp_path / "missing")


def test_live_report_shows_new_updates_to_this_machine_only(run: Path) -> None:
    with live_report(run) as address:
        assert urlsplit(address).hostname == "127.0.0.1"
        version = urlopen(f"{address}version").read()
        assert b'"refresh": ' in urlopen(address).read()
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"update": 13, "reward": 0.777}\n')
        assert urlopen(f"{address}version").read() != version
        assert b"0.777" in urlopen(address).read()
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("GET", "/", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 403
        connection.close()


def test_of_a_large_file_only_some_episodes_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (run / "episodes.jsonl").stat().st_size
    monkeypatch.setattr("llm_reinforce.reports.recorded_run.MAX_BYTES", size // 3)
    episodes = page_data(report(run))["episodes"]
    assert (episodes["num_shown"], episodes["num_updates"]) == (4, 12)
    shown = {row["update"] for row in episodes["rows"] if "decoding" not in row}
    assert shown == {1, 5, 9, 12}
