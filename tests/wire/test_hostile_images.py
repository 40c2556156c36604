"""No picture costs a decoder more than a frame of its size does, whatever is in it."""

import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.attacks.pictures import (
    HOSTILE_JPEGS,
    HOSTILE_PNGS,
    Maker,
    chunk,
    deflated_zeros,
    photo,
    png,
    segment,
    tables_alone,
)

from longarm_wire.images import Codec, ImageError, decode, encode

HEIGHT, WIDTH = 240, 320
# An honest frame of this size takes 2 ms
MOST_SECONDS = 0.5
MOST_KIB = 48 << 10

HOSTILE = [
    *((Codec.PNG, name, maker) for name, maker in HOSTILE_PNGS.items()),
    *((Codec.JPEG, name, maker) for name, maker in HOSTILE_JPEGS.items()),
]


def peak_kib() -> int:
    """Returns the largest memory this process ever had: native decoders do not show in tracemalloc."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def seconds(codec: Codec, data: bytes) -> float:
    """Returns how much of a processor it takes to decode data, or to refuse it."""
    begun = time.thread_time()
    try:
        frame = decode(data, codec, HEIGHT, WIDTH)
    except ImageError:
        pass
    else:
        assert frame.shape == (HEIGHT, WIDTH, 3)
    return time.thread_time() - begun


@pytest.mark.parametrize(("codec", "name", "maker"), HOSTILE, ids=[f"{codec} {name}" for codec, name, _ in HOSTILE])
def test_no_picture_takes_longer_than_it_may(codec: Codec, name: str, maker: Maker) -> None:
    data = maker(HEIGHT, WIDTH)
    assert len(data) < 4 << 20
    assert seconds(codec, data) < MOST_SECONDS, name


def test_no_picture_takes_more_memory_than_it_may() -> None:
    """In a process that has had none of it before."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True)
    assert int(done.stdout) < MOST_KIB


def test_what_stands_beside_the_picture_changes_nothing() -> None:
    lossless, lossy = encode(photo(HEIGHT, WIDTH), Codec.PNG), encode(photo(HEIGHT, WIDTH))
    text = chunk(b"zTXt", b"a\0\0" + deflated_zeros(1))
    result = decode(lossless[:33] + text + lossless[33:], Codec.PNG, HEIGHT, WIDTH)
    np.testing.assert_array_equal(result, photo(HEIGHT, WIDTH))
    result = decode(lossy[:2] + segment(0xE1, b"Exif\0\0") + lossy[2:], Codec.JPEG, HEIGHT, WIDTH)
    np.testing.assert_array_equal(result, decode(lossy, Codec.JPEG, HEIGHT, WIDTH))


def test_rows_that_take_too_long_to_undo_are_refused() -> None:
    """Whatever the decoder's library does not bound, the thread's own time does."""
    with pytest.raises(ImageError, match=r"takes too long|more than the frame's rows"):
        decode(png(2000, 2000, idat=tables_alone(9000)), Codec.PNG, 2000, 2000)


if __name__ == "__main__":
    pictures = [(codec, maker(HEIGHT, WIDTH)) for codec, _, maker in HOSTILE]
    decode(encode(photo(HEIGHT, WIDTH)), Codec.JPEG, HEIGHT, WIDTH)
    before = peak_kib()
    for codec, data in pictures:
        seconds(codec, data)
    print(peak_kib() - before)
