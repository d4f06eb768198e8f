from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from iwm.errors import DataError
from iwm.gameplay.images import decode_image, image_format, printable, read_image

LIMIT = 4_000_000


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) * 3], axis=2).astype(np.uint8)
    return Image.fromarray(rgb)


SEEDS = {
    "png": encode(gradient(), "PNG"),
    "jpeg": encode(gradient(), "JPEG", quality=90),
    "progressive": encode(gradient(), "JPEG", progressive=True),
    "cmyk": encode(gradient().convert("CMYK"), "JPEG"),
    "webp": encode(gradient(), "WEBP"),
    "bmp": encode(gradient(), "BMP"),
    "gif": encode(gradient().convert("P"), "GIF"),
}


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    decoded = decode_image(encode(gradient(), kind), LIMIT)
    np.testing.assert_array_equal(decoded, np.asarray(gradient()))
    assert decoded.flags.c_contiguous
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(kind: str) -> None:
    decoded = decode_image(encode(gradient(), kind, quality=95), LIMIT)
    assert np.abs(decoded.astype(int) - np.asarray(gradient())).mean() < 6


def test_grey_jpeg_becomes_rgb() -> None:
    decoded = decode_image(encode(Image.new("L", (8, 8), 77), "JPEG"), LIMIT)
    assert decoded.shape == (8, 8, 3)
    assert np.all(np.abs(decoded.astype(int) - 77) <= 1)


def test_cmyk_jpeg_goes_through_ink() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
    decoded = decode_image(encode(red, "JPEG", quality=95), LIMIT)
    assert decoded[4, 4, 0] > 240
    assert decoded[4, 4, 1:].max() < 15


def test_alpha_is_composited_over_black() -> None:
    decoded = decode_image(encode(Image.new("RGBA", (3, 2), (200, 100, 50, 51)), "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded[0, 0], [40, 20, 10])


def test_palette_with_a_transparent_entry() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    decoded = decode_image(encode(image, "PNG", transparency=1), LIMIT)
    np.testing.assert_array_equal(decoded[0], [[255, 0, 0], [0, 0, 0]])


def test_sixteen_bit_grey_keeps_the_high_byte() -> None:
    grey = np.array([[0, 0x1234, 0xFFFF]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(grey), "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0x12, 0xFF])


def test_one_bit_image() -> None:
    decoded = decode_image(encode(Image.new("1", (5, 5), 1), "PNG"), LIMIT)
    assert decoded.min() == 255


def test_one_pixel_image_decodes() -> None:
    assert decode_image(encode(Image.new("RGB", (1, 1)), "PNG"), LIMIT).shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(32, 16), kind, exif=exif.tobytes())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    decoded = decode_image(data, LIMIT)
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animated_images_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 120, 240)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(DataError, match=f"^clip.x: animated {kind}"):
        decode_image(data, LIMIT, "clip.x")


def test_forty_megapixel_png_is_refused_before_decoding() -> None:
    data = encode(Image.new("1", (8000, 5000)), "PNG")
    with pytest.raises(DataError, match=r"big.png: 8000x5000 is 40,000,000 pixels, more than"):
        decode_image(data, 16_777_216, "big.png")


def test_a_bomb_that_only_has_a_header_is_refused_by_size() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    with pytest.raises(DataError, match="3,600,000,000 pixels"):
        decode_image(data, LIMIT)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = SEEDS["progressive"]
    start = data.index(b"\xff\xda")
    with pytest.raises(DataError, match="scans"):
        decode_image(data[:start] + data[start:-2] * 200, LIMIT)


@pytest.mark.parametrize("name", SEEDS)
def test_a_cut_off_file_is_refused(name: str) -> None:
    data = SEEDS[name]
    with pytest.raises(DataError):
        decode_image(data[: int(len(data) * 0.6)], LIMIT)


def test_zero_bytes_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^x: the file is empty"):
        decode_image(b"", LIMIT, "x")
    with pytest.raises(DataError, match="not an image"):
        decode_image(b"%PDF-1.7 and so on", LIMIT)
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.png", LIMIT)


def test_a_file_larger_than_any_such_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.bmp"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(DataError, match="larger than"):
        read_image(path, 1000)


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    with pytest.raises(DataError) as caught:
        read_image(path, LIMIT)
    str(caught.value).encode("utf-8")
    assert printable(path).endswith("caf\\xe9.png") or "caf" in printable(path)


def never_anything_but_a_data_error(data: bytes) -> None:
    started = time.monotonic()
    message = ""
    try:
        pixels = decode_image(data, LIMIT)
    except DataError as error:
        message = str(error)
    else:
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.shape[0] * pixels.shape[1] <= LIMIT
    assert "\n" not in message
    assert time.monotonic() - started < 60, "hangs"


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *(seed[:12] for seed in SEEDS.values())]))
def test_random_bytes(tail: bytes, head: bytes) -> None:
    never_anything_but_a_data_error(head + tail)


@hypothesis_settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.integers(0, 2000)),
)
def test_mutated_images(name: str, changes: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(SEEDS[name])
    for position, value in changes:
        data[position % len(data)] = value
    never_anything_but_a_data_error(bytes(data[:cut]))


def test_formats_are_known_by_their_first_bytes() -> None:
    assert [image_format(SEEDS[name]) for name in ("png", "jpeg", "webp", "bmp", "gif")] == [
        "PNG",
        "JPEG",
        "WEBP",
        "BMP",
        "GIF",
    ]
    assert image_format(b"II*\x00") is None
