"""How cost is measured: calls in turn on one device, the peak of memory, floating-point operations; measured once.

On a CPU time is processor time of this process, which is what the clock shows on an idle machine with one thread; on
CUDA it is the clock, and the device is waited for.
"""

from __future__ import annotations

import platform
import re
import statistics
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dmsmil.jobs.files import InputError, fingerprint, read_json, write_json
from dmsmil.jobs.parallel import pick_device

TURN_SECONDS, TURN_CALLS = 0.1, 50  # a turn lasts about this long, and has at most so many calls


def cpu_seconds(call: Callable) -> float:
    """Processor time of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def call_seconds(call: Callable, device: torch.device) -> float:
    """Of one call: processor time on a CPU; on CUDA what the clock shows, the device waited for before and after."""
    if device.type == "cpu":
        return cpu_seconds(call)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def turn_seconds(call: Callable, device: torch.device) -> float:
    """Seconds a call in one turn: a call that is not counted, for the caches are another's, then about TURN_SECONDS of
    calls, at least one."""
    count = min(TURN_CALLS, max(1, int(TURN_SECONDS / max(call_seconds(call, device), 1e-9))))

    def several():
        for _ in range(count):
            call()

    return call_seconds(several, device) / count


def interleave(
    calls: Iterable[Callable], rounds: int, seconds: Callable[[Callable], float] = cpu_seconds
) -> list[list[float]]:
    """`seconds` of each of `rounds` calls of every one of `calls`, in turn: a, b, a, b, ... One list a call."""
    calls = list(calls)
    kept = [[] for _ in calls]
    for _ in range(rounds):
        for call, mine in zip(calls, kept):
            mine.append(seconds(call))
    return kept


def device_name(device: torch.device) -> str:
    """What computes: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", told.read_text() if told.exists() else "", re.M)
    name = found.group(1) if found else platform.processor() or platform.machine()
    return " ".join(re.sub(r"\((?:R|TM)\)|\bCPU\b", " ", name, flags=re.I).split()) + ", one thread"


class TensorMemory(TorchDispatchMode):
    """Bytes of the tensors alive while it is entered: `now`, and `peak`, the most there were at once.

    It sees what every operation returns and is told when the memory behind it is given back, so the same calls give
    the same number. held: tensors that are there before. Not seen: what an operation needs and gives back within
    itself; against torch's profiler, which sees that too but writes to stderr, it lacked 0 to 0.3 % in training steps
    of K = 200 tiles of 2048 features.
    """

    def __init__(self, held: Iterable[Tensor] = ()):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        del self.alive[key]
        self.now -= size


def peak_memory(call: Callable, held: Iterable[Tensor], device: torch.device) -> tuple[float, float]:
    """(peak memory of `call`, what NumPy's arrays have of it) in MB, 10^6 bytes. held: the tensors it starts with.

    `call` is called twice, for tensors and for arrays. CUDA: the device's peak as torch counts it; arrays are on the
    host and not in it. CPU: the peak of tensors (`TensorMemory`) plus the peak of arrays and other Python objects
    (tracemalloc); the two need not fall together, so the sum is too large by the smaller at most. Left out: scratch
    memory inside a kernel or inside SciPy's solver, and what the interpreter and the libraries take.
    """
    held = list(held)
    tensors = _cuda_peak(call, held, device) if device.type == "cuda" else _cpu_peak(call, held)
    tracemalloc.start()
    try:
        call()
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return (tensors if device.type == "cuda" else tensors + arrays) / 1e6, arrays / 1e6


def _cpu_peak(call: Callable, held: list[Tensor]) -> int:
    with TensorMemory(held) as meter:
        call()
    return meter.peak


def _cuda_peak(call: Callable, held: list[Tensor], device: torch.device) -> int:
    """Held tensors and what `call` adds: what others hold on the device does not count."""
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return sum(sizes.values()) + torch.cuda.max_memory_allocated(device) - before


def count_flops(call: Callable) -> int:
    """Floating-point operations of the matrix products and convolutions of `call`, two to a multiply-add.

    As torch's FlopCounterMode counts: neither element-wise operations, softmax, gathering, sorting and distances, nor
    SciPy's assignment, which is no operation on tensors.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def spread(values: list[float], before: str, after: str) -> dict[str, float]:
    """Median, least and most of `values` as <before>median<after>, <before>min<after>, <before>max<after>."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {f"{before}{name}{after}": value for name, value in found.items()}


def at_least_one(**sizes: int) -> None:
    """InputError naming the first of the sizes that is below one."""
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")


def measured_once(
    home: str | Path, name: str, key: dict, device: str, source: str, measure: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """The table that `measure` gives, kept in <home>/cost/: measured anew only when what decides it has changed.

    That is `key`, the device, torch's version, and how it is measured: the code of this file and of the file `source`.
    A measurement that was interrupted leaves nothing behind, so what is read is whole.
    """
    how = [Path(file).read_text(encoding="utf-8") for file in (__file__, source)]
    key = key | {"device": device_name(pick_device(device)), "torch": torch.__version__, "how": fingerprint(how)}
    path = Path(home) / "cost" / f"{name}-{fingerprint(key)}.json"
    try:
        kept = read_json(path) if path.exists() else {}
    except ValueError:  # a file that someone else has damaged
        kept = {}
    if fingerprint(kept.get("key")) != fingerprint(key):
        kept = {"key": key, **measure().to_dict("split", index=False)}
        write_json(kept, path)
    return pd.DataFrame(kept["data"], columns=kept["columns"])
