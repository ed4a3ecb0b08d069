"""The table of docs/compare.md and docs/report.png: python docs/compare.py runs/compare/report "<the machine>".

Needs Chromium, chromedriver and selenium.
"""

import sys
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
START, END = "<!-- table: docs/compare.py writes what follows -->\n", "<!-- end of the table -->\n"


def picture(page, path, width=1500, height=3350):
    """The page as it opens, in two thirds of its size."""
    import browser

    with browser.chromium(width, height) as driver:
        browser.opened(driver, page)
        time.sleep(5)  # the plots that are in sight
        driver.save_screenshot(str(path))
    with Image.open(path) as opened:
        small = opened.convert("RGB").resize((opened.width * 2 // 3, opened.height * 2 // 3), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)


def main(report, machine):
    page = ROOT / "docs" / "compare.md"
    before, _, rest = page.read_text().partition(START)
    table = (report / "table.md").read_text()
    page.write_text(f"{before}{START}\n{machine}\n\n{table}\n{END}{rest.partition(END)[2]}")
    picture(report / "index.html", ROOT / "docs" / "report.png")
    print(f"docs/compare.md, docs/report.png ({(ROOT / 'docs' / 'report.png').stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
