"""LoRA files of diffusers' old Kandinsky 2.2 scripts become what `load_lora_adapter` reads."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train import runs
from tests.train.lora_by_hand import add_by_hand, random_lora
from tests.train.test_lora_files import model_of, output_of
from train import convert_lora

RANK = 3


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def lora(kind, pocket):
    """A LoRA of the pocket model, under today's names."""
    return random_lora(model_of(kind, pocket / kind), RANK)


def old_names(lora, prefix=""):
    """As `save_attn_procs` named them."""
    names = {}
    for name, tensor in lora.items():
        block, _, layer = name.partition(".lora_")[0].replace("to_out.0", "to_out").rpartition(".")
        matrix = "down" if ".lora_A." in name else "up"
        names[f"{prefix}{block}.processor.{layer}_lora.{matrix}.weight"] = tensor
    return names


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the command; its exit code and the lines it says."""

    def convert(*arguments):
        monkeypatch.setattr("sys.argv", ["convert_lora", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            convert_lora.main()
        return end.value.code or 0, "".join(capsys.readouterr()).splitlines()

    return convert


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_converted_file_acts_as_the_old_one_did(suffix, prefix, kind, lora, pocket, tmp_path, convert):
    old, new = tmp_path / f"old.{suffix}", tmp_path / "new.safetensors"
    names = old_names(lora, prefix)
    assert any(name.endswith("attn1.processor.to_out_lora.up.weight") for name in names) == (kind == "prior")
    assert any(name.endswith(".processor.add_v_proj_lora.down.weight") for name in names) == (
        kind == "decoder"
    )
    save_file(names, old) if suffix == "safetensors" else torch.save(names, old)
    assert convert(old, new) == (0, [f"{new}: {len(lora) // 2} layers of rank {RANK}"])
    assert runs.same_tensors(load_file(new), lora)

    by_hand, loaded = (model_of(kind, pocket / kind) for _ in range(2))
    base = output_of(kind, loaded)
    add_by_hand(by_hand, lora, scale=1.0)
    loaded.load_lora_adapter(str(tmp_path), prefix=None, weight_name=new.name)
    found = output_of(kind, loaded)
    torch.testing.assert_close(found, output_of(kind, by_hand), rtol=1e-4, atol=1e-5)
    assert (found - base).abs().max() > 1e-3


class Runs:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["prior"], indirect=True)
def test_what_is_no_such_file_is_refused_and_nothing_written(kind, lora, tmp_path, convert):
    good, new = old_names(lora), tmp_path / "new.safetensors"
    first, second = sorted(good)[:2]
    cases = {
        "today.safetensors": (lora, f"holds {min(lora)}, wanted names like "),
        "half.safetensors": ({n: t for n, t in good.items() if n != first}, "12 layers with 23 matrices of"),
        "ranks.safetensors": ({**good, first: good[first][:2].clone()}, "of ranks [2, 3], wanted two"),
        "flat.safetensors": (
            {**good, second: good[second][0].clone()},
            f"holds {second}, wanted names like ",
        ),
        "empty.safetensors": ({}, "0 layers with 0 matrices"),
    }
    for name, (tensors, said) in cases.items():
        save_file(tensors, tmp_path / name)
        code, lines = convert(tmp_path / name, new)
        assert (code, len(lines)) == (2, 1), lines
        assert lines[0].startswith(f"{tmp_path / name}: ")
        assert said in lines[0]
    assert not new.exists()


def test_pickles_are_not_run(tmp_path, convert):
    old, mark = tmp_path / "old.bin", tmp_path / "mark"
    for content in (pickle.dumps(Runs(mark), 2), b"", b"no pickle"):
        old.write_bytes(content)
        code, lines = convert(old, tmp_path / "new.safetensors")
        assert (code, len(lines)) == (2, 1), lines
        assert lines[0].startswith(f"{old}: ")
        assert "weights_only" not in lines[0]
    torch.save({"layer": Runs(mark)}, old)
    assert convert(old, tmp_path / "new.safetensors") == (
        2,
        [f"{old}: holds something else than named tensors, and nothing else is unpickled"],
    )
    assert not mark.exists()


def test_names_of_the_files(tmp_path, convert):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    code, lines = convert(old, new)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"{old}: cannot be read: ")
    assert convert(old, tmp_path / "new.bin")[1] == [
        f"{tmp_path}/new.bin: wanted a name that ends with .safetensors"
    ]
    new.write_bytes(b"mine")
    assert convert(old, new) == (2, [f"{new}: is there already, wanted the name of a new file"])
    assert new.read_bytes() == b"mine"
