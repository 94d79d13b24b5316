"""What `circuitkeep nightly` sees and how often it is wrong, and how soon a long history is there.

    python scripts/study_nightly.py detection
    python scripts/study_nightly.py rendering

Detection: simulated nights, whose values are normal with standard deviation 1. Rendering: 10,000
measurements (100 nights of 100 checks), from the file to the page, and the page in chromium.
"""

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from circuitkeep.functional.change import Limits, follow
from circuitkeep.nightly.history import History, Measurement, Run
from circuitkeep.nightly.page import render_page
from circuitkeep.nightly.trend import trends

SERIES = 40
NIGHTS = 365


def first_alarm(values: list[float], error: float, limits: Limits, start: int = 0) -> int | None:
    """Nights until the first alarm from `start` on; None if there is none."""
    steps = follow(values, [error] * len(values), limits)
    found = (place for place, step in enumerate(steps) if step.fell or step.drifts)
    return next((place - start + 1 for place in found if place >= start), None)


def detection() -> None:
    """Print how far apart false alarms are, and how soon falls and drifts are told."""
    drawn = random.Random(0)
    for error, what in ((0.0, "spread between runs alone"), (1.0, "prompts alone")):
        limits, longest, total, alarms = Limits.of(200), 1000, 0, 0
        for _ in range(300):
            found = first_alarm([drawn.gauss(0, 1) for _ in range(longest)], error, limits)
            total, alarms = total + (found or longest), alarms + (found is not None)
        print(f"wanted: 200 nights between false alarms; {what}: {total / alarms:.0f}")
    limits = Limits.of(SERIES * NIGHTS)
    print(f"{SERIES} series, nights={NIGHTS}: jump {limits.jump:.2f}, drift {limits.drift:.2f} sd")
    print("| nights before | change | median | 90% by | not in 100 nights |")
    print("|---|---|---|---|---|")
    for before in (10, 30, 100):
        for name, change in {
            "drift of 0.05 sd": lambda night: -0.05 * night,
            "drift of 0.1 sd": lambda night: -0.1 * night,
            "fall of 1 sd": lambda night: -1.0,
            "fall of 2 sd": lambda night: -2.0,
            "fall of 4 sd": lambda night: -4.0,
            "fall of 8 sd": lambda night: -8.0,
        }.items():
            late = []
            for _ in range(200):
                values = [drawn.gauss(0, 1) for _ in range(before)]
                values += [drawn.gauss(change(night), 1) for night in range(1, 101)]
                late.append(first_alarm(values, 1.0, limits, before) or 999)
            late.sort()
            median, most = (str(n) if n < 999 else "never" for n in (late[100], late[180]))
            print(f"| {before} | {name} | {median} | {most} | {late.count(999) / 2:.0f}% |")


def rendering() -> None:
    """Print what each step takes, as the median of five."""
    drawn = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "history.sqlite")
        for night in range(100):
            run = Run(
                f"2026-{1 + night // 28:02}-{1 + night % 28:02}T03:00:00+00:00",
                60.0,
                "host",
                "base",
                "0",
                "2",
                "circuitkeep nightly",
            )
            rows = []
            for at in range(100):
                value = drawn.gauss(0.9, 0.01) - (0.002 * max(0, night - 60) if at == 3 else 0)
                rows.append(
                    Measurement(
                        f"model-{at % 10}",
                        "runs/model",
                        f"{night}",
                        f"circuit-{at // 50}",
                        f"score[role-{at // 10 % 5}]",
                        "passed",
                        value,
                        value - 0.02,
                        value + 0.02,
                        0.01,
                        0.5,
                        "mean attention to the role's targets",
                        384,
                        "1 2 3",
                    )
                )
            history.append(run, rows)
        steps: dict[str, list[tuple[float, float]]] = {"read": [], "judge": [], "page": []}
        page = Path(folder) / "nightly.html"
        for _ in range(5):
            began = clocks()
            content = history.read()
            steps["read"].append(since(began))
            began = clocks()
            found = trends(content, NIGHTS)
            steps["judge"].append(since(began))
            began = clocks()
            page.write_text(render_page(found, "history.sqlite"), encoding="utf-8")
            steps["page"].append(since(began))
        for name, times in steps.items():
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name}: {wall:.2f} s, {cpu:.2f} s of them on the processor")
        paints, charts = in_browser(page)
        print(f"first paint: {statistics.median(paints):.2f} s")
        print(f"first chart: {statistics.median(charts):.2f} s")
        size = page.stat().st_size / 1e6
        print(f"{len(content.measurements)} measurements, {size:.1f} MB")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def clocks() -> tuple[float, float]:
    """Wall time, and that of the processor."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Seconds of both."""
    wall, cpu = clocks()
    return wall - began[0], cpu - began[1]


def in_browser(page: Path) -> tuple[list[float], list[float]]:
    """Seconds from opening the page to its first paint, and to a chart that is scrolled to."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    paints, charts = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, names))), args=["--no-sandbox"]
        )
        for _ in range(5):
            tab = browser.new_page(viewport={"width": 1440, "height": 900})
            clock = time.perf_counter()
            tab.goto(page.as_uri())
            tab.locator("#controls").scroll_into_view_if_needed()
            tab.locator(".js-plotly-plot .main-svg").first.wait_for()
            charts.append(time.perf_counter() - clock)
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            paints.append(tab.evaluate(paint) / 1000)
            tab.close()
        browser.close()
    return paints, charts


if __name__ == "__main__":
    {"detection": detection, "rendering": rendering}[sys.argv[1]]()
