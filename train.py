"""Train a model: `python train.py CONFIG key=value ...`, also under `accelerate launch`."""

import os
import sys

from hf_tinyformer.training.launching import several_processes_command

if __name__ == "__main__":
    command = several_processes_command(sys.argv)
    if command is not None:
        os.execv(command[0], command)
    from hf_tinyformer.cli import main

    main(["train", *sys.argv[1:]])
