"""What decides whether a column may be reused."""

import hashlib
from pathlib import Path

from data_tools.cache.identity import differences, digest, hash_files

IDENTITY = {"weights": {"model.safetensors": "ab", "b": "c"}, "dtype": "float16", "resolution": 512}


def test_the_order_of_keys_does_not_matter() -> None:
    turned = {
        "resolution": 512,
        "dtype": "float16",
        "weights": {"b": "c", "model.safetensors": "ab"},
    }
    assert digest(turned) == digest(IDENTITY)
    assert differences(turned, IDENTITY) == []


def test_every_value_matters() -> None:
    others = [
        {**IDENTITY, "dtype": "float32"},
        {**IDENTITY, "resolution": "512"},
        {**IDENTITY, "alpha": None},
    ]
    assert len({digest(identity) for identity in [IDENTITY, *others]}) == 4


def test_differences_name_keys_with_both_values_cut_to_what_a_person_reads() -> None:
    wanted = {**IDENTITY, "dtype": "float32", "config": "0123456789abcdef" * 4}
    lines = differences(IDENTITY, wanted)
    assert lines == ["config null → 0123456789ab…", "dtype float16 → float32"]


def test_weights_that_differ_are_named_by_their_file() -> None:
    (line,) = differences(IDENTITY, {**IDENTITY, "weights": {"model.safetensors": "cd", "b": "c"}})
    assert line.startswith("weights/model.safetensors ")


def test_files_are_known_by_name_and_sha256(tmp_path: Path) -> None:
    contents = {"b.txt": b"beta" * 600_000, "a.txt": b"", "c.txt": b"gamma"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    found = hash_files(tmp_path.iterdir())
    assert found == expected
    assert list(found) == sorted(found)
