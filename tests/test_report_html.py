import base64
import re
import shutil
import subprocess
from html import unescape

import av
import pytest
import torch

from cmdvid.report import Interval, Report
from cmdvid.report_html import Shown, write_page

LEVELS = ("real", "reconstruction", "generated")
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture
def page(tmp_path):
    scores = {"seen": {level: {"fvd": Interval(90.0, 80.0, 95.5, 8)} for level in LEVELS}}
    clips = {
        level: torch.full((3, 8, 32, 48), 60 * n, dtype=torch.uint8)
        for n, level in enumerate(LEVELS)
    }
    samples = {"seen": [Shown("a <red> circle & more", clips), Shown("", clips)]}
    report = Report({"seed": 0, "name": "<b>'quoted'</b>", "weights": {"a": "1"}}, scores)
    return write_page(tmp_path / "report.html", report, samples)


def test_the_page_holds_everything_and_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=\"(?!data:)|href|@import|url\(|<script", text)
    assert text.count("90.00 (80.00 to 95.50)") == 3
    assert "<figcaption>a &lt;red&gt; circle &amp; more</figcaption>" in text
    assert "<b>'quoted'</b>" in unescape(text)
    assert "<b>" not in text


def test_the_clips_are_videos_of_the_right_pixels(page, tmp_path):
    videos = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    assert len(videos) == 2 * 3
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(videos[1]))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 8
    assert abs(float(frames[0].mean()) - 60) < 3


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_plays_the_clips(page, tmp_path):
    # without scripts of its own the page cannot tell, so a copy of it gets one that can
    script = """<script>
    addEventListener("load", () => setTimeout(() => {
      const videos = [...document.querySelectorAll("video")];
      document.title = videos.map(v => [v.readyState, v.videoWidth, v.error]).join(";");
    }, 4000));
    </script></head>"""
    copy = tmp_path / "watched.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</head>", script), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run(
        [*command, copy.as_uri()], capture_output=True, text=True, timeout=180, check=True
    ).stdout
    (title,) = re.findall("<title>(.*)</title>", dom)
    assert title.split(";") == ["4,48,"] * 6  # all data there, their width, no error
