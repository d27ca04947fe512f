"""Attention with a soft-cap some rows at a time is the same, and so is our GELU."""

from __future__ import annotations

import pytest
import torch

from vlm import layers
from vlm.layers import attention, attention_weights, gelu


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_few_rows_at_a_time_give_the_same_attention(monkeypatch, rows, gradient):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 7, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    q.requires_grad_(gradient)
    mask = torch.ones(2, 1, 7, 9, dtype=torch.bool).tril(2)
    rule = {"mask": mask, "scale": 0.7, "softcap": 2.0}

    scores = torch.einsum("bnth,bnsh->bnts", q, k.repeat_interleave(2, 1)) * 0.7
    scores = (2 * torch.tanh(scores / 2)).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ v.repeat_interleave(2, 1)

    seen = []

    def watched(q, k, part, **rule):
        seen.append(len(range(*part.indices(q.shape[2]))))
        return attention_weights(q, k, part, **rule)

    monkeypatch.setattr(layers, "attention_weights", watched)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 4 * 2 * 6 * 9 * rows)
    with torch.set_grad_enabled(gradient):
        ours = attention(q, k, v, **rule)
    torch.testing.assert_close(ours, expected)
    assert max(seen) == min(rows, 7) and sum(seen) == 7
    if gradient:
        by = torch.randn_like(expected)
        (theirs,) = torch.autograd.grad(expected, q, by)
        torch.testing.assert_close(torch.autograd.grad(ours, q, by)[0], theirs)
        assert max(seen) == min(rows, 7) and sum(seen) == 14  # once more, as few


@pytest.mark.parametrize("gradient", [False, True])
def test_gelu_is_that_of_float64_everywhere(gradient):
    x = torch.cat([torch.linspace(-30, 30, 60_001), torch.tensor([-1e9, 1e9])])
    wide = x.double()
    half = (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    expected = (wide / 2 * (1 + half.tanh())).float()
    x.requires_grad_(gradient)
    torch.testing.assert_close(gelu(x).detach(), expected, rtol=2e-6, atol=1e-6)
