"""The documents run: their code, their commands, their links and their numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client.testing import fake_attach
from sampler_service.cli import app
from sampler_service.policies import POLICIES, make_policy
from sampler_service.scoring.worker import make_scorer
from sampler_service.service import InProcessService
from sampler_service.views import RunStatistics
from tests.served import ServedService
from trainer_examples.data import load

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(
        "sampler_service/README.md",
        "deploy/README.md",
        "docs/watching.md",
        "docs/local.md",
        "docs/methods.md",
        "docs/data.md",
        "docs/results.md",
        "docs/growing.md",
        "docs/frameworks.md",
        "trainer_examples/README.md",
    ),
]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_of(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(name), re.MULTILINE | re.DOTALL)


OF_SCORERS = ("Scoring(", "publish(")
"""what the blocks of code hold that belong together"""

RUN_ELSEWHERE = ("docs/data.md", "docs/growing.md")
"""documents of which tests of their own run the code, as a whole"""

BLOCKS = [
    (name, number)
    for name in DOCUMENTS
    for number, code in enumerate(code_of(name, "python"))
    if not any(word in code for word in OF_SCORERS) and name not in RUN_ELSEWHERE
]


FRAGMENTED = ("docs/methods.md", "docs/frameworks.md")
"""documents whose code takes for granted what comes before it in a script"""


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize(("name", "number"), BLOCKS)
def test_a_block_of_python_runs(name: str, number: int, served: ServedService, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # one writes figures for TensorBoard
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    records = TensorDataset(torch.randn(40, 1, 4, 4), torch.arange(40) % 3)
    namespace: dict[str, Any] = {
        "loader": DataLoader(records, batch_size=8),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": nn.CrossEntropyLoss(reduction="none"),
    }
    code = code_of(name, "python")[number].replace("localhost:50051", served.address)
    code = code.replace("TimeBudget(600)", "TimeBudget(1)")
    with fragments(namespace, served, code) if name in FRAGMENTED else nullcontext():
        exec(code, namespace)
    if name == "README.md" and "attach(" in code:
        namespace["loader"].close()
        said = served.service.statistics("resnet-cifar10")
        # every example once, or all candidates
        assert said.reported_rows > 40 if "two_stage" in code else said.reported_rows + rejected(said) == 40


@contextmanager
def fragments(namespace: dict[str, Any], served: ServedService, code: str) -> Iterator[None]:
    """What the fragments take for granted."""
    x = torch.randn(40, 1, 4, 4)
    dataset = namespace["loader"].dataset
    namespace |= {"DataLoader": DataLoader, "dataset": dataset, "state": None}
    namespace |= {"rows": [{"x": image, "labels": label} for image, label in dataset]}
    model, sketcher = namespace["model"], sampler.GradientSketcher(namespace["model"], dim=64)
    namespace |= {
        "torch": torch,
        "sampler": sampler,
        "F": functional,
        "address": served.address,
        "run": "r",
        "epochs": 1,
    }
    namespace |= {"sketcher": sketcher, "held_out_x": x, "held_out_y": torch.arange(40) % 3}
    namespace |= {"held_out_loss": lambda: functional.cross_entropy(model(x), torch.arange(40) % 3)}
    namespace |= {"client": sampler.SamplerClient(served.address), "labels": np.arange(40) % 3}
    wide = torch.randn(3, 160)
    namespace |= {"encode": lambda x, y: (model(x) @ wide, (model(x) + functional.one_hot(y, 3)) @ wide)}
    if "CoordinateDescent" in code:
        points = torch.randn(6, 20, dtype=torch.float64)
        namespace |= {"x": points, "y": points[:, 0].sign()}
    if "attach" not in code:
        namespace["loader"] = fake_attach(namespace["loader"])
    yield
    if isinstance(namespace["loader"], sampler.SampledLoader):
        namespace["loader"].close()
    namespace["client"].close()
    sketcher.close()


def test_the_trainer_of_the_readme_is_scored_by_the_factory_of_the_readme(served, tmp_path, monkeypatch) -> None:
    factory, training = ([code for code in code_of("README.md", "python") if word in code] for word in OF_SCORERS)
    assert (len(factory), len(training)) == (1, 1)
    (command,) = re.findall(r"^sampler-service up --scorers 1 --scoring (\S+)$", text_of("README.md"), re.MULTILINE)
    assert factory[0].split("\ndef ")[0].strip() in (ROOT / "trainer_examples/scoring.py").read_text(encoding="utf-8")
    assert command == "trainer_examples.scoring:digits"
    (tmp_path / "scoring_of_the_readme.py").write_text(factory[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    served.stop()
    served.start(InProcessService(make_scorer=partial(make_scorer, "scoring_of_the_readme:digits")))
    namespace: dict[str, Any] = {}
    exec(training[0].replace("localhost:50051", served.address), namespace)
    loader = namespace["loader"]
    loader.flush()
    said = served.service.statistics("digits-with-scorers")
    assert (said.scored_rows, said.scorer_error) == (len(load().train), "")
    assert said.reported_rows == len(load().train)
    next(iter(loader))
    assert re.match(r"shuffle: tau .* gradient norms are too even", loader.reason), "auto picked importance"
    loader.close()


def rejected(said: RunStatistics) -> int:
    """Rows of reports that came behind newer scores."""
    assert set(said.rejected_rows) <= {"old"}
    return said.rejected_rows.get("old", 0)


def test_there_is_code_to_run() -> None:
    assert {name for name, _ in BLOCKS} == {
        "README.md",
        "sampler_service/README.md",
        "deploy/README.md",
        "docs/local.md",
        *FRAGMENTED,
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist_and_so_do_their_options(name: str) -> None:
    shell = "\n".join([*code_of(name, "sh"), *re.findall(r"`([^`\n]+)`", text_of(name))])
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    targets |= {
        f"bench-{name}" for name in re.findall(r"\w+", text_of("Makefile").split("BENCHMARKS := ")[1].split("\n")[0])
    }
    assert set(re.findall(r"^make ([a-z_-]+)", shell, re.MULTILINE)) <= targets
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    lines = re.findall(r"^sampler-service ([a-z]+)(.*)", shell, re.MULTILINE)
    source = text_of("sampler_service/cli.py") + text_of("sampler_service/data_commands.py")
    for verb, rest in lines:
        assert verb in verbs
        for option in re.findall(r"--([a-z-]+)", rest.split("#")[0]):
            assert option.replace("-", "_") in source


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text_of(name)) if not link.startswith("http")]
    missing = [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_path_of_a_machine_is_in_a_document(name: str) -> None:
    assert not re.search(r"/(work|home|root|tmp)/|\.\./shared", text_of(name))


def test_the_table_of_policies_is_that_of_the_service() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \|", text_of("README.md"), re.MULTILINE)
    assert {name: unbiased == "yes" for name, unbiased in rows} == {
        name: make_policy(name, {}).unbiased for name in POLICIES
    }


def test_the_numbers_are_those_of_the_benchmarks() -> None:
    rows = re.findall(r"^\|.*\| ([\d.]+) \| `(\w+\.json)` `(\w+)` \|$", text_of("README.md"), re.MULTILINE)
    assert len(rows) >= 5
    for said, file, key in rows:
        headline = json.loads(text_of(f"benchmarks/results/{file}"))["headline"]
        # Benchmarks are run again on other days and machines; a claim must not drift away from them.
        assert float(said) == pytest.approx(headline[key], rel=0.25), key
