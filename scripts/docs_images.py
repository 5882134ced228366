#!/usr/bin/env python3
"""Takes docs/console.png: the console's playground in a real browser, after it has generated an image.

    scripts/docs-images.sh [PROGRAM]

installs what this needs and runs it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/e2e"))
from console import Visitor, Worker, sync_playwright  # noqa: E402

BYTES_MAX = 400_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/console.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        worker = Worker(options.program.resolve(), Path(folder))
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        try:
            visitor = Visitor(browser, worker, "desktop", "light", None)
            visitor.sign_in()
            page = visitor.page
            page.get_by_role("heading", level=1, name="Overview").wait_for()
            visitor.go("playground")
            page.get_by_label("Prompt", exact=True).fill("a red circle left of a green square on a blue background")
            page.get_by_role("textbox", name="Seed").fill("7")
            page.locator("form button[type=submit]").first.click()
            page.get_by_test_id("result").wait_for()
            page.wait_for_timeout(500)
            page.screenshot(path=options.out)
            faults = visitor.close()
        finally:
            browser.close()
            worker.stop()
    size = options.out.stat().st_size
    if size > BYTES_MAX:
        faults.append(f"{options.out} has {size} bytes, more than {BYTES_MAX}")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
