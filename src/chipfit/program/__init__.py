"""The integer program: lower a network, compute it in integers, prove the two equal, certify what it needs.

program = lower(model, example)        # typed graph of integer operations
outputs = run(program, x)              # the int64 reference; FastProgram(program)(x) is the same, faster
proof = verify(model, program, loader) # every code of every layer equal, or the first that is not
"""

from chipfit.program.certificate import Certificate, certify
from chipfit.program.fast import FastProgram
from chipfit.program.lowering.engine import lower
from chipfit.program.proof import Mismatch, Proof, verify
from chipfit.program.reference import run, trace
from chipfit.program.storage import load_program, save_program
from chipfit.program.types import Grid, Input, Node, Program, ValueType

__all__ = [
    "Certificate",
    "FastProgram",
    "Grid",
    "Input",
    "Mismatch",
    "Node",
    "Program",
    "Proof",
    "ValueType",
    "certify",
    "load_program",
    "lower",
    "run",
    "save_program",
    "trace",
    "verify",
]
