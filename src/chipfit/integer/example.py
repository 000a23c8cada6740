"""Running a traced network on the user's example, once and with twice its batch."""

from __future__ import annotations

from typing import Any

from torch import fx

from chipfit.errors import ChipfitError, UnsupportedError


def run_on_example(runner: fx.Interpreter, inputs: tuple[Any, ...]) -> None:
    """Run a traced network; what goes wrong in it is an error that says what the network has to allow.

    Args:
        runner: The traced network.
        inputs: Its inputs, batch first.

    Raises:
        UnsupportedError: the network does not run on them.
    """
    try:
        runner.run(*inputs)
    except ChipfitError:
        raise
    except Exception as error:
        raise UnsupportedError(
            "the network does not run on the example, or not with twice its batch",
            given=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="Axis 0 of every input must be the batch, and no batch size may be fixed in the network.",
        ) from error
