"""What flux-shapes is trained on: scenes of coloured shapes, the sentences that describe them, and their pictures.

A scene is a background and up to four objects. Everything is drawn from a `random.Random`, so a seed names a data set.
Combinations of (shape, colour, background) that `is_held_out` names never occur in training; the evaluation asks for
nothing else.
"""

import math
import random
import zlib
from dataclasses import dataclass, replace

import torch

COLOURS = {
    "red": (220, 50, 47),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 60),
    "green": (50, 160, 70),
    "cyan": (60, 200, 215),
    "blue": (45, 90, 205),
    "purple": (130, 65, 180),
    "pink": (245, 150, 190),
    "brown": (120, 75, 45),
    "white": (245, 245, 245),
    "gray": (135, 138, 142),
    "black": (25, 25, 28),
}
SHAPES = ["circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart"]
COUNTS = {2: "two", 3: "three", 4: "four"}
PLACES = {
    (-1, -1): ["at the top left", "in the top left corner"],
    (0, -1): ["at the top"],
    (1, -1): ["at the top right", "in the top right corner"],
    (-1, 0): ["on the left", "on the left side"],
    (0, 0): ["in the centre", "in the center", "in the middle"],
    (1, 0): ["on the right", "on the right side"],
    (-1, 1): ["at the bottom left", "in the bottom left corner"],
    (0, 1): ["at the bottom"],
    (1, 1): ["at the bottom right", "in the bottom right corner"],
}
RELATIONS = {
    "left": ["left of", "to the left of"],
    "right": ["right of", "to the right of"],
    "above": ["above", "over"],
    "below": ["below", "under"],
}
# Radius as a share of the picture's shorter side.
RADII_ALONE = {"small": 0.19, "": 0.27, "large": 0.36}
RADII_TOGETHER = {"small": 0.15, "": 0.185, "large": 0.22}
SIZE_WORDS = {"small": ["small", "little"], "large": ["large", "big"]}

# A picture without a named background has this one, or the second where the first would hide an object.
BACKGROUND_UNNAMED = ("white", "black")


@dataclass
class Thing:
    """One object: where it is (centre, as a share of width and height) and how large (share of the shorter side)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass
class Scene:
    """What one picture shows. `kind` is one of alone, placed, relation, pair, count."""

    kind: str
    background: str
    background_named: bool
    things: list
    relation: str = ""
    place: tuple = (0, 0)
    width: int = 0
    height: int = 0


def is_held_out(shape, colour, background):
    """Whether this combination is kept from training: about 15 % of all, by a hash that no run changes."""
    return zlib.crc32(f"{shape}/{colour}/{background}".encode()) % 100 < 15


def choose_triple(rng, held_out, background=None, colours_taken=()):
    while True:
        shape = rng.choice(SHAPES)
        colour = rng.choice(list(COLOURS))
        ground = background or rng.choice(list(COLOURS))
        if colour != ground and colour not in colours_taken and is_held_out(shape, colour, ground) == held_out:
            return shape, colour, ground


def choose_size(rng):
    return rng.choices(["", "small", "large"], [0.6, 0.2, 0.2])[0]


# How often training shows each kind.
KINDS = {"alone": 0.3, "placed": 0.17, "relation": 0.25, "pair": 0.08, "count": 0.2}


def draw_scene(rng, width, height, held_out=False, kinds=tuple(KINDS)):
    """One scene for a picture of this size, of one of `kinds`. With `held_out`, of held-out combinations only; else of
    none of them."""
    kind = rng.choices(kinds, [KINDS[kind] for kind in kinds])[0]
    shorter = min(width, height)
    named = rng.random() < 0.93

    def jitter(amount):
        return rng.uniform(-amount, amount)

    def thing(shape, colour, x, y, radii):
        size = choose_size(rng)
        radius = radii[size] * rng.uniform(0.94, 1.06)
        # Wholly inside the picture, with a little room.
        room_x, room_y = (radius + 0.02) * shorter / width, (radius + 0.02) * shorter / height
        x = min(max(x + jitter(0.025), room_x), 1 - room_x)
        y = min(max(y + jitter(0.025), room_y), 1 - room_y)
        return Thing(shape, colour, size, x, y, radius)

    shape, colour, background = choose_triple(rng, held_out)
    if not named:
        background = BACKGROUND_UNNAMED[0]
        shape, colour, background = choose_triple(rng, held_out, background)
    scene = Scene(kind, background, named, [], width=width, height=height)
    if kind == "alone":
        scene.things = [thing(shape, colour, 0.5, 0.5, RADII_ALONE)]
    elif kind == "placed":
        scene.place = rng.choice(list(PLACES))
        scene.things = [thing(shape, colour, 0.5 + 0.3 * scene.place[0], 0.5 + 0.3 * scene.place[1], RADII_TOGETHER)]
    elif kind in ("relation", "pair"):
        # In a long picture things stand along it more often than across.
        across = rng.random() < (0.5 if width == height else 0.75 if width > height else 0.25)
        if kind == "pair":
            scene.relation = "left" if width >= height else "above"
        else:
            scene.relation = rng.choice(["left", "right"] if across else ["above", "below"])
        places = {"left": (0.27, 0.5), "right": (0.73, 0.5), "above": (0.5, 0.27), "below": (0.5, 0.73)}
        other = {"left": "right", "right": "left", "above": "below", "below": "above"}[scene.relation]
        second = choose_triple(rng, held_out, background, (colour,))
        scene.things = [
            thing(shape, colour, *places[scene.relation], RADII_TOGETHER),
            thing(second[0], second[1], *places[other], RADII_TOGETHER),
        ]
    else:
        count = rng.choice([2, 3, 4])
        aspect = width / height
        if aspect >= 1.4 or (aspect > 1 / 1.4 and count == 2):
            spots = [((index + 0.5) / count, 0.5) for index in range(count)]
        elif aspect <= 1 / 1.4:
            spots = [(0.5, (index + 0.5) / count) for index in range(count)]
        elif count == 3:
            spots = [(0.5, 0.27), (0.27, 0.73), (0.73, 0.73)]
        else:
            spots = [(x, y) for y in (0.27, 0.73) for x in (0.27, 0.73)]
        room = min(0.5 * min(width / height, 1) if aspect <= 1 else 0.5, 0.5)
        along = max(width, height) / shorter
        largest = 0.21 if len({spot[1] for spot in spots}) > 1 and len({spot[0] for spot in spots}) > 1 else along / count / 2 * 0.86
        size = choose_size(rng)
        radius = min({"small": 0.14, "": 0.17, "large": 0.2}[size], largest, room)
        for x, y in spots:
            scene.things.append(
                Thing(shape, colour, size, x + jitter(0.01), y + jitter(0.01), radius * rng.uniform(0.96, 1.04)))
    return scene


def article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def noun(rng, thing, plural=False):
    size = rng.choice(SIZE_WORDS[thing.size]) + " " if thing.size else ""
    shape = thing.shape + ("es" if thing.shape.endswith("s") else "s") if plural else thing.shape
    colour = "grey" if thing.colour == "gray" and rng.random() < 0.3 else thing.colour
    return f"{size}{colour} {shape}"


def describe(rng, scene):
    """One of the sentences that say what `scene` shows."""
    first = scene.things[0]
    if scene.kind == "count":
        subject = f"{COUNTS[len(scene.things)]} {noun(rng, first, plural=True)}"
    elif scene.kind == "relation":
        second = scene.things[1]
        relation = rng.choice(RELATIONS[scene.relation])
        subject = f"{article(noun(rng, first))} {relation} {article(noun(rng, second))}"
    elif scene.kind == "pair":
        subject = f"{article(noun(rng, first))} and {article(noun(rng, scene.things[1]))}"
    else:
        subject = article(noun(rng, first))
        if scene.kind == "placed":
            subject += " " + rng.choice(PLACES[scene.place])
    verb = "are" if scene.kind == "count" else "is"
    if not scene.background_named:
        frames = ["{s}", "{s}", "a picture of {s}", "draw {s}", "there {v} {s}"]
        return rng.choice(frames).format(s=subject, v=verb)
    ground = "grey" if scene.background == "gray" and rng.random() < 0.3 else scene.background
    frames = [
        "{s} on {g} background",
        "{s} on {g} background",
        "{s} on {g} background",
        "{s}, {n} background",
        "a picture of {s} on {g} background",
        "draw {s} on {g} background",
        "{s} on {n}",
        "{g} background with {s}",
        "there {v} {s}, the background is {n}",
    ]
    return rng.choice(frames).format(s=subject, g=article(ground), n=ground, v=verb)


# Frames of sentences that training never uses, most of them with words that it never uses. The ground is always named.
PARAPHRASES = [
    "I want {s} on {g} background",
    "show me {s} on {n}",
    "{s}, on {n}",
    "please, {s} on {g} background",
    "{n} is the background, {s} is on it",
    "on {g} background {s}",
    "on {n}, {s}",
    "an image of {s} on {g} background",
    "paint {s}, {n} background",
    "{s}. The background: {n}.",
]


def paraphrase(rng, scene):
    """A sentence that says what `scene` shows in another way than `describe` does."""
    plain = describe(rng, replace(scene, background_named=False))
    for frame in ["a picture of ", "draw ", "there is ", "there are "]:
        plain = plain.removeprefix(frame)
    return rng.choice(PARAPHRASES).format(s=plain, g=article(scene.background), n=scene.background)


def polygon(count, inner, start):
    points = []
    for index in range(count):
        radius = 1.0 if inner is None or index % 2 == 0 else inner
        angle = start + 2 * math.pi * index / count
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def outline(shape):
    """Corners of a shape that a circle of radius 1 around the origin holds; y points down."""
    if shape == "square":
        return [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    if shape == "triangle":
        return [(0.0, -0.92), (0.95, 0.78), (-0.95, 0.78)]
    if shape == "star":
        return polygon(10, 0.42, -math.pi / 2)
    if shape == "diamond":
        return [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]
    if shape == "cross":
        a, b = 0.95, 0.32
        return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
    assert shape == "heart"
    points = []
    for index in range(96):
        t = 2 * math.pi * index / 96
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17.5, -(y + 2.5) / 17.5))
    return points


TEXTURE_SIDE = 193
TEXTURE_REACH = 1.3


def distance_textures():
    """Signed distance to each shape's border (negative inside), [shapes, side, side] f32, over ±TEXTURE_REACH."""
    axis = torch.linspace(-TEXTURE_REACH, TEXTURE_REACH, TEXTURE_SIDE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    textures = []
    for shape in SHAPES:
        if shape == "circle":
            distance = (x * x + y * y).sqrt() - 0.95
        elif shape == "ring":
            distance = ((x * x + y * y).sqrt() - 0.74).abs() - 0.21
        else:
            corners = torch.tensor(outline(shape), dtype=torch.float64)
            nearest = torch.full_like(x, math.inf)
            inside = torch.zeros_like(x, dtype=torch.bool)
            for (ax, ay), (bx, by) in zip(corners.tolist(), corners.roll(-1, 0).tolist()):
                ex, ey = bx - ax, by - ay
                along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
                nearest = torch.minimum(nearest, ((x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2).sqrt())
                crosses = ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay if by != ay else 1e-9) + ax)
                inside ^= crosses
            distance = torch.where(inside, -nearest, nearest)
        textures.append(distance.float())
    return torch.stack(textures)


def paint(rng, scenes, textures):
    """Pictures of `scenes`, all of one size: [batch, 3, height, width] f32 from -1 to 1, and how far things cover each
    pixel: [batch, 1, height, width] from 0 to 1. Colours vary a little."""
    width, height = scenes[0].width, scenes[0].height
    shorter = min(width, height)

    def shade(colour):
        return [(channel + rng.uniform(-6, 6)) / 127.5 - 1 for channel in COLOURS[colour]]

    pixels = torch.tensor([shade(scene.background) for scene in scenes])[:, :, None, None].repeat(1, 1, height, width)
    x = (torch.arange(width) + 0.5)[None, None, :].expand(1, height, width)
    y = (torch.arange(height) + 0.5)[None, :, None].expand(1, height, width)
    covered = torch.zeros(len(scenes), 1, height, width)
    # Things of one scene that are alike have the same shade.
    shades = [{thing.colour: shade(thing.colour) for thing in scene.things} for scene in scenes]
    for slot in range(max(len(scene.things) for scene in scenes)):
        chosen = [index for index, scene in enumerate(scenes) if slot < len(scene.things)]
        things = [scenes[index].things[slot] for index in chosen]
        column = lambda values: torch.tensor(list(values))[:, None, None]
        centre_x = column(thing.x * width for thing in things)
        centre_y = column(thing.y * height for thing in things)
        radius = column(thing.radius * shorter for thing in things)
        grid = torch.stack([(x - centre_x) / radius, (y - centre_y) / radius], dim=-1) / TEXTURE_REACH
        texture = textures[[SHAPES.index(thing.shape) for thing in things]][:, None]
        distance = torch.nn.functional.grid_sample(
            texture, grid, mode="bilinear", padding_mode="border", align_corners=True)
        cover = (0.5 - distance * radius[:, None]).clamp(0, 1)
        colour = torch.tensor([shades[index][thing.colour] for index, thing in zip(chosen, things)])[:, :, None, None]
        pixels[chosen] = pixels[chosen] * (1 - cover) + colour * cover
        covered[chosen] = torch.maximum(covered[chosen], cover)
    return pixels, covered


def vocabulary_corpus(seed=1, count=20000):
    """Sentences with every word that training uses, for the tokenizers."""
    rng = random.Random(seed)
    return [describe(rng, draw_scene(rng, *rng.choice([(64, 64), (128, 64), (64, 128)]))) for _ in range(count)]
