"""Ways to call a reduced model: searches, training wrappers, copies, compilation."""

import copy
import pickle

import peft
import pytest
import torch
import torch._dynamo.testing

import setok_kernels as sk
from helpers.shortened_by_hand import by_hand
from helpers.tiny_vlms import FAMILIES, IMAGE, PAD, VIDEO, prompts, seeded
from setok_kernels.integrations.transformers import reduce, reduce_visual_tokens, restore

LLAVA = FAMILIES["llava"]
COUNTS = [1, 2, 0]
NEW = dict(max_new_tokens=5, do_sample=False)
EXACT = dict(rate=0.2, exact=True)


@pytest.fixture
def batch():
    return prompts(LLAVA, COUNTS)


@pytest.mark.parametrize("takes_encoded", [True, False])
@pytest.mark.parametrize(
    "search",
    [
        dict(num_beams=3, do_sample=False),
        dict(num_beams=2, num_return_sequences=2, do_sample=False),
        dict(num_return_sequences=2, do_sample=True),
        dict(use_cache=False, do_sample=False),
        dict(cache_implementation="static", do_sample=False),
    ],
    ids=lambda search: "-".join(search),
)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_every_search_equals_that_of_a_prompt_made_by_hand(
    monkeypatch, model, batch, search, positions, takes_encoded
):
    made = by_hand(model, LLAVA, batch, positions, **EXACT)
    torch.manual_seed(3)
    # Embeddings need the cache to know the first step; greedy answers are the same without it.
    expected = model.generate(**made, max_new_tokens=5, **{**search, "use_cache": True})
    reduce_visual_tokens(model, **EXACT, positions=positions)
    # Older versions of transformers encode inside `forward`.
    if not takes_encoded:
        monkeypatch.setattr(reduce, "_takes_encoded", lambda model_class: False)
    torch.manual_seed(3)
    got = model.generate(**batch, max_new_tokens=5, **search)
    copies = got.shape[0] // len(COUNTS)
    length = batch["input_ids"].shape[1]
    assert torch.equal(got[:, :length], batch["input_ids"].repeat_interleave(copies, 0))
    assert torch.equal(got[:, length:], expected)


def test_beams_repeat_the_images_of_their_row_inside_forward(monkeypatch, model, batch):
    """transformers 5.17 repeats the pixels for the beams, and encodes after that."""
    handle = reduce_visual_tokens(model, **EXACT)
    call = handle.prepare(batch, generating=True)
    tokens = call.visuals[0].reduced.tokens
    repeated = batch["pixel_values"].repeat_interleave(2, 0)
    counts = [row[1] for row in call.shortening.placeholders]
    with call.replaced_features(model.model):
        pooled = model.model.get_image_features(pixel_values=repeated).pooler_output
    first, second, _ = tokens.split(counts)
    assert torch.equal(torch.cat(pooled), torch.cat([first, first, second, second]))


def test_generate_without_a_mask_pads_rows_of_unequal_length(model):
    ids = prompts(LLAVA, [1, 1])["input_ids"][:, -50:]
    pixels = seeded(5, 2, 3, 24, 24)
    # Two images of one colour need fewer tokens than two of noise.
    pixels[0, :, :, :12] = 0.5
    inputs = {"input_ids": ids, "pixel_values": pixels}
    # From the ids alone, nobody could tell padding.
    model.generation_config.pad_token_id = None
    handle = reduce_visual_tokens(model, sk.ClusterConfig(stop_residual=0.3))
    logits = dict(NEW, output_logits=True, return_dict_in_generate=True)
    together = model.generate(**inputs, **logits)
    assert handle.counts[0][1] != handle.counts[1][1]
    for row in range(2):
        alone = {"input_ids": ids[row : row + 1], "pixel_values": pixels[row : row + 1]}
        mask = torch.ones_like(alone["input_ids"])
        by_itself = model.generate(**alone, attention_mask=mask, **logits)
        for mine, all_rows in zip(by_itself.logits, together.logits, strict=True):
            torch.testing.assert_close(mine[0], all_rows[row])


def test_lengths_count_the_given_prompt(model, batch):
    length = batch["input_ids"].shape[1]
    reduce_visual_tokens(model, **EXACT)
    assert model.generate(**batch, max_length=length + 3).shape[1] == length + 3
    config = copy.deepcopy(model.generation_config)
    config.max_length = length + 4
    assert model.generate(**batch, generation_config=config).shape[1] == length + 4
    model.generation_config.max_length = length + 2
    assert model.generate(**batch).shape[1] == length + 2
    model.generation_config.max_length = None
    assert model.generate(**batch).shape[1] == length + 20
    positional = model.generate(batch.pop("input_ids"), **batch, **NEW)
    assert positional.shape[1] == length + 5


def test_prompts_without_images_run_as_before(model, untouched):
    batch = prompts(LLAVA, COUNTS)
    inputs = {name: batch[name][2:] for name in ("input_ids", "attention_mask")}
    reduce_visual_tokens(model, **EXACT)
    assert torch.equal(model(**inputs).logits, untouched(**inputs).logits)
    assert torch.equal(model.generate(**inputs, **NEW), untouched.generate(**inputs, **NEW))


def test_positional_arguments_and_tuples_are_those_of_forward(model, batch):
    reduce_visual_tokens(model, **EXACT)
    expected = model(**batch).logits
    got = model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"])
    assert torch.equal(got.logits, expected)
    assert torch.equal(model(**batch, return_dict=False)[0], expected)


def test_the_model_without_its_head_is_reduced_too(model, batch):
    reduce_visual_tokens(model.model, **EXACT)
    alone = model.model(**batch).last_hidden_state
    restore(model.model)
    reduce_visual_tokens(model, **EXACT)
    assert torch.equal(model.lm_head(alone), model(**batch).logits)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_position_ids_of_the_caller_follow_their_tokens(model, batch, positions):
    mask = batch["attention_mask"]
    given = (mask.cumsum(1) - 1).clamp(min=0)
    made = by_hand(model, LLAVA, batch, "original", **EXACT)
    if positions == "compact":
        made["position_ids"] = (made["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = model(**made)
    reduce_visual_tokens(model, **EXACT, positions=positions)
    got = model(**batch, position_ids=given)
    kept = made["attention_mask"].bool()
    torch.testing.assert_close(got.logits[kept], expected.logits[kept])


def test_gaps_between_positions_end_no_sequence(model):
    """Without a mask and a cache, transformers takes gaps for the ends of packed sequences."""
    batch = prompts(LLAVA, [1])
    made = by_hand(model, LLAVA, batch, "original", **EXACT)
    expected, answer = model(**made).logits, model.generate(**made, **NEW)
    del batch["attention_mask"]
    reduce_visual_tokens(model, **EXACT, positions="original")
    torch.testing.assert_close(model(**batch, use_cache=False).logits, expected)
    got = model.generate(**batch, **NEW, use_cache=False)
    assert torch.equal(got[:, batch["input_ids"].shape[1] :], answer)


def test_packed_sequences_count_on_their_own(model):
    batch = prompts(LLAVA, [1, 1], seed=4)
    rows = [batch["input_ids"][row, batch["attention_mask"][row].bool()] for row in range(2)]
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    packed = {"input_ids": torch.cat(rows)[None], "position_ids": positions}
    reduce_visual_tokens(model, **EXACT)
    got = model(**packed, pixel_values=batch["pixel_values"], use_cache=False).logits[0]
    alone = [
        model(input_ids=row[None], pixel_values=pixels[None]).logits[0]
        for row, pixels in zip(rows, batch["pixel_values"], strict=True)
    ]
    torch.testing.assert_close(got, torch.cat(alone))


def test_rows_of_the_paper_preset_have_a_token_each(model, batch):
    """Its seeds repeat, so several clusters would claim one position."""
    handle = reduce_visual_tokens(model, sk.ClusterConfig.paper())
    model(**batch)
    encoded = LLAVA.by_hand(model, batch)
    sizes = [
        int(sk.cluster_tokens(group.encoded[None], sk.ClusterConfig.paper()).occupied().sum())
        for (group,) in encoded
    ]
    assert [after for _, after in handle.counts] == [sizes[0], sizes[1] + sizes[2], 0]


@pytest.mark.parametrize("first", ["peft", "reduction"])
def test_adapters_before_and_after(model, batch, first):
    lora = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    batch["labels"] = batch["input_ids"]
    if first == "peft":
        wrapped = peft.get_peft_model(model, lora)
        reduce_visual_tokens(wrapped, **EXACT)
    else:
        reduce_visual_tokens(model, **EXACT)
        wrapped = peft.get_peft_model(model, lora)
    got = wrapped(**batch)
    got.loss.backward()
    # LLaVA does not read the last layer of the encoder.
    grads = [
        parameter.grad
        for name, parameter in wrapped.named_parameters()
        if "vision" in name and "lora" in name and "layers.2" not in name
    ]
    assert grads and all(grad.abs().sum() > 0 for grad in grads)
    inputs = {name: batch[name] for name in batch if name != "labels"}
    answer = wrapped.generate(**inputs, **NEW)
    length = got.logits.shape[1]
    assert length < batch["input_ids"].shape[1]
    restore(wrapped)
    assert wrapped(**batch).logits.shape[1] == batch["input_ids"].shape[1]
    merged = wrapped.merge_and_unload()
    reduce_visual_tokens(merged, **EXACT)
    torch.testing.assert_close(merged(**batch).loss, got.loss)
    assert torch.equal(merged.generate(**inputs, **NEW), answer)


def test_checkpointing_changes_no_gradient(model, batch):
    reduce_visual_tokens(model.train(), **EXACT, merge="soft")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_copy_is_reduced_by_itself(model, batch):
    reduce_visual_tokens(model, **EXACT)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(**batch).logits, model(**batch).logits)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
    assert copied(**batch).logits.abs().sum() == 0
    assert model(**batch).logits.abs().sum() > 0
    restore(copied)
    assert copied(**batch).logits.shape[1] == batch["input_ids"].shape[1]
    assert model(**batch).logits.shape[1] < batch["input_ids"].shape[1]


def test_a_reduced_model_saves_all_its_weights_and_no_reduction(tmp_path, model, batch):
    expected = model(**batch).logits
    reduce_visual_tokens(model, **EXACT)
    reduced = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch).logits, expected)
    reduce_visual_tokens(loaded, **EXACT)
    torch.testing.assert_close(loaded(**batch).logits, reduced)


def test_a_reduced_model_does_not_pickle(model):
    reduce_visual_tokens(model, **EXACT)
    with pytest.raises(TypeError, match="model: expected one with all visual tokens to pickle"):
        pickle.dumps(model)


@pytest.mark.slow
def test_compiled_models_compile_once_for_exact_budgets(model, batch):
    reduce_visual_tokens(model, **EXACT)
    expected = model(**batch).logits
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, expected)
        frames = counter.frame_count
        assert frames > 0
        other = dict(batch, pixel_values=seeded(9, 3, 3, 24, 24))
        torch.testing.assert_close(compiled(**other).logits, model(**other).logits)
    assert counter.frame_count == frames


def test_data_parallel_models_reduce(tmp_path, model, batch):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        reduce_visual_tokens(model, **EXACT)
        expected = model(**batch).logits
        # CLIP has weights that LLaVA does not use.
        parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        got = parallel(**batch, labels=batch["input_ids"])
        got.loss.backward()
        assert torch.equal(got.logits, expected)
        # Before the group: the last to hold it joins its threads, and this one would do so with the
        # lock of Python, for which they may wait.
        del parallel, got
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_a_video_is_one_group_and_keeps_its_end(rate):
    family = FAMILIES["llava_onevision"]
    model = family.build()
    pixels = seeded(2, 2, 3, 3, 24, 24)
    ids = torch.tensor([[4, *[VIDEO] * 28, 7, 8], [5, *[VIDEO] * 28, 9, 10]])
    inputs = {"input_ids": ids, "pixel_values_videos": pixels}
    before = model(**inputs).logits
    features = model.model.get_video_features(pixels).pooler_output  # (2, 28, D)
    tower = model.model.vision_tower(pixels.flatten(0, 1), output_hidden_states=True)
    encoded = model.model.apply_pooling(tower.hidden_states[-1]).reshape(2, 27, -1)
    embed = model.get_input_embeddings()
    rows = []
    for row in range(2):
        out = sk.cluster_tokens(encoded[row][None], rate=rate, exact=True)
        merged = sk.merge_tokens(features[row, :27][None], out)[0]
        order = out.decisions.seeds[0].argsort()
        vectors = [embed(ids[row, :1]), merged[order], features[row, 27:], embed(ids[row, 29:])]
        rows.append(torch.cat(vectors))
    expected = model(inputs_embeds=torch.stack(rows)).logits
    handle = reduce_visual_tokens(model, rate=rate, exact=True)
    got = model(**inputs).logits
    torch.testing.assert_close(got, expected)
    assert handle.counts == [(28, 28), (28, 28)] if rate == 1 else [(28, 7), (28, 7)]
    assert rate != 1 or torch.equal(got, before)
    assert PAD != VIDEO != IMAGE
