"""The seeds of generators."""

import hashlib


def seed_of(*parts: object) -> int:
    """Return a generator's seed, 63 bits, that depends on all parts: what is drawn for one thing tells nothing of another's."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little") >> 1
