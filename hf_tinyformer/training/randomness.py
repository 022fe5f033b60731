"""Randomness without state: every draw is keyed by what it is for and when it happens.

A generator whose seed is a function of (run seed, purpose, step, ...) has nothing to save, so a
resumed run draws what the uninterrupted one would have drawn, on any number of processes.
"""

import hashlib


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """Return a seed for one use of randomness.

    Args:
        seed: The run's seed.
        purpose: What is drawn, such as `dropout`; different purposes never share a stream.
        position: Where in the run: a step, the index of a micro-batch.

    Returns:
        An integer from 0 to 2**63 - 1, for `torch.manual_seed`.
    """
    key = ":".join([str(seed), purpose, *map(str, position)])
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
