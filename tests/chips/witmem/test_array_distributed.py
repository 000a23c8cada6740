"""Two processes that see different data train with the same scales. Run as a script, this file is one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from chipfit.chips.witmem.array.conv import WitinConv2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType


def network():
    torch.manual_seed(0)
    options = {"use_quantization": True, "handle_neg_in": HandleNegInType.PN, "scale_x": 16, "scale_weight": 64}
    conv = WitinConv2d(1, 4, 3, layer_config=WitinLayerConfig(1, scale_y=8, **options))
    linear = WitinLinear(4 * 4 * 4, 3, layer_config=WitinLayerConfig(1, scale_y=8, **options))
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)


def batches(rank):
    """Rank 1 sees larger inputs in the first step, rank 0 in the second."""
    generator = torch.Generator().manual_seed(rank)
    sizes = [(1.0, 5.0), (2.0, 0.5), (1.0, 1.0)]
    return [torch.randn(8, 1, 6, 6, generator=generator) * size[rank] for size in sizes]


def train(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(Path(folder) / "meet").as_uri(), rank=rank, world_size=2)
    model = DistributedDataParallel(network())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for x in batches(rank):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    scales = [o.scale for layer in (model.module[0], model.module[3]) for o in layer.observers.values()]
    torch.save({"state": model.module.state_dict(), "scales": scales}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # taking gloo and DistributedDataParallel apart hangs now and then, after all is done


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_ranks_agree(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["scales"] == second["scales"]
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    largest = max(x.abs().max().item() for rank in range(2) for x in batches(rank)[:2])
    assert first["state"]["0.autoscale_x_obj.io_max"].item() == largest
    assert largest == batches(1)[0].abs().max()  # rank 0 alone would have found less
    assert 16 < largest <= 32
    assert first["scales"][0] == 2**8 / 32


if __name__ == "__main__":
    train(int(sys.argv[1]), sys.argv[2])
