"""`data-tools export`: plain webdataset finds every sample under its key, with the same numbers."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from data_tools.cache import export
from data_tools.cache.export import ExportOptions, safe_key
from data_tools.cache.store import LocalStore, open_store
from data_tools.cli import cli
from data_tools.errors import UserError
from tests.data_tools.caches import Made, build, listed
from tests.data_tools.origins import build_of, float32, opened

wds = pytest.importorskip("webdataset")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    """14 samples, of which 12 are in all columns."""
    folder = tmp_path_factory.mktemp("export") / "cache"
    return folder, build(folder, lacking=frozenset({("image", "k3"), ("text", "k8")}))


def exported(root: Path, dest: Path, **options: Any) -> str:
    return export.export(opened(root), open_store(dest), ExportOptions(**options))


def samples(dest: Path) -> list[dict[str, Any]]:
    """What webdataset makes of the tars, with its own decoder."""
    urls = [str(path) for path in sorted(dest.glob("*.tar"))]
    return list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_webdataset_finds_the_same_values(tmp_path: Path, dtype: str) -> None:
    made = build(tmp_path / "cache", dtype=dtype, lacking=frozenset({("image", "k3"), ("text", "k8")}))
    exported(tmp_path / "cache", tmp_path / "dest", samples_per_tar=5)
    found = samples(tmp_path / "dest")
    assert [sample["json"]["key"] for sample in found] == [f"k{i}" for i in range(14) if i not in (3, 8)]
    stored = np.float32 if dtype == "bfloat16" else np.dtype(dtype)

    def same(found: np.ndarray, wanted: np.ndarray) -> None:
        assert found.dtype == stored
        np.testing.assert_array_equal(found.astype(np.float32), float32(wanted, dtype), strict=True)

    for sample in found:
        key = sample["json"]["key"]
        same(sample["image_embeds.npy"], made["image"][key][0]["image_embeds"])
        same(sample["latents.npy"], made["latents@24"][key][0]["latents"])
        rows = made["text"][key]
        assert len(rows) == len(sample["json"]["captions"]) == len(sample["prompt_embeds.npy"])
        offsets = sample["text_encoder_hidden_states_offsets.npy"]
        for number, row in enumerate(rows):
            tokens = slice(offsets[number], offsets[number + 1])
            same(sample["prompt_embeds.npy"][number], row["prompt_embeds"])
            same(sample["text_encoder_hidden_states.npy"][tokens], row["text_encoder_hidden_states"])
        assert offsets[-1] == len(sample["text_encoder_hidden_states.npy"])


def test_json_has_key_captions_and_place(built: tuple[Path, Made], tmp_path: Path) -> None:
    exported(built[0], tmp_path)
    wanted = {s.key: {"key": s.key, "captions": [*s.captions], "place": s.place} for s in listed(14).samples}
    found = {sample["json"]["key"]: sample["json"] for sample in samples(tmp_path)}
    assert found == {key: value for key, value in wanted.items() if key not in ("k3", "k8")}


def test_null_conditions_are_plain_files(built: tuple[Path, Made], tmp_path: Path) -> None:
    exported(built[0], tmp_path)
    for column in ("image", "text"):
        for name, value in built[1][column][""][0].items():
            assert np.array_equal(np.load(tmp_path / "null" / f"{name}.npy"), value)


def test_tars_have_the_size_asked_for(built: tuple[Path, Made], tmp_path: Path) -> None:
    said = exported(built[0], tmp_path, samples_per_tar=5)
    counts = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert names == sorted(names, key=lambda name: (int(name[1 : name.index(".")]), name))
        counts.append(len({name.split(".")[0] for name in names}))
    assert counts == [5, 5, 2]
    assert said == f"{tmp_path}: 12 samples in 3 tars, 2 left out that a column lacks; 3 tars written"


def test_chosen_columns_keep_what_the_others_lack(built: tuple[Path, Made], tmp_path: Path) -> None:
    exported(built[0], tmp_path, columns=("latents@24",))
    found = samples(tmp_path)
    assert len(found) == 14
    assert {name for name in found[0] if not name.startswith("__")} == {"json", "latents.npy"}
    assert not (tmp_path / "null").exists()


KEYS = [
    "a/b.c/d.png",
    "a/b.c_d.png",
    "a%2Fb",
    "кот 1.jpg",
    "..",
    "A b",
    "-x",
    "__m__",
    "x" * 300,
    "x" * 299 + "y",
]


def test_any_key_becomes_one_that_webdataset_splits_nowhere(tmp_path: Path) -> None:
    for number, key in enumerate(KEYS):
        build_of(tmp_path / f"c{number}", [0], changes={"key": key})
        exported(tmp_path / f"c{number}", tmp_path / f"d{number}")
        (sample,) = samples(tmp_path / f"d{number}")
        assert sample["__key__"] == safe_key(key)
        assert re.fullmatch(r"[\w~%-]{1,150}", sample["__key__"], re.ASCII)
        assert sample["json"]["key"] == key
        assert sample["image_embeds.npy"].shape == (12,)
    assert len({safe_key(key) for key in KEYS}) == len(KEYS)
    assert safe_key("a/b.png") == "a%2Fb%2Epng"


def test_two_resolutions_are_told_apart(built: tuple[Path, Made]) -> None:
    column = opened(built[0]).column("latents@24")
    assert column is not None
    other = column.__class__(**{**vars(column), "name": "latents@48"})
    assert export.member_names([column, other]) == {
        ("latents@24", "latents"): "latents@24",
        ("latents@48", "latents"): "latents@48",
    }


def test_the_same_export_again_changes_nothing_and_resumes(
    built: tuple[Path, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(built[0], tmp_path / "whole", samples_per_tar=5)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.tar")}
    put = LocalStore.put

    def killed(self: LocalStore, name: str, chunks: Any) -> None:
        def cut() -> Any:
            yield next(iter(chunks))
            raise KeyboardInterrupt

        put(self, name, cut() if name == "00000001.tar" else chunks)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            exported(built[0], tmp_path / "d", samples_per_tar=5)
    assert [path.name for path in sorted((tmp_path / "d").glob("*.tar"))] == ["00000000.tar"]
    assert exported(built[0], tmp_path / "d", samples_per_tar=5).endswith("; 2 tars written")
    assert {path.name: path.read_bytes() for path in (tmp_path / "d").glob("*.tar")} == whole
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert exported(built[0], tmp_path / "d", samples_per_tar=5).endswith("; nothing to do")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before


def test_another_export_or_another_s_folder_is_refused(built: tuple[Path, Made], tmp_path: Path) -> None:
    exported(built[0], tmp_path / "d", samples_per_tar=5)
    with pytest.raises(UserError, match=r"^DEST: .*holds another export \(samples_per_tar 5 → 6\)"):
        exported(built[0], tmp_path / "d", samples_per_tar=6)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^DEST: .* is neither empty nor begun by this command"):
        exported(built[0], tmp_path)


def test_an_unfinished_column_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    build(tmp_path / "cache", unfinished=frozenset({("text", "part-00002")}))
    with pytest.raises(UserError, match=r"unfinished: column text lacks part-00002; .*--columns"):
        exported(tmp_path / "cache", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    exported(tmp_path / "cache", tmp_path / "d", columns=("image",))


def test_the_command_exports_and_explains_itself(built: tuple[Path, Made], tmp_path: Path) -> None:
    arguments = ["export", str(built[0]), str(tmp_path / "d"), "--columns", "image", "--samples-per-tar", "7"]
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert len(samples(tmp_path / "d")) == 13
    wrong = CliRunner().invoke(cli, [*arguments[:3], "--columns", "image,mask"])
    assert str(wrong.exception).startswith("--columns: ")
    assert "'mask'" in str(wrong.exception)
    text = CliRunner().invoke(cli, ["export", "--help"]).stdout
    assert "(captions, D), also of one caption" in text


def test_an_npy_is_what_numpy_reads() -> None:
    value = np.arange(6, dtype="<f2").reshape(2, 3).T
    assert np.array_equal(np.load(io.BytesIO(export.npy(value))), value)
    assert json.loads(b'{"key": "k"}') == {"key": "k"}
