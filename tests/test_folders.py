"""What class an image is of: by folders, dataset.json or metadata, and never by a guess."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcore.core.errors import UserError
from diffcore.data import folders, selection, sources, tars
from diffcore.data.config import Config
from diffcore.data.split import Split
from diffcore.data.write import write


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2, 3), value, np.uint8)).save(path)


def album(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        image(root / name, number)
    return root


def found(root: Path, **asked) -> sources.Source:
    return selection.find(Config(f"folder:{root}", **asked))


def labels(source: sources.Source) -> dict[str, int | str | None]:
    """By name of the image; by the class's name where there are some."""
    read = {entry.name: entry.read()[1][0] for entry in source.entries}
    return {name: source.classes[label] if source.classes else label for name, label in sorted(read.items())}


def metadata(root: Path, rows: list[dict], name: str = "metadata.csv") -> Path:
    if name.endswith(".jsonl"):
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
        (root / name).write_text("".join(",".join(line) + "\n" for line in lines))
    return root


def styled(root: Path, pairs: object) -> Path:
    (root / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return root


PAIR = ("00000/img0.png", "00000/img1.png")


def test_stylegans_labels_are_those_of_its_json(tmp_path):
    root = styled(album(tmp_path, *PAIR, "00001/img2.png"), [[PAIR[0], 3], [PAIR[1], 0], ["00001\\img2.png", 3]])
    source = found(root)
    assert labels(source) == {PAIR[0]: 3, PAIR[1]: 0, "00001/img2.png": 3}
    assert (source.classes, source.ignored) == (None, 0)
    assert any("dataset.json" in note for note in source.notes)
    assert labels(found(root, labels="folders")) == {PAIR[0]: "00000", PAIR[1]: "00000", "00001/img2.png": "00001"}


@pytest.mark.parametrize("pairs", [None, []])
def test_stylegans_null_is_no_labels(tmp_path, pairs):
    source = found(styled(album(tmp_path, *PAIR, "00001/img2.png"), pairs))
    assert set(labels(source).values()) == {None}
    assert source.classes is None


ROWS = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b.png", "label": "ape"}]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_hugging_faces_labels_are_a_column(tmp_path, name):
    source = found(metadata(album(tmp_path, "a.png", "b.png"), ROWS, name))
    assert labels(source) == {"a.png": "cat", "b.png": "ape"}
    assert source.classes == ["ape", "cat"]
    assert any("column label" in note for note in source.notes)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_whole_numbers_in_a_column_are_the_labels(tmp_path, name):
    rows = [{"file_name": "a.png", "text": "x", "label": 7}, {"file_name": "b.png", "text": "y", "label": 0}]
    source = found(metadata(album(tmp_path, "a.png", "b.png"), rows, name))
    assert labels(source) == {"a.png": 7, "b.png": 0}
    assert source.classes is None


def test_numbers_with_a_point_as_tables_with_gaps_write_them(tmp_path):
    rows = [{"file_name": "a.png", "label": "1.0"}, {"file_name": "b.png", "label": "0.0"}]
    assert labels(found(metadata(album(tmp_path, "a.png", "b.png"), rows))) == {"a.png": 1, "b.png": 0}


def test_numbers_with_more_behind_the_point_are_words(tmp_path):
    rows = [{"file_name": "a.png", "label": "1.2"}, {"file_name": "b.png", "label": "1.7"}]
    assert labels(found(metadata(album(tmp_path, "a.png", "b.png"), rows))) == {"a.png": "1.2", "b.png": "1.7"}


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Test"), ("TRAIN", "valid")])
def test_folders_that_are_called_as_splits_are_no_classes(tmp_path, names):
    root = album(tmp_path, *(f"{name}/{kind}/x.png" for name in names for kind in ("cat", "emu")))
    assert set(labels(found(root)).values()) == {"cat", "emu"}


def test_each_split_may_have_metadata_of_its_own(tmp_path):
    root = album(tmp_path, "train/a.png", "train/b.png", "test/a.png")
    metadata(root / "train", ROWS)
    metadata(root / "test", [{"file_name": "a.png", "label": "emu"}])
    source = found(root)
    assert labels(source) == {"test/a.png": "emu", "train/a.png": "cat", "train/b.png": "ape"}
    assert source.classes == ["ape", "cat", "emu"]


def test_each_dataset_json_speaks_for_the_folder_it_lies_in(tmp_path):
    """Equal names, other labels; and each names an image below its own folder."""
    root = album(tmp_path, "train/a.png", "train/in/b.png", "test/a.png", "test/in/b.png")
    styled(root / "train", [["a.png", 3], ["in/b.png", 1]])
    styled(root / "test", [["in/b.png", 2], ["a.png", 0]])
    source = found(root)
    assert labels(source) == {"test/a.png": 0, "test/in/b.png": 2, "train/a.png": 3, "train/in/b.png": 1}
    assert source.ignored == 0
    assert {path.relative_to(root).as_posix() for path in source.files} >= {"train/dataset.json", "test/dataset.json"}
    assert any("dataset.json and 1 more" in note for note in source.notes)


@pytest.mark.parametrize("csv_of", ["train", "test"])
def test_a_table_of_text_beside_lines_of_json_means_the_same_numbers(tmp_path, csv_of):
    root = album(tmp_path, "train/a.png", "test/a.png")
    for split, label in (("train", 3), ("test", 1)):
        name = "metadata.csv" if split == csv_of else "metadata.jsonl"
        metadata(root / split, [{"file_name": "a.png", "label": label}], name)
    source = found(root)
    assert (labels(source), source.classes) == ({"test/a.png": 1, "train/a.png": 3}, None)


@pytest.mark.parametrize("column", [None, "kind"])
def test_a_column_that_the_first_line_lacks_is_a_column(tmp_path, column):
    """Lines of JSON need not have the same keys; and what one lacks is a label that is missing, not another column."""
    name = column or "label"
    rows = [{"file_name": "a.png", name: "cat"}, {"file_name": "b.png", name: "ape"}]
    root = metadata(album(tmp_path, "a.png", "b.png"), [{"file_name": "gone.png"}, *rows], "metadata.jsonl")
    source = found(root, labels=column)
    assert {label for key, label in labels_of_those_there(source).items()} == {"cat", "ape"}
    metadata(root, [{"text": "x", "file_name": "a.png"}, rows[1]], "metadata.jsonl")
    with pytest.raises(UserError, match="1 of 2 images have no label"):
        found(root, labels=column)


def labels_of_those_there(source: sources.Source) -> dict[str, str]:
    there = [entry for entry in source.entries if entry.name != "gone.png"]
    return {entry.name: source.classes[entry.read()[1][0]] for entry in there}


def test_a_key_chooses_among_several_columns(tmp_path):
    rows = [{"file_name": f"{name}.png", "fine_label": name, "coarse_label": "x"} for name in "ab"]
    root = metadata(album(tmp_path, "a.png", "b.png"), rows)
    with pytest.raises(UserError, match=r"several columns of labels \(fine_label, coarse_label\): set data\.labels"):
        found(root)
    assert labels(found(root, labels="fine_label")) == {"a.png": "a", "b.png": "b"}
    with pytest.raises(UserError, match=r"no column 'colour'; it has fine_label, coarse_label"):
        found(root, labels="colour")
    assert set(labels(found(root, labels="none")).values()) == {None}


@pytest.mark.parametrize("rows", [[{"file_name": "a/x.png", "text": "an ape"}], [{"image": "a/x.png", "label": "ape"}]])
def test_metadata_without_labels_leaves_them_to_the_folders_and_says_so(tmp_path, rows):
    source = found(metadata(album(tmp_path, "a/x.png", "b/y.png"), rows))
    assert labels(source) == {"a/x.png": "a", "b/y.png": "b"}
    assert any("no column" in note for note in source.notes)


FAULTY = {
    "some without": (styled, [[PAIR[0], 1]], r"1 of 2 images have no label in dataset\.json \(00000/img1\.png\)"),
    "all others": (styled, [["x.png", 1]], r"labels none of the images that are there .*it names x\.png"),
    "a vector": (styled, [[PAIR[0], [0.1, 0.2]], [PAIR[1], 0]], r"img0\.png is \[0\.1, 0\.2\], no whole number"),
    "a boolean": (styled, [[PAIR[0], True], [PAIR[1], 0]], "is true, no whole number"),
    "negative": (styled, [[PAIR[0], -1], [PAIR[1], 0]], r"has label -1, not in 0 \.\. 65535"),
    "huge": (styled, [[PAIR[0], 65536], [PAIR[1], 0]], "has label 65536"),
    "no pairs": (styled, {"a": 1}, "no pairs"),
    "twice": (styled, [[PAIR[0], 1], [PAIR[0], 2], [PAIR[1], 0]], "has two labels, 1 and 2"),
    "mixed": (metadata, [{"file_name": PAIR[0], "label": "a"}, {"file_name": PAIR[1]}], "line 3 .*1 fields"),
    "no name": (metadata, [{"file_name": "", "label": "a"}], "row 1 .* no file_name"),
    "blank": (metadata, [{"file_name": PAIR[0], "label": "a"}, {"file_name": PAIR[1], "label": " "}], "1 of 2 images"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_annotations_that_do_not_fit_are_named(tmp_path, case):
    write, content, said = FAULTY[case]
    with pytest.raises(UserError, match=said) as caught:
        found(write(album(tmp_path, *PAIR), content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dataset.json", b"[1, 2]", r"no `labels`.*set data\.labels to folders"),
        ("dataset.json", b"{", "is not JSON"),
        ("dataset.json", b"[" * 100_000, "is not JSON"),
        ("dataset.json", b"\xff\xfe", r"is not UTF-8 \(its byte 0\): save it as UTF-8"),
        ("metadata.csv", b'file_name,label\n"a', "not CSV"),
        ("metadata.csv", b"file_name,label,label\na,b,c\n", "two columns"),
        ("metadata.jsonl", b"[]\n", "line 1 .* no JSON object"),
        ("metadata.jsonl", b"{}\nx\n", "line 2 .* is not JSON"),
        ("metadata.jsonl", b'{"file_name": "a/x.png", "label": [1]}', r"x\.png is \[1\], neither"),
        ("metadata.jsonl", b'{"file_name": "a/x.png", "label": 1}\n{"file_name": "b/y.png", "label": "1"}', "mixes"),
        ("metadata.parquet", b"PAR1", "not read: save it as metadata.csv"),
    ],
)
def test_annotations_that_cannot_be_read_are_named(tmp_path, name, content, said):
    album(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        found(tmp_path)
    assert "\n" not in str(caught.value)
    assert labels(found(tmp_path, labels="folders")) == {"a/x.png": "a", "b/y.png": "b"}


def test_two_kinds_of_annotation_are_refused(tmp_path):
    root = metadata(styled(album(tmp_path, "a.png", "b.png"), [["a.png", 0], ["b.png", 1]]), ROWS)
    with pytest.raises(UserError, match=r"dataset\.json and metadata\.csv both"):
        found(root)
    assert labels(found(root, labels="label")) == {"a.png": "cat", "b.png": "ape"}


def test_an_annotated_image_that_is_not_there_is_unreadable_and_no_path_is_made_of_its_name(tmp_path):
    album(tmp_path, "secret.png", "in/a.png", "in/b.png")
    rows = [*ROWS, {"file_name": "../secret.png", "label": "x"}, {"file_name": "/etc/passwd", "label": "x"}]
    source = found(metadata(tmp_path / "in", rows))
    assert source.images == 4
    absent = [entry for entry in source.entries if entry.name not in ("a.png", "b.png")]
    assert sorted(entry.name for entry in absent) == ["../secret.png", "/etc/passwd"]
    for entry in absent:
        with pytest.raises(FileNotFoundError, match="it is not there"):
            entry.read()


WRAPPED = {
    "cifar/train/cat/x.png cifar/train/dog/x.png cifar/test/cat/x.png": ["cat", "dog"],
    "cifar/cat/x.png cifar/dog/x.png": ["cat", "dog"],
    "a/b/c/cat/x.png a/b/c/dog/x.png": ["cat", "dog"],
    "train/images/x.png test/images/y.png": None,
    "photos/x.png photos/y.png": None,
    "photos/photos/x.png photos/photos/y.png": None,
    "train/x.png train/y.png": None,
}


@pytest.mark.parametrize("names", WRAPPED)
def test_a_folder_that_only_wraps_is_no_class(tmp_path, names):
    source = found(album(tmp_path, *names.split()))
    assert source.classes == WRAPPED[names]
    assert (source.splits is not None) == ("train" in names)
    wraps = not names.startswith("train/x")
    assert any("holds only" in note for note in source.notes) == wraps


def test_one_class_alone_can_be_asked_for(tmp_path):
    root = album(tmp_path, "photos/cats/x.png", "photos/cats/y.png")
    assert found(root).classes is None
    assert found(root, labels="folders").classes == ["cats"]


@pytest.mark.parametrize("inner", ["cats", "images/cats"])
def test_one_class_alone_can_be_asked_for_below_splits_too(tmp_path, inner):
    root = album(tmp_path, f"train/{inner}/x.png", f"test/{inner}/y.png")
    assert found(root).classes is None
    source = found(root, labels="folders")
    assert (source.classes, source.splits) == (["cats"], {"test": 1, "train": 1})


def test_folders_that_hold_no_image_are_said(tmp_path):
    root = album(tmp_path, "a/x.png", "b/y.png")
    (root / "c/deep").mkdir(parents=True)
    (root / "c/deep/notes.txt").write_text("")
    assert any(note.startswith("no images in c:") for note in found(root).notes)


def test_splits_within_the_classes_are_said(tmp_path):
    source = found(album(tmp_path, "a/train/x.png", "b/train/y.png", "b/test/z.png"))
    assert source.classes == ["a", "b"]
    assert any(note.startswith("test/, train/ within the class folders") for note in source.notes)
    assert not any("within" in note for note in found(album(tmp_path / "c", "a/x/x.png", "b/train/y.png")).notes)


def test_images_beside_class_folders_are_refused_with_the_key_that_reads_them(tmp_path):
    root = album(tmp_path, "a/x.png", "b/y.png", "z.png")
    with pytest.raises(UserError, match=r"also z\.png: give it one too, or set data\.labels to none"):
        found(root)
    assert set(labels(found(root, labels="none")).values()) == {None}


@pytest.mark.parametrize("source", ["digits", "shards:x.tar"])
def test_only_folders_have_columns_and_splits(source):
    for asked in ({"labels": "folders"}, {"labels": "label"}, {"split": Split(holdout=["test"])}):
        with pytest.raises(ValueError, match="folder"):
            Config(source, **asked)


def test_an_empty_word_is_no_column():
    with pytest.raises(ValueError, match="labels must be folders, none or"):
        Config("folder:x", labels="")


def test_digits_and_shards_can_be_read_without_labels():
    source = selection.find(Config("digits", labels="none"))
    assert source.classes is None
    assert set(source.entries[0].read()[1]) == {None}


def test_what_is_passed_over_is_told_by_kind():
    names = ["a.txt", "b.txt", "sub/c.txt", "d.txt", "x.heic", "Makefile", ".hidden"]
    said = folders.kinds([tuple(name.split("/")) for name in names])
    assert said.startswith("4 .txt (a.txt, b.txt, sub/c.txt, ...)")
    for part in ("1 .heic (x.heic)", "1 without extension (Makefile)", "1 hidden (.hidden)"):
        assert part in said


def test_every_kind_that_is_read_here_is_no_other_kind(tmp_path):
    # a new decoder of Pillow's moves a kind from one list to the other
    formats = {extension: kind for extension, kind in tars.formats().items() if extension in folders.OTHER_IMAGES}
    assert set(formats) <= {"avif"}
    for extension, kind in tars.formats().items():
        image_path = tmp_path / f"x.{extension}"
        Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(image_path, kind)
    source = found(tmp_path)
    assert source.images == len(tars.formats())
    for entry in source.entries:
        assert abs(int(np.asarray(entry.read()[0][0].convert("RGB"))[0, 0, 0]) - 90) < 4


def test_names_of_any_bytes_are_printed_as_one_line(tmp_path):
    for name in (b"a/caf\xe9.png", b"a/two\nlines.png", b"b\x1b[31m/x.png"):
        path = Path(bytes(tmp_path).decode()) / name.decode("utf-8", "surrogateescape")
        image(path)
    source = found(tmp_path)
    assert source.classes == ["a", "b\\x1b[31m"]
    for entry in source.entries:
        entry.name.encode()
        assert entry.name.isprintable()
        entry.read()


SPLIT_WORDS = ["train", "training", "test", "testing", "val", "valid", "validation", "dev"]


@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_each_common_word_for_a_split_is_one(tmp_path, word):
    other = "train" if word != "train" else "test"
    source = found(album(tmp_path, f"{word}/a/x.png", f"{word}/b/x.png", f"{other}/a/x.png"))
    assert (source.classes, source.splits) == (["a", "b"], {other: 1, word: 2})


NOT_READ = """
heic heif hif jxl jp2 j2k jpx jfif svg psd eps exr hdr tga ico pcx ppm pgm pbm pnm dds dcm cr2 cr3 nef arw dng orf raf rw2
apng
"""


@pytest.mark.parametrize("extension", NOT_READ.split())
def test_images_of_kinds_that_are_not_read_are_warned_of(tmp_path, extension):
    album(tmp_path / "in", "a.png")
    (tmp_path / f"in/b.{extension.upper()}").write_bytes(b"x")
    lines: list[str] = []
    write(Config(f"folder:{tmp_path}/in"), tmp_path / "out", tell=lines.append)
    assert any(line.startswith(f"warning: not read: 1 .{extension} (b.") for line in lines)


def test_no_kind_is_warned_of_that_is_not_written_out_above():
    assert {*NOT_READ.split(), "avif"} == folders.OTHER_IMAGES


def table(root: Path, text: str | bytes, name: str = "metadata.csv") -> Path:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


READ_AS = {
    "as a spreadsheet saves it": ("\ufefffile_name,label\r\na.png,cat\r\nb.png,ape\r\n", ["cat", "ape"]),
    "lines without anything": ("file_name,label\n\na.png,cat\n\nb.png,ape\n\n", ["cat", "ape"]),
    "blanks around a word": ("file_name,label\na.png, cat\nb.png,cat  \n", ["cat", "cat"]),
    "a comma and two lines in a word": ('file_name,text,label\na.png,"1,\r\n2",cat\nb.png,x,ape\n', ["cat", "ape"]),
    "a path with a point": ("file_name,label\n./a.png,cat\nx/../b.png,ape\n", ["cat", "ape"]),
    "the same twice": ("file_name,label\na.png,cat\nb.png,ape\n./a.png,cat\n", ["cat", "ape"]),
    "numbers of another script": ("file_name,label\na.png,\u0661\nb.png,\u0662\n", ["\u0661", "\u0662"]),
    "a number among words": ("file_name,label\na.png,1\nb.png,ape\n", ["1", "ape"]),
    "numbers with zeros behind the point": ("file_name,label\na.png,1.00\nb.png,0.000\n", [1, 0]),
    "a column in capitals": ("file_name,Fine-Label\na.png,cat\nb.png,ape\n", ["cat", "ape"]),
}


@pytest.mark.parametrize("case", READ_AS)
def test_a_table_is_read_as_people_and_programs_write_it(tmp_path, case):
    text, said = READ_AS[case]
    source = found(table(album(tmp_path, "a.png", "b.png"), text))
    assert labels(source) == {"a.png": said[0], "b.png": said[1]}


LABEL_WORDS = ["label", "labels", "class", "classes", "category", "categories", "target", "targets", "cls", "Cls-ID"]


@pytest.mark.parametrize("word", LABEL_WORDS)
def test_each_common_word_for_labels_is_one(tmp_path, word):
    source = found(table(album(tmp_path, "a.png", "b.png"), f"file_name,classic,{word}\na.png,x,cat\nb.png,x,ape\n"))
    assert labels(source) == {"a.png": "cat", "b.png": "ape"}


def test_lines_of_json_keep_words_that_look_like_numbers_and_breaks_within_words(tmp_path):
    rows = [{"file_name": "a.png", "label": "1"}, {"file_name": "b.png", "label": "2\u2028\n"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n \n" for row in rows)
    source = found(table(album(tmp_path, "a.png", "b.png"), text, "metadata.jsonl"))
    assert labels(source) == {"a.png": "1", "b.png": "2"}
    rows[1]["label"] = "ape\n\x1b[31m!"
    source = found(metadata(tmp_path, rows, "metadata.jsonl"))
    assert source.classes == ["1", "ape\\n\\x1b[31m!"]


REFUSED = {
    "below none": ("file_name,label\na.png,-1\nb.png,0\n", "metadata.csv", "has label -1"),
    "too many": ("file_name,label\na.png,65536\nb.png,0\n", "metadata.csv", "has label 65536"),
    "true": ('{"file_name": "a.png", "label": true}\n', "metadata.jsonl", "is true, neither"),
    "1.5": ('{"file_name": "a.png", "label": 1.5}\n', "metadata.jsonl", r"is 1\.5, neither"),
    "twice": ("file_name,label\na.png,cat\n./a.png,ape\nb.png,ape\n", "metadata.csv", "has two labels, cat and ape"),
    "a quote too much": ('file_name,label\na.png,"cat"x\nb.png,ape\n', "metadata.csv", "line 2 .*not CSV"),
    "none": ('{"file_name": "a.png", "label": 1}\n{"file_name": "b.png", "label": null}\n', "metadata.jsonl", "1 of 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_none_are_named(tmp_path, case):
    text, name, said = REFUSED[case]
    with pytest.raises(UserError, match=said):
        found(table(album(tmp_path, "a.png", "b.png"), text, name))


def test_a_table_that_is_no_regular_file_is_not_read(tmp_path):
    album(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").symlink_to("/dev/null")  # /dev/zero would be read without end
    with pytest.raises(UserError, match=r"metadata\.csv cannot be read \(it is no regular file\)"):
        found(tmp_path)


def test_a_column_is_refused_where_no_table_has_columns(tmp_path):
    root = styled(album(tmp_path, *PAIR), [[PAIR[0], 1], [PAIR[1], 0]])
    with pytest.raises(UserError, match=r"data\.labels: 'kind' is a column of metadata\.csv .* there is none"):
        found(root, labels="kind")


def test_an_image_that_is_gone_changes_no_other_s_class_and_the_absent_come_in_order(tmp_path):
    names = [f"gone{number}.png" for number in range(9)]
    rows = [*ROWS, *({"file_name": name, "label": "aardvark"} for name in reversed(names))]
    root = metadata(album(tmp_path, "a.png", "b.png"), rows)
    assert found(root).classes == ["aardvark", "ape", "cat"]
    read = folders.read(root, "it", None)
    assert [picture.parts for picture in read.pictures] == [("a.png",), ("b.png",), *((name,) for name in names)]
    assert [picture.label for picture in read.pictures[:2]] == [2, 1]


def test_kinds_that_are_as_frequent_come_by_name():
    assert folders.kinds([("x.b",), ("x.a",), ("y.c",), ("z.c",)]) == "2 .c (y.c, z.c), 1 .a (x.a), 1 .b (x.b)"
