"""A server that comes back takes nobody for dead who could not tell it anything."""

import json
import os
import subprocess
import sys

SCRIPT = """
import asyncio, json
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from prefect.server.database import provide_database_interface
from prefect.server.events.actions import DoNothing
from prefect.server.events.schemas.automations import EventTrigger

from flows.server import wait_anew

async def main():
    db, now = provide_database_interface(), datetime.now(UTC)
    await wait_anew()  # in a new database there is nothing yet
    await db.create_db()
    names = {}
    async with db.session_context(begin_transaction=True) as session:
        for posture in ("Proactive", "Reactive"):
            trigger = EventTrigger(posture=posture, after={"a"}, expect={"a"}, within=timedelta(seconds=540), threshold=1)
            automation = db.Automation(name=posture, trigger=trigger, actions=[DoNothing()])
            session.add(automation)
            await session.flush()
            names[trigger.id] = posture
            for hours in (-1, 1):
                end = now + timedelta(hours=hours)
                rest = dict(trigger_id=trigger.id, bucketing_key=[str(hours)], start=now - timedelta(hours=2), count=0)
                session.add(db.AutomationBucket(automation_id=automation.id, end=end, **rest))
    await wait_anew()
    async with db.session_context() as session:
        buckets = (await session.execute(sa.select(db.AutomationBucket))).scalars()
        print(json.dumps({f"{names[each.trigger_id]} {each.bucketing_key[0]}": (each.end - now).total_seconds() for each in buckets}))

asyncio.run(main())
"""


def test_what_the_server_waited_for_while_it_was_away_gets_its_whole_time_again(tmp_path):
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout.splitlines()[-1])
    assert left.pop("Proactive -1") >= 540
    assert left == {"Proactive 1": 3600, "Reactive -1": -3600, "Reactive 1": 3600}
