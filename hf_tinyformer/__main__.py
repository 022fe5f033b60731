"""`python -m hf_tinyformer`."""

from hf_tinyformer.cli import main

main()
