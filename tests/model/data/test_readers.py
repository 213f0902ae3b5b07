import gzip
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from helpers.published import NEEDS, PUBLISHED, mask_in, picture, rewrite, save
from setokim.data import BrokenSampleError, Conversation, Guarded, Order, Sample
from setokim.data.conversations import MASK
from setokim.data.readers import READERS
from setokim.data.rle import decode_rle


def build(name, root):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    make, options = PUBLISHED[name]
    make(root)
    return READERS[name](root, **options)


def reopen(name, root):
    return READERS[name](root, **PUBLISHED[name][1])


def said(sample):
    """Texts, MASK, and None for images."""
    parts = (part for one in sample.messages for part in one["content"])
    return [part if part == MASK else part.get("text") for part in parts]


def shown(sample):
    return [p["image"] for m in sample.messages for p in m["content"] if p["type"] == "image"]


def broken(dataset):
    """Return the readable samples, and the messages of the others."""
    good, bad = [], []
    for index in range(len(dataset)):
        try:
            good.append(dataset[index])
        except BrokenSampleError as error:
            bad.append(str(error))
    return good, bad


def test_all_are_here():
    assert READERS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_three_samples_each(name, tmp_path):
    dataset = build(name, tmp_path)
    # Two questions about each of two images.
    number = 4 if name == "mme" else 3
    assert len(dataset) == number
    samples = [dataset[index] for index in range(number)]
    for sample in samples:
        assert isinstance(sample, (Sample, Conversation)) and str(tmp_path) in sample.source
        if isinstance(sample, Conversation):
            assert json.loads(json.dumps(sample.facts)) == sample.facts
    with pytest.raises(IndexError, match=rf"^index: expected less than {number}, got {number}$"):
        dataset[number]
    with pytest.raises(ValueError, match=r"^root: expected a folder, got "):
        reopen(name, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=r"expected|No such file"):
        reopen(name, tmp_path / "empty")


def test_samples_that_are_read(tmp_path):
    def read(name, index=0):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        return build(name, root)[index]

    assert read("imagenet-folder", 2).caption == "n01443537"
    assert read("openimages").concepts == ("Dog", "Tree, old")
    assert read("openimages", 1).concepts == ("Dog",)
    text = read("slimpajama", 2)
    assert said(text) == ["", "text 2 é"] and text.task == "text"
    caption = read("coco-captions")
    assert said(caption)[1:] == ["describe the picture.", "caption 0"]
    assert caption.facts == {"image_id": 1, "answers": ["caption 0", "caption 3"]}
    chat = read("llava-665k")
    assert said(chat) == [None, "What is it?", "A dog.", "Sure?", "Yes."] and chat.task == "vqa"
    spoken = read("allava", 1)
    assert said(spoken) == ["Sure?", "Yes."] and spoken.task == "text" and not shown(spoken)
    question = read("vqav2", 1)
    assert said(question)[1].startswith("what 2?\n") and said(question)[2] == "b"
    assert question.facts["answers"] == list("abbb") and question.facts["question_id"] == 20
    choice = read("aokvqa", 1)
    assert said(choice)[2] == "two" and choice.facts["correct"] == 2
    by_letter = READERS["aokvqa"](tmp_path / "aokvqa", choices=True)[1]
    assert said(by_letter)[2] == "C" and "\nC. three\n" in said(by_letter)[1]
    assert read("gqa", 2).facts == {"question_id": "03", "question": "is it?", "answers": ["yes"]}
    coco = read("coco-karpathy", 1)
    assert coco.facts == {"image_id": 3, "answers": [f"A dog {i}." for i in range(5)]}
    assert len(READERS["coco-karpathy"](tmp_path / "coco-karpathy", split="restval")) == 1
    with pytest.raises(ValueError, match=r"^name: expected one of flickr30k, coco, got 'mscoco'$"):
        READERS["flickr30k"](tmp_path, name="mscoco")
    flickr = read("flickr30k", 2)
    assert flickr.facts == {"image_id": "3.jpg", "answers": [f"A dog {i}." for i in range(5)]}


def test_the_position_of_an_image_in_a_chat(tmp_path):
    """It is the user's "<image>" where there is an image; anywhere else it is text."""
    build("llava-665k", tmp_path)

    def change(records):
        for record in records:
            asked, answer, *_ = record["conversations"]
            asked["value"], answer["value"] = "What is <image>?", "A tag, <image>."

    rewrite(tmp_path / "llava_v1_5_mix665k.json", change)
    dataset = reopen("llava-665k", tmp_path)
    assert said(dataset[0]) == [None, "What is ?", "A tag, <image>.", "Sure?", "Yes."]
    assert said(dataset[1]) == ["What is <image>?", "A tag, <image>."]


def test_images_of_edits(tmp_path):
    dataset = build("magicbrush", tmp_path)
    before, after = shown(dataset[1])
    assert before.tobytes() == picture(1).tobytes() and after.tobytes() == picture(2).tobytes()
    assert dataset[1].facts == {
        "instruction": "make it 1",
        "img_id": "1",
        "turn_index": 2,
        "caption": "it is 1",
    }
    # The file of descriptions lacks the third.
    assert dataset[2].facts["caption"] is None
    whole = READERS["magicbrush"](tmp_path, descriptions="global")
    assert whole[1].facts["caption"] == "all of it is 1"
    (tmp_path / "local_descriptions.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"local_descriptions.json: expected an object"):
        reopen("magicbrush", tmp_path)
    (tmp_path / "local_descriptions.json").unlink()
    message = r"^root: expected local_descriptions.json in .*, got global_descriptions.json alone"
    with pytest.raises(ValueError, match=message):
        reopen("magicbrush", tmp_path)
    (tmp_path / "global_descriptions.json").unlink()
    assert reopen("magicbrush", tmp_path)[1].facts["caption"] is None
    with pytest.raises(ValueError, match=r"^descriptions: expected one of local, global, got 'a'$"):
        READERS["magicbrush"](tmp_path, descriptions="a")
    for name in ("evr", "ma5k"):
        root = tmp_path / name
        root.mkdir()
        listed = build(name, root)
        assert said(listed[1]) == [None, "make it bright", None] and listed[1].task == "edit"
        for number, shot in enumerate(shown(listed[1]), 1):
            with Image.open(root / "images" / f"{number}.jpg") as opened:
                assert shot.tobytes() == opened.tobytes()
        assert listed[1].facts["caption"] is None
    assert listed[0].facts["instructions"] == ["make it bright"]
    with pytest.raises(ValueError, match=r"expected annotations/val_sess_1.json in .*, got none"):
        READERS["ma5k"](root, split="val")


def test_images_to_generate(tmp_path):
    build("coco-captions", tmp_path)
    asked = READERS["coco-captions"](tmp_path, draw=True)[0]
    assert said(asked) == ["draw caption 0", None] and asked.task == "generate"
    assert asked.facts == {"image_id": 1, "caption": "caption 0"} and len(shown(asked)) == 1


def test_masks_of_phrases(tmp_path):
    dataset = build("refcoco+", tmp_path)
    assert said(dataset[1])[1:] == ["segment the left dog 1.", MASK]
    assert dataset[1].facts == {"ref_id": 1, "sent_id": 1, "phrase": "left dog 1"}
    # Corners at 2 and 12, 2 and 10.
    assert np.array_equal(dataset[0].masks[0], mask_in(2, 2, 10, 8))
    assert np.array_equal(dataset[2].masks[0], mask_in(4, 4, 3, 2))
    (regions,) = dataset[1].regions
    assert regions.names == ("left dog 1",)
    assert np.array_equal(regions.labels, np.where(dataset[1].masks[0], 0, -1))
    assert len(READERS["refcoco+"](tmp_path, split="train")) == 2
    with pytest.raises(ValueError, match=r"^split: expected one of .*, got 'testC'$"):
        READERS["refcoco+"](tmp_path, split="testC")


def test_partitions_of_references(tmp_path):
    """Both partitions of refCOCOg lie in one folder; refCOCO has two test splits."""
    build("refcocog", tmp_path)
    build("refcocog-google", tmp_path)
    path = tmp_path / "refcocog" / "refs(google).p"
    references = pickle.loads(path.read_bytes())
    references[0]["split"] = "train"
    path.write_bytes(pickle.dumps(references, 2))
    assert len(reopen("refcocog", tmp_path)) == 3 and len(reopen("refcocog-google", tmp_path)) == 1
    build("refcoco", tmp_path)
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps([one | {"split": "testB"} for one in references], 2))
    assert len(READERS["refcoco"](tmp_path, split="testB")) == 5
    with pytest.raises(ValueError, match=r"refcoco/refs\(unc\)\.p, got 'val'$"):
        reopen("refcoco", tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"refcoco/refs\(unc\)\.p: expected a pickle"):
        reopen("refcoco", tmp_path)


def test_masks_of_reasons(tmp_path):
    sample = build("reasonseg", tmp_path)[0]
    assert said(sample)[1] == "what can bark?"
    ignored = decode_rle(sample.facts["ignored"])
    assert np.array_equal(ignored, mask_in(4, 4, 3, 3))
    assert np.array_equal(sample.masks[0], mask_in(2, 2, 11, 9) & ~ignored)


@pytest.mark.parametrize(
    ("labels", "on_top"),
    [(["target", "ignore"], 99), (["ignore", "target"], 0), (["target", "ignore", "flag"], 99)],
)
def test_of_equal_shapes_the_first_lies_on_top(labels, on_top, tmp_path):
    build("reasonseg", tmp_path)
    square = [[2.9, 2], [12, 2], [12, 10.9], [2.9, 10.9]]
    shapes = [{"label": label, "points": square} for label in labels]
    rewrite(tmp_path / "1.json", lambda record: record.update(shapes=shapes))
    (mask,) = reopen("reasonseg", tmp_path)[0].masks
    assert mask.sum() == on_top and not mask[:, 13].any()


def test_masks_of_objects(tmp_path):
    instances = build("coco-instances", tmp_path)
    assert instances[0].concepts == ("dog", "person")
    expected = np.where(mask_in(2, 2, 10, 8), 1, 0)
    expected[mask_in(4, 4, 3, 2)] = 2
    assert np.array_equal(instances[0].masks, expected)
    # A crowd is no object.
    assert instances[1].concepts == () and not instances[1].masks.any()
    panoptic = build("coco-panoptic", tmp_path)
    expected = np.where(mask_in(0, 0, 24, 8), 1, 0)
    expected[mask_in(3, 2, 6, 3)] = 2
    assert np.array_equal(panoptic[0].masks, expected) and panoptic[0].concepts == ("sky", "person")


PICTURES = {
    "imagenet-folder": "n01440764/n01440764_0.JPEG",
    "openimages": "validation/a.jpg",
    "coco-captions": "val2017/000000000001.jpg",
    "coco-karpathy": "val2014/COCO_val2014_000000000001.jpg",
    "coco-instances": "val2017/000000000001.jpg",
    "coco-panoptic": "annotations/panoptic_val2017/000000000001.png",
    "vqav2": "val2014/COCO_val2014_000000000001.jpg",
    "okvqa": "val2014/COCO_val2014_000000000001.jpg",
    "aokvqa": "val2017/000000000001.jpg",
    "gqa": "images/n1.jpg",
    "pope": "val2014/COCO_val2014_000000000001.jpg",
    "pope-aokvqa": "val2014/COCO_val2014_000000000001.jpg",
    "pope-gqa": "images/1.jpg",
    "mm-vet": "images/v1_1.png",
    "evr": "images/0.jpg",
    "ma5k": "images/0.jpg",
    "flickr30k": "flickr30k-images/0.jpg",
    "refcocog": "train2014/000000000002.jpg",
    "refcocog-google": "train2014/000000000002.jpg",
    "refcoco": "train2014/000000000002.jpg",
    "refcoco+": "train2014/000000000002.jpg",
    "reasonseg": "1.jpg",
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_damaged_or_missing_image(name, tmp_path):
    dataset, file = build(name, tmp_path), tmp_path / PICTURES[name]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    good, bad = broken(dataset)
    assert len(good) == 2 and len(bad) == 1 and f"cannot read {file}: " in bad[0]
    if name != "imagenet-folder":
        file.unlink()
        good, bad = broken(dataset)
        assert len(good) == 2 and bad[0].endswith(f"cannot read {file}: No such file or directory")


RECORDS = {
    "coco-captions": (
        "annotations/captions_val2017.json",
        lambda v: v["images"][0].pop("id"),
        "id",
    ),
    "coco-karpathy": (
        "dataset_coco.json",
        lambda v: v["images"][0].update(cocoid="1"),
        "cocoid: expected int, got '1'",
    ),
    "coco-instances": (
        "annotations/instances_val2017.json",
        lambda v: v["annotations"][1]["segmentation"].update(size=[16, 23]),
        "segmentation: size: expected the image's (16, 24), got (16, 23)",
    ),
    "coco-panoptic": (
        "annotations/panoptic_val2017.json",
        lambda v: v["annotations"][0]["segments_info"][0].update(id=6),
        "expected segment 6, got none",
    ),
    "llava-665k": (
        "llava_v1_5_mix665k.json",
        lambda v: v[0]["conversations"].pop(),
        "conversations: expected pairs of turns, got 3 turns",
    ),
    "allava": (
        "allava.json",
        lambda v: v[0].update(image=3),
        "image: expected str or list of str, got 3",
    ),
    "vqav2": (
        "v2_mscoco_val2014_annotations.json",
        lambda v: v["annotations"].pop(),
        "no answers to question 30",
    ),
    "okvqa": (
        "OpenEnded_mscoco_val2014_questions.json",
        lambda v: v["questions"][1].update(question=None),
        "question: expected str, got None",
    ),
    "aokvqa": (
        "aokvqa_v1p0_val.json",
        lambda v: v[0].update(correct_choice_idx=4),
        "correct_choice_idx: expected 0 to 3, got 4",
    ),
    "gqa": (
        "testdev_balanced_questions.json",
        lambda v: v["01"].pop("imageId"),
        "imageId: expected str, got None",
    ),
    "pope-aokvqa": (
        "aokvqa_pope_seem_random.json",
        lambda v: v[0].update(label="maybe"),
        "label: expected yes or no, got 'maybe'",
    ),
    "pope-gqa": (
        "gqa_pope_seem_random.json",
        lambda v: v[0].pop("image"),
        "image: expected str, got None",
    ),
    "mm-vet": (
        "mm-vet.json",
        lambda v: v["v1_2"].update(capability="rec"),
        "capability: expected list, got 'rec'",
    ),
    "evr": ("data/test.json", lambda v: v[0].update(sents=[]), "sents: expected texts, got []"),
    "ma5k": (
        "annotations/test_sess_1.json",
        lambda v: v[0].pop("output"),
        "output: expected str, got None",
    ),
    "flickr30k": (
        "dataset_flickr30k.json",
        lambda v: v["images"][0].update(sentences=[]),
        "it has no caption",
    ),
    "refcocog": (
        "refcocog/instances.json",
        lambda v: v["annotations"][1]["segmentation"].update(size=[24, 16]),
        "segmentation: size: expected the image's (16, 24), got (24, 16)",
    ),
    "refcoco": (
        "refcoco/instances.json",
        lambda v: v["annotations"].pop(),
        "its object or image is not in instances.json",
    ),
    "refcocog-google": (
        "refcocog/instances.json",
        lambda v: v["annotations"][1].update(segmentation=None),
        "segmentation: expected",
    ),
    "reasonseg": (
        "2.json",
        lambda v: v["shapes"][0]["points"].__setitem__(0, [1]),
        "points: expected x and y of corners",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_malformed_record(name, tmp_path):
    build(name, tmp_path)
    file, change, reason = RECORDS[name]
    rewrite(tmp_path / file, change)
    good, bad = broken(reopen(name, tmp_path))
    assert len(good) == 2 and len(bad) == 1 and reason in bad[0]
    # The message begins with the name of the record.
    assert bad[0].startswith(str(tmp_path))


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_compressed_lines(kind, tmp_path):
    compress = gzip.compress
    if kind == "zst":
        compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    root, cache = tmp_path / "data", tmp_path / "cache"
    root.mkdir()
    whole = [said(one) for one in map(build("slimpajama", root).__getitem__, range(3))]
    # One file stays as it is.
    plain = root / "chunk1" / "a.jsonl"
    data, packed = plain.read_bytes(), plain.with_name(f"a.jsonl.{kind}")
    packed.write_bytes(compress(data))
    dataset = READERS["slimpajama"](root, cache=cache)
    assert len(dataset) == 3 and not cache.exists()
    plain.unlink()
    for _ in range(2):
        dataset = READERS["slimpajama"](root, cache=cache)
        assert [said(dataset[index]) for index in range(3)] == whole
        assert dataset[1].source == f"{packed}:2" and len(list(cache.rglob("*.jsonl"))) == 1
    # Cut off in the middle of the second line.
    packed.write_bytes(compress(data[:-9]))
    good, bad = broken(READERS["slimpajama"](root, cache=cache))
    assert [said(one) for one in good] == [whole[0], whole[2]]
    assert len(bad) == 1 and bad[0].startswith(f"{packed}:2: no JSON: ")
    packed.write_bytes(compress(data)[:4] + b"damaged")
    with pytest.raises((ValueError, OSError), match=str(packed)):
        READERS["slimpajama"](root, cache=cache)


def edit_folders(root, listed):
    """Two pairs of one instruction, and one of another."""
    pairs = {"0000001": ["12", "34"], "0000002": ["5"]}
    for name, seeds in pairs.items():
        prompt = {"input": "a dog", "edit": f"make it {name}", "output": f"it is {name}"}
        (root / name).mkdir()
        (root / name / "prompt.json").write_text(json.dumps(prompt))
        (root / name / "metadata.jsonl").write_text('{"seed": 12}\n')
        for seed in seeds:
            for side in (0, 1):
                save(root / name / f"{seed}_{side}.jpg", int(seed) + side)
    if listed:
        (root / "seeds.json").write_text(json.dumps([[k, v] for k, v in reversed(pairs.items())]))


@pytest.mark.parametrize("listed", [False, True])
def test_folders_of_edits(listed, tmp_path):
    edit_folders(tmp_path, listed)
    train = READERS["instructpix2pix"](tmp_path)
    test = READERS["instructpix2pix"](tmp_path, split="test")
    first, second = (test, train) if listed else (train, test)
    # Nine tenths of two folders are one, the first of the list.
    assert (len(first), len(second)) == (2, 1)
    sample = first[1]
    assert sample.facts == {"instruction": "make it 0000001", "caption": "it is 0000001"}
    for side, image in enumerate(shown(sample)):
        with Image.open(tmp_path / "0000001" / f"34_{side}.jpg") as opened:
            assert image.tobytes() == opened.tobytes()
    assert sample.source == f"{tmp_path / '0000001'}: seed 34"
    with pytest.raises(ValueError, match=r"^split: expected pairs of images in .*none in 'val'$"):
        READERS["instructpix2pix"](tmp_path, split="val")
    with pytest.raises(ValueError, match=r"^split: expected one of train, val, test, got 'dev'$"):
        READERS["instructpix2pix"](tmp_path, split="dev")


def test_damaged_folders_of_edits(tmp_path):
    edit_folders(tmp_path, False)
    dataset = READERS["instructpix2pix"](tmp_path)
    (tmp_path / "0000001" / "12_1.jpg").write_bytes(b"none")
    (tmp_path / "0000001" / "34_0.jpg").unlink()
    good, bad = broken(dataset)
    assert not good and "not an image" in bad[0] and "34_0.jpg" in bad[1]
    save(tmp_path / "0000001" / "12_1.jpg")
    for text, reason in {'{"edit": 3}': "edit: expected str, got 3", "{": "expected JSON"}.items():
        (tmp_path / "0000001" / "prompt.json").write_text(text)
        with pytest.raises(BrokenSampleError, match=f"seed 12: .*{reason}"):
            dataset[0]
    for text in ("[1]", "3", '[["a", 4]]'):
        (tmp_path / "seeds.json").write_text(text)
        with pytest.raises(ValueError, match=r"seeds.json: expected a list of folders and their"):
            READERS["instructpix2pix"](tmp_path)
    (tmp_path / "seeds.json").write_text('[["../x", ["1"]], ["y", []]]')
    with pytest.raises(BrokenSampleError, match=r"expected a file in .*, got '../x'"):
        READERS["instructpix2pix"](tmp_path)[0]


def test_questions_about_objects_in_lists_and_lines(tmp_path):
    dataset = build("pope-gqa", tmp_path)
    assert said(dataset[1])[1].startswith("Is it?\n") and said(dataset[1])[2] == "no"
    facts = dataset[1].facts
    assert (facts["question_id"], facts["category"], facts["label"]) == (2, "random", "no")
    path = tmp_path / "gqa_pope_seem_random.json"
    records = json.loads(path.read_text())
    lines = "\n".join(map(json.dumps, records))
    (tmp_path / "gqa").mkdir()
    nested = path.rename(tmp_path / "gqa" / path.name)
    for text in (lines, "\ufeff " + json.dumps(records), f'{lines[:-1]}\n{{"question_id": 4}}'):
        nested.write_text(text, encoding="utf-8")
        good, bad = broken(reopen("pope-gqa", tmp_path))
        assert [one.facts for one in good[:2]] == [dataset[0].facts, dataset[1].facts]
        assert len(bad) == 2 * text.endswith("4}")
    nested.write_text("[1, ")
    with pytest.raises(ValueError, match=r"gqa_pope_seem_random.json:1:5: expected JSON"):
        reopen("pope-gqa", tmp_path)
    with pytest.raises(ValueError, match=r"^data: expected one of coco, aokvqa, gqa, got 'flickr'"):
        READERS["pope"](tmp_path, data="flickr")
    with pytest.raises(
        ValueError, match=r"^root: expected gqa_pope_seem_popular.json or gqa/gqa_p"
    ):
        READERS["pope-gqa"](tmp_path, split="popular")


def test_lines_that_are_none(tmp_path):
    dataset = build("slimpajama", tmp_path)
    file = tmp_path / "chunk1" / "a.jsonl"
    lines = [b'{"text": "a"', b'{"text": "\xff"}', b'{"meta": {}}', b'{"text": "whole"}']
    file.write_bytes(b"\n".join([*lines, b'{"text": "a [SEG]</s>"}']))
    good, bad = broken(reopen("slimpajama", tmp_path))
    # Names of special tokens are text.
    assert [said(one) for one in good] == [["", "whole"], ["", "a [SEG]</s>"], said(dataset[2])]
    found = [text.removeprefix(f"{file}:")[:5] for text in bad]
    assert found == ["1: no", "2: no", "3: te"]


def test_rows_of_labels_that_are_none(tmp_path):
    build("openimages", tmp_path)
    file = tmp_path / "validation-annotations-human-imagelabels.csv"
    file.write_bytes(file.read_bytes() + b"d,verification\n" + b"\xff,verification,/m/01,1\n")
    good, bad = broken(reopen("openimages", tmp_path))
    assert len(good) == 3 and len(bad) == 2
    assert f"{file}:7: expected 4 fields, got 2" in bad and any(
        f"{file}:8: no UTF-8" in b for b in bad
    )


def test_files_of_reasons_that_are_none(tmp_path):
    build("reasonseg", tmp_path)
    (tmp_path / "1.json").write_bytes('{"text": ["é"]'.encode("cp1252"))
    (tmp_path / "2.json").write_text('{"text": ')
    dataset = Guarded(reopen("reasonseg", tmp_path), max_share=1.0)
    seen = {dataset[index][0].source for index in range(3)}
    for index in range(3):
        dataset.count(dataset[index][1])
    assert seen == {str(tmp_path / "3.json")}
    assert dataset.summary().startswith("2 of 3 samples could not be read: ")


@pytest.mark.parametrize("name", ["instructpix2pix", "laion-parquet", "imagenet-parquet"])
def test_rows_that_are_no_images(name, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    build(name, tmp_path)
    (file,) = tmp_path.rglob("*.parquet")
    rows = parquet.read_table(file).to_pylist()
    column = next(key for key in ("jpg", "image", "edited_image") if key in rows[0])
    rows[0][column] = b"no picture" if column == "jpg" else {"bytes": b"no picture", "path": ""}
    rows[1][column] = None
    parquet.write_table(arrow.Table.from_pylist(rows), file)
    good, bad = broken(reopen(name, tmp_path))
    assert len(good) == 1 and len(bad) == 2
    assert f"cannot read {column}: not an image" in bad[0] and f"{file}: row 0" in bad[0]
    assert f"{column}: expected the bytes of an image, got NoneType" in bad[1]


def test_a_malicious_pickle_does_nothing(tmp_path):
    build("refcocog", tmp_path)
    target = tmp_path / "made"
    file = tmp_path / "refcocog" / "refs(umd).p"

    class Evil:
        def __reduce__(self):
            return target.mkdir, ()

    file.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(ValueError, match=r"refs\(umd\)\.p: expected a pickle of plain values"):
        reopen("refcocog", tmp_path)
    assert not target.exists()


class Numbers:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("length", [97, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_four_ranks_see_each_sample_once_and_resume(length, workers):
    def batches(rank, start, number):
        order = Order(length, 3, rank, 4, seed=5, start=start)
        loader = DataLoader(
            Numbers(length), batch_sampler=order, num_workers=workers, collate_fn=list
        )
        stream = iter(loader)
        return [next(stream) for _ in range(number)]

    steps = -(-3 * length // 12)
    whole = [batches(rank, 0, steps) for rank in range(4)]
    # In the order of the steps; within a step one rank after the other.
    seen = [index for step in zip(*whole, strict=True) for batch in step for index in batch]
    for epoch in range(3):
        assert sorted(seen[epoch * length : (epoch + 1) * length]) == list(range(length))
    assert seen[:length] != seen[length : 2 * length]
    middle = steps // 2
    for rank in range(4):
        assert batches(rank, middle, steps - middle) == whole[rank][middle:]
