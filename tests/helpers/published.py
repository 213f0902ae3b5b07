"""Small data sets in the layouts that their authors publish: three samples each."""

import csv
import io
import json
import pickle
import zipfile

import numpy as np
from PIL import Image

from setokim.data.rle import encode_rle

SIZE = (24, 16)  # width, height
# What a reader wants to have installed.
NEEDS = {
    "imagenet-parquet": "pyarrow",
    "laion-parquet": "pyarrow",
    "instructpix2pix": "pyarrow",
    "magicbrush": "pyarrow",
    "coco-instances": "pycocotools",
    "refcoco": "pycocotools",
    "refcoco+": "pycocotools",
    "refcocog": "pycocotools",
    "refcocog-google": "pycocotools",
}


def picture(seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 255, (*SIZE[::-1], 3), np.uint8))


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def data_of(seed=0, kind="PNG"):
    stream = io.BytesIO()
    picture(seed).save(stream, kind)
    return stream.getvalue()


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def imagenet_folder(root):
    for number, name in enumerate(("n01440764", "n01443537", "n01443537")):
        save(root / name / f"{name}_{number}.JPEG", number)


def imagenet_parquet(root):
    rows = [{"image": {"bytes": data_of(i, "JPEG"), "path": ""}, "label": i} for i in range(3)]
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", rows)


def openimages(root):
    for name in "abc":
        save(root / "validation" / f"{name}.jpg")
    head = ["ImageID", "Source", "LabelName", "Confidence"]
    rows = [[name, "verification", "/m/01", 1] for name in "abc"]
    rows += [["a", "verification", "/m/02", 1], ["b", "verification", "/m/02", 0]]
    write_csv(root / "validation-annotations-human-imagelabels.csv", [head, *rows])
    names = [["LabelName", "DisplayName"], ["/m/01", "Dog"], ["/m/02", "Tree, old"]]
    write_csv(root / "oidv7-class-descriptions.csv", names)


def slimpajama(root):
    lines = [json.dumps({"text": f"text {i} é", "meta": {}}, ensure_ascii=False) for i in range(3)]
    (root / "chunk1").mkdir()
    (root / "chunk1" / "a.jsonl").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    (root / "chunk1" / "b.jsonl").write_text(lines[2] + "\n", encoding="utf-8")


def coco_images(root, split="val2017"):
    for number in (1, 2, 3):
        save(root / split / f"{number:012d}.jpg", number)
    return [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (1, 2, 3)]


def coco_captions(root):
    images = coco_images(root)
    captions = [{"id": 10 + i, "image_id": i % 3 + 1, "caption": f"caption {i}"} for i in range(6)]
    whole = {"images": images, "annotations": captions}
    write_json(root / "annotations" / "captions_val2017.json", whole)


def mask_in(x, y, width, height):
    mask = np.zeros(SIZE[::-1], bool)
    mask[y : y + height, x : x + width] = True
    return mask


def annotation(number, image, segmentation, category=18, **fields):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": 0,
        **fields,
    }


def coco_instances(root):
    images = coco_images(root)
    polygon = [[2, 2, 12, 2, 12, 10, 2, 10]]
    crowd = annotation(14, 2, encode_rle(mask_in(0, 0, 9, 9)), iscrowd=1)
    objects = [
        annotation(11, 1, polygon),
        annotation(12, 1, encode_rle(mask_in(4, 4, 3, 2)), 1),
        annotation(13, 3, encode_rle(mask_in(0, 0, 5, 5))),
        crowd,
    ]
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    whole = {"images": images, "annotations": objects, "categories": categories}
    write_json(root / "annotations" / "instances_val2017.json", whole)


def coco_panoptic(root):
    coco_images(root)
    records = []
    for number in (1, 2, 3):
        ids = np.zeros(SIZE[::-1], np.int64)
        ids[:8], ids[2:5, 3:9] = 5, 70_000
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)
        path = root / "annotations" / "panoptic_val2017" / f"{number:012d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(path)
        segments = [{"id": 5, "category_id": 2}, {"id": 70_000, "category_id": 1}]
        records.append({"image_id": number, "file_name": path.name, "segments_info": segments})
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "sky"}]
    whole = {"annotations": records, "categories": categories}
    write_json(root / "annotations" / "panoptic_val2017.json", whole)


def chats(root, name="llava_v1_5_mix665k.json"):
    save(root / "coco" / "train2017" / "a.jpg")
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    seen = {"id": "1", "image": "coco/train2017/a.jpg", "conversations": turns}
    spoken = {"id": 2, "conversations": [{**turns[2]}, {**turns[3]}]}
    write_json(root / name, [seen, spoken, {**seen, "id": "3"}])


def vqa(root, prefix="v2_"):
    asked = []
    for number in (1, 2, 3):
        save(root / "val2014" / f"COCO_val2014_{number:012d}.jpg", number)
        question = {"image_id": number, "question_id": 10 * number, "question": f"what {number}?"}
        asked.append(question)
    name = f"{prefix}OpenEnded_mscoco_val2014_questions.json"
    write_json(root / name, {"questions": asked})
    given = [
        {
            "question_id": question["question_id"],
            "question_type": "what",
            "answer_type": "other",
            "answers": [{"answer": text, "answer_id": i} for i, text in enumerate("abbb")],
        }
        for question in asked
    ]
    write_json(root / f"{prefix}mscoco_val2014_annotations.json", {"annotations": given})


def okvqa(root):
    vqa(root, "")


def aokvqa(root):
    coco_images(root)
    records = [
        {
            "split": "val",
            "image_id": number,
            "question_id": f"q{number}",
            "question": "which?",
            "choices": ["one", "two", "three", "four"],
            "correct_choice_idx": number,
            "direct_answers": ["two"] * 10,
        }
        for number in (1, 2, 3)
    ]
    write_json(root / "aokvqa_v1p0_val.json", records)


def gqa(root):
    for number in (1, 2, 3):
        save(root / "images" / f"n{number}.jpg", number)
    questions = {
        f"0{number}": {"imageId": f"n{number}", "question": "is it?", "answer": "yes"}
        for number in (1, 2, 3)
    }
    write_json(root / "testdev_balanced_questions.json", questions)


def laion_parquet(root):
    rows = [{"jpg": data_of(i, "JPEG"), "caption": f"a dog, {i}"} for i in range(3)]
    write_parquet(root / "00000.parquet", rows)


def instructpix2pix(root):
    rows = [
        {
            "original_image": {"bytes": data_of(i), "path": ""},
            "original_prompt": "it",
            "edit_prompt": f"make it {i}",
            "edited_prompt": f"it is {i}",
            "edited_image": {"bytes": data_of(i + 1), "path": ""},
        }
        for i in range(3)
    ]
    write_parquet(root / "data" / "train-00000-of-00001.parquet", rows)


def magicbrush(root):
    rows = [
        {
            "img_id": f"{i}",
            "turn_index": 1 + i % 2,
            "source_img": {"bytes": data_of(i), "path": ""},
            "mask_img": {"bytes": data_of(i), "path": ""},
            "instruction": f"make it {i}",
            "target_img": {"bytes": data_of(i + 1), "path": ""},
        }
        for i in range(3)
    ]
    write_parquet(root / "data" / "train-00000-of-00001.parquet", rows)
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    for kind, text in {"local": "it is", "global": "all of it is"}.items():
        captions = {f"{i}": {f"{i}-output{1 + i % 2}.png": f"{text} {i}"} for i in range(2)}
        write_json(root / f"{kind}_descriptions.json", captions)


def edit_turns(root):
    """MagicBrush's test split as its authors give it: two turns of one picture, one of another."""
    turns = [
        {"input": "7-input.png", "mask": "7-mask1.png", "output": "7-output1.png"},
        {"input": "7-output1.png", "mask": "7-mask2.png", "output": "7-output2.png"},
        {"input": "8-input.png", "mask": "8-mask1.png", "output": "8-output1.png"},
    ]
    turns = [turn | {"instruction": f"make it {index}"} for index, turn in enumerate(turns)]
    names = sorted({turn[field] for turn in turns for field in ("input", "mask", "output")})
    captions = {"7": {"7-output1.png": "it is 0", "7-output2.png": "it is 1"}}
    with zipfile.ZipFile(root / "MagicBrush_test.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test/edit_turns.json", json.dumps(turns))
        archive.writestr("test/local_descriptions.json", json.dumps(captions))
        for seed, name in enumerate(names):
            archive.writestr(f"test/images/{name.split('-')[0]}/{name}", data_of(seed))


def listed_edits(root):
    for number in range(4):
        save(root / "images" / f"{number}.jpg", number)


def evr(root):
    listed_edits(root)
    fields = [{"img0": f"{i}.jpg", "img1": f"{i + 1}.jpg", "uid": f"u{i}"} for i in range(3)]
    requests = [one | {"sents": ["make it bright", "more light"]} for one in fields]
    write_json(root / "data" / "test.json", requests)


def ma5k(root):
    listed_edits(root)
    fields = [{"input": f"{i}.jpg", "output": f"{i + 1}.jpg"} for i in range(3)]
    requests = [one | {"request": "make it bright", "request_idx": [1, 2]} for one in fields]
    write_json(root / "annotations" / "test_sess_1.json", requests)


def flickr30k(root):
    images = []
    for number in range(4):
        save(root / "flickr30k-images" / f"{number}.jpg", number)
        sentences = [{"raw": f" A dog {i}. "} for i in range(5)]
        split = "train" if number == 2 else "test"
        images.append({"filename": f"{number}.jpg", "split": split, "sentences": sentences})
    write_json(root / "dataset_flickr30k.json", {"images": images})


def coco_karpathy(root):
    images = []
    for number, split in enumerate(("test", "restval", "test", "val", "test"), 1):
        folder = "train2014" if split == "restval" else "val2014"
        name = f"COCO_{folder}_{number:012d}.jpg"
        save(root / folder / name, number)
        sentences = [{"raw": f"A dog {i}. ", "tokens": ["a", "dog", f"{i}"]} for i in range(5)]
        record = {"filepath": folder, "filename": name, "cocoid": number, "split": split}
        images.append(record | {"imgid": number, "sentids": [], "sentences": sentences})
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def references(root, folder, file):
    images = coco_images(root, "train2014")
    objects = [
        annotation(11, 1, [[2, 2, 12, 2, 12, 10, 2, 10]]),
        annotation(12, 2, encode_rle(mask_in(4, 4, 3, 2))),
    ]
    write_json(root / folder / "instances.json", {"images": images, "annotations": objects})
    said = [{"sent": f"left dog {i}", "sent_id": i, "tokens": ["left", "dog"]} for i in range(2)]
    refs = [
        {"ref_id": 1, "ann_id": 11, "image_id": 1, "split": "val", "sentences": said},
        {"ref_id": 2, "ann_id": 12, "image_id": 2, "split": "val", "sentences": said[:1]},
        {"ref_id": 3, "ann_id": 12, "image_id": 2, "split": "train", "sentences": said},
    ]
    (root / folder / file).write_bytes(pickle.dumps(refs, 2))


def refcoco(root):
    references(root, "refcoco", "refs(unc).p")


def refcocoplus(root):
    references(root, "refcoco+", "refs(unc).p")


def refcocog(root):
    references(root, "refcocog", "refs(umd).p")


def refcocog_google(root):
    references(root, "refcocog", "refs(google).p")


def reasonseg(root):
    square = [[2, 2], [12, 2], [12, 10], [2, 10]]
    inner = [[4, 4], [6, 4], [6, 6], [4, 6]]
    shapes = [
        {"label": "ignore", "points": inner},
        {"label": "target", "points": square},
        {"label": "flag", "points": [[0, 0], [1, 1]]},
    ]
    for number in (1, 2, 3):
        save(root / f"{number}.jpg", number)
        record = {"text": ["what can bark?"], "is_sentence": number == 1, "shapes": shapes}
        write_json(root / f"{number}.json", record)


def pope(root):
    lines = []
    for number, label in ((1, "yes"), (2, "no"), (3, "yes")):
        name = f"COCO_val2014_{number:012d}.jpg"
        save(root / "val2014" / name, number)
        record = {"question_id": number, "image": name, "text": "Is it?", "label": label}
        lines.append(json.dumps(record))
    (root / "coco_pope_random.json").write_text("\n".join(lines) + "\n")


def pope_seem(root, data, folder, image):
    records = []
    for number, label in ((1, "yes"), (2, "no"), (3, "yes")):
        name = image.format(number)
        save(root / folder / name, number)
        record = {"question_id": number, "image": name, "text": "Is it?", "label": label}
        records.append(record)
    write_json(root / f"{data}_pope_seem_random.json", records)


def pope_aokvqa(root):
    pope_seem(root, "aokvqa", "val2014", "COCO_val2014_{:012d}.jpg")


def pope_gqa(root):
    pope_seem(root, "gqa", "images", "{}.jpg")


def mme(root):
    save(root / "existence" / "1.jpg", 1)
    (root / "existence" / "1.txt").write_text("Is it?\tYes\nIs it not?\tNo\n")
    save(root / "OCR" / "images" / "2.png", 2)
    path = root / "OCR" / "questions_answers_YN" / "2.txt"
    path.parent.mkdir()
    path.write_text("Is it?\tYes\nIs it not?\tNo\n")


def mm_vet(root):
    records = {}
    for number in (1, 2, 3):
        save(root / "images" / f"v1_{number}.png", number)
        records[f"v1_{number}"] = {
            "imagename": f"v1_{number}.png",
            "question": "what?",
            "answer": "a dog<OR>a cat",
            "capability": ["rec", "ocr"] if number == 1 else ["rec"],
        }
    write_json(root / "mm-vet.json", records)


# Name of the reader, what builds its files, arguments of the reader.
PUBLISHED = {
    "imagenet-folder": (imagenet_folder, {}),
    "imagenet-parquet": (imagenet_parquet, {"split": "validation"}),
    "openimages": (openimages, {"split": "validation"}),
    "slimpajama": (slimpajama, {}),
    "coco-captions": (coco_captions, {}),
    "coco-karpathy": (coco_karpathy, {}),
    "coco-instances": (coco_instances, {}),
    "coco-panoptic": (coco_panoptic, {}),
    "allava": (lambda root: chats(root, "allava.json"), {"file": "allava.json"}),
    "llava-665k": (chats, {}),
    "vqav2": (vqa, {}),
    "okvqa": (okvqa, {}),
    "aokvqa": (aokvqa, {}),
    "gqa": (gqa, {}),
    "laion-parquet": (laion_parquet, {}),
    "instructpix2pix": (instructpix2pix, {}),
    "magicbrush": (magicbrush, {}),
    "evr": (evr, {}),
    "ma5k": (ma5k, {}),
    "flickr30k": (flickr30k, {}),
    "refcoco": (refcoco, {}),
    "refcoco+": (refcocoplus, {}),
    "refcocog": (refcocog, {}),
    "refcocog-google": (refcocog_google, {}),
    "reasonseg": (reasonseg, {}),
    "pope": (pope, {}),
    "pope-aokvqa": (pope_aokvqa, {}),
    "pope-gqa": (pope_gqa, {}),
    "mme": (mme, {}),
    "mm-vet": (mm_vet, {}),
}


def rewrite(path, change):
    """Change the JSON of a file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
