"""What a training step tells about itself, read without making the host wait for the GPU.

A GPU computes a step while the host already prepares the next one. Reading a number of the step at hand would make the
host wait until the GPU has nothing left to do. So the copy of a step's numbers to the host is queued after the step's
own work, and they are read a step later; then they have arrived.
"""

import torch


class Figures:
    """The figures of one step, on their way to the host. names: of the elements of `values`, a vector on the device."""

    def __init__(self, step, names, values):
        self.step, self.names = step, names
        self.values = values.detach().to("cpu", non_blocking=values.is_cuda)  # into pinned memory
        self.sent = None
        if values.is_cuda:
            self.sent = torch.cuda.Event()
            self.sent.record(torch.cuda.current_stream(values.device))  # of that GPU, which may not be the current one

    def read(self):
        """{name: number}. Waits until they have arrived."""
        if self.sent:
            self.sent.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))
