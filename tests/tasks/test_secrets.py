"""What olmoflow writes down has the name of a secret, not the secret."""

from tasks import secrets
from tasks.secrets import hidden, remember_block, variables_of


def test_a_secret_is_told_by_its_name_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("LAB_API_KEY", "planted-3f9c1e77")
    monkeypatch.setenv("LAB_SECRET", "planted-3f9c1e77-and-more")
    told = hidden({"url": "https://planted-3f9c1e77@host", "list": ["planted-3f9c1e77-and-more", 3, None], "path": "/data"})
    assert told == {"url": "https://${LAB_API_KEY}@host", "list": ["${LAB_SECRET}", 3, None], "path": "/data"}


def test_settings_that_are_no_secret_are_left(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("LAB_DATA", "/data/of/the/lab")
    assert hidden({"paths": ["/data/of/the/lab/x"], "on": "false"}) == {"paths": ["/data/of/the/lab/x"], "on": "false"}


def test_a_block_s_value_is_told_by_its_name_once_it_was_filled_in(monkeypatch):
    monkeypatch.setattr(secrets, "_blocks", {})
    assert hidden("at planted-77c0") == "at planted-77c0"
    remember_block("lab-store", "planted-77c0")
    assert hidden(["at planted-77c0"]) == ["at ${block:lab-store}"]


def test_what_another_machine_fills_in_goes_by_its_name_too(monkeypatch):
    monkeypatch.setenv("LAB_DATA", "/data/of/the/lab")
    named = variables_of({"paths": ["${LAB_DATA}/x", "${NOT_SET:-y}"]})
    assert hidden({"paths": ["/data/of/the/lab/x"]}, named) == {"paths": ["${LAB_DATA}/x"]}
