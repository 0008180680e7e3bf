"""Captions come from where they stand, stay with their images whatever befalls these, and are read again as they were."""

import csv
import io
import itertools
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import attributes, captions, feed, read, remote, selection, sources
from diffcore.data.cache import Cache
from diffcore.data.config import Config
from diffcore.data.ledger import Ledger, Unfinished
from diffcore.data.manifest import Manifest
from diffcore.data.read import load_resident, open_shard
from diffcore.data.split import Split
from diffcore.data.write import write
from tests.servers import Files, files_over_http
from tests.test_feed import assert_same
from tests.test_source_kinds import NAMES, edm, npy, pixels, png, save_to_disk, table

COUNT = 30


def caption(number: int) -> str:
    return f"picture {number} of a {NAMES[number % 3]}"


def of_class(number: int) -> str:
    return f"a photo of a {NAMES[number % 3]}"


def of_number(number: int) -> str:
    return f"a photo of a {number % 3}"


Content = Callable[[int], bytes]
Captions = Callable[[int], Any]


def places(root: Path, content: Content) -> list[str]:
    names = [f"{NAMES[number % 3]}/{number:02d}.png" for number in range(COUNT)]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content(number))
    return names


def folder_csv(root: Path, content: Content, text: Captions) -> str:
    names = places(root / "in", content)
    with open(root / "in/metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((name, text(n)) for n, name in enumerate(names))])
    return f"folder:{root}/in"


def folder_jsonl(root: Path, content: Content, text: Captions) -> str:
    names = places(root / "in", content)
    for word in NAMES:
        lines = [
            json.dumps({"file_name": name.split("/")[1], "text": text(number)})
            for number, name in enumerate(names)
            if name.startswith(word)
        ]
        (root / "in" / word / "metadata.jsonl").write_text("\n".join(lines))
    return f"folder:{root}/in"


def folder(root: Path, content: Content, text: Captions) -> str:
    places(root / "in", content)
    return f"folder:{root}/in"


def tabled(content: Content, text: Captions, numbers: range) -> pa.Table:
    cells = [{"bytes": content(number), "path": None} for number in numbers]
    return table(numbers, cells).append_column("text", pa.array([text(number) for number in numbers]))


def arrow(root: Path, content: Content, text: Captions) -> str:
    parts = [tabled(content, text, numbers) for numbers in (range(20), range(20, COUNT))]
    return f"arrow:{save_to_disk(root / 'saved', parts)}"


def parquet(root: Path, content: Content, text: Captions) -> str:
    import pyarrow.parquet as pq

    for number, numbers in enumerate((range(20), range(20, COUNT))):
        pq.write_table(tabled(content, text, numbers), root / f"part-{number}.parquet", row_group_size=7)
    return f"parquet:{root}/part-{{0..1}}.parquet"


def npz(root: Path, content: Content, text: Captions) -> str:
    for number, numbers in enumerate((range(20), range(20, COUNT))):
        images = np.stack([pixels(each) for each in numbers])
        np.savez(root / f"{number}.npz", images=images, labels=np.array(numbers) % 3, text=list(map(text, numbers)))
    return f"npz:{root}/{{0,1}}.npz"


def zipped(root: Path, content: Content, text: Captions) -> str:
    return edm(root, content)


def tars(root: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(root / "in.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return f"shards:{root}/in.tar"


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def shards_txt(root: Path, content: Content, text: Captions) -> str:
    parts = ((f"{n:02d}", content(n), f"{n % 3}".encode(), encoded(text(n))) for n in range(COUNT))
    return tars(root, [(f"{k}.{w}", v) for k, *of in parts for w, v in zip(("png", "cls", "txt"), of)])


def shards_json(root: Path, content: Content, text: Captions) -> str:
    records = [json.dumps({"label": n % 3, "more": {"text": text(n)}}).encode() for n in range(COUNT)]
    return tars(
        root, [(f"{n:02d}.{w}", v) for n in range(COUNT) for w, v in (("png", content(n)), ("json", records[n]))]
    )


def shards_of_ours(root: Path, content: Content, text: Captions, members: str = "block") -> str:
    source = Config(shards_txt(root, png, text), members=members, captions="txt")
    write(source, root / "ours", shard_bytes=2000)
    return f"shards:{root}/ours/*.tar"


def shards_of_classes(root: Path, content: Content, text: Captions) -> str:
    return shards_of_ours(root, content, text)


KINDS: dict[str, tuple[Callable[[Path, Content, Captions], str], str, Captions]] = {
    "folder, csv": (folder_csv, "text", caption),
    "folder, jsonl": (folder_jsonl, "text", caption),
    "folder, class": (folder, "a photo of a {class}", of_class),
    "arrow": (arrow, "text", caption),
    "arrow, class": (arrow, "a photo of a {class}", of_class),
    "parquet": (parquet, "text", caption),
    "zip, class": (zipped, "a photo of a {class}", of_number),
    "npz": (npz, "text", caption),
    "npz, class": (npz, "a photo of a {class}", of_number),
    "shards, txt": (shards_txt, "txt", caption),
    "shards, json": (shards_json, "json.more.text", caption),
    "shards, class": (shards_txt, "a photo of a {class}", of_number),
    "our shards": (shards_of_ours, "txt", caption),
    "our shards, class": (shards_of_classes, "a photo of a {class}", of_number),
}
ONE_BY_ONE = [kind for kind in KINDS if "npz" not in kind and "our" not in kind]
"""Whose pictures can be damaged one by one."""


def source_of(root: Path, kind: str, content: Content = png, text: Captions = caption) -> tuple[str, str, Captions]:
    make, named, expected = KINDS[kind]
    return make(root, content, text), named, expected


def pairs(data: Path) -> dict[bytes, str]:
    """The caption of each image, by its pixels."""
    rows = [row.permute(1, 2, 0).numpy().tobytes() for row in load_resident(data).pixels]
    texts = list(itertools.chain.from_iterable(read.captions(data)))
    assert len(texts) == len(rows)
    return dict(zip(rows, texts, strict=True))


def expected_pairs(expected: Captions, numbers: range | list[int] = range(COUNT)) -> dict[bytes, str]:
    return {pixels(number).tobytes(): expected(number) for number in numbers}


def content_of(data: Path) -> dict[str, str]:
    return {str(p.relative_to(data)): disk.sha256(p) for p in sorted(data.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("diffcore.data.write.BLOCK", 4)
    monkeypatch.setattr("diffcore.data.write.CHUNK", 5)
    monkeypatch.setattr("diffcore.data.sources.npz.BLOCK", 7)


def test_every_kind_of_source_is_here_or_has_a_test_of_its_own():
    assert {kind.partition(",")[0].removeprefix("our ") for kind in KINDS} | {"digits", "teacher"} == set(
        sources.names()
    )


@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_comes_back_with_its_caption(tmp_path, kind, members):
    source, named, expected = source_of(tmp_path, kind)
    lines: list[str] = []
    manifest = write(
        Config(source, captions=named, members=members), tmp_path / "out", 3, shard_bytes=2000, tell=lines.append
    )
    assert (manifest.images, manifest.captions, manifest.unseen) == (COUNT, True, ())
    assert len(manifest.shards) > 1
    assert Manifest.read(tmp_path / "out") == manifest
    assert pairs(tmp_path / "out") == expected_pairs(expected)
    texts = set(map(expected, range(COUNT)))
    assert f"{len(texts)} different captions, the longest of 5 words" in lines


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_images_has_the_captions_of_these(tmp_path, kind):
    source, named, expected = source_of(tmp_path, kind)
    whole = expected_pairs(expected)
    write(Config(source, captions=named, limit=11), tmp_path / "first")
    first = pairs(tmp_path / "first")
    assert len(first) == 11
    assert first.items() <= whole.items()
    write(Config(source, captions=named, split=Split(holdout=0.3)), tmp_path / "split")
    trained, held = pairs(tmp_path / "split"), pairs(tmp_path / "split/holdout")
    assert min(len(trained), len(held)) > 0
    assert trained | held == whole


@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_an_image_that_cannot_be_read_takes_its_caption_with_it(tmp_path, kind, members):
    bad = (0, 7, 8, 20)
    source, named, expected = source_of(tmp_path, kind, lambda n: b"no image" if n in bad else png(n))
    lines: list[str] = []
    config = Config(source, captions=named, tolerance=0.2, members=members)
    manifest = write(config, tmp_path / "out", tell=lines.append)
    assert sum(each["images"] for each in manifest.quarantined) == len(bad)
    good = [number for number in range(COUNT) if number not in bad]
    assert pairs(tmp_path / "out") == expected_pairs(expected, good)
    assert f"{len(set(map(expected, good)))} different captions, the longest of 5 words" in lines


def test_a_block_that_cannot_be_read_takes_its_captions_with_it(tmp_path):
    blocks = [range(start, start + 10) for start in (0, 10, 20)]
    members = []
    for number, block in enumerate(blocks):
        array = npy(np.stack([pixels(each) for each in block]))
        texts = captions.encode([caption(each) for each in block])
        members += [(f"{number}.npy", b"damaged" if number == 1 else array), (f"{number}.captions.json", texts)]
    config = Config(tars(tmp_path, members), captions="txt", tolerance=0.1)
    manifest = write(config, tmp_path / "out")
    assert [each["name"] for each in manifest.quarantined] == ["in.tar//1"]
    assert pairs(tmp_path / "out") == expected_pairs(caption, [*blocks[0], *blocks[2]])


def dies_after(monkeypatch, tars: int, *work: Any, **more: Any) -> None:
    """A writer that dies when so many tars are kept."""
    save, kept = Ledger.save, []

    def dying(self: Ledger, state: dict[str, Any]) -> None:
        save(self, state)
        kept.append(state)
        if len(kept) == tars:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            write(*work, **more)


@pytest.mark.slow
@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_dies_goes_on_with_the_captions_of_the_next_image(tmp_path, kind, members, monkeypatch):
    source, named, _ = source_of(tmp_path, kind)
    config = Config(source, captions=named, members=members, split=Split(holdout=0.3))
    write(config, tmp_path / "whole", shard_bytes=700)
    kept, lines = Unfinished(tmp_path / "kept"), []
    for _ in range(2):
        dies_after(monkeypatch, 1, config, tmp_path / "out", shard_bytes=700, unfinished=kept)
    write(config, tmp_path / "out", 3, shard_bytes=700, unfinished=kept, tell=lines.append)
    assert any(line.startswith("goes on after ") for line in lines)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_captions_travel_to_another_process_with_their_images(tmp_path, kind):
    source, named, expected = source_of(tmp_path, kind)
    entries = [pickle.loads(pickle.dumps(entry)) for entry in selection.find(Config(source, captions=named)).entries]
    by_pixels = {
        np.asarray(picture).tobytes(): text
        for entry in entries
        for picture, text in zip(entry.read()[0], entry.captions, strict=True)
    }
    assert by_pixels == expected_pairs(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_without_data_captions_none_are_read_and_the_manifest_says_nothing_of_them(tmp_path, kind):
    source, named, _ = source_of(tmp_path, kind)
    manifest = write(Config(source), tmp_path / "plain")
    content = json.loads((tmp_path / "plain/manifest.json").read_text())
    assert not {"captions", "unseen"} & set(content)
    seen = ("schema", "images", "shape", "classes", "members", "shards")
    assert content["digest"] == disk.digest({name: content[name] for name in seen})
    assert open_shard(tmp_path / "plain", manifest, 0).captions is None
    with pytest.raises(UserError, match=r"plain has no captions: set data\.captions and run the shard stage again"):
        list(read.captions(tmp_path / "plain"))
    assert write(Config(source, captions=named), tmp_path / "with").digest != manifest.digest


def test_of_tars_with_captions_that_are_not_read_the_user_hears(tmp_path):
    source, _, _ = source_of(tmp_path, "shards, txt")
    (note,) = selection.find(Config(source)).notes
    assert note == "30 of 30 samples have captions, which are not read: data.captions: txt reads them"


@pytest.mark.parametrize("members", ["block", "image"])
def test_batches_of_images_with_captions_are_the_same_in_memory_and_streamed(tmp_path, members):
    source, named, _ = source_of(tmp_path, "shards, txt")
    write(Config(source, captions=named, members=members), tmp_path / "out", shard_bytes=2000)
    resident = feed.feed(tmp_path / "out", 7, 0, flip=True, memory_bytes=1 << 30)
    with feed.feed(tmp_path / "out", 7, 0, flip=True, memory_bytes=0) as streamed:
        for step in range(10):
            assert_same(resident.batch(step), streamed.batch(step))


def test_the_digits_say_what_is_measured_of_them(tmp_path):
    manifest = write(Config("digits", captions="caption"), tmp_path / "out")
    images = load_resident(tmp_path / "out")
    measured = attributes.captions(images.pixels.permute(0, 2, 3, 1).numpy(), images.labels.tolist())
    assert list(itertools.chain.from_iterable(read.captions(tmp_path / "out"))) == measured
    assert manifest.images == 1797
    write(Config("digits", captions="the digit {class}"), tmp_path / "class")
    texts = itertools.chain.from_iterable(read.captions(tmp_path / "class"))
    assert list(texts) == [f"the digit {label}" for label in images.labels.tolist()]


def test_captions_over_http_are_those_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "WAITS", (0.0,) * 4)
    source_of(tmp_path, "shards, txt")
    for named, expected in (("txt", caption), ("a photo of a {class}", of_number)):
        with files_over_http(Files(tmp_path)) as server:
            config = Config(f"shards:{server.address}/in.tar", captions=named)
            write(config, tmp_path / named, cache=Cache(tmp_path / "cache", 1 << 30))
        assert pairs(tmp_path / named) == expected_pairs(expected)


ODD = {
    "blanks about it": ("  a cat \t", "a cat"),
    "lines": ("a cat\r\non  a\n\nmat", "a cat on a mat"),
    "a zero": ("a\0cat", "a cat"),
    "other blanks": ("a\u00a0cat\u2028on\u3000a mat", "a cat on a mat"),
    "letters": ("un chat à côté d'un 猫 🐈", "un chat à côté d'un 猫 🐈"),
    "a comma and quotes": ('a "cat", or not', 'a "cat", or not'),
    "a long one": ("word " * 5000, "word " * 4999 + "word"),
    "braces": ("a {class} of cats", "a {class} of cats"),
}


@pytest.mark.parametrize("case", ODD)
def test_white_space_is_folded_and_all_else_stays(tmp_path, case):
    text, expected = ODD[case]
    kinds = ["shards, txt", "shards, json", "parquet", "npz", "folder, jsonl"] + ["folder, csv"] * ("\0" not in text)
    for kind in kinds:
        (tmp_path / kind).mkdir()
        source, named, _ = source_of(tmp_path / kind, kind, text=lambda number: text)
        entries = selection.find(Config(source, captions=named)).entries
        assert {each for entry in entries for each in entry.captions} == {expected}
    for members in ("block", "image"):
        write(Config(source, captions=named, members=members), tmp_path / members)
        assert set(pairs(tmp_path / members).values()) == {expected}


def without(*numbers: int, value: Any = None) -> Captions:
    return lambda number: value if number in numbers else caption(number)


def missing_json(root: Path, content: Content, text: Captions) -> str:
    records = [json.dumps({} if text(n) is None else {"text": text(n)}).encode() for n in range(COUNT)]
    return tars(
        root, [(f"{n:02d}.{w}", v) for n in range(COUNT) for w, v in (("png", content(n)), ("json", records[n]))]
    )


def missing_txt(root: Path, content: Content, text: Captions) -> str:
    parts = [(f"{n:02d}.{w}", v) for n in range(COUNT) for w, v in (("png", content(n)), ("txt", text(n)))]
    return tars(root, [(name, encoded(content)) for name, content in parts if content is not None])


def missing_rows(root: Path, content: Content, text: Captions) -> str:
    lines = [f"{name},{text(n)}\n" for n, name in enumerate(places(root / "in", content)) if text(n) is not None]
    (root / "in/metadata.csv").write_text("file_name,text\n" + "".join(lines))
    return f"folder:{root}/in"


def torn_json(root: Path, content: Content, text: Captions) -> str:
    return tars(root, [("00.png", content(0)), ("00.cls", b"0"), ("00.json", b'{"text": ')])


def short_block(root: Path, content: Content, text: Captions) -> str:
    array = npy(np.stack([pixels(number) for number in range(COUNT)]))
    return tars(root, [("0.npy", array), ("0.captions.json", captions.encode([text(n) for n in range(1, COUNT)]))])


MISSING = r"4 of 30 images have no caption in \S+ \(.*(11|07|7|24|3).*, \.\.\.\): give each one, or set data\.captions"
REFUSED: dict[str, tuple[Callable[[Path, Content, Captions], str], str, Captions, str]] = {
    "an empty cell": (folder_csv, "text", without(3, 7, 11, 24, value=""), MISSING),
    "a cell of blanks": (folder_csv, "text", without(3, 7, 11, 24, value=" \t "), MISSING),
    "a null": (folder_jsonl, "text", without(3, 7, 11, 24), MISSING),
    "rows that are missing": (missing_rows, "text", without(3, 7, 11, 24), MISSING),
    "a null in a table": (parquet, "text", without(3, 7, 11, 24), MISSING),
    "an empty text in an array": (npz, "text", without(3, 7, 11, 24, value=""), MISSING),
    "no txt": (missing_txt, "txt", without(3, 7, 11, 24), MISSING),
    "no key": (missing_json, "json.text", without(3, 7, 11, 24), MISSING),
    "none at all": (missing_json, "txt", caption, r"30 of 30 images have no caption in txt \(in\.tar//00, in\.tar//01, "),
    "a key of no object": (missing_json, "json.text.deeper", caption, r"have no caption in json\.text\.deeper"),
    "a number": (folder_jsonl, "text", without(7, value=7), r"the caption of dog/07\.png is 7, no text"),
    "a list": (shards_json, "json.more.text", without(7, value=["a", "b"]), r"in\.tar//07 has a list of 2 captions"),
    "an object": (shards_json, "json.more", caption, r"the caption of in\.tar//00 is \{'text': 'picture 0 .*\}, no text"),
    "numbers in a table": (parquet, "label", caption, r"the caption of part-0\.parquet/0/0 is 0, no text"),
    "bytes in a table": (parquet, "image", caption, r"image of .* is a column of bytes: name one of texts"),
    "no column in a table": (arrow, "txet", caption, r"has no column 'txet'; it has image, label, text"),
    "no column in a file": (folder_csv, "txet", caption, r"metadata\.csv has no column 'txet'; it has text"),
    "no file of captions": (folder, "text", caption, r"'text' is a column of metadata\.csv or metadata\.jsonl, and there is"),
    "no array": (npz, "txet", caption, r"0\.npz has no array 'txet'; it has images, labels, text"),
    "an array of numbers": (npz, "labels", caption, r"0\.npz cannot be read as npz .*must hold texts .*not int64"),
    "no UTF-8": (shards_txt, "txt", without(7, value=b"caf\xe9"), r"the caption of in\.tar//07 is not UTF-8: save it anew"),
    "half a character": (shards_json, "json.more.text", without(7, value="\ud800"), r"in\.tar//07 is not UTF-8"),
    "no json": (shards_txt, "json.text", caption, r"30 of 30 images have no caption in json\.text"),
    "no JSON": (torn_json, "json.text", caption, r"json\.text of .*in\.tar//00 cannot be read \(Expecting .*\): mend it"),
    "a list of blocks": (short_block, "txt", caption, r"txt of .*in\.tar//0 cannot be read \(29 captions for 30 images\)"),
    "no classes": (missing_txt, "a {class}", caption, r"30 of 30 images have no class \(in\.tar.*label all"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_caption_is_one_line_that_names_the_image(tmp_path, case):
    make, named, text, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as caught:
        write(Config(make(tmp_path, png, text), captions=named), tmp_path / "out")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_two_captions_of_one_image_are_refused_and_the_same_twice_is_one(tmp_path):
    source = folder_csv(tmp_path, png, caption)
    path = tmp_path / "in/metadata.csv"
    whole = path.read_text()
    path.write_text(f"{whole}./cat/00.png,{caption(0)}\n")
    assert selection.find(Config(source, captions="text")).images == COUNT
    path.write_text(f"{whole}./cat/00.png,another\n")
    with pytest.raises(UserError, match=r"cat/00\.png has two captions in metadata\.csv: mend it"):
        selection.find(Config(source, captions="text"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"file_name,text\n", r"data\.captions: metadata\.csv has no rows: write one for each image"),
        (b"", r"data\.captions: metadata\.csv has no rows: write one for each image"),
        (b"file_name\ncat/00.png\n", r"metadata\.csv has no column 'text'; it has no other"),
        (
            "file_name,text\ncat/00.png,\xe9".encode("latin-1"),
            r"metadata\.csv is not UTF-8 \(its byte 26\): save it as",
        ),
        ("file_name,text\n".encode("utf-16"), r"metadata\.csv is not UTF-8 \(its byte 0\): save it as UTF-8"),
    ],
)
def test_a_table_that_holds_no_captions_says_why(tmp_path, content, said):
    source = folder_csv(tmp_path, png, caption)
    (tmp_path / "in/metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        selection.find(Config(source, captions="text"))


def test_a_caption_that_is_no_number_is_no_text(tmp_path):
    source = folder_jsonl(tmp_path, png, lambda number: caption(number) if number else float("nan"))
    with pytest.raises(UserError, match=r"the caption of .*00\.png.* is nan, no text: write it in words"):
        write(Config(source, captions="text"), tmp_path / "out")


def test_a_caption_of_an_image_that_is_not_there_is_named(tmp_path):
    source = folder_csv(tmp_path, png, caption)
    with open(tmp_path / "in/metadata.csv", "a") as file:
        file.write("cat/99.png,a cat\n")
    manifest = write(Config(source, captions="text", tolerance=0.1), tmp_path / "out")
    (bad,) = manifest.quarantined
    assert bad["name"] == "cat/99.png"
    assert bad["reason"] == "FileNotFoundError: a caption is given for it, and it is not there"
    assert pairs(tmp_path / "out") == expected_pairs(caption)


def test_a_table_of_captions_in_parquet_beside_images_is_not_passed_over(tmp_path):
    source = folder(tmp_path, png, caption)
    (tmp_path / "in/metadata.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"^data\.captions: metadata\.parquet is not read: save it as metadata\.csv$"):
        selection.find(Config(source, captions="text", labels="folders"))


def test_classes_come_from_folders_or_a_column_whatever_the_captions_come_from(tmp_path):
    names = places(tmp_path / "in", png)
    rows = [("file_name", "text", "label"), *((name, caption(n), "xy"[n % 2]) for n, name in enumerate(names))]
    with open(tmp_path / "in/metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    for labels, classes in ((None, ("x", "y")), ("label", ("x", "y")), ("folders", tuple(NAMES)), ("none", None)):
        out = tmp_path / f"{labels}"
        manifest = write(Config(f"folder:{tmp_path}/in", captions="text", labels=labels), out)
        assert manifest.classes == classes
        assert pairs(out) == expected_pairs(caption)
        assert manifest.ignored == 0
        assert tmp_path / "in/metadata.csv" in selection.find(Config(f"folder:{tmp_path}/in", captions="text")).files
    write(Config(f"folder:{tmp_path}/in", captions="a photo of a {class}"), tmp_path / "class")
    assert pairs(tmp_path / "class") == expected_pairs(lambda number: f"a photo of a {'xy'[number % 2]}")


CONFIGURATIONS = {
    "an empty name": ({"captions": ""}, r"captions may be null, caption or a template with \{class\} for digits, not ''"),
    "another name": ({"captions": "text"}, r"captions may be null, caption or a template with \{class\} for digits"),
    "another brace": ({"captions": "a {class} {colour}"}, r"\{class\} alone stands in braces, not as in 'a \{class\} "),
    "an open brace": ({"captions": "a {clas"}, r"\{class\} alone stands in braces"),
    "classes that are not read": ({"captions": "{class}", "labels": "none"}, r"captions has \{class\}, and labels are none"),
    "a zip": ({"source": "zip:x", "captions": "text"}, r"may be null or a template with \{class\} for zip, which has none"),
    "a member of a tar": ({"source": "shards:x", "captions": "text"}, r"captions may be null, txt or json\.KEY or a"),
    "a json without a key": ({"source": "shards:x", "captions": "json"}, r"txt or json\.KEY"),
    "a json with an empty key": ({"source": "shards:x", "captions": "json.a."}, r"txt or json\.KEY"),
    "unseen without captions": ({"unseen": ["*"]}, r"unseen names captions, and captions is null"),
    "nothing unseen": ({"captions": "caption", "unseen": []}, r"unseen must name at least one caption: null leaves none out"),
    "an empty pattern": ({"captions": "caption", "unseen": ["*seven", ""]}, r"unseen must name at least one caption"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_what_a_source_cannot_have_is_refused_when_params_are_read(case):
    section, said = CONFIGURATIONS[case]
    with pytest.raises(ValueError, match=said):
        Config(**{"source": "digits"} | section)


@pytest.mark.parametrize("source", ["folder:x", "arrow:x", "parquet:x", "npz:x", "zip:x", "shards:x", "digits"])
def test_a_template_may_be_used_for_every_source(source):
    assert Config(source, captions="a {class}, yes a {class}").captions


@pytest.mark.slow
@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_unseen_captions_are_neither_trained_on_nor_held_out(tmp_path, kind, members):
    source, named, expected = source_of(tmp_path, kind)
    patterns = [f"*{expected(1).split()[-1]}", expected(1)]
    out = [number for number in range(COUNT) if expected(number).endswith(expected(1).split()[-1])]
    lines: list[str] = []
    config = Config(source, captions=named, unseen=patterns, split=Split(holdout=0.3), members=members)
    manifest = write(config, tmp_path / "out", tell=lines.append)
    texts = tuple(sorted({expected(number) for number in out}))
    assert f"left out by data.unseen: {len(out)} images of {len(texts)} captions" in lines
    assert manifest.unseen == Manifest.read(tmp_path / "out/holdout").unseen == texts
    trained, held = pairs(tmp_path / "out"), pairs(tmp_path / "out/holdout")
    assert trained | held == expected_pairs(expected, [number for number in range(COUNT) if number not in out])
    write(Config(source, captions=named, split=Split(holdout=0.3), members=members), tmp_path / "all")
    assert held.items() <= pairs(tmp_path / "all/holdout").items()  # no image changes its side


def test_a_limit_counts_what_is_left(tmp_path):
    manifest = write(Config("digits", captions="caption", unseen=["*zero"], limit=50), tmp_path / "out")
    assert manifest.images == manifest.found == 50
    assert manifest.unseen == tuple(sorted(f"a {w} {t} zero" for w in ("bold", "thin") for t in ("dark", "pale")))


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (
            ["*seven", "*dark eleven"],
            r"data\.unseen: no caption matches '\*dark eleven'; there are 40 \(a bold dark eight, ",
        ),
        (["*Seven"], r"no caption matches '\*Seven'"),
        (["seven"], r"no caption matches 'seven'"),
        (["a *"], r"data\.unseen leaves no image over: name fewer captions"),
    ],
)
def test_patterns_that_match_nothing_or_all_are_refused(patterns, said):
    with pytest.raises(UserError, match=said):
        selection.find(Config("digits", captions="caption", unseen=patterns))


def test_patterns_that_leave_nothing_held_out_are_refused(tmp_path):
    for part, word in (("train", "cat"), ("test", "dog")):
        (tmp_path / "in" / part / word).mkdir(parents=True)
        (tmp_path / "in" / part / word / "0.png").write_bytes(png(0))
    config = Config(f"folder:{tmp_path}/in", captions="{class}", split=Split(holdout=["test"]), unseen=["dog"])
    with pytest.raises(UserError, match=r"data\.unseen leaves no image of those held out: name fewer captions"):
        selection.find(config)


@pytest.mark.parametrize(
    ("key", "value"), [("captions", False), ("captions", None), ("unseen", []), ("unseen", ["a dog"]), ("unseen", None)]
)
def test_a_manifest_that_says_something_else_of_captions_is_refused(tmp_path, key, value):
    folder = tmp_path / "out"
    write(Config("digits", captions="caption", unseen=["*seven"], limit=20), folder)
    content = json.loads((folder / "manifest.json").read_text()) | {key: value}
    if value is None:
        del content[key]
    disk.write_json(folder / "manifest.json", content)
    with pytest.raises(UserError, match="was changed after it was written"):
        Manifest.read(folder)


def resealed(folder: Path, members: list[tuple[str, bytes]], **change: Any) -> Manifest:
    """A tar of `members` in the place of the only shard, with a manifest that vouches for it."""
    tars(folder, members)
    (folder / "in.tar").rename(folder / "000000.tar")
    path = folder / "000000.tar"
    content = json.loads((folder / "manifest.json").read_text()) | change
    content["shards"][0] |= {"sha256": disk.sha256(path), "bytes": path.stat().st_size}
    seen = ("schema", "images", "shape", "classes", "members", "shards", *({"captions"} & set(content)))
    content["digest"] = disk.digest({name: content[name] for name in seen})
    disk.write_json(folder / "manifest.json", content)
    return Manifest.read(folder)


BLOCK = npy(np.stack([pixels(0), pixels(1)]))
VOUCHED = {
    "none": ([("0.npy", BLOCK)], True, "has no captions, against the manifest"),
    "unannounced": ([("0.npy", BLOCK), ("0.captions.json", b'["a", "b"]')], False, "has unannounced captions, against"),
    "too few": ([("0.npy", BLOCK), ("0.captions.json", b'["a"]')], True, "1 captions for 2 images"),
    "too many": ([("0.npy", BLOCK), ("0.captions.json", b'["a", "b", "c"]')], True, "3 captions for 2 images"),
    "numbers": ([("0.npy", BLOCK), ("0.captions.json", b'["a", 1]')], True, "its captions are no list of texts"),
    "a text": ([("0.npy", BLOCK), ("0.captions.json", b'"ab"')], True, "its captions are no list of texts"),
    "no JSON": ([("0.npy", BLOCK), ("0.captions.json", b"[")], True, "000000.tar cannot be read"),
    "no UTF-8": ([("0.png", png(0)), ("0.txt", b"\xe9"), ("1.png", png(1)), ("1.txt", b"")], True, "cannot be read"),
    "only some": ([("0.png", png(0)), ("0.txt", b"a"), ("1.png", png(1))], True, "only some of its images have captions"),
    "only others": ([("0.png", png(0)), ("1.png", png(1)), ("1.txt", b"a")], True, "only some of its images have captions"),
}  # fmt: skip


@pytest.mark.parametrize("case", VOUCHED)
def test_a_vouched_shard_whose_captions_are_not_those_of_the_manifest_is_refused(tmp_path, case):
    members, has, said = VOUCHED[case]
    places(tmp_path / "in", png)
    write(Config(f"folder:{tmp_path}/in", limit=2, labels="none"), tmp_path / "out")
    manifest = resealed(tmp_path / "out", members, **({"captions": True} if has else {}))
    with pytest.raises(UserError, match=said):
        open_shard(tmp_path / "out", manifest, 0)
