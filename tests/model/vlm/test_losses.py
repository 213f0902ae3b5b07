"""Losses of SetokimModel, their weights, and training by the Trainer of transformers."""

import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers.tiny_setokim import build, picture
from setokim.data import build_dataset
from setokim.data.conversations import message
from setokim.training.stage2.stage import InstructCollator
from setokim.vlm.losses import LOSSES, LossContext, compute_losses
from setokim.vlm.modeling_setokim import SetokimModel

TASKS = {"vqa": 1.0, "generate": 1.0, "segment": 1.0}


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def conversations():
    data = build_dataset("shapes-tasks", size=32, objects=(1, 3), turns=1, tasks=TASKS)
    return [data[i] for i in range(12)]


@pytest.fixture(scope="module")
def batch(built, conversations):
    _, processor = built
    return InstructCollator(processor, (16, 16))(conversations[:6])


def losses_of(model, batch, **options):
    torch.manual_seed(5)
    with torch.no_grad():
        return model(**batch, **options)


def test_the_loss_is_the_weighted_sum_of_its_parts(built, batch):
    model, _ = built
    output = losses_of(model, batch)
    assert list(output.losses) == ["text", "diffusion", "mask"]
    assert all(loss.shape == () and loss > 0 for loss in output.losses.values())
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    weights = {"text": 2.0, "mask": 0.5, "diffusion": 0.0}
    weighted = losses_of(model, batch, loss_weights=weights)
    assert list(weighted.losses) == ["text", "mask"]
    expected = 2 * output.losses["text"] + 0.5 * output.losses["mask"]
    torch.testing.assert_close(weighted.loss, expected)


def test_weights_are_part_of_the_configuration(built, batch, tmp_path):
    model, _ = build(loss_weights={"text": 3.0})
    model.save_pretrained(tmp_path)
    again = SetokimModel.from_pretrained(tmp_path).eval()
    output = losses_of(again, batch)
    assert list(output.losses) == ["text"]
    torch.testing.assert_close(output.loss, 3 * losses_of(built[0], batch).losses["text"])


def test_without_labels_there_is_no_loss(built, batch):
    model, _ = built
    read = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    output = losses_of(model, read)
    assert output.loss is None and output.losses is None
    assert output.last_hidden_state.shape[-1] == 32


def test_without_masks_the_mask_loss_is_computed_only_on_request(built, batch):
    model, _ = built
    read = {name: value for name, value in batch.items() if name != "masks"}
    assert list(losses_of(model, read).losses) == ["text", "diffusion"]
    with pytest.raises(ValueError, match=r"masks: expected a \(K, h, w\) tensor .*, got None"):
        losses_of(model, read, loss_weights={"mask": 1.0})


def test_an_unknown_loss_is_named(built, batch):
    with pytest.raises(ValueError, match=r"losses: expected one of text, .*, got 'texts'"):
        losses_of(built[0], batch, loss_weights={"texts": 1.0})


def test_a_loss_needs_a_fitted_head(built, batch):
    unfitted = SetokimModel(built[0].config)
    with pytest.raises(RuntimeError, match=r"expected fit\(tokens\) to be called first"):
        unfitted(**batch)


def test_diffusion_options_reach_the_head(built, batch, monkeypatch):
    model, _ = built
    seen, loss = [], model.head.loss

    def record(tokens, condition, repeats, noisiest, base):
        seen.append((repeats, noisiest))
        return loss(tokens, condition, repeats, noisiest=noisiest, base=base)

    monkeypatch.setattr(model.head, "loss", record)
    losses_of(model, batch, diffusion_repeats=3, diffusion_noisiest=2)
    assert seen == [(3, 2)]


def test_losses_of_all_processes_average_to_the_mean_over_all(built, batch, monkeypatch):
    """Check that each loss is this process's part of the mean over all processes."""
    model, _ = built
    alone = losses_of(model, batch)
    monkeypatch.setattr("setokim.vlm.losses.mean_over_ranks", lambda x: x * 2)
    half = losses_of(model, batch)
    for name, value in alone.losses.items():
        torch.testing.assert_close(half.losses[name], value / 2)


def test_a_registered_loss_is_the_only_one_computed(built, batch):
    model, _ = built
    output = losses_of(model, batch)
    try:

        @LOSSES.register("token_size")
        def token_size(context):
            return context.output.packed.tokens.square().mean()

        weights = {"token_size": 2.0}
        found = losses_of(model, batch, loss_weights=weights)
        expected = output.packed.tokens.square().mean()
        torch.testing.assert_close(found.losses["token_size"], expected)
        torch.testing.assert_close(found.loss, 2 * expected)
        assert list(compute_losses(LossContext(model, output), {})) == []
        with pytest.raises(ValueError, match="losses: expected a name that is free"):
            LOSSES.register("token_size")(lambda context: 0)
    finally:
        del LOSSES._found["token_size"]


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_the_model(conversations, tmp_path):
    model, processor = build()
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=30,
        per_device_train_batch_size=6,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=15,
        save_steps=30,
        use_cpu=True,
        report_to=[],
        # The collator takes conversations as they are.
        remove_unused_columns=False,
        seed=0,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=InstructCollator(processor, (16, 16)),
        train_dataset=conversations,
        eval_dataset=conversations[:6],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 30 and all(map(math.isfinite, losses))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    held_out = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(held_out) == 2 and held_out[1] < held_out[0]
    again = SetokimModel.from_pretrained(tmp_path / "checkpoint-30")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def edits(number):
    data = build_dataset("shapes-tasks", size=32, objects=(1, 3), tasks={"edit": 1.0})
    return [data[i] for i in range(number)]


def copying(**fields):
    return build(code_dim=4, answer_order="before", recall_width=8, copy_tokens=True, **fields)


def test_the_choice_of_repeating_a_token_by_loop():
    model, processor = copying()
    batch = InstructCollator(processor, (16, 16))(edits(8))
    output = losses_of(model, batch, loss_weights={"copy": 1.0})
    spliced = output.spliced
    expected, repeats = [], 0
    for row in range(len(spliced.ids)):
        for position in range(1, spliced.ids.shape[1]):
            index = int(spliced.visual[row, position])
            if index < 0 or spliced.labels[row, position] == -100:
                continue
            pointed = model.point(output, torch.tensor([row]), torch.tensor([position]))
            source = int(output.repeated[index])
            repeats += source >= 0
            target = pointed.choices.shape[1] - 1
            if source >= 0:
                target = int((spliced.visual[row] == source).nonzero())
            expected.append(-pointed.choices[0].log_softmax(0)[target])
    assert 0 < repeats < len(expected)
    torch.testing.assert_close(output.losses["copy"], torch.stack(expected).mean())
    # Repeated tokens are not generated.
    assert len(model.generated_tokens(output)[0]) == len(expected) - repeats


def test_without_an_earlier_image_nothing_is_repeated(conversations):
    model, processor = copying()
    drawn = [one for one in conversations if one.task == "generate"]
    batch = InstructCollator(processor, (16, 16))(drawn)
    output = losses_of(model, batch, loss_weights={"copy": 1.0})
    assert output.losses["copy"] == 0 and (output.repeated < 0).all()


def test_names_of_read_and_of_drawn_tokens_by_loop():
    model, processor = build(name_regions=True)
    collate = InstructCollator(processor, (16, 16), with_regions=True)
    batch = collate(edits(6))
    output = losses_of(model, batch, loss_weights={"names": 1.0})
    words = batch["regions"].of_tokens(output.visual, output.packed)
    spliced, total, kinds = output.spliced, [], set()
    for row, position in (spliced.visual >= 0).nonzero().tolist():
        own = words[spliced.visual[row, position]]
        own = own[own >= 0]
        drawn = bool(spliced.labels[row, position] != -100)
        kinds.add(drawn)
        states = [model.names.read(output.last_hidden_state[row, position])]
        if drawn:
            states.append(model.names.drawn(output.last_hidden_state[row, position - 1]))
        if len(own):
            total += [-model.logits(state).log_softmax(-1)[own].mean() for state in states]
    assert kinds == {True, False}
    torch.testing.assert_close(output.losses["names"], torch.stack(total).mean())


def test_losses_that_the_model_was_not_built_for(built, conversations):
    model, processor = built
    batch = InstructCollator(processor, (16, 16), with_regions=True)(conversations[:6])
    with pytest.raises(ValueError, match=r"losses\.copy: expected a model with copy_tokens"):
        model(**batch, loss_weights={"copy": 1.0})
    with pytest.raises(ValueError, match=r"losses\.names: expected a model with name_regions"):
        model(**batch, loss_weights={"names": 1.0})
    model, _ = build(name_regions=True)
    del batch["regions"]
    with pytest.raises(ValueError, match="regions: expected named regions"):
        model(**batch, loss_weights={"names": 1.0})


def test_training_reads_decoded_samples_of_generated_images_only():
    model, processor = copying()
    batch = InstructCollator(processor, (16, 16))(edits(8))
    seen = []
    embed = model.embed
    model.embed = lambda ids, visual, tokens: seen.append(tokens) or embed(ids, visual, tokens)
    for training in (False, True):
        model.train(training)
        output = losses_of(model, batch, loss_weights={"text": 1.0})
        index = output.generated()[2]
        new = index[output.repeated[index] < 0]
        exact = output.packed.tokens
        others = torch.ones(len(exact), dtype=torch.bool)
        others[new] = False
        assert 0 < len(new) < len(index)
        torch.testing.assert_close(seen[-1][others], exact[others], rtol=0, atol=0)
        decoded = model.setok.codes.recode(exact[new])
        assert torch.allclose(seen[-1][new], decoded, atol=1e-5) != training
    model.eval()


@pytest.mark.parametrize("autocast", [False, True])
def test_choices_are_finite_without_a_source_and_in_half_precision(autocast):
    model, processor = copying()
    batch = InstructCollator(processor, (16, 16))(edits(8))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        lost = losses_of(
            model, batch, loss_weights={"copy": 1.0}, unconditional=torch.ones(8).bool()
        )
        kept = losses_of(model, batch, loss_weights={"copy": 1.0})
    # Without its source an image leaves no choice.
    assert lost.losses["copy"] == 0 and 0 < kept.losses["copy"] < 20


def test_a_source_that_is_masked_out_cannot_be_repeated():
    model, processor = copying()
    chat = [
        turn
        for seed in (0, 1)
        for turn in (
            message("user", picture(seed), "make the circle red."),
            message("assistant", picture(seed)),
        )
    ]
    # The second answer could repeat a token of the first one, but not of its own source.
    options = {"loss_weights": {"copy": 1.0}, "unconditional": torch.tensor([True])}
    output = losses_of(model, processor([chat]), **options)
    assert (output.repeated >= 0).any() and 0 < output.losses["copy"] < 20
