"""Addresses: a real S3 server, and file systems of fsspec."""

from __future__ import annotations

import base64
import gzip
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

from sampler_service.errors import ConfigError, NotFound, Stale, Unavailable
from sampler_service.records import verify
from sampler_service.records.addresses import resolve
from tests.records.support import Ingest, all_of, image, table_of

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """http://host:port of an S3 server."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pafs.S3FileSystem]:
    """Its file system, with "bucket" in it and three Parquet files in a folder of that."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    post(endpoint, "reset")
    filesystem = pafs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True)
    filesystem.create_dir("bucket")
    for number in range(3):
        with filesystem.open_output_stream(f"bucket/train/{number}.parquet") as file:
            pq.write_table(table_of(30).slice(10 * number, 10), file)
    return filesystem


def post(endpoint: str, what: str, data: bytes = b"") -> None:
    asked = urllib.request.Request(f"{endpoint}/moto-api/{what}", data=data, headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(asked, timeout=10).close()


def test_a_bucket_is_read_by_storage_options(register: Ingest, bucket, endpoint: str):
    options = {"endpoint_override": endpoint}
    store = register("s3://bucket/train", storage_options=options, id_column="key")
    assert all_of(store) == table_of(30).to_pylist()
    assert store.manifest.shards[1].source.uri == "s3://bucket/train/1.parquet"
    assert store.ids_of(["k0029"]).tolist() == [29]
    verify(store, storage_options=options)
    with bucket.open_output_stream("bucket/train/9.parquet") as file:
        pq.write_table(table_of(31).slice(30), file)
    assert register("s3://bucket/train/*.parquet", storage_options=options, append=True).num_examples == 31
    with bucket.open_output_stream("bucket/train/1.parquet") as file:
        pq.write_table(table_of(2), file)
    with pytest.raises(Stale, match=r"s3://bucket/train/1.parquet has \d+ bytes and had \d+"):
        verify(store, storage_options=options)


def test_a_bucket_is_read_by_what_its_uri_says(register: Ingest, bucket, endpoint: str):
    query = f"?scheme=http&region=us-east-1&endpoint_override={endpoint.removeprefix('http://')}"
    store = register(f"s3://bucket/train{query}")
    assert store.num_examples == 30
    assert store.manifest.shards[0].source.uri == f"s3://bucket/train/0.parquet{query}"
    verify(store)
    assert register(f"s3://bucket/train/2.parquet{query}", "one").num_examples == 10


def test_a_password_in_an_address_is_neither_kept_nor_shown(register: Ingest, bucket, endpoint: str, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    query = f"?scheme=http&region=us-east-1&endpoint_override={endpoint.removeprefix('http://')}"
    store = register(f"s3://someone:secret@bucket/train{query}")
    assert store.manifest.shards[0].source.uri == f"s3://bucket/train/0.parquet{query}"
    assert "secret" not in (store.path / "manifest.json").read_text()
    with pytest.raises(NotFound) as raised:
        register(f"s3://someone:secret@bucket/trian{query}", "other")
    assert "secret" not in str(raised.value)


def test_images_of_a_bucket(register: Ingest, bucket, endpoint: str):
    for name in ("cat/1.png", "dog/1.png"):
        with bucket.open_output_stream(f"bucket/images/{name}") as file:
            file.write(image(4))
    store = register("s3://bucket/images", storage_options={"endpoint_override": endpoint})
    assert store.take(np.arange(2), ["label", "path"]).to_pydict() == {
        "label": [0, 1],
        "path": ["cat/1.png", "dog/1.png"],
    }
    verify(store, storage_options={"endpoint_override": endpoint})


def test_what_is_not_in_the_bucket(register: Ingest, bucket, endpoint: str):
    options = {"endpoint_override": endpoint}
    with pytest.raises(NotFound, match="there is nothing at s3://bucket/trian"):
        register("s3://bucket/trian", storage_options=options)
    with pytest.raises(NotFound, match="there is nothing at s3://no-bucket/train"):
        register("s3://no-bucket/train", storage_options=options)


def test_credentials_that_the_store_refuses(register: Ingest, bucket, endpoint: str):
    post(endpoint, "reset-auth", b"0")  # from now on it wants to know who asks
    try:
        with pytest.raises(ConfigError, match=r"s3://bucket/train may not be read .*AWS_ACCESS_KEY_ID"):
            register(
                "s3://bucket/train",
                storage_options={"endpoint_override": endpoint, "access_key": "a", "secret_key": "b"},
            )
    finally:
        post(endpoint, "reset-auth", b"inf")


class Private(BaseHTTPRequestHandler):
    """A private bucket, as S3 answers who does not say who it is; moto has no answer to that."""

    def do_GET(self) -> None:
        assert "Authorization" not in self.headers
        self.send_response(403)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    do_HEAD = do_GET  # noqa: N815 - the name that it is looked up by

    def log_message(self, *_) -> None: ...


def test_credentials_that_nobody_has_given(register: Ingest, tmp_path, monkeypatch):
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Private) as server:
        Thread(target=server.serve_forever).start()
        options = {"endpoint_override": f"http://127.0.0.1:{server.server_port}", "region": "us-east-1"}
        try:
            for what in ("train", "train/*.parquet", "train/a.parquet"):
                with pytest.raises(ConfigError, match=r"s3://bucket/train.* may not be read .*AWS_ACCESS_KEY_ID"):
                    register(f"s3://bucket/{what}", storage_options=options)
        finally:
            server.shutdown()


def test_a_store_that_is_not_there(register: Ingest, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    retry = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    options = {"endpoint_override": "http://127.0.0.1:9", "connect_timeout": 1, "retry_strategy": retry}
    with pytest.raises(Unavailable, match=r"s3://bucket/train can't be read .*try again"):
        register("s3://bucket/train", storage_options=options)


def test_file_systems_of_fsspec_stand_in_where_arrow_knows_none(register: Ingest):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for number in range(2):
        with memory.open(f"/set/{number}.parquet", "wb") as file:
            pq.write_table(table_of(20).slice(10 * number, 10), file)
    store = register("memory://set")
    assert all_of(store) == table_of(20).to_pylist()
    assert [shard.source.uri for shard in store.manifest.shards] == [
        "memory://set/0.parquet",
        "memory://set/1.parquet",
    ]
    verify(store)
    assert register("memory:///set/*.parquet", "pattern").num_examples == 20
    with memory.open("/set/1.parquet", "wb") as file:
        pq.write_table(table_of(20).slice(10, 10), file)
    verify(store)
    changed = memory.store["/set/1.parquet"].getvalue()
    with memory.open("/set/1.parquet", "wb") as file:
        file.write(changed.replace(b"k0010", b"k9910").replace((100).to_bytes(8, "little"), bytes(8)))
    with pytest.raises(Stale, match=r"memory://set/1.parquet was written again"):
        verify(store)
    with pytest.raises(NotFound, match="there is nothing at memory://nowhere"):
        register("memory://nowhere", "nowhere", format="csv")


class Closed(SimpleHTTPRequestHandler):
    """Files for those who sign their requests, or say the password."""

    def send_head(self) -> Any:
        words = "Basic " + base64.b64encode(b"someone:pass@word").decode()
        if "sig=secret/1" not in self.path and self.headers.get("Authorization") != words:
            self.send_error(401)
            return None
        return super().send_head()

    def log_message(self, *_) -> None: ...


@contextmanager
def web_server(folder: Path, handler: type[SimpleHTTPRequestHandler] = SimpleHTTPRequestHandler) -> Iterator[str]:
    """host:port"""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_file_on_a_web_server_is_read(register: Ingest, tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    with web_server(tmp_path) as host:
        store = register(f"http://{host}/a.csv")
        verify(store)
    assert all_of(store) == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize("secret", ["{host}/{name}?sig=secret/1", "someone:pass%40word@{host}/{name}"])
@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv", "a.png"])
def test_a_signature_or_a_password_opens_a_file_and_is_not_kept(register: Ingest, tmp_path, secret: str, name: str):
    data = {"a.csv.gz": gzip.compress(b"x,y\n1,2\n"), "a.tsv": b"x\ty\n1\t2\n", "a.png": image(1)}[name]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / name).write_bytes(data)
    with web_server(tmp_path / "files", Closed) as host:
        store = register("http://" + secret.format(host=host, name=name))
        assert all_of(store) == ([{"image": data, "path": name}] if name == "a.png" else [{"x": 1, "y": 2}])
        address = f"http://{host}" if name == "a.png" else f"http://{host}/{name}"
        assert store.manifest.shards[0].source.uri.startswith(address)
        kept = b"".join(path.read_bytes() for path in store.path.iterdir())
        assert not any(word in kept for word in (b"secret", b"pass", b"someone", b"sig"))
        assert register("http://" + secret.format(host=host, name=name)).generation == 1
        with pytest.raises(ConfigError, match=f"{host}/{name} may not be read"):
            verify(store)
        password = base64.b64encode(b"someone:pass@word").decode()
        verify(store, storage_options={"headers": {"Authorization": f"Basic {password}"}})


def test_what_goes_wrong_at_an_address_is_said_without_its_secrets(register: Ingest, tmp_path):
    with web_server(tmp_path, Closed) as host:
        wrong = (f"http://{host}/a.csv?sig=wrong/1", f"http://someone:wr%40ng@{host}/a.csv", "httpx://u:wr@ng@h/a?k=wr")
        for address in wrong:
            with pytest.raises(ConfigError) as raised:
                register(address, format="csv")
            assert "wr" not in str(raised.value), address
        with pytest.raises(NotFound) as raised:
            register(f"http://{host}/none.csv?sig=secret/1")
        assert "secret" not in str(raised.value)


def test_addresses_that_differ_in_what_is_not_kept_are_not_registered_together(register: Ingest):
    with pytest.raises(ConfigError, match=r"http://host/a.csv is given twice, .* behind its \?, which is not kept"):
        register(["http://host/a.csv?part=1", "http://host/a.csv?part=2"])


def test_nothing_but_a_star_stands_for_other_characters(register: Ingest, tmp_path):
    folder = tmp_path / "run [1]?"
    folder.mkdir()
    for name in ("a.csv", "b.csv", "b.txt"):
        (folder / name).write_text("x\n1\n")
    assert register(f"{folder}/*.csv").num_examples == 2
    with pytest.raises(NotFound, match="no file fits"):
        register(f"{folder}/[ab]*.csv", "other")


def test_local_addresses_are_kept_as_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/x.csv").touch()
    for uri in ("a b", "./a b/", f"{tmp_path}/a b", (tmp_path / "a b").as_uri()):
        address = resolve(uri)
        assert [found.uri for found in address.files()] == [f"{tmp_path}/a b/x.csv"], uri
