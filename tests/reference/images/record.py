"""Records what OpenCV, Pillow and diffusers' rules make of small images. Needs numpy, pillow and opencv-python-headless.

`python record.py` writes the files beside it anew; README.md says what they are.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageOps

HERE = Path(__file__).parent


def shapes(width, height):
    """A smooth background with a disc, a box and a thin line."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    back = np.stack([90 + 80 * x, 120 + 60 * y, 200 - 90 * x * y], axis=-1)
    image = Image.fromarray(back.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse([width * 0.1, height * 0.2, width * 0.5, height * 0.8], fill=(220, 40, 30))
    draw.rectangle([width * 0.6, height * 0.3, width * 0.9, height * 0.6], fill=(30, 140, 60))
    draw.line([width * 0.05, height * 0.95, width * 0.95, height * 0.7], fill=(20, 20, 20))
    return image


def crop_region(mask, width, height, pad):
    """Where `padding_mask_crop` cuts: `VaeImageProcessor.get_crop_region`."""
    rows, columns = np.where(np.array(mask.convert("L")) > 0)
    x1, x2 = max(int(columns.min()) - pad, 0), min(int(columns.max()) + 1 + pad, mask.width)
    y1, y2 = max(int(rows.min()) - pad, 0), min(int(rows.max()) + 1 + pad, mask.height)

    def widened(first, last, length, end):
        more = int(length - (last - first))
        first, last = first - more // 2, last + more - more // 2
        if last >= end:
            first, last = first - (last - end), end
        if first < 0:
            first, last = 0, last - first
        return first, min(last, end)

    ratio = width / height
    if (x2 - x1) / (y2 - y1) > ratio:
        y1, y2 = widened(y1, y2, (x2 - x1) / ratio, mask.height)
    else:
        x1, x2 = widened(x1, x2, (y2 - y1) * ratio, mask.width)
    return x1, y1, x2, y2


def filled(image, width, height):
    """`VaeImageProcessor._resize_and_fill`."""
    ratio, own = width / height, image.width / image.height
    new_width = width if ratio < own else image.width * height // image.height
    new_height = height if ratio >= own else image.height * width // image.width
    content = image.resize((new_width, new_height), Image.Resampling.LANCZOS)
    left, top = width // 2 - new_width // 2, height // 2 - new_height // 2
    result = Image.new("RGB", (width, height))
    result.paste(content, (left, top))
    if ratio < own and top > 0:
        result.paste(content.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        below = content.resize((width, top), box=(0, content.height, width, content.height))
        result.paste(below, (0, top + new_height))
    elif ratio > own and left > 0:
        result.paste(content.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        beside = content.resize((left, height), box=(content.width, 0, content.width, height))
        result.paste(beside, (left + new_width, 0))
    return result


def put_back(mask, image, generated, region):
    """`VaeImageProcessor.apply_overlay`."""
    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    x1, y1, x2, y2 = region
    width, height = x2 - x1, y2 - y1
    ratio, own = width / height, generated.width / generated.height
    new_width = width if ratio > own else generated.width * height // generated.height
    new_height = height if ratio <= own else generated.height * width // generated.width
    content = generated.resize((new_width, new_height), Image.Resampling.LANCZOS)
    part = Image.new("RGB", (width, height))
    part.paste(content, (width // 2 - new_width // 2, height // 2 - new_height // 2))
    whole = Image.new("RGBA", image.size)
    whole.paste(part, (x1, y1))
    whole = whole.convert("RGB").convert("RGBA")
    whole.alpha_composite(kept.convert("RGBA"))
    return whole.convert("RGB")


def mask_of(size, box, grey=255):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(box, fill=grey)
    return mask


def main():
    noisy = Image.open(HERE / "noisy.png").convert("RGB")
    drawn = shapes(120, 80)
    drawn.save(HERE / "shapes.png")
    shapes(40, 3).save(HERE / "thin.png")
    for name in ["noisy", "shapes", "thin"]:
        edges = cv2.Canny(np.array(Image.open(HERE / f"{name}.png").convert("RGB")), 50, 200)
        Image.fromarray(edges).convert("RGB").save(HERE / f"{name}-canny.png")
    generated = Image.fromarray(np.array(noisy)[::-1, ::-1].copy())
    soft = mask_of(drawn.size, [50, 30, 79, 49])
    soft.paste(mask_of((10, 20), [0, 0, 10, 20], 100), (80, 30))
    for name, image, mask, pad, size in [
        ("corner", noisy, mask_of(noisy.size, [8, 8, 31, 23]), 8, (96, 64)),
        ("soft", drawn, soft, 5, (64, 64)),
        ("wide", drawn, mask_of(drawn.size, [3, 40, 116, 44]), 2, (64, 96)),
        ("tall", drawn, mask_of(drawn.size, [60, 1, 63, 78]), 1, (192, 64)),
        ("dot", drawn, mask_of(drawn.size, [119, 79, 119, 79]), 0, (64, 64)),
    ]:
        region = crop_region(mask, *size, pad)
        mask.convert("RGB").save(HERE / f"{name}-mask.png")
        filled(image.crop(region), *size).save(HERE / f"{name}-cut.png")
        filled(mask.crop(region), *size).save(HERE / f"{name}-cut-mask.png")
        if (region[2] - region[0]) * size[1] == (region[3] - region[1]) * size[0]:
            generated.resize(size).save(HERE / f"{name}-generated.png")
            put_back(mask, image, generated.resize(size), region).save(HERE / f"{name}-back.png")
        print(name, region)


if __name__ == "__main__":
    main()
