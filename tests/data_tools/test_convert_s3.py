"""`data-tools` commands between a local folder and an object store."""

from pathlib import Path

from click.testing import CliRunner

from data_tools.cli import cli
from tests.data_tools.caches import build
from tests.data_tools.origins import sums
from tests.data_tools.test_convert import LACKING
from tests.s3 import S3Server


def test_a_cache_goes_to_an_object_store_and_back(tmp_path: Path, s3: S3Server) -> None:
    here = tmp_path / "here"
    build(here, lacking=LACKING)
    place = s3.place()
    there = CliRunner().invoke(cli, ["convert", str(here), place, "--part-size", "7"])
    assert (there.exit_code, there.stdout) == (0, f"{place}: 8 parts copied\n")
    assert CliRunner().invoke(cli, ["verify", place, "--full"]).stdout.endswith(": no faults\n")
    again = CliRunner().invoke(cli, ["convert", str(here), place, "--part-size", "7"])
    assert again.stdout.endswith("nothing to do: every part is there\n")
    assert CliRunner().invoke(cli, ["convert", place, str(tmp_path / "d"), "--part-size", "5"]).exit_code == 0
    assert sums(tmp_path / "d") == sums(here)
    assert CliRunner().invoke(cli, ["export", place, str(tmp_path / "e")]).exit_code == 0
    assert len(list((tmp_path / "e").glob("*.tar"))) == 1
    into = CliRunner().invoke(cli, ["convert", place, f"{place}/inside"])
    assert str(into.exception).startswith(f"DEST: {place}/inside lies in {place}")
    assert CliRunner().invoke(cli, ["gc", place]).stdout == f"{place}: 0 B in 0 items removed\n"
