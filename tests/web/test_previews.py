"""What is made of what the operator's source gives."""

from __future__ import annotations

import io

from PIL import Image

from sampler_service.web.previews import Previews


def test_an_image_of_the_operators_is_left_as_it_is():
    theirs = Image.new("RGB", (400, 200))
    previews = Previews(lambda _: lambda _: theirs)
    for _ in range(2):
        shown = previews.of("pictures", 0)
        assert shown is not None
        assert Image.open(io.BytesIO(shown.data)).size == (128, 64)
    assert theirs.size == (400, 200)
