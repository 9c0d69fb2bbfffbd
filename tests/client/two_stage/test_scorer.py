"""Scores of a forward pass against gradients by autograd, and a model that comes back as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sampler_client import GradientSketcher, LastLayerScorer
from sampler_client.errors import ConfigError


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 4))


class Tagger(nn.Module):
    """(c, t) tokens to (c, t, 4) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


def head_gradients(model: nn.Module, head: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Each example's gradient of the head's parameters, by a backward pass of its own."""
    model.eval()
    found = []
    for row in range(len(x)):
        model.zero_grad()
        logits = model(x[row : row + 1]).flatten(0, -2)
        functional.cross_entropy(logits, y[row : row + 1].flatten()).backward()
        assert head.weight.grad is not None and head.bias.grad is not None
        found.append(torch.cat((head.weight.grad.flatten(), head.bias.grad)))
    return found


def test_norms_of_a_classifier_are_exact():
    model, x, y = classifier(), torch.randn(9, 5), torch.randint(4, (9,))
    scores = LastLayerScorer(model, autocast=None)((x, y))
    exact = head_gradients(model, model[4], x, y)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(scores.norms, torch.stack([g.norm() for g in exact]))


def test_sequences_sum_over_their_positions_and_leave_out_what_is_ignored():
    model, tokens = Tagger(), torch.randint(11, (6, 8))
    targets = torch.randint(4, (6, 8))
    targets[0, 3:] = targets[4, 0] = -100
    scores = LastLayerScorer(model, autocast=None, sketch_dim=20_000)((tokens, targets))
    exact = head_gradients(model, model.head, tokens, targets)
    torch.testing.assert_close(scores.norms, torch.stack([g.norm() for g in exact]), rtol=1e-4, atol=1e-6)
    assert scores.sketches is not None
    gram, exact_gram = scores.sketches @ scores.sketches.T, torch.stack(exact) @ torch.stack(exact).T
    torch.testing.assert_close(gram, exact_gram, rtol=0, atol=0.05 * float(exact_gram.max()))


def test_an_example_without_any_target_counts_nothing():
    scores = LastLayerScorer(Tagger())((torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), -100)))
    assert float(scores.norms) == 0.0


def test_the_model_comes_back_as_it_was():
    model = classifier().train()
    model[1].eval()  # frozen in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    LastLayerScorer(model)((torch.randn(6, 5), torch.zeros(6, dtype=torch.long)))
    assert [module.training for module in model] == [True, False, True, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[4]._forward_pre_hooks


def test_a_sketcher_does_not_see_the_scoring_pass():
    model, x, y = classifier(), torch.randn(6, 5), torch.randint(4, (6,))
    sketcher = GradientSketcher(model, dim=8)
    scorer = LastLayerScorer(model)
    losses = functional.cross_entropy(model(x), y, reduction="none")
    scorer((torch.randn(12, 5), torch.randint(4, (12,))))
    losses.mean().backward()
    assert sketcher.take().sketches.shape == (6, 8)
    sketcher.close()


def test_wrapped_models_are_scored_beneath_their_wrapper():
    model, x, y = classifier(), torch.randn(6, 5), torch.randint(4, (6,))
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(LastLayerScorer(compiled)((x, y)).norms, LastLayerScorer(model)((x, y)).norms)


def test_half_precision_scores_are_close_and_finite():
    model, x, y = classifier(), torch.randn(40, 5), torch.randint(4, (40,))
    half = LastLayerScorer(model, autocast=torch.bfloat16)((x, y)).norms
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, LastLayerScorer(model, autocast=None)((x, y)).norms, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("able", [False, True])
def test_by_default_scores_are_in_half_precision_where_the_processor_computes_in_it(able: bool, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    model, x, y = classifier(), torch.randn(40, 5), torch.randint(4, (40,))
    norms = LastLayerScorer(model)((x, y)).norms
    exact, half = (LastLayerScorer(model, autocast=to)((x, y)).norms for to in (None, torch.bfloat16))
    assert torch.equal(norms, half if able else exact)
    assert not torch.equal(half, exact)
    double = LastLayerScorer(model.double())((x.double(), y)).norms
    torch.testing.assert_close(double.float(), exact)


class Strict(nn.Linear):
    """Fails in half precision."""

    def __init__(self, error: Exception) -> None:
        super().__init__(5, 4)
        self._error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        if out.dtype != torch.float32:
            raise self._error
        return out


def test_a_model_that_half_precision_breaks_is_scored_as_it_is_and_it_is_said(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    model, x, y = Strict(TypeError("float32 only")), torch.randn(6, 5), torch.randint(4, (6,))
    scorer = LastLayerScorer(model)
    for _ in range(2):
        torch.testing.assert_close(scorer((x, y)).norms, LastLayerScorer(model, autocast=None)((x, y)).norms)
    assert scorer.autocast_failed == 1
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "scoring in torch.bfloat16 failed, now as the model is" in warning.getMessage()
    assert "TypeError: float32 only" in warning.getMessage()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), MemoryError("out of memory")])
def test_want_of_memory_is_no_reason_to_score_in_a_precision_that_takes_more(monkeypatch, error):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    scorer, item = LastLayerScorer(Strict(error)), (torch.randn(6, 5), torch.randint(4, (6,)))
    for _ in range(2):
        with pytest.raises(type(error), match="out of memory"):
            scorer(item)
    assert scorer.autocast_failed == 0


def test_what_fails_after_a_pass_that_worked_is_no_matter_of_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    model, item = nn.Linear(5, 4), (torch.randn(6, 5), torch.randint(4, (6,)))
    scorer = LastLayerScorer(model)
    scorer(item)
    model.register_forward_hook(lambda *_: {}["no such key"])
    with pytest.raises(KeyError):
        scorer(item)
    assert scorer.autocast_failed == 0


def test_mappings_of_inputs_with_labels():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = classifier()

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.body(features)

    model, x, y = Keyword(), torch.randn(6, 5), torch.randint(4, (6,))
    by_name = LastLayerScorer(model)({"features": x, "labels": y})
    torch.testing.assert_close(by_name.norms, LastLayerScorer(model)((x, y)).norms)


def test_without_a_linear_head_the_logits_alone_are_the_score_and_it_is_said(caplog):
    model = nn.Conv1d(1, 4, 5)
    x, y = torch.randn(6, 1, 5), torch.randint(4, (6,))
    forward = lambda m, item: (m(item[0]).squeeze(-1), item[1])  # noqa: E731
    scores = LastLayerScorer(model, forward=forward, autocast=None)((x, y))
    delta = torch.softmax(model(x).squeeze(-1), 1) - functional.one_hot(y, 4)
    torch.testing.assert_close(scores.norms, delta.norm(dim=1).detach())
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "Conv1d has no nn.Linear: it is scored by its logits alone"
    ]
    caplog.clear()
    again = LastLayerScorer(model, forward=forward, autocast=None, head="")((x, y))
    assert torch.equal(again.norms, scores.norms)
    assert not caplog.records, "it was asked for"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.randn(4, 5),), "knows .inputs, targets. pairs"),
        ((torch.randn(4, 5), torch.zeros(3, dtype=torch.long)), r"got logits \(4, 4\) and targets \(3,\)"),
        ((torch.randn(4, 5), torch.zeros(4)), "class indices as targets, got torch.float32"),
    ],
)
def test_items_that_cannot_be_scored_are_named(item, message):
    with pytest.raises(ConfigError, match=message):
        LastLayerScorer(classifier())(item)


def test_a_head_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"head 'fc' is no nn.Linear of the model; there are \['0', '4'\]"):
        LastLayerScorer(classifier(), head="fc")


class Auxiliary(nn.Module):
    """The layer that makes the logits is not the last one registered."""

    def __init__(self, classes: int, called: bool) -> None:
        super().__init__()
        self.fc, self.aux, self.called = nn.Linear(5, 4), nn.Linear(5, classes), called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + (self.aux(x).sum() if self.called else 0)


FOLDED = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (3, 2)), nn.Linear(2, 2), nn.Flatten())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FOLDED, r"layer '2' makes \(4, 3, 2\), the logits are \(4, 6\)"),
        (Auxiliary(3, called=True), r"layer 'aux' makes \(4, 3\), the logits are \(4, 4\)"),
        (Auxiliary(3, called=False), "layer 'aux' was not called in the forward pass"),
    ],
)
def test_a_head_whose_output_is_not_the_logits_is_named(model: nn.Module, message: str):
    item = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ConfigError, match=message):
        LastLayerScorer(model)(item)
    assert LastLayerScorer(model, head="")(item).norms.shape == (4,)


def test_a_head_can_be_named():
    model, x, y = Auxiliary(4, called=False), torch.randn(6, 5), torch.randint(4, (6,))
    norms = LastLayerScorer(model, head="fc", autocast=None)((x, y)).norms
    torch.testing.assert_close(norms, torch.stack([g.norm() for g in head_gradients(model, model.fc, x, y)]))


def test_a_cache_made_by_the_first_forward_pass_can_be_trained_with():
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = classifier(), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.scale is None:
                self.scale = torch.ones(5) * 2
            return self.body(x * self.scale)

    model, x = Lazy(), torch.randn(6, 5, requires_grad=True)
    LastLayerScorer(model)((x.detach(), torch.zeros(6, dtype=torch.long)))
    model(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(("dim", "words"), [(-1, "at least 0, got -1"), (float("nan"), "a whole number, got nan")])
def test_the_length_of_a_sketch_is_a_whole_number(dim, words):
    with pytest.raises(ConfigError, match=f"sketch_dim must be {words}"):
        LastLayerScorer(torch.nn.Linear(2, 2), sketch_dim=dim)
