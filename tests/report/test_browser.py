"""The page in a real browser: what a visitor does, and what the page asks of the network (nothing)."""

import browser
import pytest
import synthetic

from triptych import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
    pytest.mark.filterwarnings("ignore"),
]
EVIL = "</script><img src=x onerror=document.title='owned'>"


def written(runs, out):
    folders = report.find(str(runs))
    table = report.build([report.read(*pair) for pair in zip(folders, report.names(folders), strict=True)])
    out.mkdir()
    report.write(out / "index.html", table, "Comparison", 24)
    return out / "index.html"


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three runs: two seeds of DDPM, and one EDM that crashed and wants to become markup."""
    folder = tmp_path_factory.mktemp("three")
    for seed in range(2):
        synthetic.run(folder / "runs" / f"ddpm{seed}", ["formulation=ddpm"], seed=seed, quality=1.0 + seed / 10)
    edm = folder / "runs" / "edm"
    synthetic.run(edm, ["formulation=edm", f"name={EVIL}"], quality=0.5, name=EVIL, model__channels=48)
    synthetic.write_status(edm, "failed", reason=f"{EVIL} is not finite")
    return written(folder / "runs", folder / "report")


@pytest.fixture
def opened(driver, page):
    browser.opened(driver, page)
    yield driver
    assert browser.requests(driver) == [page.absolute().as_uri()]  # the page itself, and nothing it asked for
    assert not browser.complaints(driver)
    assert driver.title == "Comparison"


def by_css(driver, css):
    return driver.find_elements("css selector", css)


def texts(driver, css):
    return driver.execute_script("return [...document.querySelectorAll(arguments[0])].map(n => n.innerText)", css)


def first_column(driver):
    return [text.strip() for text in texts(driver, "#rows tbody th")]


def wait(driver, condition, seconds=20):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds).until(condition)


def write(driver, text):
    box = driver.find_element("id", "filter")
    box.clear()
    box.send_keys(text)
    box.send_keys(" ")


def test_the_table_sorts_by_click_and_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    assert first_column(opened) == ["edm", "ddpm"]
    heads = texts(opened, "#rows thead th")
    at = next(n for n, text in enumerate(heads) if text.startswith("fd_digits_1k") and "DPMSolver 10" in text)
    by_css(opened, "#rows thead button")[at].click()
    assert first_column(opened) == ["edm", "ddpm"]
    by_css(opened, "#rows thead button")[at].send_keys(Keys.ENTER)
    assert first_column(opened) == ["ddpm", "edm"]
    assert by_css(opened, "#rows thead th")[at].get_attribute("aria-sort") == "descending"
    assert opened.switch_to.active_element.text.startswith("fd_digits_1k")  # where a keyboard goes on
    by_css(opened, "input[value=singles]")[0].click()
    assert first_column(opened) == ["ddpm", "ddpm", "edm"]


def test_numbers_stand_with_their_deviation_their_seeds_and_the_best_is_marked(opened):
    cells = {row[0]: row for row in (text.split("\t") for text in texts(opened, "#rows tbody tr"))}
    assert any("1.050 ± 0.071" in cell for cell in cells["ddpm"])
    assert "★" in "".join(texts(opened, "#rows tbody tr:first-child td.best"))
    assert "failed" in " ".join(cells["edm"])


def test_the_table_filters_by_word_by_name_and_by_number(opened):
    for text, left in {
        "ddpm": ["ddpm"],
        "status=failed": ["edm"],
        "fd_digits_1k<0.6": ["edm"],
        "edm linear_beta": [],
        "formulation=ddpm status=finished": ["ddpm"],
        "": ["edm", "ddpm"],
    }.items():
        write(opened, text)
        wait(opened, lambda d, left=left: first_column(d) == left)
    write(opened, "ddpm")
    wait(opened, lambda d: "1 of 2 rows" in d.find_element("id", "count").text)
    assert texts(opened, "#pictures figcaption b") == ["ddpm"]


def test_every_plot_is_drawn_and_follows_the_filter(opened):
    names = [figure["id"] for figure in opened.execute_script("return report.data.figures")]
    assert names == ["nfe", "curves", "likelihood", "noise", "cost"]
    for name in names:
        opened.execute_script("document.getElementById(arguments[0]).scrollIntoView()", f"plot-{name}")
        wait(opened, lambda d, name=name: by_css(d, f"#plot-{name} .main-svg"))
        marks = by_css(opened, f"#plot-{name} .trace")
        assert len(marks) >= 2, name
    of = "return document.getElementById('plot-nfe').data"
    drawn = f"{of}.filter(t => t.meta.group !== undefined).map(t => [t.name, t.x, t.y])"
    lines = opened.execute_script(drawn)
    assert [x for name, x, _ in lines if name == "ddpm"] == [[100], [10, 20, 50]]
    best = opened.execute_script(f"{of}.filter(t => t.meta.front !== undefined).map(t => [t.x, t.y])[0]")
    assert best == [[10, 20, 50, 100], [0.5, 0.35, 0.3, 0.25]]
    write(opened, "ddpm")
    wait(opened, lambda d: {name for name, _, _ in d.execute_script(drawn)} == {"ddpm"})


def test_curves_are_drawn_against_minutes_too(opened):
    opened.execute_script("document.getElementById('plot-curves').scrollIntoView()")
    wait(opened, lambda d: by_css(d, "#plot-curves .main-svg"))
    x = "return document.getElementById('plot-curves').data[0].x"
    assert opened.execute_script(x)[-1] == 6400
    by_css(opened, "select[aria-label='x-axis'] option[value=minutes]")[0].click()
    assert 0.7 < opened.execute_script(x)[-1] < 0.8


def test_samples_step_through_training(opened):
    assert len(by_css(opened, "#pictures img")) == 2
    opened.execute_script(
        "const m = document.getElementById('moment'); m.value = 0; m.dispatchEvent(new Event('input'))"
    )
    assert all("1,600 images" in text for text in texts(opened, "#pictures figcaption"))
    by_css(opened, "input[value=strip]")[0].click()
    shown = by_css(opened, "#pictures img")
    sizes = opened.execute_script("return arguments[0].map(i => [i.naturalWidth, i.naturalHeight])", shown)
    assert sizes == [[34, 17], [34, 17]]  # read from inside the page, each pixel once


def test_two_configs_are_compared(opened):
    from selenium.webdriver.support.ui import Select

    Select(opened.find_element("id", "left")).select_by_visible_text("ddpm · ddpm0")
    Select(opened.find_element("id", "right")).select_by_visible_text("edm · edm")
    rows = dict(text.split("\t", 1) for text in texts(opened, "#diff-rows tbody tr"))
    assert rows["model.channels"] == "32\t48" and "seed" not in rows and "name" not in rows
    opened.find_element("id", "everything").click()
    assert EVIL in "".join(texts(opened, "#diff-rows tbody tr"))
    Select(opened.find_element("id", "right")).select_by_visible_text("ddpm · ddpm1")
    assert set(texts(opened, "#diff-rows tbody th")) == {"seed", "formulation.seed", "dataset.seed"}


def test_a_row_tells_its_command_line_and_what_went_wrong(opened):
    by_css(opened, "#rows tbody th button")[0].click()
    told = opened.find_element("id", "details").text
    assert "python train.py formulation=edm" in told and "is not finite" in told and EVIL in told
    assert by_css(opened, "#details a")[0].get_attribute("href").endswith("/runs/edm")


def test_dark_is_dark_and_plots_follow(opened):
    opened.execute_script("document.getElementById('plot-nfe').scrollIntoView()")
    wait(opened, lambda d: by_css(d, "#plot-nfe .main-svg"))
    colours = """return [getComputedStyle(document.body).backgroundColor,
                         document.getElementById('plot-nfe').layout.font.color]"""
    before = opened.execute_script(colours)
    opened.find_element("id", "theme").click()
    assert all(a != b for a, b in zip(before, opened.execute_script(colours), strict=True))


def test_a_thousand_runs(driver, tmp_path):
    """How soon is a matter for bench/report.py; here: that all of it is there."""
    synthetic.many(tmp_path / "runs", 1000, pictures=False)
    page = written(tmp_path / "runs", tmp_path / "report")
    browser.opened(driver, page)
    assert len(by_css(driver, "#rows tbody tr")) == 250
    by_css(driver, "input[value=singles]")[0].click()
    assert len(by_css(driver, "#rows tbody tr")) == 1000
    write(driver, "status=failed")
    wait(driver, lambda d: len(by_css(d, "#rows tbody tr")) == 20)
    write(driver, "formulation=edm lr<0.0005")
    wait(driver, lambda d: set(first_column(d)) == {"edm"})
    driver.execute_script("document.getElementById('plot-curves').scrollIntoView()")
    wait(driver, lambda d: by_css(d, "#plot-curves .trace"))
    write(driver, "")
    wait(driver, lambda d: "first 40 of 250 rows" in " ".join(texts(d, "figcaption")))
    assert browser.requests(driver) == [page.absolute().as_uri()] and not browser.complaints(driver)
