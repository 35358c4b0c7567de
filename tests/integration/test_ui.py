"""Prefect's UI in a real browser, against the service that `olmoflow up` starts: what a person fills in, sees run, and opens."""

import re

import pytest

pytest.importorskip("playwright", reason="playwright drives the browser: install olmoflow[test]")

from playwright.sync_api import expect
from service import Service
from ui import UI, browser_page, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("service"))
    service.environment["OMP_NUM_THREADS"] = "1"
    try:
        service.up()
        yield service
    finally:
        service.stop()


@pytest.fixture
def ui(service):
    with browser_page() as page:
        yield UI(page, f"http://127.0.0.1:{service.port}", service.ask)


def only_data(config: dict) -> dict:
    """The recipe without its training: what is made of it within seconds."""
    return {key: value for key, value in config.items() if key not in ("model", "pretrain", "micro_anneals", "anneal")}


def runs_of(service, flow):
    return service.ask("POST", "/flow_runs/filter", json={"flows": {"name": {"any_": [flow]}}})


def watch_to_the_end(ui) -> None:
    """From the form to the page of the run that it has started, and there until it says that it is done."""
    ui.page.get_by_text("View run", exact=True).last.click()  # notes are drawn twice, one on the other
    ui.page.wait_for_url(re.compile("/runs/flow-run/"))
    expect(ui.page.get_by_text(re.compile("^(Completed|Failed|Crashed)$")).first).to_have_text("Completed")


def is_drawn(article) -> bool:
    """Whether no mark of markdown is left in the text that a person reads."""
    return not re.search(r"\| *:?-{3}|\*\*|^#{1,6} |```", article.inner_text(), re.MULTILINE)


def test_a_wrong_value_is_refused_in_the_form_and_the_corrected_form_runs_end_to_end(service, ui, lab):
    ui.open_form("end-to-end")
    ui.write({"recipe": only_data(lab.config)})
    ui.field("Name").get_by_role("textbox").fill("by-hand")
    length = ui.field("Sequence Length (Optional)")
    length.get_by_role("spinbutton").fill("0")
    ui.submit()
    refusal = "Validation failed for field 'recipe.sequence_length'. Failure reason: 0 is less than the minimum of 8"
    expect(ui.page.get_by_text(refusal).first).to_be_visible()
    assert runs_of(service, "end-to-end") == []

    length.get_by_role("spinbutton").fill("16")
    ui.submit()
    watch_to_the_end(ui)
    (run,) = runs_of(service, "end-to-end")
    assert (run["name"], run["parameters"]["recipe"]["sequence_length"]) == ("end-to-end by-hand", 16)
    assert {record.name for record in lab.records("mix")} == {"pre", "mid"}

    waterfall = ui.open_artifact("waterfall-by-hand")
    row = waterfall.locator("tr").filter(has_text="maths").filter(has_text="select")
    expect(row.locator("td").nth(3)).to_have_text("123")
    expect(row.locator("td").nth(4)).to_have_text("120")
    assert is_drawn(waterfall)
    for key, tables in (("plan-by-hand", 1), ("mixes-by-hand", 2), ("lineage-by-hand", 0)):
        drawn = ui.open_artifact(key)
        assert is_drawn(drawn) and drawn.locator("table").count() >= tables, key
    expect(drawn).to_contain_text("select maths")

    key_numbers = ui.open_artifact("report-by-hand")
    assert is_drawn(key_numbers) and key_numbers.locator("table").count() == 1
    address = re.search(r"file://\S+", key_numbers.inner_text()).group()
    ui.page.goto(address)
    expect(ui.page.locator("h1")).to_contain_text("by-hand")


def test_the_schedule_shows_the_poll_s_next_runs(ui):
    ui.open(f"{ui.deployment('poll-stackexchange')}?tab=Upcoming")
    expect(ui.page.get_by_role("button", name=re.compile(r"Scheduled for \S+ 03:00:00 AM")).first).to_be_visible()


@pytest.mark.soak
def test_a_training_s_live_loss_is_drawn_and_its_run_is_a_child_of_the_flow_s(service, ui, lab):
    ui.open_form("end-to-end")
    ui.write({"recipe": {**lab.config, "name": "trained"}})
    ui.field("Pretrain (Optional)", "Steps (Optional)").get_by_role("spinbutton").fill("16")
    ui.submit()
    watch_to_the_end(ui)
    loss = ui.open_artifact("loss-pretrain-trained")
    expect(loss.locator("tr").filter(has_text="step")).to_contain_text("16 of 16")
    assert loss.locator("img").evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0
    evaluation = ui.open_artifact("evaluation-trained")
    assert is_drawn(evaluation) and evaluation.locator("table").count() >= 1
