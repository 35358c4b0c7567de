"""Prefect's UI in a real browser, as a person uses it: its forms, its runs, its artifacts."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator

from playwright.sync_api import Locator, Page, expect, sync_playwright
from service import PATIENCE_SECONDS

PATIENCE_MILLISECONDS = 1000 * PATIENCE_SECONDS


def chromium() -> str | None:
    """The system's browser; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def browser_page(**options) -> Iterator[Page]:
    """A page of the system's browser, headless. Chromium has no sandbox for root."""
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
            page.set_default_timeout(PATIENCE_MILLISECONDS)
            yield page
        finally:
            browser.close()


class UI:
    """The UI at an address; `ask` is its API, which knows the ids that stand in the addresses of pages."""

    def __init__(self, page: Page, address: str, ask) -> None:
        self.page, self.address, self.ask = page, address, ask

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)

    def deployment(self, name: str) -> str:
        return f"/deployments/deployment/{self.ask('GET', f'/deployments/name/{name}/{name}')['id']}"

    def open_form(self, deployment: str) -> None:
        """A deployment's page, *Run*, *Custom run*: its form."""
        self.open(self.deployment(deployment))
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run", exact=True).click()
        self._wait_for_form()

    def write(self, parameters: dict) -> None:
        """Put all parameters in as JSON, and go back to the form."""
        self._choose("Use JSON input")
        self.page.locator(".schema-input .p-code-input textarea").fill(json.dumps(parameters, indent=1))
        self._choose("Use form input")
        self._wait_for_form()

    def field(self, *path: str) -> Locator:
        """A field by the labels of the groups that it is in, and its own."""
        found = self.page.locator(".schema-input")
        for label in path:
            called = self.page.locator(".schema-form-property__label").get_by_text(label, exact=True)
            found = found.locator(".schema-form-property").filter(has=called).last
        return found

    def submit(self) -> dict:
        """The server's answer: the run, or why there is none."""
        with self.page.expect_response(re.compile("/create_flow_run$")) as answer:
            self.page.get_by_role("button", name="Submit", exact=True).click()
        return answer.value.json()

    def open_artifact(self, key: str) -> Locator:
        """The page of the newest artifact of a key. Returns what is drawn of its text."""
        (newest,) = self.ask("POST", "/artifacts/latest/filter", json={"artifacts": {"key": {"any_": [key]}}})
        self.open(f"/artifacts/artifact/{newest['latest_id']}")
        drawn = self.page.locator("article.markdown-renderer").last
        drawn.wait_for()
        return drawn

    def _choose(self, item: str) -> None:
        self.page.locator(".flow-run-create-form-v2__header").get_by_role("button").first.click()
        self.page.get_by_text(item, exact=True).click()

    def _wait_for_form(self) -> None:
        self.page.get_by_text("Names the run.", exact=True).wait_for()
