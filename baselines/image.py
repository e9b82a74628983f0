"""Pictures, or features that a frozen network made of them, to a map of vectors by position.

Shapes: B images, C channels, h x w the map that leaves an encoder, c x i x j the features that enter one.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """3 x 3 convolutions with ReLU over pixels, trained from scratch.

    At low resolution there is nothing for a network trained on photographs to see.
    """

    def __init__(self, *, image_size: tuple[int, int], channels: Sequence[int], strides: Sequence[int]) -> None:
        """`image_size` is (height, width) in pixels; `channels` and `strides` have one entry a layer.

        Raises ValueError if the two have different lengths or are empty.
        """
        super().__init__()
        if len(channels) != len(strides) or len(channels) == 0:
            raise ValueError(
                f"expected one stride for each of at least one channel count, "
                f"got channels {list(channels)} and strides {list(strides)}"
            )
        self.image_size = image_size
        height, width = image_size
        blocks: list[nn.Module] = []
        for inputs, outputs, stride in zip((3, *channels), channels, strides, strict=False):
            blocks += [nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1), nn.ReLU()]
            height, width = -(-height // stride), -(-width // stride)  # with this padding: divide, round up
        self.blocks = nn.Sequential(*blocks)
        self.map_shape = (channels[-1], height, width)

    def forward(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C h w"]:
        """`images` in [0, 1]. Raises ValueError for another size than the encoder was made for."""
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"expected images of (height, width) {self.image_size}, got {tuple(images.shape[-2:])}; "
                "resize them or set image_size"
            )
        return self.blocks(images * 2 - 1)


class FeatureEncoder(nn.Module):
    """Extracted features to a narrower, smaller map: 1 x 1 convolution, ReLU, max-pooling.

    What clevr-iep's CNN+LSTM does before it flattens: 1024 x 14 x 14 to 512 x 7 x 7. Without `width` the features are
    passed on as they are, as its stacked attention has a 1 x 1 convolution of its own.
    """

    def __init__(self, *, shape: tuple[int, int, int], width: int | None = None, pool: int = 1) -> None:
        """`shape` is that of an image's features, (c, i, j); `pool` divides i and j, rounded down.

        Raises ValueError for a pool that is larger than the map.
        """
        super().__init__()
        channels, rows, columns = self.shape = shape
        if pool > min(rows, columns):
            raise ValueError(f"expected to pool at most {min(rows, columns)} positions of a side, got {pool}")
        blocks: list[nn.Module] = [] if width is None else [nn.Conv2d(channels, width, kernel_size=1), nn.ReLU()]
        if pool > 1:
            blocks.append(nn.MaxPool2d(pool))
        self.blocks = nn.Sequential(*blocks)
        self.map_shape = (channels if width is None else width, rows // pool, columns // pool)

    def forward(self, features: Float[Tensor, "B c i j"]) -> Float[Tensor, "B C h w"]:
        """Raises ValueError for features of another shape than the encoder was made for."""
        if tuple(features.shape[1:]) != self.shape:
            raise ValueError(f"expected features of shape {self.shape}, got {tuple(features.shape[1:])}")
        return self.blocks(features)


MapEncoder = ImageEncoder | FeatureEncoder
"""Has `map_shape`, the (C, h, w) that leave it."""
