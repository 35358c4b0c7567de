"""Shards and GPU jobs in the test's own process: starting processes would take most of a test's time."""

import importlib

import yaml

from tasks.shards import Engine, run_shard


class InProcess(Engine):
    """Every shard here and now, one after the other."""

    def run(self, plan, weights, store):
        for spec in plan["shards"]:
            run_shard(store, plan["step"], spec, importlib.import_module(plan["step"]["module"]).run)


def launch_here(module, config, folder, launcher, *rest, **more):
    """In place of `tasks.launch.launch`: the program of one rank."""
    path = folder / f"{module}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    main = importlib.import_module(f"{module}.__main__" if module == "trainer" else module).main
    assert main([str(path)]) == 0
