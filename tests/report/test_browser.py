"""The page in a real browser (make test-all): it fits a phone and a screen, opens offline, and prints."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from lengthen.report.run import write_comparison
from tests.report.folders import write_run

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]
PROBE = (
    "<script>addEventListener('load',()=>{const w=document.documentElement.clientWidth;"
    "const wide=[...document.querySelectorAll('body *')].filter(e=>!e.closest('.wide,svg,pre')"
    "&&e.getBoundingClientRect().right>w+1).map(e=>e.tagName+'.'+e.className);"
    "document.title='width '+w+' scroll '+document.documentElement.scrollWidth+' out '+wide.join(' ')"
    "+' maps '+document.querySelectorAll('.maps svg').length})</script>"
)


def browse(tmp_path, *arguments: str) -> str:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
               *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def page(tmp_path):
    return write_comparison([write_run(tmp_path / "quickstart")], tmp_path / "out")


@pytest.mark.parametrize("width", [500, 1280])
def test_nothing_runs_out_of_the_window(page, tmp_path, width):
    # The probe is added for the test alone; the page itself has no script.
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</head>", PROBE + "</head>"))
    dom = browse(tmp_path, f"--window-size={width},900", "--dump-dom", f"file://{probed}")
    found = re.search(r"<title>width (\d+) scroll (\d+) out (.*?) maps (\d+)</title>", dom)
    assert found, dom[:500]
    assert int(found[2]) <= int(found[1]) and found[3].strip() == "" and found[4] == "3"


def test_it_prints(page, tmp_path):
    browse(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", f"file://{page}")
    data = (tmp_path / "page.pdf").read_bytes()
    assert data.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 12
