"""Time on a GPU: of the device by replays of a graph, of the host apart, of whole calls.

On a CPU, where --tiny tries the code and figures mean nothing, each function is called once.
"""

import statistics
import time

import torch

REPEATS = 20


def spread(times):
    """{"median", "low", "high": quartiles, "runs"} of seconds."""
    times = sorted(times)
    quarter = len(times) // 4
    return {"median": statistics.median(times), "low": times[quarter], "high": times[-1 - quarter], "runs": len(times)}


def synchronise():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def rounds(repeats, warm=3):
    """(all rounds, how many of them only warm up)."""
    return (repeats + warm, warm) if torch.cuda.is_initialized() else (1, 0)


def called(function, repeats=REPEATS):
    """Seconds of function() on the wall, each call waited for."""
    (number, warm), times = rounds(repeats), []
    for i in range(number):
        start = time.perf_counter()
        function()
        synchronise()
        if i >= warm:
            times.append(time.perf_counter() - start)
    return spread(times)


def of_host(function, repeats=REPEATS):
    """Seconds until function() returns, while the device has nothing else to do: what the host takes to tell it all.

    But: a function of more than about a thousand launches waits for the device in between.
    """
    (number, warm), times = rounds(repeats), []
    for i in range(number):
        synchronise()
        start = time.perf_counter()
        function()
        if i >= warm:
            times.append(time.perf_counter() - start)
    synchronise()
    return spread(times)


def captured(function):
    """function() as a CUDA graph, after three calls that warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def of_device(function, repeats=REPEATS):
    """Seconds of function() on the device alone, by replays of a graph."""
    if not torch.cuda.is_initialized():
        return called(function, repeats)
    graph, times = captured(function), []
    number, warm = rounds(repeats)
    for i in range(number):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= warm:
            times.append(start.elapsed_time(end) / 1000)
    return spread(times)


def busy(function, top=20):
    """{"busy": seconds of all kernels of one call of function(), "kernels": how many, "top": [[name, seconds, n]]}."""
    if not torch.cuda.is_initialized():  # a profile of a CPU's operations takes longer than they do
        function()
        kind, key, function = torch.profiler.ProfilerActivity.CPU, "self_cpu_time_total", torch.ones(2).sum
    else:
        kind, key = torch.profiler.ProfilerActivity.CUDA, "self_device_time_total"
    with torch.profiler.profile(activities=[kind]) as profile:
        function()
        synchronise()
    rows = [(event.key[:120], getattr(event, key) / 1e6, event.count) for event in profile.key_averages()]
    rows = sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
    return {"busy": sum(row[1] for row in rows), "kernels": sum(row[2] for row in rows), "top": rows[:top]}


def peak(function):
    """Bytes of GPU memory at the peak of function(), all that exists included; 0 on a CPU."""
    if not torch.cuda.is_initialized():
        function()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def ratio(a, b):
    """Of two figures' medians; None if one is missing."""
    return a["median"] / b["median"] if a and b else None
