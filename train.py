"""Train a model: `python train.py CONFIG key=value ...`, also under `accelerate launch`."""

import sys

from hf_tinyformer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
