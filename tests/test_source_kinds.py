"""Datasets of Hugging Face on the disk, zips of EDM and archives of NumPy give the images of the same folder."""

import io
import json
import pickle
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffcore.core import disk
from diffcore.core.errors import UserError
from diffcore.data import fitting, selection
from diffcore.data.config import Config
from diffcore.data.ledger import Unfinished
from diffcore.data.read import load_resident
from diffcore.data.split import Split
from diffcore.data.write import write
from tests.test_shards import Bomb

COUNT, NAMES = 30, ["cat", "dog", "emu"]
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
END = b"\xff\xff\xff\xff\0\0\0\0"


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def table(
    numbers: range, cells: list | None = None, labels: list | None = None, names: list | None = NAMES
) -> pa.Table:
    """Images and labels as Hugging Face's datasets write them."""
    cells = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers] if cells is None else cells
    labels = [number % 3 for number in numbers] if labels is None else labels
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": features}})
    columns = {"image": pa.array(cells, CELL), "label": pa.array(labels)}
    return pa.table(columns).replace_schema_metadata({"huggingface": info})


def save_to_disk(folder: Path, tables: list[pa.Table]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, each in zip(names, tables):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, each.schema) as stream:
            stream.write_table(each, max_chunksize=4)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def arrow(root: Path) -> str:
    return f"arrow:{save_to_disk(root / 'saved', [table(range(20)), table(range(20, COUNT))])}"


def parquet(root: Path) -> str:
    for number, numbers in enumerate((range(20), range(20, COUNT))):
        pq.write_table(table(numbers), root / f"part-{number}.parquet", row_group_size=7)
    return f"parquet:{root}/part-{{0..1}}.parquet"


def edm(root: Path, content: Callable[[int], bytes] = png, word: str = "png", labels: object = ...) -> str:
    names = [f"{number // 10:05d}/img{number:08d}.{word}" for number in range(COUNT)]
    if labels is ...:
        labels = [[name, number % 3] for number, name in enumerate(names)]
    with zipfile.ZipFile(root / "edm.zip", "w") as file:
        for number, name in enumerate(names):
            file.writestr(name, content(number))
        file.writestr("dataset.json", json.dumps({"labels": labels}))
    return f"zip:{root}/edm.zip"


def raw_edm(root: Path) -> str:
    return edm(root, lambda number: npy(pixels(number).transpose(2, 0, 1)), "npy")


def npz(root: Path, save: Callable = np.savez, first: bool = False) -> str:
    images = np.stack([pixels(number) for number in range(COUNT)])
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if first else images
    save(root / "a.npz", images=images, labels=np.arange(COUNT) % 3)
    return f"npz:{root}/a.npz"


def blocks(root: Path) -> str:
    """Several entries: their pixels and labels go together."""
    images = np.stack([pixels(number % COUNT) for number in range(5 * COUNT)])
    np.savez(root / "a.npz", arr_0=images, arr_1=np.arange(5 * COUNT) % COUNT)
    return f"npz:{root}/a.npz"


def test_blocks_of_an_npz_keep_their_own_labels(tmp_path):
    entries = selection.find(Config(blocks(tmp_path))).entries
    assert len(entries) > 1
    read = [(picture, label) for entry in entries for picture, label in zip(*entry.read())]
    assert len(read) == 5 * COUNT
    assert all(np.array_equal(picture, pixels(label)) for picture, label in read)


KINDS = {
    "arrow": arrow,
    "parquet": parquet,
    "zip": edm,
    "zip of arrays": raw_edm,
    "npz": npz,
    "compressed npz": lambda root: npz(root, np.savez_compressed),
    "npz with channels first": lambda root: npz(root, first=True),
}
SURFACE = {"arrow": NAMES, "parquet": NAMES}


def content(folder: Path) -> dict[str, str]:
    return {path.name: disk.sha256(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("members", ["block", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_comes_back_exactly_with_its_label(tmp_path, kind, members):
    manifest = write(Config(KINDS[kind](tmp_path), members=members), tmp_path / "out", shard_bytes=2000)
    assert (manifest.found, manifest.images, manifest.shape) == (COUNT, COUNT, (3, 6, 5))
    assert list(manifest.classes) == SURFACE.get(kind, ["0", "1", "2"])
    images = load_resident(tmp_path / "out")
    found = {row.permute(1, 2, 0).numpy().tobytes(): int(label) for row, label in zip(images.pixels, images.labels)}
    assert found == {pixels(number).tobytes(): number % 3 for number in range(COUNT)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_the_same_each_time_and_with_any_number_of_threads(tmp_path, kind):
    config = Config(KINDS[kind](tmp_path), members="image")
    write(config, tmp_path / "1", 1)
    write(config, tmp_path / "2", 3)
    assert content(tmp_path / "1") == content(tmp_path / "2")


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_reads_what_this_one_does(tmp_path, kind):
    """An entry travels as bytes, also one of a part of the images and one without its labels."""
    source = KINDS[kind](tmp_path)
    for config in (Config(source), Config(source, labels="none"), Config(source, split=Split(holdout=0.3))):
        for entry in selection.find(config).entries:
            (pictures, labels), (again, same) = entry.read(), pickle.loads(pickle.dumps(entry)).read()
            assert all(np.array_equal(one, other) for one, other in zip(pictures, again, strict=True))
            assert list(labels) == list(same)


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_no_labels_and_a_held_out_share(tmp_path, kind):
    source = KINDS[kind](tmp_path)
    write(Config(source), tmp_path / "whole")
    part = write(Config(source, limit=7, labels="none"), tmp_path / "part")
    assert (part.images, part.classes) == (7, None)
    assert torch.equal(load_resident(tmp_path / "part").pixels, load_resident(tmp_path / "whole").pixels[:7])
    write(Config(source, split=Split(holdout=0.3)), tmp_path / "split")
    trained, held = load_resident(tmp_path / "split").pixels, load_resident(tmp_path / "split/holdout").pixels
    rows = Counter(row.numpy().tobytes() for row in torch.cat([trained, held]))
    assert rows == Counter(row.numpy().tobytes() for row in load_resident(tmp_path / "whole").pixels)
    assert 0 < len(held) < COUNT


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_dies_goes_on_and_a_changed_file_starts_anew(tmp_path, kind, monkeypatch):
    source = KINDS[kind](tmp_path)
    config, kept, lines = Config(source, members="image"), Unfinished(tmp_path / "kept"), []
    with monkeypatch.context() as patch:
        patch.setattr("diffcore.data.write._manifest", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(config, tmp_path / "out", shard_bytes=500, unfinished=kept)
    write(config, tmp_path / "out", shard_bytes=500, unfinished=kept, tell=lines.append)
    assert f"goes on after {COUNT} of {COUNT} images" in lines
    write(config, tmp_path / "whole", shard_bytes=500)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert selection.find(config).files


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_off_is_one_line(tmp_path, kind, keep):
    source = KINDS[kind](tmp_path)
    path = sorted([*tmp_path.rglob("*.arrow"), *tmp_path.glob("*.parquet"), *tmp_path.glob("*.[nz]*")])[0]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(UserError, match=r"cannot be read") as caught:
        write(Config(source), tmp_path / "out")
    assert str(caught.value).isprintable()
    assert path.name in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [arrow, parquet], ids=["arrow", "parquet"])
def test_one_damaged_picture_of_a_table_is_left_out_by_name_and_no_other(tmp_path, make, monkeypatch):
    monkeypatch.setitem(globals(), "png", lambda number: b"no image" if number == 21 else PNG(number))
    manifest = write(Config(make(tmp_path), tolerance=0.1), tmp_path / "out")
    assert manifest.images == COUNT - 1
    (bad,) = manifest.quarantined
    assert "cannot identify" in bad["reason"]


PNG = png


@pytest.mark.parametrize("values", [["emu", "cat", "dog"], [2, 0, 1]], ids=["names", "numbers"])
def test_labels_of_a_table_are_names_or_numbers(tmp_path, values):
    named = [values[number % 3] for number in range(9)]
    save_to_disk(tmp_path / "in", [table(range(9), labels=named, names=None)])
    source = selection.find(Config(f"arrow:{tmp_path}/in"))
    assert source.classes == (["cat", "dog", "emu"] if values[0] == "emu" else None)
    assert sorted(entry.read()[1][0] for entry in source.entries) == sorted([0, 1, 2] * 3)
    by_name = {entry.name: entry.read()[1][0] for entry in source.entries}
    assert by_name["data-00000-of-00001.arrow/0"] == 2


def two_columns(root: Path) -> str:
    both = table(range(6)).append_column("coarse_label", pa.array([0, 1] * 3))
    return f"arrow:{save_to_disk(root / 'in', [both])}"


def test_one_of_several_columns_of_labels_is_named_by_the_configuration(tmp_path):
    source = two_columns(tmp_path)
    with pytest.raises(UserError, match=r"several columns of labels \(label, coarse_label\): set data\.labels"):
        selection.find(Config(source))
    by_name = {
        e.name.rpartition("/")[2]: e.read()[1][0] for e in selection.find(Config(source, labels="coarse_label")).entries
    }
    assert [by_name[str(row)] for row in range(6)] == [0, 1] * 3
    with pytest.raises(UserError, match=r"no column 'lable'; it has label, coarse_label"):
        selection.find(Config(source, labels="lable"))


def splits(root: Path, kind: str) -> str:
    if kind == "arrow":
        for name, numbers in (("train", range(20)), ("test", range(20, COUNT))):
            save_to_disk(root / "in" / name, [table(numbers)])
        (root / "in/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
        return f"arrow:{root}/in"
    for name, numbers in (("train", range(20)), ("test", range(20, COUNT))):
        pq.write_table(table(numbers), root / f"{name}-00000-of-00001.parquet")
    return f"parquet:{root}/*.parquet"


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_splits_are_trained_on_or_held_out_by_name(tmp_path, kind):
    source = splits(tmp_path, kind)
    whole = selection.find(Config(source))
    assert (whole.images, whole.splits) == (COUNT, {"test": 10, "train": 20})
    assert "trains on all splits" in whole.notes[0]
    parted = selection.find(Config(source, split=Split(holdout=["test"])))
    assert (parted.images, parted.held.images) == (20, 10)
    assert {entry.read()[0][0].tobytes() for entry in parted.held.entries} == {
        pixels(number).tobytes() for number in range(20, COUNT)
    }
    with pytest.raises(UserError, match="there is no split 'dev'"):
        selection.find(Config(source, split=Split(holdout=["dev"])))


def saved(**state: object) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        source = arrow(root)
        path = root / "saved/state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | state))
        return source

    return make


def tabled(**more: object) -> Callable[[Path], str]:
    return lambda root: f"arrow:{save_to_disk(root / 'in', [table(range(3), **more)])}"


def arrays(**values: np.ndarray) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        np.savez(root / "a.npz", **values)
        return f"npz:{root}/a.npz"

    return make


def pickled(root: Path) -> str:
    with zipfile.ZipFile(root / "a.npz", "w") as file:
        file.writestr("images.npy", pickle.dumps(Bomb(root / "executed")))
    return f"npz:{root}/a.npz"


def latents(root: Path) -> str:
    return edm(root, lambda number: npy(np.zeros((8, 4, 4), np.float32)), "npy")


def encrypted(root: Path) -> str:
    source = edm(root)
    content = bytearray((root / "edm.zip").read_bytes())
    for start in (content.find(b"PK\x01\x02", at) for at in range(0, len(content), 46)):
        if start >= 0:
            content[start + 8] |= 1
    (root / "edm.zip").write_bytes(content)
    return source


def sixteen(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint16)


FIRST = "00000/img00000000.png"
UNFIT: dict[str, tuple[Callable[[Path], str], str]] = {
    "no saved dataset": (lambda root: f"arrow:{root}", r"no folder of save_to_disk, .* \(.*state\.json is missing\)"),
    "a place that is not there": (lambda root: f"arrow:{root}/nowhere", r"no folder of save_to_disk"),
    "a choice of rows": (saved(_indices_files=[{"filename": "i.arrow"}]), r"flatten_indices"),
    "a file elsewhere": (saved(_data_files=[{"filename": "../x.arrow"}]), r"is no name of a file beside it"),
    "a file that is not there": (saved(_data_files=[{"filename": "x.arrow"}]), r"x\.arrow cannot be read as a table"),
    "no list of files": (saved(_data_files=None), r"cannot be read as what save_to_disk writes"),
    "images by their paths": (tabled(cells=[{"bytes": None, "path": "/etc/passwd"}] * 3), r"only a path"),
    "rows without images": (tabled(cells=[None] * 3), r"there is no image in this row"),
    "a hidden label": (tabled(labels=[-1, -1, -1]), r"row 0 has label -1, not in 0 \.\. 2"),
    "a label beyond its names": (tabled(labels=[0, 1, 3]), r"row 2 has label 3, not in 0 \.\. 2"),
    "some labels": (tabled(labels=[0, None, 1]), r"label all images or none"),
    "no parquet": (lambda root: f"parquet:{root}/*.parquet", r"there is no parquet file"),
    "no zip": (lambda root: f"zip:{root}/a.zip", r"there is no file"),
    "a zip of latents": (latents, r"holds no pixels .*float32.* latents are not trained on"),
    "an encrypted zip": (encrypted, r"cannot be read|encrypted"),
    "a zip with some labels": (lambda root: edm(root, labels=[[FIRST, 1]]), r"29 of 30 images have no label"),
    "a zip with labels of text": (lambda root: edm(root, labels=[[FIRST, "cat"]]), r"no whole number"),
    "a pickle": (pickled, r"a\.npz cannot be read as npz .the header of the \.npy"),
    "arrays of other names": (arrays(foo=sixteen(2, 4, 4, 3)), r"none of its arrays is images, x, arr_0; it has foo"),
    "16 bits": (arrays(images=sixteen(2, 4, 4, 3)), r"images\.npy is uint16"),
    "too few labels": (arrays(x=pixels(0)[None], y=np.zeros(2, np.int64)), r"y is \[2\], and there are 1 images"),
    "labels below none": (arrays(x=pixels(0)[None], y=np.array([-1])), r"y is not in 0 \.\. 65535"),
    "labels that are fractions": (arrays(x=pixels(0)[None], y=np.array([0.5])), r"whole numbers .* not float64"),
    "objects": (arrays(x=np.array([{}], dtype=object)), r"cannot be read as npz .*not object"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_read_is_one_line(tmp_path, case):
    make, said = UNFIT[case]
    with pytest.raises(UserError, match=said) as caught:
        write(Config(make(tmp_path)), tmp_path / "out")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "executed").exists()


def test_a_table_without_images_or_with_several_columns_of_them_says_which_there_are(tmp_path):
    save_to_disk(tmp_path / "in", [pa.table({"text": ["a"], "label": [0]})])
    with pytest.raises(UserError, match=r"none of images, of text, label"):
        selection.find(Config(f"arrow:{tmp_path}/in"))
    cells = pa.array([png(0)])
    save_to_disk(tmp_path / "in", [pa.table({"left": cells, "right": cells})])
    with pytest.raises(UserError, match=r"several columns of images \(left, right\), and none is called image"):
        selection.find(Config(f"arrow:{tmp_path}/in"))
    save_to_disk(tmp_path / "named", [pa.table({"image": cells, "mask": cells})])
    assert selection.find(Config(f"arrow:{tmp_path}/named")).images == 1


def test_an_end_of_a_table_that_is_missing_is_noticed_where_arrow_would_not(tmp_path):
    """Arrow takes a stream that stops between two messages for a whole one."""
    source = arrow(tmp_path)
    path = sorted(tmp_path.rglob("*.arrow"))[0]
    whole = path.read_bytes()
    assert whole.endswith(END)
    path.write_bytes(whole[: -len(END)])
    assert pa.ipc.open_stream(path.read_bytes()).read_all().num_rows == 20
    with pytest.raises(UserError, match="it ends early"):
        selection.find(Config(source))


def test_entries_of_sorted_sources_are_dealt(tmp_path):
    for kind in ("arrow", "zip"):
        (tmp_path / kind).mkdir()
        names = [entry.name for entry in selection.find(Config(KINDS[kind](tmp_path / kind))).entries]
        assert names != sorted(names)


def test_labels_of_an_edm_zip_that_says_null_are_none(tmp_path):
    source = selection.find(Config(edm(tmp_path, labels=None)))
    assert {label for entry in source.entries for label in entry.read()[1]} == {None}
    assert "its dataset.json has no labels" in source.notes[0]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    source = parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs? pyarrow, which is not installed: pip install 'distill\[arrow\]'"):
        selection.find(Config(source))


def test_the_shape_is_the_first_images_and_pictures_are_fitted_as_all_others(tmp_path):
    config = Config(edm(tmp_path), size=4)
    assert fitting.form(config, selection.find(config)).shape == (3, 4, 4)
    assert write(config, tmp_path / "out").shape == (3, 4, 4)
