from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from engine.models.spectralx.aomoa import AdaptedLinear, dense_gates, load_balance

D_IN, D_OUT = 64, 24


def make(d_in=D_IN, d_out=D_OUT, *, gated=True, **settings) -> AdaptedLinear:
    torch.manual_seed(0)
    layer = AdaptedLinear(nn.Linear(d_in, d_out), **settings)
    if gated:  # the initial gates are 0, where all experts tie
        nn.init.normal_(layer.gate)
    return layer.eval()


def tokens(*shape, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reduced(layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
    return layer.norm_reduced(layer.reduce(layer.norm_half(x.reshape(-1, 2, x.shape[-1] // 2))))


def gates_of(layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
    z = reduced(layer, x)
    return dense_gates(*layer.route(z), z.new_zeros(len(z), 2, layer.gate.shape[-1]))


def published_mixture(layer: AdaptedLinear, half: torch.Tensor, attribute: int) -> torch.Tensor:
    """The method's formula for one half of one token, expert by expert."""
    z = layer.norm_reduced(layer.reduce(layer.norm_half(half)))
    logits = z @ layer.gate[attribute]
    chosen = logits.topk(layer.top_k).indices
    shares = logits[chosen].softmax(dim=0)
    total = torch.zeros_like(z)
    for share, expert in zip(shares, chosen, strict=True):
        if share > 1e-4:
            hidden = (layer.weight_in[expert] @ z + layer.bias_in[expert]).relu()
            said = layer.weight_out[expert] @ hidden + layer.bias_out[expert]
            total += share * said.exp()
    total = torch.where(total == 0, torch.finfo(torch.float64).eps, total)
    return layer.expand(total.log())


def trainable(layer: nn.Module) -> int:
    return sum(weight.numel() for weight in layer.parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("d_in", "d_out", "count"),
    [
        (1024, 4096, 352_064),
        (4096, 1024, 1_589_504),
        (512, 2048, 90_016),
        (2048, 512, 401_536),
        (1024, 512, 119_104),
    ],
)
def test_published_counts_of_parameters(d_in, d_out, count):
    with torch.device("meta"):
        assert trainable(AdaptedLinear(nn.Linear(d_in, d_out))) == count


@pytest.mark.parametrize(("d_in", "d_out"), [(64, 256), (192, 64), (768, 192)])
def test_counts_follow_the_closed_form(d_in, d_out):
    d, o = d_in // 2, d_out // 2
    r, h = d // 4, d // 32
    expected = d * r + r * o + 4 * (2 * r * h + h + r) + 16 * r + 2 * d + 2 * r + d_out
    assert trainable(make(d_in, d_out)) == expected


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_the_answer_is_the_methods_formula(top_k):
    layer, x = make(top_k=top_k).double(), tokens(5, D_IN).double()
    nn.init.normal_(layer.scaler)
    with torch.no_grad():
        adapters = [
            torch.cat([published_mixture(layer, half, t) for t, half in enumerate(row.chunk(2))])
            for row in x
        ]
        expected = layer.base(x) + layer.scaler * torch.stack(adapters)
        torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)


def test_shares_of_the_chosen_experts_sum_to_one():
    gates = gates_of(make(), tokens(20, D_IN))
    assert torch.equal((gates > 0).sum(dim=-1), torch.full((20, 2), 2))
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(20, 2))


def test_halves_of_a_token_choose_by_gates_of_their_own():
    layer = make()
    with torch.no_grad():
        layer.gate[1] = -layer.gate[0]
    gates = gates_of(layer, tokens(1, D_IN // 2).repeat(1, 2))  # both halves are alike
    best = gates[0].argmax(dim=-1)
    assert best[0] != best[1]


def test_a_share_of_a_ten_thousandth_is_dropped():
    layer, z = make(), torch.zeros(1, 2, 8)
    index = torch.tensor([[0, 0], [1, 1]])
    with torch.no_grad():
        layer.bias_out[0], layer.bias_out[1] = 0.0, 20.0  # the second would drown the first
        kept = layer.mix(z, torch.tensor([[0.9998], [0.0002]]).log().expand(2, 2), index)
        dropped = layer.mix(z, torch.tensor([[0.99991], [0.00009]]).log().expand(2, 2), index)
        alone = layer.mix(z, torch.tensor([[0.99991], [1e-30]]).log().expand(2, 2), index)
    assert torch.equal(dropped, alone)
    assert (kept > dropped + 5).all()


def mixture_of_constant(said: float) -> torch.Tensor:
    """What the mixture gives when every expert says one value."""
    layer = make()
    with torch.no_grad():
        layer.weight_out.zero_()
        layer.bias_out.fill_(said)
        z = reduced(layer, tokens(1, D_IN))
        return layer.mix(z, *layer.route(z))


def test_a_mixture_too_small_for_a_number_counts_as_the_published_one():
    small = mixture_of_constant(-110.0)
    torch.testing.assert_close(small, torch.full_like(small, math.log(2.220446049250313e-16)))


@pytest.mark.parametrize("said", [-80.0, 0.0, 80.0, 500.0])
def test_a_mixture_of_equals_is_what_they_say_even_where_exponentials_end(said):
    mixed = mixture_of_constant(said)
    torch.testing.assert_close(mixed, torch.full_like(mixed, said), atol=1e-4, rtol=1e-5)


def test_extreme_experts_leave_finite_gradients():
    layer = make().train()
    with torch.no_grad():
        layer.gate.mul_(100)  # shares of 0 and 1
        layer.bias_out.copy_(tokens(*layer.bias_out.shape) * 300)
    layer(tokens(50, D_IN)).square().sum().backward()
    assert all(w.grad.isfinite().all() for w in layer.parameters() if w.requires_grad)


def test_initial_gates_ask_the_same_experts_for_every_token():
    gates = gates_of(make(gated=False), tokens(9, D_IN))
    assert torch.equal(gates, gates[:1, :1].expand_as(gates))


def test_a_start_at_zero_is_the_bare_layer():
    layer = make(zero_init=True)
    x = tokens(2, 3, D_IN)
    assert torch.equal(layer(x), layer.base(x))
    torch.manual_seed(0)
    published = AdaptedLinear(nn.Linear(D_IN, D_OUT)).eval()
    assert (published(x) - published.base(x)).abs().max() > 0.01


def test_a_scaler_of_zero_is_the_bare_layer():
    layer, x = make(), tokens(4, D_IN)
    nn.init.zeros_(layer.scaler)
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 3, 4), (0,)])
def test_any_leading_axes(shape):
    layer, x = make(), tokens(*shape, D_IN)
    assert layer(x).shape == (*shape, D_OUT)
    torch.testing.assert_close(layer(x).reshape(-1, D_OUT), layer(x.reshape(-1, D_IN)))


def test_a_token_does_not_see_its_neighbours():
    layer, x = make(), tokens(6, D_IN)
    torch.testing.assert_close(layer(x)[2:3], layer(x[2:3]), atol=1e-6, rtol=0)


def test_every_weight_learns_but_the_base():
    layer = make().train()
    nn.init.normal_(layer.gate_noise)
    layer(tokens(64, D_IN)).square().sum().backward()
    still = [n for n, w in layer.named_parameters() if w.grad is None or not w.grad.any()]
    assert still == ["base.weight", "base.bias"]


def test_noise_is_drawn_in_training_only():
    layer, x = make(), tokens(40, D_IN)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_the_seed_decides_the_noise():
    layer, x = make().train(), tokens(40, D_IN)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


def test_lower_precision_chooses_and_mixes_in_float32():
    layer, x = make(), tokens(30, D_IN)
    with torch.autocast("cpu", torch.bfloat16):
        found, bare = layer(x), layer.base(x)
    assert found.dtype == bare.dtype == torch.bfloat16
    delta = layer(x) - layer.base(x)
    torch.testing.assert_close(found.float() - bare.float(), delta, atol=0.02, rtol=0.02)


def test_balance_is_zero_before_any_training_pass():
    layer = make()
    layer(tokens(8, D_IN))
    assert layer.balance.item() == 0.0


def test_a_router_that_prefers_two_experts_is_out_of_balance():
    layer, x = make().train(), tokens(200, D_IN)
    layer(x)
    even = layer.balance
    with torch.no_grad():
        layer.gate[..., 2:] = 0
        layer.gate[..., :2] = 0
        layer.norm_reduced.weight.zero_()
        layer.norm_reduced.bias.fill_(1.0)
        layer.gate[..., :2] = 5.0
    layer(x)
    # Two experts take all: the squared variation of (1, 1, 0, 0) is 4 / 3, and so is the load's.
    assert layer.balance.item() == pytest.approx(2 * (4 / 3 + 4 / 3), rel=1e-3)
    assert even < 0.5 * layer.balance


def test_balance_teaches_gates_and_noise():
    layer = make().train()
    layer(tokens(50, D_IN))
    layer.balance.backward()
    assert layer.gate.grad.any()
    assert layer.gate_noise.grad.any()


def test_descending_balance_spreads_the_load():
    layer, x = make().train(), tokens(200, D_IN)
    with torch.no_grad():
        layer.norm_reduced.bias.fill_(1.0)
        layer.gate[..., :2] += 0.5  # the first two experts are preferred by all tokens
    optimizer = torch.optim.Adam([layer.gate], lr=0.05)
    values = []
    for _step in range(20):
        layer(x)
        optimizer.zero_grad()
        layer.balance.backward()
        values.append(layer.balance.item())
        optimizer.step()
    assert values[0] > 1.5
    assert values[-1] < 0.3 * values[0]


def test_balance_of_a_network_is_the_sum_over_its_layers():
    network = nn.Sequential(make(D_IN, D_IN), nn.GELU(), make(D_IN, D_IN)).train()
    network(tokens(30, D_IN))
    expected = network[0].balance + network[2].balance
    torch.testing.assert_close(load_balance(network), expected)
    assert expected > 0


def test_a_network_without_experts_has_no_balance():
    assert load_balance(nn.Linear(2, 2)) is None


def test_a_layer_is_copied_after_a_training_pass():
    layer, x = make().train(), tokens(8, D_IN)
    layer(x)
    twin = copy.deepcopy(layer).eval()
    assert torch.equal(twin(x), layer.eval()(x))
    assert twin.balance.item() == 0.0
    assert layer.balance.item() > 0.0


def test_the_base_is_bit_identical_after_training_steps():
    layer = make().train()
    before = copy.deepcopy(layer.base.state_dict())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _step in range(3):
        layer(tokens(8, D_IN)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in layer.base.state_dict().items())


@pytest.mark.parametrize(("d_in", "d_out"), [(63, 24), (64, 25)])
def test_odd_widths_are_refused(d_in, d_out):
    with pytest.raises(ValueError, match=f"must be even, not {d_in} and {d_out}"):
        AdaptedLinear(nn.Linear(d_in, d_out))


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 0), (4, 5)])
def test_impossible_numbers_of_experts_are_refused(experts, top_k):
    with pytest.raises(ValueError, match=f"not {top_k} of {experts}"):
        AdaptedLinear(nn.Linear(D_IN, D_OUT), experts=experts, top_k=top_k)
