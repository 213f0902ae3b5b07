"""lmms-lab's parquet files of benchmarks: the samples are those of the authors' files."""

import pytest

from helpers.published import data_of, picture, write_parquet
from setokim.data import BrokenSampleError
from setokim.data.readers import READERS
from setokim.evaluation.benchmarks import BENCHMARKS

pytest.importorskip("pyarrow")
SHORT = "Answer the question using a single word or phrase."
KINDS = {"structural": "verify", "semantic": "obj", "detailed": "existC"}


def image(seed):
    return {"bytes": data_of(seed), "path": f"{seed}.png"}


def vqav2(root):
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": 1} for text in "abbb"]
    fields = {"question": "what?", "question_type": "what", "answer_type": "other"}
    rows = [
        fields | {"question_id": i, "image_id": i, "image": image(i), "answers": answers}
        for i in range(3)
    ]
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", rows)
    return {"question_id": 1, "question": "what?", "answers": list("abbb")} | {
        name: fields[name] for name in ("question_type", "answer_type")
    }


def okvqa(root):
    fields = {"question": "what?", "question_type": "one", "answer_type": "other"}
    rows = [
        fields | {"question_id": f"{i}", "image": image(i), "answers": list("abbb")}
        for i in range(3)
    ]
    write_parquet(root / "data" / "val2014-00000-of-00001.parquet", rows)
    return {"question_id": 1, "question": "what?", "answers": list("abbb")} | {
        name: fields[name] for name in ("question_type", "answer_type")
    }


def gqa(root):
    fields = {"question": "what?", "answer": "b", "isBalanced": True, "types": KINDS}
    fields |= {"groups": {"global": None, "local": "x"}, "entailed": "['01', '02']"}
    rows = [fields | {"id": f"0{i}", "imageId": f"n{i}"} for i in range(3)]
    write_parquet(root / "testdev_balanced_instructions" / "testdev-0.parquet", rows)
    # In another order.
    rows = [{"id": f"n{i}", "image": image(i)} for i in (2, 0, 1)]
    write_parquet(root / "testdev_balanced_images" / "testdev-0.parquet", rows)
    return {
        **{"question_id": "01", "question": "what?", "answers": ["b"], "balanced": True},
        **{"types": KINDS, "group": None, "entailed": ["01", "02"]},
    }


def pope(root):
    rows = [
        {
            **{"id": f"{i}", "question_id": f"{i}", "question": "what?", "answer": "no"},
            **{"image_source": "COCO_val2014_1", "image": image(i), "category": category},
        }
        for category in ("adversarial", "random")
        for i in range(3)
    ]
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    return {"question_id": 1, "label": "no"}


def mme(root):
    rows = [
        {
            **{"question_id": f"OCR/000{i}.jpg", "question": "what? ", "answer": "No"},
            **{"image": image(i), "category": "OCR"},
        }
        for i in range(3)
    ]
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    return {"task": "OCR", "image": "0001", "label": "No"}


def coco_captions(root):
    rows = [
        {"question_id": f"{i:012d}.jpg", "answer": [" a ", "b"], "image": image(i)}
        for i in range(3)
    ]
    write_parquet(root / "data" / "val-00000-of-00001.parquet", rows)
    return {"image_id": 1, "answers": ["a", "b"]}


MAKES = {
    **{"vqav2": vqav2, "okvqa": okvqa, "gqa": gqa, "pope": pope, "mme": mme},
    "coco-captions": coco_captions,
}


@pytest.mark.parametrize("name", MAKES)
def test_samples(name, tmp_path):
    expected = MAKES[name](tmp_path)
    benchmark = BENCHMARKS[{"pope": "pope-random"}.get(name, name)]
    options = {} if benchmark.split is None else {"split": benchmark.split}
    for dataset in (READERS[name](tmp_path), benchmark.open(tmp_path, **options)):
        assert len(dataset) == 3
        sample = dataset[1]
        assert sample.facts == expected and str(tmp_path) in sample.source
        asked, answer = (one["content"] for one in sample.messages)
        assert asked[0]["image"].tobytes() == picture(1).tobytes()
        question = {"coco-captions": "describe the picture.", "mme": "what?"}
        assert asked[1]["text"] == question.get(name, f"what?\n{SHORT}")
        said = {"pope": "no", "mme": "No", "coco-captions": "a"}
        assert answer[0]["text"] == said.get(name, "b")


DAMAGE = {
    "vqav2": ("answers", [3], "answers: expected texts, got [3]"),
    "okvqa": ("question_id", "x", "question_id: expected a number, got 'x'"),
    "gqa": ("imageId", "n9", "imageId: expected an image, got 'n9'"),
    "pope": ("answer", "maybe", "answer: expected yes or no, got 'maybe'"),
    "mme": ("image", {"bytes": b"none", "path": ""}, "not an image"),
    "coco-captions": ("question_id", "COCO_val2014_000000000001.jpg", "expected val2017, got "),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_malformed_record(name, tmp_path):
    import pyarrow.parquet

    MAKES[name](tmp_path)
    path = next(iter(sorted(tmp_path.rglob("*.parquet"), reverse=True)))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    field, value, reason = DAMAGE[name]
    at = next(i for i, row in enumerate(rows) if row.get("category") != "adversarial")
    rows[at][field] = value
    if name == "vqav2":
        rows = [row | {"answers": value} for row in rows[:1]]
    write_parquet(path, rows)
    with pytest.raises(BrokenSampleError) as error:
        READERS[name](tmp_path)[0]
    assert reason in str(error.value) and str(error.value).startswith(str(path))


def test_files_and_splits_that_are_missing(tmp_path):
    vqav2(tmp_path)
    with pytest.raises(ValueError, match=r"^root: expected data/train-\*.parquet in .*, got none$"):
        READERS["vqav2"](tmp_path, split="train2014")
    with pytest.raises(ValueError, match=r"^split: expected one of val2014, .*, got 'val2017'$"):
        READERS["vqav2"](tmp_path, split="val2017")
    with pytest.raises(ValueError, match=r"^split: expected one in .*, got 'popular'$"):
        pope(tmp_path / "pope")
        READERS["pope"](tmp_path / "pope", split="popular")
    gqa(tmp_path / "gqa")
    path = tmp_path / "gqa" / "testdev_balanced_images" / "testdev-0.parquet"
    write_parquet(path, [{"name": "n1"}])
    with pytest.raises(ValueError, match=f"^{path}: expected a column id, got"):
        READERS["gqa"](tmp_path / "gqa")
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match=f"^{path}: expected a parquet file, got"):
        READERS["gqa"](tmp_path / "gqa")
