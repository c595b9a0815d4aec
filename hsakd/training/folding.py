"""A frozen teacher as an inference graph: batch normalization folded into the convolution before it, nothing computed that nobody reads."""

import copy
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hsakd.models import HierarchicalNet
from hsakd.models.batch_norm import BatchNorm2d
from hsakd.models.strided_depthwise import StridedDepthwiseConv2d


class Teacher(nn.Module):
    """Class logits, the joint logits of `branches` and, `with_features`, the embedding and the maps: what the fold traces."""

    def __init__(self, network: HierarchicalNet, branches: tuple[int, ...], *, with_features: bool = False) -> None:
        super().__init__()
        self.network = network
        self.branches = branches
        self.with_features = with_features

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        output = self.network(rows, branches=self.branches)
        kept = (output.embedding, *output.features) if self.with_features else ()
        return (output.logits, *output.joint_logits, *kept)


def unfolded_teacher(network: HierarchicalNet, branches: tuple[int, ...], *, with_features: bool = False) -> Teacher:
    """Return a copy of `network` in eval mode, without gradient, that gives what `Teacher` gives."""
    return Teacher(copy.deepcopy(network), branches, with_features=with_features).eval().requires_grad_(False)


NORMALIZATIONS, CONVOLUTIONS = (nn.BatchNorm2d, BatchNorm2d), (nn.Conv2d, StridedDepthwiseConv2d)


class _Tracer(fx.Tracer):
    """Takes our layers as one step each, as PyTorch does its own; of others' subclasses nobody knows what else they do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in NORMALIZATIONS + CONVOLUTIONS or super().is_leaf_module(m, module_qualified_name)


def fold_teacher(network: HierarchicalNet, branches: tuple[int, ...], *, with_features: bool = False) -> nn.Module:
    """Return a copy of `network` in eval mode that gives what `Teacher` gives of rows [R, 3, H, W].

    Every BN whose only input is a convolution that feeds nothing else becomes part of that convolution (pre-activation blocks keep their
    first BN). `network` itself is not changed; equal to it to about 1e-6 relative in float32, so the float64 reference doesn't use it.
    A timm model whose forward looks at its input's size or values (ViTs, Swin, TensorFlow's padding) has no graph and stays unfolded.
    """
    wrapped = unfolded_teacher(network, branches, with_features=with_features)
    try:
        graph = _Tracer().trace(wrapped)
    except Exception:  # of whatever kind others' code raises at a proxy; its own errors come back with the first batch
        return unfolded_teacher(network, branches, with_features=with_features)  # anew: a broken trace may leave proxies in it
    folded = fx.GraphModule(wrapped, graph)
    modules: dict[str, Any] = dict(folded.named_modules())
    for node in list(graph.nodes):
        if node.op != "call_module" or type(modules[str(node.target)]) not in NORMALIZATIONS:
            continue
        source = node.args[0]
        if not (isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1):
            continue
        convolution = modules[str(source.target)]
        if type(convolution) in CONVOLUTIONS:
            fused = fuse_conv_bn_eval(convolution, modules[str(node.target)])
            folded.set_submodule(str(source.target), fused)
            modules[str(source.target)] = fused
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded.eval().requires_grad_(False)
