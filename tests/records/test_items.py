"""Data sets that are Python objects: tuples, dicts, tensors, images; and those of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from sampler_service.errors import ConfigError, Conflict, Damaged
from sampler_service.records import items as items_module
from sampler_service.records.fragments import Bad
from sampler_service.records.schemas import class_names, is_image
from tests.records.support import Ingest, all_of, image


class Dicts(Dataset):
    """Items with a value of each kind."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError
        return {
            "pixels": torch.full((3, 2, 2), float(index)),
            "mask": np.array([index % 2 == 0, True]),
            "picture": Image.new("L", (4, 4), index),
            "text": f"number {index}",
            "label": np.int32(index),
            "scalar": torch.tensor(index / 2),
            "data": bytes([index]),
            "tokens": list(range(index % 3)),
        }


def test_items_by_name_keep_types_and_shapes(register: Ingest, monkeypatch):
    monkeypatch.setattr(items_module, "SHARD_BYTES", 1000)
    store = register(Dicts())
    assert len(store.manifest.shards) > 1
    assert store.schema.field("pixels").type == pa.fixed_shape_tensor(pa.float32(), (3, 2, 2))
    assert store.schema.field("mask").type == pa.fixed_shape_tensor(pa.uint8(), (2,))
    assert store.schema.field("label").type == pa.int32()
    assert store.schema.field("scalar").type == pa.float32()
    assert is_image(store.schema.field("picture"))
    batch = store.take(np.array([11, 4]))
    pixels = torch.tensor(batch.column("pixels").to_numpy_ndarray())
    assert torch.equal(pixels, torch.stack([Dicts()[11]["pixels"], Dicts()[4]["pixels"]]))
    assert batch.column("mask").to_numpy_ndarray().tolist() == [[0, 1], [1, 1]]
    rest = batch.select(["text", "label", "scalar", "data", "tokens"]).to_pylist()
    assert rest == [
        {"text": "number 11", "label": 11, "scalar": 5.5, "data": b"\x0b", "tokens": [0, 1]},
        {"text": "number 4", "label": 4, "scalar": 2.0, "data": b"\x04", "tokens": [0]},
    ]


def test_tuples_are_numbered_and_subsets_are_data_sets(register: Ingest):
    points = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10))
    store = register(Subset(points, [9, 3, 3]))
    assert store.schema.names == ["0", "1"]
    assert store.take(np.arange(3), ["1"]).to_pydict() == {"1": [9, 3, 3]}
    assert store.take(np.array([0]), ["0"]).column("0").to_numpy_ndarray().tolist() == [[18.0, 19.0]]


class Pair(NamedTuple):
    left: str
    right: int


def test_named_tuples_single_values_and_lists_of_them(register: Ingest):
    assert all_of(register([Pair("a", 1), Pair("b", 2)], "pairs")) == [
        {"left": "a", "right": 1},
        {"left": "b", "right": 2},
    ]
    assert all_of(register([1.5, 2.5], "values")) == [{"0": 1.5}, {"0": 2.5}]
    assert register([(1, "a"), (2, "b")], "chosen", columns=["1"]).schema.names == ["1"]


class Changed(Dataset):
    """Numbers, of which one may have changed."""

    def __init__(self, changed: int | None = None) -> None:
        self.changed = changed

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> int:
        if index >= len(self):
            raise IndexError
        return index + 1000 * (index == self.changed)


@pytest.mark.parametrize("changed", [0, 29, 58, 59])
def test_an_object_with_another_item_in_its_middle_is_another(register: Ingest, changed: int):
    register(Changed())
    with pytest.raises(Conflict, match=r"is registered and does not hold memory:.*Changed"):
        register(Changed(changed))
    assert register(Changed(changed), append=True).num_examples == 120, "all of it counts as new"


def test_numbers_are_looked_at_in_many_places_of_a_large_object() -> None:
    places = items_module.spread(100, 1_000_100, 64)
    assert (places[0], places[-1], len(places)) == (100, 1_000_099, 64)
    assert max(np.diff(places)) - min(np.diff(places)) <= 1
    assert items_module.spread(3, 6, 64) == [3, 4, 5]


class Uneven(Dataset):
    """Item 3 has another shape, item 5 raises."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index == 5:
            raise ValueError("no such file")
        return np.zeros((2, 3 + (index == 3))), index


def test_an_item_that_can_not_be_used_is_named_or_left_out(register: Ingest):
    with pytest.raises(
        Damaged, match=r"item 3 of Uneven .*'0' is float64 \(2, 4\), and of the first item double \(2, 3\)"
    ):
        register(Uneven())
    store = register(Uneven(), on_bad="skip")
    assert store.take(np.arange(6), ["1"]).to_pydict() == {"1": [0, 1, 2, 4, 6, 7]}
    assert store.manifest.shards[0].skipped == ("item 3", "item 5")


class Broken(Dataset):
    """Item 1 raises, the file of item 3 is no image."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> bytes:
        if index >= len(self) or index == 1:
            raise IndexError
        return b"no image" if index == 3 else image(index)


def test_an_image_that_does_not_decode_has_its_number_when_others_are_left_out_before_it(register: Ingest):
    assert register(Broken(), on_bad="skip").manifest.shards[0].skipped == ("item 1", "item 3")


def test_what_is_no_map_style_data_set_is_refused(register: Ingest):
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    with pytest.raises(ConfigError, match="a Stream can't be registered: it needs __len__ and __getitem__"):
        register(Stream())
    with pytest.raises(Damaged, match=r"item 0 of list .* a set; tensors, arrays"):
        register([{1, 2}])


def test_the_same_object_is_known_again_and_another_is_not(register: Ingest):
    register(Dicts())
    assert register(Dicts()).generation == 1
    assert register(Dicts(), append=True).num_examples == 12
    assert register(Subset(Dicts(), range(5)), "subset").num_examples == 5
    assert register(Subset(Dicts(), range(5, 10)), "subset", append=True).num_examples == 10


def test_hugging_face_data_sets_keep_order_classes_and_images(register: Ingest, tmp_path, monkeypatch):
    monkeypatch.setattr(items_module, "SHARD_BYTES", 2000)
    (tmp_path / "on_disk.png").write_bytes(image(7))
    pictures = [{"bytes": image(number), "path": None} for number in range(29)]
    pictures.append({"bytes": None, "path": str(tmp_path / "on_disk.png")})
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"]), "n": datasets.Value("int32")}
    )
    columns = {"image": pictures, "label": [number % 2 for number in range(30)], "n": list(range(30))}
    data = datasets.Dataset.from_dict(columns, features=features)
    chosen = data.select([29, 4, 5, *range(20)])
    store = register(chosen)
    assert len(store.manifest.shards) > 1
    assert class_names(store.schema.field("label")) == ["no", "yes"]
    assert is_image(store.schema.field("image"))
    assert store.take(np.arange(23), ["n"]).to_pydict()["n"] == [29, 4, 5, *range(20)]
    assert store.take(np.array([0, 1]), ["image"]).to_pydict()["image"] == [image(7), image(4)]
    assert register(chosen).generation == 1
    with pytest.raises(ConfigError, match="a DatasetDict can't be registered: give one of its splits"):
        register(datasets.DatasetDict(train=data))
    with pytest.raises(ConfigError, match=r"a IterableDataset can't be registered: .* without streaming=True"):
        register(data.to_iterable_dataset())


def by_path(tmp_path: Path, *files: bytes) -> datasets.Dataset:
    """Images of which only the paths are known."""
    paths = [tmp_path / f"{number}.png" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    pictures = [{"bytes": None, "path": str(path)} for path in paths]
    return datasets.Dataset.from_dict({"image": pictures, "n": list(range(len(files)))}).cast_column(
        "image", datasets.Image()
    )


def test_images_known_by_their_paths_count_with_their_files_in_shards_and_batches(tmp_path, monkeypatch):
    files = [image(number, "BMP", 100) for number in range(40)]
    data = by_path(tmp_path, b"", *files[1:])  # the first row says nothing of the others
    monkeypatch.setattr(items_module, "SHARD_BYTES", 10 * len(files[1]))
    fragments = items_module.hugging_face_fragments(data)
    assert 4 <= len(fragments) <= 6
    monkeypatch.setattr(items_module, "ITEMS_BYTES", 2 * len(files[1]))
    batches = fragments[1].batches(fragments[1].schema(), Bad("fail"))
    assert {batch.num_rows for batch in batches} <= {1, 2}


def test_an_image_file_that_is_missing_is_named_or_left_out(register: Ingest, tmp_path):
    data = by_path(tmp_path, *(image(number) for number in range(6)))
    (tmp_path / "1.png").unlink()
    (tmp_path / "4.png").write_bytes(b"no image")
    with pytest.raises(
        Damaged, match=r"row 1 of memory:datasets .* can't be used: column 'image': .*No such file.*1.png"
    ):
        register(data)
    store = register(data, on_bad="skip")
    assert store.take(np.arange(4), ["n"]).to_pydict() == {"n": [0, 2, 3, 5]}
    assert store.manifest.shards[0].skipped == ("row 1", "row 4")


def test_an_image_of_neither_bytes_nor_path_is_none(register: Ingest):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    data = datasets.Dataset(pa.table({"image": pa.array([{"bytes": None, "path": None}, {"bytes": image(1)}], kind)}))
    assert [row["image"] for row in all_of(register(data))] == [None, image(1)]
