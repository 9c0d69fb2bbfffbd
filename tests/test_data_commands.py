"""The commands of data sets, as a person types them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sampler_service.cli import app, main
from sampler_service.errors import ConfigError, Damaged, NotFound
from sampler_service.records import DataDirectory
from tests.records.support import image, table_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data sets are by default."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/gradient-sampler/datasets"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    pq.write_table(table_of(30), tmp_path / "files/a.parquet")
    return tmp_path / "files"


def said(*arguments: object) -> str:
    """What a command prints."""
    shown = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_a_data_set_is_registered_listed_grown_verified_and_deleted_from(files: Path, cache: Path):
    assert "no data set is registered in" in said("datasets")
    shown = said("ingest", files, "--name", "small", "--id-column", "key", "--columns", "key,number")
    assert "small: 30 new examples, 30 in all" in shown
    assert str(cache / "small") in shown
    pq.write_table(table_of(35).slice(30), files / "b.parquet")
    assert "small: 5 new examples, 35 in all" in said("ingest", files, "--name", "small", "--append")
    assert "2 shards, 35 examples, all as registered" in said("verify", "small")
    assert "2 examples deleted, 33 left" in said("delete", "small", "--ids", "3,7")
    assert "1 examples deleted, 32 left" in said("delete", "small", "--keys", "k0001, k0003")
    (row,) = [line for line in said("datasets").splitlines() if "small" in line]
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells[:4] + cells[5:] == ["small", "35", "3", "0", "4", "key (key), number"]


def test_bad_images_that_are_left_out_are_counted(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(image(1))
    (tmp_path / "images/2.png").write_bytes(b"no")
    shown = said("ingest", tmp_path / "images", "--name", "i", "--on-bad", "skip", "--data-dir", tmp_path / "here")
    assert "1 bad records are left out, the first is 2.png" in shown
    assert (tmp_path / "here/i/manifest.json").exists()


def test_integer_keys_and_several_addresses(tmp_path: Path):
    for name, rows in (("a", "5\n6\n"), ("b", "7\n8\n")):
        (tmp_path / f"{name}.csv").write_text(f"id\n{rows}")
    shown = said(
        "ingest", tmp_path / "b.csv", tmp_path / "a.csv", "--name", "n", "--id-column", "id", "--format", "csv"
    )
    assert "4 new examples" in shown
    shown = said("ingest", tmp_path / "a.csv", "--name", "typed", "--type", "id=float32")
    assert DataDirectory().open("typed").schema.field("id").type == "float"
    assert "1 examples deleted" in said("delete", "n", "--keys", "7")


@pytest.mark.parametrize(
    ("arguments", "kind", "what"),
    [
        (("delete", "small"), ConfigError, "by --ids 1,2,3 or by --keys"),
        (("delete", "small", "--ids", "1,x"), ConfigError, "--ids takes whole numbers with commas .* got '1,x'"),
        (("delete", "other", "--ids", "1"), NotFound, "no data set 'other' in .*; there: small"),
        (("ingest", "x.csv", "--name", "y", "--storage-option", "key"), ConfigError, "takes key=value, got 'key'"),
        (("ingest", "x.csv", "--name", "y", "--type", "x=number"), ConfigError, "types are named as in Arrow, such as"),
        (("ingest", "x.csv", "--name", "y", "--format", "xml"), ConfigError, "format 'xml' is none of"),
        (("verify", "other"), NotFound, "no data set 'other'"),
    ],
)
def test_what_is_typed_wrongly_is_said(files: Path, arguments: tuple[str, ...], kind: type[Exception], what: str):
    said("ingest", files, "--name", "small")
    with pytest.raises(kind, match=what):
        said(*arguments)


def test_a_data_set_that_can_not_be_read_is_listed_beside_the_others(files: Path, cache: Path):
    said("ingest", files, "--name", "whole")
    said("ingest", files, "--name", "cut")
    (cache / "cut/00000.arrow").write_bytes(b"")
    shown = CliRunner().invoke(app, ["datasets"])
    assert shown.exit_code == 1
    assert "│ whole" in shown.output
    assert "cut: " in shown.output and "has 0 bytes, registered are" in shown.output


def test_damage_is_one_line_and_a_failure(files: Path, cache: Path, monkeypatch, capsys):
    said("ingest", files, "--name", "small")
    shard = cache / "small/00000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"k0007", b"k0008"))
    with pytest.raises(Damaged):
        said("verify", "small", "--no-sources")
    monkeypatch.setattr("sys.argv", ["sampler-service", "verify", "small"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "00000.arrow has another checksum" in capsys.readouterr().out
