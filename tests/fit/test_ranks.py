"""Row 13: in a process group every rank has its own data, and all end with one network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import chipfit
from chipfit.fit.bias import correct_bias
from chipfit.fit.ranks import seed_rank

CHIPS = ["wtm2101", "t40", "txx"]


def _calibrate(rank: int, target: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    converted = chipfit.convert(net, target, torch.rand(4, 32))
    torch.manual_seed(rank + 1)
    choices = chipfit.calibrate(converted, [torch.rand(64, 32) * (1 + 3 * rank)])
    x = torch.rand(8, 32, generator=torch.Generator().manual_seed(9)) * 4
    chipfit.set_mode(converted, "quant").eval()
    torch.save((list(choices), converted.state_dict(), converted(x).detach(), net(x).detach()), f"{folder}/{rank}.pt")
    correct_bias(converted, [torch.rand(64, 32) * (1 + 3 * rank)] * (1 + rank))
    torch.save(converted.state_dict(), f"{folder}/{rank}.bias.pt")
    own = seed_rank(5)
    torch.save((own, torch.rand(4)), f"{folder}/{rank}.noise.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("target", CHIPS)
def test_ranks_agree(target: str, tmp_path: Path) -> None:
    command = [sys.executable, __file__, target, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for process in ranks:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first[0] == second[0]
    noise = [torch.load(tmp_path / f"{rank}.noise.pt") for rank in (0, 1)]
    assert [own for own, _ in noise] == [10, 11]
    assert not torch.equal(noise[0][1], noise[1][1])
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())
    assert torch.equal(first[2], second[2])
    biases = [torch.load(tmp_path / f"{rank}.bias.pt") for rank in (0, 1)]
    assert all(torch.equal(value, biases[1][name]) for name, value in biases[0].items())
    assert (first[2] - first[3]).abs().max() < 0.1 * first[3].abs().max()  # the other rank's larger data count


if __name__ == "__main__":
    _calibrate(int(sys.argv[3]), sys.argv[1], sys.argv[2])
