"""A headless Chromium that tells everything it was asked to load."""

import contextlib
import json
import shutil
import tempfile
import time

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--disable-dev-shm-usage"),
)


def missing():
    """Why no browser can be started, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install -e '.[dev]'"
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "Chromium is not installed: apt-get install chromium chromium-driver"
    return None


@contextlib.contextmanager
def chromium(width=1400, height=1000):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def opened(driver, page, limit=60):
    """Opens a file and waits until its script says that it is ready; returns milliseconds since navigation began."""
    driver.get("about:blank")
    driver.get_log("performance")  # what the browser's own first page has loaded
    driver.get(page.absolute().as_uri())
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if ready := driver.execute_script("return document.documentElement.dataset.ready"):
            return float(ready)
        time.sleep(0.05)
    raise AssertionError(f"not ready after {limit} s: {driver.get_log('browser')}")


def requests(driver):
    """The address of every request since the last call; what is inside the page already (data:) is none."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [address for address in asked if not address.startswith("data:")]


def complaints(driver):
    """What the page wrote to its console as an error."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
