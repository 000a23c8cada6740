"""The integer program: lower a network, compute it in integers, prove the two equal, certify what it needs.

program = lower(model, example)        # typed graph of integer operations
outputs = run(program, x)              # the int64 reference; FastProgram(program)(x) is the same, faster
proof = verify(model, program, loader) # every code of every layer equal, or the first that is not
"""

from chipfit.integer.certify import Certificate, certify
from chipfit.integer.deployed import Deployed, DeployedDifference, deployed, deployed_difference
from chipfit.integer.fast import FastProgram
from chipfit.integer.interpreter import run, trace
from chipfit.integer.lower import lower
from chipfit.integer.program import Input, Node, Program, ValueType
from chipfit.integer.storage import load_program, save_program
from chipfit.integer.verify import Mismatch, Proof, verify

__all__ = [
    "Certificate",
    "Deployed",
    "DeployedDifference",
    "FastProgram",
    "Input",
    "Mismatch",
    "Node",
    "Program",
    "Proof",
    "ValueType",
    "certify",
    "deployed",
    "deployed_difference",
    "load_program",
    "lower",
    "run",
    "save_program",
    "trace",
    "verify",
]
