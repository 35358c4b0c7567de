"""Who is warned, and who gets the server's password, when the service starts; nothing is started."""

import pytest

from flows import service
from flows.service import Service, Settings, credentials
from tasks.errors import UserError

SECRET = "lab:planted-3f9c1e77"


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What `start` tells before anything starts."""

    def stop(*_):
        raise UserError("not started")

    monkeypatch.setattr(Service, "up", stop)

    def start(host):
        lines = []
        with pytest.raises(UserError, match="not started"):
            service.start(tmp_path, Settings(host), lines.append)
        return lines

    return start


@pytest.mark.parametrize("secret", [None, "", SECRET])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_up_warns_when_all_the_network_is_let_in_and_only_then(told, monkeypatch, host, secret):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    if secret is not None:
        monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", secret)
    lines = told(host)
    assert bool(lines) == (host == "0.0.0.0" and not secret)
    assert all("asks nobody who they are" in line for line in lines)


def test_server_and_clients_get_the_same_password_by_their_environment_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", SECRET)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "of:another-server")
    started = Service(tmp_path, print)
    environment = started._environment(Settings(), None)
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == environment["PREFECT_API_AUTH_STRING"] == SECRET
    assert SECRET not in started._write_configuration(Settings(), None).read_text()


def test_an_empty_password_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "")
    assert credentials() == {}
    assert "PREFECT_SERVER_API_AUTH_STRING" not in Service(tmp_path, print)._environment(Settings(), None)
