"""The test cluster, for a whole session."""

import shutil
import sys

import pytest
from slurm_cluster import COMMANDS, DAEMONS, PATH, Cluster

from tests.trainer.conftest import make_config, make_documents, make_mix, model_dict, rank_server, run_ranks  # noqa: F401


@pytest.fixture(scope="session")
def started_cluster():
    absent = [name for name in (*DAEMONS, *COMMANDS) if shutil.which(name, path=PATH) is None]
    if sys.platform != "linux" or absent:
        pytest.skip(f"Slurm is not installed here ({', '.join(absent)}): apt-get install slurm-wlm munge")
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def cluster(started_cluster, monkeypatch):
    """The cluster, idle, as the environment of this process has it; what a test leaves there is ended."""
    monkeypatch.setenv("SLURM_CONF", str(started_cluster.conf))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    try:
        yield started_cluster
    finally:
        started_cluster.clear()
        started_cluster.start_nodes()
