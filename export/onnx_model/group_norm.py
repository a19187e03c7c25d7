"""GroupNormalization in the form that CPUs run fastest, and back in the single node that GPUs run fastest.

TensorRT has a layer for GroupNormalization. ONNX Runtime has no CPU kernel for it: it takes the node apart into about
20 nodes with seven passes over the map. Its InstanceNormalization is one kernel, so the same numbers come cheaper from

    x [B, C, H, W] → Reshape [B, G, C/G·H, W] → InstanceNormalization → Reshape [B, C, H, W] → · scale → + bias

where the instance is one of G groups of channels. A 0 in a shape copies that side of the input, so all shapes are
constants, also where B, H and W are dynamic. `value_info` states the sides of the new values by name: only with them
ONNX Runtime computes the product and the sum in place.

Both functions change no number of the graph's constants, and joining undoes splitting to the byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, numpy_helper

_GROUP_NORM = "GroupNormalization"
_PREFIX = "group_norm_constant"
# The nodes of the split form in order, and the suffixes of the values that the first four make.
_FORM = ("Reshape", "InstanceNormalization", "Reshape", "Mul", "Add")
_SUFFIXES = ("grouped", "normalized", "ungrouped", "scaled")


class _GroupNorm(NamedTuple):
    """A group normalization, in either form."""

    name: str
    x: str
    scale: str  # names of constants
    bias: str
    y: str
    groups: int
    epsilon: float


def split_group_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model (opset 21 or 22) with every GroupNormalization of float32 maps in the split form.

    A normalization stays as it is where the split form can't stand for it: other types, maps that aren't [B, C, H, W],
    and a scale or bias that isn't a constant or that other operators read too.
    """
    found = {norm.y: norm for norm in _native(model)}
    if not found:
        return _copy(model)
    values = {value.name: value for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    constants = {value.name: value for value in model.graph.initializer}
    nodes: list[NodeProto] = []
    added: dict[str, TensorProto] = {}
    infos: list[ValueInfoProto] = []
    for node in model.graph.node:
        norm = found.get(node.output[0]) if node.op_type == _GROUP_NORM else None
        if norm is None:
            nodes.append(node)
            continue
        channels = _length(constants[norm.scale])
        fixed = _fixed_constants(norm.groups, channels)
        added |= {value.name: value for value in fixed}
        nodes += _split_form(norm, [value.name for value in fixed])
        infos += _infos(norm, channels, values[norm.x])
    made = _with(model, nodes, [*model.graph.value_info, *infos])
    _reshape_constants(made, found.values(), column=True)
    made.graph.initializer.extend(value for name, value in added.items() if name not in constants)
    return made


def join_group_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with GroupNormalization in place of every split form that `split_group_norms` made.

    Nodes that differ from the form in anything (a constant, an order, a value that something else reads) stay as they
    are.
    """
    found = {norm.y: norm for norm in _split(model)}
    if not found:
        return _copy(model)
    inner = {f"{norm.y}_{suffix}" for norm in found.values() for suffix in _SUFFIXES}
    nodes = []
    for node in model.graph.node:
        norm = found.get(node.output[0])
        if norm is not None:
            nodes.append(_native_form(norm))
        elif node.output[0] not in inner:
            nodes.append(node)
    made = _with(model, nodes, [value for value in model.graph.value_info if value.name not in inner])
    _reshape_constants(made, found.values(), column=False)
    read = {name for node in nodes for name in node.input}
    for value in [value for value in made.graph.initializer if value.name not in read]:
        if value.name.startswith(_PREFIX):
            made.graph.initializer.remove(value)
    return made


def _native(model: onnx.ModelProto) -> list[_GroupNorm]:
    """The GroupNormalizations that can be split."""
    constants = {value.name: value for value in model.graph.initializer}
    values = {value.name: value for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    found = []
    for node in model.graph.node:
        if node.op_type != _GROUP_NORM:
            continue
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        x, scale, bias = node.input
        norm = _GroupNorm(node.name, x, scale, bias, node.output[0], given["num_groups"], given.get("epsilon", 1e-5))
        kind = values[x].type.tensor_type if x in values else None
        if (
            given.get("stash_type", TensorProto.FLOAT) == TensorProto.FLOAT
            and kind is not None
            and kind.elem_type == TensorProto.FLOAT
            and len(kind.shape.dim) == 4
            and all(name in constants and len(constants[name].dims) == 1 for name in (scale, bias))
        ):
            found.append(norm)
    return _with_own_constants(model, found, {norm.y for norm in found})


def _split(model: onnx.ModelProto) -> list[_GroupNorm]:
    """The split forms that can be joined."""
    constants = {value.name: value for value in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    found = []
    for node in model.graph.node:
        chain = [node]
        while len(chain) < len(_FORM) and chain[0].input and chain[0].input[0] in makers:
            chain.insert(0, makers[chain[0].input[0]])
        if tuple(link.op_type for link in chain) != _FORM or any(readers[link.output[0]] != 1 for link in chain[:-1]):
            continue
        if any(name not in constants for link in chain for name in link.input[1:]):
            continue
        scale, bias = chain[3].input[1], chain[4].input[1]
        dims = constants[scale].dims
        if len(dims) != 3 or dims != constants[bias].dims or constants[scale].data_type != TensorProto.FLOAT:
            continue
        groups = _length(constants[chain[1].input[1]])
        epsilon = next((attribute.f for attribute in chain[1].attribute if attribute.name == "epsilon"), 1e-5)
        norm = _GroupNorm(node.name, chain[0].input[0], scale, bias, node.output[0], groups, epsilon)
        fixed = _fixed_constants(groups, dims[0])
        wanted = _split_form(norm, [value.name for value in fixed])
        if chain == wanted and all(constants[value.name] == value for value in fixed):
            found.append(norm)
    return _with_own_constants(model, found, {name for norm in found for name in (f"{norm.y}_scaled", norm.y)})


def _with_own_constants(model: onnx.ModelProto, norms: list[_GroupNorm], readers: set[str]) -> list[_GroupNorm]:
    """The norms whose scale and bias nothing reads but the nodes that make `readers`."""
    others = {name for node in model.graph.node if node.output[0] not in readers for name in node.input}
    others |= {value.name for value in model.graph.output}
    kept = [norm for norm in norms if not others.intersection((norm.scale, norm.bias))]
    # Norms may share constants with one another. One that stays as it is keeps those of its partners as they are.
    if len(kept) < len(norms):
        gone = {name for norm in norms if norm not in kept for name in (norm.y, f"{norm.y}_scaled")}
        return _with_own_constants(model, kept, readers - gone)
    return kept


def _split_form(norm: _GroupNorm, fixed: list[str]) -> list[NodeProto]:
    """The five nodes; `fixed` are the names of `_fixed_constants`. The last has the normalization's own name."""
    grouped, normalized, ungrouped, scaled = (f"{norm.y}_{suffix}" for suffix in _SUFFIXES)
    into_groups, ones, zeros, into_channels = fixed
    make = onnx.helper.make_node
    return [
        make("Reshape", [norm.x, into_groups], [grouped], f"{norm.name}_grouped"),
        make(
            "InstanceNormalization",
            [grouped, ones, zeros],
            [normalized],
            f"{norm.name}_normalized",
            epsilon=norm.epsilon,
        ),
        make("Reshape", [normalized, into_channels], [ungrouped], f"{norm.name}_ungrouped"),
        make("Mul", [ungrouped, norm.scale], [scaled], f"{norm.name}_scaled"),
        make("Add", [scaled, norm.bias], [norm.y], norm.name),
    ]


def _native_form(norm: _GroupNorm) -> NodeProto:
    """The node as the export writes it, with the attributes in its order and a text that is stated to be empty."""
    node = onnx.helper.make_node(_GROUP_NORM, [norm.x, norm.scale, norm.bias], [norm.y], norm.name)
    node.doc_string = ""
    given = {"stash_type": TensorProto.FLOAT, "num_groups": norm.groups, "epsilon": norm.epsilon}
    node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in given.items())
    return node


def _fixed_constants(groups: int, channels: int) -> list[TensorProto]:
    """What the forms of these numbers share: the shape of groups, ones, zeros, the shape of channels."""
    arrays: dict[str, np.ndarray] = {
        f"{_PREFIX}_groups_{groups}": np.array([0, groups, -1, 0], np.int64),
        f"{_PREFIX}_ones_{groups}": np.ones(groups, np.float32),
        f"{_PREFIX}_zeros_{groups}": np.zeros(groups, np.float32),
        f"{_PREFIX}_channels_{channels}": np.array([0, channels, -1, 0], np.int64),
    }
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def _infos(norm: _GroupNorm, channels: int, x: ValueInfoProto) -> list[ValueInfoProto]:
    """Types and shapes of the inner values, in the order of `_SUFFIXES`."""
    like_x, like_groups = ValueInfoProto(), ValueInfoProto()
    like_x.CopyFrom(x)
    like_groups.CopyFrom(x)
    like_x.ClearField("metadata_props")
    like_groups.ClearField("metadata_props")
    _, group_dim, row_dim, _ = like_groups.type.tensor_type.shape.dim
    group_dim.dim_value = norm.groups
    if row_dim.HasField("dim_value"):
        row_dim.dim_value *= channels // norm.groups
    elif row_dim.HasField("dim_param"):
        row_dim.dim_param = f"{channels // norm.groups}*({row_dim.dim_param})"
    infos = []
    for suffix, like in zip(_SUFFIXES, (like_groups, like_groups, like_x, like_x), strict=True):
        info = ValueInfoProto()
        info.CopyFrom(like)
        info.name = f"{norm.y}_{suffix}"
        infos.append(info)
    return infos


def _reshape_constants(model: onnx.ModelProto, norms: Iterable[_GroupNorm], column: bool) -> None:
    """Give scales and biases the shape [C, 1, 1], which broadcasts over a map (`column`), or [C]; in place."""
    names = {name for norm in norms for name in (norm.scale, norm.bias)}
    sides = [1, 1] if column else []
    for value in model.graph.initializer:
        if value.name in names:
            value.dims[:] = [_length(value), *sides]
    for info in model.graph.value_info:  # exporters state the shapes of constants too
        if info.name in names:
            dim = info.type.tensor_type.shape.dim
            del dim[1:]
            for side in sides:
                dim.add(dim_value=side)


def _length(value: TensorProto) -> int:
    return int(np.prod(value.dims, dtype=np.int64))


def _with(model: onnx.ModelProto, nodes: list[NodeProto], infos: list[ValueInfoProto]) -> onnx.ModelProto:
    """A copy of the model with these nodes and this value_info."""
    made = _copy(model)
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    made.graph.value_info.extend(infos)
    return made


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made
