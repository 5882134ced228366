"""A second question for the transformer while it learns to paint: which shape in which colour will be at each token?

At high noise only the prompt can tell, so the answer's gradient teaches to read it, and to bind it to a place, long before
the outlines in the latents' error do. As in representation alignment (Yu et al. 2024, arXiv:2410.06940), but with truths that
a drawn picture has for nothing. The head is thrown away after the training.
"""

import torch

import scenes

# The answers come from the stream after this single block.
BLOCK = 1
CELLS = 4
NOTHING_SHAPE, NOTHING_COLOUR = len(scenes.SHAPES), len(scenes.COLOURS)


def marks_of(shown, covered):
    """For each token, 16×16 pixels: [batch, tokens] shape and colour of the thing around it, and [batch, tokens, 16] f32
    how far it is covered, in cells of 4×4 pixels."""
    batch, _, height, width = covered.shape
    rows, columns = height // 16, width // 16
    x = ((torch.arange(columns) + 0.5) * 16)[None, :]
    y = ((torch.arange(rows) + 0.5) * 16)[:, None]
    shapes = torch.full((batch, rows, columns), NOTHING_SHAPE)
    colours = torch.full((batch, rows, columns), NOTHING_COLOUR)
    names = list(scenes.COLOURS)
    for index, scene in enumerate(shown):
        for thing in scene.things:
            radius = thing.radius * min(width, height)
            inside = (x - thing.x * width) ** 2 + (y - thing.y * height) ** 2 < radius**2
            shapes[index][inside] = scenes.SHAPES.index(thing.shape)
            colours[index][inside] = names.index(thing.colour)
    cells = torch.nn.functional.avg_pool2d(covered, 16 // CELLS)
    cells = cells.view(batch, rows, CELLS, columns, CELLS).permute(0, 1, 3, 2, 4)
    return shapes.flatten(1), colours.flatten(1), cells.reshape(batch, rows * columns, CELLS * CELLS)


class Eye(torch.nn.Module):
    """Linear answers from the transformer's middle."""

    def __init__(self, transformer):
        super().__init__()
        width = transformer.inner_dim
        self.groups = [NOTHING_SHAPE + 1, NOTHING_COLOUR + 1, CELLS * CELLS]
        self.answers = torch.nn.Linear(width, sum(self.groups))
        self.norm = torch.nn.LayerNorm(width)
        self.stream = None

        def look(_module, _arguments, output):
            self.stream = output[1]

        transformer.single_transformer_blocks[BLOCK].register_forward_hook(look)

    def loss(self, marks):
        """Mean over all tokens of the last forward pass."""
        shapes, colours, cells = marks
        stream, self.stream = self.stream, None
        shape, colour, cover = self.answers(self.norm(stream)).split(self.groups, dim=2)
        entropy = torch.nn.functional.cross_entropy
        return (entropy(shape.flatten(0, 1), shapes.flatten()) + entropy(colour.flatten(0, 1), colours.flatten())
                + torch.nn.functional.binary_cross_entropy_with_logits(cover, cells))
