"""The second part of the training: both text encoders learn to say what a sentence shows, before anything is painted.

Small heads, thrown away afterwards, answer from each encoder's output which colour the ground has and what shape, colour,
size and place each of two things has. Colours are tied to their things here, in minutes; flow matching alone takes hours
to teach the same through the pictures.
"""

import json
import random
import time

import torch

import parallel
import scenes
import words

SENTENCES_PER_STEP = 256
LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 100
# What is asked for, with its answers. An answer that a sentence does not give is the last one.
_COLOURS, _SHAPES, _SIZES = list(scenes.COLOURS) + [None], scenes.SHAPES + [None], ["small", "", "large", None]
_WHERE = list(scenes.PLACES) + list(scenes.RELATIONS) + ["first of two", "second of two", "two", "three", "four", "alone", None]
QUESTIONS = [("ground", _COLOURS)] + [
    (f"{which} {what}", answers) for which in ["first", "second"]
    for what, answers in [("shape", _SHAPES), ("colour", _COLOURS), ("size", _SIZES), ("where", _WHERE)]]
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def facts(scene):
    """The answers to QUESTIONS, as their positions in the lists; `None` stands for the empty prompt."""
    if scene is None:
        said = [None] * len(QUESTIONS)
    else:
        first, second = scene.things[0], scene.things[1] if scene.relation else None
        if scene.kind == "count":
            where, opposite = scenes.COUNTS[len(scene.things)], None
        elif scene.kind == "pair":
            where, opposite = "first of two", "second of two"
        elif scene.kind == "relation":
            where, opposite = scene.relation, _OPPOSITE[scene.relation]
        else:
            where, opposite = scene.place if scene.kind == "placed" else "alone", None
        said = [scene.background, first.shape, first.colour, first.size, where]
        said += [second.shape, second.colour, second.size, opposite] if second else [None] * 4
    return [answers.index(answer) for (_, answers), answer in zip(QUESTIONS, said)]


class Heads(torch.nn.Module):
    """Answers to QUESTIONS: from CLIP's pooled vector by one product, from T5's tokens by looking at them once for each
    of the ground, the first thing and the second."""

    def __init__(self, clip_width, t5_width):
        super().__init__()
        self.counts = [len(answers) for _, answers in QUESTIONS]
        self.pooled = torch.nn.Linear(clip_width, sum(self.counts))
        self.queries = torch.nn.Parameter(torch.randn(3, t5_width) * 0.5)
        self.look = torch.nn.MultiheadAttention(t5_width, 4, batch_first=True)
        self.seen = torch.nn.ModuleList(torch.nn.Linear(t5_width, sum(group)) for group in self.groups())

    def groups(self):
        return [self.counts[:1], self.counts[1:5], self.counts[5:]]

    def forward(self, pooled, embeddings):
        """Two lists of logits, [batch, answers] for each question: CLIP's and T5's."""
        looked, _ = self.look(self.queries.expand(len(pooled), -1, -1), embeddings, embeddings, need_weights=False)
        from_t5 = []
        for index, (head, group) in enumerate(zip(self.seen, self.groups())):
            from_t5 += head(looked[:, index]).split(group, dim=1)
        return self.pooled(pooled).split(self.counts, dim=1), from_t5


def train_reading(rank, model, tokens, seed, steps, log_path):
    """Trains the text encoders of `model` (a painter.Painter) in place."""
    torch.manual_seed(seed)
    heads = Heads(model.clip.config.hidden_size, model.t5.config.d_model)
    rng = random.Random(1000 * seed + rank)
    learners = torch.nn.ModuleList([model.clip, model.t5, heads])
    optimizer = torch.optim.AdamW(learners.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    started, log, right = time.time(), [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP_STEPS, (steps - step) / (0.6 * steps))
        shown = [scenes.draw_scene(rng, *rng.choice([(64, 64), (96, 64), (64, 96)])) for _ in range(SENTENCES_PER_STEP // 2)]
        shown[0] = None
        prompts = ["" if scene is None else words.as_written(rng, scenes.describe(rng, scene)) for scene in shown]
        answers = torch.tensor([facts(scene) for scene in shown])
        by_encoder = heads(*model.read(*tokens(prompts)))
        loss = sum(
            torch.nn.functional.cross_entropy(logits, answers[:, index])
            for all_logits in by_encoder for index, logits in enumerate(all_logits))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(learners)
        optimizer.step()
        right.append([
            torch.stack([logits.argmax(1) == answers[:, i] for i, logits in enumerate(each)]).all(0).float().mean().item()
            for each in by_encoder])
        if log_path and (step % 100 == 99 or step == steps - 1):
            clip, t5 = (sum(part) / len(right) for part in zip(*right))
            log.append({"step": step + 1, "all right by clip": round(clip, 4), "all right by t5": round(t5, 4),
                        "seconds": round(time.time() - started)})
            right = []
            print(json.dumps(log[-1]), flush=True)
            log_path.write_text("".join(json.dumps(entry) + "\n" for entry in log))
