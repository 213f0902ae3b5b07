"""Forms in which published files are met, beside those of tests/helpers/published.py."""

import csv
import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.published import (
    NEEDS,
    PUBLISHED,
    data_of,
    mask_in,
    rewrite,
    save,
    write_csv,
    write_parquet,
)
from setokim.data import BrokenSampleError, build_dataset
from setokim.data.readers import READERS


def make(name, root):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    PUBLISHED[name][0](root)


def reopen(name, root, **options):
    return READERS[name](root, **PUBLISHED[name][1] | options)


@pytest.mark.parametrize("version", ["", "oidv6-", "oidv7-"])
@pytest.mark.parametrize("head", [True, False])
def test_names_of_openimages(tmp_path, version, head):
    make("openimages", tmp_path)
    labels = tmp_path / "validation-annotations-human-imagelabels.csv"
    short = "val" if version == "oidv7-" else "validation"
    labels.rename(tmp_path / f"{version}{labels.name.replace('validation', short)}")
    classes = tmp_path / "oidv7-class-descriptions.csv"
    lines = classes.read_text().splitlines(keepends=True)
    classes.unlink()
    text = "".join(lines if head else lines[1:])
    # With a byte order mark, as spreadsheets write it.
    (tmp_path / f"{version}class-descriptions.csv").write_text(text, encoding="utf-8-sig")
    found = reopen("openimages", tmp_path)
    assert [one.concepts for one in found] == [("Dog", "Tree, old"), ("Dog",), ("Dog",)]


def test_labels_without_their_columns(tmp_path):
    make("openimages", tmp_path)
    path = tmp_path / "validation-annotations-human-imagelabels.csv"
    write_csv(path, [["ImageID", "LabelName"], ["a", "/m/01"]])
    with pytest.raises(ValueError, match=r"imagelabels\.csv:1: expected a column Confidence, got "):
        reopen("openimages", tmp_path)
    write_csv(path, [["ImageID", "LabelName", "Confidence"], ["../a", "/m/01", 1]])
    save(tmp_path.parent / "a.jpg")
    save(tmp_path / "a.jpg")
    assert reopen("openimages", tmp_path)[0].concepts == ("Dog",)
    write_csv(path, [["ImageID", "LabelName", "Confidence"], ["../../a", "/m/01", 1]])
    with pytest.raises(BrokenSampleError, match="expected a file in "):
        reopen("openimages", tmp_path)[0]


def flat_imagenet(root):
    """Three validation images in one folder."""
    for number in (1, 2, 3):
        save(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    return root / "val"


CLASSES = ["n01440764", "n01443537", "n01440764"]


def write_kit(folder):
    scipy = pytest.importorskip("scipy.io")
    folder.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    synsets = np.array([(1, CLASSES[1]), (2, CLASSES[0]), (1001, "n00001740")], kind)
    scipy.savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")


def test_validation_images_of_imagenet(tmp_path):
    def captions(**options):
        return [one.caption for one in READERS["imagenet-folder"](val, **options)]

    val = flat_imagenet(tmp_path)
    with pytest.raises(
        ValueError, match=r"^root: expected class folders, or LOC_val_solution\.csv"
    ):
        captions()
    write_kit(tmp_path / "ILSVRC2012_devkit_t12" / "data")
    assert captions() == CLASSES
    assert captions(names={"n01440764": "tench", "n01443537": "goldfish"})[:2] == [
        "tench",
        "goldfish",
    ]
    solution = tmp_path / "elsewhere" / "LOC_val_solution.csv"
    solution.parent.mkdir()
    rows = [["ImageId", "PredictionString"]]
    rows += [[f"ILSVRC2012_val_{i:08d}", f"{CLASSES[-i]} 1 2 3 4 "] for i in (1, 2)]
    write_csv(solution, rows)
    found = READERS["imagenet-folder"](val, classes=solution)
    assert [found[0].caption, found[1].caption] == [CLASSES[2], CLASSES[1]]
    with pytest.raises(
        BrokenSampleError, match=r"val_00000003\.JPEG: the file of classes has no class for it"
    ):
        found[2]
    shutil.copy(solution, tmp_path)
    assert READERS["imagenet-folder"](val)[1].caption == CLASSES[1]
    with pytest.raises(ValueError, match=r"^classes: expected a file, got '.*none'$"):
        captions(classes=tmp_path / "none")


def test_first_names_of_classes(tmp_path):
    make("imagenet-folder", tmp_path)
    names = tmp_path / "LOC_synset_mapping.txt"
    lines = ["n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus"]
    names.write_text("\n".join(lines) + "\n")
    found = reopen("imagenet-folder", tmp_path, names=str(names))
    assert [one.caption for one in found] == ["tench", "goldfish", "goldfish"]
    assert found[0].concepts == ("tench",)
    for text, message in [
        (
            f"{lines[0]}\ntench, Tinca tinca\n",
            r"txt:2: expected a WordNet id and names, got 'tench",
        ),
        ("n01440764\n", r"txt:1: expected a WordNet id and names, got 'n01440764'$"),
        ("\n", r"txt: expected names of classes, got none$"),
    ]:
        names.write_text(text)
        with pytest.raises(ValueError, match=message):
            reopen("imagenet-folder", tmp_path, names=names)
    with pytest.raises(ValueError, match=r"^names: expected a file, got '.*none'$"):
        reopen("imagenet-folder", tmp_path, names=tmp_path / "none")


def test_long_texts_are_cut(tmp_path):
    make("slimpajama", tmp_path)
    texts = [one.messages[1]["content"][0]["text"] for one in reopen("slimpajama", tmp_path)]
    assert texts == ["text 0 é", "text 1 é", "text 2 é"]
    cut = reopen("slimpajama", tmp_path, longest=6)
    assert [one.messages[1]["content"][0]["text"] for one in cut] == [one[:6] for one in texts]
    with pytest.raises(ValueError, match=r"^longest: expected at least 1, got 0$"):
        reopen("slimpajama", tmp_path, longest=0)


def test_kits_that_are_none(tmp_path):
    val = flat_imagenet(tmp_path)
    write_kit(tmp_path / "kit")
    truth, meta = (
        tmp_path / "kit" / "ILSVRC2012_validation_ground_truth.txt",
        tmp_path / "kit/meta.mat",
    )
    truth.write_text("2\n9\n")
    with pytest.raises(ValueError, match=r"truth\.txt:2: expected the number of a class, got '9'$"):
        READERS["imagenet-folder"](val, classes=truth)
    meta.write_bytes(b"no matrix")
    with pytest.raises(ValueError, match=r"meta\.mat: expected synsets of ImageNet, got "):
        READERS["imagenet-folder"](val, classes=truth)
    meta.unlink()
    with pytest.raises(ValueError, match=r"^classes: expected meta\.mat beside ILSVRC2012_valid"):
        READERS["imagenet-folder"](val, classes=truth)


def test_one_class_of_imagenet_is_a_folder_too(tmp_path):
    make("imagenet-folder", tmp_path)
    found = READERS["imagenet-folder"](tmp_path / "n01443537")
    assert [one.caption for one in found] == ["n01443537"] * 2


def test_failed_downloads_are_no_samples(tmp_path):
    pytest.importorskip("pyarrow")
    fields = {"status": "success", "error_message": None}
    failed = {"jpg": None, "status": "failed_to_download", "error_message": "404"}
    rows = [{"key": str(i), "jpg": data_of(i, "JPEG"), "caption": f"a dog, {i}"} for i in range(5)]
    rows = [row | fields for row in rows]
    rows[1] |= failed
    rows[3] |= failed | {"status": "failed_to_resize"}
    rows[2]["caption"] = None
    rows[4]["jpg"] = None
    write_parquet(tmp_path / "00000.parquet", rows)
    found = reopen("laion-parquet", tmp_path)
    assert len(found) == 3
    assert [found[0].caption, found[1].caption] == ["a dog, 0", ""]
    # A missing image with the status of a success counts as damage.
    with pytest.raises(
        BrokenSampleError, match="row 0 of group 2: jpg: expected the bytes of an im"
    ):
        found[2]


def test_reasons_in_cp1252(tmp_path):
    make("reasonseg", tmp_path)
    path = tmp_path / "1.json"
    record = json.loads(path.read_text()) | {"text": ["le café – où?"]}
    path.write_bytes(json.dumps(record, ensure_ascii=False).encode("cp1252"))
    found = reopen("reasonseg", tmp_path)[0]
    assert found.facts["phrase"] == "le café – où?"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record).encode())
    assert reopen("reasonseg", tmp_path)[0].facts["phrase"] == "le café – où?"


def test_shapes_without_corners(tmp_path):
    make("reasonseg", tmp_path)
    whole = reopen("reasonseg", tmp_path)[0].masks[0]
    path = tmp_path / "1.json"
    rewrite(path, lambda v: v["shapes"].append({"label": "target", "points": []}))
    rewrite(path, lambda v: v["shapes"].insert(0, {"label": "target", "points": [[3, 3]]}))
    assert np.array_equal(reopen("reasonseg", tmp_path)[0].masks[0], whole)
    rewrite(path, lambda v: v.update(shapes=[{"label": "target", "points": []}]))
    with pytest.raises(
        BrokenSampleError, match="shapes: expected a polygon with corners, got none"
    ):
        reopen("reasonseg", tmp_path)[0]


@pytest.mark.parametrize("corner", [[1e9, 0], [0, -1e12], [float("nan"), 1], [1, float("inf")]])
def test_shapes_with_far_corners(tmp_path, corner):
    make("reasonseg", tmp_path)
    rewrite(tmp_path / "1.json", lambda v: v["shapes"][1]["points"].append(corner))
    found = reopen("reasonseg", tmp_path)
    with pytest.raises(
        BrokenSampleError, match=r"1\.json: points: expected corners near 24 × 16 pix"
    ):
        found[0]
    assert found[1].masks[0].any()


FAR = [[0, 0, 1e9, 0, 1e9, 1e9]]
HUGE = {"size": [100_000, 100_000], "counts": [10**10]}


@pytest.mark.parametrize("segmentation", [FAR, HUGE, [[2, 2, 5, 5]], [[]]], ids=str)
@pytest.mark.parametrize("name", ["coco-instances", "refcocog"])
def test_segmentations_that_would_take_all_memory(tmp_path, name, segmentation):
    make(name, tmp_path)
    file = {
        "coco-instances": "annotations/instances_val2017.json",
        "refcocog": "refcocog/instances.json",
    }
    rewrite(
        tmp_path / file[name],
        lambda v: v["annotations"][0].update(segmentation=segmentation),
    )
    found = reopen(name, tmp_path)
    with pytest.raises(BrokenSampleError, match="segmentation: "):
        found[0]
    assert found[2] is not None


def test_one_degenerate_polygon(tmp_path):
    make("refcocog", tmp_path)
    path = tmp_path / "refcocog" / "instances.json"
    rewrite(path, lambda v: v["annotations"][0]["segmentation"].insert(0, [3, 3, 4, 4]))
    assert np.array_equal(reopen("refcocog", tmp_path)[0].masks[0], mask_in(2, 2, 10, 8))


def test_latin_1_in_references(tmp_path):
    make("refcocog", tmp_path)
    path = tmp_path / "refcocog" / "refs(umd).p"
    data = pickle.dumps(pickle.loads(path.read_bytes()), 0)
    # As Python 2 wrote it: a str of bytes.
    old, new = b"Vleft dog 0\n", b"S'caf\\xe9 dog'\n"
    assert old in data
    path.write_bytes(data.replace(old, new))
    assert reopen("refcocog", tmp_path)[0].facts["phrase"] == "café dog"


def turned(path, size=(24, 16)):
    """Save an image with an EXIF orientation of 90 degrees."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    with Image.open(path) as opened:
        assert opened.size == size
        return opened.convert("RGB")


@pytest.mark.parametrize("sizes", ["none", "stored"])
@pytest.mark.parametrize("name", ["coco-instances", "refcocog", "refcoco+"])
def test_masks_are_of_pixels_as_stored(tmp_path, name, sizes):
    make(name, tmp_path)
    folder, file, place = {
        "coco-instances": ("val2017", "annotations/instances_val2017.json", 0),
        "refcocog": ("train2014", "refcocog/instances.json", 0),
        "refcoco+": ("train2014", "refcoco+/instances.json", 0),
    }[name]
    stored = turned(tmp_path / folder / "000000000001.jpg")
    if sizes == "stored":
        rewrite(tmp_path / file, lambda v: v["images"][0].update(width=24, height=16))
    sample = reopen(name, tmp_path)[place]
    if name == "coco-instances":
        image, mask = sample.image, sample.masks == 1
        mask |= sample.masks == 2  # the smaller object lies within
    else:
        image, mask = sample.messages[0]["content"][0]["image"], sample.masks[0]
    assert image.tobytes() == stored.tobytes() and image.size == (24, 16)
    assert np.array_equal(mask, mask_in(2, 2, 10, 8))


def test_masks_of_the_upright_image_where_the_file_has_its_size(tmp_path):
    make("refcocog", tmp_path)
    stored = turned(tmp_path / "train2014" / "000000000001.jpg")
    path = tmp_path / "refcocog" / "instances.json"
    rewrite(path, lambda v: v["images"][0].update(width=16, height=24))
    sample = reopen("refcocog", tmp_path)[0]
    image = sample.messages[0]["content"][0]["image"]
    assert image.size == (16, 24) and sample.masks[0].shape == (24, 16)
    assert image.tobytes() == stored.transpose(Image.Transpose.ROTATE_270).tobytes()
    rewrite(path, lambda v: v["images"][0].update(width=17))
    reason = r"000000000001\.jpg: expected 17 × 24 pixels, got 24 × 16$"
    with pytest.raises(BrokenSampleError, match=reason):
        reopen("refcocog", tmp_path)[0]


def test_panoptic_masks_are_of_pixels_as_stored(tmp_path):
    make("coco-panoptic", tmp_path)
    stored = turned(tmp_path / "val2017" / "000000000001.jpg")
    sample = reopen("coco-panoptic", tmp_path)[0]
    assert sample.image.tobytes() == stored.tobytes() and sample.masks.shape == (16, 24)
    path = tmp_path / "annotations" / "panoptic_val2017" / "000000000002.png"
    Image.new("RGB", (24, 17)).save(path)
    with pytest.raises(BrokenSampleError, match=r"002\.jpg: expected 24 × 17 pixels, got 24 × 16$"):
        reopen("coco-panoptic", tmp_path)[1]


def test_questions_see_the_upright_image(tmp_path):
    make("gqa", tmp_path)
    stored = turned(tmp_path / "images" / "n1.jpg")
    image = reopen("gqa", tmp_path)[0].messages[0]["content"][0]["image"]
    assert image.tobytes() == stored.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_records_with_a_key_that_is_none(tmp_path):
    for name, file, key in (
        ("coco-captions", "annotations/captions_val2017.json", "annotations"),
        ("coco-instances", "annotations/instances_val2017.json", "annotations"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", "annotations"),
        ("refcocog", "refcocog/instances.json", "annotations"),
    ):
        root = tmp_path / name
        root.mkdir()
        make(name, root)
        odd = {"id": [1], "image_id": [1], "question_id": {"a": 1}, "caption": "odd"}
        rewrite(root / file, lambda v, key=key, odd=odd: v[key].insert(0, odd))
        found = reopen(name, root)
        assert len([found[index] for index in range(3)]) == 3


def test_references_without_a_list_of_sentences(tmp_path):
    make("refcocog", tmp_path)
    path = tmp_path / "refcocog" / "refs(umd).p"
    references = pickle.loads(path.read_bytes())
    references[0]["sentences"] = 3
    path.write_bytes(pickle.dumps(references))
    found = reopen("refcocog", tmp_path)
    with pytest.raises(BrokenSampleError, match="reference 0: sent: expected str, got None"):
        found[0]
    assert len(found) == 2 and found[1].facts["phrase"] == "left dog 0"


ESCAPES = {
    "coco-captions": ("annotations/captions_val2017.json", lambda v: v["images"][0], "file_name"),
    "coco-instances": ("annotations/instances_val2017.json", lambda v: v["images"][0], "file_name"),
    "coco-panoptic": (
        "annotations/panoptic_val2017.json",
        lambda v: v["annotations"][0],
        "file_name",
    ),
    "gqa": ("testdev_balanced_questions.json", lambda v: v["01"], "imageId"),
    "mm-vet": ("mm-vet.json", lambda v: v["v1_1"], "imagename"),
    "flickr30k": ("dataset_flickr30k.json", lambda v: v["images"][0], "filename"),
    "evr": ("data/test.json", lambda v: v[0], "img0"),
    "ma5k": ("annotations/test_sess_1.json", lambda v: v[0], "input"),
    "refcocog": ("refcocog/instances.json", lambda v: v["images"][0], "file_name"),
    "pope": ("coco_pope_random.json", None, "image"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_record_names_a_file_elsewhere(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    make(name, root)
    save(tmp_path / "secret.jpg")
    file, record, field = ESCAPES[name]
    path, escape = root / file, "../../../root/../secret.jpg"
    if record is None:
        first, *rest = path.read_text().splitlines()
        lines = [json.dumps(json.loads(first) | {field: escape}), *rest]
        path.write_text("\n".join(lines))
    else:
        rewrite(path, lambda v: record(v).update({field: escape}))
    with pytest.raises(BrokenSampleError, match=r"expected a file in .*/root, got "):
        reopen(name, root)[0]


def test_texts_of_lines(tmp_path):
    make("slimpajama", tmp_path)
    texts = ["a\u2028b", "c\x85d\u2029e", "a \\ud800"]
    lines = [f'{{"text": "{text}"}}' for text in texts]
    deep = '{"text": ' + "[" * 10**5 + "]" * 10**5 + "}"
    path = tmp_path / "chunk1" / "a.jsonl"
    path.write_text("\n".join([*lines, deep]), encoding="utf-8-sig")
    found = build_dataset("slimpajama", str(tmp_path))
    read = [found[index].messages[1]["content"][0]["text"] for index in range(3)]
    assert read == [*texts[:2], "a \ufffd"]
    with pytest.raises(
        BrokenSampleError, match=r"a\.jsonl:4: no JSON: expected JSON, got one nest"
    ):
        found[3]
    assert len(found) == 5 and found[4].source.endswith("b.jsonl:1")


def test_questions_with_lone_surrogates(tmp_path):
    make("vqav2", tmp_path)
    path = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    rewrite(path, lambda v: v["questions"][0].update(question="what \ud800?"))
    assert "\\ud800" in path.read_text()
    sample = reopen("vqav2", tmp_path)[0]
    assert sample.messages[0]["content"][1]["text"].startswith("what \ufffd?")
    assert sample.facts["question"] == "what \ufffd?"


def test_labels_in_long_fields(tmp_path):
    make("openimages", tmp_path)
    long = "x" * 200_000
    with (tmp_path / "oidv7-class-descriptions.csv").open("w") as file:
        csv.writer(file).writerows([["/m/01", long], ["/m/02", "Tree"]])
    assert reopen("openimages", tmp_path)[0].concepts == (long, "Tree")


def test_questions_of_mme_with_other_line_ends(tmp_path):
    make("mme", tmp_path)
    path = tmp_path / "existence" / "1.txt"
    path.write_bytes("\ufeffIs it\u2028 so?\tYes\r\nIs it not?\tNo\r\n".encode())
    found = reopen("mme", tmp_path)
    samples = [one for one in found if one.facts["task"] == "existence"]
    asked = [one.messages[0]["content"][1]["text"] for one in samples]
    assert asked == ["Is it\u2028 so?", "Is it not?"]
    assert [one.facts["label"] for one in samples] == ["Yes", "No"]
