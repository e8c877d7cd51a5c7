"""Networks in bfloat16."""

from kernels.framework.activation_type import ActivationType
from kernels.plugin import load_plugin
from models.network import DetectionModel


def in_bfloat16(network: DetectionModel) -> DetectionModel:
    """Return the network with bfloat16 activations, even on CPUs where they are slower."""
    load_plugin("auto")
    return network.compute_in(ActivationType.BFLOAT16)
