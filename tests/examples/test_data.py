"""Images come out of Parquet as they went in, and a set that can't be read says what was found."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from trainer_examples.data import DataError, ImageData, endless, load, read_parquet, shifted, with_duplicates
from trainer_examples.models import make_model

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (12, 3, 6, 6), dtype=np.uint8)
LABELS = np.arange(12) % 3


def png(image: np.ndarray) -> bytes:
    pixels = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pixel_lists(images: np.ndarray) -> pa.Array:
    flat = images.transpose(0, 2, 3, 1).reshape(len(images), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("images", [GREY, RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize("form", ["png", "struct", "fixed", "list"])
def test_images_and_labels_round_trip(tmp_path: Path, images: np.ndarray, form: str) -> None:
    column = {
        "png": lambda: pa.array([png(image) for image in images]),
        "struct": lambda: pa.array([{"bytes": png(image), "path": "x.png"} for image in images]),
        "fixed": lambda: pixel_lists(images),
        "list": lambda: pixel_lists(images).cast(pa.list_(pa.uint8())),
    }[form]()
    path = write(tmp_path / "set.parquet", image=column, label=LABELS)
    read, labels = read_parquet(path)
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(labels, LABELS)


def test_a_folder_has_its_own_test_part_and_training_images_are_normalised(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", image=pixel_lists(RGB), label=LABELS)
    write(tmp_path / "test.parquet", image=pixel_lists(RGB[:5]), label=LABELS[:5])
    data = load(tmp_path)
    assert (len(data.train), len(data.test), data.image_shape, data.num_classes) == (12, 5, (3, 6, 6), 3)
    images = data.train.tensors[0]
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_a_single_file_gives_up_a_part_for_testing(tmp_path: Path) -> None:
    data = load(write(tmp_path / "mine.parquet", image=pixel_lists(GREY), label=LABELS))
    assert (data.name, len(data.train), len(data.test)) == ("mine", 10, 2)


def test_the_digits_can_be_limited() -> None:
    assert (len(load().train), len(load().test)) == (1497, 300)
    small = load(limit=50)
    assert (len(small.train), len(small.test), small.image_shape, small.num_classes) == (50, 50, (1, 8, 8), 10)


def test_so_many_images_of_each_class_are_kept_and_all_test_images() -> None:
    small = load(per_class=7)
    assert torch.bincount(small.train.tensors[1]).tolist() == [7] * 10
    assert torch.equal(small.test.tensors[1], load().test.tensors[1])
    with pytest.raises(DataError, match="per_class must be at least 1, got 0"):
        load(per_class=0)


def test_shifted_images_hold_the_same_pixels_a_little_aside() -> None:
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1.0
    _, _, row, column = shifted(images).nonzero(as_tuple=True)
    assert len(row) == 200
    assert (row.min(), row.max(), column.min(), column.max()) == (6, 10, 6, 10)
    coloured = torch.zeros(200, 3, 16, 16)
    coloured[..., 2] = 1.0
    at = shifted(coloured).nonzero()[:, 3]
    assert set(at.tolist()) == {0, 1, 2, 3, 4, 11, 12, 13, 14, 15}, "mirrored or not"


def test_duplicates_are_copies_of_the_first_images() -> None:
    data = load(limit=200)
    images, labels = with_duplicates(data, share=0.9, originals=5).train.tensors
    assert len(images) == 200
    torch.testing.assert_close(images[:20], data.train.tensors[0][:20])
    assert len(torch.unique(images[20:], dim=0)) == 5
    assert len(torch.unique(torch.cat([images[20:].flatten(1), labels[20:, None]], 1), dim=0)) == 5


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pixel_lists(GREY)}, r"no column label; its columns are \['image'\]"),
        ({"pixels": pixel_lists(GREY), "y": LABELS}, "no column image and label; its columns are"),
        ({"image": pixel_lists(GREY), "label": LABELS.astype(float)}, "column label must hold integers.*double"),
        ({"image": LABELS, "label": LABELS}, "PNG or JPEG bytes or lists of uint8, it is int64"),
        ({"image": pixel_lists(GREY[:, :, :7]), "label": LABELS}, "56 values are no square image"),
        ({"image": pa.array([b"not an image"] * 12), "label": LABELS}, "image 0 can't be decoded"),
        ({"image": pa.array([png(GREY[0]), png(RGB[0])]), "label": LABELS[:2]}, "image 1 is .*, image 0 is"),
        ({"image": pixel_lists(GREY), "label": pa.array([None, *LABELS[1:].tolist()])}, "label has 1 nulls among 12"),
        ({"image": pixel_lists(GREY), "label": LABELS - 1}, "must not be negative, the least is -1"),
        ({"image": pixel_lists(GREY)[:0], "label": pa.array([], pa.int64())}, "no rows"),
    ],
)
def test_a_file_that_does_not_fit_says_what_was_found(tmp_path: Path, columns: dict, message: str) -> None:
    path = write(tmp_path / "set.parquet", **columns)
    with pytest.raises(DataError, match=message):
        read_parquet(path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train\.parquet; the folder holds nothing"):
        load(tmp_path)
    write(tmp_path / "train.parquet", image=pixel_lists(GREY), label=LABELS)
    with pytest.raises(DataError, match=r"no test\.parquet; the folder holds \['train\.parquet'\]"):
        load(tmp_path)
    (tmp_path / "text.txt").write_text("hello, this is no Parquet file")
    with pytest.raises(DataError, match="not a Parquet file"):
        load(tmp_path / "text.txt")


@pytest.mark.parametrize(("shape", "kind"), [((1, 8, 8), "Linear"), ((3, 32, 32), "Conv2d"), ((1, 32, 32), "Conv2d")])
def test_the_model_suits_the_images(shape: tuple[int, int, int], kind: str) -> None:
    model = make_model(shape, 7)
    assert kind in str(model)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


def test_a_set_introduces_itself() -> None:
    part = TensorDataset(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.long))
    text = str(ImageData(name="tiny", train=part, test=part, num_classes=2))
    assert text == "tiny: 3 training and 3 test images of 1x8x8, 2 classes"


def test_an_endless_loader_shows_everything_in_each_epoch_in_a_new_order() -> None:
    loader = DataLoader(range(20), batch_size=4, shuffle=True)  # pyright: ignore[reportArgumentType]
    shown = torch.cat(list(islice(endless(loader), 15))).reshape(3, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in shown.tolist())
    assert len({tuple(epoch) for epoch in shown.tolist()}) == 3
