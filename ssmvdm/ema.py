"""The averaged weights that samples are made with."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """Copy of `network` whose weights `update_parameters` keeps at the exponential moving average

        a_1 = w_1,  a_k = decay a_{k-1} + (1 - decay) w_k

    of the weights w_k after step k: the random initial weights have no part in it.
    """
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)
