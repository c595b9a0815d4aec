"""Facts about a network by its name: from the packaged table, or counted on the spot for a timm model."""

from functools import cache

from hsakd.network_table import TIMM, NetworkFacts, network_table


def is_network(name: str) -> bool:
    """Tell whether a name is in the table or asks for a timm model (which may not exist)."""
    return name in network_table() or (name.startswith(TIMM) and len(name) > len(TIMM))


def network_facts(name: str) -> NetworkFacts:
    """Return parameters, multi-adds and branches of a network.

    Raises:
        KeyError: not in the table.
        ValueError: timm isn't installed, or has no such model with stage features.
    """
    return _timm_facts(name) if name.startswith(TIMM) else network_table()[name]


@cache
def _timm_facts(name: str) -> NetworkFacts:
    from hsakd.models.facts import facts_of  # torch and timm, for such names only

    return facts_of(name)
