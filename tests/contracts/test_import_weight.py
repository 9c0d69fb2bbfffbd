"""Importing the client is light: a trainer's machine needs none of what the service is made of."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"ray", "faiss", "pyarrow", "torch", "tensorboard", "wandb", "sampler_service"}


FRAMEWORKS = {"accelerate", "lightning", "pytorch_lightning", "ray", "torchdata", "transformers"}


@pytest.mark.parametrize(
    "module", ["sampler_client", "sampler_client.figures", "sampler_client.session", "sampler_client.testing"]
)
def test_importing_the_client_loads_none_of_the_service(module: str):
    code = f"import sys, {module}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "sampler_client" in loaded
    assert HEAVY.isdisjoint(loaded), f"{module} loads {sorted(HEAVY.intersection(loaded))}"


def test_attaching_a_loader_imports_no_framework():
    code = "import sys, sampler_client.pytorch.loader; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert FRAMEWORKS.isdisjoint(loaded), f"it loads {sorted(FRAMEWORKS.intersection(loaded))}"


def test_ray_is_out_of_reach_outside_the_cluster_tests():
    with pytest.raises(ImportError):
        __import__("ray")
