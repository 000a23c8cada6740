"""The GRU layers: float equals torch, the codes equal an int64 model bit for bit, and it trains."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.gru.layers import WitinGru, WitinGruCell
from chipfit.chips.witmem.gru.rule import activation_slopes, activation_tables, gru_shifts, gru_step
from chipfit.errors import InvalidValueError, ShapeError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
Array = np.ndarray[Any, Any]


def config(**options: Any) -> WitinLayerConfig:
    fixed = {"use_quantization": True, "use_auto_scale": False, "handle_neg_in": HandleNegInType.PN}
    return WitinLayerConfig(1, **{**fixed, "scale_x": 32, "scale_weight": 64, "scale_y": 32, **options})


# --- an int64 model of the whole cell, sharing nothing with the layers


def half_even_shift(v: Array, bits: int) -> Array:
    """v * 2^bits on integers, right shifts rounded half to even without floating point."""
    if bits >= 0:
        return v << bits
    n = -bits
    return (v + (1 << (n - 1)) - 1 + ((v >> n) & 1)) >> n


def table(name: str) -> dict[int, int]:
    u = np.arange(-512, 512)
    real = 128 / (1 + np.exp(-u / 64)) if name == "sigmoid" else 128 * np.tanh(u / 128)
    return dict(zip(u.tolist(), np.clip(np.rint(real), -128, 127).astype(int).tolist(), strict=True))


SIGMOID, TANH = table("sigmoid"), table("tanh")


def model_step(a: Array, b: Array, h: Array, log_a: int, log_b: int) -> Array:
    """One step; log_a, log_b: log2 of the scales of a and b."""
    finer = max(log_a, log_b)

    def index(mine: Array, other: Array, log_table: int) -> Array:
        total = (mine << (finer - log_a)) + (other << (finer - log_b))
        return np.clip(half_even_shift(total, log_table - finer), -512, 511)

    size = h.shape[-1]
    (ar, az, an), (br, bz, bn) = (np.split(v, [size, 2 * size], axis=-1) for v in (a, b))
    r = np.vectorize(SIGMOID.get)(index(ar, br, 6))
    z = np.vectorize(SIGMOID.get)(index(az, bz, 6))
    n = np.vectorize(TANH.get)(index(an, half_even_shift(r * bn, -7), 7))
    return np.clip(half_even_shift((128 - z) * n + z * h, -7), -128, 127)


def model_array(q: Array, weight: Tensor, bias: Tensor | None, sx: int, sw: int, sy: int, rows: int = 8) -> Array:
    """A WitinLinear on signed codes (PN), power-of-two scales, integers throughout."""
    q_w = np.clip(np.rint(weight.double().numpy() * sw), -128, 127).astype(np.int64)
    units = 0.0 if bias is None else bias.double().numpy() * sx * sw / 128
    total = q @ q_w.T + 128 * np.rint(np.clip(units, -128 * rows, 127 * rows)).astype(np.int64)
    g = sx * sw // sy
    quotient, rest = total // g, total % g
    up = (2 * rest > g) | ((2 * rest == g) & (quotient % 2 == 1))
    return np.clip(quotient + up, -128, 127)


def codes(x: Tensor, scale: int, top: int) -> Array:
    return np.clip(np.rint(x.double().numpy() * scale), -top, top).astype(np.int64)


def model_sequence(cell: Any, suffix: str, x: Array, h: Array, scales: tuple[int, ...]) -> Array:
    """States as codes; x: codes (time, batch, features); scales: x, weight, y, weight_hidden, y_hidden."""
    sx, sw, sy, sw_h, sy_h = scales
    part = {name: getattr(cell, name + suffix, None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    part = {name: None if v is None else v.detach() for name, v in part.items()}
    states = []
    for q in x:
        a = model_array(q, part["weight_ih"], part["bias_ih"], sx, sw, sy)
        b = model_array(h, part["weight_hh"], part["bias_hh"], 128, sw_h, sy_h)
        h = model_step(a, b, h, int(np.log2(sy)), int(np.log2(sy_h)))
        states.append(h)
    return np.stack(states)


@given(
    seed=st.integers(0, 2**31),
    log_a=st.integers(0, 10),
    log_b=st.integers(0, 10),
    bits=st.integers(4, 12),
)
@settings(max_examples=60, deadline=None)
def test_step_equals_the_int64_model(seed: int, log_a: int, log_b: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    top = 1 << (bits - 1)
    a, b = (rng.integers(-top, top, (4, 15)) for _ in range(2))
    a[0], b[0] = top - 1, -top  # the ends of the range
    a[1], b[1] = -top, -top
    h = rng.integers(-128, 128, (4, 5))
    tensors = [torch.from_numpy(v).float() for v in (a, b, h)]
    shifts = gru_shifts(2.0**log_a, 2.0**log_b, bits)
    got = gru_step(*tensors, shifts, activation_tables(), activation_slopes())
    np.testing.assert_array_equal(got.numpy(), model_step(a, b, h, log_a, log_b))


def test_step_saturates_at_both_ends() -> None:
    tables, slopes, shifts = activation_tables(), activation_slopes(), gru_shifts(32, 32, bits=8)
    up = torch.tensor([0.0, -128.0, 127.0])
    other, h = torch.tensor([0.0, -128.0, 127.0]), torch.tensor([-128.0])
    # z = 128 * sigmoid(-8) = 0, n = 127: the state jumps to the candidate
    assert gru_step(up, other, h, shifts, tables, slopes).item() == 127
    assert gru_step(-up, other * 0, torch.tensor([127.0]), shifts, tables, slopes).item() == 123
    assert gru_step(torch.tensor([0.0, -128.0, -128.0]), other * 0, h, shifts, tables, slopes).item() == -128


@pytest.mark.parametrize("bias", [True, False])
@given(
    seed=st.integers(0, 2**31),
    scales=st.tuples(*[st.sampled_from([8, 32, 64])] * 5),
    gain=st.sampled_from([0.3, 1.0, 5.0]),
)
@settings(max_examples=25, deadline=None)
def test_cell_equals_the_int64_model(bias: bool, seed: int, scales: tuple[int, ...], gain: float) -> None:
    torch.manual_seed(seed)
    sx, sw, sy, sw_h, sy_h = scales
    own = config(scale_x=sx, scale_weight=sw, scale_y=sy)
    hidden = config(scale_weight=sw_h, scale_y=sy_h)
    cell = WitinGruCell(6, 5, bias, layer_config=own, hidden_config=hidden)
    with torch.no_grad():
        for parameter in cell.cell_parameters("")[: 4 if bias else 2]:
            parameter.mul_(gain * 3)
    x, h = torch.randn(3, 6) * 2 * gain, torch.rand(3, 5) * 3 - 1.5
    h_codes = np.clip(np.rint(h.double().numpy() * 128), -128, 127).astype(np.int64)
    want = model_sequence(cell, "", codes(x, sx, 255)[None], h_codes, scales)[0]
    np.testing.assert_array_equal(cell(x, h).detach().numpy() * 128, want)


@given(seed=st.integers(0, 2**31), layers=st.integers(1, 2), both=st.booleans(), batch_first=st.booleans())
@settings(max_examples=20, deadline=None)
def test_sequence_equals_the_int64_model(seed: int, layers: int, both: bool, batch_first: bool) -> None:
    torch.manual_seed(seed)
    scales = (32, 64, 32, 128, 64)
    gru = WitinGru(
        4,
        3,
        layers,
        bidirectional=both,
        batch_first=batch_first,
        layer_config=config(),
        hidden_config=config(scale_weight=128, scale_y=64),
    )
    with torch.no_grad():
        for parameter in gru.parameters():
            if parameter.dim():
                parameter.mul_(2)
    x = torch.randn(6, 2, 4)
    h0 = torch.rand(len(gru.suffixes), 2, 3) * 2 - 1
    values: Array = x.double().numpy()
    last = []
    for layer in range(layers):
        outputs = []
        for direction in range(1 + both):
            suffix = f"_l{layer}" + "_reverse" * direction
            order = slice(None, None, -1 if direction else 1)
            q = codes(torch.from_numpy(values), 32, 255)[order]
            h = np.clip(np.rint(h0[len(last)].double().numpy() * 128), -128, 127).astype(np.int64)
            states = model_sequence(gru, suffix, q, h, scales)
            last.append(states[-1])
            outputs.append(states[order])
        values = np.concatenate(outputs, axis=-1) / 128
    output, h_n = gru(x.transpose(0, 1) if batch_first else x, h0)
    output = output.transpose(0, 1) if batch_first else output
    np.testing.assert_array_equal(output.detach().numpy(), values)
    np.testing.assert_array_equal(h_n.detach().numpy() * 128, np.stack(last))


# --- float mode, state, shapes


@pytest.mark.parametrize("bias", [True, False])
def test_float_cell_is_torch(bias: bool) -> None:
    theirs = nn.GRUCell(4, 3, bias)
    ours = WitinGruCell(4, 3, bias, layer_config=config(use_quantization=False))
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("io_max") for key in missing.missing_keys)
    x, h = torch.randn(5, 4), torch.randn(5, 3)
    assert torch.equal(ours(x, h), theirs(x, h))
    assert torch.equal(ours(x), theirs(x))
    assert isinstance(ours, nn.GRUCell)


@pytest.mark.parametrize("both", [True, False])
def test_float_sequence_is_torch(both: bool) -> None:
    theirs = nn.GRU(4, 3, 2, bidirectional=both, batch_first=True)
    ours = WitinGru(4, 3, 2, bidirectional=both, batch_first=True, layer_config=config(use_quantization=False))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(5, 7, 4)
    for got, want in zip(ours(x), theirs(x), strict=True):
        assert torch.equal(got, want)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 6, 5, 4, 3]), batch_first=True)
    assert torch.equal(ours(packed)[1], theirs(packed)[1])


def test_quantised_sequence_follows_the_float_one() -> None:
    torch.manual_seed(0)
    theirs = nn.GRU(8, 16)
    options = {"scale_x": 64, "scale_weight": 256, "scale_y": 64, "handle_neg_in": HandleNegInType.PN}
    ours = WitinGru(8, 16, layer_config=config(**options))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(30, 4, 8)
    error = ours(x)[0] - theirs(x)[0]
    assert error.square().mean().sqrt() < 0.015
    assert error.abs().max() < 0.06


def test_cell_in_a_loop_is_the_sequence_layer() -> None:
    torch.manual_seed(0)
    gru = WitinGru(4, 3, layer_config=config())
    cell = WitinGruCell(4, 3, layer_config=config())
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in gru.state_dict().items()}, strict=False)
    x, h = torch.randn(6, 2, 4), None
    states = []
    for step in x:
        h = cell(step, h)
        states.append(h)
    assert torch.equal(torch.stack(states), gru(x)[0])


def test_input_operation_is_a_linear_layer() -> None:
    """With the hidden half at zero and its reset gate shut, the candidate shows the input half as a WitinLinear's."""
    torch.manual_seed(0)
    for negative in (HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift):
        for bits in (8, 10):
            own = config(handle_neg_in=negative, x_quant_bits=bits, scale_y=128, shift_num=2.0)
            cell = WitinGruCell(5, 4, layer_config=own)
            linear = WitinLinear(5, 12, layer_config=own)
            linear.load_state_dict({"weight": cell.weight_ih, "bias": cell.bias_ih}, strict=False)
            with torch.no_grad():
                cell.weight_hh.zero_()
                cell.bias_hh.zero_()
            x = torch.randn(3, 5)
            a = (linear(x) * 128).round()
            want = gru_step(
                a,
                torch.zeros_like(a),
                torch.zeros(3, 4),
                gru_shifts(128, 128, 8),
                activation_tables(),
                activation_slopes(),
            )
            # scale_y is shared: the zero hidden half has scale 128 too
            assert torch.equal(cell(x) * 128, want), (negative, bits)


def test_unbatched_input() -> None:
    torch.manual_seed(0)
    cell, gru = WitinGruCell(4, 3, layer_config=config()), WitinGru(4, 3, 2, layer_config=config())
    x = torch.randn(6, 4)
    assert torch.equal(cell(x[0]), cell(x[:1])[0])
    output, h = gru(x)
    batched, h_batched = gru(x.unsqueeze(1))
    assert torch.equal(output, batched[:, 0])
    assert torch.equal(h, h_batched[:, 0])


def test_tables_are_not_saved() -> None:
    gru = WitinGru(2, 3, layer_config=config())
    want = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    watched = ["x_l0", "y_l0", "weight_l0", "y_hidden_l0", "weight_hidden_l0"]
    assert list(gru.state_dict()) == want + [f"autoscale_{name}_obj.io_max" for name in watched]


def test_copies_dtypes_and_autocast() -> None:
    torch.manual_seed(0)
    gru = WitinGru(4, 3, layer_config=config())
    x = torch.randn(5, 2, 4).bfloat16().float()
    output, _ = gru(x)
    assert torch.equal(copy.deepcopy(gru)(x)[0], output)
    double, _ = copy.deepcopy(gru).double()(x.double())
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gru(x)[0], output)
    half, half_h = gru(x.bfloat16())
    assert half.dtype == half_h.dtype == torch.bfloat16
    assert torch.equal(half, output.bfloat16())  # state codes fit bfloat16


def test_nan_stays_nan() -> None:
    cell = WitinGruCell(2, 3, layer_config=config())
    assert cell(torch.tensor([[float("nan"), 0.0], [0.0, 0.0]])).isnan().all(dim=1).tolist() == [True, False]


# --- auto-scale and noise


def test_auto_scale_watches_both_operations() -> None:
    torch.manual_seed(0)
    cell = WitinGruCell(4, 3, layer_config=config(use_auto_scale=True, auto_scale_updata_step=1))
    x, h = torch.randn(5, 4), torch.rand(5, 3)
    cell(x, h)
    seen = {name: float(observer.io_max) for name, observer in cell.observers.items()}
    assert seen["x"] == pytest.approx(x.abs().max().item())
    assert seen["weight"] == pytest.approx(cell.weight_ih.abs().max().item())
    assert seen["weight_hidden"] == pytest.approx(cell.weight_hh.abs().max().item())
    real = h @ cell.weight_hh.T + cell.bias_hh
    assert seen["y_hidden"] == pytest.approx(real.abs().max().item(), rel=0.1)
    numbers = cell.numbers_in_force()
    assert (numbers.input.x_bits, numbers.hidden.scale_x) == (8, 128.0)
    assert cell.g_value == (numbers.input.g, numbers.hidden.g)
    cell.eval()
    assert cell.g_value == (numbers.input.g, numbers.hidden.g)


def test_sequence_counts_as_one_step() -> None:
    gru = WitinGru(4, 3, bidirectional=True, layer_config=config(use_auto_scale=True))
    gru(torch.randn(9, 2, 4))
    assert {observer.cnt_train for observer in gru.observers.values()} == {1}
    assert len(gru.observers) == 10


def test_silent_hidden_half_is_not_calibrated_on() -> None:
    cell = WitinGruCell(2, 3, bias=False, layer_config=config(use_auto_scale=True, auto_scale_updata_step=1))
    cell(torch.randn(4, 2))
    assert float(cell.autoscale_y_hidden_obj.io_max) == 8.0
    assert cell(torch.randn(4, 2)).isfinite().all()


def test_noise_disturbs_both_operations_and_follows_the_seed() -> None:
    torch.manual_seed(0)
    cell = WitinGruCell(4, 16, layer_config=config(noise_level=6))
    clean = WitinGruCell(4, 16, layer_config=config())
    clean.load_state_dict(cell.state_dict())
    x, h = torch.randn(8, 4), torch.rand(8, 16) * 2 - 1
    torch.manual_seed(1)
    first = cell(x, h)
    torch.manual_seed(1)
    assert torch.equal(cell(x, h), first)
    assert not torch.equal(cell(x, h), first)
    assert 0.001 < (first - clean(x, h)).abs().mean() < 0.5


# --- gradients and training


def test_gradients_are_those_of_the_real_gru() -> None:
    torch.manual_seed(0)
    theirs = nn.GRU(6, 8).double()
    options = {"scale_x": 512, "scale_weight": 256, "scale_y": 512, "y_quant_bits": 12}
    ours = WitinGru(6, 8, layer_config=config(**options)).double()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(7, 3, 6, dtype=torch.float64) * 0.1
    upstream = torch.randn(7, 3, 8, dtype=torch.float64)
    for gru in (ours, theirs):
        gru(x)[0].backward(upstream)
    for name, parameter in theirs.named_parameters():
        got, want = ours.get_parameter(name).grad.flatten(), parameter.grad.flatten()
        assert torch.cosine_similarity(got, want, dim=0) > 0.995, name
        assert got.norm() / want.norm() == pytest.approx(1, abs=0.05), name


@given(seed=st.integers(0, 2**31), log_a=st.integers(3, 7), log_b=st.integers(3, 7))
@settings(max_examples=20, deadline=None)
def test_step_gradients_are_those_of_a_straight_through_composition(seed: int, log_a: int, log_b: int) -> None:
    torch.manual_seed(seed)
    leaves = [torch.randint(-128, 128, shape).double().requires_grad_() for shape in [(4, 9), (4, 9), (4, 3)]]

    def ste(v: Tensor) -> Tensor:
        return v + (v.round() - v).detach()

    def limited(v: Tensor, top: int) -> Tensor:
        return torch.where((v < -top) | (v >= top), v.detach().clamp(-top, top - 1), v)

    def tabulated(real: Tensor) -> Tensor:
        return real + (real.round().clamp(-128, 127) - real).detach()

    def reference(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        u, v = a / 2**log_a, b / 2**log_b  # real values: scales are powers of two, so this is exact
        gates = limited(ste((u[:, :6] + v[:, :6]) * 64), 512) / 64
        r, z = tabulated(128 * gates.sigmoid()).split(3, dim=1)
        reset = ste(r * b[:, 6:] / 128) / 2**log_b
        n = tabulated(128 * (limited(ste((u[:, 6:] + reset) * 128), 512) / 128).tanh())
        return limited(ste(((128 - z) * n + z * h) / 128), 128)

    shifts = gru_shifts(2.0**log_a, 2.0**log_b, bits=8)
    tables = activation_tables().double(), activation_slopes().double()
    upstream = torch.randn(4, 3, dtype=torch.float64)
    pair = []
    for y in (gru_step(*leaves, shifts, *tables), reference(*leaves)):
        pair.append((y.detach(), *torch.autograd.grad(y, leaves, upstream)))
    for got, want in zip(*pair, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # the slopes are kept in float32


def test_saturated_index_blocks_the_gradient() -> None:
    a = torch.tensor([[0.0, 0.0, 100.0], [0.0, 0.0, 10.0]], requires_grad=True)
    shifts = gru_shifts(16, 16, bits=8)  # 100 / 16 = 6.25 lies beyond the tanh table's ±4
    gru_step(a, torch.zeros(2, 3), torch.zeros(2, 1), shifts, activation_tables(), activation_slopes()).sum().backward()
    assert a.grad[0, 2] == 0
    u = torch.tensor(10 / 16)
    assert a.grad[1, 2].item() == pytest.approx((0.5 * 128 / 16 * (1 - u.tanh() ** 2)).item())


@pytest.mark.slow
@pytest.mark.parametrize("noise_level", [0, 2])
def test_learns_to_remember_the_first_input(noise_level: int) -> None:
    torch.manual_seed(0)
    gru = WitinGru(2, 8, batch_first=True, layer_config=config(use_auto_scale=True, noise_level=noise_level))
    head = nn.Linear(8, 1)
    optimiser = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=0.02)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        sign = torch.randint(0, 2, (n,)).float()
        x = torch.randn(n, 8, 2) * 0.5
        x[:, :, 1] = 0.0
        x[:, 0] = torch.stack([sign * 2 - 1, torch.ones(n)], dim=1)  # the second feature marks what to remember
        return x, sign

    losses = []
    for _ in range(120):
        x, sign = batch(64)
        loss = nn.functional.binary_cross_entropy_with_logits(head(gru(x)[1][-1]).squeeze(1), sign)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    gru.eval()
    x, sign = batch(512)
    accuracy = ((head(gru(x)[1][-1]).squeeze(1) > 0) == sign.bool()).float().mean()
    assert losses[0] > 0.6
    assert accuracy > 0.95


# --- errors


def test_errors() -> None:
    with pytest.raises(AssertionError, match="WitinGruCell layer_config is None"):
        WitinGruCell(2, 3)
    with pytest.raises(AssertionError, match="WitinGru layer_config is None"):
        WitinGru(2, 3)
    with pytest.raises(InvalidValueError, match="power of two"):
        WitinGruCell(2, 3, layer_config=config(scale_y=24))(torch.ones(1, 2))
    with pytest.raises(InvalidValueError, match="power of two"):
        WitinGruCell(2, 3, layer_config=config(), hidden_config=config(scale_y=24))(torch.ones(1, 2))
    cell, gru = WitinGruCell(2, 3, layer_config=config()), WitinGru(2, 3, layer_config=config())
    for bad in (torch.ones(1, 3), torch.ones(1, 1, 2), torch.ones(1, 2, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="input"):
            cell(bad)
    with pytest.raises(ShapeError, match="hx"):
        cell(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ShapeError, match="batch"):
        cell(torch.ones(1, 2), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="hx"):
        gru(torch.ones(4, 1, 2), torch.ones(2, 1, 3))
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2)])
    with pytest.raises(UnsupportedError, match="PackedSequence"):
        gru(packed)
