"""What becomes of a user's picture, and what is said when there is none."""

import ast
import gc
import glob
import io
import json
import os
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from diffcore.core.errors import UserError
from diffcore.data import fitting, selection, sources, tars
from diffcore.data.config import Config
from diffcore.data.patterns import braces
from diffcore.data.split import Split


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, "PNG")
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def fitted(picture, shape=(3, 4, 4), **stated) -> np.ndarray:
    form = fitting.Form(shape, stated.get("size"), True, stated.get("filter", "lanczos"))
    return fitting.fit(picture, form, "it")[0]


def opened(config: Config) -> tuple[np.ndarray, list[int | None]]:
    source = selection.find(config)
    form = fitting.form(config, source)
    pixels, labels = [], []
    for entry in source.entries:
        pictures, names = entry.read()
        pixels += [fitting.fit(picture, form, entry.name)[0] for picture in pictures[: entry.images]]
        labels += names[: entry.images]
    return np.stack(pixels), labels


def test_digits_keep_every_level():
    from sklearn.datasets import load_digits

    pixels, labels = opened(Config("digits"))
    bunch = load_digits()
    assert pixels.shape == (1797, 8, 8, 1)
    assert np.array_equal(np.rint(pixels[..., 0] / 255 * 16), bunch.images)
    assert set(np.unique(pixels)) >= {0, 128, 255}
    assert labels == bunch.target.tolist()
    assert selection.find(Config("digits", limit=100)).images == 100


@pytest.mark.parametrize(("size", "longer"), [(12, 19), (11, 18), (31, 50), (40, 65)])  # 19.4, 17.7, 50 and 64.5 pixels
@pytest.mark.parametrize("filter", ["lanczos", "bicubic", "bilinear", "box"])
def test_the_resize_is_pillows_and_the_crop_the_middle(filter, size, longer):
    picture = Image.fromarray(random_pixels(31, 50, 3))
    wide = picture.resize((longer, size), Image.Resampling[filter.upper()])
    left = (longer - size) // 2
    expected = np.asarray(wide)[:, left : left + size]
    assert np.array_equal(fitted(picture, (3, size, size), size=size, filter=filter), expected)
    picture = picture.transpose(Image.Transpose.TRANSPOSE)
    tall = np.asarray(picture.resize((size, longer), Image.Resampling[filter.upper()]))[left : left + size]
    assert np.array_equal(fitted(picture, (3, size, size), size=size, filter=filter), tall)


@pytest.mark.parametrize("bits", [None, 9, 12, 16])
def test_what_is_said_of_16_bits_touches_no_picture_of_8(bits):
    """In a folder of both, grey or in colour."""
    form = fitting.Form((1, 4, 4), None, True, "lanczos", bits)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture = Image.fromarray(random_pixels(4, 4, 3)).convert(mode)
        found = fitting.fit(picture, form, "it")
        plain = fitting.fit(picture, fitting.Form((1, 4, 4), None, True, "lanczos"), "it")
        assert np.array_equal(found.pixels, plain.pixels)
        assert found.peak is None


def test_a_picture_of_the_right_size_is_not_resampled():
    pixels = random_pixels(4, 4, 3)
    assert np.array_equal(fitted(Image.fromarray(pixels), size=4), pixels)
    assert np.array_equal(fitted(Image.fromarray(random_pixels(4, 10, 3)), size=4), random_pixels(4, 10, 3)[:, 3:7])


def test_sixteen_bits_are_scaled_not_clipped():
    deep = np.array([[0, 128, 257], [32768, 65278, 65535]], dtype=np.uint16)
    picture = tars.decode(png(deep), "png")
    assert picture.mode.startswith("I;16")
    assert fitted(picture, (1, 2, 3))[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_transparency_lies_on_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8)
    picture = tars.decode(png(pixels), "png")
    assert fitted(picture, (3, 1, 2)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = tars.decode(png(np.array([[[7, 255], [7, 0]]], dtype=np.uint8)), "png")
    assert grey.mode == "LA"
    assert fitted(grey, (1, 1, 2))[..., 0].tolist() == [[7, 255]]


def test_palette_grey_bits_and_colour():
    palette = Image.fromarray(random_pixels(4, 4, 3)).quantize(16)
    file = io.BytesIO()
    palette.save(file, "GIF")
    assert np.array_equal(fitted(tars.decode(file.getvalue(), "any")), np.asarray(palette.convert("RGB")))
    grey = random_pixels(4, 4)
    assert np.array_equal(fitted(Image.fromarray(grey)), np.repeat(grey[..., None], 3, 2))
    bits = Image.fromarray(grey > 99)
    assert np.array_equal(fitted(bits, (1, 4, 4))[..., 0], (grey > 99) * np.uint8(255))
    luma = np.asarray(Image.fromarray(random_pixels(4, 4, 3)).convert("L"))
    assert np.array_equal(fitted(Image.fromarray(random_pixels(4, 4, 3)), (1, 4, 4))[..., 0], luma)
    assert np.array_equal(fitted(random_pixels(4, 4, 1)), np.repeat(random_pixels(4, 4, 1), 3, 2))


def test_pictures_stand_upright():
    picture = Image.fromarray(random_pixels(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    assert tars.decode(file.getvalue(), "png").size == (2, 3)


def test_32_bit_pixels_and_foreign_formats_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.ones((2, 2), np.float32)).save(file, "TIFF")
    with pytest.raises(ValueError, match="32-bit"):
        tars.decode(file.getvalue(), "any")
    with pytest.raises(OSError, match="cannot identify"):
        tars.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "any")
    with pytest.raises(OSError, match="cannot identify"):
        tars.decode(png(random_pixels(2, 2, 3)), "jpg")


def test_a_folder_has_its_subfolders_as_classes(tmp_path):
    for name, value in (("dog/2.PNG", 1), ("dog/1.jpg", 1), ("ape/deep/x.png", 0), ("emu/y.bmp", 2)):
        put(tmp_path / name, png(np.full((2, 2, 3), value, np.uint8)))
    put(tmp_path / "notes.txt", b"")
    put(tmp_path / "dog/.DS_Store", b"")
    put(tmp_path / "empty/readme.md", b"")
    source = selection.find(Config(f"folder:{tmp_path}"))
    assert (source.classes, source.images, source.ignored, source.splits) == (["ape", "dog", "emu"], 4, 3, None)
    pixels, labels = opened(Config(f"folder:{tmp_path}"))
    assert pixels[:, 0, 0, 0].tolist() == labels
    assert sorted(labels) == [0, 1, 1, 2]


def test_train_and_test_are_splits_not_classes(tmp_path):
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "test/b/0.png"):
        put(tmp_path / name, png(random_pixels(2, 2, 3)))
    source = selection.find(Config(f"folder:{tmp_path}"))
    assert (source.classes, source.splits) == (["a", "b"], {"test": 1, "train": 3})
    assert selection.find(Config(f"folder:{tmp_path}/train")).splits is None
    put(tmp_path / "other/0.png", png(random_pixels(2, 2, 3)))
    assert selection.find(Config(f"folder:{tmp_path}")).classes == ["other", "test", "train"]


def test_a_folder_without_subfolders_has_no_labels_and_one_order(tmp_path):
    for number in range(20):
        put(tmp_path / f"{number:02d}.png", png(np.full((2, 2, 3), number, np.uint8)))
    first, labels = opened(Config(f"folder:{tmp_path}"))
    again, _ = opened(Config(f"folder:{tmp_path}", limit=7))
    assert labels == [None] * 20
    order = first[:, 0, 0, 0].tolist()
    assert sorted(order) == list(range(20))
    assert order != list(range(20))
    assert again[:, 0, 0, 0].tolist() == order[:7]


def test_linked_folders_are_followed_once(tmp_path):
    put(tmp_path / "real/a/0.png", png(random_pixels(2, 2, 3)))
    os.symlink(tmp_path / "real", tmp_path / "real/a/loop")
    os.symlink(tmp_path / "real", tmp_path / "link")
    assert selection.find(Config(f"folder:{tmp_path}/link")).images == 1


def test_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "pictures/0.png", png(random_pixels(2, 2, 3)))
    assert selection.find(Config("folder:~/pictures")).images == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "there is no folder"),
        ("empty", "it is empty"),
        ("texts", r"only 1 \.txt \(a\.txt\)"),
        ("stray", r"also 0\.png"),
    ],
)
def test_folders_without_images_are_named(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "texts/a.txt", b"")
    put(tmp_path / "stray/0.png", png(random_pixels(2, 2, 3)))
    put(tmp_path / "stray/a/0.png", png(random_pixels(2, 2, 3)))
    with pytest.raises(UserError, match=said) as caught:
        selection.find(Config(f"folder:{tmp_path / name}"))
    assert "\n" not in str(caught.value)


def test_pictures_that_do_not_go_together_are_named(tmp_path):
    put(tmp_path / "a/0.png", png(random_pixels(2, 2, 3)))
    put(tmp_path / "a/1.png", png(random_pixels(2, 2)))
    with pytest.raises(UserError, match=r"data\.channels"):
        opened(Config(f"folder:{tmp_path}/a"))
    put(tmp_path / "b/0.png", png(random_pixels(2, 2, 3)))
    put(tmp_path / "b/1.png", png(random_pixels(2, 3, 3)))
    with pytest.raises(UserError, match=r"data\.size"):
        opened(Config(f"folder:{tmp_path}/b"))
    assert opened(Config(f"folder:{tmp_path}/a", channels=1))[0].shape == (2, 2, 2, 1)
    assert opened(Config(f"folder:{tmp_path}/b", size=2))[0].shape == (2, 2, 2, 3)


def test_shards_in_all_their_kinds(tmp_path):
    pixels = random_pixels(5, 6, 6, 3)
    members = [
        ("a/0.png", png(pixels[0])),
        ("a/0.cls", b"3\n"),
        ("../../b.json", json.dumps({"label": 1}).encode()),
        ("../../b.npy", npy(pixels[1])),
        ("/etc/c.cls", b"0"),
        ("/etc/c.npy", npy(pixels[2:3])),
        ("d.cls.npy", npy(np.array([2, 4]))),
        ("d.npy", npy(pixels[3:])),
    ]
    tar(tmp_path / "x-000.tar", members[:4])
    tar(tmp_path / "x-001.tar", members[4:])
    found, labels = opened(Config(f"shards:{tmp_path}/x-{{000..001}}.tar"))
    assert np.array_equal(found, pixels)
    assert labels == [3, 1, 0, 2, 4]
    limited, labels = opened(Config(f"shards:{tmp_path}/*.tar", limit=4))
    assert np.array_equal(limited, pixels[:4])
    assert sorted(path.name for path in tmp_path.parent.iterdir() if path.name.startswith("b.")) == []


def test_a_limit_counts_images_not_blocks(tmp_path):
    pixels = random_pixels(12, 2, 2, 3)
    tar(tmp_path / "x.tar", [(f"{i}.npy", npy(pixels[i : i + 5])) for i in (0, 5, 10)])
    found, _ = opened(Config(f"shards:{tmp_path}/x.tar", limit=7))
    assert np.array_equal(found, pixels[:7])


def test_braces_expand_as_in_a_shell():
    assert list(braces("{a,b}-{08..10}.tar")) == [f"{w}-{n}.tar" for w in "ab" for n in ("08", "09", "10")]
    assert list(braces("{9..11}")) == ["9", "10", "11"]
    assert list(braces("x{11..09}")) == ["x11", "x10", "x09"]
    assert list(braces("{0..10}"))[::5] == ["0", "5", "10"]


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_truncated_tar_is_refused(tmp_path, keep):
    whole = tar(tmp_path / "x.tar", [(f"{i}.png", png(random_pixels(20, 20, 3))) for i in range(9)]).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match=r"x\.tar cannot be read"):
        selection.find(Config(f"shards:{tmp_path}/x.tar"))


def test_a_tar_that_stops_between_two_members_or_goes_on_after_its_end(tmp_path):
    first = tar(tmp_path / "x.tar", [("0.npy", npy(random_pixels(2, 2, 3)))]).read_bytes()
    (tmp_path / "x.tar").write_bytes(first[:1024])
    with pytest.raises(UserError, match="ends early"):
        selection.find(Config(f"shards:{tmp_path}/x.tar"))
    for padding in (0, 3 << 20):  # tapes are padded, by any number of zeros
        (tmp_path / "x.tar").write_bytes(first + bytes(padding) + first)
        with pytest.raises(UserError, match="more after its end"):
            selection.find(Config(f"shards:{tmp_path}/x.tar"))
        (tmp_path / "x.tar").write_bytes(first + bytes(padding))
        assert selection.find(Config(f"shards:{tmp_path}/x.tar")).images == 1


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (["0.png", "0.pyd"], "unknown kind"),
        (["0.png", "0.pkl"], "unknown kind"),
        (["0.png", "0.pth"], "unknown kind"),
        (["0.png", "1.png", "0.cls"], "side by side"),
        (["0.cls"], "must have one part"),
        (["0.png", "0.jpg"], "must have one part"),
        (["0.png", "0.PNG"], "two parts"),
        ([], "hold no images"),
    ],
)
def test_faulty_tars_are_named(tmp_path, members, said):
    tar(tmp_path / "x.tar", [(name, png(random_pixels(2, 2, 3))) for name in members])
    with pytest.raises(UserError, match=said) as caught:
        selection.find(Config(f"shards:{tmp_path}/x.tar"))
    assert "\n" not in str(caught.value)


def test_a_missing_shard_a_link_and_a_compressed_tar(tmp_path):
    tar(tmp_path / "x-0.tar", [("0.png", png(random_pixels(2, 2, 3)))])
    for pattern, said in (("x-{0,1}.tar", r"no shard .*x-1\.tar"), ("y-*.tar", "no shard")):
        with pytest.raises(UserError, match=said):
            selection.find(Config(f"shards:{tmp_path}/{pattern}"))
    link = tarfile.TarInfo("0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as file:
        file.addfile(link)
    with pytest.raises(UserError, match="a link, a device or sparse"):
        selection.find(Config(f"shards:{tmp_path}/link.tar"))
    with tarfile.open(tmp_path / "z.tar", "w:gz") as file:
        file.add(tmp_path / "x-0.tar", "0.png")
    with pytest.raises(UserError, match="uncompressed"):
        selection.find(Config(f"shards:{tmp_path}/z.tar"))


def test_arrays_hold_whole_numbers_or_nothing_is_read():
    assert np.array_equal(tars.array(npy(random_pixels(3, 2))), random_pixels(3, 2))
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for bad in (
        objects.getvalue(),
        npy(np.ones(3)),
        npy(random_pixels(9))[:-1],
        npy(random_pixels(9)) + b"0",
        b"PK\x03\x04",
        b"",
    ):
        with pytest.raises(ValueError, match=r"."):
            tars.array(bad)


@pytest.mark.parametrize("label", [b"-1", b"70000", b"cat", b"1.5", b""])
def test_labels_are_whole_numbers_from_zero(label):
    with pytest.raises(ValueError, match=r"label|invalid literal"):
        tars.labels_of({"png": b"", "cls": label}, 1)


@pytest.mark.parametrize("word", ["-1", "65536", '"1"', "1.0", "1.5", "true", "false", "[1]", '{"label": 1}'])
def test_labels_in_a_json_are_whole_numbers_from_zero(word):
    for content in (word, f'{{"label": {word}}}', f'{{"cls": {word}}}', f'{{"label": {word}, "cls": 1}}'):
        if content != '{"label": 1}':
            with pytest.raises(ValueError, match="label"):
                tars.labels_of({"json": content.encode()}, 1)


@pytest.mark.parametrize(
    "source",
    [
        *("pipe:cat x", "shards:pipe:cat x", "shards:a{,pipe:b}", "folder:", "digit", ""),
        *("shards:gs://bucket/a.tar", "folder:s3://bucket/a", "folder:https://host/a"),
        *("shards:https://me:secret@host/a.tar", "shards:https://me@host/{a,b}.tar"),
    ],
)
def test_sources_that_are_no_place_on_the_disk_are_refused(source):
    with pytest.raises(ValueError, match="source"):
        Config(source)


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="size"):
        Config("digits", size=0)
    with pytest.raises(ValueError, match="limit"):
        Config("digits", limit=0)


def test_the_shape_is_the_first_picture_s_whatever_its_mode(tmp_path):
    modes = {"1": 1, "L": 1, "LA": 1, "I;16": 1, "P": 3, "RGB": 3, "RGBA": 3}
    for name, channels in modes.items():
        folder = tmp_path / name.replace(";", "")
        folder.mkdir()
        Image.new(name, (3, 2)).save(folder / "0.png")
        config = Config(f"folder:{folder}", bits=12, filter="box")
        form = fitting.form(config, selection.find(config))
        assert form == fitting.Form((channels, 2, 3), None, False, "box", 12)
    stated = Config(f"folder:{tmp_path}/RGB", size=5, channels=1)
    assert fitting.form(stated, selection.find(stated)) == fitting.Form((1, 5, 5), 5, True, "lanczos")


@pytest.mark.parametrize(("side", "enlarged"), [((5, 5), False), ((4, 9), True), ((9, 4), True), ((6, 5), False)])
def test_a_picture_is_enlarged_if_its_shorter_side_is_less_than_the_size(side, enlarged):
    form = fitting.Form((3, 5, 5), 5, True, "lanczos")
    assert fitting.fit(Image.new("RGB", side), form, "it").enlarged == enlarged


def test_large_pictures_are_pictures(tmp_path):
    """The bounds are against bombs, not against photographs of a few megapixels and megabytes."""
    path = tmp_path / "in/0.bmp"
    path.parent.mkdir()
    Image.new("RGB", (1500, 1400), (1, 2, 3)).save(path)
    assert path.stat().st_size > 6e6
    assert opened(Config(f"folder:{path.parent}", size=1400))[0].shape == (1, 1400, 1400, 3)


@pytest.mark.parametrize(
    ("mode", "format", "more"),
    [
        ("P", "PNG", {"transparency": 1}),
        ("P", "GIF", {"transparency": 1}),
        ("L", "PNG", {"transparency": 7}),
        ("RGB", "PNG", {"transparency": (7, 7, 7)}),
    ],
)
def test_a_colour_that_stands_for_nothing_lies_on_white_too(mode, format, more):
    """PNG-8, GIF, and PNGs without an alpha of their own: what is there stays, what is not is white."""
    picture = Image.new(mode, (2, 1), 0)
    if mode == "P":
        picture.putpalette([40, 40, 40, 7, 7, 7] + [0] * 762)
        picture.putpixel((1, 0), 1)
        there = 40
    else:
        there = 0
        picture.putpixel((1, 0), 7 if mode == "L" else (7, 7, 7))
    file = io.BytesIO()
    picture.save(file, format, **more)
    opened_again = Image.open(io.BytesIO(file.getvalue()))
    assert fitted(opened_again, (3, 1, 2)).tolist() == [[[there] * 3, [255] * 3]]


def test_an_array_with_transparency_lies_on_white_and_one_of_two_axes_is_grey():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8)
    (picture,) = tars.pictures_of({"npy": npy(pixels)})
    assert fitted(picture, (3, 1, 2)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    (picture,) = tars.pictures_of({"npy": npy(random_pixels(4, 5))})
    assert np.array_equal(picture, random_pixels(4, 5)[..., None])


@pytest.mark.parametrize(
    ("parts", "labels"),
    [
        ({"json": b'{"label": 1, "cls": 2}'}, [1, 1]),
        ({"json": b'{"cls": 2}'}, [2, 2]),
        ({"json": b'{"label": 0}'}, [0, 0]),
        ({"json": b'{"label": 0, "cls": 2}'}, [0, 0]),
        ({"json": b'{"cls": 0}'}, [0, 0]),
        ({"json": b"3"}, [3, 3]),
        ({"json": b"0"}, [0, 0]),
        ({"json": b"null"}, [None, None]),
        ({"json": b'{"name": "x"}'}, [None, None]),
        ({}, [None, None]),
        ({"cls.npy": npy(np.array([[65535], [0]], np.uint16)), "json": b"3"}, [65535, 0]),
    ],
)
def test_labels_in_all_their_kinds(parts, labels):
    assert tars.labels_of(parts, 2) == labels
    if len({*labels}) == 1:
        assert tars.labels_of(parts, 1) == labels[:1]
    assert tars.labels_of({"cls": b" 65535\n", "json": b"3"}, 1) == [65535]


def test_an_npy_of_the_second_version_is_read_and_of_the_third_not():
    for version, is_read in (((1, 0), True), ((2, 0), True), ((3, 0), False)):
        file = io.BytesIO()
        np.lib.format.write_array(file, random_pixels(3, 2), version=version)
        if is_read:
            assert np.array_equal(tars.array(file.getvalue()), random_pixels(3, 2))
        else:
            with pytest.raises(ValueError, match="header"):
                tars.array(file.getvalue())


@pytest.mark.parametrize("kind", ["u1", "<u2", ">i4", "<i8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4, 3), (0, 5)])
@pytest.mark.parametrize("written", [lambda words: words, lambda words: words.replace("'", '"').replace(" ", "")])
def test_the_header_of_an_npy_is_read_as_numpy_reads_it(kind, shape, written):
    values = np.arange(np.prod(shape), dtype=kind).reshape(shape)
    words = written(npy(values)[10:128].decode().strip())
    file = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(words)) + words.encode() + values.tobytes()
    found, right = tars.array(file), np.load(io.BytesIO(file))
    assert (found.dtype, found.shape) == (right.dtype, right.shape)
    assert np.array_equal(found, right)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "{",
        "{}",
        "{'descr': '|u1', 'fortran_order': False, }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': 3, }",
        "{'descr': '|u1', 'fortran_order': 0, 'shape': (3,), }",
        "{'descr': '|u1' 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), 'more': 1}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), } + {}",
        "x{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '|u3', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (3,), }",
        "{'descr': __import__('os'), 'fortran_order': False, 'shape': (3,), }",
    ],
)
def test_a_header_that_says_something_else_is_refused(words):
    file = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words.encode() + b"\0\1\2"
    with pytest.raises(ValueError, match=r"the header of the \.npy cannot be read"):
        tars.array(file)


def test_an_array_is_whole_whatever_is_parsed_beside_it():
    """Python's parser of syntax trees, with which NumPy reads a header, fails where another one begins within it."""

    class Rubbish:
        more = True

        def __init__(self):
            self.itself = self

        def __del__(self):  # in the midst of what was at work, as another thread is
            ast.literal_eval("[1, (2, 3)]")
            if Rubbish.more:
                Rubbish()

    whole, before = npy(np.arange(12).reshape(3, 4)), gc.get_threshold()
    gc.set_threshold(1)
    try:
        Rubbish()
        found = [int(tars.array(whole).sum()) for _ in range(20)]
    finally:
        Rubbish.more = False
        gc.set_threshold(*before)
        gc.collect()
    assert found == [66] * 20


def test_whole_numbers_of_32_bits_are_refused_too():
    file = io.BytesIO()
    Image.new("I", (2, 2)).save(file, "TIFF")
    with pytest.raises(ValueError, match="32-bit"):
        tars.decode(file.getvalue(), "any")


def test_a_tar_of_folders_has_a_sample_for_each_path(tmp_path):
    """As `tar cf x.tar pictures` writes it: members for the folders, equal names in them, extensions in capitals."""
    pixels = random_pixels(3, 2, 2, 3)
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name, content in (
            ("a", None),
            ("a/0.PNG", png(pixels[0])),
            ("b.c", None),
            ("b.c/0.png", png(pixels[1])),
            ("b.c/0.cls", b"1"),
            ("0.Png", png(pixels[2])),
        ):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            file.addfile(member, io.BytesIO(content or b""))
    found, labels = opened(Config(f"shards:{tmp_path}/x.tar"))
    assert np.array_equal(found, pixels)
    assert labels == [None, 1, None]


def test_shards_lie_below_home_in_any_depth_and_come_in_the_order_of_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d/e").mkdir(parents=True)
    for number, name in enumerate(("d/0.tar", "d/1.tar", "d/e/2.tar")):
        tar(tmp_path / name, [("0.npy", npy(np.full((2, 2, 3), number, np.uint8)))])
    listed = glob.glob
    monkeypatch.setattr(glob, "glob", lambda *words, **more: sorted(listed(*words, **more), reverse=True))
    assert opened(Config("shards:~/d/**/*.tar"))[0][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert opened(Config("shards:~/d/{1,0}.tar"))[0][:, 0, 0, 0].tolist() == [1, 0]
    names = [entry.name for entry in selection.find(Config("shards:~/d/*.tar")).entries]
    assert names == ["0.tar//0", "1.tar//0"]


def test_the_wider_number_says_how_wide_all_are():
    assert list(braces("{8..010}")) == ["008", "009", "010"]
    assert list(braces("{010..8}")) == ["010", "009", "008"]


def test_the_order_of_a_folder_is_not_the_file_system_s(tmp_path, monkeypatch):
    for number in range(12):
        put(tmp_path / "abc"[number % 3] / f"{number}.png", png(random_pixels(2, 2, 3, seed=number)))
    found = opened(Config(f"folder:{tmp_path}"))
    walk = os.walk

    def reversed_walk(*words, **more):
        for here, folders, names in walk(*words, **more):
            folders.reverse()
            yield here, folders, names[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    again = opened(Config(f"folder:{tmp_path}"))
    assert np.array_equal(found[0], again[0])
    assert found[1] == again[1]


def test_a_class_that_is_a_link_to_a_folder_is_read(tmp_path):
    put(tmp_path / "far/0.png", png(random_pixels(2, 2, 3)))
    put(tmp_path / "in/a/0.png", png(random_pixels(2, 2, 3)))
    os.symlink(tmp_path / "far", tmp_path / "in/b")
    assert selection.find(Config(f"folder:{tmp_path}/in")).classes == ["a", "b"]


def test_bits_from_nine_to_sixteen_are_taken():
    assert [Config("digits", bits=bits).bits for bits in (9, 16)] == [9, 16]


@pytest.mark.parametrize(
    "values",
    [random_pixels(3, 2).T, np.asfortranarray(random_pixels(2, 3, 4, 3)), random_pixels(4, 5, 3).transpose(1, 0, 2)],
)
def test_an_npy_whose_rows_lie_in_another_order_is_refused_and_not_scrambled(tmp_path, values):
    """np.save keeps the order of a transposed array's memory."""
    if values.flags.f_contiguous:
        with pytest.raises(ValueError, match="C order"):
            tars.array(npy(values))
    assert np.array_equal(tars.array(npy(np.ascontiguousarray(values))), values)
    if values.ndim == 4:
        with pytest.raises(UserError, match="C order"):
            opened(Config(f"shards:{tar(tmp_path / 'x.tar', [('0.npy', npy(values))])}"))


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i8", ">i8", "u1"])
def test_labels_in_an_npy_are_read_in_their_own_byte_order(kind):
    assert tars.labels_of({"cls.npy": npy(np.array([3, 200], kind))}, 2) == [3, 200]


EXTENSIONS = {
    **{"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"},
    **{"bmp": "BMP", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF"},
}


def image_file(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (90, 90, 90)).save(file, kind)
    return file.getvalue()


def test_images_of_these_kinds_are_found_in_a_folder_in_small_letters_and_in_capitals(tmp_path):
    """Written out, as data sets hold them: ImageNet's are called .JPEG."""
    known = EXTENSIONS | ({"avif": "AVIF"} if features.check("avif") else {})
    names = sorted(f"{number}.{e}" for e in known for number, e in enumerate((e, e.upper(), e.capitalize())))
    for name in names:
        put(tmp_path / name, image_file(known[name.partition(".")[2].lower()]))
    put(tmp_path / "no.pngx", b"")
    source = selection.find(Config(f"folder:{tmp_path}"))
    assert (sorted(entry.name for entry in source.entries), source.ignored) == (names, 1)
    assert len(opened(Config(f"folder:{tmp_path}"))[0]) == len(names)


def test_images_of_these_kinds_are_read_from_a_tar_and_no_others(tmp_path):
    words = ("png", "jpg", "jpeg", "webp", "npy")
    contents = {word: npy(np.full((2, 2, 3), 90, np.uint8)) if word == "npy" else None for word in words}
    contents = {word: content or image_file(EXTENSIONS[word]) for word, content in contents.items()}
    members = [(f"{w}{n}.{e}", contents[w]) for w in words for n, e in enumerate((w, w.upper()))]
    pixels, _ = opened(Config(f"shards:{tar(tmp_path / 'x.tar', members)}"))
    assert len(pixels) == 2 * len(words)
    assert np.abs(pixels.astype(int) - 90).max() < 4
    for word in {*EXTENSIONS} - {*words}:
        with pytest.raises(UserError, match="unknown kind"):
            selection.find(Config(f"shards:{tar(tmp_path / 'y.tar', [(f'0.{word}', image_file(EXTENSIONS[word]))])}"))


@pytest.mark.parametrize("order", "<>")
def test_grey_tiffs_of_16_bits_are_the_same_pictures_in_either_byte_order(tmp_path, order):
    """ImageJ and microscopes write big-endian ones, which Pillow calls by another mode."""
    deep = np.array([[0, 128, 257], [32768, 65278, 65535]], dtype=np.uint16)
    put(tmp_path / "0.tif", tiff16(deep[..., None], order))
    config = Config(f"folder:{tmp_path}")
    assert fitting.form(config, selection.find(config)).shape == (1, 2, 3)
    pixels, _ = opened(config)
    assert pixels[0, ..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    fit = fitting.fit(
        tars.decode(tiff16(deep[..., None], order), "any"), fitting.form(config, selection.find(config)), "it"
    )
    assert fit.peak == 65535


def tiff16(values: np.ndarray, order: str = "<", packed: bool = False) -> bytes:
    """An uncompressed TIFF of 16 bits a channel, little- or big-endian; `packed`: deflated, which another decoder reads."""
    height, width, channels = values.shape
    strip = values.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if packed else strip
    fields = {256: width, 257: height, 258: 16, 259: 8 if packed else 1, 262: 2 if channels == 3 else 1}
    fields |= {273: 8, 277: channels, 278: height, 279: len(strip)}
    bits = 8 + len(strip) + len(strip) % 2  # where the bits of each channel stand, which are too long for a field
    entries = b""
    for tag, value in fields.items():
        count, kind, word = 1, 4, struct.pack(f"{order}I", value)
        if tag == 258:
            short = struct.pack(f"{order}HH", 16, 0)
            count, kind, word = channels, 3, struct.pack(f"{order}I", bits) if channels > 2 else short
        entries += struct.pack(f"{order}HHI", tag, kind, count) + word
    depths = struct.pack(f"{order}{channels}H", *[16] * channels) + b"\0" * (2 * channels % 4)
    directory = struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    head = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(f"{order}I", bits + len(depths))
    return head + start + strip + b"\0" * (len(strip) % 2) + depths + directory


@pytest.mark.parametrize(("order", "packed"), [("<", False), (">", False), ("<", True), (">", True)])
def test_twelve_bits_in_a_colour_tiff_are_known_as_such(order, packed):
    """Of 16 bits in colour Pillow keeps the upper 8 and does not tell that there were more."""
    dark = np.array([[[0, 4095, 0], [100, 0, 9]]])
    picture = tars.decode(tiff16(dark, order, packed), "any")
    assert fitted(picture, (3, 1, 2)).tolist() == [[[0, 15, 0], [0, 0, 0]]]
    assert fitting.fit(picture, fitting.Form((3, 1, 2), None, True, "lanczos"), "it").peak == 15 * 257
    with pytest.raises(UserError, match="in colour"):
        fitting.fit(picture, fitting.Form((3, 1, 2), None, True, "lanczos", 12), "it")


def test_two_folders_of_one_number_on_two_disks_are_two(tmp_path, monkeypatch):
    """The roots of file systems often share their inode's number."""
    for name in ("a", "b"):
        put(tmp_path / name / "0.png", png(random_pixels(2, 2, 3)))
    numbers = {tmp_path / "a": (7, 1), tmp_path / "b": (7, 2)}
    real = os.stat

    def stat(path, *words, **more):
        found = list(real(path, *words, **more))
        found[1:3] = numbers.get(Path(path), found[1:3]) if isinstance(path, str | Path) else found[1:3]
        return os.stat_result(found)

    monkeypatch.setattr(os, "stat", stat)
    assert selection.find(Config(f"folder:{tmp_path}")).classes == ["a", "b"]
    numbers[tmp_path / "b"] = (8, 1)
    assert selection.find(Config(f"folder:{tmp_path}")).classes == ["a", "b"]
    numbers[tmp_path / "b"] = (7, 1)
    assert selection.find(Config(f"folder:{tmp_path}")).images == 1


def test_of_a_folder_and_a_link_to_it_the_first_name_counts_whatever_the_file_system_says(tmp_path, monkeypatch):
    put(tmp_path / "in/b/0.png", png(random_pixels(2, 2, 3)))
    put(tmp_path / "in/c/0.png", png(random_pixels(2, 2, 3)))
    os.symlink(tmp_path / "in/b", tmp_path / "in/a")
    os.symlink(tmp_path / "in/c", tmp_path / "in/d")
    walk = os.walk
    for turned in (False, True):

        def ordered(*words, turned=turned, **more):
            for here, folders, names in walk(*words, **more):
                folders.sort(reverse=turned)
                yield here, folders, names

        monkeypatch.setattr(os, "walk", ordered)
        assert selection.find(Config(f"folder:{tmp_path}/in")).classes == ["a", "c"]


RAMP = """
import numpy as np

from diffcore.data.sources import Entry, Kind, Source


class Ramp(Kind):
    place = "COUNT"

    def find(self, place, labels, split):
        pixels = np.arange(int(place), dtype=np.uint8).reshape(-1, 1, 1, 1)
        return Source([Entry("ramp", len(pixels), lambda: (list(pixels), [None] * len(pixels)))], None)
"""


def test_a_new_kind_of_source_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "ramp.py").write_text(RAMP)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "diffcore.data.sources.ramp", raising=False)
    assert sources.names() == ["arrow", "digits", "folder", "npz", "parquet", "ramp", "shards", "teacher", "zip"]
    assert opened(Config("ramp:7", limit=5))[0].ravel().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(
        ValueError,
        match=r"source must be arrow:PATH, .*folder:PATH, .*ramp:COUNT, .*shards:PATTERN, teacher:N or zip:PATH, not 'ramp'",
    ):
        Config("ramp")
    with pytest.raises(ValueError, match="split names folders, and ramp has none"):
        Config("ramp:7", split=Split(holdout=["test"]))
