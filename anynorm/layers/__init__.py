"""Layers of plain arrays: the norms with parameters, statistics and modes, on any array library."""

from anynorm.layers._batch_norm import BatchNorm as BatchNorm
from anynorm.layers._batch_norm import InstanceNorm as InstanceNorm
from anynorm.layers._layer import Layer as Layer
from anynorm.layers._norms import GroupNorm as GroupNorm
from anynorm.layers._norms import LayerNorm as LayerNorm
from anynorm.layers._norms import RMSNorm as RMSNorm
from anynorm.layers._state import Differences as Differences
