"""`torchrun --nproc-per-node N -m trainer CONFIG.yaml`, or `python -m trainer CONFIG.yaml` for one process.

Exit codes: 0 done (also where the run was done before), 1 failed, 2 wrong usage, 143 stopped by SIGTERM with a checkpoint saved.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.config import load_config
from trainer.errors import TrainerError
from trainer.process import die_with_torchrun, keep_freed_memory
from trainer.verdict import DeviceError, write


def main(arguments: list[str]) -> int:
    """Run the config named on the command line; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m trainer CONFIG.yaml", file=sys.stderr)
        return 2
    die_with_torchrun()
    try:
        config = load_config(arguments[0])
        if (Path(config.run_folder) / "done.json").exists():
            print(f"{config.run_folder} is done already")
            return 0
        # Not before: importing torch takes seconds, which a wrong config should not.
        from trainer import parallel
        from trainer.train import train

        world = parallel.start(config.device, config.threads, config.deterministic)
        if world.device.type == "cpu":
            keep_freed_memory()
        code = train(config, world)
    except TrainerError as error:
        if isinstance(error, DeviceError):
            write([error.fault], Path(config.run_folder))
        print(f"error: {error}", file=sys.stderr)
        return 1
    parallel.stop()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
