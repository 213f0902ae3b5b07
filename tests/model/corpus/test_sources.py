"""Sources cut into parts, and the entries of each kind of part."""

import io
import json
import pickle

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from setok_bench.corpora import write_corpus
from setokim.corpus.entries import (
    ArchivePart,
    DatasetPart,
    FilesPart,
    HubPart,
    ParquetPart,
)
from setokim.corpus.settings import SourceSettings
from setokim.corpus.sources import plan_parts
from setokim.data import BrokenSampleError, Conversation


def plan(*names, **fields):
    return plan_parts(SourceSettings(tuple(map(str, names)), **fields))


def entries(found):
    return [entry for part in found.parts for entry in part.entries()]


def jpeg(colour=(255, 0, 0), size=(8, 6)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def write_folder(folder, number=5):
    (folder / "sub").mkdir(parents=True)
    for index in range(number):
        path = folder / ("sub" if index % 2 else "") / f"{index}.jpg"
        path.write_bytes(jpeg())
        path.with_suffix(".txt").write_text(f"image {index}")
    return folder


def write_parquet(path, rows=5, group=2, **columns):
    table = {"image": [{"bytes": jpeg(), "path": None}] * rows, "caption": ["a red box"] * rows}
    pyarrow.parquet.write_table(pyarrow.table(table | columns), path, row_group_size=group)
    return path


def test_a_folder_of_images(tmp_path):
    folder = write_folder(tmp_path / "images")
    (folder / ".unfinished-0.jpg").write_bytes(b"x")
    found = plan(folder, shard_size=2)
    assert [type(part) for part in found.parts] == [FilesPart] * 3
    keys = [entry.key for entry in entries(found)]
    assert keys == ["0.jpg", "2.jpg", "4.jpg", "sub/1.jpg", "sub/3.jpg"]
    captions = [entry.load().caption for entry in entries(found)]
    assert captions == [f"image {i}" for i in (0, 2, 4, 1, 3)]


def test_what_cannot_be_read_is_an_entry_too(tmp_path):
    folder = write_folder(tmp_path / "images", 1)
    (folder / "gone.jpg").symlink_to(folder / "nothing.jpg")
    (folder / "raw.nef").write_bytes(b"x")
    found = entries(plan(folder))
    assert [entry.key for entry in found] == ["0.jpg", "gone.jpg", "raw.nef"]
    for entry in found[1:]:
        with pytest.raises(BrokenSampleError):
            entry.load()


def test_single_images_and_patterns(tmp_path):
    folder = write_folder(tmp_path / "images")
    assert len(entries(plan(folder / "0.jpg"))) == 1
    assert len(entries(plan(folder / "*.jpg", folder / "sub" / "1.jpg"))) == 4
    assert len(entries(plan(f"{folder}/{{0,2}}.jpg"))) == 2


def test_archives_by_folder_and_by_braces(tmp_path):
    corpus = write_corpus(tmp_path / "tars", images=6, shards=3)
    by_folder = plan(tmp_path / "tars")
    by_braces = plan(f"{tmp_path}/tars/shard-{{00000..00002}}.tar")
    assert by_folder.parts == by_braces.parts
    assert by_folder.parts == tuple(ArchivePart(str(one)) for one in corpus.shards)
    assert [entry.key for entry in entries(by_folder)] == list(corpus.keys)
    assert by_folder.checksum() == by_braces.checksum()


def test_the_checksum_tells_other_contents_but_not_another_place(tmp_path):
    write_corpus(tmp_path / "a", images=4, shards=2)
    write_corpus(tmp_path / "b", images=4, shards=2)
    same = plan(tmp_path / "a").checksum()
    assert plan(tmp_path / "b").checksum() == same
    write_corpus(tmp_path / "b", images=5, shards=2)
    assert plan(tmp_path / "b").checksum() != same


def test_row_groups_of_parquet_files(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", rows=7, group=2)
    found = plan(path, shard_size=3)
    assert [(part.groups, part.first) for part in found.parts] == [((0, 2), 0), ((2, 4), 4)]
    assert [entry.key for entry in entries(found)] == [f"{i:08d}" for i in range(7)]
    assert entries(found)[6].load().caption == "a red box"
    assert plan(tmp_path, shard_size=3).parts == found.parts


def test_columns_of_parquet_files(tmp_path):
    columns = {"jpg": [jpeg()] * 2, "key": ["x", "y"], "status": ["success", "failed"]}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    [part] = plan(path).parts
    assert (part.image, part.caption, part.key) == ("jpg", None, "key")
    # The download of the other one failed: it is no sample.
    assert [entry.key for entry in part.entries()] == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "caption"}, r"^image_column: expected a column of images, image, got 'caption'"),
        (
            {"caption": "words"},
            r"^caption_column: expected one of image, caption of .*, got 'words'",
        ),
        ({"samples": 3}, r"^samples: expected None but for a YAML file"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        plan(write_parquet(tmp_path / "a.parquet"), **options)


def test_two_columns_of_bytes_are_not_guessed(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"left": [jpeg()], "right": [jpeg()]}), path)
    with pytest.raises(ValueError, match=r"^image_column: expected a column of images, left"):
        plan(path)
    assert plan(path, image="right").parts[0].image == "right"


def test_a_data_set_of_hugging_face(tmp_path):
    rows = {"picture": [{"bytes": jpeg(), "path": None}] * 5, "text": ["a box"] * 5}
    features = datasets.Features({"picture": datasets.Image(), "text": datasets.Value("string")})
    saved = datasets.Dataset.from_dict(rows, features)
    saved.save_to_disk(tmp_path / "saved")
    found = plan(tmp_path / "saved", shard_size=2)
    assert [(type(part), part.rows) for part in found.parts] == [
        (HubPart, (0, 2)),
        (HubPart, (2, 4)),
        (HubPart, (4, 5)),
    ]
    assert entries(found)[4].load().caption == "a box"
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "splits")
    assert len(entries(plan(tmp_path / "splits", split="test"))) == 5
    with pytest.raises(ValueError, match=r"^source: expected a data set, got .* train: "):
        plan(tmp_path / "splits")


def test_a_yaml_file_of_a_data_set(tmp_path):
    data = {"kind": "shapes-tasks", "size": 32, "seed": 3}
    path = tmp_path / "data.yaml"
    path.write_text(json.dumps(data))
    found = plan(path, samples=5, shard_size=2)
    assert found.conversations
    assert [part.samples for part in found.parts] == [(0, 2), (2, 4), (4, 5)]
    assert all(isinstance(entry.load(), Conversation) for entry in entries(found))
    with pytest.raises(ValueError, match=r"^samples: expected a number for an endless data set"):
        plan(path)


def test_a_section_of_the_yaml_file_of_a_run(tmp_path):
    data = {"kind": "shapes-world", "size": 32, "samples": 4}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"stage": 1, "data": data, "held_out": data | {"samples": 2}}))
    found = plan(path)
    assert (len(entries(found)), found.conversations) == (4, False)
    assert len(entries(plan(path, section="held_out"))) == 2
    path.write_text(json.dumps({"stage": 1, "held_out": data}))
    with pytest.raises(ValueError, match=r"^source: expected kind, or the settings of a run with"):
        plan(path)


def test_conversations_and_images_do_not_mix(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(json.dumps({"kind": "shapes-tasks", "size": 32, "samples": 2}))
    with pytest.raises(ValueError, match=r"^source: expected only conversations or only images"):
        plan(path, write_folder(tmp_path / "images"))


def test_a_folder_of_two_kinds(tmp_path):
    folder = write_folder(tmp_path / "images")
    write_parquet(folder / "a.parquet")
    with pytest.raises(ValueError, match=r"^source: expected files of one kind, got parquet files"):
        plan(folder)


@pytest.mark.parametrize("name", ["nothing", "nothing.txt", "nothing.yaml", "*.tar", "no.parquet"])
def test_a_name_that_stands_for_nothing(tmp_path, name):
    with pytest.raises((ValueError, OSError), match=name.replace("*", r"\*")):
        plan(tmp_path / name)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"^source: expected images, got none in "):
        plan(tmp_path)


def test_a_parquet_file_that_is_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"^source: expected a parquet file, got .*a.parquet"):
        plan(tmp_path)


def test_parts_can_be_sent_to_processes(tmp_path):
    write_corpus(tmp_path / "a", images=2, shards=1)
    path = tmp_path / "data.yaml"
    path.write_text(json.dumps({"kind": "shapes-world", "size": 32, "samples": 2}))
    found = plan(tmp_path / "a", write_folder(tmp_path / "b"), path)
    kinds = [ArchivePart, FilesPart, DatasetPart]
    assert [type(part) for part in found.parts] == kinds
    assert pickle.loads(pickle.dumps(found)).parts == found.parts
    assert ParquetPart("a", (0, 1), "image", None, None, 0).title() == "a, row groups 0 to 0"
