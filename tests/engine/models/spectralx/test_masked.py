from __future__ import annotations

import pytest
import torch

from engine.models.mae import compose
from engine.models.patches import patchify

from .masked_models import BANDS, CHIP_PX, GRID, KINDS, PATCH_PX, chips, masked_model

IDS_KEEP = torch.tensor([[0, 5, 10, 15], [3, 4, 7, 8]])
EVERYWHERE = torch.ones(2, CHIP_PX, CHIP_PX, dtype=torch.bool)
ALL_BANDS = torch.ones(2, BANDS, dtype=torch.bool)


def losses(model, x, output, valid=EVERYWHERE, band_present=ALL_BANDS):
    return model.losses(x, output, IDS_KEEP, valid, band_present)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_the_hidden_tokens_are_predicted(kind):
    output = masked_model(kind)(chips(), IDS_KEEP)
    assert output.prediction.shape == (2, 12, PATCH_PX**2 * BANDS)
    for keep, masked in zip(IDS_KEEP, output.ids_masked, strict=True):
        assert sorted([*keep.tolist(), *masked.tolist()]) == list(range(GRID**2))


def test_the_order_of_what_is_shown_changes_nothing(kind):
    model = masked_model(kind).eval()
    forward, backward = (model(chips(), ids).prediction for ids in (IDS_KEEP, IDS_KEEP.flip(1)))
    torch.testing.assert_close(forward, backward, atol=1e-5, rtol=1e-4)


def test_a_chip_alone_is_predicted_as_in_a_batch(kind):
    model = masked_model(kind).eval()
    both, one = model(chips(), IDS_KEEP), model(chips()[1:], IDS_KEEP[1:])
    torch.testing.assert_close(both.prediction[1:], one.prediction, atol=1e-5, rtol=1e-4)


def changed_where_hidden(x):
    """Other pixels in token 1, which neither of the two chips is shown."""
    other = x.clone()
    other[..., :PATCH_PX, PATCH_PX : 2 * PATCH_PX] += 3.0
    return other


def test_the_published_mask_lets_the_tokenizer_see_what_is_hidden():
    model = masked_model().eval()
    x = chips()
    first, second = model.encode(x, IDS_KEEP), model.encode(changed_where_hidden(x), IDS_KEEP)
    assert (first - second).abs().max() > 1e-3


def test_a_mask_on_the_input_hides_pixels_from_the_tokenizer_too():
    model = masked_model(mask_input=True).eval()
    x = chips()
    first, second = model.encode(x, IDS_KEEP), model.encode(changed_where_hidden(x), IDS_KEEP)
    assert torch.equal(first, second)


def test_a_mask_on_the_input_leaves_what_is_shown():
    model = masked_model(mask_input=True).eval()
    x = chips()
    other = x.clone()
    other[..., :PATCH_PX, :PATCH_PX] += 3.0  # token 0, shown of the first chip alone
    changes = (model.encode(x, IDS_KEEP) - model.encode(other, IDS_KEEP)).abs().amax(dim=(1, 2))
    assert changes[0] > 1e-3
    assert changes[1] == 0


def test_pixels_without_data_count_for_nothing(kind):
    model = masked_model(kind).eval()
    x = chips()
    valid = EVERYWHERE.clone()
    valid[:, 3:9, 2:7] = False
    output = model(x, IDS_KEEP)
    other = torch.where(valid[:, None], x, x + 50.0)
    first, second = (losses(model, part, output, valid)["loss"] for part in (x, other))
    # What ScaleMAE's smooth image takes from a token is the mean of what is valid in it.
    torch.testing.assert_close(first, second)
    assert losses(model, other, output)["loss"] > 2 * first


def test_bands_that_a_scene_has_not_count_for_nothing(kind):
    model = masked_model(kind).eval()
    x = chips()
    present = ALL_BANDS.clone()
    present[0, 1] = False
    other = x.clone()
    other[0, 1] += 50.0
    output = model(x, IDS_KEEP)
    first, second = (losses(model, part, output, band_present=present) for part in (x, other))
    torch.testing.assert_close(first["loss"], second["loss"])
    assert losses(model, other, output)["loss"] > 2 * first["loss"]


def test_a_batch_without_data_has_a_loss_of_0(kind):
    model = masked_model(kind)
    output = model(chips(), IDS_KEEP)
    assert losses(model, chips(), output, ~EVERYWHERE)["loss"] == 0


@pytest.mark.parametrize("kind", ["satmaepp", "mae", "plain"])
def test_only_hidden_tokens_count_for_the_squared_error(kind):
    model = masked_model(kind).eval()
    output = model(chips(), IDS_KEEP)
    hidden = torch.stack(
        [tokens[ids] for tokens, ids in zip(patchify(chips(), PATCH_PX), output.ids_masked)]  # noqa: B905
    )
    expected = (output.prediction - hidden).square().mean()
    torch.testing.assert_close(losses(model, chips(), output)["mse"], expected)


def trained_and_frozen(model):
    named = dict(model.named_parameters())
    return (
        {name: p for name, p in named.items() if p.requires_grad},
        {name: p for name, p in named.items() if not p.requires_grad},
    )


def step(model, optimiser, x):
    optimiser.zero_grad()
    loss = losses(model, x, model(x, IDS_KEEP))["loss"]
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def test_all_that_trains_gets_a_gradient_and_all_else_stays_as_it_was(kind):
    model = masked_model(kind, load_balancing=0.01).train()
    trained, frozen = trained_and_frozen(model)
    before = {name: parameter.clone() for name, parameter in frozen.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
    step(model, optimiser, chips())
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    step(model, optimiser, chips())
    assert len(frozen) > 0
    assert [name for name, p in frozen.items() if not torch.equal(p, before[name])] == []


def test_the_loss_of_one_batch_falls(kind):
    model = masked_model(kind).train()
    trained, _frozen = trained_and_frozen(model)
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
    smooth = torch.linspace(1.0, 2.0, CHIP_PX).expand_as(chips())
    history = [step(model, optimiser, smooth) for _step in range(20)]
    assert history[-1] < 0.8 * history[0]


def test_terms_are_numbers_without_a_graph(kind):
    model = masked_model(kind).train()
    terms = losses(model, chips(), model(chips(), IDS_KEEP))
    assert terms.pop("loss").requires_grad
    assert terms
    assert not any(term.requires_grad for term in terms.values())


def test_the_balance_of_the_experts_is_a_term_where_it_has_a_weight():
    model = masked_model("mae", load_balancing=0.5).train()
    terms = losses(model, chips(), model(chips(), IDS_KEEP))
    assert terms["balance"] > 0
    torch.testing.assert_close(terms["loss"].detach(), terms["mse"] + terms["balance"])


def test_without_a_weight_experts_need_no_balance():
    model = masked_model("mae").train()
    assert "balance" not in losses(model, chips(), model(chips(), IDS_KEEP))


def test_the_prefix_trains_in_this_stage():
    assert masked_model().adapted.vit.prefix.requires_grad


def test_the_counts_are_of_all_that_trains(kind):
    model = masked_model(kind)
    trained, _frozen = trained_and_frozen(model)
    assert sum(model.trainable_counts().values()) == sum(p.numel() for p in trained.values())


def test_it_answers_as_other_masked_autoencoders(kind):
    model = masked_model(kind).eval()
    with torch.no_grad():
        composite = compose(chips(), model.predict(chips(), IDS_KEEP))
    kept = torch.stack([t[ids] for t, ids in zip(patchify(composite, PATCH_PX), IDS_KEEP)])  # noqa: B905
    original = torch.stack([t[ids] for t, ids in zip(patchify(chips(), PATCH_PX), IDS_KEEP)])  # noqa: B905
    assert torch.equal(kept, original)


def test_lower_precision_keeps_the_loss_in_float32(kind):
    model = masked_model(kind).eval()
    with torch.no_grad():
        plain = losses(model, chips(), model(chips(), IDS_KEEP))["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            found = losses(model, chips(), model(chips(), IDS_KEEP))["loss"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=0.05, atol=0.0)
