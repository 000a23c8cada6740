"""The evaluation matrix: each column in its mode, chips seeded, nothing left changed."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import chipfit
from chipfit.errors import CalibrationError, InvalidValueError, UnsupportedError
from chipfit.fit.evaluate import Score, accuracy
from witin_nn import WitinLayerConfig, WitinLinear


@pytest.fixture
def net():
    def config():
        return WitinLayerConfig(G_algo=1, use_auto_scale=False, scale_x=32, scale_weight=64, scale_y=8)

    return nn.Sequential(
        WitinLinear(6, 16, layer_config=config()), nn.ReLU(), WitinLinear(16, 3, layer_config=config())
    )


@pytest.fixture
def loader():
    x = torch.rand(60, 6) * 4
    return DataLoader(TensorDataset(x, (x[:, 0] * 0.7).long().clamp(0, 2)), 25)


def test_columns_are_the_modes(net, loader):
    row = chipfit.evaluate(net, loader, chips=3, level=(4, 9))
    x = torch.cat([batch for batch, _ in loader])
    target = torch.cat([batch for _, batch in loader])
    for score, mode in ((row.in_float, "float"), (row.quantised, "quant")):
        chipfit.set_mode(net, mode)
        assert score.losses == (nn.functional.cross_entropy(net(x), target).item(),)
        assert score.metrics == (accuracy(net(x), target),)
    assert set(row.noisy) == {4, 9}
    assert len(row.noisy[4].losses) == 3
    assert len(set(row.noisy[4].losses)) == 3  # three different chips
    assert row.noisy[9].loss != row.noisy[4].loss


def test_a_chip_is_the_same_chip_for_every_batch_and_every_time(net, loader):
    first = chipfit.evaluate(net, loader, chips=2)
    torch.manual_seed(99)
    whole = DataLoader(loader.dataset, 60)
    again = chipfit.evaluate(net, whole, chips=2)
    assert again.noisy[4].metrics == first.noisy[4].metrics
    assert again.noisy[4].losses == pytest.approx(first.noisy[4].losses, rel=1e-6)
    assert chipfit.evaluate(net, loader, chips=2, first_seed=5).noisy[4].losses != first.noisy[4].losses


def test_nothing_is_left_changed(net, loader):
    net.train()
    net[0].eval()
    net[2].set_mode("nat", 7)
    state = torch.get_rng_state()
    chipfit.evaluate(net, loader, chips=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert (net[0].mode, net[2].mode, net[2].noise_level) == ("float", "nat", 7)
    assert net.training and not net[0].training and net[2].training
    assert not net._forward_pre_hooks


def test_torchmetrics_and_functions_agree(net, loader):
    metric = MulticlassAccuracy(3, average="micro")
    assert chipfit.evaluate(net, loader, metric, chips=2).quantised.metrics == pytest.approx(
        chipfit.evaluate(net, loader, chips=2).quantised.metrics
    )


def test_worst_follows_the_direction_of_the_metric():
    values = (0.5, 0.7, 0.6)
    assert Score(values, values, True).worst == 0.5
    assert Score(values, values, False).worst == 0.7
    assert Score(values, values, True).percentile5 == pytest.approx(0.51)
    assert Score(values, values, False).percentile5 == pytest.approx(0.69)
    assert Score(values, values).std == pytest.approx(0.1)


def test_as_dict_is_plain_numbers(net, loader):
    row = chipfit.evaluate(net, loader, chips=2).as_dict()
    assert row["noise_4"]["worst"] == min(row["noise_4"]["per_chip"]["metrics"])
    assert set(row) == {"float", "quant", "noise_4"}


def test_errors(net, loader):
    with pytest.raises(InvalidValueError, match="at least one chip"):
        chipfit.evaluate(net, loader, chips=0)
    with pytest.raises(InvalidValueError, match="noise_level"):
        chipfit.evaluate(net, loader, level=10)
    with pytest.raises(CalibrationError, match="empty"):
        chipfit.evaluate(net, [])
    with pytest.raises(UnsupportedError, match="no chip layers"):
        chipfit.evaluate(nn.Linear(2, 2), loader)
