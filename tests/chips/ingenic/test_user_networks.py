"""Whole networks written as users of the kit write them: trained, evaluated, lowered, proven and exported.

Each is written anew in the style of a kind of public project: a face detector, a detector built from a Darknet
configuration, a classifier, YOLOv5 from a table of layers, a residual network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chipfit.export import export_magik, read_magik
from chipfit.program import FastProgram, lower, verify
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops

# --- an SSD face detector: `Preprocess` built inside forward, depthwise blocks, heads of several scales


def block(inputs: int, outputs: int, stride: int, cfg: Any) -> nn.Sequential:
    common = {"enable_batch_norm": True, "enable_bias": False, **cfg.quant}
    return nn.Sequential(
        ops.DepthwiseConv2D(inputs, stride=stride, padding=1, activation_fn=ops.ReLU6(), **common),
        ops.Conv2D(inputs, outputs, kernel_h=1, kernel_w=1, activation_fn=ops.ReLU6(), **common),
    )


class FaceDetector(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg, self.math = cfg, math  # a Python module among the attributes
        q = cfg.quant
        self.stem = ops.Conv2D(3, 32, 2, padding=1, enable_batch_norm=True, first_layer=True, **q)
        self.stage1, self.stage2 = block(32, 64, 1, cfg), block(64, 64, 2, cfg)
        head = {**q, "last_layer": True, "activation_fn": None, "padding": 1}
        self.boxes = nn.ModuleList(ops.Conv2D(64, 2 * 4, **head) for _ in range(2))
        self.scores = nn.ModuleList(ops.Conv2D(64, 2 * 2, **head) for _ in range(2))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(ops.Preprocess(128.0, 128.0)(image))
        sources = []
        for stage in (self.stage1, self.stage2):
            x = stage(x)
            sources.append(x)
        boxes, scores = [], []
        for source, box, score in zip(sources, self.boxes, self.scores, strict=True):
            boxes.append(box(source).permute(0, 2, 3, 1).contiguous())
            scores.append(score(source).permute(0, 2, 3, 1).contiguous())
        boxes = torch.cat([b.view(b.size(0), -1) for b in boxes], 1)
        scores = torch.cat([s.view(s.size(0), -1) for s in scores], 1)
        return boxes.view(boxes.size(0), -1, 4), scores.view(scores.size(0), -1, 2)


# --- a detector built from a Darknet configuration: Route, Shortcut and Unpool of the layers before

DARKNET = """
[net]
channels=3
[convolutional]
filters=32
size=3
stride=1
activation=relu
[maxpool]
size=2
stride=2
[convolutional]
filters=32
size=3
stride=1
activation=relu
[shortcut]
from=-2
[convolutional]
filters=64
size=3
stride=2
activation=leaky
[convolutional]
filters=32
size=1
stride=1
activation=relu
[upsample]
stride=2
[route]
layers=-1,3
[convolutional]
filters=18
size=1
stride=1
activation=linear
[yolo]
anchors=3
"""


def parsed(text: str) -> list[dict[str, Any]]:
    defs: list[dict[str, Any]] = []
    for line in filter(None, text.split("\n")):
        if line.startswith("["):
            defs.append({"type": line[1:-1]})
        else:
            key, value = line.split("=")
            defs[-1][key] = value
    return defs


class Yolo(nn.Module):
    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.na = anchors

    def forward(self, p: Tensor) -> Tensor:
        bs, channels, ny, nx = p.shape
        return p.view(bs, self.na, channels // self.na, ny, nx).permute(0, 1, 3, 4, 2)


class Darknet(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.module_defs = parsed(DARKNET)
        self.hyperparams = self.module_defs.pop(0)
        self.cfg = cfg
        self.module_list = self.made(cfg)

    def made(self, cfg: Any) -> nn.ModuleList:
        q, target = cfg.quant, cfg.quant["target_device"]
        filters, modules = [int(self.hyperparams["channels"])], nn.ModuleList()
        for i, mdef in enumerate(self.module_defs):
            inputs = outputs = filters[-1]
            if mdef["type"] == "convolutional":
                outputs, size = int(mdef["filters"]), int(mdef["size"])
                last = mdef["activation"] == "linear"
                act = ops.LeakyReLU(0.1, target_device=target) if mdef["activation"] == "leaky" else None
                module: nn.Module = ops.Conv2D(
                    inputs, outputs, stride=int(mdef["stride"]), kernel_h=size, kernel_w=size, padding=size // 2,
                    activation_fn=act, enable_batch_norm=not last, first_layer=i == 0, last_layer=last, **q,
                )  # fmt: skip
            elif mdef["type"] == "maxpool":
                module = ops.Maxpool2D(int(mdef["size"]), int(mdef["size"]), int(mdef["stride"]))
            elif mdef["type"] == "upsample":
                module = ops.Unpool2D(2, 2, mode="zero", quantize=q["quantize"], target_device=target)
            elif mdef["type"] == "route":
                outputs = sum(filters[1:][int(n)] for n in mdef["layers"].split(","))
                module = ops.Route()
            elif mdef["type"] == "shortcut":
                common = {k: v for k, v in q.items() if k not in ("weight_bitwidth", "auto_bitwidth")}
                module = ops.Shortcut(outputs, clip_max_value=2.0, **common)
            else:
                module = Yolo(int(mdef["anchors"]))
            modules.append(module)
            filters.append(outputs)
        return modules

    def forward(self, image: Tensor) -> Tensor:
        x = ops.Preprocess(0, 255.0)(image)
        outputs: list[Any] = []
        for mdef, module in zip(self.module_defs, self.module_list, strict=True):
            if mdef["type"] == "route":
                x = module([outputs[int(n)] for n in mdef["layers"].split(",")])
            elif mdef["type"] == "shortcut":
                x = module([outputs[-1], outputs[int(mdef["from"])]])
            else:
                x = module(x)
            outputs.append(x)
        return x


# --- a MobileNet classifier


class MobileNet(nn.Module):
    layers = ((32, 64, 1), (64, 64, 2), (64, 128, 1))

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        q = cfg.quant
        target = q["target_device"]
        self.preprocess = ops.Preprocess(0, 255.0, target_device=target)
        self.conv = ops.Conv2D(3, 32, 2, padding=1, enable_batch_norm=True, first_layer=1, **q)
        self.features = nn.Sequential(*(block(*layer, cfg) for layer in self.layers))
        bits = {"input_bitwidth": q["input_bitwidth"], "output_bitwidth": q["output_bitwidth"]}
        self.pool = ops.AdaptiveAvgpool2D(128, keepdim=True, quantize=q["quantize"], **bits)
        self.flatten = ops.Flatten([-1, 128])
        self.classifier = ops.FullConnected(128, 10, activation_fn=None, last_layer=1, **q)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3 and x.dim() == 4
        x = self.features(self.conv(self.preprocess(x)))
        out: Tensor = self.classifier(self.flatten(self.pool(x)))
        return out


# --- YOLOv5 from a table of layers: focus, 8-bit ends, C3, SPP, Unpool and Route


class Conv(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, cfg: Any = None, ends: bool = False) -> None:
        super().__init__()
        q = {**cfg.quant, "weight_bitwidth": 8} if ends and cfg.quant["quantize"] else cfg.quant
        self.conv = ops.Conv2D(
            c1, c2, s, k, k, activation_fn=None if q["quantize"] else ops.ReLU6(), enable_batch_norm=True,
            enable_bias=False, padding=k // 2, first_layer=ends, is_focus=ends, **q,
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return self.conv(x)


class Bottleneck(nn.Module):
    def __init__(self, c: int, cfg: Any) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(c, c, 1, cfg=cfg), Conv(c, c, 3, cfg=cfg), True
        common = {k: v for k, v in cfg.quant.items() if k not in ("weight_bitwidth", "auto_bitwidth")}
        self.shortcut = ops.Shortcut(c, **common)

    def forward(self, x: Any) -> Any:
        return self.shortcut([x, self.cv2(self.cv1(x))]) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    def __init__(self, c1: int, c2: int, cfg: Any) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = (Conv(a, c2, cfg=cfg) for a in (c1, c1, 2 * c2))
        self.m = nn.Sequential(*(Bottleneck(c2, cfg) for _ in range(2)))

    def forward(self, x: Any) -> Any:
        return self.cv3(ops.Route()([self.m(self.cv1(x)), self.cv2(x)]))


class SPP(nn.Module):
    def __init__(self, c1: int, c2: int, cfg: Any) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c2, cfg=cfg), Conv(3 * c2, c2, cfg=cfg)
        self.m = nn.ModuleList(ops.Maxpool2D(k, k, 1, 1) for k in (3, 5))
        self.cat = ops.Route()

    def forward(self, x: Any) -> Any:
        x = self.cv1(x)
        return self.cv2(self.cat([x, *(m(x) for m in self.m)]))


class Detect(nn.Module):
    stride = None

    def __init__(self, nc: int, ch: list[int], cfg: Any) -> None:
        super().__init__()
        self.nc, self.no, self.na = nc, nc + 5, 3
        q = {**cfg.quant, "weight_bitwidth": 8} if cfg.quant["quantize"] else cfg.quant
        self.m = nn.ModuleList(ops.Conv2D(c, 18, 1, 1, 1, None, last_layer=True, **q) for c in ch)

    def forward(self, x: list[Any]) -> list[Tensor]:
        out = []
        for head, feature in zip(self.m, x, strict=True):
            y = head(feature)
            bs, _, ny, nx = y.shape
            out.append(y.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous())
        return out


class YoloV5(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        target, q = cfg.quant["target_device"], cfg.quant["quantize"]
        table: list[tuple[Any, nn.Module]] = [
            (-1, ops.Preprocess(0, 255.0, target)),
            (-1, Conv(12, 32, 3, cfg=cfg, ends=True)),
            (-1, Conv(32, 64, 3, 2, cfg=cfg)),
            (-1, C3(64, 64, cfg)),
            (-1, Conv(64, 64, 3, 2, cfg=cfg)),
            (-1, SPP(64, 64, cfg)),
            (-1, ops.Unpool2D(2, 2, mode="nearest", quantize=q)),
            ([-1, 3], ops.Route()),
            (-1, Conv(128, 64, cfg=cfg)),
            ([8, 5], Detect(1, [64, 64], cfg)),
        ]
        for i, (f, m) in enumerate(table):
            m.i, m.f, m.type = i, f, type(m).__name__
        self.model = nn.Sequential(*(m for _, m in table))
        self.save = sorted({j for f, _ in table if isinstance(f, list) for j in f if j != -1})

    def forward(self, x: Any, augment: bool = False, profile: bool = False) -> list[Tensor]:
        y: list[Any] = []
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            x = m(x)
            y.append(x if m.i in self.save else None)
        return x


# --- a residual network with torch's own ReLU


class BasicBlock(nn.Module):
    def __init__(self, c1: int, c2: int, stride: int, cfg: Any) -> None:
        super().__init__()
        q = {"enable_batch_norm": True, "enable_bias": False, **cfg.quant}
        self.conv1 = ops.Conv2D(c1, c2, stride, padding=1, activation_fn=nn.ReLU(inplace=True), **q)
        self.conv2 = ops.Conv2D(c2, c2, padding=1, activation_fn=nn.ReLU(inplace=True), **q)
        self.downsample = None
        if stride != 1 or c1 != c2:
            self.downsample = ops.Conv2D(c1, c2, stride, 1, 1, activation_fn=nn.ReLU(inplace=True), **q)
        common = {k: v for k, v in cfg.quant.items() if k not in ("weight_bitwidth", "auto_bitwidth")}
        self.add = ops.Shortcut(c2, activation_fn=nn.ReLU(inplace=True), **common)

    def forward(self, x: Any) -> Any:
        identity = x if self.downsample is None else self.downsample(x)
        return self.add([self.conv2(self.conv1(x)), identity])


class ResNet(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.config = cfg
        q = cfg.quant
        self.conv1 = ops.Conv2D(3, 32, padding=1, activation_fn=nn.ReLU(), first_layer=True, **q)
        self.maxpool = ops.Maxpool2D()
        self.layers = nn.Sequential(BasicBlock(32, 32, 1, cfg), BasicBlock(32, 64, 2, cfg))
        bits = {"input_bitwidth": q["input_bitwidth"], "output_bitwidth": q["output_bitwidth"]}
        self.avgpool = ops.AdaptiveAvgpool2D(64, keepdim=False, quantize=q["quantize"], **bits)
        self.fc = ops.FullConnected(64, 10, None, last_layer=True, **q)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(ops.Preprocess()(x)))
        out: Tensor = self.fc(self.avgpool(self.layers(x)))
        return out


# --- what each goes through


def config(target: str, bits: int, quantize: Any) -> SimpleNamespace:
    quant: dict[str, Any] = {"quantize": quantize if bits < 32 else False, "target_device": target}
    quant |= {"weight_bitwidth": bits, "input_bitwidth": bits, "output_bitwidth": bits, "auto_bitwidth": False}
    return SimpleNamespace(quant=quant, math=math)


def images(count: int, mean: int, seed: int) -> Tensor:
    codes = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return codes / 255 if mean == 0 else (codes - mean) / 128


def outputs_of(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


NETWORKS: list[tuple[Callable[[Any], nn.Module], str, int, Any, int]] = [
    (FaceDetector, "T40", 8, True, 128),
    (FaceDetector, "Txx", 8, True, 128),
    (Darknet, "T40", 8, True, 0),
    (Darknet, "T41", 4, True, 0),
    (MobileNet, "Txx", 8, 1, 0),
    (MobileNet, "T40", 4, 1, 0),
    (YoloV5, "T40", 4, True, 0),
    (YoloV5, "Xs2", 8, True, 0),
    (ResNet, "Txx", 8, True, 0),
    (ResNet, "A1", 8, True, 0),
]


@pytest.mark.parametrize(("network", "target", "bits", "quantize", "mean"), NETWORKS)
@pytest.mark.filterwarnings("error::chipfit.errors.ChipfitWarning")
def test_from_training_to_the_file(
    network: Callable[[Any], nn.Module], target: str, bits: int, quantize: Any, mean: int, tmp_path: Path
) -> None:
    """The vendor's way: float first, its state into the quantised network, trained on, lowered, proven, exported."""
    floating, net = network(config(target, 32, quantize)), network(config(target, bits, quantize))
    for model in (floating, net):
        model.load_state_dict(floating.state_dict())
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
        for step in range(2):
            loss = sum(y.square().mean() for y in outputs_of(model(images(4, mean, step))))
            optimiser.zero_grad()
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            optimiser.step()
    net.eval()
    example = images(4, mean, 9)
    want = outputs_of(net(example))
    assert all(y.isfinite().all() and y.unique().numel() > 2 for y in want)
    program = lower(net, example)
    assert program.chip == target.lower()
    proof = verify(net, program, [images(3, mean, 10), images(5, mean, 11)])
    assert proof.equal, str(proof)
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(FastProgram(program)(example)), want, strict=True))
    again = read_magik(export_magik(net, example, tmp_path / "net.onnx"))
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(again.eval()(example)), want, strict=True))
