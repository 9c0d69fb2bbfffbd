"""Importing the client is light: a trainer's machine needs none of what the service is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sampler_client

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


OF_TORCH = ("mixing", "optim", "pytorch", "retrieval", "robust")
"""modules and packages of the client that are for models, and so import torch; CONTRIBUTING names them, too"""


def test_all_of_the_client_but_what_is_for_models_does_without_torch():
    folder = Path(sampler_client.__file__).parent
    names = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert names > set(OF_TORCH)
    light = [f"sampler_client.{name}" for name in sorted(names - set(OF_TORCH) - {"__init__", "_pb"})]
    code = f"import sys; sys.modules['torch'] = None; import {', '.join(light)}"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    text = Path(__file__).parents[2].joinpath("CONTRIBUTING.md").read_text()
    assert all(f"`{name}.py`" in text or f"`sampler_client/{name}`" in text for name in OF_TORCH)


def test_attaching_a_loader_imports_no_framework():
    code = "import sys, sampler_client.pytorch.loader; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert FRAMEWORKS.isdisjoint(loaded), f"it loads {sorted(FRAMEWORKS.intersection(loaded))}"


def test_ray_is_out_of_reach_outside_the_cluster_tests():
    with pytest.raises(ImportError):
        __import__("ray")
