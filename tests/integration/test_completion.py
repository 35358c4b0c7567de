"""What a shell offers at TAB, asked as a shell asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.completion import STEPS
from flows.plan import step_names
from flows.recipe import load


def offered(line: str) -> list[str]:
    """What is offered for the line's last word."""
    asked = {"_OLMOFLOW_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = Path(sys.executable).parent / "olmoflow"
    done = subprocess.run([command], env={**os.environ, **asked}, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.mark.skipif(not (Path(sys.executable).parent / "olmoflow").exists(), reason="olmoflow is not installed beside this Python")
def test_flows_steps_and_the_recipe_s_own_names_are_offered(lab):
    assert offered("olmoflow run mi") == ["mix", "micro-anneal"]
    assert offered("olmoflow rerun tok") == ["tokenizer", "tokenize"]
    assert offered(f"olmoflow rerun select {lab.file} --source ") == ["web", "maths"]
    assert offered(f"olmoflow rerun train {lab.file} --source anneal") == ["anneal 1", "anneal 2"]
    assert offered("olmoflow rerun train nosuch.yaml --source ") == []


def test_every_step_that_a_recipe_has_is_offered(lab):
    assert {step for step, _ in step_names(load(lab.file))} <= set(STEPS)
