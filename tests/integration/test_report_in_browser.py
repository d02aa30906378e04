"""The report in a real browser, without a network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from fedlog.telemetry.report import write_report
from fedlog.telemetry.run_folder import MetricsFile, RunFolder
from fedlog.telemetry.status import Evaluation, RoundReport

ROUNDS = 8


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = RunFolder.create(tmp_path, "digits")
    folder.write_job("kind: FederatedJob\n")
    with MetricsFile(folder.metrics) as file:
        for number in range(ROUNDS + 1):
            accuracy = 1 - 0.7 ** (number + 1)
            figures = Evaluation(
                version=number,
                examples=100,
                clients=1,
                metrics={"accuracy": accuracy, "loss": 1 - accuracy},
            )
            file.put(
                RoundReport(
                    round=number,
                    version=number,
                    digest=f"{number:064x}",
                    seconds=1.0,
                    accepted=5 if number else 0,
                    selected=5 if number else 0,
                    evaluations={"HeldOut": figures},
                )
            )
    return write_report(folder.path)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_the_report_opens_and_shows_its_curves(
    report: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    picture = tmp_path / "report.png"
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1400",
            f"--screenshot={picture}",
            *(dark if scheme == "dark" else []),
            report.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert picture.exists(), done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
        background = pixels.getpixel((2, 2))
        colours = pixels.getcolors(maxcolors=2**24)
        assert colours is not None
    brightness = sum(background) / 3
    assert (brightness > 128) == (scheme == "light")
    # A curve is a line of a saturated colour; text and axes are shades of grey.
    curve = sum(count for count, (r, g, b) in colours if max(r, g, b) - min(r, g, b) > 90)
    assert curve > 300
