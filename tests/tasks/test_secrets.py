"""What olmoflow writes down has the name of a secret, not the secret."""

from tasks.secrets import hidden


def test_a_secret_is_told_by_its_name_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("LAB_API_KEY", "planted-3f9c1e77")
    monkeypatch.setenv("LAB_SECRET", "planted-3f9c1e77-and-more")
    told = hidden({"url": "https://planted-3f9c1e77@host", "list": ["planted-3f9c1e77-and-more", 3, None], "path": "/data"})
    assert told == {"url": "https://${LAB_API_KEY}@host", "list": ["${LAB_SECRET}", 3, None], "path": "/data"}


def test_settings_that_are_no_secret_are_left(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("LAB_DATA", "/data/of/the/lab")
    assert hidden({"paths": ["/data/of/the/lab/x"], "on": "false"}) == {"paths": ["/data/of/the/lab/x"], "on": "false"}
