"""Image files that tests send, written byte by byte: drawn ones, and those that are small on the wire and large in memory."""

import functools
import struct
import zlib

BLOCK = bytes(1 << 20)


def chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def packed_zeros(count):
    """So many zeros, compressed."""
    packer, packed = zlib.compressobj(9), b""
    while count > 0:
        packed += packer.compress(BLOCK[:count])
        count -= len(BLOCK)
    return packed + packer.flush()


def png_of(width, height, bits, color, data, more=b""):
    """A PNG file around compressed rows, with additional chunks before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png(color_of, side=128):
    """A square PNG file with the color, red to alpha, of each pixel."""
    rows = (b"\0" + b"".join(bytes(color_of(x, y)) for x in range(side)) for y in range(side))
    return png_of(side, side, 8, 6, zlib.compress(b"".join(rows)))


GRAY, RGB, RGBA = 0, 2, 6
CHANNELS = {GRAY: 1, RGB: 3, RGBA: 4}


def black_png(width, height, bits=8, color=RGB, more=b""):
    """A PNG file of zeros only: of a color with alpha they are transparent."""
    row_bytes = 1 + (width * bits * CHANNELS[color] + 7) // 8
    return png_of(width, height, bits, color, packed_zeros(row_bytes * height), more)


def exif(orientation):
    """EXIF data that say how an image is turned."""
    return b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">H", orientation) + bytes(6)


def segment(marker, data):
    """A segment of a JPEG file."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def gray_jpeg(width, height, components=3, is_progressive=False, orientation=None):
    """A JPEG file, all of one gray: each of its codes is one bit, and zero."""
    head = b"\xff\xd8"
    if orientation:
        head += segment(0xE1, b"Exif\0\0" + exif(orientation))
    if components == 4:
        head += segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
    head += segment(0xDB, b"\0" + b"\x01" * 64)
    parts = b"".join(bytes([part, 0x11, 0]) for part in range(1, components + 1))
    head += segment(0xC2 if is_progressive else 0xC0, struct.pack(">BHHB", 8, height, width, components) + parts)
    head += segment(0xC4, b"".join(bytes([kind, 1]) + bytes(16) for kind in (0x00, 0x10)))
    blocks = -(-width // 8) * -(-height // 8)

    def scan(parts, span, bits):
        names = b"".join(bytes([part, 0]) for part in parts)
        return segment(0xDA, bytes([len(parts)]) + names + span + b"\0") + bytes((bits + 7) // 8)

    every = range(1, components + 1)
    if is_progressive:
        first = scan(every, b"\0\0", blocks * components)
        rest = b"".join(scan([part], b"\x01\x3f", blocks) for part in every)
        return head + first + rest + b"\xff\xd9"
    return head + scan(every, b"\0\x3f", 2 * blocks * components) + b"\xff\xd9"


def webp_chunk(kind, data):
    """A chunk of a WebP file."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def black_webp(width, height, canvas=None):
    """A lossless WebP file of one color: its pixels take no bits at all. With a canvas, an animation of two such frames."""
    sizes = 0x2F | ((width - 1) << 8) | ((height - 1) << 22)
    # Five codes of one symbol each.
    image = webp_chunk(b"VP8L", sizes.to_bytes(5, "little") + b"\x88\x88\x08" + bytes(4))
    if canvas:
        def size(pixels):
            return (pixels - 1).to_bytes(3, "little")

        whole = webp_chunk(b"VP8X", b"\x02\0\0\0" + size(canvas[0]) + size(canvas[1]))
        frame = webp_chunk(b"ANMF", bytes(6) + size(width) + size(height) + bytes(4) + image)
        image = whole + webp_chunk(b"ANIM", bytes(6)) + 2 * frame
    return b"RIFF" + struct.pack("<I", 4 + len(image)) + b"WEBP" + image


def gif(width, height):
    """A GIF file with one image of this size."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b"," + bytes(4) + size + b"\0\x02\x02\x44\x01\0;"


def png_size(image):
    """Width and height in the head of a PNG file."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n", image[:16]
    return struct.unpack(">II", image[16:24])


def pixels(image):
    """The pixels of a PNG file of this worker (8 bits, RGB), row by row."""
    width, height = png_size(image)
    assert image[24:26] == b"\x08\x02", image[24:26]
    data, at = b"", 8
    while at < len(image):
        (length,) = struct.unpack(">I", image[at : at + 4])
        if image[at + 4 : at + 8] == b"IDAT":
            data += image[at + 8 : at + 8 + length]
        at += 12 + length
    data, rows, before = zlib.decompress(data), [], bytearray(3 * width)
    for start in range(0, height * (3 * width + 1), 3 * width + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + 3 * width])
        for index, byte in enumerate(row):
            left = row[index - 3] if index >= 3 else 0
            up, corner = before[index], before[index - 3] if index >= 3 else 0
            guess = left + up - corner
            nearest = min((left, up, corner), key=lambda value: abs(guess - value))
            row[index] = (byte + (0, left, up, (left + up) // 2, nearest)[kind]) & 255
        rows.append([tuple(row[index : index + 3]) for index in range(0, 3 * width, 3)])
        before = row
    return rows


def in_circle(x, y, radius=36):
    """Whether a pixel of an image of 128 pixels is in the circle at its middle."""
    return (x - 64) ** 2 + (y - 64) ** 2 < radius**2


RED, BLUE = (220, 40, 40), (40, 80, 210)
CIRCLE = png(lambda x, y: (*(RED if in_circle(x, y) else BLUE), 255))
# Transparent, and so replaced: the circle and a little around it.
MASK = png(lambda x, y: (0, 0, 0, 0 if in_circle(x, y, 42) else 255))
