"""Folders of images, and whether images decode: those of more pixels than MOST_PIXELS do not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from pyarrow import fs as pafs

from sampler_service.errors import ConfigError
from sampler_service.records.addresses import Address, Found, reaching
from sampler_service.records.checksums import checksum_of
from sampler_service.records.fragments import SHARD_BYTES, Bad, Fragment, Known, divide
from sampler_service.records.manifest import Identity
from sampler_service.records.schemas import IMAGE, is_image, with_classes

EXTENSIONS = frozenset(("jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "pbm"))

FILES = 256
"""read for a batch"""

LOOK = 8
"""values that say whether a column holds images: the first may be a bad one"""

READERS = 8
"""files read at once: those of an object store take long to begin"""

MOST_PIXELS = 8192 * 8192
"""of an image, by its header: decoded they take four bytes each, out of a file that may have been made to have few"""


def open_image(data: bytes | pa.Buffer) -> Image.Image:
    """An image of which the header was read, and nothing is decoded yet.

    Raises:
        Image.DecompressionBombError: it has more than MOST_PIXELS.
        Exception: it is no image that Pillow knows, or a broken one: what its plugins raise, they do not say.
    """
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(
            f"it has {image.width} x {image.height} pixels, and at most {MOST_PIXELS} are decoded"
        )
    return image


def why_not(data: bytes | pa.Buffer) -> str:
    """Why bytes are no image that decodes; empty when they are one."""
    try:
        _try(data)
    except UnidentifiedImageError:
        return "it is no image that Pillow knows"
    except Exception as error:  # see `open_image`
        return str(error) or type(error).__name__
    return ""


def _try(data: bytes | pa.Buffer) -> None:
    """Raise something unless bytes are an image that decodes."""
    image = open_image(data)
    if isinstance(image, JpegImageFile):  # MPO is one too
        image.draft(None, (1, 1))  # at an eighth of its size, in little time
        image.load()
    elif image.format == "PNG":
        image.verify()  # by its checksums: decoding one of 512 x 512 pixels takes 20 to 130 times as long
    else:
        image.load()  # Pillow verifies no other format


def _holds_image(data: bytes) -> bool:
    """Whether bytes are an image, be it one of too many pixels."""
    try:
        _try(data)
    except Image.DecompressionBombError:
        return True
    except Exception:  # see `open_image`
        return False
    return True


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings of odd metadata from Pillow, which harms nobody. Around threads: filters are those of the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def mark_images(schema: pa.Schema, first: pa.RecordBatch) -> pa.Schema:
    """The schema, where columns of bytes are said to be images if one of their first values is one."""
    fields = []
    for field in schema:
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        values = first.column(field.name).drop_null().slice(0, LOOK).to_pylist() if is_bytes else []
        held = any(_holds_image(value) for value in values)
        fields.append(field.with_metadata({**(field.metadata or {}), **IMAGE}) if held else field)
    return pa.schema(fields)


def sound_rows(batch: pa.RecordBatch) -> tuple[np.ndarray, dict[int, str]]:
    """Which rows have images that decode, or none at all, bool (rows,), and what is wrong with the others."""
    sound, why = np.ones(batch.num_rows, bool), dict[int, str]()
    for field in batch.schema:
        if is_image(field):
            for row, value in enumerate(batch.column(field.name)):
                if value.is_valid and (reason := why_not(value.as_buffer())):
                    sound[row] = False
                    why.setdefault(row, f"column {field.name!r}: {reason}")
    return sound, why


@dataclass(frozen=True)
class ImagesFragment:
    """Some images of a folder, each with the class that its own folder is named for."""

    fs: pafs.FileSystem
    found: tuple[Found, ...]
    classes: tuple[str, ...]
    """empty: there are none"""
    identity: Identity

    def schema(self) -> pa.Schema:
        fields = [pa.field("image", pa.binary(), metadata=IMAGE)]
        if self.classes:
            fields.append(with_classes(pa.field("label", pa.int64()), self.classes))
        return pa.schema([*fields, pa.field("path", pa.string())])

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:  # noqa: ARG002 - the writer looks at images
        labels = {name: label for label, name in enumerate(self.classes)}
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(self.found), FILES):
                files = self.found[start : start + FILES]
                columns = {"image": pa.array(pool.map(self._read, files), pa.binary())}
                if self.classes:
                    columns["label"] = pa.array([labels[class_of(found)] for found in files], pa.int64())
                columns["path"] = pa.array([found.name for found in files], pa.string())
                yield pa.record_batch(columns)

    def _read(self, found: Found) -> bytes:
        with reaching(found.uri), self.fs.open_input_stream(found.path, compression=None) as file:
            return file.read()

    def name_of(self, batch: pa.RecordBatch, row: int, before: int) -> str:  # noqa: ARG002
        return batch.column("path")[row].as_py()


@dataclass(frozen=True)
class ImageFolders:
    """root/class/…/image, of one root or several: a label for each name of a folder below them, in the order of names.

    Folders of one name, below two roots, are one class.
    """

    addresses: tuple[Address, ...]

    def fragments(self, known: Known) -> Sequence[Fragment]:
        new = [(address, _new_images(address, known)) for address in self.addresses]
        in_folders = [_in_folders(address, found) for address, found in new]
        names = {
            class_of(each) for (_, found), classed in zip(new, in_folders, strict=True) if classed for each in found
        }
        # Appended images may be of some classes only, and keep the labels that these have.
        classes = tuple(known.classes if known.classes and names <= set(known.classes) else sorted(names))
        return [
            _fragment(address, tuple(found[start:stop]), classes if classed else ())
            for (address, found), classed in zip(new, in_folders, strict=True)
            for start, stop in divide([each.bytes for each in found], SHARD_BYTES)
        ]


def _new_images(address: Address, known: Known) -> list[Found]:
    """Images of a folder that are not registered."""
    found = [each for each in address.files() if extension(each.name) in EXTENSIONS]
    of_folder = known.names.get(address.uri)
    if of_folder is None:
        return found
    registered = of_folder()
    return [each for each in found if each.name not in registered]


def _in_folders(address: Address, found: Sequence[Found]) -> bool:
    """Whether images lie in folders of classes; ConfigError: only some of them do."""
    loose = [each.name for each in found if "/" not in each.name]
    if loose and len(loose) < len(found):
        raise ConfigError(
            f"{loose[0]} lies in {address.uri} itself and other images in folders of classes: give each image a "
            "folder, or none"
        )
    return not loose


def _fragment(address: Address, found: tuple[Found, ...], classes: tuple[str, ...]) -> ImagesFragment:
    part, size = f"{found[0].name} to {found[-1].name}", sum(each.bytes for each in found)
    identity = Identity("images", address.uri, part, size, version_of(found))
    return ImagesFragment(address.fs, found, classes, identity)


def class_of(found: Found) -> str:
    """Name of the folder of a class."""
    return found.name.partition("/")[0]


def extension(name: str) -> str:
    """What is behind the last dot, in small letters."""
    return name.rpartition(".")[2].lower()


def version_of(found: Sequence[Found]) -> str:
    """A hash of names, sizes and times."""
    return checksum_of("\n".join(f"{each.name} {each.bytes} {each.version}" for each in found).encode())
