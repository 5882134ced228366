#!/usr/bin/env python3
"""Trains fluxserve/flux-shapes from nothing and writes it in FLUX.1's layout.

    python3 -m venv venv && venv/bin/pip install -r models/flux-shapes/train/requirements.txt
    venv/bin/python models/flux-shapes/train/train.py

Tokenizers, then the autoencoder, the text encoders, the transformer, and the distillation of guidance. Each part leaves its file in --work and is not repeated when it is there. The seeds are fixed; two runs on one machine with
the same number of workers see the same pictures in the same order.
"""

import argparse
import json
import os
import random
from pathlib import Path

# One thread for each worker: parallel.py says why. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

import autoencoder
import painter
import parallel
import reading
import scenes
import words

SEED = 1
MODEL_INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.30.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def tokenizers_in(work):
    clip, t5 = CLIPTokenizer.from_pretrained(work / "tokenizer"), T5TokenizerFast.from_pretrained(work / "tokenizer_2")
    return clip, t5


def new_painter(clip, t5):
    """Fresh weights; a word begins with the same embedding however it is spelled."""
    torch.manual_seed(SEED)
    model = painter.Painter(len(clip), len(t5), clip.eos_token_id)
    table = model.t5.shared.weight.data
    for word in words.corpus_words():
        for spelling in words.spellings(word):
            table[t5.convert_tokens_to_ids("▁" + spelling)] = table[t5.convert_tokens_to_ids("▁" + word)]
    return model


def learn(rank, workers, work, seed, reading_steps, steps, distil_steps, learning_rate):
    clip, t5 = tokenizers_in(work)
    model = new_painter(clip, t5)
    pictures = AutoencoderKL.from_pretrained(work / "vae").to(memory_format=torch.channels_last).requires_grad_(False)
    tokens = painter.Tokens(clip, t5)
    lead = rank == 0

    def part(name, log, train):
        """The state that is there already, or else the one that `train` gives."""
        state = work / f"{name}.pt"
        if state.exists():
            model.load_state_dict(torch.load(state))
            return model
        trained = train(work / f"{log}-log.jsonl" if lead else None)
        if lead:
            torch.save(trained.state_dict(), state)
        return trained

    def read(log):
        reading.train_reading(rank, model, tokens, seed, reading_steps, log)
        return model

    def paint(log):
        def keep(weights):
            if lead:
                torch.save(weights.state_dict(), work / "plain-unfinished.pt")

        lessons = painter.Lessons(pictures, model, tokens, seed, rank, workers)
        return painter.train_painter(model, lessons, steps, learning_rate, log, keep)

    def distil(log):
        lessons = painter.Lessons(pictures, model, tokens, seed + 1, rank, workers)
        return painter.distil_guidance(model, lessons, distil_steps, learning_rate / 8, log)

    model = part("reading", "reading", read)
    model = part("plain", "painter", paint)
    part("distilled", "guidance", distil)


def write(model, work, output):
    """FLUX.1's folders, weights in bf16."""
    half = model.to(torch.bfloat16)
    half.transformer.save_pretrained(output / "transformer")
    half.t5.save_pretrained(output / "text_encoder_2")
    half.clip.save_pretrained(output / "text_encoder")
    # The published names, which every version of transformers reads; version 5 writes them without the head.
    tensors = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in half.clip.state_dict().items()
               if not name.endswith("position_ids")}
    save_file(tensors, output / "text_encoder/model.safetensors", metadata={"format": "pt"})
    AutoencoderKL.from_pretrained(work / "vae").to(torch.bfloat16).save_pretrained(output / "vae")
    # Where it lay on this machine is nobody's business.
    configuration = json.loads((output / "vae/config.json").read_text())
    configuration.pop("_name_or_path", None)
    (output / "vae/config.json").write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n")
    for name in ["tokenizer", "tokenizer_2"]:
        (output / name).mkdir(exist_ok=True)
        for file in (work / name).iterdir():
            (output / name / file.name).write_bytes(file.read_bytes())
    (output / "scheduler").mkdir(exist_ok=True)
    (output / "scheduler/scheduler_config.json").write_text(
        json.dumps(painter.scheduler_configuration(), indent=2) + "\n")
    (output / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")


def write_evaluation(path, count_each, sizes, seed=7, say=scenes.describe):
    """Held-out prompts and what must be seen in their pictures, one JSON object a line. Gives the scenes."""
    rng = random.Random(seed)
    lines, shown = [], []
    for kind in scenes.KINDS:
        for index in range(count_each):
            width, height = sizes[index % len(sizes)]
            scene = scenes.draw_scene(rng, width, height, held_out=True, kinds=[kind])
            scene.background_named = True
            objects = [{"shape": thing.shape, "colour": thing.colour} for thing in scene.things]
            lines.append(json.dumps({
                "kind": kind, "prompt": say(rng, scene), "seed": len(lines), "width": width,
                "height": height, "background": scene.background, "objects": objects, "relation": scene.relation,
                "place": list(scene.place)}))
            shown.append(scene)
    path.write_text("\n".join(lines) + "\n")
    return shown


def paint_evaluation(folder, count_each, seed=8):
    """Prompts as above with true pictures, 0.png, 1.png, …: what the evaluator itself is tested on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, textures = random.Random(seed), scenes.distance_textures()
    for index, scene in enumerate(write_evaluation(folder / "prompts.jsonl", count_each, [(128, 128), (96, 128)], seed)):
        pixels = ((scenes.paint(rng, [scene], textures)[0][0].clamp(-1, 1) + 1) * 127.5).round().byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("models/flux-shapes"), help="folder of the model")
    parser.add_argument("--paint-evaluation", type=Path, metavar="DIR", help="paint true pictures there and do no more")
    parser.add_argument("--work", type=Path, default=Path("target/flux-shapes"), help="folder for what is half done")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--autoencoder-steps", type=int, default=2000)
    parser.add_argument("--reading-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, default=10500)
    parser.add_argument("--distil-steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    if options.paint_evaluation:
        paint_evaluation(options.paint_evaluation, 2)
        return
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer_2").exists():
        words.write_clip_tokenizer(work / "tokenizer")
        words.write_t5_tokenizer(work / "tokenizer_2")
    if not (work / "vae").exists():
        parallel.run(options.workers, autoencoder.train_autoencoder, options.autoencoder_steps, SEED, work / "vae")
    if not (work / "distilled.pt").exists():
        parallel.run(options.workers, learn, work, SEED, options.reading_steps, options.steps, options.distil_steps,
                     options.learning_rate)
    model = painter.Painter(*(len(each) for each in tokenizers_in(work)), tokenizers_in(work)[0].eos_token_id)
    model.load_state_dict(torch.load(work / "distilled.pt"))
    options.output.mkdir(parents=True, exist_ok=True)
    write(model, work, options.output)
    write_evaluation(options.output / "held-out.jsonl", 80, [(128, 128)])
    write_evaluation(options.output / "paraphrased.jsonl", 20, [(128, 128)], seed=9, say=scenes.paraphrase)


if __name__ == "__main__":
    main()
