"""What the benchmark of records quotes."""

from __future__ import annotations

from benchmarks.records.__main__ import worst_ratios


def test_headline_has_the_worst_kind_of_records_for_each_peer() -> None:
    headline: dict[str, float | None] = {
        "over_ceiling_arrays": 0.9,
        "over_ceiling_images": 0.7,
        "over_ceiling_texts": 0.8,
        "over_dataloader_arrays": 1.5,
        "over_dataloader_images": 3.0,
        "over_dataloader_texts": 1.6,
        "over_dataloader_by_record_arrays": 0.1,
        "over_streaming_images": 2.0,
    }
    assert worst_ratios(headline) == {
        "over_ceiling": 0.7,
        "over_streaming": 2.0,
        "over_webdataset": None,
        "over_dataloader": 1.5,
    }
