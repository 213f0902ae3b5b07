import pytest

from setokim.evaluation.predictions.prediction import IMAGE, INDEX, POSITION, QUESTION_ID
from setokim.evaluation.predictions.samples import Samples, is_asked, normal_question
from setokim.evaluation.prompting import Prompt


def prompts(*facts):
    return [Prompt("vqa", index, 0, f"{index}", one, ()) for index, one in enumerate(facts)]


def found(samples, kind, key):
    return [prompt.number for prompt in samples.find(kind, key)]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("COCO_val2014_000000000042.jpg", "42"),
        ("42", "val2014/COCO_val2014_000000000042.jpg"),
        ("42", "000000000042.PNG"),
        ("1000092795.jpg", "1000092795"),
        ("v1_7", "7"),
        ("0", "000"),
        ("n16.jpg", "images\\n16.jpg"),
    ],
)
def test_ids_in_other_forms(name, key):
    samples = Samples(prompts({"question_id": name}, {"question_id": "other"}))
    assert found(samples, QUESTION_ID, key) == [0] and found(samples, INDEX, key) == [0]
    assert found(samples, QUESTION_ID, name) == [0] and found(samples, POSITION, 1) == [1]
    assert found(samples, IMAGE, key) == [] and found(samples, QUESTION_ID, "9") == []


def test_forms_that_several_ids_have():
    """An id that is written as in the data is found; other forms of it mean none."""
    samples = Samples(prompts({"question_id": "01"}, {"question_id": "1"}))
    assert found(samples, QUESTION_ID, "01") == [0] and found(samples, QUESTION_ID, "1") == [1]
    assert found(samples, QUESTION_ID, "001") == []


def test_images_of_two_subtasks():
    facts = [{"task": task, "image": "0001", "label": "yes"} for task in ("OCR", "color", "OCR")]
    samples = Samples(prompts(*facts))
    for kind in (QUESTION_ID, IMAGE):
        assert found(samples, kind, "OCR/0001.jpg") == [0, 2]
        assert found(samples, kind, "MME/color/1.png") == [1]
        assert found(samples, kind, "0001") == []


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        ("Is it?", "is  it?\nAnswer with yes or no.", True),
        ("Is it?", "<image>\nIs it? ASSISTANT:", True),
        ("Is it? Please answer yes or no.", "Question: Is it? Please answer yes or no.", True),
        ("Is it?", "What is it?", False),
        ("Is it?", "Well, is it?", False),
        ("Is it?", "What is it? Is it?", True),
        ("Is it?", "Was it?", False),
        ("Is\n it?", "Is it?", False),
        ("Is\n it?", "Is\nit?\n\nAnswer.", True),
    ],
)
def test_questions_among_instructions(question, text, expected):
    assert is_asked(normal_question(question), normal_question(text)) == expected
