"""The commands. What they compute with is imported when they run, so that `--help` does not wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from chipfit.cli.given import images, network, numbers, output_file, output_folder, range_of, words
from chipfit.errors import InvalidValueError, ProofError, UnsupportedError

Data = Literal["digits", "mnist"]


def demo(
    chip: str | None = None,
    data: Data = "digits",
    root: Path | None = None,
    out: Path = Path("out/demo"),
    seed: int = 0,
    epochs: tuple[int, int, int] | None = None,
    chips: int = 20,
    qat: Literal["auto", "always"] = "auto",
    overwrite: bool = False,
) -> None:
    """Train a small CNN on real handwritten digits for a chip, and show what survives.

    Args:
        chip: Short name of a chip that has a demo, by default the WTM2101; the stages of training are the chip's own.
        data: digits (scikit-learn's 1,797 scans) or mnist (IDX files in --root), where the demo has it.
        root: Folder of the four MNIST IDX files.
        out: Output folder; nothing is written elsewhere.
        seed: Seed of everything random.
        epochs: Epochs of the three stages; the recipe's own by default.
        chips: Simulated chips per noise level, where there is noise.
        qat: auto leaves quantisation-aware training out where calibration alone is good enough; always trains it.
        overwrite: Write into a folder that holds files which chipfit did not write; those of other names stay.
    """
    from chipfit.fit.demo import run_demo
    from chipfit.vendor import default_chip

    name = chip or default_chip().name
    run_demo(name, output_folder(out, overwrite), data=data, root=root, seed=seed, epochs=epochs, chips=chips, qat=qat)


def chips() -> None:
    """List the chips that chipfit knows."""
    from rich.console import Console
    from rich.table import Table

    from chipfit.vendor import known_chips

    table = Table("name", "chip", "activations", "weights", "source")
    for chip in known_chips().values():
        bits = (f"{min(widths)} to {max(widths)} bit" for widths in (chip.activation_bits, chip.weight_bits))
        table.add_row(chip.name, chip.title, *bits, chip.source)
    Console().print(table)


def verify_program(
    program: Path,
    model: str | None = None,
    weights: Path | None = None,
    data: Data = "digits",
    root: Path | None = None,
    samples: int = 1000,
    engine: str | None = None,
    cc: str | None = None,
    runner: str | None = None,
) -> None:
    """Prove that a network, its integer program and what the program runs on give the same codes.

    Args:
        program: Folder that `save_program` or the demo wrote.
        model: What builds the network, as module:callable or file.py:callable, or model.onnx; needed unless there is
            an engine.
        weights: Its state as safetensors.
        data: Whose test images to compare on.
        root: Folder of the four MNIST IDX files.
        samples: Number of test images.
        engine: What else the program runs on, separated by commas: c (the exported C, compiled), onnxruntime. Without
            a model, on random and extreme codes.
        cc: The C compiler, by default cc.
        runner: What runs its programs, for instance 'qemu-riscv64 -L /usr/riscv64-linux-gnu'.
    """
    import torch
    from rich.console import Console

    import chipfit
    from chipfit.files import load_model

    loaded = chipfit.load_program(program)
    engines = [] if engine is None else engine.split(",")
    options = {name: value for name, value in (("cc", cc), ("runner", runner)) if value is not None}
    if model is None:
        proof = chipfit.verify(None, loaded, None, engines, **options)
    else:
        net = network(model)
        if weights is not None:
            load_model(weights, net)
        given = [*torch.split(images(data, root)[:samples], 250)]
        proof = chipfit.verify(chipfit.set_mode(net, "quant"), loaded, given, engines, **options)
    Console().print(proof.table())
    if not proof:
        first = proof.mismatch or next(result.mismatch for result in proof.engines if result.mismatch)
        raise ProofError("the network and the program differ", given=str(first), where=str(program))


def check_network(
    model: str, shape: str | list[int], chip: str | None = None, input_range: str | list[float] | None = None
) -> None:
    """Show what of a network maps to a chip, what does not, and what to do about it.

    Args:
        model: What builds the network, as module:callable or file.py:callable, or model.onnx.
        shape: Shape of an input, batch first, for instance 1,3,32,32.
        chip: Short name of the chip, by default the WTM2101.
        input_range: Smallest and largest value of an input, for instance -1,1; by default 0 to 1.
    """
    import torch
    from rich.console import Console

    import chipfit
    from chipfit.vendor import default_chip

    sizes = numbers(shape, "--shape")
    if not sizes or min(sizes) < 1:
        raise InvalidValueError("no shape of an input", given=shape, allowed="1,3,32,32", where="--shape")
    known = default_chip() if chip is None else chipfit.chip(chip)
    low, high = range_of(input_range, "--input-range")
    example = torch.rand(*sizes) * (high - low) + low
    report = chipfit.check(network(model).eval(), known, example, input_range=(low, high))
    Console().print(report)
    if not report.ok:
        raise UnsupportedError("not all of the network maps to the chip", given=model, where=known.name)


def search_widths(
    model: str,
    budget: float,
    chip: str | None = None,
    weights: Path | None = None,
    cost: Literal["bytes", "mac_bits"] = "bytes",
    bits: str | list[int] = "2,4,8",
    feature_bits: int = 8,
    data: Data = "digits",
    root: Path | None = None,
    samples: int = 256,
    out: Path = Path("out/search/bits.json"),
    overwrite: bool = False,
) -> None:
    """Choose how many bits the weight of each layer gets, on a chip that has several widths, under a budget.

    Args:
        model: What builds the float network, as module:callable or file.py:callable, or model.onnx.
        budget: Most that the weights may cost; up to 1, a share of what they cost at the greatest width.
        chip: Short name of the chip, by default the T40.
        weights: Its trained state as safetensors.
        cost: bytes of weights, or mac_bits (multiply-accumulates of one input times bits).
        bits: Widths to choose from.
        feature_bits: Width of the features.
        data: Whose training images to calibrate and measure with.
        root: Folder of the four MNIST IDX files.
        samples: Number of them.
        out: JSON file with the widths, for chipfit.convert(weight_bits=).
        overwrite: Replace the file where it exists.
    """
    import torch
    from rich.console import Console

    import chipfit
    from chipfit.files import load_model, write_json
    from chipfit.fit.search_plain import weights_cost
    from chipfit.vendor import default_chip

    output_file(out, overwrite)
    widths, net = numbers(bits, "--bits"), network(model).eval()
    known = default_chip(several_widths=True) if chip is None else chipfit.chip(chip)
    if weights is not None:
        load_model(weights, net)
    given = [*torch.split(images(data, root, training=True)[:samples], 64)]
    if budget <= 1:
        budget *= weights_cost(net, known, given[0], cost, max(widths))
    found = chipfit.search_bits(net, known, given, budget, None, widths, cost=cost, feature_bits=feature_bits)
    Console().print(chipfit.search_table(found))
    write_json(out, found.bits)
    print(out)


def certify_program(program: Path) -> None:
    """Show per layer how wide its accumulator can become, whether float32 is exact, and what saturates.

    Args:
        program: Folder that `save_program` or the demo wrote.
    """
    from rich.console import Console

    import chipfit

    Console().print(chipfit.certify(chipfit.load_program(program)).table())


def export_program(
    program: Path,
    out: Path = Path("out/export"),
    formats: str | list[str] = "onnx",
    data: Data = "digits",
    root: Path | None = None,
    samples: int = 100,
    model: str | None = None,
    weights: Path | None = None,
    options: dict[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a program in formats that other tools read.

    Args:
        program: Folder that `save_program` or the demo wrote.
        out: Output folder; nothing is written elsewhere.
        formats: onnx, golden and those of the program's chip, for instance onnx,golden; docs/export.md lists them.
        data: Whose test images serve as samples for the formats that need some.
        root: Folder of the four MNIST IDX files.
        samples: Number of them.
        model: For formats that need the network, what builds it, as module:callable or file.py:callable, or model.onnx.
        weights: Its state as safetensors.
        options: Options of single formats.
        overwrite: Write into a folder that holds files which chipfit did not write; those of other names stay.
    """
    import chipfit
    from chipfit.export import known_formats
    from chipfit.files import load_model

    chosen, loaded, known = words(formats), chipfit.load_program(program), known_formats()
    wanted = {need for name in chosen if name in known for need in known[name].needs}
    given = images(data, root)[:samples] if wanted else None
    net = None if model is None else chipfit.set_mode(network(model), "quant").eval()
    if net is not None and weights is not None:
        load_model(weights, net)
    output_folder(out, overwrite)
    written = chipfit.export(loaded, out, chosen, samples=given, model=net, **(options or {}))
    for folder in dict.fromkeys(path.parent for path in written):
        names = [path.name for path in written if path.parent == folder]
        print(folder / names[0] if len(names) == 1 else f"{folder}: {len(names)} files")
