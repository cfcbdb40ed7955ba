"""The report in a real browser: filters, slider, hover, keyboard, small screens, and hostile text."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_reinforce import report
from tests.reports.made_up_run import write_run
from tests.reports.test_report import HOSTILE

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: "sync_api.Browser", tmp_path_factory: pytest.TempPathFactory) -> "sync_api.Page":
    return opened(browser, report(write_run(tmp_path_factory.mktemp("runs") / "sums")))


def opened(browser: "sync_api.Browser", file: Path, size: dict[str, int] = DESKTOP) -> "sync_api.Page":
    """Open a report, and check that it causes no error and loads nothing else."""
    page = browser.new_page(viewport=size)
    page.on("pageerror", lambda error: pytest.fail(f"error in the page: {error}"))
    page.on("request", lambda request: request.url == file.as_uri() or pytest.fail(f"loads {request.url}"))
    page.goto(file.as_uri())
    page.wait_for_selector(".card")
    return page


def move_slider(page: "sync_api.Page", place: int) -> None:
    page.locator("#update").fill(str(place))


def test_slider_and_buttons_choose_the_update(page: "sync_api.Page") -> None:
    assert page.locator("#update-value").inner_text() == "update 12"
    move_slider(page, 4)
    assert page.locator("#update-value").inner_text() == "update 5"
    page.locator("#next").click()
    assert page.locator("#update-value").inner_text() == "update 6"


def test_filters_choose_episodes(page: "sync_api.Page") -> None:
    move_slider(page, 5)
    assert page.locator("#cards .card").count() == 2
    page.locator("#verdict").select_option("correct")
    assert page.locator("#cards .card.correct").count() == page.locator("#cards .card").count() == 1
    page.locator("#verdict").select_option("different")
    assert page.locator("#cards .card.wrong").count() == page.locator("#cards .card").count() == 1
    page.locator("#verdict").select_option("")
    move_slider(page, 2)
    page.locator("#reward").select_option("unscored")
    assert page.locator("#cards .card.unscored").count() == 2
    page.locator("#reward").select_option("")
    page.locator("#search").fill("+ 1")
    assert page.locator("#cards .card").count() == 1
    page.locator("#search").fill("")


def test_hover_and_arrow_keys_show_the_numbers_of_a_token(page: "sync_api.Page") -> None:
    move_slider(page, 5)
    card = page.locator("#cards .card").first
    card.locator(".token").nth(1).hover()
    numbers = card.locator(".numbers")
    assert "token 2 of 4" in numbers.inner_text()
    assert "entropy 0.51" in numbers.inner_text()
    card.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "token 3 of 4" in numbers.inner_text()


def test_tokens_are_colored_by_the_chosen_number(page: "sync_api.Page") -> None:
    def colors() -> list[str]:
        tokens = page.locator("#cards .card").first.locator(".token").all()
        return [token.evaluate("token => getComputedStyle(token).backgroundColor") for token in tokens]

    move_slider(page, 5)
    page.locator("#color").select_option("advantage")
    assert len(set(colors())) == 1
    page.locator("#color").select_option("entropy")
    assert len(set(colors())) == 4


def test_one_problem_is_shown_at_several_updates(page: "sync_api.Page") -> None:
    titles = page.locator("#columns h4").all_inner_texts()
    assert titles == [f"update {update}" for update in range(1, 13)]


def test_charts_have_a_text_for_screen_readers(page: "sync_api.Page") -> None:
    labels = [chart.get_attribute("aria-label") for chart in page.locator("#charts [role=img]").all()]
    assert any("Accuracy" in label and "greedy: 44.0%" in label for label in labels)
    assert page.locator("#charts .chart").count() >= 5


def test_page_fits_on_a_phone(browser: "sync_api.Browser", tmp_path: Path) -> None:
    page = opened(browser, report(write_run(tmp_path / "sums", text="long word " * 40)), PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_page_of_1001_updates_opens_in_two_seconds(browser: "sync_api.Browser", long_report: Path) -> None:
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.goto(long_report.as_uri())
    page.wait_for_selector(".card")
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    assert metrics["ProcessTime"] < 2.0  # time of the processor, since other tests may keep it busy


def test_hostile_text_does_nothing(browser: "sync_api.Browser", tmp_path: Path) -> None:
    page = opened(browser, report(write_run(tmp_path / "hostile", text=HOSTILE)))
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert "window.hacked" in page.locator("#cards .card").first.inner_text()


def test_several_runs_are_drawn_in_the_same_charts(browser: "sync_api.Browser", tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "plain" / f"seed-{seed}", seed=seed)
    page = opened(browser, report(tmp_path))
    assert "seed-1, greedy" in page.locator("#charts .chart").first.inner_text()
    page.locator("#run").select_option("1")
    assert page.locator("#cards .card").count() == 2
