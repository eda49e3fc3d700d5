import pytest
import torch

from engine.models.backbone import BackboneConfig, HyperKDBackbone

CONFIG = BackboneConfig(5, patch_px=2, embed_dim=8, depth=1, num_heads=2, tile_size_px=8)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return HyperKDBackbone(CONFIG).eval()


def test_there_is_one_embedding_a_token_for_chips_of_any_size(backbone):
    with torch.inference_mode():
        grid = backbone(torch.rand(2, 5, 7, 4), torch.ones(2, 7, 4, dtype=torch.bool))
    assert grid.shape == (2, 8, 4, 2)


def test_what_stands_where_nothing_is_valid_does_not_matter(backbone):
    chips = torch.rand(1, 5, 8, 8)
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[:, :3, :5] = False
    spoilt = chips.masked_fill(~valid[:, None], float("nan"))
    with torch.inference_mode():
        assert torch.equal(backbone(chips, valid), backbone(spoilt, valid))


def test_the_halo_is_a_quarter_of_the_tile(backbone):
    assert (backbone.tile_size_px, backbone.halo_px, backbone.blend) == (8, 1, True)


@pytest.mark.parametrize("tile_size_px", [0, 7])
def test_tiles_that_patches_do_not_fill_are_refused(tile_size_px):
    with pytest.raises(ValueError, match=f"Tiles of {tile_size_px} px"):
        BackboneConfig(5, patch_px=2, embed_dim=8, num_heads=2, tile_size_px=tile_size_px)
