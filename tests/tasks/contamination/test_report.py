"""What a run's lines and its report tell of contamination."""

import json
import re
from dataclasses import asdict
from pathlib import Path

from flows.report import write_report
from flows.summary import RunSummary, summary_path


def test_the_lines_of_a_run_tell_what_was_found(lab):
    scored = [line for line in lab.lines if line.startswith("score")]
    assert len(scored) == 2 and all(re.search(r"[1-9]\d* share n-grams with evaluations", line) for line in scored)
    told = lab.told(lab.pipeline, "mix mid")["mix"]["evaluations"].values()
    inside, touched = (sum(each[name] for each in told) for name in ("inside", "touched"))
    (mixed,) = [line for line in lab.lines if "mix mid: decontamination" in line]
    assert f"25 instances, {inside} inside, {touched} touched" in mixed


def test_the_report_shows_what_the_steps_found(lab):
    pipeline = lab.pipeline
    summary = RunSummary.of(pipeline, "mix", "now", 0.0)
    lab.store.replace(summary_path("lab"), json.dumps(asdict(summary)))
    page = Path(write_report(pipeline.recipe)).read_text()
    section = re.search(r'<section id="contamination">.*?</section>', page, re.DOTALL)[0]
    told = {name: lab.told(pipeline, name) for name in ("flan", "maths", "mix mid")}
    for evaluation in lab.evaluations:
        read, selected, mixed = (told["flan"]["read"], told["flan"]["selected"], told["mix mid"]["mix"])
        read, selected, mixed = (place["evaluations"][evaluation] for place in (read, selected, mixed))
        assert f"{evaluation} in flan: {read['inside']} of {read['instances']} instances inside, {read['touched']} touched" in section
        assert f"{selected['inside']} inside and {selected['touched']} touched once the filters have selected" in section
        assert f"{evaluation} in mix mid: {mixed['inside']} of {mixed['instances']} instances inside" in section
        assert f"({mixed['copies']} with their copies)" in section
    assert "web was not looked at" in section
    assert "overlap &lt; 0.1" in page  # among the cuts of flan
    assert page.count("looked for by decontamination") == len(lab.evaluations)
