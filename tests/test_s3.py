"""Shards in a bucket give the batches of the same shards on the disk. A server of S3's language runs on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffcore.core.errors import UserError
from diffcore.data import remote, selection
from diffcore.data.cache import Cache
from diffcore.data.config import Config
from diffcore.data.write import write
from tests.test_remote import content, last, shards  # noqa: F401

pytest.importorskip("s3fs", reason="the extra `remote` is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto, of the group dev, is not installed")

pytestmark = [
    pytest.mark.slow,  # seconds until the libraries of AWS are imported
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of those libraries
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def bucket(shards: Path, tmp_path, monkeypatch) -> Iterator[str]:  # noqa: F811
    import boto3

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="images")
        for path in shards.glob("*.tar"):
            client.upload_file(str(path), "images", f"train/{path.name}")
        remote._s3.cache_clear()
        yield "s3://images/train"
    finally:
        server.stop()
        remote._s3.cache_clear()


@pytest.mark.parametrize("pattern", ["*.tar", "{000000..LAST}.tar", "0000[0-9]?.tar"])
def test_a_bucket_gives_the_bytes_of_the_disk(bucket, shards, tmp_path, pattern, monkeypatch):  # noqa: F811
    monkeypatch.setattr(remote, "RANGE", 7000)  # several requests for a shard
    pattern = pattern.replace("LAST", last(shards))
    write(Config(f"shards:{bucket}/{pattern}"), tmp_path / "remote", cache=Cache(tmp_path / "cache", 50_000))
    write(Config(f"shards:{shards}/*.tar"), tmp_path / "local")
    assert content(tmp_path / "remote") == content(tmp_path / "local")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("none.tar", r"s3://images/train/none\.tar is not there: there is no shard of this name"),
        ("none*.tar", r"none\*\.tar stands for nothing"),
        ("../nowhere/x.tar", "is not there|cannot be read"),
    ],
)
def test_what_is_not_in_the_bucket_is_one_line(bucket, tmp_path, pattern, said):
    with pytest.raises(UserError, match=said) as caught:
        selection.find(Config(f"shards:{bucket}/{pattern}"), Cache(tmp_path / "cache", 1 << 30))
    assert str(caught.value).isprintable()


def test_an_object_that_changes_while_it_is_read_is_one_line(bucket, shards, tmp_path, monkeypatch):  # noqa: F811
    import boto3

    monkeypatch.setattr(remote, "RANGE", 7000)
    url = f"{bucket}/000000.tar"
    stat = remote.stat(url)
    pieces = remote.content(url, stat)
    first = next(pieces)
    assert first == (shards / "000000.tar").read_bytes()[:7000]
    other = bytes(stat.bytes)
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).put_object(
        Bucket="images", Key="train/000000.tar", Body=other
    )
    with pytest.raises(UserError, match="was changed while it was read"):
        next(pieces)


def test_a_bucket_that_does_not_answer_is_one_line(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "STALL", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    remote._s3.cache_clear()
    with pytest.raises(UserError, match=r"000000\.tar cannot be read \(3 tries brought nothing") as caught:
        selection.find(Config(f"shards:{bucket}/000000.tar"), Cache(tmp_path / "cache", 1 << 30))
    assert str(caught.value).isprintable()


def test_without_credentials_the_line_says_where_they_come_from(bucket, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    remote._s3.cache_clear()
    with pytest.raises(UserError, match=r"needs credentials, and none were found: set AWS_ACCESS_KEY_ID"):
        selection.find(Config(f"shards:{bucket}/000000.tar"), Cache(tmp_path / "cache", 1 << 30))
