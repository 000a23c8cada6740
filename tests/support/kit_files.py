"""Files as the vendor's own kit wrote them in 2020, 2021 and 2023, made of what chipfit writes, from their description.

Source: spec/ingenic.md, sections 5 and 8.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from chipfit.chips.ingenic.magik.view import View

CONVENTIONS = ("2020", "2021", "2023")


class NoSuchFile(Exception):
    """The kit of that year cannot write the network."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


class Writer:
    """A file of one convention.

    Args:
        model: What `magik_model` made.
        year: '2020': quantisers of 11 inputs, weights of one, markers without texts. '2021': quantisers of 9 inputs,
            no Preprocess, biases behind a Reshape. '2023': one node a layer, its border a Pad before it.
        anonymous: Keep weights behind Constant nodes, so that no name of theirs is left.
    """

    def __init__(self, model: onnx.ModelProto, year: str, anonymous: bool = False) -> None:
        self.model, self.year, self.anonymous = model, year, anonymous
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        }
        self.notes = json.loads(model.metadata_props[0].value)
        self.signed = {edge: tag is not None and tag.signed for edge, tag in View(model).tags.items()}
        self.nodes: list[onnx.NodeProto] = []
        self.parameters: dict[str, Any] = {}
        self.edges: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self.image = False
        self.count = 276

    # --- nodes

    def fresh(self) -> str:
        self.count += 1
        return str(self.count)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **given: Any) -> Any:
        made = [self.fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, **given))
        return made[0] if outputs == 1 else made

    def value(self, values: Any, dtype: Any = np.float32) -> str:
        """A Constant node."""
        return str(self.add("Constant", value=numpy_helper.from_array(np.asarray(values, dtype))))

    def parameter(self, name: str) -> str:
        """A constant: of a parameter an initializer; what stands for none, or a number, a Constant node."""
        values = self.constants[name]
        own = not self.anonymous and "[" not in name and "/" not in name
        if not own:
            return self.value(values, values.dtype)
        self.parameters[name] = values
        return name

    def at(self, edge: str) -> str:
        return self.parameter(edge) if edge in self.constants else self.edges[edge]

    def marker(self, target: str, x: str, attr: Any = None, kind: str = "") -> str:
        text = "{}" if self.year == "2020" or attr is None else json.dumps({"op_type": kind or target, "attr": attr})
        version = {} if self.year == "2020" else {"version": {"2021": 1001, "2023": 1002}[self.year]}
        return str(self.add("NOp", x, op_target=target, op_attr=text, target_device=self.target, **version))

    # --- parts of layers

    def weight(self, name: str, bits: int, factor: float, target: str) -> str:
        peaks = [] if self.year == "2020" else [self.value(np.zeros(len(self.constants[name])))]
        more: dict[str, Any] = {"need_scale_weight": 1, "tensor_name": "layer/QuantizeWeight"}
        return str(
            self.add(
                "QuantizeWeight", self.parameter(name), *peaks, data_format="NCHW", factor=factor, input_bitwidth=32,
                is_quantize_per_channel=1, output_bitwidth=32, target_device=target, weight_bitwidth=bits,
                **({} if self.year == "2020" else more),
            )
        )  # fmt: skip

    def quantised(self, x: str, f: dict[str, Any], layer: str, norm: list[str], parts: dict[str, str]) -> str:
        """The quantiser of an output, with what made it beside it."""
        learned = self.notes["layers"].get(layer, {}).get("learned_clip", False)
        if learned and self.year != "2020":
            raise NoSuchFile("a learned clip")
        common = {
            "clip_max_value": f["clip_max_value"], "clip_min_value": f["clip_min_value"], "data_format": "NCHW",
            "output_bitwidth": f["output_bitwidth"], "target_device": self.target,
        }  # fmt: skip
        if self.year == "2023":
            return str(self.add("QuantizeFeature", x, **common, pre_lstm_layer=0, version=1002, tensor_name="layer/q"))
        leaky = int(f.get("with_negtive_alpha", False))
        first, var = int(f.get("is_input", False)), f["feature_var"]
        common |= {"input_bitwidth": f["input_bitwidth"], "weight_bitwidth": f.get("weight_bitwidth", 32)}
        common |= {"epsilon": f.get("epsilon", 1e-4), "first_layer": first, "img_var": var, "is_fixpoint": 1}
        ends = [parts["scale"], parts["bias"], parts["alpha"]]
        if self.year == "2021":
            low = f["input_min_value"] if not isinstance(f["input_min_value"], list) else min(f["input_min_value"])
            return str(
                self.add(
                    "QuantizeFeature", x, *norm, *ends, parts["sum"], **common, clip_min_pre=low,
                    is_shortcut=int(parts["kind"] == "shortcut"), op_in_channels=f.get("op_in_channels", 32),
                    pre_lstm_layer=0, sc_input_same_clip=1, tensor_name="layer/QuantizeFeature", version=1001,
                    with_negtive_alpha=leaky,
                )
            )  # fmt: skip
        keys = ["first_layer", "epsilon", "is_fixpoint", "is_prelu", "feat_var"]
        clips = [self.value(f["clip_min_value"]), self.value(f["clip_max_value"])]
        if learned:
            clips[1] = f"{layer}.QuantizeFeature.clip_max_value"
            self.parameters[clips[1]] = np.float32(f["clip_max_value"])
        gain, shift, mean, variance = norm
        values = [float(first), f.get("epsilon", 1e-4), 1.0, float(leaky), var]
        zero = self.value(0, np.int64)
        return str(
            self.add(
                "QuantizeFeature", x, gain, shift, zero, *clips, mean, variance, *ends, **common,
                auto_threshold=int(learned), param_keys=keys, param_value=values,
            )
        )  # fmt: skip

    def normalised(self, x: str, names: list[str], epsilon: float) -> tuple[str, str]:
        gain = str(self.add("aweight", self.parameter(names[0])))
        others = [self.parameter(name) for name in names[1:]]
        y = self.add("BatchNormalization", x, gain, *others, epsilon=epsilon, momentum=0.9)
        return str(y), gain

    def activated(self, x: str, f: dict[str, Any], alpha: str, rank: int) -> str:
        """The activation that a layer keeps."""
        name = f["activate_name"]
        if name == "Hsigmoid":
            return str(self.add("Add", x, self.value(3.0)))
        if name == "LeakyRelu":
            return str(self.add("LeakyRelu", x, alpha=float(self.constants[alpha].flat[0])))
        if name != "PRelu":
            return x
        shared = self.notes["layers"].get(self.layer, {}).get("shared_slope")
        values = self.constants[alpha]
        slopes = self.value(values.reshape(-1, *[1] * (rank - 2)))
        if not self.anonymous and not shared:
            slopes = str(self.add("Reshape", self.parameter(alpha), self.value([-1] + [1] * (rank - 2), np.int64)))
        x = self.marker("prelu_start", x)
        return self.marker("prelu_end", str(self.add("PRelu", x, slopes)))

    # --- whole layers

    def bordered(self, x: str, edge: str, f: dict[str, Any]) -> str:
        top, left, bottom, right = f["conv_param"]["pads"]
        if not any((top, left, bottom, right)):
            return x
        wide = self.target in ("T40", "T41", "A1", "X2500")
        lowest = -1.0 if f["input_min_value"] < 0 and not f["is_input"] and wide else 0.0
        pads = [0, 0, top, left, 0, 0, bottom, right]
        return str(self.add("Pad", x, mode="constant", pads=pads, value=lowest))

    def fused(self, node: onnx.NodeProto, f: dict[str, Any]) -> str:
        """One node a layer, its border before it, no names, numbers as JSON has them."""
        x = self.at(node.input[0])
        if "conv_param" in f and node.op_type == "QuantizeConv2DInference":
            x = self.bordered(x, node.input[0], f)
            f["conv_param"] |= {"pads": [0, 0, 0, 0]}
            if f["conv_param"]["padding"] == "SAME":
                f["conv_param"]["padding"] = "VALID"
        text = {
            key: int(v) if isinstance(v, bool) or (isinstance(v, float) and v == int(v)) else v for key, v in f.items()
        }
        text |= {"input_tensor_name": "layer/in", "output_tensor_name": "layer/out", "something_new": None}
        return str(self.add(node.op_type, x, *map(self.at, node.input[1:]), param_str=json.dumps(text)))

    def parts(self, node: onnx.NodeProto, f: dict[str, Any]) -> str:
        """A layer with weights in parts."""
        x, rank = self.at(node.input[0]), len(self.shapes[node.output[0]])
        flat = node.op_type == "QuantizeConv1DInference"
        if flat:
            x = str(self.add("Unsqueeze", x, axes=[2]))
        bias = "" if node.input[2].startswith("zeros[") else node.input[2]
        if "conv_param" in f:
            p, x = f["conv_param"], self.bordered(x, node.input[0], f)
            w = self.weight(node.input[1], f["weight_bitwidth"], f["weight_factor"], f["weight_target_device"])
            beside = [self.parameter(bias)] if bias and self.year == "2020" else []
            y = self.add(
                "Conv", x, w, *beside, dilations=p["dilations"], group=p["groups"], kernel_shape=p["kernel_size"],
                pads=[0] * 4, strides=p["strides"],
            )  # fmt: skip
            if bias and self.year == "2021":
                column = self.add("Reshape", self.parameter(bias), self.value([1, -1, 1, 1], np.int64))
                y = self.add("Add", y, column)
        else:
            w = self.weight(node.input[1], f["weight_bitwidth"], f["weight_factor"], f["weight_target_device"])
            turned = self.add("Transpose", w, perm=[1, 0])
            if bias and rank == 2 and self.year == "2021":
                y = self.add("Gemm", x, turned, self.parameter(bias), alpha=1.0, beta=1.0)
            else:
                y = self.add("MatMul", x, turned)
                y = self.add("Add", self.parameter(bias), y) if bias else y
        total, norm = str(y), list(map(self.parameter, node.input[3:7]))
        scale = self.value(np.zeros(self.constants[node.input[1]].shape[0]))
        made = {"sum": total, "scale": scale, "alpha": self.value(self.constants[node.input[7]]), "kind": "layer"}
        made["bias"] = self.parameter(bias) if bias else scale
        if f["epsilon"]:
            total, norm[0] = self.normalised(total, list(node.input[3:7]), f["epsilon"])
        y = self.activated(total, f, node.input[7], 4 if flat else rank)
        y = self.quantised(y, f, self.layer, norm, made)
        return str(self.add("Squeeze", y, axes=[2])) if flat else y

    def ones(self, channels: int) -> tuple[list[str], dict[str, str]]:
        one, zero = self.value(np.ones(channels)), self.value(np.zeros(channels))
        return [one, zero, zero, one], {"scale": one, "bias": zero, "alpha": one}

    def shortcut(self, node: onnx.NodeProto, f: dict[str, Any]) -> str:
        y = str(self.add("Add", *map(self.at, node.input)))
        norm, made = self.ones(self.shapes[node.output[0]][1])
        return self.quantised(y, f, self.layer, norm, made | {"sum": y, "kind": "shortcut"})

    def batch_norm(self, node: onnx.NodeProto, f: dict[str, Any]) -> str:
        y, gain = self.normalised(self.at(node.input[0]), list(node.input[1:5]), f["epsilon"])
        norm = [gain, *map(self.parameter, node.input[2:5])]
        _, made = self.ones(self.shapes[node.output[0]][1])
        total = y
        y = self.activated(y, f, node.input[5], 4)
        return self.quantised(y, f, self.layer, norm, made | {"sum": total, "kind": "norm"})

    def lone_quantiser(self, node: onnx.NodeProto) -> str:
        """A quantiser behind a mean or a product."""
        a, x = attributes(node), self.at(node.input[0])
        norm, made = self.ones(self.shapes[node.output[0]][1])
        f = {**a, "input_bitwidth": a["output_bitwidth"], "feature_var": 255.0, "input_min_value": a["clip_min_value"]}
        return self.quantised(x, f, self.layer, norm, made | {"sum": x, "kind": "other"})

    # --- files

    def file(self, tail: bool = True) -> onnx.ModelProto:
        graph = self.model.graph
        self.target = next(attributes(n)["target_device"] for n in graph.node if n.op_type == "NOp")
        inputs = []
        for value in graph.input:
            self.edges[value.name] = name = "input" if self.year == "2020" else self.fresh()
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[value.name]))
        if self.year != "2023" and any(attributes(n).get("op_target") == "output" for n in graph.node):
            self.add("Shape", inputs[0].name)  # which the code behind the network asks for
        ends: list[str] = []
        for node in graph.node:
            self.layer = (node.name.partition("/")[0]).partition("@")[0]
            made = self._node(node, ends)
            if isinstance(made, str):
                self.edges[node.output[0]] = made
        outputs = [self._behind(edge) if tail else edge for edge in ends]
        return self._model(inputs, outputs)

    def _node(self, node: onnx.NodeProto, ends: list[str]) -> str | None:
        a = attributes(node)
        if "gate_" in node.name or a.get("op_target", "").startswith("hswish"):
            raise NoSuchFile("Hswish")
        if node.op_type == "NOp":
            return self._marker(node, a, ends)
        if "param_str" in a and not node.op_type.endswith(("LSTMV2", "UntilFunction")):
            f = json.loads(a["param_str"])
            if self.year == "2023":
                return self.fused(node, f)
            rules = {"QuantizeShortcutInference": self.shortcut, "QuantizeBatchNormInference": self.batch_norm}
            return rules.get(node.op_type, self.parts)(node, f)
        if node.op_type == "QuantizeWeight":
            return self.weight(node.input[0], a["weight_bitwidth"], a["factor"], a["target_device"])
        if node.op_type == "QuantizeFeature":
            return self.lone_quantiser(node)
        if node.op_type == "BatchNormalization":
            a["momentum"] = 0.9
        if node.op_type == "Upsample":
            wide = self.target in ("T40", "T41", "A1", "X2500")
            signed = self.signed.get(node.input[0], False)
            if a["mode"] == "zero" and a.pop("fill_value") == 0.0 and wide and signed:
                raise NoSuchFile("an Unpool2D that is not told that it is quantised: the file does not say so")
            halves = [self.value([1.0, 1.0]), self.value(self.constants[node.input[1]][2:])]
            return str(self.add("Upsample", self.at(node.input[0]), self.add("Concat", *halves, axis=0), **a))
        made = self.add(node.op_type, *map(self.at, node.input), outputs=len(node.output), **a)
        if len(node.output) > 1:
            self.edges |= dict(zip(node.output, made, strict=True))
            return None
        return str(made)

    def _marker(self, node: onnx.NodeProto, a: dict[str, Any], ends: list[str]) -> str:
        x, given, target = self.at(node.input[0]), json.loads(a["op_attr"]), a["op_target"]
        if target == "preprocess_end" and self.year == "2021":
            return x
        if target == "output":
            number = f"index_{len(ends) + 1}"
            text = json.dumps({"op_type": "output", "attr": number})
            ends.append(str(self.add("NOp", x, op_target=target, op_attr=text, target_device=self.target)))
            return ends[-1]
        return self.marker(target, x, given["attr"], given["op_type"])

    def _behind(self, edge: str) -> str:
        """What the user's code computes from an output: no operator of the kit."""
        size = self.add("Gather", self.add("Shape", edge), self.value(0, np.int64), axis=0)
        rows = self.add("Unsqueeze", size, axes=[0])
        shape = self.add("Concat", rows, self.value([-1], np.int64), axis=0)
        flat = self.add("Reshape", edge, shape)
        grid = self.add("ATen", size, "", self.value(4, np.int64), operator="arange")
        return str(self.add("Mul", self.add("Exp", flat), grid))

    def _model(self, inputs: list[Any], outputs: list[str]) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in self.parameters.items()]
        if self.year == "2020":
            counts = [name[:-11] for name in self.parameters if name.endswith(".batch_norm.running_var")]
            tensors += [numpy_helper.from_array(np.int64(7), f"{name}num_batches_tracked") for name in counts]
        if self.year == "2021":
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
        ends = [helper.make_tensor_value_info(edge, TensorProto.FLOAT, None) for edge in outputs]
        graph = helper.make_graph(self.nodes, "torch-jit-export", inputs, ends, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], producer_name="pytorch")
        model.ir_version = 4 if self.year == "2020" else 6
        return model


def kit_file(model: onnx.ModelProto, year: str, anonymous: bool = False, tail: bool = True) -> onnx.ModelProto:
    """A file of the vendor's kit that holds the network of one of ours.

    Raises:
        NoSuchFile: that kit could not write it.
    """
    return Writer(model, year, anonymous).file(tail)
