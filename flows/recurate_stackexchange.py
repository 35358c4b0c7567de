"""The flow `recurate-stackexchange`."""

from __future__ import annotations

import contextlib
import re

import httpx
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.states import Completed

from flows import recuration
from flows.face import run_stage
from flows.recipe import Recipe, in_environment
from flows.summary import RunSummary
from flows.telling import tell
from tasks.dump_record import Done


@flow(name="recurate-stackexchange", flow_run_name="recurate-stackexchange {recipe.name}", persist_result=False)
def recurate_stackexchange(recipe: Recipe, dump: str | None = None) -> RunSummary | State:
    """The newest Stack Exchange dump that is whole and not done (or the one of a name) curated, the mixes built again, and what it changed.

    `Skipped`, with the reason, where there is none.

    Args:
        recipe: The recipe whose Stack Exchange source is curated.
        dump: The folder's name of a dump, done or not; the newest that is whole and not done where left empty.
    """
    found = recuration.find(in_environment(recipe), dump, tell)
    if found.dump is None:
        tell(f"skipped: {found.why}")
        return Completed(name="Skipped", message=found.why)
    dones: list[Done] = []
    summary = run_stage(recipe, "recurate-stackexchange", lambda pipeline: dones.append(recuration.recurate(pipeline, found)))
    for done in dones:
        _tell_changes(done)
    return summary


def _tell_changes(done: Done) -> None:
    lines = recuration.told(done)
    for line in lines:
        tell(line)
    key = re.sub(r"[^a-z0-9]+", "-", f"stackexchange changes {done.recipe}".lower()).strip("-")
    with contextlib.suppress(PrefectException, httpx.HTTPError):  # the store has it; a server that is away must not fail what is done
        create_table_artifact(recuration.table(done), key, "\n\n".join(line.strip() for line in lines))
