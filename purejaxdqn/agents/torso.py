"""The torso of an agent's network: its settings, and the convolutions before the hidden layers."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from purejaxdqn import environments
from purejaxdqn.checks import ConfigError
from purejaxdqn.training.declaration import setting
from purejaxdqn.training.settings import RunConfig

if TYPE_CHECKING:
    from purejaxdqn.networks import CNNTorso

_CONVOLUTIONS = ("channels", "kernel_sizes", "strides")
# Of Young and Tian, "MinAtar" (2019), and of Mnih et al. (2015), whose images are 84x84.
_SMALL: dict[str, tuple[int, ...]] = {"channels": (16,), "kernel_sizes": (3,), "strides": (1,)}
_LARGE = {"channels": (32, 64, 64), "kernel_sizes": (8, 4, 3), "strides": (4, 2, 1)}
_SMALL_HIDDEN, _LARGE_HIDDEN = (128,), (512,)
_LARGE_SIDE = 36  # pixels, the fewest that pass through all kernels of the large one

_image = functools.partial(setting, group="network", read_if={"torso": ("auto", "cnn")})


@dataclasses.dataclass(frozen=True)
class TorsoConfig(RunConfig):
    """The settings of a network that may read images."""

    torso: Literal["auto", "mlp", "cnn"] = setting(
        "auto",
        "What an observation is read by: hidden layers alone (mlp), or convolutions before them "
        "(cnn); auto takes convolutions for images [height, width, channels].",
        group="network",
    )
    channels: tuple[int, ...] = _image(
        (),
        "Filters of each convolution. Where neither these, kernel_sizes nor strides are given, "
        f"there are 16 of 3x3 (MinAtar's), or for images from {_LARGE_SIDE}x{_LARGE_SIDE} on "
        "Mnih's 32 of 8x8, 64 of 4x4 and 64 of 3x3.",
    )
    kernel_sizes: tuple[int, ...] = _image((), "Side of each convolution's kernel, in pixels.")
    strides: tuple[int, ...] = _image((), "Stride of each convolution, in pixels.")
    spectral_norm: bool = setting(
        False,
        "Whether the weights of the last hidden layer are divided by their largest singular value.",
        group="network",
        read_if={"noisy": False},
    )

    def problems_together(self) -> Iterator[str]:
        """Yields what settings that are allowed each by itself make wrong together."""
        yield from super().problems_together()
        given = {name: getattr(self, name) for name in _CONVOLUTIONS}
        if len({*map(len, given.values())}) > 1:
            words = ", ".join(f"{name} ({value})" for name, value in given.items())
            yield f"{words} must be equal in number: give each convolution one of each"
        hidden = self.hidden_sizes or getattr(self, "head_sizes", ())
        if self.spectral_norm and not hidden:
            yield (
                f"spectral_norm ({self.spectral_norm}) needs a hidden layer: give hidden_sizes, "
                "or leave it out"
            )
        if self.spectral_norm and getattr(self, "noisy", False):
            yield (
                f"spectral_norm ({self.spectral_norm}) must be False with noisy: the weights that "
                "it would divide have noise"
            )


def make_torso(config: TorsoConfig, obs_shape: Sequence[int]) -> "CNNTorso | None":
    """Makes the convolutions before the hidden layers, or None where settings ask for none.

    Raises:
      ConfigError: for convolutions on observations that are no images `[height, width, channels]`.
    """
    from purejaxdqn import networks  # settings are read without JAX

    is_image = len(obs_shape) == 3
    if config.torso == "mlp" or (config.torso == "auto" and not is_image):
        return None
    if not is_image:
        raise ConfigError(
            "torso ('cnn') needs observations [height, width, channels], and these have the shape "
            f"{tuple(obs_shape)}: set torso to 'mlp', or leave it out"
        )
    by_size = _LARGE if min(obs_shape[:2]) >= _LARGE_SIDE else _SMALL
    return networks.CNNTorso(
        channels=config.channels or by_size["channels"],
        kernel_sizes=config.kernel_sizes or by_size["kernel_sizes"],
        strides=config.strides or by_size["strides"],
        hidden_size=None,
        layer_norm=config.layer_norm,
    )


def settings_for_images(env: str) -> dict[str, Any]:
    """Returns the settings by name of a network for a task's images; of other tasks, none.

    Tasks of others, whose names have a colon, are not made for that.
    """
    if ":" in env or not environments.is_known(env):
        return {}
    sizes = environments.describe(env.partition("?")[0]).observation.split()[0].split("x")
    if len(sizes) != 3:
        return {}
    is_large = min(map(int, sizes[:2])) >= _LARGE_SIDE
    hidden_sizes = _LARGE_HIDDEN if is_large else _SMALL_HIDDEN
    return {**(_LARGE if is_large else _SMALL), "hidden_sizes": hidden_sizes}
