"""The command line: the library's verbs, each with a YAML file and overrides."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from chipfit.errors import ChipfitError, ProofError, UnknownOptionError, UnsupportedError, nearest
from chipfit.version import __version__

DEMOS = ("wtm2101", "t40")


def demo(
    chip: str = "wtm2101",
    data: str = "digits",
    root: Path | None = None,
    out: Path = Path("out/demo"),
    seed: int = 0,
    epochs: tuple[int, int, int] | None = None,
    chips: int = 20,
    qat: Literal["auto", "always"] = "auto",
) -> None:
    """Train a small CNN on real handwritten digits for a chip, and show what survives.

    Args:
        chip: wtm2101 (float, PTQ, QAT, NAT) or t40 (float, 8 bit, 4 bit).
        data: digits (scikit-learn's 1,797 scans) or, for wtm2101, mnist (IDX files in --root).
        root: Folder of the four MNIST IDX files.
        out: Output folder; nothing is written elsewhere.
        seed: Seed of everything random.
        epochs: Epochs of the three stages; the recipe's own by default.
        chips: Simulated chips per noise level.
        qat: auto leaves quantisation-aware training out where calibration alone is good enough; always trains it.
    """
    known = {"wtm2101": "witmem_demo", "t40": "ingenic_demo"}
    if chip.lower() not in known:
        raise UnknownOptionError(
            "no demo for this chip", given=chip, allowed=", ".join(known), hint=nearest(chip, known)
        )
    # Imported here because lightning and scikit-learn take seconds, which --help should not cost.
    if chip.lower() == "wtm2101":
        from chipfit.recipe import witmem_demo

        witmem_demo.run(out, data=data, root=root, seed=seed, epochs=epochs, chips=chips, qat=qat)
    else:
        from chipfit.recipe import ingenic_demo

        if data != "digits":
            raise UnknownOptionError("the t40 demo has one data set", given=data, allowed="digits", where="--data")

        ingenic_demo.run(out, seed=seed, epochs=epochs)


def chips() -> None:
    """List the chips that chipfit knows."""
    from chipfit.chips.registry import known_chips

    table = Table("name", "chip", "activations", "weights", "source")
    for chip in known_chips().values():
        bits = (f"{min(widths)} to {max(widths)} bit" for widths in (chip.activation_bits, chip.weight_bits))
        table.add_row(chip.name, chip.title, *bits, chip.source)
    Console().print(table)


def verify(
    program: Path,
    model: str,
    weights: Path | None = None,
    data: Literal["digits", "mnist"] = "digits",
    root: Path | None = None,
    samples: int = 1000,
) -> None:
    """Prove that a network and its integer program give the same codes, layer by layer.

    Args:
        program: Folder that `save_program` or the demo wrote.
        model: What builds the network, as module:callable, for instance chipfit.recipe.witmem_demo:digits_cnn.
        weights: Its state as safetensors.
        data: Whose test images to compare on.
        root: Folder of the four MNIST IDX files.
        samples: Number of test images.
    """
    from chipfit.chips.modes import set_mode
    from chipfit.files import load_model
    from chipfit.integer import load_program
    from chipfit.integer import verify as compare

    net = _built(model)
    if weights is not None:
        load_model(weights, net)
    images = _test_images(data, root)[:samples]
    proof = compare(set_mode(net, "quant"), load_program(program), list(images.split(250)))
    Console().print(proof.table())
    if not proof:
        raise ProofError("the network and the program differ", given=str(proof.mismatch), where=str(program))


def check(model: str, shape: list[int], chip: str = "wtm2101") -> None:
    """Show what of a network maps to a chip, what does not, and what to do about it.

    Args:
        model: What builds the network, as module:callable without arguments.
        shape: Shape of an input, batch first, for instance [1, 3, 32, 32].
        chip: Short name of the chip.
    """
    import torch

    from chipfit.chips.registry import chip as known
    from chipfit.convert import check as checked

    report = checked(_built(model).eval(), known(chip), torch.rand(*shape))
    Console().print(report)
    if not report.ok:
        raise UnsupportedError("not all of the network maps to the chip", given=model, where=chip)


def search(
    model: str,
    budget: float,
    chip: str = "t40",
    weights: Path | None = None,
    cost: Literal["bytes", "mac_bits"] = "bytes",
    bits: list[int] = [2, 4, 8],  # noqa: B006  # jsonargparse shows it as the default and copies it
    feature_bits: int = 8,
    data: Literal["digits", "mnist"] = "digits",
    root: Path | None = None,
    samples: int = 256,
    out: Path = Path("out/search/bits.json"),
) -> None:
    """Choose how many bits the weight of each layer gets on an Ingenic chip, under a budget.

    Args:
        model: What builds the float network, as module:callable without arguments.
        budget: Most that the weights may cost; up to 1, a share of what they cost at the greatest width.
        chip: Short name of the chip.
        weights: Its trained state as safetensors.
        cost: bytes of weights, or mac_bits (multiply-accumulates of one input times bits).
        bits: Widths to choose from.
        feature_bits: Width of the features.
        data: Whose training images to calibrate and measure with.
        root: Folder of the four MNIST IDX files.
        samples: Number of them.
        out: JSON file with the widths, for chipfit.convert(weight_bits=).
    """
    from chipfit.chips.registry import chip as known
    from chipfit.files import load_model, write_json
    from chipfit.recipe.search import search_table
    from chipfit.recipe.search_plain import search_bits, weights_cost

    net = _built(model).eval()
    if weights is not None:
        load_model(weights, net)
    images = list(_images(data, root, training=True)[:samples].split(64))
    if budget <= 1:
        budget *= weights_cost(net, known(chip), images[0], cost, max(bits))
    found = search_bits(net, known(chip), images, budget, None, bits, cost=cost, feature_bits=feature_bits)
    Console().print(search_table(found))
    write_json(out, found.bits)
    print(out)


def certify(program: Path) -> None:
    """Show per layer how wide its accumulator can become, whether float32 is exact, G, and what saturates.

    Args:
        program: Folder that `save_program` or the demo wrote.
    """
    from chipfit.integer import certify as certified
    from chipfit.integer import load_program

    Console().print(certified(load_program(program)).table())


def export(
    program: Path,
    out: Path = Path("out/export"),
    formats: list[str] = ["onnx"],  # noqa: B006  # jsonargparse shows it as the default and copies it
    data: Literal["digits", "mnist"] = "digits",
    root: Path | None = None,
    samples: int = 100,
    model: str | None = None,
    weights: Path | None = None,
) -> None:
    """Write a program in formats that other tools read.

    Args:
        program: Folder that `save_program` or the demo wrote.
        out: Output folder; nothing is written elsewhere.
        formats: Any of onnx, golden, witin_mapper, mapping, magik, txx_deployed.
        data: Whose test images serve as samples for golden, witin_mapper and magik.
        root: Folder of the four MNIST IDX files.
        samples: Number of them.
        model: For magik, whose file holds float weights, what builds the network, as module:callable.
        weights: Its state as safetensors.
    """
    from chipfit.chips.modes import set_mode
    from chipfit.files import load_model
    from chipfit.integer import load_program

    given = _test_images(data, root)[:samples] if {"golden", "witin_mapper", "magik"} & set(formats) else None
    net = None if model is None else set_mode(_built(model), "quant").eval()
    if net is not None and weights is not None:
        load_model(weights, net)
    written = load_program(program).export(out, formats, samples=given, model=net)
    for folder in dict.fromkeys(path.parent for path in written):
        names = [path.name for path in written if path.parent == folder]
        print(folder / names[0] if len(names) == 1 else f"{folder}: {len(names)} files")


def _built(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # the user's module lies where the command is given
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UnknownOptionError(
            "cannot build the network", given=name, allowed="module:callable without arguments", hint=str(error)
        ) from error


def _test_images(data: str, root: Path | None) -> Any:
    return _images(data, root, training=False)


def _images(data: str, root: Path | None, training: bool) -> Any:
    from chipfit.recipe.data import digits, mnist

    if data == "mnist" and root is None:
        raise UnknownOptionError(
            "no folder given", given=data, where="--root", hint="Give the folder of the IDX files."
        )
    return (digits() if root is None else mnist(root))[0 if training else 1].tensors[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after `chipfit`; None takes those of the process.

    Returns:
        Exit status: 0, or 2 where something was wrong with what was given.
    """
    commands: dict[str, Any] = {
        "demo": demo,
        "chips": chips,
        "check": check,
        "search": search,
        "verify": verify,
        "certify": certify,
        "export": export,
    }
    try:
        auto_cli(commands, args=arguments, prog="chipfit", version=__version__)
    except ChipfitError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]: {error}", markup=True, highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
