"""Prefect's server, started so that the time in which it was away is held against no run: `python -m flows.server HOME ARGUMENTS ...`.

The server marks a run crashed from which nothing was heard for a while (`deployments/automations.yaml`), and knows only how long ago it heard
something: having been away itself, it would take every run that lives for dead, or (what it has waited for too long it forgets) never look
for a dead one again. So before it starts, everything that it waits for gets its whole time once more.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path


async def wait_anew() -> None:
    """Let what the database's automations wait for come within their whole time from now on."""
    import sqlalchemy as sa
    from prefect.server.database import provide_database_interface
    from prefect.server.events.schemas.automations import EventTrigger, Posture

    db, now = provide_database_interface(), datetime.now(UTC)
    async with db.session_context(begin_transaction=True) as session:
        if not await session.run_sync(lambda inner: sa.inspect(inner.connection()).has_table("automation_bucket")):
            return  # a new database
        for automation in (await session.execute(sa.select(db.Automation))).scalars():
            for trigger in automation.trigger.all_triggers():
                if isinstance(trigger, EventTrigger) and trigger.posture == Posture.Proactive:
                    waiting, end = db.AutomationBucket, now + trigger.within
                    its_own = sa.and_(waiting.trigger_id == trigger.id, waiting.end < end)
                    await session.execute(sa.update(waiting).where(its_own).values(end=end))


if __name__ == "__main__":
    started = Path(sys.argv[1]) / "started"
    if started.exists():  # else there is nobody to wait for, and a first start need not import the server twice
        asyncio.run(wait_anew())
    started.touch()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "server", "start", *sys.argv[2:]])
