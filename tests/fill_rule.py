"""Weights and inputs of the test vectors, reproducible with NumPy alone.

fill(name, shape, salt, small), with r = RandomState(crc32(salt + name)).standard_normal(shape):
  1-d ".weight" (a norm's scale): 1 + 0.1 r;   other 0-d and 1-d (biases): 0.1 r;   others: r/√(fan-in), × 1.5 for
  queries and keys (× 3 would make the network chaotic);   small=True: × 0.003 for tensors that write to a residual
  stream, so that every norm sees a variance near 1e-5 and its ε shows.
"""

import math
import re
import zlib

import numpy as np

QUERY_KEY = (".to_q.weight", ".to_k.weight", ".q_proj.weight", ".k_proj.weight")
RESIDUAL = re.compile(
    r"(^|\.)(conv_in|conv2|conv_shortcut|proj_in|proj_out|to_out\.0|net\.2|conv|post_quant_conv|out_proj|fc2"
    r"|token_embedding|position_embedding)\.(weight|bias)$"
)


def fill(name, shape, salt="", small=False):
    shape = tuple(int(s) for s in shape)
    values = normal64(name, shape, salt)
    if len(shape) <= 1:
        values = 1 + 0.1 * values if name.endswith(".weight") else 0.1 * values
    else:
        values = values / math.sqrt(math.prod(shape[1:])) * (1.5 if name.endswith(QUERY_KEY) else 1)
    return np.asarray(values * (0.003 if small and RESIDUAL.search(name) else 1), dtype=np.float32)


def normal64(name, shape, salt=""):
    return np.random.RandomState(zlib.crc32((salt + name).encode())).standard_normal(shape)


def normal(name, shape, salt=""):
    """Inputs: standard normal."""
    return normal64(name, shape, salt).astype(np.float32)


def eps_fn(x, t):
    """The "model" of the schedule vectors."""
    return 0.6 * np.tanh(x) + 0.2 * np.sin(3.0 * x + 0.01 * float(t))
