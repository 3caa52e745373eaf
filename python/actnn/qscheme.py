"""Which bits a layer's activations get: the Python face of C++'s `actnn::Scheme` and `actnn::Policy`."""

from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import _checks
from .conf import Config, config

if TYPE_CHECKING:
    from collections.abc import Sequence


class _OfThePolicy(type):
    """What schemes of the process's configuration share, as attributes of their class."""

    @property
    def layers(cls) -> "list[QScheme]":
        """The schemes of convolutions and linear layers (`QBNScheme`: of batch norms) that are alive, oldest first."""
        return [_wrap(s) for s in config.policy.schemes() if s.normalization() == cls._normalization]

    @property
    def num_layers(cls) -> int:
        """How many `layers` there are."""
        return len(cls.layers)

    @property
    def num_samples(cls) -> int:
        """Size of the training set, for `config.use_gradient`."""
        return config.policy.num_samples()

    @num_samples.setter
    def num_samples(cls, count: int) -> None:
        config.policy.set_num_samples(_checks.integer("QScheme", "num_samples", count, 1))

    @property
    def batch(cls) -> Tensor | None:
        """The indices of the current batch's samples, int64 [N]; for `config.use_gradient`."""
        return config.policy.batch()

    @batch.setter
    def batch(cls, indices: "Tensor | Sequence[int] | None") -> None:
        config.policy.set_batch(None if indices is None else torch.as_tensor(indices))

    @property
    def prev_layer(cls) -> "QScheme | None":
        """The convolution or linear layer whose forward came last in this step."""
        previous = config.policy.previous()
        return None if previous is None else _wrap(previous)

    @property
    def update_scale(cls) -> bool:
        """Whether backward updates the gradient norms."""
        return config.policy.update_scale()

    @update_scale.setter
    def update_scale(cls, update: bool) -> None:
        if not isinstance(update, bool):
            raise TypeError(f"QScheme: update_scale must be a bool, got {_checks.describe(update)}")
        config.policy.set_update_scale(update)


class QScheme(metaclass=_OfThePolicy):
    """Bits of one convolution or linear layer: for the layer, and within it for each sample of a batch.

    The class attributes `layers`, `num_layers`, `num_samples`, `batch`, `prev_layer`, `update_scale` belong to the
    policy of the process's `config`; schemes made with another `Config` are that one's
    (`config.policy`, `torch.classes.actnn.Policy`).

    Args:
        layer: the module, for its name only; may be None.
        group: index into `config.activation_compression_bits`.
        num_locations: elements of the kernel.
        depthwise_groups: groups of the convolution.
        config: whose policy allocates.
        channel_dim: of the input; -1 for linear layers.
        name: for those who look at the layers.
    """

    _normalization = False

    def __init__(
        self,
        layer: nn.Module | None = None,
        group: int = 0,
        num_locations: int = 1,
        depthwise_groups: int = 1,
        *,
        config: Config = config,
        channel_dim: int = 1,
        name: str | None = None,
    ) -> None:
        where = type(self).__name__
        if not isinstance(config, Config):
            raise TypeError(f"{where}: config must be an actnn.Config, got {_checks.describe(config)}")
        group = _checks.integer(where, "group", group, 0)
        if name is None:
            name = f"layer_{len(config.policy.schemes())}"
        self.config = config
        self.native = torch.classes.actnn.Scheme(
            config.policy, self._normalization, group, num_locations, depthwise_groups, channel_dim, name
        )
        self._channel_dim = channel_dim

    @property
    def bits(self) -> float:
        """Bits per element on average, 1..8, as last allocated."""
        return self.native.bits()

    @bits.setter
    def bits(self, value: float) -> None:
        if not isinstance(value, Real):
            raise TypeError(f"{type(self).__name__}: bits must be a number in 1..8, got {_checks.describe(value)}")
        self.native.set_bits(float(value))

    @property
    def initial_bits(self) -> int:
        """Where the allocation among samples begins."""
        return self.config.initial_bits

    @property
    def scales(self) -> Tensor:
        """Squared norms of the output's gradient: a running scalar, or with `use_gradient` a table [num_samples]."""
        scales = self.native.scales()
        return torch.tensor(0.0) if scales is None else scales

    @property
    def C(self) -> Tensor | None:  # noqa: N802  # the original's name
        """Sensitivity of each sample in the last forward, float32 [N]."""
        return self.native.sensitivity()

    @property
    def dim(self) -> int:
        """Elements per sample in the last forward."""
        return self.native.dim()

    num_locations = property(lambda self: self.native.num_locations(), doc="Elements of the kernel.")
    depthwise_groups = property(lambda self: self.native.depthwise_groups(), doc="Groups of the convolution.")
    group = property(lambda self: self.native.group(), doc="Index into `config.activation_compression_bits`.")
    name = property(lambda self: self.native.name(), doc="The layer's name.")

    def plan(self, input: Tensor) -> dict[str, Any]:
        """How to keep `input`, [N, ...]: the keyword arguments of an op."""
        return dict(zip(PLAN, self.native.plan(input), strict=True))

    def observe(self, output: Tensor) -> None:
        """`output` came from the op that was called with the last plan; its backward reports gradients."""
        self.native.observe(output)

    def compute_quantization_bits(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """(bits uint8 [N], sensitivities float32 [N]) for `input`, [N, ...]."""
        plan = self.plan(input)
        bits = plan["sample_bits"]
        if bits is None:
            bits = torch.full((input.shape[0],), plan["bits"], dtype=torch.uint8, device=input.device)
        return bits, self.C

    @staticmethod
    def allocate_perlayer() -> None:
        """Allocates bits to layers now, from the last backward. Forward does it by itself when `config.perlayer`."""
        config.policy.allocate_per_layer()

    def if_allocate_perlayer(self) -> None:
        """Nothing: the policy itself notices the end of a backward. Kept for scripts of the original."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to have."""
        return dict(self.native.state())

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.native.load_state(state)

    def __deepcopy__(self, memo: dict) -> "QScheme":
        return _rebuild(type(self), self.config, *self._arguments(), self.state())

    def __reduce__(self):
        return _rebuild, (type(self), self.config, *self._arguments(), self.state())

    def _arguments(self) -> tuple:
        return self.group, self.num_locations, self.depthwise_groups, self._channel_dim, self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, bits={self.bits:g}, group={self.group})"


PLAN = ("bits", "group_size", "rounding", "sample_bits", "total_bits", "compress", "simulate", "offload")
"""What C++'s plan has, in its order."""


def _rebuild(cls, config, group, num_locations, depthwise_groups, channel_dim, name, state):
    scheme = cls.__new__(cls)
    QScheme.__init__(
        scheme, None, group, num_locations, depthwise_groups, config=config, channel_dim=channel_dim, name=name
    )
    scheme.load_state(state)
    return scheme


def _wrap(native) -> QScheme:
    """The Python face of a scheme that C++ gave."""
    from .qbnscheme import QBNScheme

    cls = QBNScheme if native.normalization() else QScheme
    scheme = cls.__new__(cls)
    scheme.native, scheme.config, scheme._channel_dim = native, config, 1
    return scheme
