"""What every chip has to pass, in stages from `check` to files: a vendor's test file fills in one class.

    class TestMyChip(Battery):
        chip = "mychip"
        networks = (Plain(Residual, (3, 16, 16), floor=25.0),)
        cases, mutants = CASES, MUTANTS

A vendor whose mutants have a file of their own takes `Stages` there and `Mutants` here.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.support.mutants import Case, Mutant, check_case, check_mutant, same_program
from tests.support.networks import lively
from tests.support.programs import run_at_every_level
from torch import Tensor, nn

import chipfit
from chipfit.errors import CalibrationError, ChipfitError, UnknownOptionError, UnsupportedError
from chipfit.export.golden import verify_golden
from chipfit.modes import chip_layers
from chipfit.program import Program
from chipfit.vendor import vendor_of

ROOT = Path(__file__).parents[2]
TRAINED_FOR = 12


@dataclass(frozen=True)
class Plain:
    """A plain network for the battery.

    Args:
        build: Makes it; a class or function that another process can import.
        shape: Of one sample.
        floor: Least signal to quantisation-noise ratio of its worst layer after calibration, in dB.
        steps: Samples are multiples of its inverse, where the chip reads images; 0 for real numbers.
        options: Of `convert`.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    floor: float
    steps: int = 0
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def data(self, count: int, seed: int = 0, size: float = 1.0) -> Tensor:
        """Samples."""
        generator = torch.Generator().manual_seed(seed)
        if self.steps:
            return torch.randint(self.steps + 1, (count, *self.shape), generator=generator) / self.steps
        return size * torch.randn(count, *self.shape, generator=generator)

    def network(self) -> nn.Module:
        """The network, in evaluation; the same at each call."""
        torch.manual_seed(0)
        return lively(self.build())


class Stage:
    """A network of the battery on a chip. What a stage makes is not changed by the tests: they take copies."""

    def __init__(self, chip: str, plain: Plain) -> None:
        self.chip, self.plain = chip, plain
        self.x = plain.data(16)

    def converted(self) -> nn.Module:
        """The network with the chip's layers, in float."""
        return chipfit.convert(self.plain.network(), self.chip, self.x[:2], **self.plain.options)

    def loaded(self, state: Mapping[str, Tensor], choices: list[Any]) -> nn.Module:
        """A network converted anew with a calibrated one's state; its choices too, where the chip needs them."""
        net = self.converted()
        net.load_state_dict(state)
        if getattr(vendor_of(self.chip).fitting, "restore", None) is not None:
            chipfit.restore(net, choices)
        return chipfit.set_mode(net, "quant")

    @functools.cached_property
    def calibrated(self) -> nn.Module:
        """In mode 'quant'."""
        net = self.converted()
        self.choices = chipfit.calibrate(net, [self.x])
        return chipfit.set_mode(net, "quant")

    @functools.cached_property
    def program(self) -> Program:
        """What it is lowered to."""
        return chipfit.lower(self.calibrated, self.x[:1])

    @functools.cached_property
    def quality(self) -> list[Any]:
        """Each layer against float."""
        return chipfit.layer_quality(self.calibrated, [self.x])


_stage = functools.cache(Stage)


@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
class Stages:
    """The stages that a plain network goes through on a chip.

    Attributes:
        chip: The chip's name.
        networks: Plain networks.
        noise: Whether the chip is analog.
    """

    chip: ClassVar[str]
    networks: ClassVar[tuple[Plain, ...]]
    noise: ClassVar[bool] = False

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test a network, a case and a mutant."""
        kind = metafunc.cls
        if "stage" in metafunc.fixturenames:
            names = [plain.build.__name__ for plain in kind.networks]
            metafunc.parametrize("stage", [_stage(kind.chip, p) for p in kind.networks], ids=names)
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", kind.cases)
        if "mutant" in metafunc.fixturenames:
            metafunc.parametrize("mutant", kind.mutants, ids=str)

    def test_what_check_finds_good_is_converted_and_equal_in_float(self, stage: Stage) -> None:
        plain = stage.plain.network()
        report = chipfit.check(plain, self.chip, stage.x[:2])
        assert report.ok, str(report)
        net = chipfit.convert(plain, self.chip, stage.x[:2], strict=True, **stage.plain.options)
        assert vendor_of(net) is vendor_of(self.chip)
        torch.testing.assert_close(net(stage.x), plain(stage.x), rtol=1e-5, atol=1e-5)
        assert net.meta["on_cpu"] == {}

    def test_calibration_keeps_float_and_quantises_well(self, stage: Stage) -> None:
        assert stage.calibrated is not None
        assert all(choice.scale > 0 and choice.sqnr_db > 0 for choice in stage.choices)
        assert stage.quality[0].sqnr_db > stage.plain.floor, stage.quality
        back = chipfit.set_mode(copy.deepcopy(stage.calibrated), "float")
        torch.testing.assert_close(back(stage.x), stage.plain.network()(stage.x), rtol=1e-4, atol=1e-5)

    def test_equalisation_keeps_float(self, stage: Stage) -> None:
        net = stage.converted()
        before = net(stage.x)
        assert all(pair.spread_after >= 1 for pair in chipfit.equalise(net))
        torch.testing.assert_close(net(stage.x), before, rtol=1e-3, atol=1e-4)

    def test_biases_are_corrected(self, stage: Stage) -> None:
        done = chipfit.correct_bias(copy.deepcopy(stage.calibrated), [stage.x])
        assert done and all(entry.left <= entry.shift * (1 + 1e-6) for entry in done)

    def test_training_on_the_chips_arithmetic_learns(self, stage: Stage) -> None:
        net = copy.deepcopy(stage.calibrated).train()
        optimiser = torch.optim.Adam(net.parameters(), 2e-3)
        outputs = net(stage.x).flatten(1).shape[1]
        target = torch.arange(len(stage.x)) % outputs

        def loss() -> Tensor:
            return F.cross_entropy(net(stage.x).flatten(1), target)

        first = loss()
        first.backward()
        grown = {n for n, p in net.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert {
            n for n, p in net.named_parameters() if n.endswith("weight") and p.dim() > 1 and p.requires_grad
        } <= grown
        for _ in range(TRAINED_FOR):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
        assert loss() < first
        net.eval()
        proof = chipfit.verify(net, chipfit.lower(net, stage.x[:1]), [stage.x])
        assert proof.equal, str(proof)

    def test_every_code_is_equal(self, stage: Stage) -> None:
        batches = [stage.x, stage.plain.data(8, seed=1), stage.plain.data(8, seed=2, size=8.0), stage.x[:1] * 0]
        proof = chipfit.verify(stage.calibrated, stage.program, batches)
        assert proof.equal, str(proof)
        assert proof.samples == 33 and all(proof.codes.values())
        assert stage.program.chip == self.chip

    def test_the_certificate_has_the_layers(self, stage: Stage) -> None:
        rows = chipfit.certify(stage.program, [stage.x]).rows
        assert len(rows) >= len(stage.calibrated.meta["weighted"])
        assert all(row.bits >= 1 for row in rows)
        assert all(row.seen is not None for row in rows)

    def test_onnx_computes_the_same(self, stage: Stage, tmp_path: Path) -> None:
        (path,) = chipfit.export(stage.program, tmp_path, ["onnx"])
        name = stage.program.inputs[0].name
        wanted = chipfit.program.run(stage.program, stage.x)
        for found in run_at_every_level(path.read_bytes(), {name: stage.x.numpy()}):
            np.testing.assert_array_equal(found[0], wanted.numpy())

    def test_golden_vectors_come_back(self, stage: Stage, tmp_path: Path) -> None:
        chipfit.export(stage.program, tmp_path, ["golden"], samples=stage.x)
        assert verify_golden(tmp_path / "golden", stage.program) > 0

    def test_programs_come_back_from_their_files(self, stage: Stage, tmp_path: Path) -> None:
        chipfit.save_program(tmp_path, stage.program)
        loaded = chipfit.load_program(tmp_path)
        assert same_program(loaded, stage.program)
        assert chipfit.verify(stage.calibrated, loaded, [stage.x]).equal

    def test_evaluation(self, stage: Stage) -> None:
        target = stage.calibrated(stage.x).flatten(1).argmax(1)
        data = [(stage.x, target)]
        metric = lambda y, t: (y.flatten(1).argmax(1) == t).float().mean()  # noqa: E731
        loss = lambda y, t: F.cross_entropy(y.flatten(1), t)  # noqa: E731
        found = chipfit.evaluate(stage.calibrated, data, metric, chips=3, level=6, loss=loss)
        assert found.quantised.metric == 1.0 and len(found.noisy[6].metrics) == 3
        assert (set(found.noisy[6].losses) == {found.quantised.loss}) is not self.noise
        assert {layer.mode for layer in chip_layers(stage.calibrated).values()} == {"quant"}

    def test_state_and_pickles_bring_everything_back(self, stage: Stage) -> None:
        """A network converted anew that has loaded the state gives the same program, and so does a pickled one."""
        anew = stage.loaded(stage.calibrated.state_dict(), stage.choices)
        pickled = pickle.loads(pickle.dumps(stage.calibrated))
        assert pickled.meta["on_cpu"] == {} and repr(pickled) == repr(stage.calibrated)
        for net in (anew, pickled):
            assert torch.equal(net(stage.x), stage.calibrated(stage.x))
            assert same_program(chipfit.lower(net, stage.x[:1]), stage.program)

    @pytest.mark.slow
    def test_state_gives_the_same_codes_in_a_fresh_process(self, stage: Stage, tmp_path: Path) -> None:
        state = {name: tensor.clone().contiguous() for name, tensor in stage.calibrated.state_dict().items()}
        save_file(state, tmp_path / "state.safetensors")
        (tmp_path / "given.pickle").write_bytes(pickle.dumps((self.chip, stage.plain, stage.choices)))
        code = (
            "import pickle, sys, pathlib, torch, chipfit\n"
            "from safetensors.torch import load_file\n"
            "from tests.chips.battery import Stage\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            "chip, plain, choices = pickle.loads((folder / 'given.pickle').read_bytes())\n"
            "stage = Stage(chip, plain)\n"
            "net = stage.loaded(load_file(folder / 'state.safetensors'), choices)\n"
            "program = chipfit.lower(net, stage.x[:1])\n"
            "chipfit.save_program(folder / 'program', program)\n"
        )
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
        command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert same_program(chipfit.load_program(tmp_path / "program"), stage.program)

    def test_what_is_not_known_is_refused_with_the_nearest(self, tmp_path: Path) -> None:
        stage = _stage(self.chip, self.networks[0])
        net, x, program = stage.calibrated, stage.x, stage.program
        verbs: dict[str, Callable[..., Any]] = {
            "lower": lambda **given: chipfit.lower(net, x[:1], **given),
            "calibrate": lambda **given: chipfit.calibrate(copy.deepcopy(net), [x], **given),
            "set_mode": lambda **given: chipfit.set_mode(copy.deepcopy(net), "quant", **given),
        }
        for verb, call in verbs.items():
            known = vendor_of(self.chip).options.get(verb, {})
            for name, option in known.items():
                with pytest.raises(UnknownOptionError, match=f"Did you mean '{name}'"):
                    call(**{name[:-1]: None})
                if option.allowed:
                    with pytest.raises(UnknownOptionError, match="allowed: "):
                        call(**{name: "no such value"})
            if not known:
                with pytest.raises(UnknownOptionError, match=f"allowed: none for {vendor_of(self.chip).name}"):
                    call(no_such_option=1)
        with pytest.raises(UnknownOptionError, match="Did you mean 'quant'"):
            chipfit.set_mode(copy.deepcopy(net), "qant")
        with pytest.raises(UnknownOptionError, match="Did you mean 'onnx'"):
            chipfit.export(program, tmp_path, ["onx"])
        with pytest.raises(UnknownOptionError, match=f"Did you mean '{self.chip}'"):
            chipfit.chip(f"{self.chip}x")
        assert list(tmp_path.iterdir()) == []

    def test_bad_input_ends_in_errors_of_ours(self) -> None:
        stage = _stage(self.chip, self.networks[0])
        with pytest.raises(CalibrationError, match="empty"):
            chipfit.calibrate(copy.deepcopy(stage.calibrated), [])
        with pytest.raises(CalibrationError):
            chipfit.calibrate(copy.deepcopy(stage.calibrated), [stage.x * torch.nan])
        with pytest.raises(UnsupportedError, match="mode 'float'"):
            chipfit.lower(chipfit.set_mode(copy.deepcopy(stage.calibrated), "float"), stage.x[:1])
        broken = copy.deepcopy(stage.calibrated)
        next(p for p in broken.parameters() if p.dim() > 1).data.view(-1)[0] = torch.nan
        with pytest.raises(ChipfitError, match="NaN"):
            chipfit.lower(broken, stage.x[:1])
        with pytest.raises(ChipfitError, match=r"NaN|nan"):
            chipfit.verify(stage.calibrated, stage.program, [stage.x * torch.nan])

    def test_a_program_says_whose_it_is(self, tmp_path: Path) -> None:
        stage = _stage(self.chip, self.networks[0])
        chipfit.save_program(tmp_path, stage.program)
        assert json.loads((tmp_path / "program.json").read_text())["chip"] == self.chip
        assert vendor_of(stage.program) is vendor_of(self.chip) is vendor_of(stage.calibrated)


class Mutants:
    """Every one-line mistake in the arithmetic that trains is noticed by `verify`.

    Attributes:
        cases: Small networks by name.
        mutants: At least 20 mistakes.
    """

    cases: ClassVar[Mapping[str, Case]]
    mutants: ClassVar[list[Mutant]]
    pytest_generate_tests = Stages.pytest_generate_tests

    def test_there_are_enough_mutants(self) -> None:
        assert len(self.mutants) >= 20 and {mutant.case for mutant in self.mutants} <= set(self.cases)

    def test_unchanged_networks_are_equal(self, case: str) -> None:
        check_case(self.cases[case])

    def test_mutants_are_noticed(self, mutant: Mutant) -> None:
        check_mutant(mutant, self.cases)


class Battery(Stages, Mutants):
    """Everything."""
