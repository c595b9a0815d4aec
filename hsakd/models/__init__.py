"""Networks: `create_network(name, num_classes=...)`; a family is a file, a variant three lines."""

from hsakd.models import mobilenetv2, resnet, shufflenet, vgg, wrn
from hsakd.models.backbone import NETWORKS
from hsakd.models.counting import Counts, count_multi_adds, count_parameters
from hsakd.models.network import HierarchicalNet, Output, create_network

__all__ = ["NETWORKS", "Counts", "HierarchicalNet", "Output", "count_multi_adds", "count_parameters", "create_network", "network_names"]

_FAMILIES = (mobilenetv2, resnet, shufflenet, vgg, wrn)  # importing a family registers its networks


def network_names() -> list[str]:
    """Return the names that `create_network` knows, sorted."""
    return sorted(NETWORKS)
