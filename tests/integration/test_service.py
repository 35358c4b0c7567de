"""The service that `olmoflow up` starts: a real Prefect server, its database, its workers, and runs submitted to it, also in a browser.

One module, as each start of a fresh service costs a minute on a busy machine.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from dumps import recipe, write_dump
from playwright.sync_api import expect
from service import Chat, Service, free_port, wait_for
from ui import UI, browser_page, chromium


@pytest.fixture(scope="module")
def chat():
    with Chat("planted-secret-81c2") as chat:
        yield chat


@pytest.fixture(scope="module")
def service(tmp_path_factory, chat):
    service = Service(tmp_path_factory.mktemp("service"))
    service.environment |= {"OLMOFLOW_ALERT_WEBHOOK": chat.url, "OMP_NUM_THREADS": "1"}
    try:
        service.told = service.up()
        yield service
    finally:
        service.stop()


@pytest.fixture
def ui(service):
    if chromium() is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with browser_page() as page:
        yield UI(page, f"http://127.0.0.1:{service.port}", service.ask)


def test_every_deployment_s_form_is_the_recipe_with_its_values(service):
    assert {"end-to-end", "curate", "tokenize", "mix", "pretrain", "micro-anneal", "anneal", "soup", "evaluate"} <= set(
        service.told["deployments"]
    )
    for name in service.told["deployments"]:
        if name == "train":  # its form is a job
            continue
        there = service.ask("GET", f"/deployments/name/{name}/{name}")
        assert there["parameters"]["recipe"]["name"] == ("sample-dumps" if name.endswith("-stackexchange") else "demo")
        assert there["parameters"]["recipe"]["store"] == "${OLMOFLOW_STORE:-store}"  # the worker's, not the server's
        recipe = there["parameter_openapi_schema"]["definitions"]["Recipe"]
        assert recipe["properties"]["sources"]["description"]


def test_a_submitted_run_does_the_work_of_the_command(service, lab):
    lab.config["store"] = f"${{NO_SUCH_VARIABLE:-{lab.store}}}"
    state = service.end_of(service.submit("curate", lab.config))
    assert state["state_type"] == "COMPLETED", state["state"]["message"]
    assert state["name"] == "curate small"
    assert {record.name for record in lab.records("select")} == {"web", "maths"}
    left = service.ask("POST", "/artifacts/filter", json={"flow_runs": {"id": {"any_": [state["id"]]}}, "sort": "KEY_ASC"})
    text = {each["key"]: each["data"] for each in left if each["type"] == "markdown"}
    assert list(text) == ["lineage-small", "plan-small", "waterfall-small"]
    assert "- 23 of 23 shards to run" in text["plan-small"]  # before it ran: 4 steps of web and 3 of maths in 3 shards, scorer, tokenizer
    assert re.search(r"\| maths \| select \| documents \| 123 \| 120 \| [\d,]+ \| repeated: 3 \|", text["waterfall-small"])

    before = lab.records("select")
    there = service.ask("GET", "/deployments/name/rerun/rerun")
    make_block(service, "secret", "lab-store", {"value": str(lab.store)})
    lab.config["store"] = "${block:lab-store}"
    given = {"recipe": lab.config, "step": "select", "source": "maths", "force": True}
    made = service.ask("POST", f"/deployments/{there['id']}/create_flow_run", json={"parameters": given})
    state = service.end_of(made["id"])
    assert (state["state_type"], state["name"]) == ("COMPLETED", "rerun select maths of small"), state["state"]["message"]
    again = {record.name for record in lab.records("select") if record not in before}
    assert again == {"maths"}
    logs = service.ask("POST", "/logs/filter", json={"logs": {"flow_run_id": {"any_": [made["id"]]}}})
    assert state["parameters"]["recipe"]["store"] == "${block:lab-store}" and logs
    assert str(lab.store) not in json.dumps([state, logs])


def make_block(service, kind, name, data):
    """A block as the UI makes it."""
    kind = service.ask("GET", f"/block_types/slug/{kind}")["id"]
    (schema, *_) = service.ask("POST", "/block_schemas/filter", json={"block_schemas": {"block_type_id": {"any_": [kind]}}})
    block = {"name": name, "data": data, "block_type_id": kind, "block_schema_id": schema["id"]}
    service.ask("POST", "/block_documents/", json=block)


def test_a_child_s_failure_is_one_sentence_of_its_parent(service, lab):
    lab.mixes_here()
    lab.config["where"]["launcher"]["device"] = "cuda"
    state = service.end_of(service.submit("pretrain", lab.config))
    assert state["state_type"] == "FAILED"
    message = state["state"]["message"]
    assert "train pretrain small failed (flow run train pretrain small" in message and "trainer ended with 1" in message
    assert message.count("\n") == 0


def test_the_weekly_poll_has_its_next_runs_and_starts_the_curation_of_a_new_dump(service, tmp_path):
    poll = service.ask("GET", "/deployments/name/poll-stackexchange/poll-stackexchange")
    assert [(each["slug"], each["schedule"]["cron"]) for each in poll["schedules"]] == [("weekly", "0 3 * * 1")]
    scheduled = {"deployments": {"id": {"any_": [poll["id"]]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    times = wait_for(lambda: [run["expected_start_time"] for run in service.ask("POST", "/flow_runs/filter", json=scheduled)], "next runs")
    assert all("T03:00:00" in time for time in times)

    (tmp_path / "words.jsonl").write_text('{"text": "why answer of a and b"}\n')
    write_dump(tmp_path / "dumps" / "2026-06-30", {"a.stackexchange.com": {1: "one", 2: "two"}})
    forum = recipe(tmp_path, f"${{NO_SUCH_VARIABLE:-{tmp_path / 'dumps'}}}")
    state = service.end_of(service.submit("poll-stackexchange", forum))
    assert state["state_type"] == "COMPLETED" and "new dump 2026-06-30: started the run" in state["state"]["message"]

    def ended():
        runs = service.ask("POST", "/flow_runs/filter", json={"flows": {"name": {"any_": ["recurate-stackexchange"]}}})
        return [run["state_type"] for run in runs if run["end_time"]]

    assert wait_for(ended, "the re-curation") == ["COMPLETED"]
    assert (tmp_path / "store/dumps/forum/done/000001.json").exists()


def send_alert(service, message):
    event = {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": "olmoflow.alert.spike"}
    service.ask(
        "POST", "/events", json=[event | {"resource": {"prefect.resource.id": "olmoflow.training.a"}, "payload": {"message": message}}]
    )


def test_an_alert_reaches_the_webhook_whose_secret_stays_one(service, chat):
    message = 'step 7 of "small": loss\n9'  # JSON and templates have their own way with these
    send_alert(service, message)
    wait_for(lambda: chat.got, "the webhook")
    assert chat.got == [{"text": message}]

    names = [each["name"] for each in service.ask("POST", "/automations/filter", json={}) if each["name"].startswith("olmoflow ")]
    assert len(names) == len(set(names)) == 3
    told = [service.ask("POST", f"/{kind}/filter", json={}) for kind in ("automations", "block_documents", "logs", "events")]
    assert "planted-secret" not in json.dumps(told)
    for process in service.processes():
        try:
            assert "planted-secret" not in Path(f"/proc/{process}/environ").read_text()
        except OSError:
            continue


def test_an_alert_reaches_a_notification_block_that_somebody_made(service, chat):
    def automations(block):
        given = {name: value for name, value in service.environment.items() if name != "OLMOFLOW_ALERT_WEBHOOK"}
        given |= {"OLMOFLOW_ALERT_BLOCK": block, "PREFECT_API_URL": f"http://127.0.0.1:{service.port}/api"}
        return subprocess.run([sys.executable, "-m", "flows.automations"], env=given, capture_output=True, text=True)

    unknown = automations("custom-webhook/nobody")
    assert unknown.returncode == 1 and unknown.stderr.startswith("olmoflow: OLMOFLOW_ALERT_BLOCK=custom-webhook/nobody: the server has no")
    message = {"name": "team", "url": chat.url, "method": "POST", "json_data": {"text": "{{subject}}: {{body}}"}}
    make_block(service, "custom-webhook", "team", message)
    made = automations("custom-webhook/team")
    assert made.returncode == 0, made.stderr
    chat.got.clear()
    send_alert(service, "the disk fills up")
    wait_for(lambda: chat.got, "the notification")
    assert chat.got == [{"text": "olmoflow: the disk fills up"}]


# -- in a browser: what a person fills in, sees run, and opens -----------------------------------------------------------------------


def only_data(config: dict) -> dict:
    """The recipe without its training: what is made of it within seconds."""
    return {key: value for key, value in config.items() if key not in ("model", "pretrain", "micro_anneals", "anneal")}


def runs_of(service, flow):
    return service.ask("POST", "/flow_runs/filter", json={"flows": {"name": {"any_": [flow]}}})


def watch_to_the_end(ui, run) -> None:
    """The page of a run, until it says that it is done."""
    ui.open(f"/runs/flow-run/{run['id']}")
    heading = ui.page.locator(".page-heading-flow-run__meta")  # below it are the states of the tasks
    expect(heading.get_by_text(re.compile("^(Completed|Failed|Crashed)$"))).to_have_text("Completed")


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
    watch_to_the_end(ui, ui.submit())
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
    watch_to_the_end(ui, ui.submit())
    loss = ui.open_artifact("loss-pretrain-trained")
    expect(loss.locator("tr").filter(has_text="step")).to_contain_text("16 of 16")
    assert loss.locator("img").evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0
    evaluation = ui.open_artifact("evaluation-trained")
    assert is_drawn(evaluation) and evaluation.locator("table").count() >= 1


# -- killed, started twice, stopped ------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.fault
def test_what_is_killed_comes_back_and_no_run_is_lost(service, lab):
    for name in ("postgres", "prefect server", "worker start --pool cpu"):
        before = {pid for pid, command in service.processes().items() if name in command}
        assert before or name == "postgres"
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda before=before: not before & set(service.processes()), f"the end of {name}")
    run = wait_for(lambda: submitted(service, lab), "the server")
    assert service.end_of(run)["state_type"] == "COMPLETED"


def submitted(service, lab):
    try:
        return service.submit("curate", lab.config)
    except httpx.HTTPError:
        return None


def test_up_twice_is_the_same_service_and_another_port_a_sentence(service):
    assert service.up()["ui"] == service.told["ui"]
    done = service.run("up", "--port", str(free_port()))
    assert done.returncode == 1 and "`olmoflow down` first" in done.stderr


def test_a_port_that_is_taken_is_a_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other = Service(tmp_path)
        done = other.run("up", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1 and "give another --port" in done.stderr
    assert not other.home.exists()


@pytest.mark.soak
def test_a_server_with_a_password_lets_in_who_has_it_and_tells_it_nobody(tmp_path, lab):
    secret = "lab:planted-3f9c1e77"
    guarded = Service(tmp_path / "guarded")
    guarded.environment["PREFECT_SERVER_API_AUTH_STRING"] = secret
    try:
        guarded.up()
        assert httpx.post(f"http://127.0.0.1:{guarded.port}/api/flow_runs/filter", json={}).status_code == 401
        state = guarded.end_of(guarded.submit("curate", lab.config))  # the worker, its run and the deployments were let in
        assert state["state_type"] == "COMPLETED", state["state"]["message"]
        assert secret not in "".join(guarded.processes().values())
        for path in (path for path in guarded.home.rglob("*") if path.is_file()):
            assert b"planted-3f9c1e77" not in path.read_bytes(), path
        for other in ("", "lab:another"):
            again = Service(tmp_path / "guarded")
            again.environment["PREFECT_SERVER_API_AUTH_STRING"] = other
            done = again.run("up", "--port", str(guarded.port))
            assert done.returncode == 1 and "set it as it was, or `olmoflow down` first" in done.stderr
    finally:
        guarded.stop()


def test_down_leaves_nothing_behind(service):
    assert "stopped" in service.run("down").stdout
    assert not service.processes()
    assert "nothing to stop" in service.run("down").stdout
