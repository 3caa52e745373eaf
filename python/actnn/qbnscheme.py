"""Which bits a batch norm's activations get."""

from torch import nn

from .conf import Config, config
from .qscheme import QScheme


class QBNScheme(QScheme):
    """Bits of one batch norm: those of the convolution or linear layer before it, or 8; within them for each sample by
    its ranges alone. `QBNScheme.layers` are the batch norms' schemes.

    Args:
        layer: the module; may be None.
        group: index into `config.activation_compression_bits`.
        config: whose policy it belongs to.
        name: for those who look at the layers.
    """

    _normalization = True

    def __init__(
        self, layer: nn.Module | None = None, group: int = 0, *, config: Config = config, name: str | None = None
    ) -> None:
        super().__init__(layer, group, config=config, name=name)

    @staticmethod
    def allocate_perlayer() -> None:
        """Nothing: a batch norm takes the bits of the layer before it at every forward."""
