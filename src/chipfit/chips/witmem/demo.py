"""The main job on real data: digits, float -> PTQ -> QAT -> NAT, for the WTM2101 (manual section 2.7)."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from chipfit.chips.witmem.array.conv import WitinConv2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.chaining import chain_scales
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.layer_report import layer_reports, layer_table
from chipfit.engines.verifying import compiled_line
from chipfit.errors import InvalidValueError
from chipfit.files import save_model, write_json, write_text
from chipfit.fit.calibrate import calibrate
from chipfit.fit.data import digits, mnist, shift_by_a_pixel
from chipfit.fit.evaluate import Evaluation, evaluate
from chipfit.fit.running import one_thread, progress_bar
from chipfit.fit.tables import matrix_table, picture
from chipfit.fit.train import Stage, fit
from chipfit.folders import replacing_folder
from chipfit.modes import set_mode
from chipfit.program import Program, Proof, lower, save_program, verify

W_CLIP = 0.5  # a power of two, so that weights trained inside it fill all 256 codes at scale 256
LEVELS = (4, 9)
CHIPS = 20
GOOD_ENOUGH = 0.001  # PTQ may lose this share of the test samples before QAT is worth its time


def cnn(image_size: int) -> nn.Sequential:
    """A small CNN, 16-32-64 channels, whose layers all run on the array.

    The convolutions take 9 bits: with inputs above zero a signed 9-bit code is the array's unsigned 8-bit code.

    Args:
        image_size: Height and width of the images.
    """

    def config(**options: Any) -> WitinLayerConfig:
        # the silicon's rounding, where the vendor's library trains half to even
        return WitinLayerConfig(G_algo=1, w_clip=W_CLIP, rounding="wtm2101", **options)

    def block(inputs: int, outputs: int, pool: bool) -> list[nn.Module]:
        conv = WitinConv2d(inputs, outputs, 3, padding=1, layer_config=config(x_quant_bits=9))
        return [conv, nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]

    pool_first = image_size > 16
    side = image_size // (8 if pool_first else 4)
    blocks = [*block(1, 16, pool_first), *block(16, 32, True), *block(32, 64, True)]
    return nn.Sequential(*blocks, nn.Flatten(), WitinLinear(64 * side * side, 10, layer_config=config()))


def digits_cnn() -> nn.Sequential:
    """The demo's network for scikit-learn's digits."""
    return cnn(8)


def mnist_cnn() -> nn.Sequential:
    """The demo's network for MNIST."""
    return cnn(28)


def run(
    out: Path,
    *,
    data: str = "digits",
    root: Path | None = None,
    seed: int = 0,
    epochs: tuple[int, int, int] | None = None,
    chips: int = CHIPS,
    qat: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train float, QAT and NAT, print the matrix and the layers, save the three networks and all figures.

    Args:
        out: Output folder: float.safetensors, qat.safetensors, nat.safetensors, program/, figures.json, tables.svg.
        data: 'digits' (scikit-learn) or 'mnist' (IDX files in `root`).
        root: Folder of the MNIST files.
        seed: Seed of the split, the initial weights and the training.
        epochs: Epochs of the float, QAT and NAT stage; None for the recipe's own.
        chips: Simulated chips per noise level.
        qat: 'auto' leaves QAT out where calibration alone loses at most 0.1 points; 'always' trains it.
        console: Where to print.

    Returns:
        The figures, as saved in figures.json.

    Raises:
        InvalidValueError: unknown `data`, or 'mnist' without `root`.
    """
    console = console or Console()
    started = time.perf_counter()
    lightning.seed_everything(seed, verbose=False)
    if data == "digits":
        (train, test), net, plan, batch = digits(seed), digits_cnn(), epochs or (60, 15, 80), 64
    elif data == "mnist" and root is not None:
        (train, test), net, plan, batch = mnist(root), mnist_cnn(), epochs or (3, 1, 4), 128
    else:
        raise InvalidValueError(
            "unknown data, or no folder given for it",
            given=data if data != "mnist" else f"mnist, root={root}",
            allowed="digits; mnist with a root",
            where="demo",
            hint="For MNIST give --root, the folder of its four IDX files.",
        )
    stages = (
        Stage("float", "float", plan[0], 4e-3),
        Stage("QAT", "quant", plan[1], 1e-3),
        Stage("NAT", "nat", plan[2], 2e-3, level=6, ramp=0.5),
    )
    loader = DataLoader(train, batch, shuffle=True)
    test_loader = DataLoader(test, 1000)
    console.print(f"[bold]{data}[/]: {len(train):,} training and {len(test):,} test images, WTM2101, seed {seed}")
    with progress_bar(console) as bar, one_thread(data == "digits"):
        total = sum(plan) + 3 * (2 + chips * len(LEVELS))
        task = bar.add_task("float", total=total)
        results = _train_all(net, stages, loader, test_loader, chips, bar, task, qat == "auto")
        bar.update(task, description="done", completed=total)
    rows = {name: row for name, (_, row) in results["rows"].items()}
    nat = results["rows"]["NAT"][0]
    reports = layer_reports(nat, test_loader)
    program, proof = _proven(nat, test)
    tables = matrix_table(rows, results["notes"]), layer_table(reports)
    console.print(*tables, sep="\n")
    console.print(f"Integer program against the trained network: {proof}")
    figures = {
        "data": data,
        "seed": seed,
        "epochs": list(plan),
        "seconds": round(time.perf_counter() - started, 1),
        "qat": results["notes"].get("QAT", "trained"),
        "matrix": {name: row.as_dict() for name, row in rows.items()},
        "layers": [asdict(report) for report in reports],
        "proof": {"equal": proof.equal, "samples": proof.samples, "codes": proof.codes},
    }
    with replacing_folder(out) as temporary:
        for name, (model, _) in results["rows"].items():
            save_model(temporary / f"{name.lower()}.safetensors", model)
        write_json(temporary / "figures.json", figures)
        save_program(temporary / "program", program)
        write_text(temporary / "tables.svg", picture(*tables, title=f"chipfit demo: {data}, WTM2101, seed {seed}"))
    console.print(f"{figures['seconds']:.0f} s; three networks, the program, figures.json and tables.svg in {out}")
    console.print(compiled_line(program, [next(iter(test_loader))]))
    return figures


def _train_all(
    net: nn.Module,
    stages: tuple[Stage, Stage, Stage],
    loader: DataLoader[Any],
    test_loader: DataLoader[Any],
    chips: int,
    bar: Progress,
    task: Any,
    may_skip_qat: bool,
) -> dict[str, Any]:
    """Each stage starts from the one before; QAT is left out where calibration alone is good enough."""

    def tick() -> None:
        bar.advance(task)

    def row(name: str) -> tuple[nn.Module, Evaluation]:
        bar.update(task, description=f"evaluate {name}")
        return copy.deepcopy(net), evaluate(net, test_loader, chips=chips, level=LEVELS, progress=tick)

    notes: dict[str, str] = {}
    rows: dict[str, tuple[nn.Module, Evaluation]] = {}
    bar.update(task, description="train float")
    fit(net, loader, stages[0], augment=shift_by_a_pixel, progress=tick)
    calibrate(net, loader, batches=20)
    chain_scales(net, next(iter(test_loader))[0][:1])
    rows["float"] = row("float")
    lost = rows["float"][1].in_float.metric - rows["float"][1].quantised.metric
    if may_skip_qat and lost <= GOOD_ENOUGH:
        notes["QAT"] = f"skipped: PTQ loses {100 * max(lost, 0.0):.2f} points"
        set_mode(net, "quant")
        rows["QAT"] = (copy.deepcopy(net), rows["float"][1])
        bar.advance(task, stages[1].epochs + 2 + chips * len(LEVELS))
    else:
        bar.update(task, description="train QAT")
        fit(net, loader, stages[1], augment=shift_by_a_pixel, progress=tick)
        rows["QAT"] = row("QAT")
    bar.update(task, description="train NAT")
    fit(net, loader, stages[2], augment=shift_by_a_pixel, progress=tick)
    rows["NAT"] = row("NAT")
    return {"rows": rows, "notes": notes}


def _proven(net: nn.Module, test: TensorDataset) -> tuple[Program, Proof]:
    """The trained network as an integer program, compared with it over the first 1,000 test images."""
    images = test.tensors[0][:1000]
    program = lower(net, images[:1])
    return program, verify(net, program, [images[i : i + 250] for i in range(0, len(images), 250)])
