import zlib

import pytest
import torch

from helpers.rounding import assert_same_but_for_rounding
from setokim.training.text_encoder import ConceptEncoder, HFConceptEncoder, build_text_encoder

PHRASES = [["a red cat", "Grass"], [], ["a red cat", "", "the very tall tower"]]


def encoder(**options):
    torch.manual_seed(0)
    return ConceptEncoder(dim=6, width=16, **options)


def test_words_are_hashed_by_their_letters_and_digits():
    ids = encoder(buckets=1000).tokenize([["Red-Cat_2!", "  "], ["Été"]])
    red, cat, two, summer = (
        1 + zlib.crc32(w.encode()) % 1000 for w in ("red", "cat", "2", "\u00e9t\u00e9")
    )
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[[red, cat, two], [0, 0, 0]], [[summer, 0, 0], [0, 0, 0]]]
    # Fixed values: the words of a checkpoint must keep their rows.
    assert (red, cat) == (456, 833)


def test_ids_of_empty_input_have_one_position():
    model = encoder()
    for phrases, shape in [([], (0, 1, 1)), ([[]], (1, 1, 1)), ([[], [""]], (2, 1, 1))]:
        ids = model.tokenize(phrases)
        assert ids.shape == shape
        concepts, present = model(ids)
        assert concepts.shape == (*shape[:2], 6) and present.shape == shape[:2]
        assert not present.any() and (concepts == 0).all()
    concepts, present = model(torch.zeros(2, 0, 0, dtype=torch.int64))
    assert concepts.shape == (2, 0, 6) and present.shape == (2, 0)


def test_concepts_do_not_depend_on_the_batch():
    model = encoder(layers=2)
    concepts, present = model(model.tokenize(PHRASES))
    assert concepts.shape == (3, 3, 6) and concepts.dtype == torch.float32
    assert present.tolist() == [[True, True, False], [False] * 3, [True, False, True]]
    assert (concepts[~present] == 0).all() and concepts[present].abs().sum(-1).min() > 0
    torch.testing.assert_close(concepts[0, 0], concepts[2, 0])
    alone, _ = model(model.tokenize([["a red cat"]]))
    torch.testing.assert_close(alone[0, 0], concepts[0, 0])


def test_order_and_words_matter_case_does_not():
    model = encoder()
    concepts, _ = model(model.tokenize([["dog on cat", "cat on dog", "dog on mat", "DOG on cat"]]))
    first, swapped, other, same = concepts[0]
    assert (first - swapped).abs().max() > 1e-3 and (first - other).abs().max() > 1e-3
    assert_same_but_for_rounding(same, first)


def test_only_the_rows_of_used_words_have_gradients():
    model = encoder(buckets=100)
    ids = model.tokenize(PHRASES)
    model(ids)[0].square().sum().backward()
    used = torch.zeros(101, dtype=torch.bool)
    used[ids[ids > 0]] = True
    assert torch.equal(model.embedding.weight.grad.abs().sum(1) > 0, used)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_concept_encoder_errors():
    for options, message in [
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"dim": 1, "buckets": 0}, "buckets: expected at least 1, got 0"),
        ({"dim": 1, "heads": 0}, "heads: expected at least 1, got 0"),
        ({"dim": 1, "width": 6, "heads": 1}, "width: expected a multiple of 4, got 6"),
        ({"dim": 1, "width": 8, "heads": 3}, "heads: expected a divisor"),
    ]:
        with pytest.raises(ValueError, match=message):
            ConceptEncoder(**options)
    model = encoder()
    with pytest.raises(TypeError, match="phrases: expected a list of phrases per text, got 'cat'"):
        model.tokenize(["cat"])
    with pytest.raises(
        ValueError, match=r"ids: expected \(T, W, L\) int64, got \(2,\) torch.float"
    ):
        model(torch.zeros(2))


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {**SIZES, "vocab_size": 12, "max_position_embeddings": 8}
MARKS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def make_folder(name, folder, with_tokenizer=True):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    match name:
        case "bert":
            model = transformers.BertModel(transformers.BertConfig(**TEXT))
        case "clip-text":
            model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, **MARKS))
        case "siglip":
            config = transformers.SiglipConfig(
                text_config={**TEXT, **MARKS},
                vision_config={**SIZES, "image_size": 16, "patch_size": 8},
            )
            model = transformers.SiglipModel(config)
        case "vit":
            config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8)
            model = transformers.ViTModel(config)
        case "t5":
            config = transformers.T5Config(
                vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
            )
            model = transformers.T5Model(config)
    model.save_pretrained(folder)
    if with_tokenizer:
        words = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "a", "red", "cat", "grass", "the", "tower"]
        raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        raw.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]"
        ).save_pretrained(folder)
    return str(folder), model


@pytest.mark.parametrize("name", ["bert", "clip-text", "siglip"])
def test_hugging_face_text_encoders(name, tmp_path):
    folder, model = make_folder(name, tmp_path)
    model = getattr(model, "text_model", model).eval()
    ours = build_text_encoder(folder, dim=6)
    ids = ours.tokenize([["a red cat", ""], [], ["grass " * 20]])
    assert ids.shape == (3, 2, 8)
    assert ids[0].tolist() == [[1, 5, 6, 7, 2, 0, 0, 0], [0] * 8]
    assert ids[2, 0].tolist() == [1, *[8] * 6, 2]

    concepts, present = ours.train()(ids)
    assert present.tolist() == [[True, False], [False, False], [True, False]]
    assert (concepts[~present] == 0).all()
    for t, tokens in ((0, [0, 4, 5, 6, 1]), (2, [0, *[7] * 6, 1])):
        with torch.no_grad():
            hidden_states = model(input_ids=torch.tensor([tokens])).last_hidden_state  # (1, L, 16)
        torch.testing.assert_close(concepts[t, 0], ours.project(hidden_states[0].mean(0)))

    concepts.sum().backward()
    assert ours.project.weight.grad is not None
    assert not any(p.requires_grad for p in ours.backbone.parameters())
    assert ours.training and not ours.backbone.training


def test_hugging_face_trainable_and_empty(tmp_path):
    folder, _ = make_folder("bert", tmp_path)
    ours = HFConceptEncoder(folder, dim=6, trainable=True)
    ours(ours.tokenize([["cat"]]))[0].sum().backward()
    assert ours.backbone.get_input_embeddings().weight.grad.abs().sum() > 0
    assert ours.train().backbone.training
    concepts, present = ours(ours.tokenize([[], [" "]]))
    assert concepts.shape == (2, 1, 6) and not present.any() and (concepts == 0).all()
    with pytest.raises(TypeError, match="phrases: expected a list of phrases per text, got 'cat'"):
        ours.tokenize(["cat"])


def test_build_text_encoder():
    assert isinstance(build_text_encoder("concepts", 6), ConceptEncoder)


def test_hugging_face_errors(tmp_path):
    with pytest.raises(ValueError, match=r"text encoder: expected 'concepts', .*, got '.*nothing'"):
        build_text_encoder(str(tmp_path / "nothing"), 6)
    for name in ("vit", "t5"):
        folder, _ = make_folder(name, tmp_path / name)
        with pytest.raises(ValueError, match=r"text encoder: expected a model that encodes"):
            build_text_encoder(folder, 6)
    folder, _ = make_folder("bert", tmp_path / "bare", with_tokenizer=False)
    with pytest.raises(ValueError, match=r"text encoder: expected a tokenizer with a vocab"):
        build_text_encoder(folder, 6)


def test_hugging_face_missing_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = make_folder("bert", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in ("pooler.dense.weight", "encoder.layer.1.output.dense.weight"):
        del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    message = r"without 1 of them, such as encoder\.layer\.1\.output\.dense\.weight"
    with pytest.raises(ValueError, match=message):
        build_text_encoder(folder, 6)
