"""Files are whole or absent, and models come back as they were."""

import json

import pytest
import torch

from chipfit.errors import FileFormatError
from chipfit.files import load_model, replacing, save_model, write_json
from witin_nn import LayerConfigFactory, WitinLinear


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="midway"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_usual_permissions(tmp_path):
    write_json(tmp_path / "a.json", {})
    (tmp_path / "b.json").write_text("{}")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode


def test_model_round_trip(tmp_path):
    first, second = (WitinLinear(3, 2, layer_config=LayerConfigFactory.get_default_config()) for _ in range(2))
    with torch.no_grad():
        first.autoscale_x_obj.io_max.fill_(3.5)
    save_model(tmp_path / "sub" / "net.safetensors", first)
    load_model(tmp_path / "sub" / "net.safetensors", second)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_unreadable_model(tmp_path):
    layer = WitinLinear(3, 2, layer_config=LayerConfigFactory.get_default_config())
    with pytest.raises(FileFormatError, match=r"nothing\.safetensors"):
        load_model(tmp_path / "nothing.safetensors", layer)
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(FileFormatError, match=r"bad\.safetensors"):
        load_model(tmp_path / "bad.safetensors", layer)
