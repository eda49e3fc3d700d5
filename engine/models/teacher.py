"""What every teacher network offers, so that distillation need not know which one it has."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F


class TeacherNetwork(nn.Module, ABC):
    """A frozen multispectral encoder that describes the same ground as the student's tokens."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Values of a feature."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Transformer blocks; the number of the last tap."""

    @abstractmethod
    def features(
        self,
        reflectance: Tensor,
        *,
        rows: int,
        cols: int,
        ids_keep: Tensor | None,
        pixel_size_m: Tensor,
        taps: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        """Describe each token of the student's grid; without gradients.

        Where the network's own patches do not give that grid, the image is resized so that they
        do. What is hidden is taken out of the sequence: kept tokens see kept tokens only.

        Args:
            reflectance: (B, T_bands, H, W) float32, 0 to 1, in the order of the teacher's bands;
                the network normalises by itself.
            rows: of the student's token grid.
            cols: of the student's token grid.
            ids_keep: (B, N_kept) int64, 0-based in row order; None for all tokens.
            pixel_size_m: (B,) float32, ground size of a pixel of ``reflectance``.
            taps: 1-based numbers of blocks; ``depth`` stands for the output after the final norm.

        Returns:
            One (B, N_kept, width) a tap, tokens in the order of ``ids_keep``, without CLS.

        Raises:
            ValueError: the number of bands is another, or a tap is not between 1 and ``depth``.
        """


def check_request(reflectance: Tensor, band_count: int, taps: tuple[int, ...], depth: int) -> None:
    """Refuse images of other bands than the network's, and blocks that it does not have.

    Raises:
        ValueError: see above.
    """
    if reflectance.shape[1] != band_count:
        raise ValueError(f"The teacher reads {band_count} bands, not {reflectance.shape[1]}.")
    wrong = [tap for tap in taps if not 1 <= tap <= depth]
    if wrong:
        raise ValueError(f"The teacher has blocks 1 to {depth}, not {wrong[0]}.")


def resize(image: Tensor, height_px: int, width_px: int) -> Tensor:
    """Resize (B, C, H, W) images; what is made smaller is averaged, not sampled."""
    if image.shape[-2:] == (height_px, width_px):
        return image
    return F.interpolate(image, size=(height_px, width_px), mode="bilinear", antialias=True)


def keep_tokens(tokens: Tensor, ids_keep: Tensor | None) -> Tensor:
    """Take tokens (B, N, …) at ``ids_keep`` (B, N_kept), in that order; all when it is None."""
    if ids_keep is None:
        return tokens
    index = ids_keep.reshape(*ids_keep.shape, *(1,) * (tokens.dim() - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))
