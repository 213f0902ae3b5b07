"""What a reduced model has to compute, written out with loops over images and tokens."""

import torch

import setok_kernels as sk
from helpers.tiny_vlms import IMAGE, PAD


def merged_image(groups, merge="hard", features="encoded", **budget):
    """Return the tokens of one image that stay: pairs of offset among its placeholders, vector."""
    tokens, offset = [], 0
    for group in groups:
        x = getattr(group, features)
        out = sk.cluster_tokens(x[None], **budget)
        labels, seeds = out.labels[0].tolist(), out.decisions.seeds[0].tolist()
        width = group.width or len(labels)
        lines = {}
        for label in sorted(set(labels)):
            members = [i for i, other in enumerate(labels) if other == label]
            if merge == "hard":
                vector = group.projected[members].double().mean(0)
            else:
                mask = out.masks[0, label].double()
                vector = (mask[:, None] * group.projected).sum(0) / (mask.sum() + 1e-6)
            seed = seeds[label] if label < len(seeds) else -1
            slot = seed if seed in members else members[0]
            lines.setdefault(slot // width, []).append((slot, vector.to(group.projected.dtype)))
        breaks = group.newline is not None
        for line in range(-(-len(labels) // width)):
            kept = sorted(lines.get(line, []), key=lambda pair: pair[0])
            tokens += [(offset + slot + (line if breaks else 0), vector) for slot, vector in kept]
            if breaks and kept:
                end = min((line + 1) * width, len(labels))
                tokens.append((offset + end + line, group.newline))
        offset += len(labels) + (-(-len(labels) // width) if breaks else 0)
    return tokens, offset


def by_hand(model, family, inputs, positions="compact", side="left", generating=True, **options):
    """Return inputs_embeds and what goes with them for a batch."""
    merged = iter(merged_image(groups, **options) for groups in family.by_hand(model, inputs))
    embed = model.get_input_embeddings()
    rows = []
    for row, ids in enumerate(inputs["input_ids"]):
        mask = inputs["attention_mask"][row].bool()
        start = int(mask.long().argmax()) if generating else 0
        places, vectors, index = [], [], 0
        length = ids.shape[0]
        while index < length:
            if not mask[index]:
                index += 1
            elif int(ids[index]) == IMAGE:
                kept, size = next(merged)
                for slot, vector in kept:
                    places.append(index + slot)
                    vectors.append(vector)
                index += size
            else:
                places.append(index)
                vectors.append(embed(ids[index : index + 1])[0])
                index += 1
        rows.append((places, vectors, start))
    longest = max(len(places) for places, _, _ in rows)
    blank = embed(torch.tensor([PAD]))[0]

    def padded(values, padding):
        fill = [padding] * (longest - len(values))
        return fill + list(values) if side == "left" else list(values) + fill

    made = {
        "inputs_embeds": torch.stack(
            [torch.stack(padded(vectors, blank)) for _, vectors, _ in rows]
        ),
        "attention_mask": torch.tensor([padded([1] * len(p), 0) for p, _, _ in rows]),
    }
    for name, padding in (("token_type_ids", 0), ("labels", -100)):
        if name in inputs:
            made[name] = torch.tensor(
                [
                    padded(inputs[name][row, places].tolist(), padding)
                    for row, (places, _, _) in enumerate(rows)
                ]
            )
    if positions == "original":
        first = 0 if generating else family.first_position
        made["position_ids"] = torch.tensor(
            [padded([p - start + first for p in places], 0) for places, _, start in rows]
        )
    return made


def answers(model, family, made, steps):
    """Return the greedy answers to prompts made by hand, and the logits of each step."""
    if family.takes_embeddings:
        output = model.generate(
            **made,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return output.sequences, output.logits
    # No cache: each step reads all tokens again.
    mask = made["attention_mask"]
    made = dict(made)
    if "position_ids" in made:
        made["position_ids"] = made["position_ids"] + family.first_position
    else:
        made["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + family.first_position
    tokens, logits = [], []
    for _ in range(steps):
        with torch.no_grad():
            logits.append(model(**made, use_cache=False).logits[:, -1])
        tokens.append(logits[-1].argmax(-1, keepdim=True))
        columns = {
            "inputs_embeds": model.get_input_embeddings()(tokens[-1]),
            "attention_mask": torch.ones_like(tokens[-1]),
            "position_ids": made["position_ids"][:, -1:] + 1,
            "token_type_ids": torch.full_like(tokens[-1], family.next_type),
        }
        made = {name: torch.cat([value, columns[name]], 1) for name, value in made.items()}
    return torch.cat(tokens, 1), logits
