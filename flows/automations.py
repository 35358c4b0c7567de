"""The automations of `deployments/automations.yaml` on the server that PREFECT_API_URL names: dead runs marked crashed, alerts told.

Who is told, the environment says: OLMOFLOW_ALERT_WEBHOOK is a URL that gets `{"text": ...}` by POST, as Slack, Mattermost and Teams take it;
it may hold a secret, and goes to the server as one. Or OLMOFLOW_ALERT_BLOCK is TYPE/NAME of a notification or webhook block that is there.
`python -m flows.automations` makes them on a server that `olmoflow up` has not started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from flows.recipe_file import filled
from tasks.errors import UserError

FILE = Path(__file__).parents[1] / "deployments" / "automations.yaml"
WEBHOOK, BLOCK = "OLMOFLOW_ALERT_WEBHOOK", "OLMOFLOW_ALERT_BLOCK"
BLOCK_NAME = "olmoflow-alerts"
SUBJECT = "olmoflow"
SHORTEST_SECONDS = 10  # that Prefect waits for something that does not come
HEARD_NOTHING = "Nothing was heard from the run's process"  # how the message of a run begins that an automation has marked crashed

Telling = Callable[[str], dict[str, Any]]  # an action that tells a text


def make() -> list[str]:
    """Make the automations, or bring them up to date; those that are as they should be are left as they are. Returns their names.

    Raises UserError where the block that OLMOFLOW_ALERT_BLOCK names is not there.
    """
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore

    telling, names = _telling(), []
    with get_client(sync_client=True) as client:
        for wanted in _read(telling):
            automation = AutomationCore.model_validate(wanted)
            there = client.read_automations_by_name(automation.name)
            names.append(automation.name)
            if not there:
                client.create_automation(automation)
            elif _content(there[0]) != _content(automation):  # a change makes the server forget from whom it waits to hear
                client.update_automation(there[0].id, automation)
    return names


def told_to() -> str:
    """Who is told of alerts, without its secret."""
    if os.environ.get(WEBHOOK):
        return f"the webhook of {WEBHOOK}"
    return os.environ.get(BLOCK) or f"nobody: set {WEBHOOK} or {BLOCK} (docs/service.md)"


def _read(telling: Telling) -> list[dict[str, Any]]:
    automations: list[dict[str, Any]] = yaml.safe_load(filled(FILE.read_text(), str(FILE)))
    for automation in automations:
        trigger = automation["trigger"]
        if not isinstance(trigger["within"], int) or (trigger["posture"] == "Proactive" and trigger["within"] < SHORTEST_SECONDS):
            raise UserError(
                f"{FILE}: {automation['name']} waits {trigger['within']} seconds: let it be a number, {SHORTEST_SECONDS} or more"
            )
        trigger["within"] = timedelta(seconds=trigger["within"])
        automation["actions"] = [telling(each["tell"]) if "tell" in each else each for each in automation["actions"]]
    return automations


def _content(automation: Any) -> dict[str, Any]:
    content: dict[str, Any] = automation.model_dump(mode="json", exclude={"id", "owner_resource"})
    for name in ("after", "expect", "for_each"):  # sets
        content["trigger"][name] = sorted(content["trigger"][name])
    return content


def _telling() -> Telling:
    """The action that tells somebody a text, as the environment asks for it."""
    from prefect.blocks.webhook import Webhook

    url, name = os.environ.get(WEBHOOK), os.environ.get(BLOCK)
    if url and name:
        raise UserError(f"{WEBHOOK} and {BLOCK} are both set: give one of them")
    if url:
        block = Webhook(url=url, headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
        return _call(str(block.save(BLOCK_NAME, overwrite=True)))
    if not name:
        return lambda text: {"type": "do-nothing"}
    kind, block_id = _block(name)
    if kind == "webhook":
        return _call(block_id)
    return lambda text: {"type": "send-notification", "block_document_id": block_id, "subject": SUBJECT, "body": text}


def _call(block_id: str) -> Telling:
    def call(text: str) -> dict[str, Any]:
        # The text becomes a JSON string: its template's output is put in quotes and escaped by the filter.
        payload = "{% set text %}" + text + '{% endset %}{"text": {{ text | tojson }}}'
        return {"type": "call-webhook", "block_document_id": block_id, "payload": payload}

    return call


def _block(name: str) -> tuple[str, str]:
    """Type and id of a block that is there. Raises UserError where none is."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    kind, _, its_name = name.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return kind, str(client.read_block_document_by_name(its_name, kind, include_secrets=False).id)
        except ObjectNotFound as error:
            raise UserError(
                f"{BLOCK}={name}: the server has no such block; write it as TYPE/NAME, such as slack-webhook/my-team, and make it in the UI under Blocks"
            ) from error


if __name__ == "__main__":
    try:
        print("\n".join(make()))
    except UserError as error:
        sys.exit(f"olmoflow: {error}")
