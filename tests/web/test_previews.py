"""What is made of what the operator's source gives, and of the records that are registered."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
from PIL import Image

from sampler_service.records import DataDirectory, ingest
from sampler_service.records.desk import RecordDesk
from sampler_service.web.previews import Previews
from tests.records.support import image


def test_an_image_of_the_operators_is_left_as_it_is():
    theirs = Image.new("RGB", (400, 200))
    previews = Previews(lambda _: lambda _: theirs)
    for _ in range(2):
        shown = previews.of("pictures", 0)
        assert shown is not None
        assert Image.open(io.BytesIO(shown.data)).size == (128, 64)
    assert theirs.size == (400, 200)


def test_registered_records_are_seen_as_thumbnails_and_texts(tmp_path: Path):
    ingest(pa.table({"label": [0, 1], "file": [image(1), image(200, side=400)]}), "pictures", data_dir=tmp_path)
    ingest(pa.table({"text": ["one", "two"]}), "words", data_dir=tmp_path)
    previews = Previews(RecordDesk(DataDirectory(tmp_path)).look)
    picture, word = previews.of("pictures", 1), previews.of("words", 1)
    assert picture is not None and word is not None
    thumbnail = Image.open(io.BytesIO(picture.data)).convert("RGB")
    assert thumbnail.size == (128, 128)
    assert thumbnail.getpixel((64, 64)) == (200, 200, 200)
    assert (word.media_type.partition(";")[0], word.data) == ("text/plain", b"two")
    assert not previews.has("other")
