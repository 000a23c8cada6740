"""C on other cores: RISC-V and MIPS under qemu, and RISC-V without an operating system; see `make cross`."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import chipfit
from chipfit.export.c.writer import example_inputs
from support.networks import DsCnn, GruKeywords, UNet
from support.on_chip import on_chip

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")]
NETWORKS = [(DsCnn, "wtm2101"), (GruKeywords, "wtm2101"), (DsCnn, "t40"), (UNet, "t40")]
CORES = {
    "riscv64": ("riscv64-linux-gnu-gcc", "qemu-riscv64 -L /usr/riscv64-linux-gnu"),
    "mipsel": ("mipsel-linux-gnu-gcc", "qemu-mipsel -L /usr/mipsel-linux-gnu"),
    "mips": ("mips-linux-gnu-gcc", "qemu-mips -L /usr/mips-linux-gnu"),
}
BARE = ("--specs=picolibc.specs", "--oslib=semihost", "--crt0=hosted", "-march=rv32imac", "-mabi=ilp32", "-std=c99")
MEMORY = {"flash": 0x80000000, "flash_size": 0x200000, "ram": 0x80200000, "ram_size": 0x200000, "stack_size": 4096}
MACHINE = ("-machine", "virt", "-bios", "none", "-nographic", "-semihosting", "-icount", "shift=0")
QEMU = (*MACHINE, "-monitor", "none", "-serial", "none", "-kernel")


def needed(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize("core", CORES)
def test_cores(core, level):
    cc, runner = CORES[core]
    needed(cc, runner.split()[0])
    for kind, chip in NETWORKS:
        program = on_chip(kind, chip)
        proof = chipfit.verify(
            None, program, [example_inputs(program, 2, 3)], ["c"], cc=cc, runner=runner, cflags=level
        )
        assert proof.equal, str(proof)


@pytest.mark.parametrize("level", ["-O2", "-Os"])
def test_without_an_operating_system(tmp_path, level):
    cc, qemu = "riscv64-unknown-elf-gcc", "qemu-system-riscv32"
    needed(cc, qemu)
    for i, (kind, chip) in enumerate(NETWORKS):
        folder = tmp_path / str(i)
        chipfit.export(on_chip(kind, chip), folder, ["c"], target="riscv")
        sources = ["net.c", "net_weights.c", "net_test.c", "net_data.c", "bare_main.c"]
        memory = [f"-Wl,--defsym=__{name}={value:#x}" for name, value in MEMORY.items()]
        command = [cc, *BARE, level, *memory, "-o", "bare", *sources]
        subprocess.run(command, cwd=folder / "c", check=True)
        done = subprocess.run([qemu, *QEMU, "bare"], cwd=folder / "c", capture_output=True, text=True, timeout=120)
        said = done.stdout + done.stderr  # semihosting's console is one or the other, by version
        assert done.returncode == 0 and said.startswith("equal"), said
        freestanding = [cc, "-march=rv32imac", "-mabi=ilp32", "-std=c99", level, "-ffreestanding", "-c", "net.c"]
        subprocess.run(freestanding, cwd=folder / "c", check=True)
        listed = subprocess.run(
            ["riscv64-unknown-elf-nm", "-u", "net.o"], cwd=folder / "c", capture_output=True, text=True, check=True
        )
        # GCC demands memcpy of every environment, and at -Os it may call it for a struct
        known = {"U"} if level != "-Os" else {"U", "memcpy"}
        assert all(name.startswith("net_c") for name in listed.stdout.split() if name not in known), listed.stdout
