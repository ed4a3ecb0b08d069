import json
import re

import pytest
import synthetic

from triptych import report
from triptych.report import page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028\"'"


@pytest.fixture
def evil(tmp_path):
    """Two runs whose every text wants to become markup."""
    for number, choice in enumerate(("formulation=ddpm", "formulation=edm")):
        folder = tmp_path / "runs" / f"run{number}"
        overrides = [choice, f"name={EVIL}", "seed=0"]
        synthetic.run(folder, overrides, name=EVIL, optimizer__lr=EVIL if number else 0.1)
        synthetic.write_status(folder, "failed", reason=EVIL)
        synthetic.write_record(folder, 1.0, metric=f"fid_{EVIL}", sampler={"name": EVIL, "steps": 3}, nfe=3)
    folders = report.find(str(tmp_path / "runs"))
    return [report.read(folder, f"{EVIL}{number}") for number, folder in enumerate(folders)]


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_no_text_of_a_run_can_become_markup(evil, tmp_path):
    page.write(tmp_path / "index.html", report.build(evil), f"Title {EVIL}", 5)
    text = (tmp_path / "index.html").read_text()
    assert "alert(1)</script>" not in text and "<img src=x" not in text
    assert text.count("<script") - page_scripts(text) == 0
    content = data_of(text)
    assert content["title"] == f"Title {EVIL}"
    assert EVIL in content["runs"][0]["command"].replace("'\"'\"'", "'")
    assert EVIL in content["runs"][0]["notes"][-1] or EVIL.splitlines()[0] in " ".join(content["runs"][0]["notes"])


def page_scripts(text):
    """How many scripts the template has, Plotly's own mentions of the word left in."""
    from plotly.offline import get_plotlyjs

    return (page.HERE / "page.html").read_text().count("<script") + get_plotlyjs().count("<script")


def test_the_page_asks_nobody_for_anything(evil, tmp_path):
    page.write(tmp_path / "index.html", report.build(evil), "Title", 5)
    head = (tmp_path / "index.html").read_text().partition("<style>")[0]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', head)[1]
    assert policy.startswith("default-src 'none'") and "http" not in policy
    own = (page.HERE / "page.html").read_text() + (page.HERE / "page.css").read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', own) and "url(" not in own and "@import" not in own


def test_what_a_link_may_lead_to(evil, tmp_path):
    evil[0].links["W&B"] = "javascript:alert(1)"
    content = page.data(report.build(evil), [], "Title", tmp_path, 0)
    assert content["runs"][0]["links"]["folder"].startswith("./runs")
    assert "const safe = /^(https?:\\/\\/|\\.\\.?\\/)/" in (page.HERE / "page.js").read_text()


def test_configs_are_stored_once_a_value_and_come_back_whole(evil, tmp_path):
    content = page.data(report.build(evil), [], "Title", tmp_path, 0)
    told = [
        {k: content["values"][v] for k, v in zip(content["keys"], run["config"], strict=True) if v >= 0}
        for run in content["runs"]
    ]
    assert told[0]["optimizer.lr"] == "0.1" and told[1]["optimizer.lr"] == EVIL
    assert told[1]["formulation.times.P_mean"] == "-1.2" and "formulation.times.P_mean" not in told[0]
    assert len(content["values"]) == len(set(content["values"]))
