"""The public face of the client is one sorted list, and all of it is there."""

from __future__ import annotations

import inspect

import sampler_client
import sampler_client.errors


def test_the_exported_names_are_sorted_and_each_exists():
    assert sampler_client.__all__ == sorted(set(sampler_client.__all__))
    for name in sampler_client.__all__:
        assert getattr(sampler_client, name).__name__ == name


def test_every_public_name_is_exported():
    public = {
        name
        for name, value in vars(sampler_client).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name not in ("annotations", "Any")
    } - {"TYPE_CHECKING", "import_module"}
    assert public | set(sampler_client._TORCH) == set(sampler_client.__all__)


def test_every_error_is_exported():
    errors = {
        name
        for name, kind in inspect.getmembers(sampler_client.errors, inspect.isclass)
        if issubclass(kind, sampler_client.errors.SamplerError)
    }
    assert errors <= set(sampler_client.__all__)


def test_every_exported_name_has_words_about_it():
    for name in sampler_client.__all__:
        assert (getattr(sampler_client, name).__doc__ or "").strip(), name
