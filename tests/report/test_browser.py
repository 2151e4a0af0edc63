"""The page in headless Chromium: no errors, no requests, plots that are drawn, controls that work."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gnewton.report.comparison import compare
from gnewton.report.measures import MetricTarget
from gnewton.report.page import write_page
from tests.report.builders import falling, grouped_newton, update, write_run
from tests.report.sweeps import GROUPS, compared

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver"),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)

NASTY = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'> %{x} $a$ ünï"


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Any]:
    """A browser with an empty profile, which logs the messages on the console and the requests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if subprocess.run([CHROMIUM, "--version"], capture_output=True, timeout=60).returncode:
        pytest.skip(f"{CHROMIUM} does not start")  # such as a placeholder for a snap
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    yield started
    started.quit()


class Shown:
    """A page in the browser.

    Attributes:
        driver: the browser, for what is not below.
    """

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get_log("browser"), driver.get_log("performance")  # what was before does not count
        driver.get(path.as_uri())
        self.wait("return document.documentElement.dataset.ready !== undefined")

    def run(self, script: str, *arguments: Any) -> Any:
        """The result of a script."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> None:
        """Wait until a script returns true."""
        until = time.monotonic() + 30
        while not self.run(script):
            assert time.monotonic() < until, f"never became true: {script}"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """The messages on the console, of any severity."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that was requested, beside data within the page and the browser's own pages."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "chrome:"))]

    def visible(self, figure: str) -> list[str]:
        """The legend entries whose curves the visible plot of a figure shows."""
        return self.run(
            "const figure = document.getElementById(arguments[0]);"
            "return [...figure.querySelectorAll('.legend button')].filter((button) => "
            "[...figure.querySelectorAll(`.plot:not([hidden]) [data-series='${button.dataset.series}']`)]"
            ".every((curve) => getComputedStyle(curve).display !== 'none'))"
            ".map((button) => button.textContent)",
            figure,
        )

    def labels(self, figure: str) -> list[str]:
        """The names of the visible plots of a figure."""
        return self.run(
            "return [...document.querySelectorAll(`#${arguments[0]} .plot`)]"
            ".filter((plot) => plot.offsetHeight > 0).map((plot) => plot.getAttribute('aria-label'))",
            figure,
        )

    def width(self, pixels: int) -> None:
        """Set the width of the window."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 600},
        )
        self.wait("return innerWidth === " + str(pixels))


@pytest.fixture(scope="module")
def sweep_path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    return write_page(compared(folder / "runs"), folder / "report.html")


@pytest.fixture
def show(driver) -> Iterator[Callable[[Path], Shown]]:
    """show(path) -> the page, in a wide window."""
    yield lambda path: Shown(driver, path)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_loads_without_errors_or_requests(show, sweep_path):
    shown = show(sweep_path)
    assert shown.run("return document.documentElement.dataset.ready") == "4"
    assert shown.complaints() == []
    assert shown.requests() == [sweep_path.as_uri()]


def test_the_plots_are_drawn(show, sweep_path):
    shown = show(sweep_path)
    for number, curves in enumerate((4, len(GROUPS), 1, 4)):
        boxes = shown.run(
            "const plot = document.querySelector(`#plot${arguments[0]} .plot:not([hidden])`);"
            "return [...plot.querySelectorAll('[data-series]')].map((curve) => "
            "[curve.dataset.series, curve.getBoundingClientRect().width])",
            number,
        )
        assert len({place for place, _ in boxes}) == curves
        assert max(width for _, width in boxes) > 50
        texts = shown.run(
            "return [...document.querySelectorAll(`#plot${arguments[0]} .plot:not([hidden]) text`)]"
            ".filter((text) => text.getBoundingClientRect().width > 0).length",
            number,
        )
        assert texts > 5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_in_plots_has_the_colour_of_the_page(theme, show, sweep_path):
    shown = show(sweep_path)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    ink, paper = shown.run(
        "const body = getComputedStyle(document.body); return [body.color, body.backgroundColor]"
    )
    colors = shown.run(
        "const texts = [...document.querySelectorAll('.plot text')];"
        "return [...new Set(texts.map((text) => getComputedStyle(text).fill))]"
    )
    assert colors == [ink]
    assert ink != paper
    shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_axis_can_be_chosen(show, sweep_path):
    shown = show(sweep_path)
    assert shown.labels("plot0") == ["Progress, mlp digits, against epochs"]
    shown.run(
        "const select = document.querySelector('#plot0 select');"
        "select.value = 'training seconds'; select.dispatchEvent(new Event('change'));"
    )
    assert shown.labels("plot0") == ["Progress, mlp digits, against training seconds"]
    assert shown.complaints() == []


def test_the_legend_hides_and_shows(show, sweep_path):
    shown = show(sweep_path)
    names = ["grouped_newton", "sgd lr=0.01", "sgd lr=0.1", "sgd lr=1"]
    buttons = "document.querySelectorAll('#plot0 .legend button')"
    assert shown.run(f"return [...{buttons}].map((button) => button.textContent)") == names
    assert shown.visible("plot0") == names
    shown.run(f"{buttons}[1].click()")
    assert shown.visible("plot0") == [names[0], *names[2:]]
    assert shown.run(f"return {buttons}[1].getAttribute('aria-pressed')") == "false"
    shown.run(
        "const s = document.querySelector('#plot0 select'); s.value = 'training seconds';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert shown.visible("plot0") == [names[0], *names[2:]]  # in every plot
    shown.run(f"{buttons}[1].click()")
    assert shown.visible("plot0") == names
    twice = f"{buttons}[2].dispatchEvent(new Event('dblclick'))"
    shown.run(twice)
    assert shown.visible("plot0") == [names[2]]
    shown.run(twice)
    assert shown.visible("plot0") == names
    assert shown.visible("plot1") == list(GROUPS)
    assert shown.complaints() == []


@pytest.mark.parametrize("width", [360, 390, 768])
def test_the_page_fits_a_phone(width, show, sweep_path):
    """Nothing overflows sideways: tables and plots scroll within their frames, text is not tiny."""
    shown = show(sweep_path)
    shown.width(width)
    assert shown.run("return document.documentElement.scrollWidth <= innerWidth")
    fits = shown.run(
        "return [...document.querySelectorAll('figure, .legend, .controls, .scroll, .plot')]"
        ".every((part) => part.getBoundingClientRect().right <= innerWidth)"
    )
    assert fits
    sizes = shown.run(
        "return [...document.querySelectorAll('td, th, p, li, .legend button, .controls label')]"
        ".map((part) => parseFloat(getComputedStyle(part).fontSize))"
    )
    assert min(sizes) >= 12
    sizes = shown.run(
        "return [...document.querySelectorAll('.plot:not([hidden]) text')]"
        ".map((text) => text.getBoundingClientRect()).map((box) => Math.min(box.width, box.height))"
        ".filter((size) => size > 0)"
    )
    assert min(sizes) > 4  # as wide as a digit of 9 pixels


def test_names_are_text_and_not_markup(show, tmp_path):
    for seed in (0, 1):
        shared = {"seed": seed, "data.name": NASTY}
        for place, extra in enumerate(("plain", NASTY)):
            options = {**shared, **grouped_newton(extra=extra)}
            rates = update(1, 0, {NASTY: 0.5, "other": 0.25})
            write_run(tmp_path, f"gn{place}{seed}", options, rows=falling([1.0, 0.4]), rates=rates)
    path = write_page(
        compare([tmp_path], target=MetricTarget("validation_loss", 0.5)), tmp_path / "report.html"
    )
    shown = show(path)
    assert shown.complaints() == []
    assert shown.requests() == [path.as_uri()]
    assert shown.run("return window.broken === undefined")
    assert shown.run("return document.querySelectorAll('img').length") == 0
    legend = shown.run("return [...document.querySelectorAll('.legend button')].map((b) => b.textContent)")
    assert f"grouped_newton extra={NASTY}" in legend
    assert NASTY in legend
    assert NASTY in shown.run("return document.querySelector('h1').textContent")
    # the title of a curve, which the browser shows under the pointer
    assert NASTY in shown.run(
        "return [...document.querySelectorAll('.plot title')].map((t) => t.textContent)"
    )
    assert shown.complaints() == []
