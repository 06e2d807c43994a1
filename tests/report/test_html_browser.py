"""The page in a real browser: Debian's chromium, driven through its own driver; nothing is downloaded.

Skipped where they are not installed (apt-get install chromium chromium-driver).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from stbp_milp.report.html import write_report
from stbp_milp.report.html.run import read_run
from tests.report.made_runs import Made, many, write_batch

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver; apt-get install chromium chromium-driver"
)

logger = logging.getLogger(__name__)

HOSTILE = "<img src=x onerror=document.title='broken'>"
EXAMPLE = [
    Made("slow", "verified", 30.0, 0.7, 2.0),
    Made("quick", "verified", 0.02, 0.2, 3.0),
    Made("bad", "falsified", 0.5),
    Made("worse", "falsified", 0.25, set="everywhere", model="volume"),
    Made("late", "timeout", 60.3),
    Made(HOSTILE.replace("/", ""), "unknown", 60.0, set=HOSTILE),
]
BEFORE = [Made("slow", "timeout", 60.0), Made("quick", "verified", 2.0), *EXAMPLE[2:4], Made("old")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = read_run(write_batch(folder / "night", EXAMPLE))
    return write_report(run, folder / "report.html", read_run(write_batch(folder / "before", BEFORE))).path


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """The example's page, ready; afterwards nothing may have complained."""
    _open(browser, page)
    yield browser
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    assert not browser.find_element(By.ID, "problem").is_displayed()


def _run(browser: webdriver.Chrome, script: str, *arguments: object) -> Any:
    return browser.execute_script(script, *arguments)  # type: ignore[no-untyped-call]


def _open(browser: webdriver.Chrome, page: Path) -> None:
    browser.get("about:blank")
    browser.get(page.as_uri())
    _wait(browser, lambda: _run(browser, "return document.documentElement.dataset.ready") == "yes")


def _wait(browser: webdriver.Chrome, condition: Callable[[], Any]) -> None:
    WebDriverWait(browser, 20, 0.05).until(lambda _: condition())


def _names(browser: webdriver.Chrome) -> list[str]:
    cells = browser.find_elements(By.CSS_SELECTOR, "#table tbody td:first-child button")
    return [cell.text.split(" / ")[-1] for cell in cells]


def _sort(browser: webdriver.Chrome, title: str) -> None:
    heads = browser.find_elements(By.CSS_SELECTOR, "#instances thead th")
    next(head for head in heads if head.text.strip() == title).click()


def test_sorting(opened: webdriver.Chrome) -> None:
    assert _names(opened)[:3] == ["slow", "quick", "bad"]  # the list's order
    for title, first in (
        ("Time", ["quick", "worse", "bad", "slow"]),
        ("Time", ["late", HOSTILE]),
        ("Proved margin", ["bad", "worse"]),
        ("Proved margin", ["slow", "quick"]),
        ("Verdict", ["slow", "quick", "bad", "worse"]),
    ):
        _sort(opened, title)
        _wait(opened, lambda first=first: _names(opened)[: len(first)] == first)


def test_filtering(opened: webdriver.Chrome) -> None:
    shown = opened.find_element(By.ID, "shown")
    assert shown.text == "6 shown"
    opened.find_element(By.CSS_SELECTOR, "#words [data-value=falsified]").click()
    assert _names(opened) == ["bad", "worse"]
    assert shown.text == "2 of 6 shown"
    opened.find_element(By.CSS_SELECTOR, "#model option[value=volume]").click()
    assert _names(opened) == ["worse"]
    opened.find_element(By.ID, "reset").click()
    assert len(_names(opened)) == 6
    opened.find_element(By.ID, "find").send_keys("quic")
    assert _names(opened) == ["quick"]
    opened.find_element(By.ID, "find").send_keys("kest")
    assert "No instance is like that" in opened.find_element(By.ID, "table").text


def test_comparison(opened: webdriver.Chrome) -> None:
    opened.find_element(By.CSS_SELECTOR, ".cell[data-was=timeout][data-now=verified]").click()
    assert _names(opened) == ["slow"]
    opened.find_element(By.ID, "reset").click()
    opened.find_element(By.CSS_SELECTOR, "#turns [data-value=faster]").click()
    assert _names(opened) == ["quick"]


def test_charts(opened: webdriver.Chrome) -> None:
    for name, curves in (("cactus", 4), ("instances", 8), ("pairs", 3)):
        place = opened.find_element(By.ID, f"chart-{name}")
        _run(opened, "arguments[0].scrollIntoView()", place)
        _wait(opened, lambda place=place, curves=curves: len(place.find_elements(By.CSS_SELECTOR, ".trace")) >= curves)


def test_a_bar_opens_its_instance_wherever_it_is_pressed(opened: webdriver.Chrome) -> None:
    place = opened.find_element(By.ID, "chart-instances")
    _run(opened, "arguments[0].scrollIntoView()", place)
    _wait(opened, lambda: place.get_attribute("data-ready"))
    x, y = _run(
        opened,
        """const box = arguments[0].getBoundingClientRect(), {xaxis, yaxis} = arguments[0]._fullLayout;
        return [box.left + xaxis._offset + xaxis.l2p(2), box.top + yaxis._offset + 0.6 * yaxis._length];""",
        place,
    )
    press = ActionChains(opened)
    press.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    press.perform()
    _wait(opened, lambda: place.find_elements(By.CSS_SELECTOR, ".hovertext"))
    press = ActionChains(opened)
    press.w3c_actions.pointer_action.click()
    press.perform()
    _wait(opened, lambda: opened.find_element(By.ID, "detail").is_displayed())
    assert opened.find_element(By.ID, "detail-title").text.endswith("slow")  # verified, the second fastest


def test_playing_a_counterexample(opened: webdriver.Chrome) -> None:
    next(cell for cell in opened.find_elements(By.CSS_SELECTOR, "[data-open]") if cell.text.endswith("bad")).click()
    _wait(opened, lambda: opened.find_elements(By.CSS_SELECTOR, ".viewer"))
    told = opened.find_element(By.CSS_SELECTOR, ".controls output")
    seen = set()
    _wait(opened, lambda: seen.add(told.text) or len(seen) == 4)  # it plays, through all four frames
    button = opened.find_element(By.CSS_SELECTOR, ".controls button")
    button.click()
    assert button.text == "Play"
    slider = opened.find_element(By.CSS_SELECTOR, ".track input")
    slider.send_keys(Keys.HOME)
    assert told.text == "frame 0 (1 of 4)"
    assert _pixels(opened, 0) == _pixels(opened, 1)
    assert not opened.find_element(By.CSS_SELECTOR, ".screen .line").get_attribute("d")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert told.text == "frame 1 (2 of 4), attacked"
    clean, attacked, difference = (_pixels(opened, i) for i in range(3))
    assert clean[0] - attacked[0] == pytest.approx(0.25 * 255, abs=1)
    assert difference[:3] == [33, 102, 172]  # all the way down: blue
    outline = opened.find_element(By.CSS_SELECTOR, ".screen .line").get_attribute("d") or ""
    assert outline.count("M") == 24  # around the whole frame of 6 x 6
    captions = [each.text for each in opened.find_elements(By.CSS_SELECTOR, ".panel figcaption")]
    assert captions == [
        "Clean\nclass 0, score 3",
        "Attacked\nclass 1, score 2",
        "Difference\namplified 4×, red up, blue down",
    ]
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    _wait(opened, lambda: not opened.find_element(By.ID, "detail").is_displayed())


def _pixels(browser: webdriver.Chrome, screen: int) -> list[int]:
    """The bytes of a screen's first row."""
    script = """const canvas = document.querySelectorAll(".screen canvas")[arguments[0]];
        return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, 1).data];"""
    found: list[int] = _run(browser, script, screen)
    return found


def test_every_instance_can_be_read_one_after_the_other(opened: webdriver.Chrome) -> None:
    opened.find_element(By.CSS_SELECTOR, "#table [data-open]").send_keys(Keys.ENTER)
    said = []
    for _ in EXAMPLE:
        _wait(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "dialog .sides"))
        said.append(opened.find_element(By.CSS_SELECTOR, "dialog .reason").text)
        forward = opened.find_element(By.CSS_SELECTOR, "[aria-label='Next instance']")
        if forward.is_enabled():
            forward.click()
    assert len(set(said)) == len(EXAMPLE)
    assert "Decided by split in 30 s, margin between 0.7 and 2. In the other run it was timeout, in 60 s." in said[0]
    assert said[4].startswith("Ended by timeout.")
    assert HOSTILE in opened.find_element(By.ID, "detail").text
    assert opened.title == "night – verification report"
    assert not opened.find_elements(By.TAG_NAME, "img")


def test_light_and_dark(opened: webdriver.Chrome) -> None:
    def paper() -> str:
        return opened.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")

    before = paper()
    opened.find_element(By.ID, "theme").click()
    assert paper() != before


def test_a_run_without_results_opens(browser: webdriver.Chrome, tmp_path: Path) -> None:
    run = read_run(write_batch(tmp_path / "begun", [], pending=["clip-a"]))
    _open(browser, write_report(run, tmp_path / "report.html").path)
    assert "No instance has a result yet." in browser.find_element(By.ID, "summary").text
    assert not browser.find_element(By.ID, "problem").is_displayed()
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_five_thousand_instances_open_within_three_seconds(browser: webdriver.Chrome, tmp_path: Path) -> None:
    run = read_run(write_batch(tmp_path / "large", many(5000)))
    written = write_report(run, tmp_path / "report.html")
    assert written.viewers > 800
    _open(browser, written.path)
    ready: float = _run(browser, "return performance.getEntriesByName('ready')[0].startTime")
    logger.info("%d bytes, %d viewers: ready after %.0f ms", written.bytes, written.viewers, ready)
    assert ready < 3000
    _run(browser, "document.getElementById('charts').scrollIntoView()")
    for chart in ("chart-cactus", "chart-instances"):
        _wait(browser, lambda chart=chart: _run(browser, f"return performance.getEntriesByName('{chart}').length"))
        drawn = _run(browser, f"return performance.getEntriesByName('{chart}')[0].startTime")
        logger.info("%s drawn after %.0f ms", chart, drawn)
    assert browser.find_element(By.ID, "shown").text == "5,000 shown"
    assert len(_names(browser)) < 100  # virtual rows
    _run(browser, "document.querySelector('.dt-scroll-body').scrollTop = 1e9")
    _wait(browser, lambda: "clip-04999" in _names(browser))
    browser.find_element(By.ID, "find").send_keys("clip-0123")
    _wait(browser, lambda: browser.find_element(By.ID, "shown").text == "10 of 5,000 shown")
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
