"""The pictures of `docs/images`, made anew from a service where the demo has run once (docs/service.md says how):

make up
.venv/bin/prefect deployment run end-to-end/end-to-end --watch
.venv/bin/python tests/helpers/screenshots.py
"""

import argparse
import urllib.parse
from pathlib import Path

import httpx
from PIL import Image
from ui import UI, browser_page

IMAGES = Path(__file__).parents[2] / "docs" / "images"
GRAPH_MILLISECONDS = 5000  # the graph of a run is a canvas, which does not tell when it is drawn
COLOURS = 128  # enough for text and lines, and a third of the bytes


class Camera:
    """Pictures of the UI that a page shows, below a folder."""

    def __init__(self, ui: UI, folder: Path) -> None:
        self.ui, self.page, self.folder = ui, ui.page, folder

    def take(self, name: str) -> None:
        self.page.evaluate("document.fonts.ready")
        path = self.folder / f"{name}.png"
        self.page.screenshot(path=path, animations="disabled")
        Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

    def take_all(self) -> None:
        self.ui.open_form("end-to-end")
        self.take("form")
        self._schedule()
        self._rerun_form()
        for key, name in (
            ("waterfall-demo", "waterfall"),
            ("mixes-demo", "mixes"),
            ("lineage-demo", "lineage"),
            ("loss-pretrain-demo", "loss"),
        ):
            self.ui.open_artifact(key)
            self.take(name)
        address = self.ui.open_artifact("report-demo").locator("pre").inner_text().strip()
        self._run()
        self._report(address)

    def _schedule(self) -> None:
        self.ui.open(f"{self.ui.deployment('poll-stackexchange')}?tab=Upcoming")
        self.page.get_by_text("Scheduled for").first.wait_for()
        self.take("schedule")

    def _rerun_form(self) -> None:
        self.ui.open_form("rerun")
        self.ui.field("step").get_by_role("textbox").first.fill("select")
        source = self.ui.field("source (Optional)")
        source.get_by_role("button", name="str", exact=True).click()
        source.get_by_role("textbox").fill("wiki")
        self.page.evaluate("scrollTo(0, 0)")
        self.take("rerun")

    def _run(self) -> None:
        done = {"name": {"any_": ["end-to-end demo"]}, "state": {"type": {"any_": ["COMPLETED"]}}}
        newest = self.ui.ask("POST", "/flow_runs/filter", json={"flow_runs": done, "sort": "START_TIME_DESC", "limit": 1})[0]
        self.ui.open(f"/runs/flow-run/{newest['id']}")
        self.page.get_by_text("Completed", exact=True).first.wait_for()
        self.page.wait_for_timeout(GRAPH_MILLISECONDS)
        self.take("run")

    def _report(self, address: str) -> None:
        if urllib.parse.urlsplit(address).scheme == "file":
            self.page.goto(address)
            self.page.wait_for_load_state("networkidle")
            self.take("report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ui", default="http://127.0.0.1:4200", help="the service's address")
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder of the pictures")
    given = parser.parse_args()

    def ask(method: str, path: str, **options):
        answer = httpx.request(method, f"{given.ui}/api{path}", timeout=30, **options)
        answer.raise_for_status()
        return answer.json()

    given.out.mkdir(parents=True, exist_ok=True)
    with browser_page(color_scheme="dark") as page:
        Camera(UI(page, given.ui, ask), given.out).take_all()


if __name__ == "__main__":
    main()
