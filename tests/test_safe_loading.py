"""No downloaded file can run code, and every refusal is one helpful line."""

import argparse
import collections
import datetime
import importlib
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.formats.safe_loading import load_checkpoint


class Calls:
    """Pickles to a call of `function` with `arguments`, which an unsafe reader would execute."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def torch_zip(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file in torch.save's format, whose pickle is `data`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
    return path


def refusal(path: Path) -> str:
    """The message of the refusal of `path`: one line that names it."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def attacks(mark: Path) -> dict:
    """Objects whose unpickling would create the file `mark`."""
    shell, code = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    nested = Calls(getattr, Calls(__import__, "os"), "system")
    return {
        "os.system": Calls(os.system, shell),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "builtins.__import__": Calls(__import__, "antigravity"),
        "importlib": Calls(importlib.import_module, "antigravity"),
        "nested reduce": Calls(map, nested, [shell]),
        "among tensors": {"state_dict": {"a": torch.ones(2)}, "callbacks": [Calls(os.system, shell)]},
        "in a key": {("key", 1): 1, "b": collections.OrderedDict(c=Calls(eval, code))},
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", attacks(Path("mark")))
def test_pickles_that_call_functions_are_refused(tmp_path, name, protocol):
    mark = tmp_path / "mark"
    path = tmp_path / "model.ckpt"
    attack = attacks(mark)[name]
    if name == "among tensors":
        torch.save(attack, path, pickle_protocol=max(protocol, 2))
    else:
        torch_zip(path, pickle.dumps(attack, protocol))
    message = refusal(path)
    assert "not loaded" in message or "damaged" in message
    assert not mark.exists()


def test_no_refusal_repeats_torchs_advice_to_load_unsafely(tmp_path):
    data = b"\x80\x02}X\x01\x00\x00\x00acpathlib\nPosixPath\n)R}X\x01\x00\x00\x00bK\x01sa."
    for protocol in (0, 4):
        torch_zip(tmp_path / "model.ckpt", pickle.dumps({"a": Calls(os.system, "true")}, protocol))
        assert "weights_only" not in refusal(tmp_path / "model.ckpt")
    assert "weights_only" not in refusal(torch_zip(tmp_path / "model.ckpt", data))


def test_the_refusal_names_what_the_file_asks_for(tmp_path):
    path = torch_zip(tmp_path / "model.ckpt", pickle.dumps({"a": Calls(os.system, "true")}, 2))
    assert "posix.system" in refusal(path)
    assert ".safetensors" in refusal(path)


def test_stub_names_run_nothing_of_the_packages_they_name(tmp_path):
    """A stub replaces a callback's name even if its arguments and state look like a call."""
    data = (
        b"\x80\x02}(X\x05\x00\x00\x00inert"
        b"cpytorch_lightning.utilities.cloud_io\nload\n(X\x04\x00\x00\x00fileX\x05\x00\x00\x00othert"
        b"R}X\x01\x00\x00\x00aK\x01sbX\x04\x00\x00\x00stepK\x07u."
    )
    assert load_checkpoint(torch_zip(tmp_path / "model.ckpt", data)) == {"step": 7}


def compvis_content() -> dict:
    """Lightning's content in the published CompVis files beside the weights."""
    weight = torch.arange(6.0).view(2, 3)
    return {
        "state_dict": {"betas": weight[0], "model.diffusion_model.out.2.weight": weight},
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": weight}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"base_lrs": (numpy.float64(0.1),), "last_epoch": 2}],
    }


def test_compvis_checkpoints_load_with_what_lightning_left_in_them(tmp_path, monkeypatch):
    """Callback classes as keys, and numpy scalars, as in sd-v1-4-full-ema.ckpt."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = compvis_content()
    content["callbacks"] = {
        module.ModelCheckpoint: {"best_model_score": numpy.float32(0.5), "monitor": "val"}
    }
    content["loops"] = [module.ModelCheckpoint(), 4]
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    loaded = load_checkpoint(path)
    assert loaded["state_dict"].keys() == content["state_dict"].keys()
    for key, value in content["state_dict"].items():
        assert torch.equal(loaded["state_dict"][key], value)
    assert loaded["global_step"] == 470000
    assert loaded["callbacks"] == {}  # its only key was a class
    assert loaded["loops"] == [4]
    assert loaded["lr_schedulers"] == [{"base_lrs": (), "last_epoch": 2}]


@pytest.mark.parametrize(
    "value",
    [
        OmegaConf.create({"model": {"params": [1, 2.5, {"a": "b"}]}, "seed": 23}),
        numpy.arange(3),
        argparse.Namespace(lr=1),
        Path("data"),
        frozenset([1]),
        datetime.datetime(2022, 8, 22),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_other_tools_leave_beside_the_weights_is_left_out(tmp_path, value):
    path = tmp_path / "model.ckpt"
    weights = {"a": torch.ones(2)}
    torch.save({"state_dict": weights, "hyper_parameters": value, "nested": {"x": value, "y": 1}}, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.pop("state_dict")["a"], weights["a"])
    assert loaded == {"nested": {"y": 1}}


def test_plain_checkpoints_come_back_as_they_were(tmp_path):
    content = {
        "a": torch.randn(3),
        "list": [1, (2.5, None), {"b": True}],
        "ordered": collections.OrderedDict(c=1),
    }
    path = tmp_path / "last.pt"
    torch.save(content, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.pop("a"), content.pop("a"))
    assert loaded == content
    assert type(loaded["ordered"]) is collections.OrderedDict


def test_the_format_is_told_by_content_not_by_name(tmp_path):
    tensors = {"a": torch.ones(2, dtype=torch.float16)}
    save_file(tensors, tmp_path / "model.ckpt")
    assert torch.equal(load_checkpoint(tmp_path / "model.ckpt")["a"], tensors["a"])
    torch.save(tensors, tmp_path / "model.pt")
    (tmp_path / "model.pt").rename(tmp_path / "model.safetensors")
    assert "rename it to .ckpt" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 9, 70, 500, 0.5, 0.999])
def test_cut_files_are_refused(tmp_path, suffix, kept):
    path = tmp_path / f"model.{suffix}"
    tensors = {f"layer.{i}": torch.randn(10, 10) for i in range(10)}
    (torch.save if suffix == "ckpt" else save_file)(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    assert "again" in refusal(path)


def test_flipped_bytes_never_end_in_anything_but_a_user_error(tmp_path):
    generator = torch.Generator().manual_seed(0)
    torch.save({"a": torch.ones(2), "b": [1, 2, {"c": "text"}]}, tmp_path / "good.ckpt")
    good = (tmp_path / "good.ckpt").read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for place in torch.randint(len(data), (3,), generator=generator).tolist():
            data[place] = int(torch.randint(256, (), generator=generator))
        path = tmp_path / "bad.ckpt"
        path.write_bytes(data)
        try:
            load_checkpoint(path)
        except UserError:
            refused += 1
    assert refused > 50


def test_old_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    message = refusal(path)
    assert "torch 1.6" in message
    command = message[message.index('"') + 1 : message.rindex('"')]
    code = command.replace("old.ckpt", str(path)).replace("converted.ckpt", str(tmp_path / "converted.ckpt"))
    exec(code)  # noqa: S102 - the advice itself is what is tested
    assert torch.equal(load_checkpoint(tmp_path / "converted.ckpt")["a"], torch.ones(2))


def test_decompression_bombs_are_refused_unread(tmp_path):
    data = pickle.dumps({"a": "0" * 50_000_000}, 2)
    path = torch_zip(tmp_path / "model.ckpt", data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "compressed" in refusal(path)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, hint):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    assert hint in refusal(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.ckpt")
    assert "directory" in refusal(tmp_path)


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.ckpt")
    assert "list" in refusal(tmp_path / "list.ckpt")
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    (tmp_path / "script.ckpt").write_bytes(buffer.getvalue())
    refusal(tmp_path / "script.ckpt")
