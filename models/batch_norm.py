"""BatchNorm with YOLOv5's constants; accurate on CPUs even without the kernel plugin, equal in eager and graph mode."""

from kernels.framework.global_rows import replicated
from kernels.framework.in_place import subtract
from kernels.ops.batch_norm.function import batch_norm, synchronised_batch_norm
from kernels.plugin import is_loaded
from kernels.runtime import Tensor, flow
from models import layout
from models.layers import tensor_of

EPS = 1e-3
MOMENTUM = 0.03


class BatchNorm2d(flow.nn.BatchNorm2d):
    """Batch normalisation per channel: biased variance, and unbiased in the running statistics, as in PyTorch.

    The forward pass does not increment `num_batches_tracked`, since in-place additions to buffers are lost inside
    `nn.Graph`; `DetectionModel.count_batch` does.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS, momentum=MOMENTUM)
        self.synchronised = False
        """Whether statistics are computed over all ranks if the batch is sharded; otherwise per rank."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training mode by the batch statistics, which also update the running ones."""
        return self._channels_last(x, silu=False) if layout.channels_last() else self._channels_first(x)

    def with_silu(self, x: Tensor) -> Tensor:
        """Apply BatchNorm, then SiLU; fused with channels last."""
        return self._channels_last(x, silu=True) if layout.channels_last() else flow._C.silu(self._channels_first(x))

    def _channels_last(self, x: Tensor, *, silu: bool) -> Tensor:
        states = (self.weight, self.bias, self.running_mean, self.running_var)
        over_ranks = self.training and self.synchronised and x.is_global
        return (synchronised_batch_norm if over_ranks else batch_norm)(
            x,
            *(tensor_of(state) for state in states),
            eps=self.eps,
            momentum=self.momentum,
            silu=silu,
            **({} if over_ranks else {"training": self.training}),
        )

    def _channels_first(self, x: Tensor) -> Tensor:
        if self.training and self._needs_plain_ops(x):
            return self._composed(x)
        return flow._C.normalization(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            axis=1,
            epsilon=self.eps,
            momentum=self.momentum,
            is_training=self.training,
        )

    def _needs_plain_ops(self, x: Tensor) -> bool:
        """Return whether OneFlow's fused op cannot be used.

        It uses the images of one rank only, and without the plugin non-finite batches corrupt its running statistics.
        """
        return (self.synchronised and x.is_global) or not is_loaded()

    def _composed(self, x: Tensor) -> Tensor:
        """Compute the normalisation with plain ops.

        Running statistics of channels that are not finite in this batch are not updated.

        OneFlow's CPU kernel computes the variance as E[x^2] - E[x]^2 in float32: for a channel with mean 20 and
        standard deviation 1 its outputs are off by 4e-3, ours by 2e-6.
        """
        batch, _, height, width = x.shape
        count = batch * height * width
        mean = replicated(flow.mean(x, dim=[0, 2, 3], keepdim=True))
        centred = x - mean
        variance = replicated(flow.mean(flow.square(centred), dim=[0, 2, 3], keepdim=True))
        scale = flow.rsqrt(variance + self.eps) * self.weight.reshape(1, -1, 1, 1)
        unbiased = variance.detach().reshape(-1) * (count / max(count - 1, 1))
        mean_row = mean.detach().reshape(-1)
        finite = flow.logical_and(flow.isfinite(mean_row), flow.isfinite(unbiased))
        _update_running(self.running_mean, mean_row, self.momentum, finite)
        _update_running(self.running_var, unbiased, self.momentum, finite)
        return centred * scale + self.bias.reshape(1, -1, 1, 1)


def _update_running(running: Tensor, value: Tensor, rate: float, where: Tensor) -> None:
    """Compute running -= rate * (running - value) for the channels in `where`, also inside a graph."""
    with flow.no_grad():
        subtract(running, running - flow.where(where, value, running), rate)
